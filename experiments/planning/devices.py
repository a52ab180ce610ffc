"""Rates of the GPUs that runs are planned for, by their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from maskgym.errors import UserError

TERA, GIGA = 1e12, 1e9
COMPUTE = 0.4  # share of the peak that training and prefill reach; large language models report 0.3 to 0.5
SEGMENTER_COMPUTE = 0.3  # of EVF-SAM: its attention with relative positions runs no fused kernel
BANDWIDTH = 0.6  # share of the memory's peak while tokens are generated
# Seconds of Python and of launching kernels, per layer and generated token: transformers generates 25 to 30 tokens a
# second with a 7B model on an A100, where reading its weights would take a third of that time.
LAUNCH_S = 1e-3
CONTEXT = 0.5 * 2**30  # bytes of a CUDA context, about


@dataclass(frozen=True)
class Device:
    """Rates and memory of a device.

    Attributes:
        name: Name, for the reader.
        flops: Operations per second of training and prefill; a multiplication and an addition are two.
        bandwidth: Bytes of weights and of cached values per second that generation reads.
        segmenter_flops: Operations per second of the segmenter.
        memory: Bytes of its memory.
        held: Bytes that a process holds before it loads a network.
        layer_s: Seconds per layer and generated token that do not depend on sizes.
        token_s: Seconds per generated token likewise, beside the layers.
        assumed: What the rates rest on, for the reader.
        gpu: Whether it is a GPU, on which training has gradient checkpointing by default.
        head_flops: As ``flops``, of the output layer in training; 0 for the same.
        single_flops: As ``flops``, in float32; 0 where ``flops`` was measured in the policy's precision.
    """

    name: str
    flops: float
    bandwidth: float
    segmenter_flops: float
    memory: float
    held: float = CONTEXT
    layer_s: float = LAUNCH_S
    token_s: float = 0.0
    assumed: str = ""
    gpu: bool = True
    head_flops: float = 0.0
    single_flops: float = 0.0


def _sheet(name: str, half: float, single: float, terabytes: float, gigabytes: float) -> Device:
    """Build a GPU from its data sheet: peaks of bfloat16 and float32, TFLOP/s; its memory's speed and size."""
    told = (
        f"{name.upper()}'s data sheet: {half:g} TFLOP/s in bfloat16 and {single:g} in float32, of which training and "
        f"prefill reach {COMPUTE} and the segmenter {SEGMENTER_COMPUTE}; {terabytes:g} TB/s, of which generation "
        f"reaches {BANDWIDTH}; {1e3 * LAUNCH_S:g} ms per layer and generated token to launch kernels"
    )
    return Device(
        name.upper(),
        half * TERA * COMPUTE,
        terabytes * TERA * BANDWIDTH,
        half * TERA * SEGMENTER_COMPUTE,
        gigabytes * GIGA,
        assumed=told,
        single_flops=single * TERA * COMPUTE,
    )


DEVICES = {  # NVIDIA's data sheets; the last two are those of Saliency-R1
    "a100": _sheet("a100", 312, 19.5, 2.039, 80),  # SXM
    "h100": _sheet("h100", 989, 67, 3.35, 80),  # SXM
    "h200": _sheet("h200", 989, 67, 4.8, 141),
    "h20": _sheet("h20", 148, 44, 4.0, 96),
    "l20": _sheet("l20", 119.5, 59.8, 0.864, 48),
}


def by_name(name: str) -> Device:
    """Look up a GPU.

    Raises:
        UserError: If there is no such one.
    """
    if name.lower() not in DEVICES:
        raise UserError(f"--gpu {name}: expected one of {', '.join(DEVICES)}, or none, which measures this machine")
    return DEVICES[name.lower()]
