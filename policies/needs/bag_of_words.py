"""Encode a need as a bag of words, an ablation of word order."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.policies.needs.need_encoder import NeedEncoder
from maskgym.policies.needs.need_encoders import clean
from maskgym.segmenters.attention.clip_surgery import EMBEDDED
from maskgym.segmenters.weights import load_strictly, read_state, write_state, write_text

WEIGHTS, WORDS = "model.safetensors", "vocabulary.json"


class BagOfWords(NeedEncoder):
    """Mean of one vector per word, normalised to mean 0 and standard deviation 1 over its width.

    Words are lower-cased runs of letters and digits, or single other signs. All unknown words share one vector. The
    table is random until it is trained through `embed`, which has gradients.

    Args:
        vocabulary: Known words; None selects those of the bundled CLIP, which describe scenes.
        levels: Number of features per need, each from its own part of the table.
        width: Width of each feature.
        checkpoint: Folder that `save` wrote; it sets vocabulary, levels and width, so these arguments must be left out.
        seed: Seed of the random table.

    Raises:
        UserError: If a size is too small, the vocabulary is empty, or the checkpoint cannot be read.

    Example:
        >>> encoder = BagOfWords(["red", "car"], width=4)
        >>> features = encoder.encode(["red car", "Car, red!", ""])
        >>> features.shape, bool(features[2].any())
        (torch.Size([3, 3, 4]), False)
    """

    def __init__(
        self,
        vocabulary: Iterable[str] | None = None,
        levels: int = 3,
        width: int = 128,
        checkpoint: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        folder = None if checkpoint is None else Path(checkpoint).expanduser()
        if folder is not None:
            vocabulary, levels, width = _read_words(folder / WORDS)
        if levels < 1 or width < 2:
            raise UserError(f"bag_of_words: levels={levels}, width={width}: expected at least 1 and 2")
        words = sorted(
            {part for text in vocabulary for part in split(text)} if vocabulary is not None else scene_words()
        )
        if not words:
            raise UserError("bag_of_words: the vocabulary is empty: expected words")
        self.levels, self.width, self.random_weights = levels, width, folder is None
        self.rows = {word: row for row, word in enumerate(words, start=1)}  # unknown words have row 0
        self.table = nn.Embedding(1 + len(words), levels * width, device="meta")
        if folder is None:
            drawn = torch.randn(self.table.weight.shape, generator=torch.Generator().manual_seed(seed))
            self.table.weight = nn.Parameter(drawn)
        else:
            load_strictly(self, read_state(folder / WEIGHTS), folder / WEIGHTS)

    @property
    def fingerprint(self) -> str:
        """Identifier of the words and the current table: 16 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps([list(self.rows), self.levels]).encode())
        digest.update(self.table.weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, needs: Sequence[str]) -> Tensor:
        """Compute float32 (B, levels, width) from the whole needs, of any length; see `NeedEncoder`.

        Raises:
            TypeError: If the needs are one string.
        """
        return self.embed(needs)

    def embed(self, needs: Sequence[str]) -> Tensor:
        """Compute the features of `encode` with gradients."""
        device = self.table.weight.device
        features = []
        for text in clean(needs):
            rows = torch.tensor([self.rows.get(word, 0) for word in split(text)], dtype=torch.long, device=device)
            mean = self.table(rows).sum(dim=0).view(self.levels, self.width) / max(1, len(rows))
            features.append(F.layer_norm(mean, (self.width,)) if len(rows) else mean)
        if not features:
            return torch.zeros(0, self.levels, self.width, device=device)
        return torch.stack(features)

    def save(self, folder: str | Path) -> None:
        """Write the words and the table to a folder, created if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_state(self.state_dict(), folder / WEIGHTS)
        values = {"words": list(self.rows), "levels": self.levels, "width": self.width}
        write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", folder / WORDS)


def split(text: str) -> list[str]:
    """Split a text into lower-cased words: runs of letters and digits, and single other signs.

    Example:
        >>> split("Find the RED car, 2 doors")
        ['find', 'the', 'red', 'car', ',', '2', 'doors']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def scene_words() -> set[str]:
    """Read the vocabulary of the bundled CLIP, the words of scenes and their effects.

    Raises:
        UserError: If its file is missing or cannot be read.
    """
    file = EMBEDDED / "tokenizer.json"
    try:
        tokenizer = json.loads(file.read_text())
        special = {token["content"] for token in tokenizer["added_tokens"]}
        return {part for word in set(tokenizer["model"]["vocab"]) - special for part in split(word)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read as a tokenizer: give the vocabulary instead") from error


def _read_words(file: Path) -> tuple[list[str], int, int]:
    try:
        values = json.loads(file.read_text())
        return list(map(str, values["words"])), int(values["levels"]), int(values["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read: expected a folder that a bag of words was saved to") from error
