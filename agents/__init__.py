"""Agents: training algorithms that own a policy and meet the data only through environments."""

from maskgym.registry import Registry

_registry = Registry("agent")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("random", "maskgym.agents.random_agent:RandomAgent")  # well-formed answers of random words; random clicks
register("sft", "maskgym.agents.text.language:SFTAgent")  # imitates the data set's rationales
register("cgpo", "maskgym.agents.text.language:CGPOAgent")  # Saliency-R1's single-sample policy optimisation
register("grpo", "maskgym.agents.text.language:GRPOAgent")  # answers to one prompt, compared, with a KL term
register("dr_grpo", "maskgym.agents.text.language:DrGRPOAgent")  # GRPO without its two divisions
register("dapo", "maskgym.agents.text.language:DAPOAgent")  # GRPO with dynamic sampling and a wider clip range above
register("gspo", "maskgym.agents.text.language:GSPOAgent")  # GRPO with one ratio an answer
register("rloo", "maskgym.agents.text.language:RLOOAgent")  # an answer less the mean of the others to its prompt
register("spo", "maskgym.agents.text.language:SPOAgent")  # one answer a prompt, less a running value of that prompt
register("ppo", "maskgym.agents.clicks.ppo:PPOAgent")  # on clicks: AlignSAM's
register("ppo_rllib", "maskgym.agents.clicks.rllib:RLlibPPOAgent")  # the same, played and learned on Ray
register("grpo_clicks", "maskgym.agents.clicks.click_grpo:GRPOAgent")  # on clicks: groups of one sample
register("cgpo_clicks", "maskgym.agents.clicks.click_grpo:CGPOAgent")  # on clicks: reward minus confidence
register("oracle", "maskgym.agents.clicks.oracle:OracleAgent")  # clicks searched with the ground truth: the ceiling
register("referring", "maskgym.agents.masks.referring:ReferringAgent")  # segments a need: RefCOCO evaluation
register("openai", "maskgym.agents.text.served:ServedAgent")  # a served model, not trained: Table 3
register("usersal", "maskgym.agents.masks.supervised:UserSalAgent")  # masks of needs, supervised
register("usersal_plus", "maskgym.agents.masks.supervised:UserSalPlusAgent")  # with the appearance loss
register("grpo_masks", "maskgym.agents.masks.mask_grpo:GRPOAgent")  # on masks: those drawn for one need, compared
register("cgpo_masks", "maskgym.agents.masks.mask_grpo:CGPOAgent")  # on masks: one a need, less its confidence

__all__ = ["get", "make", "names", "register"]
