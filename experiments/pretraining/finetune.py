r"""Adapt EVF-SAM to a data set: train only its mask decoder on phrases and their masks.

    maskgym segmenter finetune segmenter=evf_sam segmenter.checkpoint=DIR data=coco data.root=DIR out=DIR steps=1000
    maskgym segmenter finetune segmenter=evf_sam segmenter.checkpoint=DIR out=DIR \
        data.sod=duts data.sis=[ilso,sis10k,soc] data.cosod=cocoseg data.root=DIR data.rationales=FILE group_size=8

Saliency-R1 (section 4.2) fine-tunes the mask decoder of EVF-SAM-multitask on the structured referring expressions of
its SFT data with binary cross-entropy. The paper states no learning rate, batch size or length; the defaults are ours.

The expressions are the phrases of the data set or, with ``data.rationales``, those of the rationales' answers. Then

- ``sod``: the union of an answer's masks, their highest logit at each pixel, is compared with the union of the truth;
- ``sis``: expressions and instances are matched by the Hungarian algorithm on the soft IoU of the masks of the decoder
  in training, since an answer does not say which instance an expression means; what is left over does not count;
- ``cosod``: the category's mask is compared with the truth of each image, also of those without the common object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from maskgym import data, files
from maskgym.agents.common.checkpoints import fitting, read_checkpoint
from maskgym.aliases import Config, JsonObject
from maskgym.data import Dataset, Sample
from maskgym.errors import UserError, brief, one_line
from maskgym.experiments.wiring import build, composition, sources
from maskgym.registry import check_arguments
from maskgym.rewards import parse
from maskgym.segmenters import make
from maskgym.segmenters.phrases.evf_sam import (
    EvfSam,
    EvfSamSegmenter,
    beit3_pixels,
    load_model,
    sam_pixels,
    save_checkpoint,
)
from maskgym.segmenters.text import tokenize, uniform_phrase

STATE_NAME = "training.pt"


def finetune_mask_decoder(
    segmenter: EvfSamSegmenter,
    dataset: Dataset | Sequence[Dataset],
    out: str | Path,
    steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 0,
    checkpoint_every: int = 100,
    rationales: bool = False,
) -> list[float]:
    """Train the mask decoder and write a checkpoint folder that `EvfSamSegmenter` loads.

    Everything except the mask decoder stays frozen. An interrupted run continues from its last checkpoint when called
    again with the same arguments; a larger ``steps`` extends a finished run.

    Args:
        segmenter: Initial segmenter, which stays unchanged.
        dataset: Samples with phrases, or with rationales; several data sets, such as one per task, are read as one.
        out: Output folder.
        steps: Number of optimizer steps.
        batch_size: Samples per optimizer step.
        learning_rate: Constant learning rate for AdamW.
        seed: Seed for the order of the samples.
        checkpoint_every: Optimizer steps between two checkpoints.
        rationales: Whether the expressions are those of the rationales instead of the phrases. Masks of one image with
            the same phrase are merged.

    Returns:
        The loss of each optimizer step, including those before a resumption.

    Raises:
        UserError: If a sample has no phrases, or no rationale of the form of its task; a number is below 1; or ``out``
            holds a run with other arguments.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise UserError(f"{name} {value}: expected at least 1")
    datasets = [dataset] if isinstance(dataset, Dataset) else list(dataset)
    out = Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "start": segmenter.fingerprint,
        "samples": sum(map(len, datasets)),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    # The decoder starts from the stored weights; those that stay frozen are rounded to the segmenter's precision.
    model = load_model(segmenter.config, segmenter.weights_file).eval().requires_grad_(False)
    for frozen in (model.visual_model.image_encoder, model.mm_extractor, model.text_hidden_fcs):
        frozen.to(segmenter.dtype)
    decoder = model.to(segmenter.device).visual_model.mask_decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=learning_rate)
    losses = _resume(out / STATE_NAME, settings, decoder, optimizer)

    for step in _progress(len(losses), steps, losses):
        optimizer.zero_grad()
        picked = _batch(datasets, step, batch_size, seed, rationales)
        total = 0.0
        for task, sample in picked:
            loss = mask_loss(model, segmenter, sample, task if rationales else None) / len(picked)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            state = {"settings": settings, "losses": losses, "decoder": decoder.state_dict()}
            with files.replacing(out / STATE_NAME) as temporary:
                torch.save({**state, "optimizer": optimizer.state_dict()}, temporary)

    # The initial weights are read again, because in memory the frozen part may be in half precision.
    tuned = load_model(segmenter.config, segmenter.weights_file)
    tuned.visual_model.mask_decoder.load_state_dict(decoder.state_dict())
    save_checkpoint(out, tuned, segmenter.tokenizer)
    return losses


