"""A chat model behind a server as an agent without training, as in Saliency-R1, Table 3."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from gymnasium.vector import VectorEnv

from maskgym.agents.base import FrozenAgent, Policy
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.aliases import Observation, Settings
from maskgym.chat.asker import Asker, Part, Refused, Unreachable, to_png
from maskgym.chat.server import ChatServer
from maskgym.errors import UserError


class ServedAgent(FrozenAgent):
    """Ask a server with the OpenAI API; nothing is learned.

    A question consists of the images and the environment's instruction, as a policy on this machine gets them. A model
    that was not trained on the instruction needs the exact form of an answer too: an environment with ``hint=True``. A
    refused question gets an empty answer, which is scored as malformed.

    Args:
        policy: Unused; present because all agents share one constructor.
        env: Unused.
        seed: Seed of the cached replies: unless the temperature is 0, each seed asks anew.
        output: Folder of the run's checkpoints; its folder ``answers`` caches replies.
        model: The server's name for the model.
        base_url: See `maskgym.chat.server.ChatServer`.
        key_variable: See `maskgym.chat.server.ChatServer`.
        timeout: See `maskgym.chat.server.ChatServer`.
        temperature: Sampling temperature; None means the server's default.
        max_tokens: Maximum length of an answer in tokens; None means the server's default.
        concurrency: Number of simultaneous questions.
        retries: See `maskgym.chat.asker.Asker`.
        pause: See `maskgym.chat.asker.Asker`.
        cache: Folder of replies that several runs share; None means the run's own.
        options: Further fields of the request: ``reasoning_effort``, ``max_completion_tokens``, …. A server such as
            vLLM applies the checkpoint's own decoding settings, which policies of ours drop: ``repetition_penalty: 1``
            and the like set them back.

    Raises:
        UserError: If no model is named, a number is out of range, or the server cannot be used.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod", "refer")

    def __init__(
        self,
        policy: Policy | None = None,
        env: VectorEnv | None = None,
        seed: int = 0,
        *,
        output: str | Path,
        model: str | None = None,
        base_url: str | None = None,
        key_variable: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = 2048,
        concurrency: int = 8,
        retries: int = 4,
        pause: float = 1.0,
        timeout: float = 120.0,
        cache: str | Path | None = None,
        options: Settings | None = None,
    ) -> None:
        if model is None:
            raise UserError("algo.model is not set: expected the server's name for a multimodal model")
        check_at_least(1, concurrency=concurrency)
        check_at_least(0, retries=retries, pause=pause, timeout=timeout)
        request = {"temperature": temperature, "max_tokens": max_tokens, **(options or {})}
        chat = ChatServer(model, base_url, key_variable, timeout, request)
        self.concurrency = concurrency
        self._number = 0 if temperature == 0 else seed
        self._asker = Asker(chat, Path(output) / "answers" if cache is None else cache, retries, pause)
        self._answered = False
        self._fault: Exception = Unreachable("nothing was asked")

    def act(self, observations: Sequence[Observation], greedy: bool = True) -> list[str]:
        """Ask for one answer per observation; the settings fix the temperature, so ``greedy`` has no effect.

        Raises:
            UserError: If no answer arrives, the server cannot be used, or it has refused every question so far.
        """
        self._asker.stopping.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                found = list(pool.map(self._answer, observations))
            except (Unreachable, UserError):
                pool.shutdown(wait=False, cancel_futures=True)
                raise self._user_error(self._fault) from None
            except BaseException:
                self._asker.stopping.set()  # Pending replies are still cached, but no further question starts.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        refused = [answer for answer in found if isinstance(answer, Refused)]
        self._answered = self._answered or len(refused) < len(found)
        if refused:
            told = f"{len(refused)} of {len(found)} questions were refused ({refused[0]})"
            if not self._answered:  # The request itself is wrong, not one image.
                raise UserError(f"{self._asker.chat.settings['base_url']}: {told}: see algo.options, algo.max_tokens")
            print(f"{told}: they count as malformed answers")
        return ["" if isinstance(answer, Refused) else answer for answer in found]

    def _answer(self, observation: Observation) -> str | Refused:
        try:
            return self._asker.ask(question(observation), self._number).text
        except Refused as refusal:
            return refusal
        except (Unreachable, UserError) as error:
            if not self._asker.stopping.is_set():  # Stopping itself causes further errors.
                self._fault = error
                self._asker.stopping.set()  # The pool's next task would otherwise ask before `act` knows.
            raise

    def _user_error(self, fault: Exception) -> UserError:
        """Build the error line of a fault that ends the run."""
        if isinstance(fault, UserError):
            return fault
        tries, kept = self._asker.retries + 1, self._asker.folder
        return UserError(
            f"{self._asker.chat.settings['base_url']}: no answer after {tries} tries ({fault}): "
            f"finished answers are in {kept}: algo.cache={kept} continues from there"
        )


def question(observation: Observation) -> list[Part]:
    """Build a question as `maskgym.policies.text.mllm.LanguagePolicy` does: the images, then the instruction.

    Args:
        observation: Unbatched observation from an environment of text.
    """
    images = observation["images"] if "images" in observation else [observation["image"]]
    return [*map(to_png, images), observation["instruction"]]
