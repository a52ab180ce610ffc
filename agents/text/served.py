"""A model behind a server as an agent: it is asked without training, as the rows of Saliency-R1's Table 3 are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from gymnasium.vector import VectorEnv

from maskgym.agents.base import FrozenAgent
from maskgym.agents.common.checkpoints import check_at_least
from maskgym.chat.asker import Asker, Part, Refused, Unreachable, to_png
from maskgym.chat.server import ChatServer
from maskgym.errors import UserError
from maskgym.rewards import format_answer, without_reasoning

# What stands for descriptions in the form that a model is shown, and how they are to be put.
DESCRIPTIONS = {
    "sod": ("first description", "second description"),
    "sis": ("first description", "second description"),
    "cosod": ("[semantic] category",),
}
RULES = {
    "sod": "one <rg> </rg> for each salient region; no brackets in it, but for [semantic] before a bare category name",
    "sis": "one <ins> </ins> for each salient instance; no brackets in it",
    "cosod": "exactly one <rg> </rg>, with the name of the category after [semantic]; no other brackets in it",
}
# A model that has never seen the instructions does not know how literally tags are read.
FORM = """

Write your answer in exactly this form, in your own words, every tag as it stands here and no Markdown:
{form}
Inside <answer> </answer> there is nothing but {rule}. Each description is used by itself to find what it means."""


class ServedAgent(FrozenAgent):
    """Ask any server that speaks as OpenAI's does for the answer to the instruction and the images; never learns.

    What is asked is the environment's instruction and, as a model that was not trained on it needs, the exact form of
    an answer. A question that the server refuses is answered with an empty text, which is scored as malformed.

    Args:
        policy: Unused; taken so that every agent is made alike.
        env: Unused likewise: text has one space.
        seed: Where the temperature is not 0, another seed is answered anew.
        output: Folder of the run's checkpoints; replies are kept in ``answers`` there.
        model: The server's name for the model.
        base_url: See `maskgym.chat.server.ChatServer`.
        key_variable: See `maskgym.chat.server.ChatServer`.
        timeout: See `maskgym.chat.server.ChatServer`.
        temperature: Of sampling; None leaves it to the server.
        max_tokens: Longest answer; None leaves it to the server.
        concurrency: Questions on their way at a time.
        retries: See `maskgym.chat.asker.Asker`.
        pause: See `maskgym.chat.asker.Asker`.
        cache: Folder of replies that several runs share; None for the run's own.
        options: More of the request, as it is: ``reasoning_effort``, ``max_completion_tokens``, ….

    Raises:
        UserError: If no model is named, a number is out of range, or the server cannot be asked.
    """

    tasks: ClassVar[tuple[str, ...]] = ("sod", "sis", "cosod")

    def __init__(
        self,
        policy: Any = None,
        env: VectorEnv | None = None,
        seed: int = 0,
        output: str | Path = "checkpoints",
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
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if model is None:
            raise UserError("algo.model is not set: expected the server's name for a multimodal model")
        check_at_least(1, concurrency=concurrency)
        for name, value in (("retries", retries), ("pause", pause), ("timeout", timeout)):
            if not value >= 0:
                raise UserError(f"algo.{name}={value}: expected at least 0")
        request = {"temperature": temperature, "max_tokens": max_tokens, **(options or {})}
        chat = ChatServer(model, base_url, key_variable, timeout, request)
        self.concurrency = concurrency
        self._number = 0 if temperature == 0 else seed
        self._asker = Asker(chat, Path(output) / "answers" if cache is None else cache, retries, pause)
        self._answered = False
        self._fault: Exception = Unreachable("nothing was asked")

    def act(self, observations: Sequence[Mapping[str, Any]], greedy: bool = True) -> list[str]:
        """Return one answer an observation, at the temperature of the settings, greedy or not.

        Raises:
            UserError: If the server gives no answer, will give none, or has refused all it was asked so far.
        """
        self._asker.stopping.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                found = list(pool.map(self._answer, observations))
            except (Unreachable, UserError):
                pool.shutdown(wait=False, cancel_futures=True)
                raise self._told(self._fault) from None
            except BaseException:
                self._asker.stopping.set()  # what is on its way comes in and is kept; nothing more is asked
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        refused = [answer for answer in found if isinstance(answer, Refused)]
        self._answered = self._answered or len(refused) < len(found)
        if refused:
            told = f"{len(refused)} of {len(found)} questions were refused ({refused[0]})"
            if not self._answered:  # the request is at fault, not one picture
                raise UserError(f"{self._asker.chat.settings['base_url']}: {told}: see algo.options, algo.max_tokens")
            print(f"{told}: they count as malformed answers")
        return ["" if isinstance(answer, Refused) else answer for answer in found]

    def _answer(self, observation: Mapping[str, Any]) -> str | Refused:
        try:
            return self._asker.ask(question(observation), self._number).text
        except Refused as refusal:
            return refusal
        except (Unreachable, UserError) as error:
            if not self._asker.stopping.is_set():  # else it may be for that reason only
                self._fault = error
                self._asker.stopping.set()  # here, before another question is begun
            raise

    def _told(self, fault: Exception) -> UserError:
        """Return what the user is told of a fault that ended it."""
        if isinstance(fault, UserError):
            return fault
        tries, kept = self._asker.retries + 1, self._asker.folder
        return UserError(
            f"{self._asker.chat.settings['base_url']}: no answer after {tries} tries ({fault}): "
            f"what was answered is in {kept}: algo.cache={kept} goes on from there"
        )


def question(observation: Mapping[str, Any]) -> list[Part]:
    """Return what a model is asked: the images, those of a group by number, and the instruction with the form.

    Args:
        observation: As the environments of text give it, unbatched.
    """
    if "images" in observation:
        shown: list[Part] = []
        for number, image in enumerate(observation["images"], start=1):
            shown += [f"Image {number}:", to_png(image)]
        task = "cosod"
    else:
        shown = [to_png(observation["image"])]
        task = "sis" if "<ins>" in observation["instruction"] else "sod"
    return [*shown, observation["instruction"] + form(task, "<think>" in observation["instruction"])]


def form(task: str, reasoning: bool = True) -> str:
    """Return what a model is told of the form of an answer, to stand after what it is asked."""
    example = format_answer("your reasoning", DESCRIPTIONS[task], task)
    return FORM.format(form=example if reasoning else without_reasoning(example), rule=RULES[task])
