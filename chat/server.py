"""Chat client for OpenAI-compatible servers: OpenAI, vLLM, llama.cpp, Ollama and others."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from maskgym.aliases import JsonObject, Settings
from maskgym.chat.asker import Part, Refused, Reply, Unreachable, data_url
from maskgym.errors import UserError

BUSY = (408, 409, 425, 429)  # besides 500 and above: a retry may succeed
CLOSED = (401, 403, 404, 405)  # no question can be answered
KEY, ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"
OURS = ("model", "messages", "stream", "n")  # set by this client, so not accepted as options


class ChatServer:
    """Request chat completions from a server, with pictures as data URLs and without retries.

    The key is read from the environment, sent to that server only, and never written.

    Args:
        model: Name of the model on the server.
        base_url: Its address, such as ``http://localhost:8000/v1``; None uses ``OPENAI_BASE_URL``, else OpenAI.
        key_variable: Environment variable that holds the key; None uses ``OPENAI_API_KEY`` if set, because a private
            server may need no key.
        timeout: Maximal seconds per answer; 0 for no limit.
        options: Request options: ``max_tokens``, ``temperature``, ``reasoning_effort``, …; the value None leaves the
            option to the server.

    Raises:
        UserError: If the client library is not installed, the key is missing, or an argument is invalid.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        key_variable: str | None = None,
        timeout: float = 60.0,
        options: Settings | None = None,
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
            # The library would retry silently, even after an interruption; `Asker` decides on retries and counts them.
            self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout or None, max_retries=0)
        except Exception as error:  # the HTTP library's errors differ between versions
            raise UserError(f"server {base_url}: {error}") from error

    @property
    def settings(self) -> JsonObject:
        """Model, address and options."""
        return {"model": self.model, "base_url": str(self._client.base_url), "settings": self._options or None}

    def ask(self, parts: Sequence[Part]) -> Reply:
        """Request a chat completion and return its first choice; see `maskgym.chat.asker.ChatModel`."""
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
        # A faulty server may send lists for objects, huge numbers or deep nesting.
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
            raise Unreachable("an answer that is no chat completion") from None


def read_completion(found: JsonObject) -> Reply:
    """Read the reply from a chat completion; a refusal or an empty message gives an empty text.

    Raises:
        ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError: If it is not a chat completion.
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
    """Read the key; ``none`` for a private server without a key, because the library requires one."""
    if variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UserError("the key's variable: expected the name of an environment variable, not the key itself")
    key = os.environ.get(variable or KEY, "").strip()
    if not key and (variable is not None or address is None):
        raise UserError(f"{variable or KEY} is not set: expected the server's key in this environment variable")
    if not key.isascii() or not key.isprintable() or " " in key:  # the library's own error would print the key
        raise UserError(f"{variable or KEY}: holds signs that no key has")
    return key or "none"


def _seconds(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if seconds >= 0 else None
