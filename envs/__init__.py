"""Environments: registered with Gymnasium when ``maskgym`` is imported."""

import gymnasium

# The salient regions of one image, as the union of what the phrases of an answer refer to.
# Every salient instance of one image, a phrase each.
# The one category that a group of images shares.
for _id, _task in (("SOD", "sod"), ("SIS", "sis"), ("CoSOD", "cosod")):
    gymnasium.register(
        id=f"maskgym/{_id}-v0",
        entry_point="maskgym.envs.reasoning:ReasoningEnv",
        vector_entry_point="maskgym.envs.reasoning:ReasoningVectorEnv",
        kwargs={"task": _task},
    )

# Clicks at patch centres that prompt a frozen Segment Anything Model.
gymnasium.register(
    id="maskgym/PointPrompt-v0",
    entry_point="maskgym.envs.point:PointPromptEnv",
    vector_entry_point="maskgym.envs.point:PointPromptVectorEnv",
)

# A mask of what a user looks for, by an image and the need in words.
gymnasium.register(
    id="maskgym/UserNeed-v0",
    entry_point="maskgym.envs.need:UserNeedEnv",
    vector_entry_point="maskgym.envs.need:UserNeedVectorEnv",
)

# Clicks as in PointPrompt, with the need as a feature and as the text of the explicit branch.
gymnasium.register(
    id="maskgym/UserNeedPoint-v0",
    entry_point="maskgym.envs.need_point:UserNeedPointEnv",
    vector_entry_point="maskgym.envs.need_point:UserNeedPointVectorEnv",
)

# Detect, erase, detect again: masks of salient objects, the most salient first.
gymnasium.register(
    id="maskgym/Ranking-v0",
    entry_point="maskgym.envs.ranking:RankingEnv",
    vector_entry_point="maskgym.envs.ranking:RankingVectorEnv",
)
