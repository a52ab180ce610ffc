"""Hostile data sets: damaged or special files and hostile JSON, through `data check`, `data=hf` and the digger."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from maskgym.aliases import Json
from maskgym.benchmarks.attacked import runs
from maskgym.benchmarks.attacked.harness import Broken, Case, Stage, check_line, told
from maskgym.benchmarks.attacked.layouts import HEIGHT, PHOTOS, SETS, TASKS, WIDTH, write_mask
from maskgym.data.check import check
from maskgym.data.readers.hf import HuggingFace
from maskgym.experiments import cli

HUGE = 10**9


def _bomb() -> bytes:
    """Write the head of a PNG that claims 60,000 × 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\nshowpage\n"


def _special(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    def damage(file: Path, chance: random.Random) -> None:
        file.unlink()
        make(file)

    return damage


def _written(content: bytes) -> Callable[[Path, random.Random], object]:
    return lambda file, chance: file.write_bytes(content)


SECRET: list[Path] = []  # a picture outside of all sets, of the size of the photos
# What is done to a picture; each must be told.
PICTURES: dict[str, Callable[[Path, random.Random], object]] = {
    "removed": lambda file, chance: file.unlink(),
    "emptied": _written(b""),
    "truncated": lambda file, chance: file.write_bytes(file.read_bytes()[: chance.randrange(2, 40)]),  # of 69 or more
    "noise": lambda file, chance: file.write_bytes(chance.randbytes(500)),
    "PostScript": _written(EPS),
    "bomb": _written(_bomb()),
    "pipe": _special(os.mkfifo),
    "folder": _special(Path.mkdir),
    "link to itself": _special(lambda file: file.symlink_to(file)),
    "link to nothing": _special(lambda file: file.symlink_to("nothing")),
    "link outside": _special(lambda file: file.symlink_to(SECRET[0])),
    "endless device": _special(lambda file: file.symlink_to("/dev/zero")),
    "another size": _special(lambda file: Image.new("L", (5, 7), 255).save(file)),
    "no UTF-8": lambda file, chance: file.rename(Path(os.fsdecode(os.fsencode(str(file.parent)) + b"/\xff.png"))),
}
# Names of files in JSON, none of which is a photo of the set.
NAMES: tuple[Json, ...] = (
    *("", ".", "/", "..", "../secret.png", "/etc/passwd", "..\\secret.png", "x" * 300, "\ud800.jpg", "a\0b.jpg"),
    *(None, 5, ["0.jpg"], {}, True, "\x1b[2J.jpg", "images", "C:\\0.jpg", "//host/0.jpg", "0.jpg/../../secret.png"),
)
SEGMENTATIONS: tuple[Json, ...] = (
    *(None, [], {}, "x", 5, [[]], [[1, 2]], [[1, 2, 3]], [["a"] * 6], [[None] * 6], [[float("nan")] * 6]),
    *(
        [[float("inf")] * 6],
        [[1e18, 1, 1, 1e18, 5, 5]],
        [[10**400] * 6],
        [[HUGE, HUGE, HUGE + 1, HUGE, HUGE, HUGE + 1]],
    ),
    *({"size": [HUGE, HUGE], "counts": [HUGE]}, {"size": [HEIGHT, WIDTH], "counts": [-5, 197]}, {"counts": "x"}),
    *({"size": [HEIGHT, WIDTH], "counts": "\x1b\ud800"}, {"size": [HEIGHT, WIDTH], "counts": [HUGE, HUGE]}),
    *(
        {"size": [HEIGHT, WIDTH], "counts": "0" * 5000},
        {"size": [1, 1], "counts": [0, 1]},
        {"size": None, "counts": []},
    ),
)
POINTS: tuple[Json, ...] = (  # of a polygon of ReasonSeg
    *(None, {}, "x", 5, [], [[]], [[1, 2]], [[1, 1], [5, 5]], [["a", "b"]] * 3, [[None, None]] * 3, [[True, True]] * 3),
    *([[float("nan"), 1]] * 3, [[float("inf"), 1]] * 3, [[1e18, 1]] * 3, [[10**400, 1]] * 3, [[HUGE, HUGE]] * 3),
    *([[50, 50]] * 3, [[1, 1, 1]] * 3, [[[1], [2]]] * 3),
)
OBJECTS: tuple[Json, ...] = (  # of an expression of gRefCOCO
    *(None, True, "x", "10", {}, [], -1, 10, 1.5, [None], [True], [[10]], ["10"], [1.5], [10, -1], [999], [10, 999]),
    *([10**400], [float("nan")], [-2]),
)
HOSTILE = {"file_name": NAMES, "segmentation": SEGMENTATIONS, "points": POINTS, "ann_id": OBJECTS}  # values to be told
VALUES: tuple[Json, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        1e308,
        10**400,
        float("nan"),
        "",
        "x",
        "\ud800",
        "\x1b[31m",
        [],
        {},
        [[]],
        [None],
        "x" * 9999,
    ),
    *({"a": 1}, [1, [2]], -(10**9), 10**9, "0", "\0"),
)


