"""A salient-object detector on photographs: a saliency backbone, or its decoder alone, trained on any data of task sod.

UserSOD freezes a detector that was trained on DUTS. ``maskgym pretrain saliency OUT data=duts data.root=DIR`` trains
one; ``+policy.backbone.checkpoint=OUT`` takes it. Photos are letterboxed, as the environment of needs shows them, and
half of them are mirrored. VST is supervised at every scale, with its boundaries; Swin and DINOv3 at full size. Training
writes ``state.pt`` every minute, and the same command continues from it with the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import yaml
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.nn import functional as F

from maskgym.agents.base import FrozenAgent
from maskgym.agents.masks.acting import SHOWN_AT_ONCE, to_pixels
from maskgym.agents.masks.batches import Batches, loading
from maskgym.aliases import Config, JsonObject, Observation, Settings
from maskgym.data.published import PUBLISHED
from maskgym.envs.base import SampleVectorEnv, unwrap
from maskgym.errors import UserError, one_line
from maskgym.experiments.evaluation import evaluation
from maskgym.experiments.pretraining.loop import STATE, descend, overlaps, resume, training
from maskgym.experiments.pretraining.saliency import saliency_loss
from maskgym.experiments.wiring import build, composition, run_folder
from maskgym.policies.needs.hub_backbone import Dinov3Backbone, HubBackbone, SwinBackbone
from maskgym.policies.needs.saliency_backbone import WHOLE, SaliencyBackbone
from maskgym.policies.needs.vst import VST
from maskgym.policies.needs.vst_layers import Predictions
from maskgym.registry import check_arguments
from maskgym.segmenters.frozen import AUTO, precision
from maskgym.segmenters.weights import write_state

BACKBONES: dict[str, type[SaliencyBackbone]] = {"vst": VST, "swin": SwinBackbone, "dinov3": Dinov3Backbone}
SETTINGS, SCORES = "detector.json", "scores.json"  # files beside the weights
TOLD = ("s_measure", "mae", "f_max", "e_mean", "iou")


class Detector(FrozenAgent):
    """A backbone without prompts as an agent, for its held-out scores."""

    tasks: ClassVar[tuple[str, ...]] = ("user_need",)

    def __init__(self, backbone: SaliencyBackbone, device: torch.device) -> None:
        self.backbone, self.device = backbone.eval(), device

    @torch.no_grad()
    def act(self, observations: Sequence[Observation], greedy: bool = True) -> np.ndarray:
        """Compute the maps, float32 (B, S, S) in [0, 1]."""
        images = [observation["image"] for observation in observations]
        chunks = (images[start : start + SHOWN_AT_ONCE] for start in range(0, len(images), SHOWN_AT_ONCE))
        found = [self.backbone(to_pixels(chunk, self.device)).sigmoid() for chunk in chunks]
        return torch.cat(found)[:, 0].cpu().numpy()


class HeldOut(NamedTuple):
    """Held-out samples: their environment and indices."""

    env: VectorEnv
    indices: list[int]


def train_detector(
    out: Path,
    backbone: str,
    steps: int,
    images: int,
    rate: float,
    settings: Sequence[str],
    checkpoint: str | None = None,
    size: int = 352,
    decoder_only: bool = False,
    samples: int = 256,
    seed: int = 0,
) -> None:
    """Train a backbone as a salient-object detector; write its weights and held-out scores.

    Args:
        out: Folder of the weights.
        backbone: Name in `BACKBONES`.
        steps: Total number of steps.
        images: Photos per step.
        rate: Peak learning rate of Adam, with a linear warm-up and a cosine.
        settings: ``data=NAME data.KEY=VALUE`` of a run, and ``backbone.KEY=VALUE`` for the backbone.
        checkpoint: Weights to begin with: of the whole VST; or the encoder of Swin or DINOv3, None for the published.
        size: Side of the letterboxed photos in pixels.
        decoder_only: Whether the encoder stays as it is.
        samples: Held-out samples to score at the end; 0 for none.
        seed: Seed of weights, order and mirroring.

    Raises:
        UserError: If data, backbone or a number does not fit, or the folder holds a training of other settings.
    """
    config = configured(settings, size, seed)
    model = make_backbone(backbone, checkpoint, settings, seed)
    for name, value, least in (("steps", steps, 1), ("images", images, 1), ("samples", samples, 0)):
        if value < least:
            raise UserError(f"--{name}={value}: expected at least {least}")
    if size < 1 or size % model.size_divisor:
        raise UserError(f"--size={size}: expected a multiple of {model.size_divisor}, for {backbone}")
    encoder = model.encoder if isinstance(model, HubBackbone) else model.get_submodule("rgb_backbone")
    encoder.requires_grad_(not decoder_only)
    parts = build.make_parts(config)
    (env,) = build.make_train_envs(config, parts).values()
    held_out = make_held_out(config, parts, samples) if samples else None
    asked: JsonObject = {"backbone": backbone, "settings": sorted(settings), "checkpoint": checkpoint, "size": size}
    remember(out, {**asked, "decoder_only": decoder_only, "images": images, "seed": seed, "steps": steps, "rate": rate})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.Adam([weight for weight in model.to(device).parameters() if weight.requires_grad], lr=rate)
    dtype, batches = precision(AUTO, device), Batches([env], images, seed)
    left = range(resume(out, model, optimizer), steps)
    with loading(batches, left, config["data"].get("workers", 0)) as loaded:
        for (step, bar), batch in zip(training(out, model, optimizer, steps, rate), loaded, strict=True):
            model.train()
            encoder.train(not decoder_only)
            torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
            pixels, masks = mirrored(batch.pixels(device), batch.wanted(device), seed, step)
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                logits, loss = detect(model, pixels, (masks > 0.5).float(), decoder_only)
            descend(model, optimizer, loss)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", iou=f"{overlaps(logits, masks).mean():.3f}")
    if isinstance(model, HubBackbone):
        model.encoder.config.save_pretrained(out)
    write_state(model.state_dict(), out / WHOLE)
    if held_out is not None:
        tell(out, evaluation.evaluate(Detector(model, device), held_out.env, held_out.indices, "held out"), held_out)


def configured(settings: Sequence[str], size: int, seed: int) -> Config:
    """Compose the config of the environment that shows the photos without needs.

    Raises:
        UserError: If a setting is unknown, or the data set is not one of salient objects.
    """
    given = [setting for setting in settings if not setting.startswith("backbone.")]
    shown = ("env=user_need", "env.task=sod", "env.need=false", f"env.image_size={size}", f"seed={seed}")
    config = composition.compose(["algo=usersal", *shown, *given])
    published = PUBLISHED.get(config["data"]["name"])
    if published is not None and published.task != "sod":
        raise UserError(f"data={config['data']['name']}: its masks are of task {published.task}: expected one of sod")
    build.check(config)
    return config


def make_backbone(name: str, checkpoint: str | None, settings: Sequence[str], seed: int) -> SaliencyBackbone:
    """Make the backbone to train; random weights come from the seed, and are told.

    Raises:
        UserError: If the checkpoint cannot be loaded, or a setting is unknown.
    """
    own: Config = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key.startswith("backbone."):
            own[key.partition(".")[2]] = yaml.safe_load(value)
    if name == "vst":
        kept: Settings = {"checkpoint": checkpoint, "pretrained": checkpoint is not None}
    else:
        kept = {"checkpoint": checkpoint, "random_decoder": True}
    torch.manual_seed(seed)
    check_arguments(BACKBONES[name], own, f"backbone={name}", "backbone.")
    model = BACKBONES[name](**{**kept, **own})
    if model.random_part:
        print(f"{name}: {model.random_part} begins with random weights")
    return model


def make_held_out(config: Config, parts: build.Parts, samples: int) -> HeldOut:
    """Make the environment of held-out photos.

    Raises:
        EmptySplit: If there are none.
    """
    (task,) = config["env"]["gym_ids"]
    env = build.make_held_out_env(config, task, parts)
    return HeldOut(env, evaluation.held_out(unwrap(env, SampleVectorEnv).num_samples, samples))


def remember(out: Path, settings: JsonObject) -> None:
    """Write the settings of a training into its folder, or compare them with those of the one to continue.

    Raises:
        UserError: If they differ.
    """
    file = out / SETTINGS
    if file.exists() and (out / STATE).exists():
        there = run_folder.read_json(file)
        for name, value in json.loads(json.dumps(settings)).items():
            if there.get(name) != value:
                raise UserError(
                    f"{file}: its training has {name}={there.get(name)}, not {value}: choose another folder"
                )
    out.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(file, settings)


def mirrored(pixels: Tensor, masks: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Mirror half of the photos (B, 3, S, S) and their masks (B, 1, S, S), drawn by the seed and the step."""
    chosen = torch.from_numpy(np.random.default_rng([seed, step]).random(len(pixels)) < 0.5)
    chosen = chosen.to(pixels.device)[:, None, None, None]
    return torch.where(chosen, pixels.flip(3), pixels), torch.where(chosen, masks.flip(3), masks)


