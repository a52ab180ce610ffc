"""``maskgym plan``: memory and hours of a run, and what they rest on, before anything runs.

    maskgym plan env=sod algo=cgpo policy=qwen2_5_vl_7b segmenter=evf_sam scale=ray scale.num_workers=8 --gpu h100

The settings are those of ``maskgym run``, and mean the same. A folder of a policy needs no more than its
``config.json``, one of a segmenter likewise; the published ones, without a folder, have the published sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskgym.experiments.planning import devices
from maskgym.experiments.wiring import composition
from maskgym.experiments.wiring.command import Parser
from maskgym.experiments.wiring.process import silence_transformers


def main(arguments: Sequence[str]) -> int:
    """Print the plan of a run.

    Raises:
        UserError: If an argument is invalid, or the run is none that is planned.
    """
    parser = Parser(prog="maskgym plan", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the run")
    gpus = ", ".join(devices.DEVICES)
    parser.add_argument("--gpu", metavar="NAME", help=f"of each worker: {gpus} (this machine, measured)")
    parser.add_argument("--answer", type=int, metavar="N", help="tokens expected of the longest answer (at most 400)")
    given = parser.parse_intermixed_args(arguments)
    if given.gpu:
        devices.by_name(given.gpu)
    config = composition.compose(given.settings)
    silence_transformers()
    from maskgym.experiments.planning import plan, text

    print(text.table(plan.of_run(config, given.gpu, given.answer)))
    return 0
