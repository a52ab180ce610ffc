"""Evaluation protocols of papers for predicted maps: normalisation, and the measures that their tables print.

`Preset.note` states the choices that a paper leaves open. It is printed below every table.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskgym.errors import UserError


@dataclass(frozen=True)
class Preset:
    """Evaluation protocol for maps.

    Attributes:
        stretch: Whether a non-constant 8-bit map is min-max normalised before S, E, F, IoU and BER.
        stretch_error: Whether a non-constant 8-bit map is min-max normalised before the MAE.
        measures: Default measures of a table, in order.
        note: Text below the table: thresholds, sizes, averages, and choices that the paper leaves open.
        empty: IoU of an empty prediction where nothing is referred to, in the measures of referring segmentation.
    """

    stretch: bool
    stretch_error: bool
    measures: tuple[str, ...]
    note: str
    empty: float = 1.0


_COMMON = (
    "Masks are what is above level 128. A prediction of another size is resized to its mask, bilinearly; masks never. "
    "F has beta² 0.3; curves of E and F over 256 thresholds are averaged over images before their mean or maximum is "
    "taken; all else is the mean over images. "
)
_REFERRING = (
    "Masks are what is above level 128, predictions what is above 127. A prediction of another size is resized to its "
    "mask, bilinearly; masks never. Ignored pixels are not counted. mIoU is the gIoU of these papers, oIoU their cIoU. "
)
PRESETS = {
    "pysodmetrics": Preset(
        True,
        True,
        ("s_measure", "e_mean", "e_max", "f_mean", "f_max", "f_adaptive", "weighted_f", "mae"),
        _COMMON + "Predictions are min-max normalised, as PySODMetrics does by default.",
    ),
    "saliency_r1": Preset(
        True,
        True,
        ("s_measure", "e_mean", "f_max", "mae"),
        _COMMON + "Predictions are min-max normalised, which leaves masks as they are. The paper says maximum F; which "
        "E it prints it does not say: here the mean.",
    ),
    "cosod": Preset(
        True,
        False,
        ("s_measure", "e_max", "f_max", "mae"),
        _COMMON + "Predictions are min-max normalised, but for the MAE, as the evaluation code of co-salient detection "
        "does; unlike it, the S-measure cuts as its authors' code does (third decimal).",
    ),
    "alignsam": Preset(
        False,
        False,
        ("f_max", "e_mean", "mae", "iou", "ber_pooled"),
        _COMMON + "Predictions are taken as they are. Which F and E the paper prints, and whether it pools BER, it "
        "does not say: here maximum F, mean E, and BER pooled over all pixels, as the shadow benchmark's authors do.",
    ),
    "usersod": Preset(
        True,
        True,
        ("mae", "f_max", "e_mean", "s_measure"),
        _COMMON + "Predictions are min-max normalised. Which F and E the paper prints it does not say: here maximum F "
        "and mean E.",
    ),
    "grefcoco": Preset(
        False,
        False,
        ("miou", "oiou", "n_acc", "t_acc"),
        _REFERRING
        + "An empty prediction where nothing is referred to has IoU 1, as in gRefCOCO and LISA, and an empty "
        "mask is the answer that there is no target.",
    ),
    "seg_zero": Preset(
        False,
        False,
        ("miou", "oiou"),
        _REFERRING + "An empty prediction where nothing is referred to has IoU 0, as in Seg-Zero's calculate_iou.py.",
        empty=0.0,
    ),
}


def find(name: str) -> Preset:
    """Look up a preset by name.

    Raises:
        UserError: If there is no preset of this name.
    """
    if name not in PRESETS:
        raise UserError(f"preset '{name}': expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
