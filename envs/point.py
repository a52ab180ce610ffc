"""Point prompting: the agent clicks patch centres, and a frozen promptable segmenter turns the clicks into a mask.

AlignSAM's environment (Huang et al., CVPR 2024, Section 3.2 and Algorithm 1), written once, as a vector environment
that decodes the clicks of all sub-environments in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from PIL import Image
from torch.nn import functional as F

from maskgym import data, segmenters
from maskgym.data import Dataset, Sample
from maskgym.envs.base import SampleVectorEnv, ScalarEnv
from maskgym.envs.rendering import clicks_picture
from maskgym.errors import UserError
from maskgym.rewards import Click, Reward, Transition
from maskgym.segmenters.points.embeddings import EmbeddingCache
from maskgym.segmenters.points.promptable import PromptableSegmenter

LABELS = ("policy", "positive", "srm", "oracle")
INITIAL = ("auto", "truth", "srm", "none")
CATEGORY = "category"  # as text: what each sample's own category is called


@dataclass(frozen=True)
class PointState:
    """Where one episode stands: enough to go on from there, in this or any sub-environment.

    Attributes:
        index: Of the sample.
        points: float32 (k, 2), the prompts so far, (x, y) in pixels of the observed square.
        labels: int64 (k,), 1 foreground, 0 background.
        patches: The actions so far.
        logits: float32 (h, w), the last low-resolution logits; None before any prompt.
    """

    index: int
    points: np.ndarray
    labels: np.ndarray
    patches: tuple[int, ...]
    logits: torch.Tensor | None


class PointPromptVectorEnv(SampleVectorEnv):
    """Sub-environments in which clicks at patch centres prompt a frozen segmenter.

    Description:
        An episode shows one image, stretched to a square of ``image_size`` pixels and cut into patches of
        ``patch_size`` pixels. Each action clicks the centre of a patch; all clicks so far are decoded into a mask.

    Observation Space:
        ``Dict(state, mask)``, with a text ``Dict(state, mask, semantic)``, on the patch grid, g = image_size /
        patch_size. A 256 × 64 × 64 embedding would be 4 MiB a step; what a policy over g × g actions can use of it is
        its mean over each patch.
        state: float32 (C, g, g), embedding × previous mask (Eq. 4), averaged over each patch.
        mask: float32 (1, g, g) in [0, 1], the previous mask's probability, likewise. Before any prompt it is 1
        everywhere, so that the state is the embedding.
        semantic: float32 (C, g, g), embedding × attention to the text (Eq. 11), likewise.
        clicked: float32 (1, g, g), 1 where a patch was clicked before; with ``allow_repeated_clicks=False`` alone.

    Action Space:
        By ``label_source``: ``policy``: ``MultiDiscrete([g², 2])``, patch (row by row) and label (1 foreground);
        ``positive``: ``Discrete(g²)``, every click is foreground; ``srm``: ``Discrete(g²)``, ``recalibration`` labels
        it; ``oracle``: ``Discrete(g²)``, the truth does (training split only).

    Reward:
        That of ``reward``; the default is ``foreground_hit``, +1 for a click on the truth and -1 elsewhere (Section
        3.2). It pays again for a patch that was clicked before; ``info`` and evaluation show mask quality beside it.

    Starting State:
        A sample drawn uniformly, or the one that ``options={"index": i}`` names. With ``initial_prompts="truth"`` the
        prompts begin with one random point of the foreground and one of the background, as the paper trains (Algorithm 1,
        line 2); with ``"srm"`` with the patches that ``recalibration`` finds most and least probable, as the paper
        evaluates (Section 3.3); with ``"none"`` they are empty. ``"auto"`` takes the truth on the training split, and
        elsewhere ``"srm"`` where that labels clicks, else nothing.

    Episode End:
        Termination: never. Truncation: after ``horizon`` clicks (T).

    Info:
        reset: ``sample_key``, ``index``, ``iou``; on the training split also ``target`` and ``rationale``.
        step: ``sample_key``, ``index``, ``reward_terms`` (dict), ``iou``, ``point`` (float (2,), x and y in pixels of
        the sample's image), ``label``, ``repeated`` (the patch was clicked before), ``masks`` (a tuple of
        one bool (1, H, W)).

    Arguments:
        num_envs: Number of sub-environments.
        dataset: A name in `maskgym.data`, or a data set whose samples have one image.
        split: ``train`` (default), ``validation`` or ``test``; with a data set object, its own.
        task: Of a data set that is given by name.
        segmenter: A name in `maskgym.segmenters`, or a promptable segmenter.
        reward: A name in `maskgym.rewards`, or a reward.
        image_size: Side of the observed square in pixels (the paper: 800).
        patch_size: Side of a patch in pixels, a divisor of image_size (the paper: 80).
        horizon: Clicks an episode, T (the paper: 15).
        allow_repeated_clicks: Whether a patch may be clicked again, as in the paper. False shows what was
            clicked, and masks repeated clicks out of `action_masks`; a repeated click is still accepted.
        label_source: Who labels a click.
        initial_prompts: The first prompts.
        recalibration: Gives the probability that each patch is foreground, by ``probabilities(observations)``, as
            `maskgym.policies.clicks.recalibration.SemanticRecalibration` does.
        attention: A name among `maskgym.segmenters.attention_names`, or what attends; needed for a text.
        text: What to attend to; ``"category"`` takes each sample's own.
        cache_bytes: Memory for embeddings.
        cache_folder: Where embeddings are stored too, or None.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED.

    Raises:
        UserError: If an argument cannot be used.

    Version History:
        v0: first.

    References:
        Huang et al., AlignSAM, Eq. 1-4 and Algorithm 1.
    """

    action_kind = "clicks"
    takes = frozenset({"reward", "segmenter", "recalibration", "attention"})

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Dataset = "scenes",
        split: str | None = None,
        task: str = "sod",
        segmenter: str | PromptableSegmenter = "sam_tiny",
        reward: str | Reward = "foreground_hit",
        image_size: int = 128,
        patch_size: int = 16,
        horizon: int = 15,
        allow_repeated_clicks: bool = True,
        label_source: str = "policy",
        initial_prompts: str = "auto",
        recalibration: Any = None,
        attention: str | segmenters.AttentionSegmenter | None = None,
        text: str | None = None,
        cache_bytes: int = 2**30,
        cache_folder: str | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        shown = data.make(dataset, task=task, split=split or "train") if isinstance(dataset, str) else dataset
        if split not in (None, shown.split):
            raise UserError(f"split={split!r}: the data set given is of split '{shown.split}'")
        _check_arguments(image_size, patch_size, horizon, label_source, initial_prompts, shown.split)
        if not allow_repeated_clicks and horizon > (image_size // patch_size) ** 2:
            raise UserError(f"horizon={horizon}, allow_repeated_clicks=False: expected at most one click a patch")
        super().__init__(num_envs, shown, reward, render_mode, autoreset_mode)
        self.task, self.image_size, self.patch_size, self.horizon = shown.task, image_size, patch_size, horizon
        self.label_source, self.grid, self.allow_repeated_clicks = (
            label_source,
            image_size // patch_size,
            allow_repeated_clicks,
        )
        self.recalibration, self.text = recalibration, text
        at_test = "srm" if label_source == "srm" else "none"
        self.initial_prompts = (
            ("truth" if shown.split == "train" else at_test) if initial_prompts == "auto" else initial_prompts
        )
        if recalibration is None and "srm" in (label_source, self.initial_prompts):
            raise UserError(
                f"label_source={label_source}, initial_prompts={self.initial_prompts}: expected a recalibration module"
            )
        if (text is None) != (attention is None):
            raise UserError(
                f"text={text!r}, attention={attention}: expected both, as a segmenter of points reads no text"
            )
        self.attention = segmenters.make_attention(attention) if isinstance(attention, str) else attention
        self.segmenter = segmenters.make(segmenter) if isinstance(segmenter, str) else segmenter
        if not isinstance(self.segmenter, PromptableSegmenter):
            raise UserError(f"segmenter={segmenter}: takes no points: expected a promptable one, such as sam_tiny")
        self._embeddings_of = EmbeddingCache(self.segmenter, cache_bytes, cache_folder)
        shape = (self.segmenter.embedding_shape[0], self.grid, self.grid)
        maps: dict[str, spaces.Space] = {"state": spaces.Box(-np.inf, np.inf, shape, np.float32)}
        maps |= {} if text is None else {"semantic": maps["state"]}
        share = spaces.Box(0, 1, (1, *shape[1:]), np.float32)
        maps |= {"mask": share} if allow_repeated_clicks else {"mask": share, "clicked": share}
        self.single_observation_space = spaces.Dict(maps)
        patches = self.grid**2
        self.single_action_space = (
            spaces.MultiDiscrete([patches, 2]) if label_source == "policy" else spaces.Discrete(patches)
        )
        self._maps: dict[int, torch.Tensor] = {}  # attention by index of the sample
        self._allocate(num_envs)

    def _allocate(self, num_envs: int) -> None:
        """Make room for the episodes of so many sub-environments."""
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._indices, self._done = np.full(num_envs, -1), np.ones(num_envs, dtype=bool)
        longest = self.horizon + 2  # the first prompts come on top
        self._points = np.zeros((num_envs, longest, 2), np.float32)
        self._labels = np.full((num_envs, longest), -1)
        self._counts = np.zeros(num_envs, int)
        self._patches: list[tuple[int, ...]] = [()] * num_envs
        self._masks: list[np.ndarray] = [np.zeros((1, 0, 0), bool)] * num_envs
        self._truths: list[np.ndarray] = [np.zeros((0, 0), bool)] * num_envs  # bool (H, W), without void
        self._logits: list[torch.Tensor | None] = [None] * num_envs
        self._embeddings: torch.Tensor | None = None  # (num_envs, C, h, w), made at the first reset
        self._probabilities: torch.Tensor | None = None  # (num_envs, h, w), the last mask on the embedding's grid
        self._pooling: torch.Tensor | None = None  # (h·w, g²), weights of the mean over each patch
        self._attended: torch.Tensor | None = None  # (num_envs, h, w), attention to the text
        self._observation: dict[str, np.ndarray] = {}  # what the agent saw last

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start episodes, all or those of ``options["reset_mask"]`` (bool (num_envs,)).

        Raises:
            UserError: If an index is not one of the data set's, or the sample has several images.
        """
        rows, wanted = self._begin_reset(seed, options)
        infos: dict[str, Any] = {}
        for i, info in zip(rows, self._start(rows, wanted), strict=True):
            infos = self._add_info(infos, info, i)
        return self._observe(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Click one patch a sub-environment; see the class for what comes back.

        Raises:
            UserError: If an action names no patch.
        """
        live = self._live()
        resting = np.flatnonzero(self._done)  # NEXT_STEP: this step only starts the next episode
        values, truncated = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        infos: dict[str, Any] = {}
        if len(live):
            previous, clicks = [self._masks[i] for i in live], self._click(live, np.asarray(actions))
            self._decode(live)
            transitions = [
                Transition(self.task, self._shown(i), click, (self._masks[i],), previous_masks=(before,))
                for i, click, before in zip(live, clicks, previous, strict=True)
            ]
            values[live], terms = self.reward(transitions)
            infos = self._step_infos(live, clicks, terms)
            truncated[live] = [len(self._patches[i]) >= self.horizon for i in live]
            self._done |= truncated
        ended = np.flatnonzero(truncated) if self.autoreset_mode is AutoresetMode.SAME_STEP else resting
        if len(ended):
            infos = self._restart(ended, infos)
        return self._observe(), values, np.zeros(self.num_envs, bool), truncated, infos

    def unprompted(self) -> dict[str, np.ndarray]:
        """Return the observation before any prompt: what `recalibration` sees when it chooses the first ones."""
        assert self._embeddings is not None and self._probabilities is not None
        everywhere = np.ones((self.num_envs, 1, self.grid, self.grid), np.float32)
        return {
            **self._observation,
            "state": self._pool(self.segmenter.spatial(self._embeddings).float()),
            "mask": everywhere,
        }

    def get_state(self) -> list[PointState]:
        """Return where each sub-environment stands."""
        return [
            PointState(
                index=int(self._indices[i]),
                points=self._points[i, : self._counts[i]].copy(),
                labels=self._labels[i, : self._counts[i]].copy(),
                patches=self._patches[i],
                logits=self._logits[i],
            )
            for i in range(self.num_envs)
        ]

    def set_state(self, states: Sequence[PointState]) -> dict[str, np.ndarray]:
        """Put each sub-environment where a state says, and return the observation: branching costs no decoding.

        Raises:
            UserError: If there is not one state a sub-environment.
        """
        if len(states) != self.num_envs:
            raise UserError(f"{len(states)} states: expected {self.num_envs}, one a sub-environment")
        rows = np.arange(self.num_envs)
        if not self.generators:
            self._begin_reset(None, None)
        self._load_samples(rows, [state.index for state in states])
        for i, state in enumerate(states):
            self._set_prompts(i, state.points, state.labels)
            self._patches[i], self._logits[i] = state.patches, state.logits
            self._done[i] = len(state.patches) >= self.horizon
        self._use_logits(rows)
        return self._observe()

    def branch(self, num_envs: int) -> PointPromptVectorEnv:
        """Return so many sub-environments of the same parts, to put into states and try clicks in.

        They share the segmenter and what it has encoded; they do not restart by themselves.
        """
        other = copy(self)
        other.autoreset_mode = AutoresetMode.DISABLED
        other.metadata = {**self.metadata, "autoreset_mode": other.autoreset_mode}
        other.generators = []
        other._allocate(num_envs)
        return other

    def masks_and_targets(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the mask and the truth of each sub-environment, bool (H, W), without void: for an oracle."""
        return [(self._scored_mask(i), self._truths[i]) for i in range(self.num_envs)]

    def actions(self, patches: Sequence[int], labels: Sequence[int]) -> list[int | tuple[int, int]]:
        """Convert clicks to actions: pairs where the policy labels its clicks, else patches."""
        return list(zip(patches, labels, strict=True)) if self.label_source == "policy" else list(patches)

    def action_masks(self) -> np.ndarray:
        """Return bool (num_envs, g²), or (num_envs, g² + 2) with labels: the actions that may be taken.

        With ``allow_repeated_clicks=False`` those are the patches that were not clicked; else all.
        """
        labels = 2 if self.label_source == "policy" else 0
        allowed = np.ones((self.num_envs, self.grid**2 + labels), bool)
        if not self.allow_repeated_clicks:
            for row, patches in zip(allowed, self._patches, strict=True):
                row[list(patches)] = False
        return allowed

    def centres(self) -> np.ndarray:
        """Return float32 (g², 2): the (x, y) of each action's click, in pixels of the observed square (Eq. 3)."""
        middle = (np.arange(self.grid, dtype=np.float32) + 0.5) * self.patch_size
        return np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)

    def _start(self, rows: np.ndarray, wanted: Sequence[int | None]) -> list[dict[str, Any]]:
        """Begin episodes of some sub-environments, with one encoding and one decoding for all; return their infos."""
        self._load_samples(rows, [wanted[i] for i in rows])
        for i in rows:
            self._patches[i], self._logits[i] = (), None
            self._set_prompts(i, np.zeros((0, 2)), np.zeros(0, int))
        self._use_logits(rows)
        if self.initial_prompts == "truth":
            for i in rows:
                self._set_prompts(i, *self._truthful_prompts(i))
        elif self.initial_prompts == "srm":
            probable = self._recalibrate(self._observe())[rows].reshape(len(rows), -1)
            for i, ends in zip(rows, np.stack([probable.argmax(axis=1), probable.argmin(axis=1)], axis=1), strict=True):
                self._set_prompts(i, self.centres()[ends], np.array([1, 0]))
        if self.initial_prompts != "none":
            self._decode(rows)
        return [{**self._start_info(i, self._shown(i)), "iou": self._iou(i)} for i in rows]

    def _load_samples(self, rows: np.ndarray, indices: Sequence[int | None]) -> None:
        samples = [self._draw(i, index) for i, index in zip(rows, indices, strict=True)]
        for sample in samples:
            if len(sample.images) != 1:
                raise UserError(f"sample '{sample.key}': has {len(sample.images)} images: expected one to click in")
        found = self._embeddings_of([stretch(sample.images[0], self.image_size) for sample in samples])
        if self._embeddings is None:
            self._embeddings = found.new_zeros(self.num_envs, *found.shape[1:])
            self._probabilities = found.new_ones(self.num_envs, *found.shape[2:], dtype=torch.float32)
            self._pooling = pooling_weights(found.shape[2:], self.grid).to(found.device)
        self._embeddings[torch.as_tensor(rows)] = found
        for i, sample in zip(rows, samples, strict=True):
            self._truths[i] = sample.union() if sample.void is None else sample.union() & ~sample.void[0]
        if self.text is not None:
            self._attend(rows, samples)

    def _attend(self, rows: np.ndarray, samples: Sequence[Sample]) -> None:
        """Find where the samples show the text; each is looked at once."""
        assert self._embeddings is not None
        new = {int(self._indices[i]): sample for i, sample in zip(rows, samples, strict=True)}
        new = {index: sample for index, sample in new.items() if index not in self._maps}
        if new:
            images = [stretch(sample.images[0], self.image_size) for sample in new.values()]
            texts = [sample.category if self.text == CATEGORY else self.text for sample in new.values()]
            for sample, text in zip(new.values(), texts, strict=True):
                if text is None:
                    raise UserError(f"text={CATEGORY}: sample '{sample.key}' has no category")
            size = tuple(self._embeddings.shape[2:])
            maps = torch.from_numpy(self.attention.attend(images, texts, size)).to(self._embeddings.device)
            self._maps |= dict(zip(new, maps, strict=True))
        if self._attended is None:
            self._attended = torch.ones_like(self._probabilities)
        for i in rows:
            self._attended[i] = self._maps[int(self._indices[i])]

    def _shown(self, i: int) -> Sample:
        return self._sample(int(self._indices[i]))

    def _recalibrate(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """Return the probability (num_envs, g, g) that each patch is foreground."""
        tensors = {name: torch.from_numpy(value) for name, value in observation.items()}
        return self.recalibration.probabilities(tensors).numpy()

    def _truthful_prompts(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a random point of the foreground and one of the background, (k, 2), and their labels (k,)."""
        truth, points, labels = self._shown(i).union(), [], []
        for label, where in ((1, truth), (0, ~truth)):
            cells = np.flatnonzero(where)
            if len(cells):  # a truth that covers nothing, or everything, has one of them only
                y, x = divmod(int(self.generators[i].choice(cells)), truth.shape[1])
                points.append((np.array([x, y]) + 0.5) / truth.shape[::-1] * self.image_size)
                labels.append(label)
        return np.array(points), np.array(labels)

    def _set_prompts(self, i: int, points: np.ndarray, labels: np.ndarray) -> None:
        count = len(labels)
        self._counts[i], self._labels[i] = count, -1
        self._points[i, :count], self._labels[i, :count] = points, labels

    def _click(self, live: np.ndarray, actions: np.ndarray) -> list[Click]:
        """Add the click of each live sub-environment to its prompts."""
        clicks, centres = [], self.centres()
        probable = self._recalibrate(self._observation) if self.label_source == "srm" else None
        for i in live:
            patch, label = (int(v) for v in actions[i]) if self.label_source == "policy" else (int(actions[i]), 1)
            if not 0 <= patch < self.grid**2 or label not in (0, 1):
                raise UserError(
                    f"action {actions[i]}: expected a patch from 0 to {self.grid**2 - 1} and a label 0 or 1"
                )
            x, y = centres[patch] / self.image_size * self._truths[i].shape[::-1]
            if self.label_source == "oracle":
                label = int(self._truths[i][int(y), int(x)])
            elif probable is not None:
                label = int(probable[i].flat[patch] > 0.5)
            clicks.append(Click(float(x), float(y), label, patch in self._patches[i]))
            self._points[i, self._counts[i]], self._labels[i, self._counts[i]] = centres[patch], label
            self._counts[i] += 1
            self._patches[i] = (*self._patches[i], patch)
        return clicks

    def _decode(self, rows: np.ndarray) -> None:
        """Turn the prompts of some sub-environments into masks."""
        assert self._embeddings is not None
        most = self._counts[rows].max()
        # All of them are taken as they are: no copy of megabytes a step.
        embeddings = self._embeddings if len(rows) == self.num_envs else self._embeddings[torch.as_tensor(rows)]
        logits = self.segmenter.decode(
            embeddings, self._points[rows, :most], self._labels[rows, :most], self.image_size
        )
        for i, row in zip(rows, logits, strict=True):
            self._logits[i] = row
        self._use_masks(rows, logits)

    def _use_logits(self, rows: np.ndarray) -> None:
        """Set what follows from the last logits of some sub-environments; before any prompt there are none."""
        assert self._probabilities is not None
        prompted = [i for i in rows if self._logits[i] is not None]
        for i in set(rows) - set(prompted):
            self._probabilities[i] = 1
            self._masks[i] = np.zeros((1, *self._size(i)), bool)
        if prompted:
            self._use_masks(np.array(prompted), torch.stack([self._logits[i] for i in prompted]))

    def _use_masks(self, rows: np.ndarray, logits: torch.Tensor) -> None:
        """Set the masks, and the probabilities on the embedding's grid, of some sub-environments."""
        assert self._probabilities is not None
        for i, soft in zip(rows, self.segmenter.resize(logits, [self._size(i) for i in rows]), strict=True):
            self._masks[i] = (soft > 0)[None]
        shape = self._probabilities.shape[1:]
        self._probabilities[torch.as_tensor(rows)] = F.adaptive_avg_pool2d(logits.sigmoid(), shape)

    def _size(self, i: int) -> tuple[int, int]:
        """Return (height, width) of the image that a sub-environment shows."""
        height, width = self._truths[i].shape
        return height, width

    def _observe(self) -> dict[str, np.ndarray]:
        assert self._embeddings is not None and self._probabilities is not None
        maps = {"state": self._probabilities} | ({} if self._attended is None else {"semantic": self._attended})
        seen = self.segmenter.spatial(self._embeddings).float()
        observation = {name: self._pool(seen * value[:, None]) for name, value in maps.items()}
        observation |= {"mask": self._pool(self._probabilities[:, None]).clip(0, 1)}
        if not self.allow_repeated_clicks:
            clicked = np.zeros((self.num_envs, self.grid**2), np.float32)
            for row, patches in zip(clicked, self._patches, strict=True):
                row[list(patches)] = 1
            observation["clicked"] = clicked.reshape(-1, 1, self.grid, self.grid)
        self._observation = observation
        return dict(observation)

    def _pool(self, maps: torch.Tensor) -> np.ndarray:
        """Return the mean over each patch, (B, C, g, g), of maps (B, C, h, w)."""
        pooled = maps.flatten(2) @ self._pooling  # PyTorch's own pooling takes three times as long
        return pooled.unflatten(2, (self.grid, self.grid)).cpu().numpy()

    def _iou(self, i: int) -> float:
        # As `metrics.iou`, whose checks of every input cost more here than the counting.
        mask, truth = self._scored_mask(i), self._truths[i]
        both = np.count_nonzero(mask & truth)
        either = np.count_nonzero(mask) + np.count_nonzero(truth) - both
        return both / either if either else 0.0

    def _scored_mask(self, i: int) -> np.ndarray:
        void = self._shown(i).void
        return self._masks[i][0] if void is None else self._masks[i][0] & ~void[0]

    def _step_infos(self, live: np.ndarray, clicks: Sequence[Click], terms: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the infos of a step, a column at a time: adding them one by one costs more than a small decoding."""
        here = np.zeros(self.num_envs, bool)
        here[live] = True

        def column(values: Iterable[Any], dtype: Any = object) -> np.ndarray:
            filled = np.zeros(self.num_envs, dtype) if dtype is not object else np.full(self.num_envs, None)
            for i, value in zip(live, values, strict=True):
                filled[i] = value
            return filled

        points = np.zeros((self.num_envs, 2))
        points[live] = [(click.x, click.y) for click in clicks]
        columns: dict[str, Any] = {
            "sample_key": column([self._shown(i).key for i in live]),
            "index": column(self._indices[live], int),
            "iou": column([self._iou(i) for i in live], float),
            "point": points,
            "label": column([click.label for click in clicks], int),
            "repeated": column([click.repeated for click in clicks], bool),
            "masks": column([(self._masks[i],) for i in live]),
            "reward_terms": {name: column(values, float) for name, values in terms.items()}
            | {f"_{name}": here for name in terms},
        }
        return columns | {f"_{name}": here for name in columns}

    def _restart(self, ended: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        """Start the next episode where one is over; what the last one ended with goes to ``final_…`` in SAME_STEP."""
        finals: dict[int, dict[str, Any]] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            observations = self._observe()
            for i in ended:
                finals[i] = {
                    "final_obs": {name: value[i] for name, value in observations.items()},
                    "final_info": _row(infos, i),
                }
            for name in [name for name in infos if not name.startswith("_")]:
                infos[f"_{name}"] = infos[f"_{name}"].copy()
                infos[f"_{name}"][ended] = False
        started = self._start(ended, [None] * self.num_envs)
        for i, info in zip(ended, started, strict=True):
            infos = self._add_info(infos, finals[i] | info if finals else info, i)
        return infos

    def _frame(self, i: int) -> np.ndarray:
        sample, count = self._shown(i), self._counts[i]
        height, width = sample.images[0].shape[:2]
        points = self._points[i, :count] / self.image_size * (width, height)
        return clicks_picture(sample, {"clicks": (self._masks[i], points, self._labels[i, :count])})


class PointPromptEnv(ScalarEnv):
    """One episode at a time: `PointPromptVectorEnv` of one, whose arguments, spaces and infos it has.

    Example:
        >>> env = gym.make("maskgym/PointPrompt-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> env.step((27, 1))[1]  # doctest: +SKIP
        1.0
    """

    vector_class: ClassVar[type[PointPromptVectorEnv]] = PointPromptVectorEnv
    vector: PointPromptVectorEnv

    def get_state(self) -> PointState:
        """Return where the episode stands."""
        return self.vector.get_state()[0]

    def set_state(self, state: PointState) -> dict[str, np.ndarray]:
        """Go on from a state; return the observation."""
        return {name: value[0] for name, value in self.vector.set_state([state]).items()}


def pooling_weights(size: Sequence[int], grid: int) -> torch.Tensor:
    """Return float32 (h·w, grid²): how much each cell of a map (h, w) counts in the mean over each patch.

    Example:
        >>> pooling_weights((4, 4), 2).sum(dim=0)
        tensor([1., 1., 1., 1.])
    """
    cells = size[0] * size[1]
    each = torch.eye(cells).reshape(1, cells, *size)
    return F.adaptive_avg_pool2d(each, grid)[0].flatten(1)


def stretch(image: np.ndarray, side: int) -> np.ndarray:
    """Return uint8 (side, side, 3): the image stretched to the square, so that every patch is image."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _row(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """Return the info of one sub-environment."""
    return {
        name: _row(value, i) if isinstance(value, dict) else value[i]
        for name, value in infos.items()
        if not name.startswith("_") and infos[f"_{name}"][i]
    }


def _check_arguments(
    image_size: int, patch_size: int, horizon: int, label_source: str, initial_prompts: str, split: str
) -> None:
    if patch_size < 1 or image_size < 1 or image_size % patch_size:
        raise UserError(f"patch_size={patch_size}: expected a divisor of image_size={image_size}")
    if horizon < 1:
        raise UserError(f"horizon={horizon}: expected at least 1")
    for name, value, allowed in (("label_source", label_source, LABELS), ("initial_prompts", initial_prompts, INITIAL)):
        if value not in allowed:
            raise UserError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
    if split != "train" and "oracle" == label_source:
        raise UserError(f"label_source=oracle: the truth labels clicks on the training split only, and this is {split}")
    if split != "train" and initial_prompts == "truth":
        raise UserError(f"initial_prompts=truth: the truth prompts on the training split only, and this is {split}")
