"""What segmenters that come through transformers share: finding, checking and loading a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from maskgym.errors import UserError
from maskgym.segmenters.frozen import FrozenNetwork
from maskgym.segmenters.weights import find_weights, refuse_mismatch, weight_files

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase


class HubNetwork(FrozenNetwork):
    """A frozen network whose model, image processor and tokenizer are those of transformers.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub, which is
            downloaded at construction unless it is in the cache.
        device: See `FrozenNetwork`.
        dtype: See `FrozenNetwork`.
        batch_size: See `FrozenNetwork`.

    Raises:
        UserError: If the checkpoint is missing, cannot be read, is of another model, or lacks weights.
    """

    architecture: ClassVar[str]  # name of the model's class in transformers
    model_types: ClassVar[tuple[str, ...]]  # what its config.json may call itself
    tokenizer_files: ClassVar[tuple[str, ...]] = ("tokenizer.json", "vocab.json")  # any of them holds its words
    arguments: ClassVar[Mapping[str, Any]] = {}  # of the model's class, beside its config

    def __init__(
        self, checkpoint: str | Path, device: str | None = None, dtype: str = "float32", batch_size: int = 4
    ) -> None:
        super().__init__(device, dtype, batch_size)
        self.folder = _find(checkpoint)
        found = _model_type(self.folder / "config.json")
        if found not in self.model_types:
            raise UserError(f"{self.folder}: holds a '{found}' model: expected {' or '.join(self.model_types)}")

    @cached_property
    def image_processor(self) -> BaseImageProcessor:
        """Return the image processor of the checkpoint."""
        from transformers import AutoImageProcessor

        return self._read(AutoImageProcessor)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the checkpoint."""
        from transformers import AutoTokenizer

        # Without any of them transformers yields, without complaint, a tokenizer that knows no word.
        if not any((self.folder / name).is_file() for name in self.tokenizer_files):
            raise UserError(f"{self.folder}: no tokenizer there: expected {' or '.join(self.tokenizer_files)}")
        return self._read(AutoTokenizer)

    @property
    def input_size(self) -> int:
        """Return the side of the model's square input, pixels."""
        return self.image_processor.size["height"]

    def pixels(self, images: list[np.ndarray]) -> Tensor:
        """Return float (B, 3, input_size, input_size) on the device: the images as the model wants them."""
        batch = self.image_processor(images, return_tensors="pt", input_data_format="channels_last")
        return batch["pixel_values"].to(self.device, self.dtype)

    def _read(self, kind: Any, **arguments: Any) -> Any:
        try:
            return kind.from_pretrained(self.folder, local_files_only=True, **arguments)
        # Behind from_pretrained stand many readers, each with errors of its own; none of them means a fault of ours.
        except Exception as error:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise UserError(f"{self.folder}: {kind.__name__} cannot be read: {reason}") from error

    def _load(self) -> nn.Module:
        import transformers

        kind = getattr(transformers, self.architecture, None)
        if kind is None:
            raise UserError(f"transformers {transformers.__version__} has no {self.architecture}: install a newer one")
        # transformers only warns, and draws what is missing at random; what is left over, as the image half of a model
        # whose text half is wanted, it lists at length.
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            model, report = self._read(kind, dtype=self.dtype, output_loading_info=True, **self.arguments)
        finally:
            transformers.logging.set_verbosity(verbosity)
        misshaped = [entry[0] for entry in report["mismatched_keys"]]
        refuse_mismatch(self.folder, missing=sorted(report["missing_keys"]), misshaped=sorted(misshaped))
        return model

    def _identity(self) -> tuple[str, list[Path]]:
        config = (self.folder / "config.json").read_text()
        return config, weight_files(find_weights(self.folder))


def _find(checkpoint: str | Path) -> Path:
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
        folder = Path(snapshot_download(str(checkpoint), allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):  # some models of the first years have only this
            snapshot_download(str(checkpoint), allow_patterns="pytorch_model*.bin")
        return folder
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"checkpoint '{checkpoint}': neither a folder nor a model that can be downloaded ({type(error).__name__})"
        ) from error


def _model_type(file: Path) -> str:
    try:
        return json.loads(file.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read as the config of a model: expected a 'model_type'") from error
