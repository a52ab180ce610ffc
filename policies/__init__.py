"""Register policies, the networks that agents train."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from maskgym.registry import Registry

if TYPE_CHECKING:
    from maskgym.policies.needs.need_encoder import NeedEncoder
    from maskgym.policies.needs.saliency_backbone import SaliencyBackbone


class Policy(Protocol):
    """Network that an agent trains, or the sizes of one."""

    tasks: ClassVar[tuple[str, ...]]  # tasks whose observations and actions it handles


_registry: Registry[Policy] = Registry("policy")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("mllm", "maskgym.policies.text.mllm:LanguagePolicy")  # any vision-language model of transformers: needs path
register("qwen2_5_vl", "maskgym.policies.text.mllm:Qwen25VLPolicy")  # any Qwen2.5-VL folder or hub name: needs path
register("qwen2_5_vl_3b", "maskgym.policies.text.mllm:qwen2_5_vl_3b")
register("qwen2_5_vl_7b", "maskgym.policies.text.mllm:qwen2_5_vl_7b")  # the size in the paper
register("qwen3_vl", "maskgym.policies.text.mllm:Qwen3VLPolicy")  # any Qwen3-VL folder or hub name: needs path
register("qwen2_5_vl_tiny", "maskgym.policies.text.mllm:tiny_policy")  # bundled, the default
register("qwen2_5_vl_tiny_terse", "maskgym.policies.text.mllm:tiny_terse_policy")  # bundled, starts hard levels
register("qwen2_5_vl_tiny_refer", "maskgym.policies.text.mllm:tiny_refer_policy")  # bundled, for queries
register("point_actor_critic", "maskgym.policies.clicks.point:PointActorCritic")  # clicks: a CNN over the patch grid
register("none", "maskgym.policies.no_policy:NoPolicy")  # no network, for agents that do not learn
register("usersal", "maskgym.policies.needs.usersal:UserSal")  # masks: a frozen detector with prompt tokens
register("usersal_plus", "maskgym.policies.needs.usersal:UserSalPlus")  # UserSal with appearance similarity

# Backbones and need encoders are parts of the need policies, so each kind has its own registry.
_backbones: Registry[SaliencyBackbone] = Registry("backbone")
register_backbone, make_backbone, backbone_names = _backbones.register, _backbones.make, _backbones.names

register_backbone("vst", "maskgym.policies.needs.vst:VST")  # published sizes by default, weights by checkpoint
register_backbone("vst_tiny", "maskgym.policies.needs.vst:vst_tiny")  # the same, small, for scenes
register_backbone("swin", "maskgym.policies.needs.hub_backbone:SwinBackbone")  # transformers, with a light decoder
register_backbone("dinov3", "maskgym.policies.needs.hub_backbone:Dinov3Backbone")  # the same with a plain ViT

_need_encoders: Registry[NeedEncoder] = Registry("need encoder")
register_need_encoder, make_need_encoder = _need_encoders.register, _need_encoders.make
need_encoder_names = _need_encoders.names

# The next four are from transformers.
register_need_encoder("clip", "maskgym.policies.needs.need_encoders:ClipNeedEncoder")
register_need_encoder("siglip", "maskgym.policies.needs.need_encoders:SiglipNeedEncoder")
register_need_encoder("blip", "maskgym.policies.needs.need_encoders:BlipNeedEncoder")
register_need_encoder("bert", "maskgym.policies.needs.need_encoders:BertNeedEncoder")
register_need_encoder("clip_tiny", "maskgym.policies.needs.need_encoders:clip_tiny")  # bundled
register_need_encoder("bag_of_words", "maskgym.policies.needs.bag_of_words:BagOfWords")  # a table, without order

__all__ = [
    "Policy",
    "backbone_names",
    "get",
    "make",
    "make_backbone",
    "make_need_encoder",
    "names",
    "need_encoder_names",
    "register",
    "register_backbone",
    "register_need_encoder",
]
