"""A writer on this machine: any model of transformers that turns an image and a text into text."""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from maskgym.experiments.digging.project import Project, Settings
from maskgym.experiments.digging.writers import Answer, ModelWriter
from maskgym.policies.mllm import vision_token_ids
from maskgym.segmenters.hub import HubNetwork

MAX_TOKENS = 256  # of an answer, unless told otherwise


class LanguageNetwork(HubNetwork):
    """The model with its processor; see `HubNetwork`."""

    architecture = "AutoModelForImageTextToText"
    model_types = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

    @cached_property
    def processor(self) -> Any:
        """Return chat template, tokenizer and image processor."""
        from transformers import AutoProcessor

        return self._read(AutoProcessor)


class LocalWriter(ModelWriter):
    """Asks a model of transformers; greedy unless a temperature is set, so that the same question has one answer.

    Args:
        project, settings: See `ModelWriter`; ``model`` is a folder as ``save_pretrained`` writes it, or a hub name.

    Raises:
        UserError: See `HubNetwork`.
    """

    name = "local"

    def __init__(self, project: Project, settings: Settings) -> None:
        super().__init__(project, settings)
        assert settings.model is not None
        self.network = LanguageNetwork(settings.model, settings.device)
        self.model = settings.model
        self.max_tokens, self.temperature = settings.max_tokens or MAX_TOKENS, settings.temperature or 0.0

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the model's name and fingerprint, and the options."""
        options = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {"model": Path(self.model).name, "fingerprint": self.network.fingerprint, "settings": options}

    @torch.inference_mode()
    def answer(self, prompt: str, picture: bytes) -> Answer:
        """Return what the model generates; see `ModelWriter`."""
        processor, model = self.network.processor, self.network.network
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        inputs = processor(text=[text], images=[image], return_tensors="pt").to(self.network.device)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        suppressed = vision_token_ids(model.config, processor.tokenizer)
        tokens = model.generate(**inputs, max_new_tokens=self.max_tokens, suppress_tokens=suppressed, **sampling)
        read = inputs["input_ids"].shape[1]
        answer = processor.batch_decode(tokens[:, read:], skip_special_tokens=True)[0]
        return Answer(answer, Path(self.model).name, read, tokens.shape[1] - read)
