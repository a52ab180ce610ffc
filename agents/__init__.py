"""Register the agents: training algorithms that own a policy and read data only through environments."""

from maskgym.agents.base import Agent, FrozenAgent
from maskgym.errors import UserError
from maskgym.registry import Registry


class _Agents(Registry[Agent]):
    """Registry that refuses targets which are no agents."""

    def get(self, name: str) -> type[Agent]:
        """Look up an agent.

        Raises:
            UserError: If the name is unknown, or its target is no subclass of `Agent` or lacks a member.
        """
        target = super().get(name)
        if not (isinstance(target, type) and issubclass(target, Agent)):
            raise UserError(f"agent '{name}': got {target!r}: expected a subclass of maskgym.agents.Agent")
        missing = sorted(target.__abstractmethods__) + ["tasks"] * (not hasattr(target, "tasks"))
        if missing:
            raise UserError(f"agent '{name}': {target.__name__} without {', '.join(missing)}, which every agent has")
        return target


_registry = _Agents("agent")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("random", "maskgym.agents.random_agent:RandomAgent")  # well-formed random answers, random clicks
register("sft", "maskgym.agents.text.language:SFTAgent")  # supervised fine-tuning on the data set's rationales
register("cgpo", "maskgym.agents.text.language:CGPOAgent")  # single-sample policy optimisation of Saliency-R1
register("grpo", "maskgym.agents.text.language:GRPOAgent")  # group-relative advantages with a KL term
register("dr_grpo", "maskgym.agents.text.language:DrGRPOAgent")  # GRPO without the length and deviation divisors
register("dapo", "maskgym.agents.text.language:DAPOAgent")  # GRPO with dynamic sampling and a wider clip range above
register("gspo", "maskgym.agents.text.language:GSPOAgent")  # GRPO with one ratio per answer
register("cispo", "maskgym.agents.text.language:CISPOAgent")  # GRPO with clipped weights of importance sampling
register("sapo", "maskgym.agents.text.language:SAPOAgent")  # GRPO with a smooth gate in place of the clip range
register("rloo", "maskgym.agents.text.language:RLOOAgent")  # leave-one-out baseline per prompt
register("spo", "maskgym.agents.text.language:SPOAgent")  # one answer per prompt, minus the prompt's running value
register("ppo", "maskgym.agents.clicks.ppo:PPOAgent")  # PPO on clicks (AlignSAM)
register("dqn", "maskgym.agents.clicks.dqn:DQNAgent")  # DQN on clicks: values of patches
register("ppo_rllib", "maskgym.agents.clicks.rllib:RLlibPPOAgent")  # PPO on clicks, on Ray RLlib
register("grpo_clicks", "maskgym.agents.clicks.click_grpo:GRPOAgent")  # GRPO on clicks, groups of one sample
register("cgpo_clicks", "maskgym.agents.clicks.click_grpo:CGPOAgent")  # CGPO on clicks: return minus confidence
register("oracle", "maskgym.agents.clicks.oracle:OracleAgent")  # search with the ground truth: the upper bound
register("oracle_text", "maskgym.agents.text.oracle:OracleTextAgent")  # the ground truth as an answer
register("referring", "maskgym.agents.masks.referring:ReferringAgent")  # frozen segmenter (RefCOCO evaluation)
register("chat_model", "maskgym.agents.text.served:ServedAgent")  # served model without training (Table 3)
register("usersal", "maskgym.agents.masks.supervised:UserSalAgent")  # supervised masks of needs
register("usersal_plus", "maskgym.agents.masks.supervised:UserSalPlusAgent")  # UserSal with the appearance loss
register("grpo_masks", "maskgym.agents.masks.mask_grpo:GRPOAgent")  # GRPO on masks, groups of masks of one need
register("cgpo_masks", "maskgym.agents.masks.mask_grpo:CGPOAgent")  # CGPO on masks: reward minus confidence

__all__ = ["Agent", "FrozenAgent", "get", "make", "names", "register"]
