"""Encode needs with the text towers of CLIP, SigLIP, BLIP and BERT from transformers, or the bundled tiny CLIP.

Each gives the hidden state of a few depths at the token that the model itself pools, or a mean where it has none:

| encoder | pooled at |
|---|---|
| CLIP | the end of the text |
| SigLIP | the last position, the text being padded to its full length, as it was trained |
| BLIP | the first token, [CLS] |
| BERT | the mean over the text's tokens, [CLS] and [SEP] included: its [CLS] says little before fine-tuning |

Hidden states of different depths, and models, differ in size by orders of magnitude, so that each feature is brought to
mean 0 and deviation 1 over its width. The last depth comes after the model's own last normalisation.

FLIP, the best of UserSOD's Table 7, is not among them: transformers has neither its code nor its weights, and its text
encoder, which reads in both directions, is not that of CLIP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskgym.errors import UserError
from maskgym.policies.needs.need_encoder import NeedEncoder
from maskgym.segmenters.attention.clip_surgery import EMBEDDED
from maskgym.segmenters.frozen import chunks
from maskgym.segmenters.hub import HubNetwork

CACHED_NEEDS = 1024


class TextTower(HubNetwork, ABC):
    """The text part of a checkpoint; `HubNeedEncoder` says what its arguments are.

    Raises:
        UserError: If levels are not 1 to the number of its blocks; else see `HubNetwork`.
    """

    padding: ClassVar[bool | str] = True
    masked = True  # whether the model is told what is padding

    def __init__(self, checkpoint: str | Path, levels: int, device: str | None, dtype: str, batch_size: int) -> None:
        super().__init__(checkpoint, device, dtype, batch_size)
        if not 1 <= levels <= self.config.num_hidden_layers:
            raise UserError(
                f"{self.folder}: levels={levels}: expected 1 to {self.config.num_hidden_layers}, the blocks it has"
            )
        self.levels = levels

    @cached_property
    def config(self) -> Any:
        """Return the config of the text part."""
        from transformers import AutoConfig

        config = self._read(AutoConfig)
        return getattr(config, "text_config", config)

    @abstractmethod
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return (B, D) for hidden states (B, T, D) and a mask (B, T), 0 at padding."""

    def tower(self) -> nn.Module:
        """Return the module that reads texts."""
        return self.network

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Return float32 (B, levels, D) on `device`, one feature a depth, evenly spaced, the last one the model's."""
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
    architecture = "CLIPTextModel"
    model_types = ("clip", "clip_text_model")

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]


class _SiglipTower(TextTower):
    architecture = "SiglipTextModel"
    model_types = ("siglip", "siglip_text_model")
    tokenizer_files = ("tokenizer.json", "spiece.model")
    padding = "max_length"
    masked = False

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, -1]


class _BlipTower(TextTower):
    model_types = ("blip",)
    tokenizer_files = ("tokenizer.json", "vocab.txt")
    places: ClassVar[dict[str, str]] = {
        "BlipForImageTextRetrieval": "text_encoder",
        "BlipForQuestionAnswering": "text_encoder",
        "BlipModel": "text_model",
    }

    @property
    def architecture(self) -> str:  # type: ignore[override]
        from transformers import AutoConfig

        found = (self._read(AutoConfig).architectures or ["none"])[0]
        if found not in self.places:
            raise UserError(f"{self.folder}: is a {found}: expected one with a text encoder, {', '.join(self.places)}")
        return found

    def tower(self) -> nn.Module:
        return self.network.get_submodule(self.places[self.architecture])

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0]


