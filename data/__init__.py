"""Data sets: procedural scenes, and readers of folders of photos."""

from functools import partial

from maskgym.data.published import PUBLISHED, make_published
from maskgym.data.rationales import WithRationales
from maskgym.data.sample import (
    SPLITS,
    Dataset,
    Sample,
    Subset,
    by_category,
    few_shot,
    few_shot_per_category,
    split_of,
)
from maskgym.registry import Registry

_registry: Registry[Dataset] = Registry("data set")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("scenes", "maskgym.data.scenes:Scenes")  # procedural and offline; the default
register("folder", "maskgym.data.readers.folder:Folder")  # image/mask pairs
register("coco", "maskgym.data.readers.coco:Coco")  # COCO-style instances
register("groups", "maskgym.data.readers.groups:Groups")  # one folder per group of images
register("label_maps", "maskgym.data.readers.label_maps:LabelMaps")  # instances as values of an image
register("voc", "maskgym.data.readers.voc:VOC")  # PASCAL VOC 2012: classes, or objects
register("expressions", "maskgym.data.readers.refcoco:RefCOCO")  # RefCOCO, gRefCOCO: one sentence per sample
register("reasoning", "maskgym.data.readers.reasoning:ReasonSeg")  # ReasonSeg: texts that take a step of reasoning
register("ranked", "maskgym.data.readers.ranking:RankedObjects")  # objects by salience: ASSR, IRSR
register("tasks", "maskgym.data.tasks:make_tasks")  # the sets of each task, by name
register("hf", "maskgym.data.readers.hf:HuggingFace")  # Hugging Face datasets: a folder or a repository
for _name in PUBLISHED:  # a published set is a reader with the arguments that the set needs
    register(_name, partial(make_published, _name))

__all__ = [
    "SPLITS",
    "Dataset",
    "Sample",
    "Subset",
    "WithRationales",
    "by_category",
    "few_shot",
    "few_shot_per_category",
    "get",
    "make",
    "names",
    "register",
    "split_of",
]
