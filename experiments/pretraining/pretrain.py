"""Make the bundled models again, and others to compare with: ``maskgym pretrain MODEL OUT``.

All are the real architectures at a small size, trained on scenes of the training split. The last two are not shipped:
they are need encoders to compare with. Training resumes: every minute it writes ``state.pt`` beside the weights and
goes on from there when started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskgym.experiments.pretraining.clip import train_clip
from maskgym.experiments.pretraining.evf_sam import train_evf_sam
from maskgym.experiments.pretraining.policy import train_policy
from maskgym.experiments.pretraining.saliency import train_saliency
from maskgym.experiments.pretraining.sam import train_sam
from maskgym.experiments.pretraining.words import train_bag_of_words, train_bert
from maskgym.experiments.wiring import command


def main(argv: Sequence[str] | None = None) -> int:
    """Train a bundled model; return the exit status: 2 for a mistake in what was given, 130 when interrupted."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str]) -> None:
    parser = command.Parser(prog="maskgym pretrain", description=__doc__)
    commands = parser.add_subparsers(required=True)
    evf_sam = commands.add_parser("evf_sam")
    evf_sam.set_defaults(train=train_evf_sam)
    evf_sam.add_argument("--scenes", type=int, default=8000, help="scenes rendered, all of the training split")
    evf_sam.add_argument("--images", type=int, default=16, help="images a step")
    evf_sam.add_argument("--phrases", type=int, default=5, help="phrases an image")
    policy = commands.add_parser("policy")
    policy.set_defaults(train=train_policy)
    policy.add_argument("--vision-steps", type=int, default=600, help="of the first stage, vision alone")
    policy.add_argument(
        "--no-reasoning", dest="reasoning", action="store_false", help="answer at once: no <think> in the last quarter"
    )
    sam = commands.add_parser("sam")
    sam.set_defaults(train=train_sam)
    sam.add_argument("--scenes", type=int, default=8000, help="scenes rendered, half of them with an effect")
    sam.add_argument("--images", type=int, default=16, help="images a step")
    sam.add_argument("--targets", type=int, default=3, help="regions an image")
    clip = commands.add_parser("clip")
    clip.set_defaults(train=train_clip)
    clip.add_argument("--scenes", type=int, default=12000, help="scenes rendered, three in seven with an effect")
    clip.add_argument("--images", type=int, default=32, help="images a step")
    clip.add_argument("--captions", type=int, default=8, help="captions an image")
    saliency = commands.add_parser("saliency")
    saliency.set_defaults(train=train_saliency)
    saliency.add_argument(
        "--backbone", choices=("vst", "swin"), default="vst", help="swin: to compare with, not shipped"
    )
    saliency.add_argument("--scenes", type=int, default=8000, help="scenes rendered, all of the training split")
    saliency.add_argument("--images", type=int, default=16, help="images a step")
    bert = commands.add_parser("bert")
    bert.set_defaults(train=train_bert)
    bert.add_argument("--scenes", type=int, default=4000, help="scenes that captions are of")
    bert.add_argument("--texts", type=int, default=256, help="captions a step")
    words = commands.add_parser("bag_of_words")
    words.set_defaults(train=train_bag_of_words)
    words.add_argument("--scenes", type=int, default=4000, help="scenes rendered, three in seven with an effect")
    words.add_argument("--images", type=int, default=32, help="images a step")
    words.add_argument("--captions", type=int, default=8, help="captions an image")
    defaults = (
        *((evf_sam, 6000, 1.2e-3), (policy, 1600, 1.5e-3), (sam, 2000, 6e-4), (clip, 2400, 1e-3)),
        *((saliency, 3000, 1e-3), (bert, 2000, 1e-3), (words, 600, 1e-2)),
    )
    for recipe, steps, rate in defaults:
        recipe.add_argument("out", type=Path, help="folder for the weights and state.pt")
        recipe.add_argument("--steps", type=int, default=steps)
        recipe.add_argument("--rate", type=float, default=rate, help="peak learning rate")
    options = vars(parser.parse_args(arguments))
    options.pop("train")(**options)