def mask_loss(model: EvfSam, segmenter: EvfSamSegmenter, sample: Sample, task: str | None = None) -> Tensor:
    """Compute the mean binary cross-entropy over the masks of a sample, at each image's own size.

    Void pixels do not count. Gradients reach the mask decoder only.

    Args:
        model: The network in training.
        segmenter: Segmenter that it came from, with its tokenizer and device.
        sample: The sample.
        task: None for the phrases of the sample; a task for the expressions of its rationale.

    Raises:
        UserError: If the rationale has not the form of the task.
    """
    rows = list(phrase_masks(sample) if task is None else rationale_masks(sample, task))
    images = [image for image, _, _, _ in rows]
    phrases = [phrase for _, names, _, _ in rows for phrase in names]
    device, dtype, sizes = segmenter.device, segmenter.dtype, segmenter.config
    counts = [len(names) for _, names, _, _ in rows]
    index = torch.arange(len(rows), device=device).repeat_interleave(torch.tensor(counts, device=device))
    with torch.no_grad():
        pixels = torch.stack([sam_pixels(image, sizes.sam.image_size) for image in images])
        embeddings = model.encode_images(pixels.to(device, dtype)).float()
        pixels = torch.stack([beit3_pixels(image, sizes.beit3.image_size) for image in images])
        ids, padding = tokenize(segmenter.tokenizer, phrases, sizes.beit3.max_text_tokens)
        prompts = model.embed_prompts(pixels.to(device, dtype), ids.to(device), padding.to(device), index).float()
    low = model.decode(embeddings, prompts, index).split(counts)
    losses = []
    for logits, (image, _, masks, scored) in zip(low, rows, strict=True):
        target = torch.from_numpy(masks).to(device, torch.float32)
        weight = torch.from_numpy(scored).to(device, torch.float32)
        logits, target = paired(model.resize(logits, image.shape[:2]), target, task)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        losses.append((loss * weight).sum(dim=(1, 2)) / weight.sum().clamp(min=1))
    return torch.cat(losses).mean()


def paired(logits: Tensor, target: Tensor, task: str | None) -> tuple[Tensor, Tensor]:
    """Pair the masks of expressions with the ground truth.

    Args:
        logits: float (n, H, W), one row per expression.
        target: float (m, H, W), 0 or 1, one row per instance, n if the task is None.
        task: ``sod`` compares the unions, ``sis`` the matched pairs, ``cosod`` each expression with the union, and None
            each row with its own.

    Returns:
        Logits and ground truth, (k, H, W) each.
    """
    if task is None:
        return logits, target
    if task == "sis":
        with torch.no_grad():
            inside, truth = logits.sigmoid().flatten(1), target.flatten(1)
            both = inside @ truth.T  # (n, m)
            iou = both / (inside.sum(1)[:, None] + truth.sum(1) - both).clamp(min=1e-6)
        first, second = linear_sum_assignment(iou.cpu().numpy(), maximize=True)
        return logits[first.tolist()], target[second.tolist()]
    union = target.amax(dim=0, keepdim=True)
    return (logits.amax(dim=0, keepdim=True), union) if task == "sod" else (logits, union.expand_as(logits))


def rationale_masks(sample: Sample, task: str) -> Iterator[tuple[np.ndarray, list[str], np.ndarray, np.ndarray]]:
    """Yield, for each image, the expressions of the rationale's answer and the ground truth.

    Yields:
        The image; its n different expressions; bool (m, H, W), the masks of its instances, at least one row; bool
        (H, W), True where pixels are scored.

    Raises:
        UserError: If the sample's rationale has not the form of the task.
    """
    answer = parse(sample.rationale or "", task)
    if not answer.tagged:
        came = brief(sample.rationale)
        raise UserError(f"sample '{sample.key}': its rationale has not the form of an answer for {task}: {came}")
    phrases = list(dict.fromkeys(map(uniform_phrase, answer.expressions)))
    for number, (image, masks) in enumerate(zip(sample.images, sample.masks, strict=True)):
        scored = np.ones(image.shape[:2], bool) if sample.void is None else ~sample.void[number]
        yield image, phrases, masks if len(masks) else np.zeros((1, *image.shape[:2]), bool), scored


def phrase_masks(sample: Sample) -> Iterator[tuple[np.ndarray, list[str], np.ndarray, np.ndarray]]:
    """Yield, for each image that has phrases, the ground truth of a referring segmenter.

    Yields:
        The image; its n different phrases; bool (n, H, W), the union of the masks of each phrase; bool (H, W), True
        where pixels are scored.
    """
    for number, (image, names, masks) in enumerate(
        zip(sample.images, sample.phrases or (), sample.masks, strict=False)
    ):
        merged: dict[str, np.ndarray] = {}
        for name, mask in zip(map(uniform_phrase, names), masks, strict=True):
            merged[name] = merged[name] | mask if name in merged else mask
        if merged:
            scored = np.ones(image.shape[:2], bool) if sample.void is None else ~sample.void[number]
            yield image, list(merged), np.stack(list(merged.values())), scored


