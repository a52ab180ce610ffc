"""An environment: salient objects, with its own instruction."""

from maskgym.envs.reasoning import ReasoningEnv, ReasoningVectorEnv


class CirclesVectorEnv(ReasoningVectorEnv):
    """``maskgym/SOD-v0`` with its own instruction; the arguments are those of the parent."""

    @property
    def instruction(self) -> str:
        """The instruction to the agent."""
        return f"There is a circle. {super().instruction}"


class CirclesEnv(ReasoningEnv):
    """Scalar environment: one episode at a time."""

    vector_class = CirclesVectorEnv
