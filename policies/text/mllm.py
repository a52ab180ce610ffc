"""Map observations to text answers with a multimodal language model.

The policy loads any model of the image-text-to-text classes of transformers from the hub or from a Hugging Face folder;
the bundled model is a small Qwen2.5-VL. The vision encoder is frozen and LoRA trains the language part, as in
Saliency-R1 §4.2. Adapters are saved and trained further unmerged, see `maskgym.policies.text.adapters`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

from maskgym import manifest
from maskgym.aliases import JsonObject, Observation
from maskgym.errors import UserError
from maskgym.policies.text import adapters
from maskgym.segmenters.frozen import DTYPES
from maskgym.segmenters.weights import refuse_mismatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BatchFeature, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TINY, TINY_REFER, TINY_TERSE = (Path(__file__).parent / f"qwen2_5_vl_tiny{end}" for end in ("", "_refer", "_terse"))
# What the makers of a family of models trained it to write in answers: pixels of the image that its processor has
# resized (Qwen2.5-VL), or thousandths of the image's sides (the others).
COORDINATES = {
    "qwen2_5_vl": "pixels",
    **dict.fromkeys(("qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "internvl"), "thousandths"),
}
QWEN_IMAGES = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)  # they resize an image within limits and do not cut it

# Implementations of attention in transformers, with the package that each needs.
ATTENTION = {"eager": None, "sdpa": None, "flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_3"}


class Samples(NamedTuple):
    """Answers that `LanguagePolicy.sample` drew, one per observation (B), up to T tokens long.

    Attributes:
        answers: The texts, without special tokens.
        log_probabilities: float32 (B, T), of the sampled tokens at the sampling temperature, normalised over the full
            vocabulary as in training; constant.
        mask: bool (B, T), True at the tokens of an answer, including its end token.
        tokens: The tokens of each answer, including its end token; a truncated answer has none.
    """

    answers: list[str]
    log_probabilities: Tensor
    mask: Tensor
    tokens: list[list[int]]


class LanguagePolicy:
    """Vision-language model that answers observations of the reasoning environments.

    It may be of any family of transformers' image-text-to-text models whose processor has a chat template. The model
    and its processor are loaded at first use. Of the decoding settings in ``generation_config.json`` only the tokens
    that begin, end and pad an answer count, so that what is evaluated and sampled is what is trained.

    Args:
        path: Hub name, or a folder with ``config.json``, weights, tokenizer and processor; or a folder with adapters,
            tokenizer and processor, as `save` writes it, whose adapters are trained further.
        lora_rank: Rank of the LoRA adapters on the language part; None trains its weights directly. Adapters in
            ``path`` must have this rank. Every linear layer of the language part gets them, but the output layer.
        lora_alpha: Scale of the adapters before division by the rank.
        freeze_vision: Whether to freeze all but the language part: the vision encoder, and what maps its outputs to
            tokens. A frozen encoder runs without autograd.
        device: PyTorch device; None selects CUDA if available.
        dtype: Precision: ``float32``, ``bfloat16`` or ``float16``.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2`` or ``flash_attention_3``; None means the choice
            of transformers, which is ``sdpa``.
        max_pixels: Number of pixels above which the processor makes an image smaller; None means the checkpoint's.
            Qwen's processors alone have such limits.
        min_pixels: Number of pixels below which the processor makes an image larger, likewise.

    Raises:
        UserError: If an argument is unknown. At first use, if the folder holds no such model, its weights do not fit,
            it differs from its manifest (see `maskgym.manifest`), or the base model of its adapters is missing or has
            changed.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod", "refer")
    families: ClassVar[tuple[str, ...]] = ()  # those that a subclass is for; () for any

    def __init__(
        self,
        path: str | Path | None,
        lora_rank: int | None = None,
        lora_alpha: float = 32.0,
        freeze_vision: bool = True,
        device: str | None = None,
        dtype: str = "float32",
        attn_implementation: str | None = None,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
    ) -> None:
        if path is None:
            raise UserError("policy.path is not set: expected a folder or a hub name of a vision-language model")
        if dtype not in DTYPES:
            raise UserError(f"policy.dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        if lora_rank is not None and lora_rank < 1:
            raise UserError(f"policy.lora_rank={lora_rank}: expected at least 1, or null for none")
        self.path, self.lora_rank, self.lora_alpha, self.freeze_vision = str(path), lora_rank, lora_alpha, freeze_vision
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = DTYPES[dtype]
        _check_attention(attn_implementation)
        self.attn_implementation, self.pixels = attn_implementation, (min_pixels, max_pixels)
        for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise UserError(f"policy.{name}={value}: expected at least 1, or null for the checkpoint's")
        self._former: str | None = None  # path before `load`

    @cached_property
    def _source(self) -> str:
        """The checked folder, or the hub name."""
        local = Path(self.path).expanduser()
        if not local.exists():
            return self.path
        _check_folder(local, f"policy.path={self.path}", self.families)
        if adapters.are_in(local):
            adapters.check_keys(local, self.lora_rank, self.lora_alpha)
        return str(local)

    @cached_property
    def _base(self) -> adapters.Base | None:
        """The model that the adapters in `path` belong to; None if there are none."""
        folder = Path(self._source)
        return adapters.find_base(folder, self._former) if adapters.are_in(folder) else None

    @cached_property
    def _described(self) -> adapters.Base:
        """The model at `path` without adapters, which adapters that are trained here belong to."""
        return adapters.describe_base(self._source, None)

    @cached_property
    def _place(self) -> tuple[str, str | None]:
        """Folder or hub name of the model itself, below the adapters if there are any, and its revision on the hub."""
        if self._base is None:
            return self._source, None
        if Path(self._base.path).is_dir():
            check_config(Path(self._base.path), self.families)
        return self._base.path, self._base.revision

    @cached_property
    def family(self) -> str:
        """The ``model_type`` of the model's configuration, such as ``qwen2_5_vl``.

        Raises:
            UserError: If it is none of `families`.
        """
        source, revision = self._place
        found = str(self._load(AutoConfig, source, revision=revision).model_type)
        if self.families and found not in self.families:
            raise UserError(f"policy.path={self.path}: model_type={found}: expected {_either(self.families)}")
        return found

    @property
    def coordinates(self) -> str | None:
        """Look up what the model was trained to place in answers: ``pixels`` or ``thousandths``; None if unknown."""
        return COORDINATES.get(self.family)

    @cached_property
    def fingerprint(self) -> str:
        """Identifier of the weights at `path`; of a model on the hub, of its name."""
        folder = Path(self._source)
        if (folder / manifest.NAME).exists() or adapters.are_in(folder):
            return manifest.fingerprint(folder)
        return hashlib.sha256(json.dumps(self._described.files or self._source).encode()).hexdigest()[:16]

    @cached_property
    def processor(self) -> ProcessorMixin:
        """Processor with chat template, left-padding tokenizer and image processor."""
        processor = self._load(AutoProcessor, self._source)
        for name, value in (
            ("an end token", processor.tokenizer.eos_token_id),
            ("a padding token", processor.tokenizer.pad_token_id),
            ("a chat template", processor.chat_template),
        ):
            if value is None:
                raise UserError(f"policy.path={self.path}: its tokenizer or processor lacks {name}")
        processor.tokenizer.padding_side = "left"
        _limit_pixels(processor, *self.pixels)
        try:
            prefilled(processor)
        except Exception as error:  # a template is a program, which may raise anything
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"policy.path={self.path}: its chat template fails: {reason}") from error
        return processor

    @cached_property
    def model(self) -> PreTrainedModel:
        """Model on `device`, with adapters; frozen parts have no gradient."""
        source, revision = self._place
        _ = self.family  # one that is refused is not loaded
        arguments = {"dtype": self.dtype, "attn_implementation": self.attn_implementation, "revision": revision}
        model, report = self._load(
            AutoModelForImageTextToText,
            source,
            output_loading_info=True,
            **{name: value for name, value in arguments.items() if value is not None},
        )
        refuse_mismatch(
            f"policy.path={self.path}",
            missing=sorted(report["missing_keys"]),
            unexpected=sorted(report["unexpected_keys"]),
            misshaped=sorted(entry[0] for entry in report["mismatched_keys"]),
        )
        tokenizer = self.processor.tokenizer
        if tokenizer.convert_tokens_to_ids(self.processor.image_token) != model.config.image_token_id:
            raise UserError(f"policy.path={self.path}: its tokenizer and its model differ in the token of an image")
        images, vision = self.processor.image_processor, model.config.vision_config
        if isinstance(images, QWEN_IMAGES) and images.patch_size != vision.patch_size:
            sizes = f"patches of {images.patch_size} pixels, its model of {vision.patch_size}"
            raise UserError(f"policy.path={self.path}: its processor makes {sizes}: expected the model's own processor")
        neutralise_decoding(model, tokenizer)
        if self.freeze_vision:
            freeze_vision(model)
        if self._base is not None:
            model = adapters.attach(model, Path(self._source))
        elif self.lora_rank is not None:
            model = add_adapters(model, self.lora_rank, self.lora_alpha)
        detach_frozen_vision(model)
        return model.to(self.device)

    def _load(self, kind: Any, source: str, **arguments: Any) -> Any:
        """Call ``from_pretrained`` and raise its errors about a folder or a hub name as UserError."""
        try:
            return kind.from_pretrained(source, trust_remote_code=False, **arguments)
        except UserError:
            raise
        # Many readers are called with different exceptions, and all of them concern the checkpoint.
        except Exception as error:
            reason = " ".join((str(error) or type(error).__name__).split())[:300]
            whose = "" if source == self._source else f"the base model of its adapters, {source}: "
            raise UserError(f"policy.path={self.path}: {whose}{reason}") from error

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Compute the (height, width) to which the processor resizes an image of (height, width).

        Raises:
            UserError: If the processor refuses the image.
        """
        images = self.processor.image_processor
        if not isinstance(images, QWEN_IMAGES):
            raise UserError(
                f"policy.path={self.path}: its {type(images).__name__} may cut a photo into parts, whose pixels are "
                "not the photo's: expected coordinates of thousandths or shares"
            )
        limits = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
        try:
            return smart_resize(*size, factor=images.patch_size * images.merge_size, **limits)
        except ValueError as error:  # sides that differ 200 times
            raise UserError(f"policy.path={self.path}: its processor refuses {size[1]}x{size[0]} pixels") from error

    @cached_property
    def prefilled(self) -> str:
        """Text with which the chat template begins every answer; answers of this policy include it."""
        return prefilled(self.processor)

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
            answers += self._texts(tokens)
        return answers

    def sample(
        self, observations: Sequence[Observation], max_new_tokens: int = 128, temperature: float = 1.0
    ) -> Samples:
        """Sample one answer per observation in a single batch, with the log-probabilities of its tokens.

        Args:
            observations: Unbatched observations from the environments.
            max_new_tokens: Maximum length of an answer in tokens.
            temperature: Sampling temperature, above 0.
        """
        tokens, logits = self._generate(observations, max_new_tokens, temperature, with_logits=True)  # T of (B, V)
        steps = zip(tokens.unbind(1), logits, strict=True)
        columns = [(step.float() / temperature).log_softmax(-1).gather(1, chosen[:, None]) for chosen, step in steps]
        ends = torch.isin(tokens, torch.as_tensor(self.model.generation_config.eos_token_id, device=tokens.device))
        mask = ends.cumsum(1) - ends.long() == 0  # True until the first end token, inclusive
        texts = self._texts(tokens)
        rows = [row[shown].tolist() for row, shown in zip(tokens, mask, strict=True)]
        return Samples(texts, torch.cat(columns, dim=1), mask, rows)

    def log_probabilities(
        self, observations: Sequence[Observation], answers: Sequence[str | Sequence[int]], temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Compute the log-probabilities of answers with gradient, in one batch, for a loss of one's own.

        They equal those in the losses of our trainers at the same temperature. The model stays in its mode.

        Args:
            observations: Unbatched observations from the environments (B).
            answers: One per observation: a text, to which the end token is appended, or the ``tokens`` of `sample`,
                which are taken as they are. Only the latter are surely what was sampled: another sequence of tokens may
                have the same text, and a truncated answer has no end token.
            temperature: Divisor of the logits, above 0.

        Returns:
            float32 (B, T), the log-probabilities of the answers' tokens, normalised over the full vocabulary, 0 after
            the last one; bool (B, T), True at the tokens of an answer, including its end token.

        Raises:
            UserError: If the numbers of answers and observations differ, or an answer is empty or contains a token that
                stands for an image.

        Example:
            >>> found = policy.sample(observations)  # doctest: +SKIP
            >>> log_probabilities, mask = policy.log_probabilities(observations, found.tokens)  # doctest: +SKIP
            >>> loss = -(advantages[:, None] * log_probabilities).sum() / mask.sum()  # doctest: +SKIP
        """
        if len(answers) != len(observations):
            raise UserError(f"log_probabilities: {len(answers)} answers to {len(observations)} observations")
        rows = [self._answer_tokens(number, answer) for number, answer in enumerate(answers)]
        model, inputs = self.model, self._inputs(observations)
        answer_ids = pad_sequence(rows, batch_first=True).to(self.device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(answer_ids.shape[1], device=self.device) < lengths[:, None]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer_ids], dim=1)  # (B, L + T)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask.to(inputs["attention_mask"])], dim=1)
        if "mm_token_type_ids" in inputs:  # of Qwen's
            inputs["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, answer_ids.shape[1]))  # text has type 0
        logits = model(**inputs, logits_to_keep=answer_ids.shape[1] + 1, use_cache=False).logits[:, :-1]  # (B, T, V)
        chosen = (logits.float() / temperature).log_softmax(-1).gather(2, answer_ids[:, :, None])[:, :, 0]
        return chosen.masked_fill(~mask, 0.0), mask

    def _texts(self, tokens: Tensor) -> list[str]:
        """Decode the tokens (B, T) of answers."""
        return [self.prefilled + text for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def _answer_tokens(self, number: int, answer: str | Sequence[int]) -> Tensor:
        """Build the tokens of an answer; ``number`` is for errors."""
        tokenizer = self.processor.tokenizer
        if isinstance(answer, str):
            answer = answer.removeprefix(self.prefilled)
            answer = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if not len(answer):
            raise UserError(f"log_probabilities: answer {number} has no tokens: expected at least one")
        if set(answer) & set(vision_token_ids(self.model.config, tokenizer)):
            raise UserError(f"log_probabilities: answer {number} contains a token that stands for an image")
        return torch.tensor(answer)

    def _inputs(self, observations: Sequence[Observation]) -> BatchFeature:
        """Build the model's inputs for one batch of prompts, padded on the left, on `device`."""
        processor, prompts = self.processor, [self.prompt(observation) for observation in observations]
        texts = [
            processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            for messages, _ in prompts
        ]
        photos = [images for _, images in prompts]
        try:
            inputs = processor(text=texts, images=photos, padding=True, return_tensors="pt")
        except ValueError as error:  # Qwen's refuses photos that are 200 times as long as wide
            sizes = ", ".join(f"{image.width}x{image.height}" for images in photos for image in images)
            told = f"policy.path={self.path}: its processor refuses photos of {sizes} pixels: {error}"
            raise UserError(told) from error
        return inputs.to(self.device)

    def _generate(
        self,
        observations: Sequence[Observation],
        max_new_tokens: int,
        temperature: float,
        with_logits: bool = False,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Generate the tokens (B, T) of one batch of answers and, on request, T logits (B, vocabulary)."""
        model, inputs = self.model, self._inputs(observations)  # loading outside inference mode keeps weights trainable
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        suppressed = vision_token_ids(model.config, self.processor.tokenizer)
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
        """Write model, processor and manifest atomically to a folder that ``policy=mllm policy.path=…`` loads.

        Of a policy with adapters only these are written, with the path and the checksums of their base model.
        """
        with _folder(Path(path)) as folder:
            if self.lora_rank is None:
                self.model.save_pretrained(folder)
            else:
                model: PeftModel = self.model
                revision = getattr(model.config, "_commit_hash", None)
                adapters.save(model, folder, self._base or replace(self._described, revision=revision))
            self.processor.save_pretrained(folder)

    def merge(self, path: str | Path, dtype: str = "float32") -> None:
        """Write a model with the adapters merged into its weights; this policy can no longer be used.

        Args:
            path: The folder to write.
            dtype: Precision of the merged weights. The sums are computed in the precision of this policy, which should
                be float32; half precision then rounds small deltas away.

        Raises:
            UserError: If the policy has no adapters, the precision is unknown, or the folder exists.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.lora_rank is None:
            raise UserError(f"{self.path}: holds no adapters to merge: expected a folder with {adapters.CONFIG}")
        if Path(path).exists():
            raise UserError(f"{path}: exists: expected a new folder for the merged model")
        with _folder(Path(path)) as folder:
            vars(self)["model"] = self.model.merge_and_unload().to(DTYPES[dtype])
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def load(self, path: str | Path) -> None:
        """Load what `save` wrote, at next use.

        The base model of adapters may also be the policy's `path` until now, if it is the same model elsewhere.

        Raises:
            UserError: At next use, see the class.
        """
        self._former, self.path = self.path, str(path)
        for name in (
            "_source",
            "_base",
            "_place",
            "_described",
            "family",
            "fingerprint",
            "processor",
            "prefilled",
            "model",
        ):
            vars(self).pop(name, None)


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


class Qwen25VLPolicy(LanguagePolicy):
    """A Qwen2.5-VL, the model of Saliency-R1; other families are refused."""

    families: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)


class Qwen3VLPolicy(LanguagePolicy):
    """A Qwen3-VL, dense or a mixture of experts; other families are refused."""

    families: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")


qwen2_5_vl_3b = partial(Qwen25VLPolicy, "Qwen/Qwen2.5-VL-3B-Instruct")
qwen2_5_vl_7b = partial(Qwen25VLPolicy, "Qwen/Qwen2.5-VL-7B-Instruct")
tiny_policy = partial(Qwen25VLPolicy, TINY)  # 2 M parameters, after supervised fine-tuning on scenes
tiny_terse_policy = partial(Qwen25VLPolicy, TINY_TERSE)  # its language part after terse annotators
tiny_refer_policy = partial(Qwen25VLPolicy, TINY_REFER)  # the same size, after supervised fine-tuning on queries


def freeze_vision(model: PreTrainedModel) -> None:
    """Freeze all but the language part: the vision encoder, and what maps its outputs to tokens."""
    model.base_model.requires_grad_(False)
    model.get_decoder().requires_grad_(True)


def add_adapters(model: PreTrainedModel, rank: int, alpha: float) -> PeftModel:
    """Add new adapters to the linear layers of a model's language part; all other weights are frozen."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear_layers(model), task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


def linear_layers(model: PreTrainedModel) -> str:
    """Build PEFT's pattern of the linear layers of a model's language part, which adapters are added to.

    The pattern names the language part because the vision encoder may have layers of the same names.
    """
    language = model.get_decoder()
    place = next(name for name, module in model.named_modules() if module is language)
    leaves = {name.rpartition(".")[2] for name, module in language.named_modules() if isinstance(module, nn.Linear)}
    return rf".*{re.escape(place)}\..*\.({'|'.join(sorted(leaves))})"


def prefilled(processor: ProcessorMixin | PreTrainedTokenizerBase) -> str:
    """Find the text with which a chat template begins every answer: ``<think>`` and what follows it, or nothing.

    Models of reasoning often have such templates. What they generate lacks ``<think>``, so it would be malformed.
    """
    if not processor.chat_template:
        return ""
    content = [{"type": "text", "text": "x"}] if isinstance(processor, ProcessorMixin) else "x"
    messages = [{"role": "user", "content": content}]
    whole = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    _, tag, after = whole.rpartition("<think>")
    return tag + after if tag and not after.strip() else ""


def neutralise_decoding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop the decoding settings of a checkpoint, such as ``repetition_penalty``, ``min_p`` or ``num_beams``.

    They would change what is evaluated and sampled, while log-probabilities in training are those of the plain model.
    The tokens that begin, end and pad an answer stay. The tokenizer's end token always ends an answer, as in TRL.
    """
    own = model.generation_config
    ends = [own.eos_token_id] if isinstance(own.eos_token_id, int) else list(own.eos_token_id or ())
    if tokenizer.eos_token_id not in ends:
        ends = [tokenizer.eos_token_id, *ends]
    pads = tokenizer.pad_token_id if own.pad_token_id is None else own.pad_token_id
    model.generation_config = GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=ends, pad_token_id=pads)


def detach_frozen_vision(model: PreTrainedModel | PeftModel) -> None:
    """Let the vision encoder of a model run without autograd, if all its weights are frozen and it has one.

    With adapters and gradient checkpointing, TRL makes the outputs of embeddings require a gradient, those of image
    patches, too. Each update would then keep the encoder's activations, compute it twice and go back through it, for
    nothing.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoder = whole.get_encoder(modality="image")
    text_only = encoder is whole or encoder is whole.base_model
    if not text_only and not any(value.requires_grad for value in encoder.parameters()):
        encoder.forward = MethodType(torch.no_grad()(type(encoder).forward), encoder)


def _check_attention(name: str | None) -> None:
    """Raise a UserError if an implementation of attention is unknown, or its package is not installed."""
    if name is None:
        return
    if name not in ATTENTION:
        raise UserError(f"policy.attn_implementation={name}: expected one of {', '.join(ATTENTION)}, or null")
    package = ATTENTION[name]
    if package is not None and find_spec(package) is None:
        raise UserError(f"policy.attn_implementation={name}: its package {package} is not installed: expected sdpa")


def _limit_pixels(processor: ProcessorMixin, least: int | None, most: int | None) -> None:
    """Set the numbers of pixels between which a processor resizes images; None keeps its own.

    Raises:
        UserError: If the limits exclude each other, or an image of that size has no token.
    """
    if least is None and most is None:
        return
    images = processor.image_processor
    if not isinstance(images, QWEN_IMAGES):
        given = f"policy.min_pixels={least}, policy.max_pixels={most}"
        raise UserError(f"{given}: expected null: its {type(images).__name__} has no such limits")
    least = images.size["shortest_edge"] if least is None else least  # in spite of their names, these are pixels
    most = images.size["longest_edge"] if most is None else most
    token = (images.patch_size * images.merge_size) ** 2
    if not token <= most or not least <= most:
        raise UserError(
            f"policy.min_pixels={least}, policy.max_pixels={most}: expected min_pixels <= max_pixels, and "
            f"max_pixels of at least {token}, one token"
        )
    images.size = {"shortest_edge": least, "longest_edge": most}


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target``, which it replaces, with a manifest, once it is complete."""
    unfinished = Path(f"{target}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    manifest.write(unfinished)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)


def _either(families: Sequence[str]) -> str:
    return " or ".join(families) if families else "one of transformers' image-text-to-text models"


def _check_folder(folder: Path, name: str, families: Sequence[str]) -> None:
    """Raise a UserError that begins with ``name`` if files are missing, empty or damaged that loading would do without.

    Transformers takes the sizes of another model for those that ``config.json`` omits, and another tokenizer's special
    tokens for those that ``tokenizer_config.json`` omits.
    """
    with_adapters = adapters.are_in(folder)
    if not with_adapters and not (folder / "config.json").is_file():
        raise UserError(f"{name}: no config.json there; expected a Hugging Face model folder")
    manifest.check(folder)
    if not with_adapters:
        check_config(folder, families)
    if not _read_json(folder / "tokenizer_config.json").get("eos_token"):
        raise UserError(f"{folder / 'tokenizer_config.json'}: no eos_token: expected the settings of a tokenizer")


def check_config(folder: Path, families: Sequence[str]) -> None:
    """Raise a UserError if the config in a folder is of another family, or lacks sizes or vision."""
    config = _read_json(folder / "config.json")
    sizes, family = {**config, **(config.get("text_config") or {})}, config.get("model_type")
    known = family in families if families else family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not known or not config.get("vision_config") or not sizes.get("hidden_size"):
        expected = f"{_either(families)}, with vision_config and hidden_size"
        raise UserError(f"{folder / 'config.json'}: model_type={family}: expected {expected}")


def _read_json(file: Path) -> JsonObject:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds a {type(found).__name__}: expected a JSON object")
    return found
