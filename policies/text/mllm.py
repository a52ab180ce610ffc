"""Map observations to text answers with a multimodal language model.

The policy loads any Qwen2.5-VL from the hub or from a Hugging Face folder; the bundled model is a small Qwen2.5-VL.
The vision encoder is frozen and LoRA trains the language part, as in Saliency-R1 §4.2.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from maskgym.aliases import JsonObject, Observation
from maskgym.errors import UserError
from maskgym.segmenters.frozen import DTYPES
from maskgym.segmenters.weights import refuse_mismatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

TINY = Path(__file__).parent / "qwen2_5_vl_tiny"
# The pattern names the language part because the vision encoder has layers of the same names.
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class LanguagePolicy:
    """Qwen2.5-VL that answers observations of the reasoning environments.

    The model and its processor are loaded at first use.

    Args:
        path: Hub name, or a folder with ``config.json``, weights, tokenizer and processor.
        lora_rank: Rank of the LoRA adapters on the language part; None trains its weights directly.
        lora_alpha: Scale of the adapters before division by the rank.
        freeze_vision: Whether to freeze the vision encoder, including its merger.
        device: PyTorch device; None selects CUDA if available.
        dtype: Precision: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        UserError: If an argument is unknown. At first use, if the folder holds no such model or its weights do not fit.
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
    def processor(self) -> ProcessorMixin:
        """Processor with chat template, left-padding tokenizer and image processor."""
        processor = _load(AutoProcessor, self.path)
        processor.tokenizer.padding_side = "left"
        return processor

    @cached_property
    def model(self) -> PreTrainedModel:
        """Model on `device`, with adapters; frozen parts have no gradient."""
        model, report = _load(Qwen2_5_VLForConditionalGeneration, self.path, dtype=self.dtype, output_loading_info=True)
        refuse_mismatch(
            f"policy.path={self.path}",
            missing=sorted(report["missing_keys"]),
            unexpected=sorted(report["unexpected_keys"]),
            misshaped=sorted(entry[0] for entry in report["mismatched_keys"]),
        )
        if self.freeze_vision:
            model.model.visual.requires_grad_(False)
        if self.lora_rank is not None:
            from peft import LoraConfig, get_peft_model

            scale = {"r": self.lora_rank, "lora_alpha": self.lora_alpha}
            model = get_peft_model(model, LoraConfig(target_modules=LORA_TARGETS, task_type="CAUSAL_LM", **scale))
        return model.to(self.device)

    def prompt(self, observation: Observation) -> tuple[list[JsonObject], list[Image.Image]]:
        """Build the messages of an observation, image placeholders before the instruction, and list its images."""
        images = observation["images"] if "images" in observation else [observation["image"]]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": observation["instruction"]}]
        return [{"role": "user", "content": content}], [Image.fromarray(np.asarray(image)) for image in images]

    def generate(
        self,
        observations: Sequence[Observation],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        batch_size: int = 64,
    ) -> list[str]:
        """Generate one answer per observation, without special tokens.

        Args:
            observations: Unbatched observations from the environments.
            max_new_tokens: Maximum length of an answer in tokens.
            temperature: Sampling temperature; 0 decodes greedily.
            batch_size: Number of observations per batch.
        """
        answers: list[str] = []
        for start in range(0, len(observations), batch_size):
            tokens, _ = self._generate(observations[start : start + batch_size], max_new_tokens, temperature)
            answers += self.processor.batch_decode(tokens, skip_special_tokens=True)
        return answers

    def sample(
        self, observations: Sequence[Observation], max_new_tokens: int = 128, temperature: float = 1.0
    ) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """Sample one answer per observation in a single batch, with the log-probabilities of its tokens.

        Args:
            observations: Unbatched observations from the environments.
            max_new_tokens: Maximum length of an answer in tokens.
            temperature: Sampling temperature, above 0.

        Returns:
            The answers without special tokens; float32 (B, T), the log-probabilities of the sampled tokens at that
            temperature, normalised over the full vocabulary as in training; bool (B, T), True at the tokens of an
            answer, including its end token.
        """
        tokens, logits = self._generate(observations, max_new_tokens, temperature, with_logits=True)  # T of (B, V)
        steps = zip(tokens.unbind(1), logits, strict=True)
        columns = [(step.float() / temperature).log_softmax(-1).gather(1, chosen[:, None]) for chosen, step in steps]
        ends = torch.isin(tokens, torch.as_tensor(self.model.generation_config.eos_token_id, device=tokens.device))
        mask = ends.cumsum(1) - ends.long() == 0  # True until the first end token, inclusive
        return self.processor.batch_decode(tokens, skip_special_tokens=True), torch.cat(columns, dim=1), mask

    def _generate(
        self,
        observations: Sequence[Observation],
        max_new_tokens: int,
        temperature: float,
        with_logits: bool = False,
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Generate the tokens (B, T) of one batch of answers and, on request, T logits (B, vocabulary)."""
        model, processor = self.model, self.processor  # loading outside inference mode keeps the weights trainable
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        suppressed = vision_token_ids(model.config, processor.tokenizer)
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
            found = model.generate(
                **inputs,
                do_sample=temperature > 0,
                max_new_tokens=max_new_tokens,
                suppress_tokens=suppressed,
                return_dict_in_generate=True,
                output_logits=with_logits,
                **sampling,
            )
        model.train(was_training)
        return found.sequences[:, inputs["input_ids"].shape[1] :], found.logits or ()

    def save(self, path: str | Path) -> None:
        """Write model and processor atomically to a folder that ``policy=qwen2_5_vl policy.path=…`` loads.

        The adapters are merged into the weights.
        """
        target, unfinished = Path(path), Path(f"{path}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        model = self.model
        if self.lora_rank is not None:
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(unfinished)
        self.processor.save_pretrained(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)

    def load(self, path: str | Path) -> None:
        """Load the weights that `save` wrote, at next use; new adapters start on the merged weights."""
        self.path = str(path)
        vars(self).pop("model", None)


def vision_token_ids(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the tokens that a model reads as part of an image or a video, sorted.

    Sampling such a token crashes the next forward pass, which then has fewer image features than image tokens. The
    function finds the tokens by name, in the model's configuration and among the tokenizer's special tokens.
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


qwen2_5_vl_3b = partial(LanguagePolicy, "Qwen/Qwen2.5-VL-3B-Instruct")
qwen2_5_vl_7b = partial(LanguagePolicy, "Qwen/Qwen2.5-VL-7B-Instruct")
tiny_policy = partial(LanguagePolicy, TINY)  # 2 M parameters, after supervised fine-tuning on scenes


def _load(kind: Any, path: str, **arguments: Any) -> Any:
    """Call ``from_pretrained`` and raise its errors about a folder or a hub name as UserError."""
    local = Path(path).expanduser()
    if local.exists() and not (local / "config.json").is_file():
        raise UserError(f"policy.path={path}: no config.json there; expected a Hugging Face model folder")
    try:
        return kind.from_pretrained(str(local) if local.exists() else path, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"policy.path={path}: {reason}") from error
