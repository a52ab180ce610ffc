"""Agents: training algorithms that own a policy and meet the data only through environments."""

from ..registry import Registry

_registry = Registry("agent")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("random", "maskgym.agents.random_answers:RandomAgent")  # well-formed answers of random words; random clicks
register("sft", "maskgym.agents.language:SFTAgent")  # imitates the data set's rationales
register("cgpo", "maskgym.agents.language:CGPOAgent")  # Saliency-R1's single-sample policy optimisation
register("ppo", "maskgym.agents.ppo:PPOAgent")  # on clicks: AlignSAM's

__all__ = ["get", "make", "names", "register"]
