"""Point prompting: the agent clicks patch centres, and a frozen promptable segmenter turns the clicks into a mask.

The environment of AlignSAM (Huang et al., CVPR 2024, Section 3.2 and Algorithm 1). A step decodes the clicks of all
sub-environments in one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from typing import ClassVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from maskgym import files, segmenters
from maskgym.aliases import Infos, Observations
from maskgym.data import Dataset, Sample
from maskgym.envs.base import Outcome, SampleVectorEnv, ScalarEnv, limited, make_dataset
from maskgym.envs.checks import check_sample
from maskgym.envs.clicks.attention_maps import MAP_BYTES, AttentionMaps
from maskgym.envs.clicks.episodes import EpisodeBatch, PointState
from maskgym.envs.clicks.patches import patch_centres, random_prompts, stretch
from maskgym.envs.clicks.settings import ClickSettings
from maskgym.envs.rendering import clicks_picture
from maskgym.errors import UserError
from maskgym.rewards import AnyReward, Click, Transition
from maskgym.segmenters.frozen import pixels_key
from maskgym.segmenters.outputs import check_finite, check_probabilities
from maskgym.segmenters.points.promptable import PADDING, PromptableSegmenter

CATEGORY = "category"  # text that stands for the category of each sample


class PointPromptVectorEnv(SampleVectorEnv):
    """Vector environment in which clicks at patch centres prompt a frozen segmenter.

    Description:
        An episode shows one image, stretched to a square of ``image_size`` pixels and cut into patches of
        ``patch_size`` pixels. Each action clicks the centre of a patch; all clicks so far are decoded into a mask.

    Observation Space:
        ``Dict(state, mask)``, with a text ``Dict(state, mask, semantic)``, on the patch grid, g = image_size /
        patch_size. The embedding of 256 × 64 × 64 would take 4 MiB per step, so each patch has the mean over its cells.
        state: float32 (C, g, g), embedding × previous mask (Eq. 4).
        mask: float32 (1, g, g) in [0, 1], the probability of the previous mask. Before any prompt it is 1 everywhere,
        so that the state is the embedding.
        semantic: float32 (C, g, g), embedding × attention to the text (Eq. 11).
        clicked: float32 (1, g, g), 1 where a patch was clicked before; not with ``allow_repeated_clicks=True``.

    Action Space:
        By ``label_source``: ``policy``: ``MultiDiscrete([g², 2])``, patch (row by row) and label (1 foreground);
        ``positive``: ``Discrete(g²)``, every click is foreground; ``srm``: ``Discrete(g²)``, ``recalibration`` labels
        the click; ``oracle``: ``Discrete(g²)``, the ground truth labels it (training split only). Then a click on void,
        which is neither foreground nor background, has the label -1 and is no prompt, but counts as a click.

    Reward:
        Value of ``reward``; the default is ``foreground_hit``, +1 for a click on the ground truth, 0 on void and -1
        elsewhere (Section 3.2). It pays again for a patch that was clicked before, so ``info`` has the IoU of the mask
        too.

    Starting State:
        A sample drawn uniformly, or the sample of ``options={"index": i}``. The first prompts depend on
        ``initial_prompts``. ``"truth"``: a random point of the foreground and one of the background, as the paper
        trains (Algorithm 1, line 2). ``"srm"``: the most and the least probable patch of ``recalibration``, as the
        paper evaluates (Section 3.3). ``"none"``: no prompts. ``"auto"``: if ``srm`` labels clicks, ``"truth"`` on
        the training split and ``"srm"`` elsewhere; else ``"none"``, so that training and tests begin alike.

    Episode End:
        Termination: never. Truncation: after ``horizon`` clicks (T).

    Info:
        reset: ``sample_key``, ``index``, ``iou``; on the training split also ``target`` and ``rationale``.
        step: ``sample_key``, ``index``, ``reward_terms`` (dict), ``iou``, ``point`` (float (2,), x and y in pixels of
        the sample's image), ``label``, ``repeated`` (the patch was clicked before), ``masks`` (a tuple of
        one bool (1, H, W)).

    Arguments:
        num_envs: Number of sub-environments.
        dataset: Name in `maskgym.data`, or a data set whose samples have one image.
        split: ``train`` (default), ``validation`` or ``test``; a data set object has its own.
        task: Task of a data set that is given by name.
        segmenter: Name in `maskgym.segmenters`, or a promptable segmenter.
        reward: Name in `maskgym.rewards`, a reward, a term, or a function of one transition.
        image_size: Side of the observed square in pixels (the paper: 800).
        patch_size: Side of a patch in pixels, a divisor of image_size (the paper: 80).
        horizon: Clicks per episode, T (the paper: 15).
        allow_repeated_clicks: True is the published form: nothing speaks against clicking a patch again, and one safe
            patch maximises the reward. False, the default of runs too, observes ``clicked`` and excludes those patches
            from `action_masks`. Repeated clicks are still accepted.
        label_source: Source of the labels of clicks. `maskgym run` uses ``srm``, whose module its agents train.
        initial_prompts: Source of the first prompts.
        recalibration: Module whose ``probabilities(observations)`` are those of each patch being foreground, such as
            `maskgym.policies.clicks.recalibration.SemanticRecalibration`.
        attention: Name among `maskgym.segmenters.attention_names`, or an attention segmenter; required for a text.
        text: Text to attend to; ``"category"`` selects the category of each sample.
        attention_cache_bytes: Bound in main memory for attention maps, bytes; 0 for none.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED.
        max_episode_steps: Limit that Gymnasium passes: the smaller of it and ``horizon`` holds.

    Raises:
        UserError: If an argument is invalid.

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
        reward: AnyReward = "foreground_hit",
        image_size: int = 128,
        patch_size: int = 16,
        horizon: int = 15,
        allow_repeated_clicks: bool = False,
        label_source: str = "policy",
        initial_prompts: str = "auto",
        recalibration: torch.nn.Module | None = None,
        attention: str | segmenters.AttentionSegmenter | None = None,
        text: str | None = None,
        attention_cache_bytes: int = MAP_BYTES,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        shown, horizon = make_dataset(dataset, task, split), limited(horizon, max_episode_steps)
        super().__init__(num_envs, shown, reward, render_mode, autoreset_mode)
        self._clicks = clicks = ClickSettings(
            shown.split, image_size, patch_size, horizon, allow_repeated_clicks, label_source, initial_prompts
        )
        self.task, self.image_size, self.patch_size, self.horizon = shown.task, image_size, patch_size, horizon
        self.grid, self.allow_repeated_clicks, self.label_source = clicks.grid, allow_repeated_clicks, label_source
        self.initial_prompts, self.recalibration, self.text = clicks.first_prompts, recalibration, text
        if recalibration is None and "srm" in (label_source, self.initial_prompts):
            raise UserError(
                f"label_source={label_source}, initial_prompts={self.initial_prompts}: expected a recalibration module"
            )
        if (text is None) != (attention is None):
            raise UserError(f"text={text!r}, attention={attention}: expected both or neither")
        attends = segmenters.make_attention(attention) if isinstance(attention, str) else attention
        self._attention_maps = None if attends is None else AttentionMaps(attends, attention_cache_bytes)
        made = segmenters.make(segmenter) if isinstance(segmenter, str) else segmenter
        if not isinstance(made, PromptableSegmenter):
            raise UserError(f"segmenter={segmenter}: takes no points: expected a promptable one, such as sam_tiny")
        self.attention, self.segmenter = attends, made
        self._segmenter_name = f"segmenter {type(made).__name__}"
        self.single_observation_space = clicks.observation_space(made.embedding_shape[0], text is not None)
        self.single_action_space = clicks.action_space()
        self._allocate(num_envs)

    def _allocate(self, num_envs: int) -> None:
        super()._allocate(num_envs)
        self._episodes = EpisodeBatch(num_envs, self.horizon + 2, self.grid)  # At most two prompts are no clicks.
        self._observation: Observations = {}  # the last one
        self._branched_from: EpisodeBatch | None = None

    def unprompted(self) -> Observations:
        """Compute the observation before any prompt, from which ``recalibration`` selects the first ones."""
        everywhere = np.ones((self.num_envs, 1, self.grid, self.grid), np.float32)
        state = self._episodes.pool(self.segmenter.spatial(self._episodes.embeddings).float())
        return {**self._observation, "state": state, "mask": everywhere}

    def get_state(self) -> list[PointState]:
        """Copy the state of each sub-environment."""
        return [self._episodes.state(i, int(index)) for i, index in enumerate(self._indices)]

    def set_state(self, states: Sequence[PointState]) -> Observations:
        """Continue from one state per sub-environment, without decoding; return the observation.

        Raises:
            UserError: If the number of states differs from ``num_envs``.
        """
        if len(states) != self.num_envs:
            raise UserError(f"{len(states)} states: expected {self.num_envs}, one per sub-environment")
        if not self.generators:
            self._begin_reset(None, None)
        self._load_samples(np.arange(self.num_envs), [state.index for state in states])
        for i, state in enumerate(states):
            self._episodes.set_prompts(i, state.points, state.labels)
            self._episodes.patches[i] = state.patches
            self._done[i] = len(state.patches) >= self.horizon
        prompted = {i: state.logits for i, state in enumerate(states) if state.logits is not None}
        if prompted:
            self._set_masks(np.array(list(prompted)), torch.stack(list(prompted.values())))
        return self._observe()

    def branch(self, num_envs: int) -> PointPromptVectorEnv:
        """Make an environment with the same components, to set states and try clicks in.

        It shares the segmenter and takes over the embeddings that are shown here, and has autoreset disabled.
        """
        other = copy(self)
        other.autoreset_mode = AutoresetMode.DISABLED
        other.metadata = {**self.metadata, "autoreset_mode": other.autoreset_mode}
        other.generators = []
        other._allocate(num_envs)
        other._branched_from = self._episodes
        return other

    def masks_and_targets(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return mask and ground truth of each sub-environment without void, bool (H, W), for an oracle."""
        return [(self._episodes.scored_mask(i), self._episodes.targets[i]) for i in range(self.num_envs)]

    def void(self) -> list[np.ndarray | None]:
        """Return the pixels of each sub-environment's image that are not scored, bool (H, W), or None."""
        return list(self._episodes.void)

    def actions(self, patches: Sequence[int], labels: Sequence[int]) -> list[int | tuple[int, int]]:
        """Convert clicks to actions: pairs if the policy labels its clicks, else patches."""
        return list(zip(patches, labels, strict=True)) if self.label_source == "policy" else list(patches)

    def action_masks(self) -> np.ndarray:
        """Mark the allowed actions, bool (num_envs, g²), or (num_envs, g² + 2) if the policy labels its clicks.

        With ``allow_repeated_clicks=False``, patches that were clicked are not allowed.
        """
        labels = 2 if self.label_source == "policy" else 0
        allowed = np.ones((self.num_envs, self.grid**2 + labels), bool)
        if not self.allow_repeated_clicks:
            allowed[:, : self.grid**2] = ~self._episodes.clicked()
        return allowed

    def centres(self) -> np.ndarray:
        """Compute the point of each patch's click, float32 (g², 2), (x, y) in pixels of the observed square (Eq. 3)."""
        return patch_centres(self.grid, self.patch_size)

    def _start(self, rows: np.ndarray, indices: Sequence[int | None]) -> dict[int, Infos]:
        """Begin episodes, with one encoding and one decoding for all; return their infos by sub-environment."""
        samples = dict(zip(rows, self._load_samples(rows, indices), strict=True))
        if self.initial_prompts == "truth":
            for i, sample in samples.items():
                target, void = self._episodes.targets[i], self._episodes.void[i]
                if void is not None and void.all():
                    raise UserError(f"sample '{sample.key}': is all void: expected a pixel to prompt at")
                self._episodes.set_prompts(i, *random_prompts(target, self.image_size, self.generators[i], void))
        elif self.initial_prompts == "srm":
            probable = self._recalibrate(self._observe())
            for i in rows:
                ends = [probable[i].argmax(), probable[i].argmin()]
                self._episodes.set_prompts(i, self.centres()[ends], np.array([1, 0]))
        if self.initial_prompts != "none":
            self._decode(rows)
        return {i: {**self._start_info(i, sample), "iou": self._episodes.iou(i)} for i, sample in samples.items()}

    def _load_samples(self, rows: np.ndarray, indices: Sequence[int | None]) -> list[Sample]:
        """Draw the samples of sub-environments and load their embeddings and attention."""
        samples = [self._draw(i, index) for i, index in zip(rows, indices, strict=True)]
        for sample in samples:
            if len(sample.images) != 1:
                raise UserError(f"sample '{sample.key}': has {len(sample.images)} images: expected one to click in")
        images = [stretch(sample.images[0], self.image_size) for sample in samples]
        shown = self._indices[rows].tolist()
        self._episodes.load(rows, samples, self._embed(shown, images), shown)
        if self._attention_maps is not None:
            texts, size = [self._text_of(sample) for sample in samples], self._episodes.attention.shape[1:]
            maps = self._attention_maps(shown, images, texts, size)
            self._episodes.attention[torch.as_tensor(rows)] = maps.to(self._episodes.attention.device)
        return samples

    def _embed(self, indices: Sequence[int], images: Sequence[np.ndarray]) -> torch.Tensor:
        """Compute or look up the embeddings (n, C', h, w) of samples; those that are shown already are copied."""
        shown = {} if self._branched_from is None else self._branched_from.shown()
        found = {**shown, **self._episodes.shown()}
        new = dict.fromkeys(index for index in indices if index not in found)
        if new:
            pictures = dict(zip(indices, images, strict=True))
            fresh = self.segmenter.embeddings([pictures[index] for index in new])
            check_finite(fresh, (len(new), None, None, None), f"{self._segmenter_name}.encode")
            if len(new) == len(indices):
                return fresh
            found |= dict(zip(new, fresh, strict=True))
        return torch.stack([found[index] for index in indices])

    def encode_ahead(self) -> Iterator[int]:
        """Encode the images of all samples into the folder of the segmenter's cache, until it is full.

        Images are read in another thread meanwhile. An empty file, named by the number of the images, the first one and
        the last one, marks that all are there, so that a further run need not read them.

        Yields:
            Numbers of images that are on disk now, in turn.
        """
        cache, size = self.segmenter.embeddings, self.segmenter.encode_batch_size
        ends = (pixels_key(image).hex() for image in self._pictures([0, self.num_samples - 1]))
        assert cache.folder is not None
        done = cache.folder / f"{'-'.join(ends)}-{self.num_samples}.complete"
        if done.exists():
            return
        with ThreadPoolExecutor(1) as pool:
            chunks = [range(start, min(start + size, self.num_samples)) for start in range(0, self.num_samples, size)]
            waiting = pool.submit(self._pictures, chunks[0])
            for number, chunk in enumerate(chunks):
                images = waiting.result()
                if number + 1 < len(chunks):
                    waiting = pool.submit(self._pictures, chunks[number + 1])
                if not cache.store(images):
                    return
                yield len(chunk)
        with suppress(OSError):  # a disk that is full now: a further run looks again
            files.write(done, b"", shared=True)

    def _pictures(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Read the images of samples and stretch them to the observed square."""
        samples = [check_sample(self.dataset[index], index) for index in indices]
        return [stretch(sample.images[0], self.image_size) for sample in samples]

    def _text_of(self, sample: Sample) -> str | None:
        """Select the text whose attention a sample shows; None for attention to everything alike."""
        if self.text == CATEGORY and sample.category is None:
            raise UserError(f"text={CATEGORY}: sample '{sample.key}' has no category")
        return sample.category if self.text == CATEGORY else self.text

    def _recalibrate(self, observations: Observations) -> np.ndarray:
        """Compute the probability (num_envs, g, g) that each patch is foreground."""
        assert self.recalibration is not None
        tensors = {name: torch.from_numpy(value) for name, value in observations.items()}
        found = self.recalibration.probabilities(tensors).cpu().numpy()
        check_probabilities(found, (self.num_envs, self.grid, self.grid), f"{type(self.recalibration).__name__}")
        return found

    def _read(self, i: int, action: int | Sequence[int] | np.ndarray) -> tuple[int, int]:
        return self._clicks.read(action)

    def _respond(self, live: np.ndarray, actions: Sequence[tuple[int, int]]) -> list[Outcome]:
        masks, outcomes = self._episodes.masks, []
        before = [masks[i] for i in live]
        clicks = self._click(live, actions)
        self._decode(live)
        for i, click, previous in zip(live, clicks, before, strict=True):
            shown = Transition(self.task, self._shown(i), click, (masks[i],), previous_masks=(previous,))
            over = len(self._episodes.patches[i]) >= self.horizon
            outcomes.append(Outcome(shown, False, over, self._step_info(i, click)))
        return outcomes

    def _click(self, live: np.ndarray, actions: Sequence[tuple[int, int]]) -> list[Click]:
        """Add the click of each live sub-environment, patch and label, to its prompts."""
        probable = self._recalibrate(self._observation) if self.label_source == "srm" else None
        clicks, centres = [], self.centres()
        for i, (patch, label) in zip(live, actions, strict=True):
            target = self._episodes.targets[i]
            x, y = centres[patch] / self.image_size * target.shape[::-1]
            if self.label_source == "oracle":
                void = self._episodes.void[i]
                on_void = void is not None and void[int(y), int(x)]
                label = PADDING if on_void else int(target[int(y), int(x)])  # void is neither, as to the module
            elif probable is not None:
                label = int(probable[i].flat[patch] > 0.5)
            clicks.append(Click(float(x), float(y), label, patch in self._episodes.patches[i]))
            self._episodes.add_click(i, patch, centres[patch], label)
        return clicks

    def _decode(self, rows: np.ndarray) -> None:
        """Decode the prompts of sub-environments into masks; one without any keeps its mask."""
        rows = np.asarray(rows)
        rows = rows[(self._episodes.labels[rows] != PADDING).any(axis=1)]
        if not len(rows):
            return
        logits = self.segmenter.decode(*self._episodes.decoder_inputs(rows), self.image_size)
        check_finite(logits, (len(rows), None, None), f"{self._segmenter_name}.decode")
        self._set_masks(rows, logits)

    def _set_masks(self, rows: np.ndarray, logits: torch.Tensor) -> None:
        self._episodes.set_masks(rows, logits, self.segmenter.resize(logits, [self._episodes.size(i) for i in rows]))

    def _observe(self) -> Observations:
        spatial = self.segmenter.spatial(self._episodes.embeddings)
        self._observation = self._episodes.observe(spatial, self.text is not None, not self.allow_repeated_clicks)
        return dict(self._observation)

    def _step_info(self, i: int, click: Click) -> Infos:
        return {
            "sample_key": self._shown(i).key,
            "index": int(self._indices[i]),
            "iou": self._episodes.iou(i),
            "point": np.array([click.x, click.y]),
            "label": click.label,
            "repeated": click.repeated,
            "masks": (self._episodes.masks[i],),
        }

    def _frame(self, i: int) -> np.ndarray:
        sample, (points, labels) = self._shown(i), self._episodes.prompts(i)
        height, width = sample.images[0].shape[:2]
        points = points / self.image_size * (width, height)
        return clicks_picture(sample, {"clicks": (self._episodes.masks[i], points, labels)}, square=True)


class PointPromptEnv(ScalarEnv):
    """Scalar form of `PointPromptVectorEnv`, with its arguments, spaces and infos.

    Example:
        >>> env = gym.make("maskgym/PointPrompt-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> env.step((27, 1))[1]  # doctest: +SKIP
        1.0
    """

    vector_class: ClassVar[type[PointPromptVectorEnv]] = PointPromptVectorEnv
    vector: PointPromptVectorEnv

    def get_state(self) -> PointState:
        """Copy the state of the episode."""
        return self.vector.get_state()[0]

    def set_state(self, state: PointState) -> Observations:
        """Continue from a state; return the observation."""
        return {name: value[0] for name, value in self.vector.set_state([state]).items()}
