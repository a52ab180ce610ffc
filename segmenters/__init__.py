"""Segmenters: frozen networks that turn prompts into masks."""

from ..registry import Registry

_registry = Registry("segmenter")
register, make, names = _registry.register, _registry.make, _registry.names

register("evf_sam", "maskgym.segmenters.evf_sam:EvfSamSegmenter")  # referring: the paper's, needs a checkpoint
register("evf_sam_tiny", "maskgym.segmenters.evf_sam:evf_sam_tiny")  # referring: embedded, the default
register("clipseg", "maskgym.segmenters.clipseg:ClipSegSegmenter")  # referring: small and quick
register("sam3", "maskgym.segmenters.sam3:Sam3Segmenter")  # referring: phrases name concepts

__all__ = ["make", "names", "register"]
