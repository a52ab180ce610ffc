"""Register segmenters, frozen networks that turn prompts into masks, or texts into attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskgym.registry import Registry
from maskgym.segmenters.contracts import AttentionSegmenter, ReferringSegmenter, TextEncoder

if TYPE_CHECKING:
    from maskgym.segmenters.points.promptable import PromptableSegmenter

_registry: Registry[ReferringSegmenter | PromptableSegmenter] = Registry("segmenter")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("evf_sam", "maskgym.segmenters.phrases.evf_sam:EvfSamSegmenter")  # referring: paper's model, by checkpoint
register("evf_sam_tiny", "maskgym.segmenters.phrases.evf_sam:evf_sam_tiny")  # referring: bundled, the default
register("evf_sam_tiny_erring", "maskgym.segmenters.phrases.erring:ErringEvfSam")  # the same with errors
register("clipseg", "maskgym.segmenters.phrases.clipseg:ClipSegSegmenter")  # referring: small and quick
register("sam3", "maskgym.segmenters.phrases.sam3:Sam3Segmenter")  # referring: phrases name concepts
register("sam", "maskgym.segmenters.points.sam:SamSegmenter")  # promptable: ViT-B, L or H from their checkpoints
register("sam_hf", "maskgym.segmenters.points.sam_hf:SamHfSegmenter")  # promptable: the same through transformers
register("sam2", "maskgym.segmenters.points.sam_hf:Sam2Segmenter")  # promptable: SAM 2 on single images
register("sam_tiny", "maskgym.segmenters.points.sam:sam_tiny")  # promptable: bundled, the default

# Attention segmenters have another contract, so they have their own registry.
_attentions: Registry[AttentionSegmenter] = Registry("attention")
register_attention, make_attention, attention_names = _attentions.register, _attentions.make, _attentions.names
get_attention = _attentions.get

# Both are CLIP Surgery: on any CLIP ViT, and on the bundled CLIP.
register_attention("clip_surgery", "maskgym.segmenters.attention.clip_surgery:ClipSurgery")
register_attention("clip_tiny", "maskgym.segmenters.attention.clip_surgery:clip_tiny")

__all__ = [
    "AttentionSegmenter",
    "ReferringSegmenter",
    "TextEncoder",
    "attention_names",
    "get",
    "get_attention",
    "make",
    "make_attention",
    "names",
    "register",
    "register_attention",
]
