"""A writer behind any server that speaks as OpenAI's does: OpenAI itself, vLLM, llama.cpp, Ollama and their like."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from maskgym.errors import UserError
from maskgym.experiments.digging.project import Project, Settings
from maskgym.experiments.digging.writers import Answer, ModelWriter, Refused, Unreachable, data_url

BUSY = (408, 409, 425, 429)  # beside 500 and above: another try may help
CLOSED = (401, 403, 404, 405)  # no object will get an answer
KEY = "OPENAI_API_KEY"


class ServerWriter(ModelWriter):
    """Asks a server for chat completions, the picture as a data URL.

    The key comes from ``OPENAI_API_KEY`` and is written nowhere; a server of one's own may need none.

    Args:
        project, settings: See `ModelWriter`.

    Raises:
        UserError: If the client library is not installed, or the address cannot be used.
    """

    name = "server"

    def __init__(self, project: Project, settings: Settings) -> None:
        super().__init__(project, settings)
        try:
            import openai
        except ImportError as error:
            raise UserError("--writer server: pip install 'maskgym[dig]'") from error
        self._openai, self.model, self.jobs = openai, settings.model, settings.jobs
        given = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
        self._options = {name: value for name, value in given.items() if value is not None}
        key = os.environ.get(KEY) or "none"  # the library wants one, even where the server does not
        try:
            # It would retry by itself, without telling: how often is ours to decide and to count.
            self._client: Any = openai.OpenAI(
                base_url=settings.base_url, api_key=key, timeout=settings.timeout or None, max_retries=0
            )
        except Exception as error:  # of the library that it stands on, which differs between its versions
            raise UserError(f"--base-url {settings.base_url}: {error}") from error

    @property
    def settings(self) -> dict[str, Any]:
        """Return model, address and options."""
        return {"model": self.model, "base_url": str(self._client.base_url), "settings": self._options or None}

    def answer(self, prompt: str, picture: bytes) -> Answer:
        """Return the first choice of a chat completion; see `ModelWriter`."""
        content = [
            {"type": "text", "text": prompt},
            {"type": "image_url", "image_url": {"url": data_url(picture)}},
        ]
        openai = self._openai
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": content}], **self._options
            )
        except openai.APITimeoutError:
            raise Unreachable(f"no answer within {self._client.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise Unreachable(f"no connection: {error.__cause__ or error}") from None
        except openai.APIStatusError as error:
            status, reason = error.status_code, " ".join(str(error.message).split())[:200]
            if status in BUSY or status >= 500:
                raise Unreachable(f"status {status}: {reason}", _seconds(error.response.headers)) from None
            if status in CLOSED:
                raise UserError(f"{self._client.base_url}: status {status}: {reason} ({KEY}, --model?)") from None
            raise Refused(f"status {status}: {reason}") from None
        try:
            return read_completion(response.http_response.json())
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise Unreachable("an answer that is no chat completion") from None


def read_completion(found: Mapping[str, Any]) -> Answer:
    """Return the answer in a chat completion; a refusal or an empty message is an empty text.

    Raises:
        ValueError, KeyError, TypeError, IndexError: If it is none.
    """
    usage = found.get("usage") or {}
    return Answer(
        str(found["choices"][0]["message"].get("content") or ""),
        str(found.get("model", "")),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


def _seconds(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
