"""Choose how many answers one forward pass holds, from the memory that is free (``algo.micro_batch_size=auto``).

The estimate is a formula; nothing is tried out, so the number is the same in each run on the same free memory. For each
answer of N tokens (the longest prompt found and ``max_new_tokens``), in a language model with L layers of width H and I
inner units, a layer keeps for its backward pass

- where its weights are trained: N (10 H + 4 I) values;
- with adapters: N (8 H + 4 I) values, because frozen weights need no input. In half precision N (8 H + I) of them are
  float32 copies, the inputs of norms and adapters, and N (4 H + 3 I) are not.

A test counts the tensors that autograd saves. Without gradient checkpointing all layers keep so much, with it one layer
does, and of all layers N L H values, their inputs. What does not depend on the size of a pass is subtracted first:
gradients, AdamW's moments (two pairs with the separate optimizer of supervised steps) and the tiles of TRL's head in
float32: four on GPUs, eight elsewhere. Of the rest, `SAFETY` is used. Generation holds all answers of a worker at once,
whatever the size of a pass.
"""

from __future__ import annotations

import os

import torch

SAFETY = 0.8  # what the allocator wastes and the estimate leaves out, such as the vision encoder's activations
CPU_SHARE = 0.5  # of the machine's memory: what is free changes, and runs on a CPU should be the same each time
HEAD_TILE = (4096, 32768)  # tokens and words of a tile of TRL's head
HEAD_COPIES = {True: 4, False: 8}  # of a tile in float32, on GPUs and elsewhere, where no kernel works in place
FLOAT = 4  # bytes of a trained weight, its gradient and each of its moments


def bytes_per_answer(
    hidden: int, inner: int, layers: int, tokens: int, size: int, checkpointing: bool, adapters: bool
) -> int:
    """Compute the bytes of activations that one answer adds to a forward and backward pass.

    Args:
        hidden: Width H.
        inner: Inner units I of a feed-forward layer.
        layers: Number of layers L.
        tokens: Tokens N of prompt and answer.
        size: Bytes of a value.
        checkpointing: Whether gradient checkpointing is on.
        adapters: Whether adapters are trained, which are float32.
    """
    layer = tokens * (10 * hidden + 4 * inner) * size
    if adapters:
        copies = (8 if size < FLOAT else 4) * hidden + inner
        layer = tokens * ((4 * hidden + 3 * inner) * size + copies * FLOAT)
    return tokens * layers * hidden * size + layer if checkpointing else layers * layer


def state_bytes(trained: int, pairs: int) -> int:
    """Compute the bytes of gradients and moments of trained parameters, with one pair of moments per optimizer."""
    return trained * FLOAT * (1 + 2 * pairs)


def head_bytes(words: int, gpu: bool, tokens: int = HEAD_TILE[0]) -> int:
    """Compute the bytes of TRL's head, which scores tokens in tiles.

    Args:
        words: Size of the vocabulary.
        gpu: Whether it runs on a GPU.
        tokens: Tokens that a pass scores.
    """
    return HEAD_COPIES[gpu] * min(tokens, HEAD_TILE[0]) * min(words, HEAD_TILE[1]) * FLOAT


def available_bytes(device: torch.device, workers: int) -> int:
    """Find the memory for a worker: what is free on its GPU, or its part of half of the machine's memory."""
    if device.type != "cuda":
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * CPU_SHARE / workers)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def largest_fitting(share: int, per_answer: int, fixed: int, available: int) -> int:
    """Find the largest divisor of a worker's answers that fits into memory; 1 if none does.

    Example:
        >>> [largest_fitting(12, 10, 100, 100 + room) for room in (0, 50, 80, 1000)]
        [1, 4, 6, 12]
    """
    room = (available - fixed) * SAFETY
    divisors = [count for count in range(1, share + 1) if share % count == 0]
    return max([1, *(count for count in divisors if count * per_answer <= room)])
