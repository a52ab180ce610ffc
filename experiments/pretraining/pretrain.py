"""Make the bundled models again, and others to compare with: ``maskgym pretrain MODEL OUT``.

All are the real architectures at a small size, trained on scenes of the training split. ``bert`` and ``bag_of_words``
are not bundled: they are need encoders to compare with. Training writes ``state.pt`` beside the weights every minute,
and continues from it when started again.

``maskgym pretrain saliency OUT data=duts data.root=DIR`` trains a detector of published size on photographs instead
(`maskgym.experiments.pretraining.detector`); ``maskgym pretrain saliency data=duts --help`` lists its options.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from maskgym.errors import UserError
from maskgym.experiments.pretraining.clip import train_clip
from maskgym.experiments.pretraining.detector import BACKBONES, train_detector
from maskgym.experiments.pretraining.evf_sam import train_evf_sam
from maskgym.experiments.pretraining.policy import train_policy
from maskgym.experiments.pretraining.refer_policy import train_refer_policy
from maskgym.experiments.pretraining.saliency import train_saliency
from maskgym.experiments.pretraining.sam import train_sam
from maskgym.experiments.pretraining.terse_policy import train_terse_policy
from maskgym.experiments.pretraining.words import train_bag_of_words, train_bert
from maskgym.experiments.wiring import command


class Recipe(NamedTuple):
    """Training function of a model, its default steps and peak learning rate, and defaults of further counts."""

    train: Callable[..., None]
    steps: int
    rate: float
    counts: Mapping[str, int]


RECIPES = {
    "evf_sam": Recipe(train_evf_sam, 6000, 1.2e-3, {"scenes": 8000, "images": 16, "phrases": 5}),
    "policy": Recipe(train_policy, 1600, 1.5e-3, {"vision-steps": 600}),
    "refer_policy": Recipe(train_refer_policy, 3000, 1.5e-3, {"vision-steps": 1000}),
    "terse_policy": Recipe(train_terse_policy, 60, 3e-4, {}),
    "sam": Recipe(train_sam, 3000, 6e-4, {"scenes": 8000, "images": 16, "targets": 4}),
    "clip": Recipe(train_clip, 2400, 1e-3, {"scenes": 12000, "images": 32, "captions": 8}),
    "saliency": Recipe(train_saliency, 3000, 1e-3, {"scenes": 8000, "images": 16}),
    "bert": Recipe(train_bert, 2000, 1e-3, {"scenes": 4000, "texts": 256}),
    "bag_of_words": Recipe(train_bag_of_words, 600, 1e-2, {"scenes": 4000, "images": 32, "captions": 8}),
}
ON_PHOTOS = Recipe(train_detector, 40000, 1e-4, {"images": 16, "size": 352, "samples": 256, "seed": 0})
SETTING = re.compile(r"\+*(data|backbone)(\.[\w.]+)?=")  # arguments that choose data, and sizes of a backbone
HELP = {
    "scenes": "number of rendered scenes",
    "images": "images per step",
    "size": "side of the letterboxed photos in pixels",
    "samples": "held-out samples to score at the end",
    "seed": "seed of weights, order and mirroring",
    "texts": "captions per step",
    "phrases": "phrases per image",
    "targets": "regions per image",
    "captions": "captions per image",
    "vision-steps": "steps of the first stage, which trains only vision",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``maskgym pretrain``; return the exit status: 2 for invalid arguments, 130 after an interruption."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym pretrain", description=__doc__)
    models = parser.add_subparsers(required=True)
    settings = [argument for argument in arguments if SETTING.match(argument)]
    recipes = {**RECIPES, **({"saliency": ON_PHOTOS} if settings else {})}
    for name, recipe in recipes.items():
        model = models.add_parser(name)
        model.set_defaults(train=recipe.train)
        model.add_argument("out", type=Path, help="folder for the weights and state.pt")
        model.add_argument("--steps", type=int, default=recipe.steps, help="total number of steps (%(default)s)")
        model.add_argument("--rate", type=float, default=recipe.rate, help="peak learning rate (%(default)s)")
        for option, default in recipe.counts.items():
            model.add_argument(f"--{option}", type=int, default=default, help=f"{HELP[option]} (%(default)s)")
        if name == "policy":
            told = "answer without <think> in the last quarter"
            model.add_argument("--no-reasoning", dest="reasoning", action="store_false", help=told)
        if recipe is ON_PHOTOS:
            model.set_defaults(settings=settings)
            model.add_argument("--backbone", choices=BACKBONES, default="vst", help="backbone (%(default)s)")
            told = "weights to begin with: of the whole VST, or the encoder of swin and dinov3 (those of the hub)"
            model.add_argument("--checkpoint", metavar="DIR", help=told)
            model.add_argument("--decoder-only", action="store_true", help="keep the encoder as it is")
        elif name == "saliency":
            told = "backbone; swin is not bundled"
            model.add_argument("--backbone", choices=("vst", "swin"), default="vst", help=told)
    options = vars(parser.parse_args([argument for argument in arguments if argument not in settings]))
    train = options.pop("train")
    if settings and train is not train_detector:
        raise UserError(f"argument '{settings[0]}': only maskgym pretrain saliency takes data")
    train(**options)
