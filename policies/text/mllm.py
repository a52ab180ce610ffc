"""A multimodal language model as policy: observations in, answers out.

Any Qwen2.5-VL in the standard Hugging Face folder form, from the hub or from disk; the embedded one is the same class
at a small size. The vision encoder is frozen and LoRA trains the language part, as in Saliency-R1 §4.2.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, PretrainedConfig, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from maskgym.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TINY = Path(__file__).parent / "qwen2_5_vl_tiny"
# The language part only: the vision encoder has layers of the same names.
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class LanguagePolicy:
    """A Qwen2.5-VL that answers observations of the reasoning environments.

    The model and its processor are loaded at first use.

    Args:
        path: Hub name, or a folder with ``config.json``, weights, tokenizer and processor.
        lora_rank: Rank of the adapters on the language part; None trains its weights themselves.
        lora_alpha: Scale of the adapters, divided by the rank.
        freeze_vision: Keep the vision encoder, its merger included, as it is.
        device: A PyTorch device; None takes CUDA where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        UserError: If an argument is unknown, or, at first use, the folder holds no such model or its weights don't fit.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod")

    def __init__(
        self,
        path: str | Path | None,
        lora_rank: int | None = None,
        lora_alpha: float = 32.0,
        freeze_vision: bool = True,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        if path is None:
            raise UserError("policy.path is not set: expected a folder or a hub name of a Qwen2.5-VL")
        if dtype not in DTYPES:
            raise UserError(f"policy.dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        if lora_rank is not None and lora_rank < 1:
            raise UserError(f"policy.lora_rank={lora_rank}: expected at least 1, or null for none")
        self.path, self.lora_rank, self.lora_alpha, self.freeze_vision = str(path), lora_rank, lora_alpha, freeze_vision
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = DTYPES[dtype]

    @cached_property
    def processor(self) -> Any:
        """The processor: chat template, tokenizer (padding left) and image processor."""
        processor = _load(AutoProcessor, self.path)
        processor.tokenizer.padding_side = "left"
        return processor

    @cached_property
    def model(self) -> Any:
        """The model on `device`, adapters added, frozen parts without gradient."""
        model, report = _load(Qwen2_5_VLForConditionalGeneration, self.path, dtype=self.dtype, output_loading_info=True)
        _check_keys(self.path, report)
        if self.freeze_vision:
            model.model.visual.requires_grad_(False)
        if self.lora_rank is not None:
            model = self._with_adapters(model)
        return model.to(self.device)

    def _with_adapters(self, model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.lora_rank, lora_alpha=self.lora_alpha, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config)

    def prompt(self, observation: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
        """Return the messages, with image placeholders before the instruction, and the images of an observation."""
        images = observation["images"] if "images" in observation else [observation["image"]]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": observation["instruction"]}]
        return [{"role": "user", "content": content}], [Image.fromarray(np.asarray(image)) for image in images]

    def generate(
        self,
        observations: Sequence[Mapping[str, Any]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        batch_size: int = 64,
    ) -> list[str]:
        """Return one answer an observation, special tokens removed.

        Args:
            observations: As the environments give them, unbatched.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 is greedy.
            batch_size: Observations at a time.
        """
        answers: list[str] = []
        for start in range(0, len(observations), batch_size):
            tokens, _ = self._generate(observations[start : start + batch_size], max_new_tokens, temperature)
            answers += self.processor.batch_decode(tokens, skip_special_tokens=True)
        return answers

    def sample(
        self, observations: Sequence[Mapping[str, Any]], max_new_tokens: int = 128, temperature: float = 1.0
    ) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Return one sampled answer an observation, all at once, and how probable each of its tokens was.

        Args:
            observations: As the environments give them, unbatched.
            max_new_tokens: Longest answer, in tokens.
            temperature: More than 0.

        Returns:
            The answers, special tokens removed; float32 (B, T), the log-probabilities of the sampled tokens at that
            temperature, those that are never sampled counted in as in training; bool (B, T), the answers' tokens, the
            end token included.
        """
        tokens, logits = self._generate(observations, max_new_tokens, temperature, with_logits=True)  # T of (B, V)
        steps = zip(tokens.unbind(1), logits, strict=True)
        columns = [(step.float() / temperature).log_softmax(-1).gather(1, chosen[:, None]) for chosen, step in steps]
        ends = torch.isin(tokens, torch.as_tensor(self.model.generation_config.eos_token_id, device=tokens.device))
        mask = ends.cumsum(1) - ends.long() == 0  # nothing has ended before
        return self.processor.batch_decode(tokens, skip_special_tokens=True), torch.cat(columns, dim=1), mask

    def _generate(
        self,
        observations: Sequence[Mapping[str, Any]],
        max_new_tokens: int,
        temperature: float,
        with_logits: bool = False,
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Return the tokens (B, T) of one batch of answers and, if asked for, the logits, T times (B, vocabulary)."""
        model, processor = self.model, self.processor  # loaded here, outside inference mode, as they may be trained
        settings: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
        settings |= {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        settings["suppress_tokens"] = vision_token_ids(model.config, processor.tokenizer)
        prompts = [self.prompt(observation) for observation in observations]
        texts = [
            processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            for messages, _ in prompts
        ]
        inputs = processor(text=texts, images=[images for _, images in prompts], padding=True, return_tensors="pt")
        inputs = inputs.to(self.device)
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            found = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=with_logits)
        model.train(was_training)
        return found.sequences[:, inputs["input_ids"].shape[1] :], found.logits or ()

    def save(self, path: str | Path) -> None:
        """Write model and processor as a folder that ``policy=qwen2_5_vl policy.path=…`` loads, whole or not at all.

        Adapters are merged into the weights.
        """
        target, unfinished = Path(path), Path(f"{path}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        model = self.model
        if self.lora_rank is not None:
            import copy

            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(unfinished)
        self.processor.save_pretrained(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)

    def load(self, path: str | Path) -> None:
        """Take the weights of a folder that `save` wrote, at next use; adapters start anew on what was merged."""
        self.path = str(path)
        vars(self).pop("model", None)


def vision_token_ids(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that a model reads as part of an image or a video, sorted.

    A sampled one crashes the next forward pass, whose image features are then fewer than its image tokens. They are
    found by name: the entries of the model's configuration and the special tokens of its tokenizer.
    """
    names = ("image", "video", "vision", "boi", "eoi")
    ids = {
        value
        for key, value in config.to_dict().items()
        if key.endswith(("_token_id", "_token_index")) and key.startswith(names) and isinstance(value, int)
    }
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special and any(name in token.content for name in names[:3]):
            ids.add(token_id)
    return sorted(ids)


def tiny_policy(**arguments: Any) -> LanguagePolicy:
    """Return the embedded policy: a Qwen2.5-VL of 2 M parameters, after supervised fine-tuning on scenes."""
    return LanguagePolicy(TINY, **arguments)


def _load(kind: Any, path: str, **arguments: Any) -> Any:
    """Call ``from_pretrained``; what goes wrong with a folder or a hub name is the user's to mend."""
    local = Path(path).expanduser()
    if local.exists() and not (local / "config.json").is_file():
        raise UserError(f"policy.path={path}: no config.json there; expected a Hugging Face model folder")
    try:
        return kind.from_pretrained(str(local) if local.exists() else path, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"policy.path={path}: {reason}") from error


def _check_keys(path: str, report: Mapping[str, Any]) -> None:
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name if isinstance(name, str) else name[0]) for name in report.get(fault, ()))
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise UserError(f"policy.path={path}: {len(names)} {fault.replace('_', ' ')} in the weights: {shown}")
