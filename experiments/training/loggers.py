"""Loggers besides ``metrics.csv``: they log numbers during a run, and samples with their answers at its end."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgym.aliases import Config
from maskgym.errors import UserError, one_line
from maskgym.experiments.wiring import run_folder

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

ROWS_SHOWN = 256  # maximum number of rows in the table of answers
WANDB = "wandb"  # folder of wandb's files in the run folder
WANDB_ID = f"{WANDB}/id.txt"
WANDB_FOLDERS = {  # what wandb would keep under the home folder, and where it goes unless the user's variable says so
    "WANDB_DATA_DIR": f"{WANDB}/data",  # tables, until they are sent
    "WANDB_CACHE_DIR": f"{WANDB}/cache",
    "WANDB_ARTIFACT_DIR": f"{WANDB}/artifacts",
}


class Logger:
    """Base class of loggers, which logs nothing itself."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log named numbers of an update or an evaluation."""

    def show(self, folder: Path) -> None:
        """Log the pictures and answers of a complete run folder."""


class TensorBoard(Logger):
    """Logger that writes event files to ``tensorboard/`` in the run folder."""

    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def show(self, folder: Path) -> None:
        """Write the pictures."""
        import numpy as np
        from PIL import Image

        for file in _pictures(folder):
            with Image.open(file) as image:
                self.writer.add_image(file.stem, np.asarray(image.convert("RGB")), dataformats="HWC")


class WandB(Logger):
    """Logger of a wandb run. Training continues if the wandb service fails: ``metrics.csv`` has all numbers."""

    def __init__(self, run: wandb.Run) -> None:
        self.run, self.lost = run, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers to wandb."""
        self._call(self.run.log, dict(values), step=step)

    def show(self, folder: Path) -> None:
        """Send the pictures to wandb, and a table of the answers before and after training with their scores."""
        import wandb

        lines = (folder / run_folder.ANSWERS).read_text(encoding="utf-8").splitlines()[:ROWS_SHOWN]
        rows = [json.loads(line) for line in lines]
        names = [f"{when} {name}" for when in ("before", "after") for name in rows[0][when]]
        body = [[row["key"], *row["before"].values(), *row["after"].values()] for row in rows]
        table = wandb.Table(columns=["key", *names], data=body)
        samples = [wandb.Image(str(file), caption=file.stem) for file in _pictures(folder)]
        self._call(self.run.log, {"samples": samples, "answers": table})

    def finish(self, status: int) -> None:
        """Close the wandb run with an exit status."""
        self._call(self.run.finish, status)

    def _call(self, act: Callable[..., object], *arguments: Any, **settings: Any) -> None:
        if self.lost:
            return
        try:
            act(*arguments, **settings)
        except Exception as error:  # wandb's connection errors have no common base class
            self.lost = True
            said = one_line(error) or type(error).__name__
            print(f"logger=wandb: its service went away ({said}); metrics.csv has the rest", file=sys.stderr)


@contextmanager
def open_logger(config: Config, folder: Path, versions: Mapping[str, str]) -> Iterator[Logger]:
    """Open the logger of a config, and close it at the end; a resumed run continues the same log.

    Args:
        config: Config of the run.
        folder: Folder of the run.
        versions: Versions of the code and its libraries, which are logged with the config.

    Raises:
        UserError: If the logger's library is not installed, or wandb cannot start.
    """
    settings = config["logger"]
    if settings["name"] == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("logger=tensorboard: pip install 'maskgym[tensorboard]'") from error
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            yield TensorBoard(writer)
    elif settings["name"] == "wandb":
        try:
            import wandb
        except ImportError as error:
            raise UserError("logger=wandb: pip install 'maskgym[wandb]'") from error
        with _environment({name: str(folder / place) for name, place in WANDB_FOLDERS.items()}):
            try:
                run = wandb.init(
                    project=settings["project"],
                    mode=settings["mode"],
                    dir=folder,
                    name=settings.get("run_name") or folder.name,
                    group=settings.get("group"),
                    tags=settings.get("tags"),
                    id=_wandb_id(folder),
                    resume="allow",
                    config={**config, "versions": versions},
                )
            except (wandb.errors.Error, ValueError) as error:
                raise UserError(f"logger=wandb: {str(error) or type(error).__name__}") from error
            logger = WandB(run)
            try:
                yield logger
            except BaseException:
                logger.finish(1)
                raise
            logger.finish(0)
    else:
        yield Logger()


def _wandb_id(folder: Path) -> str:
    """Read the id of a run folder's log, or draw one: paths are used again, and other machines have the same."""
    file = folder / WANDB_ID
    if not file.exists():
        run_folder.write(file, secrets.token_hex(6))
    return file.read_text(encoding="ascii", errors="replace").strip()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables that the user has not set, until the end."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / run_folder.SAMPLES).glob("*.png"))
