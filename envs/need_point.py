"""User needs by clicks: point prompting in which the agent sees a need in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from maskgym import segmenters
from maskgym.aliases import Infos, Observations
from maskgym.data import Sample
from maskgym.envs.point import PointPromptEnv, PointPromptVectorEnv
from maskgym.errors import UserError
from maskgym.rewards import Click
from maskgym.segmenters.attention.need_features import NeedFeatures
from maskgym.segmenters.outputs import check_finite
from maskgym.segmenters.text import split_semantic

NEED = "need"  # text that stands for the need of each sample


class UserNeedPointVectorEnv(PointPromptVectorEnv):
    """Vector environment in which clicks prompt a frozen segmenter for the target of a need.

    Description:
        As in `maskgym.envs.point.PointPromptVectorEnv`, with a need in words. A frozen text encoder computes its
        feature, which is observed. The explicit branch can attend to the need.

    Observation Space:
        As in PointPrompt, and
        need: float32 (D,), the deepest feature of the need; 0 for an empty one.

    Action Space:
        As in PointPrompt.

    Reward:
        As in PointPrompt.

    Starting State:
        As in PointPrompt.

    Episode End:
        As in PointPrompt. Termination: never. Truncation: after ``horizon`` clicks.

    Info:
        As in PointPrompt, and ``need``, the words, at reset and at every step.

    Arguments:
        num_envs: Number of sub-environments.
        task: Task of a data set that is given by name: ``need`` or ``need_fine``.
        text: Text to attend to; ``"need"`` selects the need of each sample, ``"category"`` its category. An empty need
            attends to everything alike.
        encoder: Encoder of needs, a `maskgym.segmenters.TextEncoder`; or a name among
            `maskgym.segmenters.attention_names`, which selects its text encoder.
        need: Whether the need is shown. If not, its text is empty.
        settings: Other arguments of PointPrompt.

    Raises:
        UserError: If an argument is invalid.

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
        self.need = need
        self._features: dict[str, np.ndarray] = {}  # float32 (D,), by text
        super().__init__(num_envs, task=task, text=text, **settings)

    def _allocate(self, num_envs: int) -> None:
        shown = self.single_observation_space
        assert isinstance(shown, spaces.Dict)
        feature = spaces.Box(-np.inf, np.inf, (self.encoder.width,), np.float32)
        self.single_observation_space = spaces.Dict({**shown.spaces, "need": feature})
        super()._allocate(num_envs)
        self._needs = np.zeros((num_envs, self.encoder.width), np.float32)

    def _words(self, sample: Sample) -> str:
        return (sample.need or "") if self.need else ""

    def _start_info(self, i: int, sample: Sample) -> Infos:
        return super()._start_info(i, sample) | {"need": self._words(sample)}

    def _load_samples(self, rows: np.ndarray, indices: Sequence[int | None]) -> list[Sample]:
        samples = super()._load_samples(rows, indices)
        words = [self._words(sample) for sample in samples]
        new = [text for text in dict.fromkeys(words) if text not in self._features]
        if new:  # Each text is encoded once.
            encoded = self.encoder.encode(new)  # (new, levels, D)
            check_finite(encoded, (len(new), None, self.encoder.width), f"encoder {type(self.encoder).__name__}")
            self._features |= dict(zip(new, encoded[:, -1].detach().float().cpu().numpy(), strict=True))
        self._needs[rows] = [self._features[text] for text in words]
        return samples

    def _text_of(self, sample: Sample) -> str | None:
        if self.text != NEED:
            return super()._text_of(sample)
        words = self._words(sample)
        return words if split_semantic(words)[1] else None

    def _observe(self) -> Observations:
        self._observation = super()._observe() | {"need": self._needs.copy()}
        return dict(self._observation)

    def _step_info(self, i: int, click: Click) -> Infos:
        return super()._step_info(i, click) | {"need": self._words(self._shown(i))}


class UserNeedPointEnv(PointPromptEnv):
    """Scalar form of `UserNeedPointVectorEnv`, with its arguments, spaces and infos.

    Example:
        >>> env = gym.make("maskgym/UserNeedPoint-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> observation["need"].shape, info["need"]  # doctest: +SKIP
        ((128,), 'find a red star')
    """

    vector_class = UserNeedPointVectorEnv
