"""Policies: the networks that agents train."""

from functools import partial
from typing import Any

from ..registry import Registry

_registry = Registry("policy")
register, make, names = _registry.register, _registry.make, _registry.names


def _language_model(path: str, **arguments: Any) -> Any:
    from .mllm import LanguagePolicy

    return LanguagePolicy(path, **arguments)


register("qwen2_5_vl", "maskgym.policies.mllm:LanguagePolicy")  # any Qwen2.5-VL folder or hub name: needs path
register("qwen2_5_vl_3b", partial(_language_model, "Qwen/Qwen2.5-VL-3B-Instruct"))
register("qwen2_5_vl_7b", partial(_language_model, "Qwen/Qwen2.5-VL-7B-Instruct"))  # the paper's
register("qwen2_5_vl_tiny", "maskgym.policies.mllm:tiny_policy")  # embedded, the default
register("point_actor_critic", "maskgym.policies.point:PointActorCritic")  # clicks: convolutions over the patch grid
register("usersal", "maskgym.policies.usersal:usersal")  # masks: a frozen detector, told of needs by prompt tokens
register("usersal_plus", "maskgym.policies.usersal:usersal_plus")  # and by what in the image looks alike

__all__ = ["make", "names", "register"]
