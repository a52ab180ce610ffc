"""Contact sheets: samples of a data set with their masks, in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskgym import data
from maskgym.chat.asker import to_png
from maskgym.envs.rendering import contact_sheet
from maskgym.errors import UserError
from maskgym.experiments.evaluation.evaluation import held_out
from maskgym.experiments.wiring import run_folder


def draw(
    name: str, root: str, out: Path, task: str | None = None, split: str = "all", samples: int = 24, **arguments: Any
) -> int:
    """Draw samples of a data set, spread evenly over it, and return their number.

    Args:
        name: Name of a reader or a published data set.
        root: Folder of the data set.
        out: Path of the picture, a PNG.
        task: Task argument of the reader; None for the reader's default.
        split: ``train``, ``validation``, ``test`` or ``all``.
        samples: Maximal number of samples.
        **arguments: Other arguments of the reader.

    Raises:
        UserError: If an argument is invalid, or a sample cannot be read.
    """
    if samples < 1:
        raise UserError(f"--samples {samples}: expected at least 1")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: expected a name that ends in .png")
    given = {} if task is None else {"task": task}
    dataset = data.make(name, root=root, split=split, **given, **arguments)
    chosen = held_out(len(dataset), samples)
    sheet = contact_sheet([dataset[index] for index in tqdm(chosen, desc="draw", unit="sample", disable=None)])
    run_folder.write(out, to_png(sheet))
    return len(chosen)
