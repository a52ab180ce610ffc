"""A chat model behind any server that speaks as OpenAI's does: OpenAI itself, vLLM, llama.cpp, Ollama and the like."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from maskgym.chat.asker import Part, Refused, Reply, Unreachable, data_url
from maskgym.errors import UserError

BUSY = (408, 409, 425, 429)  # beside 500 and above: another try may help
CLOSED = (401, 403, 404, 405)  # no question will get an answer
KEY, ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"
OURS = ("model", "messages", "stream", "n")  # no options: the question itself, and the form of the reply


class ChatServer:
    """Asks a server for chat completions, pictures as data URLs; it does not ask again by itself.

    The key is read from the environment, sent to that server, and written nowhere.

    Args:
        model: The server's name for the model.
        base_url: Its address, ``http://localhost:8000/v1``; None leaves it to ``OPENAI_BASE_URL``, or OpenAI.
        key_variable: Environment variable that holds the key; None takes ``OPENAI_API_KEY`` where that is set: a
            server of one's own may need none.
        timeout: Seconds that an answer may take; 0 for as long as it wants.
        options: Of the request, beside the question: ``max_tokens``, ``temperature``, ``reasoning_effort``, …; None
            as a value leaves that to the server.

    Raises:
        UserError: If the client library is not installed, the key is missing, or an argument cannot be used.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_variable: str | None = None,
        timeout: float = 60.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError("a model behind a server: pip install 'maskgym[dig]'") from error
        self._openai, self.model, self._key_variable = openai, model, key_variable or KEY
        self._options = {name: value for name, value in (options or {}).items() if value is not None}
        for name in OURS:
            if name in self._options:
                raise UserError(f"option {name} of the request: is set by the question itself")
        address = base_url or os.environ.get(ADDRESS)
        if address and not re.match(r"https?://[^/\s]", address):
            raise UserError(f"server {address}: expected an address such as http://localhost:8000/v1")
        key = _find_key(key_variable, address)
        try:
            # It would retry by itself, without telling: how often is ours to decide and to count.
            self._client: Any = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout or None, max_retries=0)
        except Exception as error:  # of the library that it stands on, which differs between its versions
            raise UserError(f"server {base_url}: {error}") from error

    @property
    def settings(self) -> dict[str, Any]:
        """Return model, address and options."""
        return {"model": self.model, "base_url": str(self._client.base_url), "settings": self._options or None}

    def ask(self, parts: Sequence[Part]) -> Reply:
        """Return the first choice of a chat completion; see `maskgym.chat.asker.ChatModel`."""
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_url(part)}}
            for part in parts
        ]
        openai = self._openai
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": content}], extra_body=self._options
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
                hint = f"is the key in {self._key_variable}, is the model {self.model}?"
                raise UserError(f"{self._client.base_url}: status {status}: {reason} ({hint})") from None
            raise Refused(f"status {status}: {reason}") from None
        try:
            return read_completion(response.http_response.json())
        # Whatever a server may send in place of one: lists for objects, numbers without end, nesting without end.
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
            raise Unreachable("an answer that is no chat completion") from None


def read_completion(found: Any) -> Reply:
    """Return the reply in a chat completion; a refusal or an empty message is an empty text.

    Raises:
        ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError: If it is none.
    """
    usage = found.get("usage") or {}
    content = found["choices"][0]["message"].get("content") or ""
    if isinstance(content, list):  # some servers reply in parts
        content = "".join(str(part.get("text") or "") for part in content)
    return Reply(
        str(content),
        str(found.get("model", "")),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


def _find_key(variable: str | None, address: str | None) -> str:
    """Return the key; ``none`` where a server of one's own is asked without one, as the library wants one."""
    if variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UserError("the key's variable: expected the name of an environment variable, not the key itself")
    key = os.environ.get(variable or KEY, "").strip()
    if not key and (variable is not None or address is None):
        raise UserError(f"{variable or KEY} is not set: expected the server's key in this environment variable")
    if not key.isascii() or not key.isprintable() or " " in key:  # the library's own error would show it
        raise UserError(f"{variable or KEY}: holds signs that no key has")
    return key or "none"


def _seconds(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if seconds >= 0 else None
