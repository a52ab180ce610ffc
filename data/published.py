"""Published data sets by name: the reader of their official folders, and their numbers of photos.

``make("ecssd", root=DIR)`` builds the reader with its arguments; ``maskgym data check DIR --data ecssd`` compares the
folder with the authors' numbers. Each entry states its source and its uncertainties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgym.aliases import Settings

if TYPE_CHECKING:
    from maskgym.data.sample import Dataset


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        reader: Name of its reader.
        task: Default task, as the reader takes it.
        folder: Usual names of its folder, in any letter case.
        counts: Number of photos per split, by the authors, minus known faulty ones; empty if no number was found.
        arguments: Arguments of the reader that differ from its defaults.
        sentences: Number of samples per split in the authors' files, if a sample is a sentence.
        partitions: Number of them in each part of the test split, if it has parts.
        origins: Sets that photos were taken from, by the beginning of a photo's name.
        part: Separator between the photo's name and the part's name in a key, if a sample is a part of a photo.
        has_splits: Whether the authors published splits; where they did not, a hash of the names deals them.
    """

    reader: str
    task: str
    folder: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    arguments: Settings = field(default_factory=dict)
    part: str = ""
    sentences: Mapping[str, int] = field(default_factory=dict)
    partitions: Mapping[str, int] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    has_splits: bool = True


TEST_ONLY = {"splits": "test"}
DUTS_OF_TWO_SIZES = ("ILSVRC2014_train_00023530", "n04442312_17818", "n01532829_13482")
PUBLISHED = {
    # Salient objects.
    "duts": Published(  # Wang et al. 2017; three training pairs differ in size, old zips hold two stray test masks
        "folder",
        "sod",
        ("DUTS",),
        {"train": 10550, "test": 5019},  # of 10,553
        {"faulty": (*DUTS_OF_TWO_SIZES, "mILSVRC2012_test_00036002", "msun_bcogaqperiljqupq")},
    ),
    "ecssd": Published("folder", "sod", ("ECSSD",), {"test": 1000}, TEST_ONLY),  # Yan et al. 2013
    "pascal_s": Published("folder", "sod", ("PASCAL-S", "PASCALS"), {"test": 850}, TEST_ONLY),  # Li et al. 2014
    "dut_omron": Published(  # Yang et al. 2013; a common copy has 5,166
        "folder", "sod", ("DUT-OMRON", "DUTOMRON", "DUT-O", "DUTS-OMRON"), {"test": 5168}, TEST_ONLY
    ),
    "hku_is": Published("folder", "sod", ("HKU-IS", "HKUIS"), {"test": 4447}, TEST_ONLY),  # Li and Yu 2015
    # Camouflaged objects, and objects at high resolution.
    "cod10k": Published(  # Fan et al. 2020; 6,000 and 4,000 with photos that show none, whose masks are empty
        "folder",
        "camouflage",
        ("COD10K", "COD10K-v3", "COD10K-v2"),
        {"train": 3040, "test": 2026},
        {"shows": "camouflage", "absent": "COD10K-NonCAM"},
    ),
    "camo": Published(  # Le et al. 2019; the masks of both splits lie in one folder
        "folder",
        "camouflage",
        ("CAMO", "CAMO-V.1.0-CVIU2019", "CAMO-V.1.0"),
        {"train": 1000, "test": 250},
        {"shows": "camouflage"},
    ),
    "dis5k": Published(  # Qin et al. 2022: DIS-TE1 to DIS-TE4 are the test split; as later READMEs count
        "folder", "sod", ("DIS5K",), {"train": 3000, "validation": 470, "test": 2000}
    ),
    # Salient instances.
    "ilso": Published(  # Li et al. 2017: ILSO-1K; ILSO-2K has 1,000, 400 and 600
        "label_maps",
        "sis",
        ("ILSO", "ILSO-1K", "ILSO-2K", "ISOD", "LI1000"),
        {"train": 500, "validation": 200, "test": 300},
        origins={"ECSSD": "ecssd", "DUT-OMRON": "dut_omron", "hku": "hku_is"},  # as the authors' tool names photos
    ),
    "sis10k": Published("coco", "sis", ("SIS10K",)),  # Pei et al. 2022: 10,300 photos; sizes of splits not verified
    "soc": Published(  # Fan et al. 2018; half of its 6,000 photos have no salient object
        "label_maps", "sis", ("SOC",), {"train": 1800, "validation": 600, "test": 600}
    ),
    # Co-salient objects.
    "cocoseg": Published("groups", "cosod", ("CoCoSeg", "COCO-SEG"), {}, {"splits": "train"}),  # Wang et al. 2019
    "coca": Published("groups", "cosod", ("CoCA",), {"test": 1295}, TEST_ONLY),  # Zhang et al. 2020
    "cosal2015": Published("groups", "cosod", ("CoSal2015",), {"test": 2015}, TEST_ONLY),  # Zhang et al. 2016
    "cosod3k": Published("groups", "cosod", ("CoSOD3k",), {"test": 3316}, TEST_ONLY),  # Fan et al. 2020
    # Blur, shadow, mirrors, classes.
    "cuhk_blur": Published(  # Shi et al. 2014: 1,000 photos without a split
        "folder", "blur", ("CUHK", "CUHK-blur"), has_splits=False
    ),
    "sbu": Published("folder", "shadow", ("SBU", "SBU-shadow"), {"train": 4089, "test": 638}),  # Vicente et al. 2016
    "msd": Published(  # Yang et al. 2019; a test photo has a wrong mask, and the authors skip it
        "folder", "glass", ("MSD",), {"train": 3063, "test": 954}, {"faulty": ("1751_512x640",)}
    ),
    "voc2012": Published("voc", "semantic", ("VOC2012", "VOCdevkit"), {"train": 1464, "validation": 1449}, part="/"),
    # Needs and expressions.
    "usersod": Published("coco", "need", ("UserSOD",)),  # not public: as `maskgym data dig` exports it
    # Photos are as TensorFlow Datasets counts them; the sentences of RefCOCO as FlagEval does. The sentences of the
    # splits of RefCOCOg were not read from a file: those of both authors add up to the 95,010 of luogen1996/MCN#7, and
    # umd's val and test to the 14,498 of Ref-L4.
    "refcoco": Published(  # Yu et al. 2016: splits of UNC, with testA and testB together
        "expressions",
        "need",
        ("refcoco",),
        {"train": 16994, "validation": 1500, "test": 1500},
        {"version": "refcoco"},
        "#",
        {"train": 120624, "validation": 10834, "test": 5657 + 5095},
        {"testA": 5657, "testB": 5095},
    ),
    "refcoco_plus": Published(  # the same; the sentences add up to the 141,564 of the authors' page
        "expressions",
        "need",
        ("refcoco+",),
        {"train": 16992, "validation": 1500, "test": 1500},
        {"version": "refcoco+"},
        "#",
        {"train": 120191, "validation": 10758, "test": 5726 + 4889},
        {"testA": 5726, "testB": 4889},
    ),
    "refcocog": Published(  # Mao et al. 2016, with the splits of Nagaraja et al. 2016 (umd)
        "expressions",
        "need",
        ("refcocog",),
        {"train": 21899, "validation": 1300, "test": 2600},
        {"version": "refcocog"},
        "#",
        {"train": 80512, "validation": 4896, "test": 9602},
    ),
    "refcocog_google": Published(  # the authors' splits, of objects: a photo may be in both; there is no test
        "expressions",
        "need",
        ("refcocog",),
        {"train": 24698, "validation": 4650},
        {"version": "refcocog", "split_by": "google"},
        "#",
        {"train": 85474, "validation": 9536},
    ),
    # Liu et al. 2023, with the photos of RefCOCO's splits. The paper counts 278,232 sentences; the public file has the
    # 259,859 of henghuiding/gRefCOCO#6, to which those of the splits, which were not read from it, add up.
    "grefcoco": Published(
        "expressions",
        "refer",
        ("grefcoco",),
        {"train": 16994, "validation": 1500, "test": 1500},
        {"version": "grefcoco"},
        "#",
        {"train": 209344, "validation": 16870, "test": 18712 + 14933},
        {"testA": 18712, "testB": 14933},
    ),
    "reasonseg": Published(  # Lai et al. 2024: LISA's README
        "reasoning",
        "need",
        ("ReasonSeg", "reason_seg"),
        {"train": 239, "validation": 200, "test": 779},
        part="#",
    ),
    # Ranks.
    "assr": Published(  # Siris et al. 2020
        "ranked", "ranking", ("ASSR",), {"train": 7646, "validation": 1436, "test": 2418}
    ),
    "salmon": Published(  # UserSOD's Table 3 has this name; most likely IRSR, Liu et al. 2021, made from SALICON
        "ranked", "ranking", ("SalMon", "IRSR"), {"train": 6059, "test": 2929}
    ),
}


