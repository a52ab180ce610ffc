"""Count the operations and the memory of EVF-SAM from its configuration, on a network that holds no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from maskgym.aliases import Settings
from maskgym.segmenters.frozen import AUTO, DTYPES
from maskgym.segmenters.phrases.evf_sam import EMBEDDED, PREPARED, EvfSam, EvfSamConfig, read_config

WORDS = 12  # of a phrase, in tokens
PUBLISHED = EvfSamConfig()
# Attention with relative positions is computed as a whole, and each of two additions and the softmax is a copy.
COPIES = 3


@dataclass(frozen=True)
class Segmenter:
    """Counts of an EVF-SAM.

    Attributes:
        parameters: Number of weights.
        encode: Operations per image.
        prompt: Operations per phrase in BEiT-3.
        decode: Operations per phrase in the mask decoder.
        attention: Values of the largest attention of an image.
        encoding: Values of a cached image: its embedding, and the pixels for BEiT-3.
        pixels: Side of the square that is encoded.
        size: Bytes of a value.
        batch: Images that are encoded together.
        cache: Most bytes of encodings that are kept in main memory.
    """

    parameters: int
    encode: int
    prompt: int
    decode: int
    attention: int
    encoding: int
    pixels: int
    size: int = 2
    batch: int = PREPARED
    cache: int = 0

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.size * self.parameters

    @property
    def working(self) -> int:
        """Bytes of a pass of the image encoder."""
        return COPIES * self.batch * self.attention * self.size


def of_run(settings: Settings, gpu: bool) -> Segmenter | None:
    """Count the segmenter of a run; None if it is no EVF-SAM.

    Args:
        settings: The config's group ``segmenter``; a checkpoint needs no more than its ``config.json``, and without one
            the sizes are the published ones.
        gpu: Whether it runs on a GPU, where ``dtype=auto`` is bfloat16.

    Raises:
        UserError: If the configuration cannot be read.
    """
    name = settings["name"]
    if name not in ("evf_sam", "evf_sam_tiny"):
        return None
    checkpoint = EMBEDDED if name == "evf_sam_tiny" else settings["checkpoint"]
    file = None if checkpoint is None else Path(checkpoint).expanduser() / "config.json"
    dtype = settings["dtype"]
    if dtype == AUTO:
        dtype = "bfloat16" if gpu else "float32"
    config = PUBLISHED if file is None else read_config(file, optional=not file.parent.is_dir())
    return count(config, DTYPES[dtype].itemsize, settings["batch_size"], settings["cache_bytes"])


@cache
def count(config: EvfSamConfig = PUBLISHED, size: int = 2, batch: int = PREPARED, cached: int = 0) -> Segmenter:
    """Count an EVF-SAM; the arguments after its configuration are those of `Segmenter`."""
    sam, side, small = config.sam, config.sam.image_size, config.beit3.image_size
    with torch.device("meta"), torch.no_grad():
        model = EvfSam(config).eval().requires_grad_(False)
        index, words = torch.zeros(1, dtype=torch.int64), torch.zeros(1, WORDS, dtype=torch.int64)
        with FlopCounterMode(display=False) as encoding:
            embeddings = model.encode_images(torch.empty(1, 3, side, side))
        with FlopCounterMode(display=False) as prompting:
            prompts = model.embed_prompts(torch.empty(1, 3, small, small), words, words > 0, index)
        with FlopCounterMode(display=False) as decoding:
            model.decode(embeddings, prompts, index)
    return Segmenter(
        parameters=sum(value.numel() for value in model.parameters()),
        encode=encoding.get_total_flops(),
        prompt=prompting.get_total_flops(),
        decode=decoding.get_total_flops(),
        attention=sam.num_heads * (side // sam.patch_size) ** 4,
        encoding=embeddings.numel() + 3 * small**2,
        pixels=side,
        size=size,
        batch=batch,
        cache=cached,
    )
