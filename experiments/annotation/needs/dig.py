r"""Dig user needs: photos in, a data set of needs with masks out (UserSOD, Eq. 1).

    maskgym data dig PROJECT --dataset scenes --samples 20          detect, segment, needs, figures
    maskgym data dig PROJECT --stage correct                        the page on which people correct
    maskgym data dig PROJECT --stage export figures                 PROJECT/export, for data=coco

Options are remembered in PROJECT/project.json, so the next command need not repeat them. Every stage computes only the
missing records, so the same command continues after an interruption. To dig your own photos with models:

    maskgym data dig PROJECT --images DIR --detector DETR_DIR YOLOS_DIR --segmenter sam_hf --checkpoint SAM_DIR \
        --writer server --base-url http://localhost:8000/v1 --model NAME

The default segmenter, sam_tiny, is trained on clicks on scenes only, so its masks from boxes are poor.
"""

from __future__ import annotations

import getpass
from argparse import Namespace, _ActionsContainer
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from maskgym.errors import one_line
from maskgym.experiments.annotation.needs.project import DETECT, NEEDS, SEGMENT, Project, Settings
from maskgym.experiments.annotation.needs.sources import Source
from maskgym.experiments.wiring import command

CORRECT, EXPORT, FIGURES = "correct", "export", "figures"
STAGES = (DETECT, SEGMENT, NEEDS, CORRECT, EXPORT, FIGURES)
DEFAULT_STAGES = (DETECT, SEGMENT, NEEDS, FIGURES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``maskgym data dig``; return the exit status: 2 for invalid arguments, 130 after an interruption."""
    return command.status(_main, argv, "interrupted: the same command goes on")


def _main(arguments: Sequence[str]) -> None:
    given = _parser().parse_args(arguments)
    from maskgym.experiments.annotation.needs import sources

    names = {field.name for field in fields(Settings)}
    project = Project(given.project, {name: value for name, value in vars(given).items() if name in names})
    source = sources.open_source(project.settings)
    for stage in given.stage or DEFAULT_STAGES:
        _run(stage, project, source, given)


def _run(stage: str, project: Project, source: Source, given: Namespace) -> None:
    settings = project.settings
    if stage == CORRECT:
        _correct(project, source, given)
    elif stage == EXPORT:
        from maskgym.experiments.annotation.needs.export import FOLDER, export

        totals = export(project, source, given.include, "link" if given.link else "copy")
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in totals.items())
        print(one_line(f"{project.folder / FOLDER}: {told}"))
    elif stage == FIGURES:
        from maskgym.experiments.annotation.needs import figures

        found = figures.measure(project, source, figures.Clip(given.clip, settings.device))
        print(figures.to_text(found))
    else:
        from maskgym.experiments.annotation.needs import stages

        with project.alone("dig"):
            stages.STAGES[stage](project, source, settings, given.retry)


def _correct(project: Project, source: Source, given: Namespace) -> None:
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
    except (OSError, KeyError):  # in a container the user may have no name
        return "annotator"


def _parser() -> command.Parser:
    parser = command.Parser(prog="maskgym data dig", description=__doc__)
    defaults = {field.name: field.default for field in fields(Settings)}
    parser.add_argument("project", type=Path, metavar="PROJECT", help="folder of the project; created if absent")
    parser.add_argument(
        "--stage", nargs="+", choices=STAGES, help=f"stages to run, in this order ({' '.join(DEFAULT_STAGES)})"
    )
    parser.add_argument("--retry", action="store_true", help="ask again about objects whose answers were unusable")

    def option(group: _ActionsContainer, name: str, told: str, **settings: Any) -> None:
        default = defaults[name.lstrip("-").replace("-", "_")]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        group.add_argument(name, help=told if default is None else f"{told} ({shown})", **settings)

    images = parser.add_argument_group("images")
    option(images, "--images", "photos anywhere under this folder", metavar="DIR")
    option(images, "--dataset", "procedural scenes instead of photos", choices=("scenes",))
    option(images, "--split", "split of the scenes", choices=("train", "validation", "test"))
    option(images, "--samples", "number of scenes", type=int)
    option(images, "--annotations", "COCO-style JSON with the ground truth, for --detector annotations", metavar="FILE")
    detect = parser.add_argument_group("detect")
    option(detect, "--detector", "annotations, or folders or hub names of transformers detectors", nargs="+")
    option(detect, "--threshold", "minimum score", type=float)
    option(detect, "--overlap", "IoU from which boxes of one category are one object", type=float)
    option(detect, "--min-side", "minimum side of a box, pixels", type=float)
    segment = parser.add_argument_group("segment")
    option(segment, "--segmenter", "sam_tiny, sam, sam_hf, sam2, or annotations for the ground truth")
    option(segment, "--checkpoint", "checkpoint of the segmenter", metavar="PATH")
    option(segment, "--click-segmenter", "segmenter for clicks on the page; default: the segmenter")
    needs = parser.add_argument_group("needs")
    option(needs, "--writer", "writer of the commands", choices=("templates", "local", "server"))
    option(needs, "--model", "model of the writer: folder, hub name, or name on the server")
    option(needs, "--base-url", "OpenAI-compatible server; the key comes from OPENAI_API_KEY", metavar="URL")
    option(needs, "--needs", "commands per object", type=int, metavar="J")
    option(needs, "--prompt", "file with another prompt that holds {category} and {count}", metavar="FILE")
    option(needs, "--attempts", "answers per object, and tries per answer", type=int)
    option(needs, "--pause", "seconds before the second try, doubled at each further one", type=float)
    option(needs, "--timeout", "maximal seconds per answer", type=float)
    option(needs, "--max-tokens", "maximal tokens per answer", type=int)
    option(needs, "--temperature", "sampling temperature", type=float)
    option(needs, "--jobs", "simultaneous requests to the server", type=int)
    option(needs, "--prices", "prices per million tokens", type=float, nargs=2, metavar=("READ", "WRITTEN"))
    correct = parser.add_argument_group("correct")
    correct.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; a public one requires a token (%(default)s)"
    )
    correct.add_argument("--port", type=int, default=8765, help="port; 0 takes a free one (%(default)s)")
    correct.add_argument("--annotator", help="name of the annotator; default: the user's name")
    export = parser.add_argument_group("export and figures")
    export.add_argument(
        "--include",
        choices=("accepted", "all"),
        default="accepted",
        help="all: also undecided objects (%(default)s)",
    )
    export.add_argument("--link", action="store_true", help="link to the photos instead of copying them")
    export.add_argument("--clip", metavar="DIR", help="CLIP for the similarity; default: the bundled one, for scenes")
    option(parser, "--device", "PyTorch device; default: CUDA if available")
    return parser
