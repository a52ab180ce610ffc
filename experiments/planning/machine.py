"""Measure what this machine reaches, in seconds: a layer of the policy, and matrix products.

Models with one and with two layers of the policy's widths are trained and generate. The second minus the first is the
time of a layer; what the first takes beside its layer is the same for any number of layers.
"""

from __future__ import annotations

import copy
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.initialization import no_init_weights

from maskgym.agents.text.forward_size import HEAD_TILE
from maskgym.experiments.planning.devices import CONTEXT, GIGA, SEGMENTER_COMPUTE, Device
from maskgym.experiments.planning.models import Model
from maskgym.experiments.planning.seconds import HEAD_PASSES
from maskgym.policies.text.mllm import add_adapters

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Clock = Callable[[], float]  # seconds
WORDS = 64  # rows of the small vocabulary
PROMPT = 16  # tokens
OPERATIONS, READ = 2.5e10, 2e9  # of a timed pass, and bytes of a layer's weights in a timed generation, about
LEAST, GENERATED = 64, (8, 64)  # least tokens of a timed text; least and most of a timed answer
REPEATS = 2  # after one to warm up; the shorter counts, as other programs only add
SCORED = (16, 128)  # least and most tokens that the output layer scores, in a whole tile of words: no cache holds it
SQUARE, LARGE = 1536, 10**8  # rows and columns of a matrix product; values of the matrix that is read
WEIGHT = 0.01  # of every weight: times do not depend on values, and random ones take seconds to draw


@dataclass(frozen=True)
class Timed:
    """Work that is timed, as in the run.

    Attributes:
        config: Configuration of the policy.
        model: Its counts.
        dtype: Precision of its weights.
        rank: Rank of its adapters; None for none.
        rows: Answers that are generated together.
        length: Tokens of a text that is trained on.
        texts: Texts of a training pass.
        scored: Tokens that its output layer scores.
        segmenter: Precision of the segmenter.
    """

    config: PretrainedConfig
    model: Model
    dtype: torch.dtype
    rank: int | None
    rows: int
    length: int
    texts: int
    scored: int
    segmenter: torch.dtype


def measure(timed: Timed, clock: Clock = time.perf_counter) -> Device:
    """Measure this machine, its first GPU if it has one.

    Args:
        timed: What to time.
        clock: Clock; the processor's time is that without other programs.
    """
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory, held = _memory(place)
    multiply, read = _matrices(timed.segmenter, place, clock), _reading(timed.dtype, place, clock)
    models = [_shallow(timed, layers).to(place) for layers in (1, 2)]
    flops, head = _training(models, timed, clock), _head(timed, place, clock)
    weights = timed.dtype.itemsize * _layer(timed.model)  # bytes
    count = _between(READ / weights, *GENERATED)
    one, two = (_token(model, timed.rows, count, clock) for model in models)
    layer = _difference(one, two)
    each, beside = max(layer - weights / read, 0.0), max(one - layer, 0.0)
    threads, dtype, gpu = torch.get_num_threads(), str(timed.dtype).removeprefix("torch."), place.type == "cuda"
    return Device(
        torch.cuda.get_device_name() if gpu else f"this machine, {threads} thread{'s' * (threads > 1)}",
        flops,
        read,
        multiply * SEGMENTER_COMPUTE,
        memory,
        held,
        each,
        beside,
        f"measured here, in {dtype}, on layers of these widths: {flops / GIGA:.1f} GFLOP/s of training, "
        f"{head / GIGA:.1f} of the output layer's; generating "
        f"{timed.rows} answers together reads {read / GIGA:.1f} GB/s and takes {1e3 * each:.2f} ms per layer and token "
        f"and {1e3 * beside:.2f} ms per token beside that; the segmenter reaches {SEGMENTER_COMPUTE} of the "
        f"{multiply / GIGA:.0f} GFLOP/s of matrix products",
        gpu,
        head,
    )


def _layer(model: Model) -> int:
    """Count the weights of a layer that a token is multiplied with."""
    return model.products // model.layers


def _training(models: Sequence[PreTrainedModel], timed: Timed, clock: Clock) -> float:
    """Measure the operations per second of a layer, forward and backward, on texts as long as the run's."""
    weights, passes = _layer(timed.model), 3 if timed.rank is None else 2  # forward, backward to inputs, to weights
    length = _between(OPERATIONS / (2 * passes * weights), LEAST, max(timed.length, LEAST))
    texts = _between(OPERATIONS / (2 * passes * weights * length), 1, timed.texts)
    one, two = (_best(partial(_train, model, texts, length), clock) for model in models)
    operations = passes * texts * length * (2 * weights + 4 * timed.model.heads * length)
    return operations / _difference(one, two)


