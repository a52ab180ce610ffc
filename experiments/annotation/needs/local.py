"""A writer on this machine: any model of transformers that turns an image and a text into text."""

from __future__ import annotations

from typing import Any

from maskgym.chat.asker import Reply
from maskgym.chat.local import MAX_TOKENS, LocalChat
from maskgym.experiments.annotation.needs.project import Project, Settings
from maskgym.experiments.annotation.needs.writers import ModelWriter


class LocalWriter(ModelWriter):
    """Asks a `LocalChat`.

    Args:
        project: See `ModelWriter`.
        settings: See `ModelWriter`; ``model`` is a folder as ``save_pretrained`` writes it, or a hub name.

    Raises:
        UserError: See `LocalChat`.
    """

    name = "local"

    def __init__(self, project: Project, settings: Settings) -> None:
        super().__init__(project, settings)
        assert settings.model is not None
        given = (settings.max_tokens or MAX_TOKENS, settings.temperature or 0.0)
        self._chat = LocalChat(settings.model, settings.device, *given)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the model's name and fingerprint, and the options."""
        return self._chat.settings

    def answer(self, prompt: str, picture: bytes) -> Reply:
        """Generate the answer; see `ModelWriter`."""
        return self._chat.ask([picture, prompt])
