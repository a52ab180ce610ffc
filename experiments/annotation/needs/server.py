"""A writer behind any server that speaks as OpenAI's does."""

from __future__ import annotations

from typing import Any

from maskgym.chat.asker import Reply
from maskgym.chat.server import ChatServer
from maskgym.experiments.annotation.needs.project import Project, Settings
from maskgym.experiments.annotation.needs.writers import ModelWriter


class ServerWriter(ModelWriter):
    """Asks a `ChatServer`; the key comes from ``OPENAI_API_KEY``.

    Args:
        project: See `ModelWriter`.
        settings: See `ModelWriter`.

    Raises:
        UserError: See `ChatServer`.
    """

    name = "server"

    def __init__(self, project: Project, settings: Settings) -> None:
        super().__init__(project, settings)
        assert settings.model is not None
        options = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
        self.jobs = settings.jobs
        self._chat = ChatServer(settings.model, settings.base_url, timeout=settings.timeout, options=options)

    @property
    def settings(self) -> dict[str, Any]:
        """Return model, address and options."""
        return self._chat.settings

    def answer(self, prompt: str, picture: bytes) -> Reply:
        """Return the server's reply; see `ModelWriter`."""
        return self._chat.ask([prompt, picture])
