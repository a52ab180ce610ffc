"""User needs by clicks: point prompting in which the agent is told what a user looks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from maskgym import segmenters
from maskgym.data import Sample
from maskgym.envs.point import CATEGORY, PointPromptEnv, PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.rewards import Click
from maskgym.segmenters.attention.need_features import NeedFeatures
from maskgym.segmenters.text import split_semantic

NEED = "need"  # as text: what each sample's user looks for


class UserNeedPointVectorEnv(PointPromptVectorEnv):
    """Sub-environments in which clicks prompt a frozen segmenter for what a need means.

    Description:
        As `maskgym.envs.point.PointPromptVectorEnv`, with a need in words: its feature, by a frozen text encoder, is
        observed, and it can be the text that the explicit branch attends to.

    Observation Space:
        As of PointPrompt, and
        need: float32 (D,), the deepest feature that the encoder gives the need; 0 for an empty one.

    Action Space:
        As of PointPrompt.

    Reward:
        As of PointPrompt.

    Starting State:
        As of PointPrompt.

    Episode End:
        As of PointPrompt. Termination: never. Truncation: after ``horizon`` clicks.

    Info:
        As of PointPrompt, and ``need``, the words, at reset and at every step.

    Arguments:
        num_envs: Number of sub-environments.
        task: Of a data set that is given by name: ``need`` or ``need_fine``.
        text: What to attend to; ``"need"`` takes each sample's own need, ``"category"`` its category. An empty need
            attends to everything alike.
        encoder: What encodes needs: ``encode(needs)`` returns a float tensor (B, levels, D), ``width`` is D, as of
            `maskgym.policies.needs.need_encoder.NeedEncoder`; or a name among
            `maskgym.segmenters.attention_names`, whose text encoder it is.
        need: Whether the need is shown. If not, its text is empty.
        settings: The other arguments of PointPrompt.

    Raises:
        UserError: If an argument cannot be used.

    Version History:
        v0: first.

    References:
        Huang et al., AlignSAM, Eq. 1-4 and 11; UserSOD, Section 3.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: str = "need",
        text: str | None = None,
        encoder: str | segmenters.TextEncoder = "clip_tiny",
        need: bool = True,
        **settings: Any,
    ) -> None:
        self.encoder = NeedFeatures(segmenters.make_attention(encoder)) if isinstance(encoder, str) else encoder
        if not isinstance(self.encoder, segmenters.TextEncoder):
            raise UserError(f"encoder={encoder}: encodes no needs: expected encode and width, or a name as clip_tiny")
        self.need, self._by_need = need, text == NEED
        self._needs = np.zeros((0, 0), np.float32)  # (num_envs, D)
        self._features: dict[str, np.ndarray] = {}  # by text: each is encoded once
        super().__init__(num_envs, task=task, text=CATEGORY if self._by_need else text, **settings)
        shown: Any = self.single_observation_space
        feature = spaces.Box(-np.inf, np.inf, (self.encoder.width,), np.float32)
        self.single_observation_space = spaces.Dict({**shown.spaces, "need": feature})
        self._allocate(num_envs)

    def _allocate(self, num_envs: int) -> None:
        super()._allocate(num_envs)
        self._needs = np.zeros((num_envs, self.encoder.width), np.float32)

    def _words(self, sample: Sample) -> str:
        return (sample.need or "") if self.need else ""

    def _start(self, rows: np.ndarray, wanted: Sequence[int | None]) -> list[dict[str, Any]]:
        infos = super()._start(rows, wanted)
        return [info | {"need": self._words(self._shown(i))} for i, info in zip(rows, infos, strict=True)]

    def _load_samples(self, rows: np.ndarray, indices: Sequence[int | None]) -> None:
        super()._load_samples(rows, indices)
        words = [self._words(self._shown(i)) for i in rows]
        new = [text for text in dict.fromkeys(words) if text not in self._features]
        if new:
            encoded = self.encoder.encode(new).detach().float().cpu().numpy()  # (new, levels, D)
            self._features |= dict(zip(new, encoded[:, -1], strict=True))
        self._needs[rows] = [self._features[text] for text in words]

    def _attend(self, rows: np.ndarray, samples: Sequence[Sample]) -> None:
        if not self._by_need:
            return super()._attend(rows, samples)
        assert self._probabilities is not None
        for i, sample in zip(rows, samples, strict=True):
            if not split_semantic(self._words(sample))[1]:
                self._maps[int(self._indices[i])] = self._probabilities.new_ones(self._probabilities.shape[1:])
        # The parent attends to categories: here each sample's is what its user looks for.
        return super()._attend(rows, [replace(sample, category=self._words(sample)) for sample in samples])

    def _observe(self) -> dict[str, np.ndarray]:
        self._observation = super()._observe() | {"need": self._needs.copy()}
        return dict(self._observation)

    def _step_infos(self, live: np.ndarray, clicks: Sequence[Click], terms: dict[str, np.ndarray]) -> dict[str, Any]:
        infos = super()._step_infos(live, clicks, terms)
        words = np.full(self.num_envs, None)
        words[live] = [self._words(self._shown(i)) for i in live]
        return infos | {"need": words, "_need": infos["_index"]}


class UserNeedPointEnv(PointPromptEnv):
    """One episode at a time: `UserNeedPointVectorEnv` of one, whose arguments, spaces and infos it has.

    Example:
        >>> env = gym.make("maskgym/UserNeedPoint-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> observation["need"].shape, info["need"]  # doctest: +SKIP
        ((128,), 'find a red star')
    """

    vector_class = UserNeedPointVectorEnv
