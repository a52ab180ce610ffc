"""Scenes: a procedural data set with exact ground truth for salience, language and instances.

A scene is a short list of flat objects on a 3 × 3 grid over a cluttered background. Bright objects are salient; pale
ones are distractors, often look-alikes of a bright one. The background carries soft saturated blobs and vivid specks,
so that colour contrast alone does not find the objects (`benchmarks/scenes.py` measures this). One scene
graph yields every task: the salient union, instances with unique descriptions, co-salient groups, needs, ranks, blur,
shadow, glass and semantic classes, and the reasoning text for supervised fine-tuning.

The text comes from simulated annotators of different styles: they name the shape alone, its family, colour and shape,
or the place. A phrase refers to every object that fits it, so terse phrases merge look-alikes. Imitation of the
annotators is therefore not optimal; reinforcement learning can find the phrases with higher reward.
"""

from maskgym.data.scenes.dataset import TASKS, Scenes
from maskgym.data.scenes.language import STYLES, random_reference, vocabulary
from maskgym.data.scenes.objects import COLOURS, COLUMNS, FULL, ROWS, SHAPES, SIZES, TEXTURES, Scene, SceneObject

__all__ = [
    "COLOURS",
    "COLUMNS",
    "FULL",
    "ROWS",
    "SHAPES",
    "SIZES",
    "STYLES",
    "TASKS",
    "TEXTURES",
    "Scene",
    "SceneObject",
    "Scenes",
    "random_reference",
    "vocabulary",
]
