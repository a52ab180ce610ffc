"""Find, check and load the checkpoints of segmenters from transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from maskgym.aliases import Settings
from maskgym.errors import UserError
from maskgym.segmenters.frozen import FrozenNetwork
from maskgym.segmenters.weights import find_weights, first_line, refuse_broken, refuse_mismatch, weight_files

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase


class HubNetwork(FrozenNetwork):
    """Frozen network with a model, image processor and tokenizer from transformers.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, or a name on the Hugging Face hub, which is
            downloaded at construction unless it is in the cache. None selects `published`.
        device: See `FrozenNetwork`.
        dtype: See `FrozenNetwork`.
        batch_size: See `FrozenNetwork`.

    Raises:
        UserError: If the checkpoint is missing, cannot be read, is of another model, or lacks weights.
    """

    published: ClassVar[str]  # name of the default checkpoint on the hub
    architecture: str  # name of the model's class in transformers
    model_types: ClassVar[tuple[str, ...]]  # accepted ``model_type`` values of config.json
    tokenizer_files: ClassVar[tuple[str, ...]] = ("tokenizer.json", "vocab.json")  # each of them holds the vocabulary
    arguments: ClassVar[Settings] = {}  # further arguments of the model's class

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 4,
    ) -> None:
        super().__init__(device, dtype, batch_size)
        self.folder = _find(self.published if checkpoint is None else checkpoint)
        found = _model_type(self.folder / "config.json")
        if found not in self.model_types:
            raise UserError(f"{self.folder}: holds a '{found}' model: expected {' or '.join(self.model_types)}")

    @cached_property
    def image_processor(self) -> BaseImageProcessor:
        """Image processor of the checkpoint."""
        from transformers import AutoImageProcessor

        return self._read(AutoImageProcessor)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the checkpoint."""
        from transformers import AutoTokenizer

        # Without any of them transformers silently builds a tokenizer with an empty vocabulary.
        if not any((self.folder / name).is_file() for name in self.tokenizer_files):
            raise UserError(f"{self.folder}: no tokenizer there: expected {' or '.join(self.tokenizer_files)}")
        return self._read(AutoTokenizer)

    @property
    def input_size(self) -> int:
        """Side of the model's square input, in pixels."""
        return self.image_processor.size["height"]

    def pixels(self, images: list[np.ndarray]) -> Tensor:
        """Preprocess images to float (B, 3, input_size, input_size) on the device."""
        return self._preprocess(images)["pixel_values"].to(self.device, self.dtype)

    def _preprocess(self, images: Sequence[np.ndarray]) -> BatchFeature:
        """Apply the image processor; photos so long and thin that it leaves no pixel of a side are named.

        Raises:
            UserError: If the image processor refuses the images.
        """
        try:
            return self.image_processor(images, return_tensors="pt", input_data_format="channels_last")
        except (ValueError, RuntimeError) as error:
            sizes = ", ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
            kind = type(self.image_processor).__name__
            raise UserError(f"{self.folder}: {kind} refuses images of {sizes} pixels: {first_line(error)}") from error

    def _read(self, kind: Any, **arguments: Any) -> Any:
        try:
            # Unset, transformers asks on the terminal whether to run a checkpoint's own code.
            return kind.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False, **arguments)
        # from_pretrained calls many readers with different exceptions, and all of them concern the checkpoint.
        except Exception as error:
            raise UserError(f"{self.folder}: {kind.__name__} cannot be read: {first_line(error)}") from error

    def _load(self) -> nn.Module:
        import transformers

        kind = getattr(transformers, self.architecture, None)
        if kind is None:
            raise UserError(f"transformers {transformers.__version__} has no {self.architecture}: install a newer one")
        # transformers only warns about missing weights and initialises them at random, and it lists all unused weights,
        # such as the image half of a model whose text half is loaded.
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            model, report = self._read(kind, dtype=self.dtype, output_loading_info=True, **self.arguments)
        finally:
            transformers.logging.set_verbosity(verbosity)
        misshaped = [entry[0] for entry in report["mismatched_keys"]]
        refuse_mismatch(self.folder, missing=sorted(report["missing_keys"]), misshaped=sorted(misshaped))
        refuse_broken(model, self.folder)
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
        if not any(folder.glob("*.safetensors")):  # some older models have no safetensors file
            snapshot_download(str(checkpoint), allow_patterns="pytorch_model*.bin")
        return folder
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"checkpoint '{checkpoint}': neither a folder nor a model that can be downloaded ({type(error).__name__})"
        ) from error


def _model_type(file: Path) -> str:
    try:
        return json.loads(file.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as the config of a model: expected a 'model_type'") from error