def _head(timed: Timed, place: torch.device, clock: Clock) -> float:
    """Measure the operations per second of TRL's output layer, forward and backward, on one tile."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # TRL takes seconds to import

    tokens, words = _between(timed.scored, *SCORED), min(HEAD_TILE[1], timed.model.words)
    settings = {"dtype": timed.dtype, "device": place}
    hidden = torch.full((tokens, timed.model.hidden), WEIGHT, requires_grad=True, **settings)
    weight = torch.full((words, timed.model.hidden), WEIGHT, requires_grad=timed.rank is None, **settings)
    targets = torch.zeros(tokens, dtype=torch.int64, device=place)

    def score() -> None:
        found = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, words, None, 1.0, ("entropy",))
        found[0].sum().backward()
        _wait(place)

    passes = HEAD_PASSES + (timed.rank is None)
    return passes * 2 * tokens * words * timed.model.hidden / _best(score, clock)


def _between(value: float, least: int, most: int) -> int:
    return int(min(max(value, least), most))


def _token(model: PreTrainedModel, rows: int, count: int, clock: Clock) -> float:
    """Measure the seconds per generated token, without those of the prompt."""
    long, short = (_best(partial(_generate, model, rows, 1 + more), clock) for more in (count, 0))
    return (long - short) / count


def _difference(one: float, two: float) -> float:
    """Compute the time of a layer; at least a tenth of two, where other programs disturbed the measurement."""
    return max(two - one, 0.1 * two)


def _memory(place: torch.device) -> tuple[float, float]:
    """Find the bytes of a GPU and of its context, or those of the machine and what this process holds already."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info()[1], CONTEXT
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), held


def _shallow(timed: Timed, layers: int) -> PreTrainedModel:
    """Build a model with a few layers of the policy's widths, a small vocabulary and one vision layer."""
    config = copy.deepcopy(timed.config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = layers, WORDS, None
    text.tie_word_embeddings = config.tie_word_embeddings = False
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    depth = "depth" if hasattr(config.vision_config, "depth") else "num_hidden_layers"
    setattr(config.vision_config, depth, 1)
    with no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=timed.dtype, trust_remote_code=False)
    for value in model.parameters():
        value.data.fill_(WEIGHT)
    return model if timed.rank is None else add_adapters(model, timed.rank, timed.rank)


def _train(model: PreTrainedModel, texts: int, length: int) -> None:
    """Run the language part forward and backward on texts of equal length."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    weight = next(model.parameters())
    shown = torch.full((texts, length, whole.config.get_text_config().hidden_size), WEIGHT, dtype=weight.dtype)
    whole.get_decoder()(inputs_embeds=shown.to(weight.device), use_cache=False).last_hidden_state.sum().backward()
    model.zero_grad()
    _wait(weight.device)


def _generate(model: PreTrainedModel, rows: int, count: int) -> None:
    """Generate a number of tokens for each of some rows."""
    place = next(model.parameters()).device
    ids = torch.zeros(rows, PROMPT, dtype=torch.int64, device=place)
    length = {"min_new_tokens": count, "max_new_tokens": count}
    settings = GenerationConfig(do_sample=True, top_k=0, pad_token_id=0, suppress_tokens=[1], **length)
    with torch.inference_mode():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    _wait(place)


def _matrices(dtype: torch.dtype, place: torch.device, clock: Clock) -> float:
    """Measure the operations per second of a matrix product."""
    square = torch.full((SQUARE, SQUARE), WEIGHT, dtype=dtype, device=place)

    def multiply() -> None:
        square @ square
        _wait(place)

    return 2 * SQUARE**3 / _best(multiply, clock)


def _reading(dtype: torch.dtype, place: torch.device, clock: Clock) -> float:
    """Measure the bytes per second of a matrix that is multiplied with a vector, too large for a cache."""
    matrix = torch.full((LARGE // SQUARE, SQUARE), WEIGHT, dtype=dtype, device=place)
    vector = matrix[:1].clone()

    def read() -> None:
        torch.nn.functional.linear(vector, matrix)
        _wait(place)

    return matrix.nbytes / _best(read, clock)


def _best(act: Callable[[], None], clock: Clock) -> float:
    """Measure the shortest time of an act, after one to warm up."""
    act()
    times = []
    for _ in range(REPEATS):
        begun = clock()
        act()
        times.append(clock() - begun)
    return min(times)


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize()
