"""An environment: salient objects, asked for in other words."""

from maskgym.envs.reasoning import ReasoningEnv, ReasoningVectorEnv


class CirclesVectorEnv(ReasoningVectorEnv):
    """``maskgym/SOD-v0`` with an instruction of its own; arguments are the parent's."""

    @property
    def instruction(self) -> str:
        """What is asked of the agent."""
        return f"There is a circle. {super().instruction}"


class CirclesEnv(ReasoningEnv):
    """The same, one at a time."""

    vector_class = CirclesVectorEnv
