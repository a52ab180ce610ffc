"""Encode needs with the text towers of CLIP, SigLIP, BLIP and BERT from transformers, or the bundled tiny CLIP.

Each encoder pools the hidden states of a few depths at the position that the model itself pools:

| encoder | pooled position |
|---|---|
| CLIP | the end of the text |
| SigLIP | the last position; the text is padded to its full length, as in training |
| BLIP | the first token, [CLS] |
| BERT | the mean over the text's tokens, [CLS] and [SEP] included, as [CLS] carries little before fine-tuning |

Hidden states of different depths and models differ in size by orders of magnitude. Each feature is therefore normalised
to mean 0 and standard deviation 1 over its width. The last depth follows the model's own final normalisation.

FLIP, the best encoder in UserSOD's Table 7, is missing because transformers has neither its code nor its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.aliases import Settings
from maskgym.errors import UserError
from maskgym.policies.needs.need_encoder import NeedEncoder
from maskgym.segmenters.attention.clip_surgery import EMBEDDED
from maskgym.segmenters.frozen import chunks
from maskgym.segmenters.hub import HubNetwork
from maskgym.segmenters.weights import bundled

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CACHED_NEEDS = 1024


class TextTower(HubNetwork, ABC):
    """The text part of a checkpoint; `HubNeedEncoder` describes the arguments.

    Raises:
        UserError: If levels are not 1 to the number of its blocks; see also `HubNetwork`.
    """

    padding: ClassVar[bool | str] = True
    masked: ClassVar[bool] = True  # whether the model takes the padding mask

    def __init__(
        self, checkpoint: str | Path | None, levels: int, device: str | None, dtype: str, batch_size: int
    ) -> None:
        super().__init__(checkpoint, device, dtype, batch_size)
        if not 1 <= levels <= self.config.num_hidden_layers:
            raise UserError(
                f"{self.folder}: levels={levels}: expected 1 to {self.config.num_hidden_layers}, the blocks it has"
            )
        self.levels = levels

    @cached_property
    def config(self) -> PretrainedConfig:
        """Config of the text part."""
        from transformers import AutoConfig

        return self._read(AutoConfig).get_text_config()

    @abstractmethod
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool hidden states (B, T, D) with a mask (B, T), 0 at padding, to (B, D)."""

    def tower(self) -> nn.Module:
        """Select the module that reads texts."""
        return self.network

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Compute float32 (B, levels, D) on `device`, one feature per depth, evenly spaced and ending with the last."""
        tower, depth = self.tower(), self.config.num_hidden_layers
        found = []
        for chunk in chunks(texts, self.batch_size):
            batch = self.tokenizer(
                chunk,
                padding=self.padding,
                padding_side="right",
                truncation=True,
                max_length=self.config.max_position_embeddings,
                return_attention_mask=True,
                return_tensors="pt",
            ).to(self.device)
            given = {"attention_mask": batch["attention_mask"]} if self.masked else {}
            output = tower(input_ids=batch["input_ids"], output_hidden_states=True, **given)
            states = [output.hidden_states[depth * level // self.levels] for level in range(1, self.levels)]
            pooled = [
                self.pool(state.float(), batch["attention_mask"]) for state in (*states, output.last_hidden_state)
            ]
            found.append(F.layer_norm(torch.stack(pooled, dim=1), (self.config.hidden_size,)))
        return torch.cat(found)

    def _identity(self) -> tuple[str, list[Path]]:
        config, files = super()._identity()
        words = [self.folder / name for name in self.tokenizer_files if (self.folder / name).is_file()]
        return f"{self.levels} {config}", [*files, *words]


class _ClipTower(TextTower):
    published = "openai/clip-vit-base-patch16"
    architecture = "CLIPTextModel"
    model_types = ("clip", "clip_text_model")

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


class _SiglipTower(TextTower):
    published = "google/siglip-base-patch16-224"
    architecture = "SiglipTextModel"
    model_types = ("siglip", "siglip_text_model")
    tokenizer_files = ("tokenizer.json", "spiece.model")
    padding = "max_length"
    masked = False

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, -1]


class _BlipTower(TextTower):
    published = "Salesforce/blip-itm-base-coco"
    model_types = ("blip",)
    tokenizer_files = ("tokenizer.json", "vocab.txt")
    places: ClassVar[dict[str, str]] = {
        "BlipForImageTextRetrieval": "text_encoder",
        "BlipForQuestionAnswering": "text_encoder",
        "BlipModel": "text_model",
    }

    def _load(self) -> nn.Module:
        from transformers import AutoConfig

        found = (self._read(AutoConfig).architectures or ["none"])[0]
        if found not in self.places:
            raise UserError(f"{self.folder}: is a {found}: expected one with a text encoder, {', '.join(self.places)}")
        self.architecture = found
        return super()._load()

    def tower(self) -> nn.Module:
        network = self.network
        return network.get_submodule(self.places[type(network).__name__])

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0]


class _BertTower(TextTower):
    published = "google-bert/bert-base-uncased"
    architecture = "BertModel"
    model_types = ("bert",)
    tokenizer_files = ("tokenizer.json", "vocab.txt")
    arguments: ClassVar[Settings] = {"add_pooling_layer": False}

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class HubNeedEncoder(NeedEncoder):
    """Need encoder with a text tower from transformers.

    The network is loaded at first use, on its own device, and computes the features there. It is no submodule: pickles
    and checkpoints leave it out, and checkpoints name it by its fingerprint. The latest features are cached.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, with a tokenizer; or a name on the Hugging Face hub. None
            selects the published checkpoint of the class.
        levels: Number of depths, evenly spaced and ending with the last block.
        device: PyTorch device; None selects CUDA if available.
        dtype: Precision of weights and activations: ``float32``, ``bfloat16`` or ``float16``.
        batch_size: Maximum number of texts per forward pass.
        cached: Maximum number of needs whose features are cached.

    Raises:
        UserError: If the checkpoint is missing, cannot be read or holds another model, or an argument does not fit.
    """

    tower: ClassVar[type[TextTower]]

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        levels: int = 3,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 64,
        cached: int = CACHED_NEEDS,
    ) -> None:
        super().__init__()
        if cached < 0:
            raise UserError(f"cached {cached}: expected at least 0")
        self.text = self.tower(checkpoint, levels, device, dtype, batch_size)
        self.levels, self.width, self.cached = levels, self.text.config.hidden_size, cached
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def fingerprint(self) -> str:
        """Identifier of weights, vocabulary, levels and precision: 16 hexadecimal digits."""
        return self.text.fingerprint

    @property
    def network(self) -> nn.Module:
        """Frozen module that reads texts, for counting parameters and timing."""
        return self.text.tower()

    def encode(self, needs: Sequence[str]) -> Tensor:
        """Compute float32 (B, levels, width); see `NeedEncoder`.

        Raises:
            TypeError: If the needs are one string.
        """
        texts = clean(needs)
        known = {text: self._features[text] for text in texts if text in self._features}
        unknown = [text for text in dict.fromkeys(texts) if text and text not in known]
        if unknown:
            known |= dict(zip(unknown, self.text.read(unknown).clone(), strict=True))
        for text, feature in known.items():
            self._features[text] = feature
            self._features.move_to_end(text)
        while len(self._features) > self.cached:
            self._features.popitem(last=False)
        features = torch.zeros(len(texts), self.levels, self.width, device=self.text.device)
        for row, text in enumerate(texts):
            if text:
                features[row] = known[text]
        return features

    def __getstate__(self) -> Settings:
        """Drop the cached features, because the receiving process computes its own."""
        return {**self.__dict__, "_features": OrderedDict()}


class ClipNeedEncoder(HubNeedEncoder):
    """The text encoder of any CLIP; see `HubNeedEncoder`."""

    tower = _ClipTower


class SiglipNeedEncoder(HubNeedEncoder):
    """The text encoder of any SigLIP; see `HubNeedEncoder`."""

    tower = _SiglipTower


class BlipNeedEncoder(HubNeedEncoder):
    """The text encoder of a BLIP for retrieval or question answering; see `HubNeedEncoder`.

    A BLIP for captions has no text encoder, only a decoder, and is refused.
    """

    tower = _BlipTower


class BertNeedEncoder(HubNeedEncoder):
    """Any BERT; see `HubNeedEncoder`."""

    tower = _BertTower


def clip_tiny(**settings: Any) -> ClipNeedEncoder:
    """Build the text encoder of the bundled CLIP, whose vocabulary is the words of scenes.

    Args:
        **settings: Arguments of `HubNeedEncoder`, except the checkpoint.

    Raises:
        UserError: If the package was installed without its weights.
    """
    return ClipNeedEncoder(bundled(EMBEDDED), **settings)


def clean(needs: Sequence[str]) -> list[str]:
    r"""Normalise the whitespace of needs, and replace halves of surrogate pairs, which no encoding holds, by ``?``.

    Raises:
        TypeError: If the needs are one string.

    Example:
        >>> clean(["  find a   red car", " ", "a\ud83d"])
        ['find a red car', '', 'a?']
    """
    if isinstance(needs, str):
        raise TypeError("needs are one string: expected a sequence of strings")
    return [" ".join(need.encode("utf-8", "replace").decode("utf-8").split()) for need in needs]