def _put(content: Json, chance: random.Random, keys: tuple[str, ...], values: tuple[Json, ...]) -> str:
    """Replace a value at one of some keys, or at any, in JSON; return what was replaced."""
    places: list[tuple[dict | list, str | int]] = []
    _collect(content, keys, places)
    inside, key = chance.choice(places)
    value = chance.choice(values)
    inside[key] = value  # type: ignore[index]  # the key is of the kind that its container takes
    return f"{key}={str(value)[:40]!r}"


def _collect(content: Json, keys: tuple[str, ...], places: list[tuple[dict | list, str | int]]) -> None:
    """Collect every place in JSON whose key is one of some, or all places."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            if not keys or key in keys:
                places.append((content, key))
            _collect(value, keys, places)


def _broken_json(chance: random.Random, text: str) -> str:
    return chance.choice(
        ("", "{", "[]", "{}", "null", "17", '"x"', "[" * 100_000, text[: len(text) // 2], "\0", "[[[]]]")
    )


# Folders of a reader's set whose files are not needed: pictures of other tasks, and texts about the answers.
UNREAD = {
    "voc": ("SegmentationObject",),
    "ranked": ("gt",),
    "cod10k": ("GT_Edge",),
    "reasonseg": ("explanatory",),
}
SIZELESS = ("ranked", "reasonseg")  # sets that do not state the size of a photo


def damage_set(root: Path, chance: random.Random, name: str = "") -> tuple[str, bool]:
    """Damage one file of a set, by its name; return what was done, and whether it must be told."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    file = chance.choice(files)
    place = file.relative_to(root)
    read = not any(part in UNREAD.get(name, ()) for part in place.parts)
    if file.suffix in (".jpg", ".png"):
        how = chance.choice(list(PICTURES))
        PICTURES[how](file, chance)
        return f"{place.as_posix()} {how}", read and not (how == "another size" and name in SIZELESS)
    if file.suffix != ".json":
        content = file.read_bytes()
        file.write_bytes(
            chance.choice((b"", chance.randbytes(300), content[: len(content) // 2], b"../../x\n\0\n", b"\xff\n"))
        )
        return f"{place.as_posix()} damaged", False
    what, harmful = damage_json(file, chance, place.as_posix())
    return what, harmful and read


def damage_json(file: Path, chance: random.Random, name: str) -> tuple[str, bool]:
    """Damage JSON; return what was done, and whether it must be told."""
    way, content = chance.randrange(4), json.loads(file.read_text())
    hostile = [key for key in HOSTILE if key in _keys(content)]
    if way == 0:
        file.write_text(_broken_json(chance, file.read_text()))
        return f"{name} is no JSON of a set", "rank_order" not in file.parts  # it is told, or the set is another
    if way < 3 and hostile:
        key = hostile[(way - 1) % len(hostile)]
        what, harmful = _put(content, chance, (key,), HOSTILE[key]), True
    else:
        what, harmful = _put(content, chance, (), VALUES), False
    file.write_text(json.dumps(content))
    return f"{name}: {what}", harmful


def _keys(content: Json) -> set[str]:
    if isinstance(content, dict):
        return {*content, *(key for value in content.values() for key in _keys(value))}
    return {key for value in content for key in _keys(value)} if isinstance(content, list) else set()


def checked_sets(stage: Stage) -> Case:
    """Prepare: a set of each reader with one damaged file, through `data check`."""
    _secret(stage)
    marked = _fake_ghostscript(stage)
    for name, build in SETS.items():
        build(stage.empty(f"set-{name}"))
        report = check(name, stage.folder / f"set-{name}", TASKS.get(name))
        if not report.ok:
            raise Broken(f"{name}: an undamaged set has faults: {report.faults[0]}")

    def case(chance: random.Random, number: int) -> str:
        name = list(SETS)[number % len(SETS)]
        root = stage.copied(stage.folder / f"set-{name}")
        what, harmful = damage_set(root, chance, name)
        stage.label = f"{name}, {what}"
        found = []
        line = told(lambda: found.append(check(name, root, TASKS.get(name))))
        if marked.exists():
            raise Broken("Ghostscript was called")
        for one in str(found[0]).splitlines() if found else ():
            if not one.isprintable():
                raise Broken(f"printed: {one!r}")
        if line or not found[0].ok:
            return line or check_line(found[0].faults[0])
        if harmful:
            raise Broken("no fault was found")
        task = ["--task", TASKS[name]] if name in TASKS else []
        _, out, _ = runs.command(cli.main, "data", "check", str(root), "--data", name, *task)
        return "" if out else line

    return case


def _secret(stage: Stage) -> None:
    secret = stage.folder / "secret.png"
    write_mask(secret)
    SECRET[:] = [secret]


def _fake_ghostscript(stage: Stage) -> Path:
    """Put a program in front of the path that notes when it is called as Ghostscript."""
    tools, mark = stage.folder / "tools", stage.folder / "ghostscript"
    tools.mkdir(exist_ok=True)
    for name in ("gs", "gswin64c"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (tools / name).chmod(0o755)
    if str(tools) not in os.environ["PATH"]:
        os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    return mark


def hugging_face(stage: Stage) -> Case:
    """Prepare: data sets of Hugging Face with damaged files or hostile rows, read to their end."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = stage.folder / "cache"
    datasets.disable_progress_bars()
    _secret(stage)
    marked = _fake_ghostscript(stage)
    saved, pictured = stage.empty("hf-saved"), stage.empty("hf-pictured")
    SETS["folder"](pictured)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = [
        {"image": str(pictured / "images" / f"{n}.jpg"), "mask": str(pictured / "masks" / f"{n}.png")}
        for n in range(PHOTOS)
    ]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features)}).save_to_disk(saved)

    def case(chance: random.Random, number: int) -> str:
        if number % 2:
            root, harmful = _pictured(stage, pictured, chance)
        else:
            root = stage.copied(saved)
            files = sorted(file for file in root.rglob("*") if file.is_file())
            file = chance.choice(files)
            stage.label, harmful = f"{file.relative_to(root)} damaged", False
            if file.suffix == ".json" and chance.random() < 0.6:
                content = json.loads(file.read_text())
                stage.label = f"{file.relative_to(root)}: {_put(content, chance, (), VALUES)}"
                file.write_text(json.dumps(content))
            else:
                content = file.read_bytes()
                file.write_bytes(
                    chance.choice((b"", b"{}", b"[]", chance.randbytes(300), content[: len(content) // 2]))
                )

        def read() -> None:
            reader = HuggingFace(str(root), task="sod", split="all")
            for index in range(len(reader)):
                assert reader[index].masks[0].shape == (1, HEIGHT, WIDTH)

        line = told(read)
        if marked.exists():
            raise Broken("Ghostscript was called")
        if harmful and not line:
            raise Broken("no fault was told")
        return line

    return case


def _pictured(stage: Stage, source: Path, chance: random.Random) -> tuple[Path, bool]:
    """Write a folder of pictures with metadata, one row or picture of which is hostile; and whether it must be told."""
    root = stage.copied(source)
    rows: list[dict[str, Json]] = [
        {
            "file_name": f"images/{n}.jpg",
            "mask": {"size": [HEIGHT, WIDTH], "counts": [13, 8, 4, 8, HEIGHT * WIDTH - 33]},
        }
        for n in range(PHOTOS)
    ]
    row, way = chance.choice(rows), chance.randrange(3)
    if way == 0:
        how = chance.choice(list(PICTURES))
        stage.label = f"{row['file_name']} {how}"
        PICTURES[how](root / str(row["file_name"]), chance)
    elif way == 1:
        row["mask"] = json.dumps(chance.choice(SEGMENTATIONS))
        for other in rows:
            other["mask"] = other["mask"] if isinstance(other["mask"], str) else json.dumps(other["mask"])
    else:
        row["file_name"] = chance.choice([name for name in NAMES if isinstance(name, str)])
    stage.label = stage.label if way == 0 else f"metadata: {str(row)[:150]}"
    (root / "metadata.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    return root, True


def dug_photos(stage: Stage) -> Case:
    """Prepare: the digger on a folder with a damaged photo or hostile JSON, or on a damaged project."""
    _secret(stage)
    marked = _fake_ghostscript(stage)
    good = stage.empty("set-coco")
    SETS["coco"](good)
    options = ("--detector", "annotations", "--segmenter", "annotations", "--writer", "templates")
    whole = stage.empty("dug")
    status, _, line = runs.command(cli.main, "data", "dig", str(whole), "--images", str(good), *options)
    if status:
        raise Broken(f"an undamaged project: {line}")

    def case(chance: random.Random, number: int) -> str:
        if number % 3 == 2:
            project = stage.copied(whole)
            file = runs.pick(chance, project)
            stage.label = f"project, {file.relative_to(project)}"
            if file.suffix == ".json":
                stage.label = damage_json(file, chance, stage.label)[0]
            else:
                file.write_bytes(chance.randbytes(100))
            stages = ("--stage", "detect", "segment", "needs", "export", "--include", "all")
            status, _, line = runs.command(cli.main, "data", "dig", str(project), *stages)
        else:
            root = stage.copied(good)
            what, harmful = damage_set(root, chance)
            stage.label, project = what, stage.empty("project")
            given = (str(project), "--images", str(root), "--annotations", str(root / "annotations.json"), *options)
            status, _, line = runs.command(cli.main, "data", "dig", *given)
            if harmful and not line and "segmentation" in what:  # annotations of photos elsewhere are left out
                raise Broken("no fault was told")
        if status not in (0, 2):
            raise Broken(f"status {status}")
        if marked.exists():
            raise Broken("Ghostscript was called")
        return line

    return case
