"""Base class of environments whose agent answers once, in text, and whose masks a frozen segmenter makes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from maskgym.aliases import Infos
from maskgym.data import Sample
from maskgym.envs.base import Outcome, RowwiseVectorEnv
from maskgym.errors import UserError, brief
from maskgym.rewards import Answer, Transition

LINES = 10  # lines of an answer in a picture
MAX_TEXT = 65536  # characters of an action; longer ones are outside the space, but are still scored


class TextVectorEnv(RowwiseVectorEnv):
    """Vector environment of one step per episode: the answers of all sub-environments are segmented together.

    A subclass sets `task` and `reasoning`, and implements `parser`, `rebuild`, `true_answers`, `_segment`,
    `_observe_row` and `_frame`.

    Attributes:
        task: Task of its transitions.
        reasoning: Whether answers begin with reasoning.
    """

    action_kind = "text"
    takes = frozenset({"reward", "segmenter"})
    task: str
    reasoning: bool

    @property
    @abstractmethod
    def parser(self) -> Callable[[str], Answer]:
        """Parser of its answers, which can be pickled."""

    @abstractmethod
    def rebuild(self, sample: Sample, text: str, info: Mapping) -> Transition:
        """Build the transition of an answer again from the info of its step."""

    @abstractmethod
    def true_answers(self) -> list[str]:
        """Write the ground truth of each current episode as an answer, for an oracle.

        Raises:
            UserError: If the data does not have what an answer needs, such as phrases.
        """

    @abstractmethod
    def _segment(self, texts: Sequence[str], samples: Sequence[Sample]) -> list[Transition]:
        """Turn one answer per sample into masks, with one call of the segmenter."""

    def _read(self, i: int, action: str) -> str:
        if not isinstance(action, str):
            raise UserError(f"{brief(action)}: expected a text")
        return str(action)

    def _respond(self, live: np.ndarray, actions: Sequence[str]) -> list[Outcome]:
        transitions = self._segment(actions, [self._shown(i) for i in live])
        for i, transition in zip(live, transitions, strict=True):
            self._last[i] = transition
        return [Outcome(last, True, False, self._step_info(i, last)) for i, last in zip(live, transitions, strict=True)]

    def _step_info(self, i: int, transition: Transition) -> Infos:
        assert transition.answer is not None
        return {
            "sample_key": transition.sample.key,
            "index": int(self._indices[i]),
            "expressions": transition.answer.expressions,
            "masks": transition.masks,
        }