class _BertTower(TextTower):
    architecture = "BertModel"
    model_types = ("bert",)
    tokenizer_files = ("tokenizer.json", "vocab.txt")
    arguments: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class HubNeedEncoder(NeedEncoder):
    """A text tower behind the contract of need encoders.

    Its network is no submodule: it is loaded at first use, stays on its own device, is left behind at pickling and has
    no part in checkpoints, where the fingerprint names it. Features come on that device. What was encoded last is kept.

    Args:
        checkpoint: A folder as ``save_pretrained`` writes it, with a tokenizer; or a name on the Hugging Face hub.
        levels: How many depths: the last block and others, evenly spaced.
        device: A PyTorch device; None takes CUDA where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``: the precision of weights and activations.
        batch_size: Most texts that go through the network at a time.
        cached: Most needs whose features are kept.

    Raises:
        UserError: If the checkpoint is missing, cannot be read or is of another model, or an argument does not fit.
    """

    kind: ClassVar[Callable[..., TextTower]]

    def __init__(
        self,
        checkpoint: str | Path,
        levels: int = 3,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 64,
        cached: int = CACHED_NEEDS,
    ) -> None:
        super().__init__()
        if cached < 0:
            raise UserError(f"cached {cached}: expected at least 0")
        self.text = type(self).kind(checkpoint, levels, device, dtype, batch_size)
        self.levels, self.width, self.cached = levels, self.text.config.hidden_size, cached
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Return 16 hexadecimal digits that change with the weights, the words, the levels and the precision."""
        return self.text.fingerprint

    @property
    def network(self) -> nn.Module:
        """Return the module that reads texts, frozen: what there is to count and to time."""
        return self.text.tower()

    def encode(self, needs: Sequence[str]) -> Tensor:
        """Return float32 (B, levels, width); see `NeedEncoder`.

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

    def __getstate__(self) -> dict[str, Any]:
        """Leave the features behind."""
        return {**self.__dict__, "_features": OrderedDict()}


class ClipNeedEncoder(HubNeedEncoder):
    """The text encoder of any CLIP; see `HubNeedEncoder`."""

    kind = _ClipTower

    def __init__(self, checkpoint: str | Path = "openai/clip-vit-base-patch16", **settings: Any) -> None:
        super().__init__(checkpoint, **settings)


class SiglipNeedEncoder(HubNeedEncoder):
    """The text encoder of any SigLIP; see `HubNeedEncoder`."""

    kind = _SiglipTower

    def __init__(self, checkpoint: str | Path = "google/siglip-base-patch16-224", **settings: Any) -> None:
        super().__init__(checkpoint, **settings)


class BlipNeedEncoder(HubNeedEncoder):
    """The text encoder of a BLIP that has one, as those for retrieval do; see `HubNeedEncoder`.

    Those for captions have a decoder only, which reads from left to right, and are refused.
    """

    kind = _BlipTower

    def __init__(self, checkpoint: str | Path = "Salesforce/blip-itm-base-coco", **settings: Any) -> None:
        super().__init__(checkpoint, **settings)


class BertNeedEncoder(HubNeedEncoder):
    """Any BERT; see `HubNeedEncoder`."""

    kind = _BertTower

    def __init__(self, checkpoint: str | Path = "google-bert/bert-base-uncased", **settings: Any) -> None:
        super().__init__(checkpoint, **settings)


def clip_tiny(**settings: Any) -> ClipNeedEncoder:
    """Return the text encoder of the bundled CLIP, whose vocabulary is the words of scenes.

    Args:
        settings: Those of `HubNeedEncoder`, the checkpoint apart.

    Raises:
        UserError: If the package was installed without its weights.
    """
    if not EMBEDDED.is_dir():
        raise UserError(f"{EMBEDDED}: the embedded weights are missing: make them with maskgym pretrain clip")
    return ClipNeedEncoder(EMBEDDED, **settings)


def clean(needs: Sequence[str]) -> list[str]:
    r"""Return the needs with uniform whitespace; what no encoding can hold (half a surrogate pair) becomes ``?``.

    Raises:
        TypeError: If the needs are one string.

    Example:
        >>> clean(["  find a   red car", " ", "a\ud83d"])
        ['find a red car', '', 'a?']
    """
    if isinstance(needs, str):
        raise TypeError("needs are one string: expected a sequence of strings")
    return [" ".join(need.encode("utf-8", "replace").decode("utf-8").split()) for need in needs]
