"""Agents: training algorithms that own a policy and meet the data only through environments."""

from ..registry import Registry

_registry = Registry("agent")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("random", "maskgym.agents.random_agent:RandomAgent")  # well-formed answers of random words; random clicks
register("sft", "maskgym.agents.language:SFTAgent")  # imitates the data set's rationales
register("cgpo", "maskgym.agents.language:CGPOAgent")  # Saliency-R1's single-sample policy optimisation
register("ppo", "maskgym.agents.ppo:PPOAgent")  # on clicks: AlignSAM's
register("grpo_clicks", "maskgym.agents.click_groups:GRPOAgent")  # on clicks: episodes of one sample, compared
register("cgpo_clicks", "maskgym.agents.click_groups:CGPOAgent")  # on clicks: one episode a sample, less its confidence
register("oracle", "maskgym.agents.oracle:OracleAgent")  # clicks searched for with the truth at hand: the ceiling

__all__ = ["get", "make", "names", "register"]