def _batch(
    datasets: Sequence[Dataset], step: int, batch_size: int, seed: int, rationales: bool
) -> list[tuple[str, Sample]]:
    """Read the samples of a step, each with its task.

    Their order depends on the seed and the step only, so that a run can resume.
    """
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    picked = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, len(places))
        dataset, index = places[int(np.random.default_rng((seed, epoch)).permutation(len(places))[place])]
        sample = dataset[index]
        if sample.phrases is None and not rationales:
            told = "expected a data set with referring expressions, or data.rationales=FILE"
            raise UserError(f"sample '{sample.key}': has no phrases: {told}")
        if rationales or any(sample.phrases or ()):
            picked.append((dataset.task, sample))
    return picked


def _progress(start: int, steps: int, losses: list[float]) -> Iterator[int]:
    from tqdm import tqdm

    with tqdm(total=steps, initial=start, desc="mask decoder", unit="step", disable=None) as bar:
        for step in range(start, steps):
            yield step
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.4f}")


def _resume(
    file: Path, settings: JsonObject, decoder: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> list[float]:
    """Restore decoder and optimizer if ``file`` exists; return the losses so far.

    Raises:
        UserError: If the file is damaged, or from a run with other settings.
    """
    if not file.is_file():
        return []
    state = read_checkpoint(file)
    with fitting(file):
        for name, value in settings.items():
            if state["settings"][name] != value:
                raise UserError(
                    f"{file}: is from a run with {name}={state['settings'][name]}, not {value}: use another out"
                )
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        return [float(loss) for loss in state["losses"]]


def main(arguments: Sequence[str]) -> int:
    """Run ``maskgym segmenter finetune``.

    Args:
        arguments: ``name=value``, where the names are ``out`` and other arguments of `finetune_mask_decoder`;
            ``segmenter`` and ``data``, names in their registries (``evf_sam_tiny`` and ``scenes``); and
            ``segmenter.…`` and ``data.…`` for their arguments. With a set for a task (``data.sod=…``), ``data.…`` are
            the keys of ``data=tasks``, and ``group_size`` is the number of images in a group.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If an argument is malformed, missing, or unknown.
    """
    import yaml
    from omegaconf import OmegaConf

    groups: dict[str, Config] = {"segmenter": {}, "data": {}, "": {}}
    by_task = [argument for argument in arguments if argument.startswith(("data.", "data="))]
    if not any(argument == "data=tasks" or argument.startswith(composition.BY_TASK) for argument in by_task):
        by_task = []
    for argument in (argument for argument in arguments if argument not in by_task):
        name, equals, value = argument.partition("=")
        group, _, key = name.rpartition(".")
        if not equals or group not in groups:
            raise UserError(f"argument '{argument}': expected out=…, segmenter.…=… or data.…=…")
        try:  # unlike OmegaConf, PyYAML alone reads 1e-3 as a text
            groups[group][key] = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
        except yaml.YAMLError as error:
            raise UserError(f"argument '{argument}': the value cannot be read") from error
    plain = groups[""]
    segmenter = make(plain.pop("segmenter", "evf_sam_tiny"), **groups["segmenter"])
    if by_task:
        datasets = _of_tasks(by_task, plain.pop("group_size", 4))
    else:
        file = groups["data"].pop("rationales", None)
        dataset = data.make(plain.pop("data", "scenes"), **groups["data"])
        datasets = [dataset if file is None else data.WithRationales(dataset, file)]
    if not isinstance(segmenter, EvfSamSegmenter):
        raise UserError("segmenter: only EVF-SAM can be fine-tuned: expected evf_sam or evf_sam_tiny")
    of_rationales = bool(by_task) or isinstance(datasets[0], data.WithRationales)
    plain |= {"segmenter": segmenter, "dataset": datasets, "rationales": of_rationales}
    check_arguments(finetune_mask_decoder, plain, "maskgym segmenter finetune")
    losses = finetune_mask_decoder(**plain)
    changed = f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps"
    print(one_line(f"mask decoder: {changed}, written to {plain['out']}"))
    return 0


def _of_tasks(arguments: Sequence[str], group_size: int) -> list[Dataset]:
    """Make the data sets of the samples that supervised training imitates, one per task.

    Args:
        arguments: Arguments that begin with ``data``.
        group_size: Number of images in a group.

    Raises:
        UserError: If an argument is unknown, no task has a set, or a task has no rationales.
    """
    config = composition.compose(["env=saliency", "algo=sft", f"env.group_size={group_size}", *arguments])
    found = []
    for task in sources.tasks(config):
        dataset = build.make_dataset(config, task, "train", part="sft")
        if len(dataset.with_rationale) < len(dataset):
            raise UserError(f"data.{task}: has samples without a rationale: expected data.rationales=FILE")
        found.append(dataset)
    if not found:
        raise UserError("data=tasks: expected a set for a task, as data.sod=duts")
    return found
