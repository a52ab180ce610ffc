"""Register the environments with Gymnasium, which importing ``maskgym`` does."""

from typing import Any

import gymnasium

# Answers in text: salient regions of an image, salient instances with one phrase each, the category that a group of
# images shares.
for _id, _task in (("SOD", "sod"), ("SIS", "sis"), ("CoSOD", "cosod")):
    gymnasium.register(
        id=f"maskgym/{_id}-v0",
        entry_point="maskgym.envs.reasoning:ReasoningEnv",
        vector_entry_point="maskgym.envs.reasoning:ReasoningVectorEnv",
        kwargs={"task": _task},
    )

# Levels of salient instances, each with a question of its own (docs/levels.md): scenes, reward and segmenter.
_sis: dict[str, dict[str, Any]] = {
    **{name: {"dataset": {"name": "scenes", "level": name}} for name in ("medium", "hard", "credit", "shift", "mixed")},
    "easy": {},
    "discovery": {"dataset": {"name": "scenes", "level": "discovery"}, "reward": "solved"},
    "hacking": {"reward": "saliency_r1"},
    "noise": {"segmenter": "evf_sam_tiny_erring"},
}
for _level, _kwargs in _sis.items():
    gymnasium.register(
        id=f"maskgym/SIS-{_level}-v0",
        entry_point="maskgym.envs.reasoning:ReasoningEnv",
        vector_entry_point="maskgym.envs.reasoning:ReasoningVectorEnv",
        kwargs={"task": "sis", **_kwargs},
    )

# Answers in JSON to a query: boxes, points or phrases that prompt a segmenter, for one object, several or none.
gymnasium.register(
    id="maskgym/Refer-v0",
    entry_point="maskgym.envs.text.refer:ReferEnv",
    vector_entry_point="maskgym.envs.text.refer:ReferVectorEnv",
)

# Clicks at patch centres that prompt a frozen Segment Anything Model, and levels of them.
_clicks: dict[str, dict[str, Any]] = {
    "": {},
    "-fine": {"patch_size": 8},
    "-short": {"horizon": 4},
    "-crowd": {"dataset": {"name": "scenes", "level": "hard"}},
}
for _level, _kwargs in _clicks.items():
    gymnasium.register(
        id=f"maskgym/PointPrompt{_level}-v0",
        entry_point="maskgym.envs.point:PointPromptEnv",
        vector_entry_point="maskgym.envs.point:PointPromptVectorEnv",
        kwargs=_kwargs,
    )

# Masks for a need in words, and levels of them.
_needs: dict[str, dict[str, Any]] = {
    "": {},
    "-fine": {"task": "need_fine"},
    "-closest": {"dataset": {"name": "scenes", "level": "closest"}},
}
for _level, _kwargs in _needs.items():
    gymnasium.register(
        id=f"maskgym/UserNeed{_level}-v0",
        entry_point="maskgym.envs.need:UserNeedEnv",
        vector_entry_point="maskgym.envs.need:UserNeedVectorEnv",
        kwargs=_kwargs,
    )

# Clicks as in PointPrompt, with a need as a feature and as the text of the explicit branch.
gymnasium.register(
    id="maskgym/UserNeedPoint-v0",
    entry_point="maskgym.envs.need_point:UserNeedPointEnv",
    vector_entry_point="maskgym.envs.need_point:UserNeedPointVectorEnv",
)

# Masks of salient objects, the most salient first: each detected object is erased.
gymnasium.register(
    id="maskgym/Ranking-v0",
    entry_point="maskgym.envs.ranking:RankingEnv",
    vector_entry_point="maskgym.envs.ranking:RankingVectorEnv",
)
