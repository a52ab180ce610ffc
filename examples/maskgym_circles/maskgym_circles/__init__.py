"""Parts for maskgym, which this module registers when it is imported."""

import gymnasium

from maskgym import agents, data, rewards, segmenters

from .reward import Tidiness

data.register("circles", "maskgym_circles.data:Circles")
segmenters.register("threshold", "maskgym_circles.segmenter:Threshold")
rewards.register("tidiness", Tidiness)
rewards.register("tidy", rewards.weighted)  # an option with weights
agents.register("first_words", "maskgym_circles.agent:FirstWords")
gymnasium.register(
    id="circles/Circles-v0",
    entry_point="maskgym_circles.env:CirclesEnv",
    vector_entry_point="maskgym_circles.env:CirclesVectorEnv",
    kwargs={"task": "sod"},
)
