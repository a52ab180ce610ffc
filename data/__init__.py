"""Data sets: scenes made by a program, and readers of folders of real photographs."""

from ..registry import Registry
from .sample import SPLITS, Dataset, Sample, Subset, few_shot, split_of

_registry = Registry("data set")
register, make, names = _registry.register, _registry.make, _registry.names

register("scenes", "maskgym.data.scenes:Scenes")  # procedural, offline: the default
register("folder", "maskgym.data.folder:Folder")  # image/mask pairs
register("coco", "maskgym.data.coco:Coco")  # COCO-style instances
register("groups", "maskgym.data.groups:Groups")  # one folder a group of images

__all__ = ["SPLITS", "Dataset", "Sample", "Subset", "few_shot", "make", "names", "register", "split_of"]
