r"""Dig user needs: photos in, a data set of needs with masks out (UserSOD, Eq. 1).

    maskgym data dig PROJECT --dataset scenes --samples 20          detect, segment, needs, figures
    maskgym data dig PROJECT --stage correct                        the page on which people correct
    maskgym data dig PROJECT --stage export figures                 PROJECT/export, for data=coco

Options are remembered in PROJECT/project.json: the next command need not repeat them. Every stage does only what is
missing, so the same command goes on after an interruption. To dig your own photos with models:

    maskgym data dig PROJECT --images DIR --detector DETR_DIR YOLOS_DIR --segmenter sam_hf --checkpoint SAM_DIR \
        --writer server --base-url http://localhost:8000/v1 --model NAME

The default segmenter, sam_tiny, knows scenes only and was trained on clicks, not on boxes: its masks are poor.
"""

from __future__ import annotations

import getpass
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from maskgym.experiments.annotation.needs.project import DETECT, NEEDS, SEGMENT, Project, Settings
from maskgym.experiments.wiring import command

CORRECT, EXPORT, FIGURES = "correct", "export", "figures"
STAGES = (DETECT, SEGMENT, NEEDS, CORRECT, EXPORT, FIGURES)
DEFAULT_STAGES = (DETECT, SEGMENT, NEEDS, FIGURES)


def main(argv: Sequence[str] | None = None) -> int:
    """Dig; return the exit status: 2 for a mistake in what was given, 130 when interrupted."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str]) -> None:
    given = _parser().parse_args(arguments)
    from maskgym.experiments.annotation.needs import sources

    names = {field.name for field in fields(Settings)}
    project = Project(given.project, {name: value for name, value in vars(given).items() if name in names})
    source = sources.open_source(project.settings)
    for stage in given.stage or DEFAULT_STAGES:
        _run(stage, project, source, given)


def _run(stage: str, project: Project, source: Any, given: Namespace) -> None:
    settings = project.settings
    if stage == CORRECT:
        _correct(project, source, given)
    elif stage == EXPORT:
        from maskgym.experiments.annotation.needs.export import FOLDER, export

        totals = export(project, source, given.include, "link" if given.link else "copy")
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in totals.items())
        print(f"{project.folder / FOLDER}: {told}")
    elif stage == FIGURES:
        from maskgym.experiments.annotation.needs import figures

        found = figures.measure(project, source, figures.make_clip(given.clip, settings.device))
        print(figures.to_text(found))
    else:
        from maskgym.experiments.annotation.needs import stages

        with project.alone("dig"):
            stages.STAGES[stage](project, source, settings, given.retry)


def _correct(project: Project, source: Any, given: Namespace) -> None:
    from maskgym.experiments.annotation.needs import detectors, masks, page, review, stages

    settings = project.settings
    name = settings.click_segmenter or settings.segmenter
    name = "sam_tiny" if name == detectors.ANNOTATIONS else name
    with project.alone(CORRECT):
        objects = review.candidates(project, source)
        decisions = review.Decisions(project, writing=True)
        prompted = masks.Prompted(stages.make_segmenter(name, settings))
        desk = page.Desk(objects, decisions, source.image, prompted, given.annotator or _user())
        totals = review.progress(objects, decisions)
        print(", ".join(f"{count} {status}" for status, count in totals.items()))
        page.serve(desk, given.host, given.port, lambda address: print(f"{address}   (Ctrl-C ends)", flush=True))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "annotator"


def _parser() -> command.Parser:
    parser = command.Parser(prog="maskgym data dig", description=__doc__)
    defaults = {field.name: field.default for field in fields(Settings)}
    parser.add_argument("project", type=Path, metavar="PROJECT", help="folder of the project; made if it is not there")
    parser.add_argument(
        "--stage", nargs="+", choices=STAGES, help=f"what to do, in this order ({' '.join(DEFAULT_STAGES)})"
    )
    parser.add_argument("--retry", action="store_true", help="ask again about objects whose answers were of no use")

    def option(group: Any, name: str, told: str, **settings: Any) -> None:
        default = defaults[name.lstrip("-").replace("-", "_")]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(name, help=told if default is None else f"{told} ({shown})", **settings)

    images = parser.add_argument_group("images")
    option(images, "--images", "photos anywhere under this folder", metavar="DIR")
    option(images, "--dataset", "procedural scenes in their place", choices=("scenes",))
    option(images, "--split", "of the scenes", choices=("train", "validation", "test"))
    option(images, "--samples", "how many scenes", type=int)
    option(images, "--annotations", "COCO-style JSON with true objects, for --detector annotations", metavar="FILE")
    detect = parser.add_argument_group("detect")
    option(detect, "--detector", "annotations, and folders or hub names of detectors of transformers", nargs="+")
    option(detect, "--threshold", "least score", type=float)
    option(detect, "--overlap", "IoU from which boxes of one category are one object", type=float)
    option(detect, "--min-side", "least side of a box, pixels", type=float)
    segment = parser.add_argument_group("segment")
    option(segment, "--segmenter", "sam_tiny, sam, sam_hf, sam2, or annotations for the true masks")
    option(segment, "--checkpoint", "of the segmenter", metavar="PATH")
    option(segment, "--click-segmenter", "what turns clicks into masks on the page; default: the segmenter")
    needs = parser.add_argument_group("needs")
    option(needs, "--writer", "who writes", choices=("templates", "local", "server"))
    option(needs, "--model", "of the writer: a folder or hub name, or the server's name for it")
    option(needs, "--base-url", "of an OpenAI-compatible server; the key comes from OPENAI_API_KEY", metavar="URL")
    option(needs, "--needs", "commands an object", type=int, metavar="J")
    option(needs, "--prompt", "another prompt; holds {category} and {count}", metavar="FILE")
    option(needs, "--attempts", "answers per object, and tries per answer", type=int)
    option(needs, "--pause", "seconds before the second try, doubled at each further one", type=float)
    option(needs, "--timeout", "seconds that an answer may take", type=float)
    option(needs, "--max-tokens", "longest answer", type=int)
    option(needs, "--temperature", "of an answer", type=float)
    option(needs, "--jobs", "requests to the server at a time", type=int)
    option(needs, "--prices", "per million tokens, for the cost", type=float, nargs=2, metavar=("READ", "WRITTEN"))
    correct = parser.add_argument_group("correct")
    correct.add_argument(
        "--host", default="127.0.0.1", help="anything but this machine's own asks for a token (%(default)s)"
    )
    correct.add_argument("--port", type=int, default=8765, help="0 takes a free one (%(default)s)")
    correct.add_argument("--annotator", help="who corrects; default: the user's name")
    export = parser.add_argument_group("export and figures")
    export.add_argument(
        "--include", choices=("accepted", "all"), default="accepted", help="all: whatever is not rejected (%(default)s)"
    )
    export.add_argument("--link", action="store_true", help="link to the photos in place of copies")
    export.add_argument(
        "--clip", metavar="DIR", help="a CLIP for the similarity; default: the embedded one, for scenes"
    )
    option(parser, "--device", "PyTorch device; default: CUDA where there is one")
    return parser