def make_published(name: str, **given: Any) -> Dataset:
    """Build the reader of a published data set.

    Args:
        name: Name in `PUBLISHED`.
        **given: Arguments of the reader, including ``root``.

    Raises:
        UserError: As the reader raises.
    """
    from maskgym.data import make
    from maskgym.data.layout.listing import Reader  # which imports images and arrays

    published = PUBLISHED[name]
    arguments = {**published.arguments, **given}
    if arguments.get("splits") == "auto" and "splits" in published.arguments:
        arguments["splits"] = published.arguments["splits"]
    dataset = make(published.reader, **{"task": published.task, **arguments})
    if not published.has_splits and isinstance(dataset, Reader) and dataset.dealt and dataset.split != "all":
        told = f"{name} has no official split: a hash of the names deals 80 % to training, 10 % to validation and 10 % "
        dataset.notes = (*dataset.notes, f"{told}to test, so scores are not those of a paper's test set")
    return dataset


def folder_of(parent: Path, name: str) -> Path | None:
    """Find the folder of a data set in another folder by one of its usual names, in any letter case.

    Args:
        parent: Folder that holds data sets.
        name: Name of a set, published or not; ``NAME/PART`` finds the folder PART in the set's, if there is one.
    """
    base, _, part = name.partition("/")
    wanted = {other.lower() for other in (base, *(PUBLISHED[base].folder if base in PUBLISHED else ()))}
    folders = [path for path in sorted(parent.iterdir()) if path.is_dir() and path.name.lower() in wanted]
    if folders and part and (folders[0] / part).is_dir():
        return folders[0] / part
    return folders[0] if folders else None
