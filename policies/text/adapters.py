"""Adapters (LoRA) of a language policy on disk: PEFT's folder, and the file that identifies their base model.

Adapters are saved, loaded and trained further unmerged. Weights in half precision cannot hold small adapters: a merged
delta of 1e-3 of a weight is lost in part by rounding. `maskgym.policies.text.mllm.LanguagePolicy.merge` merges them in
float32 for programs that need one model.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from maskgym import files, manifest
from maskgym.errors import UserError
from maskgym.segmenters.weights import refuse_mismatch

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "maskgym_base.json"
# Files of a base model that change what it computes; the tokenizer and the processor are beside the adapters.
BASE_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*")


@dataclass(frozen=True)
class Base:
    """The model that adapters belong to.

    Attributes:
        path: Absolute path of its folder, or its name on the hub.
        revision: Commit of a model on the hub.
        files: Size and checksum of each file of a folder that changes what the model computes, by name.
    """

    path: str
    revision: str | None = None
    files: dict[str, dict[str, int | str]] = field(default_factory=dict)


def are_in(folder: Path) -> bool:
    """Check whether a folder holds adapters."""
    return (folder / CONFIG).is_file()


def describe_base(path: str, revision: str | None) -> Base:
    """Describe the model in a folder by its files, or one on the hub by its commit."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return Base(path, revision)
    names = {file.name for pattern in BASE_FILES for file in folder.glob(pattern)}
    return Base(str(folder.resolve()), files=manifest.describe(folder, names))


def save(model: PeftModel, folder: Path, base: Base) -> None:
    """Write the trained adapters into a folder, as PEFT does, and the description of their base model."""
    from peft import get_peft_model_state_dict

    config = copy.copy(model.peft_config["default"])  # TRL adds others, as reference of the KL divergence
    config.inference_mode, config.base_model_name_or_path, config.revision = True, base.path, base.revision
    config.save_pretrained(str(folder))
    state = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS, {"format": "pt"})
    files.write(folder / BASE, json.dumps(asdict(base), indent=1) + "\n")


def read_config(folder: Path) -> LoraConfig:
    """Read the settings of the adapters in a folder.

    Raises:
        UserError: If they cannot be read, or are of another kind than LoRA.
    """
    from peft import LoraConfig, PeftConfig

    file = folder / CONFIG
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # the classes of PEFT raise many kinds
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"{file}: cannot be read as the settings of adapters: {reason}") from error
    if not isinstance(config, LoraConfig) or not isinstance(config.base_model_name_or_path, str):
        raise UserError(f"{file}: expected adapters of peft_type LORA with base_model_name_or_path")
    return config


def find_base(folder: Path, other: str | None) -> Base:
    """Find the model that the adapters in a folder belong to.

    Args:
        folder: Folder of the adapters.
        other: Path of a model that may be the same one elsewhere, such as on another machine.

    Raises:
        UserError: If it is missing, or has changed since the adapters were trained.
    """
    base = _read_base(folder)
    named, problem = Path(base.path).expanduser(), None
    if not base.files and not named.is_dir() and not named.is_absolute():
        return base  # a name on the hub
    for place in [named, *([] if other is None else [Path(other).expanduser()])]:
        found = _difference(place, base, folder)
        if found is None:
            return Base(str(place), files=base.files)
        problem = problem or found
    raise UserError(f"{problem}")


def _difference(place: Path, base: Base, folder: Path) -> str | None:
    """Tell in one line how a folder differs from the base model of adapters; None if it does not."""
    if not (place / "config.json").is_file():
        return f"{place}: the base model of the adapters in {folder} is missing: expected it there, or a link to it"
    for name, description in base.files.items():
        if not (place / name).is_file() or manifest.describe(place, [name])[name] != description:
            return f"{place / name}: differs from the base model of the adapters in {folder}: expected it unchanged"
    return None


def _read_base(folder: Path) -> Base:
    """Read the description of a base model; adapters of other programs have only its path."""
    file = folder / BASE
    if not file.exists():
        config = read_config(folder)
        return Base(str(config.base_model_name_or_path), config.revision)
    try:
        found = json.loads(file.read_bytes())
        return Base(str(found["path"]), found["revision"], dict(found["files"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as the description of a base model") from error


def attach(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Add the adapters in a folder to their base model, ready to be trained further.

    Raises:
        UserError: If they cannot be read, or do not fit the model.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    config, file = read_config(folder), folder / WEIGHTS
    config.inference_mode, config.base_model_name_or_path = False, None  # PEFT warns of a base that has moved
    config.inference_mode, config.base_model_name_or_path = False, None  # PEFT warns of a base that has moved
    try:
        state = load_file(file)
        adapted = get_peft_model(model, config)
        report = set_peft_model_state_dict(adapted, state)
    except Exception as error:  # damaged files, and settings or sizes that do not fit, raise many kinds
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"{file}: the adapters cannot be loaded: {reason}") from error
    missing = sorted(name for name in report.missing_keys if "lora_" in name)
    refuse_mismatch(file, missing=missing, unexpected=sorted(report.unexpected_keys))
    return adapted


def check_keys(folder: Path, rank: int | None, alpha: float) -> None:
    """Check that the policy's keys are those of the adapters in a folder, which are trained further.

    Raises:
        UserError: If the rank or the scale is another one.
    """
    config = read_config(folder)
    for name, given, own in (("lora_rank", rank, config.r), ("lora_alpha", alpha, config.lora_alpha)):
        if given != own:
            raise UserError(
                f"policy.{name}={'null' if given is None else given}: the adapters in {folder} have {own}: expected "
                f"policy.{name}={own}, or their merged weights (maskgym policy merge)"
            )
