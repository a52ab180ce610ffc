"""Chat client for a local model: any image-text-to-text model of transformers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from maskgym.aliases import JsonObject
from maskgym.chat.asker import Part, Refused, Reply
from maskgym.policies.text.mllm import neutralise_decoding, vision_token_ids
from maskgym.segmenters.hub import HubNetwork

if TYPE_CHECKING:
    from transformers import ProcessorMixin

MAX_TOKENS = 256  # default limit of an answer


class LanguageNetwork(HubNetwork):
    """Model with its processor; see `HubNetwork`."""

    architecture = "AutoModelForImageTextToText"
    model_types = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

    @cached_property
    def processor(self) -> ProcessorMixin:
        """Load the chat template, tokenizer and image processor."""
        from transformers import AutoProcessor

        return self._read(AutoProcessor)

    def _load(self) -> nn.Module:
        model = super()._load()
        neutralise_decoding(model, self.processor.tokenizer)
        return model


class LocalChat:
    """Ask a model of transformers; decoding is greedy, hence deterministic, unless a temperature is set.

    The model's own decoding settings, such as a repetition penalty, are dropped, as those of policies are.

    Args:
        model: Folder as ``save_pretrained`` writes it, or hub name.
        device: PyTorch device; None selects CUDA if available.
        max_tokens: Maximal length of an answer in tokens.
        temperature: Sampling temperature; 0 is greedy.

    Raises:
        UserError: See `HubNetwork`.
    """

    def __init__(
        self, model: str, device: str | None = None, max_tokens: int = MAX_TOKENS, temperature: float = 0.0
    ) -> None:
        self.network = LanguageNetwork(model, device)
        self.name, self.max_tokens, self.temperature = Path(model).name, max_tokens, temperature

    @cached_property
    def settings(self) -> JsonObject:
        """Name and fingerprint of the model, and the options."""
        options = {"max_tokens": self.max_tokens, "temperature": self.temperature, "decoding": "plain"}
        return {"model": self.name, "fingerprint": self.network.fingerprint, "settings": options}

    @torch.inference_mode()
    def ask(self, parts: Sequence[Part]) -> Reply:
        """Generate a reply; see `maskgym.chat.asker.ChatModel`.

        Raises:
            Refused: If the processor cannot take a picture of that shape.
        """
        processor, model = self.network.processor, self.network.network
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        pictures = (Image.open(io.BytesIO(part), formats=("PNG",)) for part in parts if isinstance(part, bytes))
        images = [picture.convert("RGB") for picture in pictures]
        try:
            inputs = processor(text=[text], images=[images], return_tensors="pt").to(self.network.device)
        except ValueError as error:  # Qwen's refuses pictures that are 200 times as long as wide
            sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
            raise Refused(f"the model's processor refuses pictures of {sizes} pixels: {error}") from error
        sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0} if self.temperature else {}
        suppressed = vision_token_ids(model.config, processor.tokenizer)
        tokens = model.generate(**inputs, max_new_tokens=self.max_tokens, suppress_tokens=suppressed, **sampling)
        read = inputs["input_ids"].shape[1]
        answer = processor.batch_decode(tokens[:, read:], skip_special_tokens=True)[0]
        return Reply(answer, self.name, read, tokens.shape[1] - read)
