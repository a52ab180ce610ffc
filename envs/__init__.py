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
