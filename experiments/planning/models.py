"""Count the weights of a policy from its ``config.json`` alone, on a model that holds no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLConfig

from maskgym.errors import UserError, one_line
from maskgym.experiments.planning.published import HUB, POLICIES, PolicySizes, policy_config
from maskgym.policies.text import adapters
from maskgym.policies.text.mllm import LanguagePolicy, add_adapters, check_config, freeze_vision

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CHANNELS, FRAMES = 3, 2  # of a patch of Qwen's: a still image is shown twice
# Keys of families whose images have a fixed number of tokens.
TOKEN_KEYS = ("mm_tokens_per_image", "image_seq_length", "image_seq_len")
RANK = 16  # of `published`


@dataclass(frozen=True)
class Model:
    """Sizes and counts of a policy.

    Attributes:
        family: The ``model_type``.
        total: Parameters without adapters.
        trained: Parameters that are trained: adapters, or else those of the language part.
        layers: Layers of the language part.
        hidden: Width of the language part.
        inner: Inner units of a feed-forward layer; of a mixture of experts, those of the experts that serve a token.
        heads: Query heads of a layer times their width.
        cached: Values that a layer caches per token, keys and values.
        words: Rows of the output layer.
        products: Weights of the layers that a token is multiplied with; of experts, the share that serves it.
        vision: Weights of the vision encoder that a patch is multiplied with.
        merger: Weights that a visual token is multiplied with.
        vision_width: Largest width of the activations of the vision encoder: inner units and three times its width.
        patch: Side of a patch, pixels.
        merge: Patches along a side of a visual token.
        fixed: Visual tokens of an image of any size; None where they follow its size.
        fixed_patches: Patches of an image of any size; 0 where they follow its size.
    """

    family: str
    total: int
    trained: int
    layers: int
    hidden: int
    inner: int
    heads: int
    cached: int
    words: int
    products: int
    vision: int
    merger: int
    vision_width: int
    patch: int
    merge: int
    fixed: int | None = None
    fixed_patches: int = 0

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.words * self.hidden

    def tokens(self, size: tuple[int, int]) -> int:
        """Count the visual tokens of an image of (height, width) pixels."""
        if self.fixed is not None:
            return self.fixed
        side = self.patch * self.merge
        return math.prod(max(1, round(length / side)) for length in size)

    def patches(self, size: tuple[int, int]) -> int:
        """Count the patches of an image of (height, width) pixels."""
        return self.fixed_patches if self.fixed is not None else self.tokens(size) * self.merge**2


def read_config(policy: LanguagePolicy) -> PretrainedConfig:
    """Read the configuration of a policy's model; of adapters, of their base model.

    A folder needs no file but ``config.json``. The published sizes are known; another name is looked up on the hub.

    Raises:
        UserError: If there is no configuration, or it is of another family.
    """
    path, told = policy.path, f"policy.path={policy.path}"
    folder = Path(path).expanduser()
    if adapters.are_in(folder):
        path = str(adapters.read_config(folder).base_model_name_or_path)
        folder = Path(path).expanduser()
    if path in HUB:
        return Qwen2_5_VLConfig(**policy_config(POLICIES[HUB[path]]))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{told}: no config.json in {folder}: expected that of a vision-language model")
        check_config(folder, policy.families)
    elif path.startswith((".", "/", "~")):
        raise UserError(f"{told}: no such folder: expected one with config.json")
    try:
        return AutoConfig.from_pretrained(folder if folder.is_dir() else path, trust_remote_code=False)
    except Exception as error:  # many readers, with different exceptions, all about the configuration
        raise UserError(f"{told}: its configuration cannot be read: {one_line(error)[:200]}") from error


def published(size: str | PolicySizes, rank: int | None = RANK) -> Model:
    """Count the weights of a published policy by the name of its size, or of a Qwen2.5-VL of other sizes."""
    sizes = POLICIES[size] if isinstance(size, str) else size
    return count(Qwen2_5_VLConfig(**policy_config(sizes)), rank)


def count(config: PretrainedConfig, rank: int | None, frozen_vision: bool = True) -> Model:
    """Count the weights of a model.

    Args:
        config: Its configuration.
        rank: Rank of new adapters on the language part; None trains the language part itself.
        frozen_vision: Whether the vision encoder is frozen.

    Raises:
        UserError: If no such model can be built, or its configuration does not tell the tokens per image.
    """
    kind = cast(Hashable, type(config))
    return _count(kind, config.to_json_string(use_diff=False), rank, frozen_vision)


@cache  # building a model takes seconds, and studies plan the same one again and again
def _count(kind: Any, content: str, rank: int | None, frozen_vision: bool) -> Model:
    config = kind.from_dict(json.loads(content))
    text, vision = config.get_text_config(), config.vision_config
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except Exception as error:  # of the model's own code, about its sizes
        raise UserError(f"model_type={config.model_type}: cannot be built: {one_line(error)[:200]}") from error
    total = _parameters(model.parameters())
    language, encoder = model.get_decoder(), model.get_encoder(modality="image")
    merging = [module for name, module in encoder.named_modules() if "merger" in name.rpartition(".")[2]]
    merger = sum(_products(module) for module in merging)
    share = getattr(text, "num_experts_per_tok", 0) / getattr(text, "num_experts", 1) if _experts(text) else 1.0
    wide = getattr(vision, "embed_dim", vision.hidden_size)  # of Qwen2-VL hidden_size is the language part's
    inner = getattr(vision, "intermediate_size", None) or int(wide * vision.mlp_ratio)
    found = {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "inner": text.moe_intermediate_size * text.num_experts_per_tok if _experts(text) else text.intermediate_size,
        "heads": text.num_attention_heads * _head(text),
        "cached": 2 * text.num_key_value_heads * _head(text),
        "words": model.get_output_embeddings().weight.shape[0],
        "products": _products(language, share),
        "vision": _products(encoder) - merger,
        "merger": merger,
        "vision_width": 3 * (wide + inner),
        "patch": vision.patch_size,
        **_tokens(config),
    }
    if frozen_vision:
        freeze_vision(model)
    prepared = model if rank is None else add_adapters(model, rank, rank)
    trained = _parameters(value for value in prepared.parameters() if value.requires_grad)
    return Model(config.model_type, total, trained, **found)


def _tokens(config: PretrainedConfig) -> dict[str, int]:
    """Find how the visual tokens of an image are counted: the arguments of `Model`."""
    vision = config.vision_config
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", None)
    if merge is not None:
        return {"merge": merge}
    fixed = next((value for key in TOKEN_KEYS if (value := getattr(config, key, None)) is not None), None)
    if fixed is None:
        raise UserError(
            f"model_type={config.model_type}: config.json does not tell the tokens of an image: expected one of "
            f"{', '.join(TOKEN_KEYS)}, or vision_config.spatial_merge_size"
        )
    sides = vision.image_size if isinstance(vision.image_size, list | tuple) else [vision.image_size] * 2
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    return {"merge": 1, "fixed": fixed, "fixed_patches": math.prod(side // patch for side in sides), "patch": patch}


def _experts(text: PretrainedConfig) -> bool:
    return bool(getattr(text, "num_experts", 0) and getattr(text, "num_experts_per_tok", 0))


def _head(text: PretrainedConfig) -> int:
    """Look up the width of a head."""
    return cast(int, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _products(module: nn.Module, share: float = 1.0) -> int:
    """Count the weights that an input is multiplied with; of experts, whose weights have three dimensions, a share."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    weights = [value for value in module.parameters() if value.ndim > 1 and id(value) not in tables]
    return sum(int(value.numel() * (share if value.ndim == 3 else 1)) for value in weights)


def _parameters(values: Iterable[nn.Parameter]) -> int:
    return sum(value.numel() for value in values)
