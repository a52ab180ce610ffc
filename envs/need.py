"""User needs: the agent sees an image and a need in words, and answers with a mask."""

from __future__ import annotations

import numpy as np

from maskgym.aliases import Infos
from maskgym.envs.base import ScalarEnv
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.metrics import iou
from maskgym.rewards import Transition


class UserNeedVectorEnv(MaskVectorEnv):
    """Vector environment in which a need decides what is salient.

    Description:
        Each episode shows one image and a need, such as "find a striped red star". The agent answers once, with a mask
        of what fits the need, or of the closest object if nothing fits. There is no segmenter: the mask is the action.

    Observation Space:
        ``Dict(image, need)``.
        image: uint8 (S, S, 3), letterboxed with zeros right and below, S = image_size.
        need: The need as text, truncated to 65,536 characters. The text of a sample without a need is empty, which
        asks for what is salient.

    Action Space:
        ``Box(0, 1, (S, S), float32)``: probability that each pixel of the observed square belongs to the target. The
        padding of the letterbox is cut off, and the rest is resized bilinearly to the size of the sample. The result
        is scored as a soft map; IoU thresholds it at > 0.5. A map of another shape or with values outside [0, 1]
        raises a UserError.

    Reward:
        Value of ``reward`` (see `maskgym.rewards`); the default is the S-measure of the soft map, in [0, 1].

    Starting State:
        A sample drawn uniformly, or the sample of ``options={"index": i}`` (an int, or one per sub-environment).

    Episode End:
        Termination: after the one step. Truncation: never.

    Info:
        reset: ``sample_key``, ``index``; on the training split also ``target`` (the ground truth, a tuple of one bool
        (n, H, W)) and ``rationale`` (None), for supervised learning.
        step: ``sample_key``, ``index``, ``reward_terms`` (dict), ``iou``, ``masks`` (a tuple of one bool (1, H, W), the
        map above 0.5) and ``soft`` (a tuple of one float32 (1, H, W), the map itself).

    Arguments:
        num_envs: Number of sub-environments.
        dataset: Name in `maskgym.data`, or a data set whose samples have one image.
        split: ``train`` (default), ``validation`` or ``test``; a data set object has its own.
        task: Task of a data set that is given by name: ``need``, ``need_fine``, or ``sod`` for empty needs.
        reward: Name in `maskgym.rewards`, a reward, a term, or a function of one transition.
        image_size: Side of the observed square in pixels (the paper: 352).
        need: Whether the need is shown. If not, its text is empty: with a data set of salient objects, this is plain
            salient-object detection.
        render_mode: ``rgb_array``, ``human`` or None.
        autoreset_mode: SAME_STEP, NEXT_STEP (RLlib) or DISABLED (agents that reset by index).
        max_episode_steps: Limit that Gymnasium passes; an episode has one step anyway.

    Raises:
        UserError: If an argument is invalid.

    Version History:
        v0: first.

    References:
        UserSOD: user salient object detection, Section 3 and Figure 1.
    """

    def _take(self, i: int, soft: np.ndarray) -> tuple[Transition, bool, bool]:
        return Transition("sod", self._shown(i), soft, (soft[None],)), True, False

    def _step_info(self, i: int, transition: Transition, soft: np.ndarray) -> Infos:
        sample = transition.sample
        kept = True if sample.void is None else ~sample.void[0]
        return super()._step_info(i, transition, soft) | {"iou": iou((soft > 0.5) & kept, sample.union() & kept)}


class UserNeedEnv(ScalarEnv):
    """Scalar form of `UserNeedVectorEnv`, with its arguments, spaces and infos.

    Example:
        >>> env = gym.make("maskgym/UserNeed-v0")  # doctest: +SKIP
        >>> observation, info = env.reset(seed=0)  # doctest: +SKIP
        >>> env.step(info["target"][0].any(axis=0).astype("float32"))[1]  # doctest: +SKIP
        1.0
    """

    vector_class = UserNeedVectorEnv
