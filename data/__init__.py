"""Data sets: scenes made by a program, and readers of folders of real photographs."""

from functools import partial

from maskgym.data.published import PUBLISHED, make_published
from maskgym.data.rationales import WithRationales
from maskgym.data.sample import SPLITS, Dataset, Sample, Subset, few_shot, split_of
from maskgym.registry import Registry

_registry = Registry("data set")
register, make, names, get = _registry.register, _registry.make, _registry.names, _registry.get

register("scenes", "maskgym.data.scenes:Scenes")  # procedural, offline: the default
register("folder", "maskgym.data.readers.folder:Folder")  # image/mask pairs
register("coco", "maskgym.data.readers.coco:Coco")  # COCO-style instances
register("groups", "maskgym.data.readers.groups:Groups")  # one folder a group of images
register("label_maps", "maskgym.data.readers.label_maps:LabelMaps")  # instances as values of a picture
register("voc", "maskgym.data.readers.voc:VOC")  # PASCAL VOC 2012: classes, or objects
register("expressions", "maskgym.data.readers.refcoco:RefCOCO")  # RefCOCO's: a sentence a sample
register("ranked", "maskgym.data.readers.ranking:RankedObjects")  # objects by salience: ASSR, IRSR
register("hf", "maskgym.data.readers.hf:HuggingFace")  # a folder or a repository of Hugging Face's datasets
for _name in PUBLISHED:  # each of these readers, or one above, with the arguments that a published set takes
    register(_name, partial(make_published, _name))

__all__ = [
    "SPLITS",
    "Dataset",
    "Sample",
    "Subset",
    "WithRationales",
    "few_shot",
    "get",
    "make",
    "names",
    "register",
    "split_of",
]