def detect(model: SaliencyBackbone, pixels: Tensor, masks: Tensor, decoder_only: bool) -> tuple[Tensor, Tensor]:
    """Compute the logits (B, 1, S, S), float32, and their loss."""
    with torch.set_grad_enabled(not decoder_only):
        features = model.encode(pixels)
    if isinstance(model, VST):
        found = model.predict(features)
        saliency, contours = ([logits.float() for logits in each] for each in found[:2])
        return saliency[-1], saliency_loss(Predictions(saliency, contours, found.features), masks)
    logits = model.decode(features).float()
    return logits, F.binary_cross_entropy_with_logits(logits, masks)


def tell(out: Path, found: evaluation.Evaluation, held_out: HeldOut) -> None:
    """Print the held-out scores in one line, and write all of them."""
    base, scores = unwrap(held_out.env, SampleVectorEnv), found.scores
    counted = {"n": len(held_out.indices), "of": base.num_samples, "split": base.dataset.split}
    run_folder.write_json(out / SCORES, {**counted, "notes": base.dataset.describe(), "scores": scores})
    said = ", ".join(f"{name} {scores[name]:.3f}" for name in TOLD if scores.get(name) is not None)
    print(one_line(f"held out: {said}; n = {counted['n']} of {counted['of']}, {counted['split']}: {out / SCORES}"))
