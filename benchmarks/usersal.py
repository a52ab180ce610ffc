"""Measure speed and size of UserSal and UserSal+, beside CLIPSeg at the same input size (UserSOD, Table 1).

Run ``python benchmarks/usersal.py``. All weights are random and have the published sizes: VST, the text tower of CLIP
ViT-B, and transformers' CLIPSeg with its default configuration. Each image has a need of its own, so that no cached
text feature is used. Images per second are medians over alternating rounds, and ratios are to CLIPSeg in the same run.

    backbone     the salient-object network alone, which reads no need
    usersal      frozen network with prompt tokens
    usersal+     UserSal with an appearance similarity adder at every scale; --siamese selects its Siamese network
    clipseg      transformers' CLIPSegForImageSegmentation

``--tiny`` measures the small networks for scenes at 128 pixels, as a trial; its figures say nothing about the others.
The paper states 46.6 images per second and 238 M parameters for UserSal, and 39.2 and 241 M for UserSal+, on a GPU that
it does not name for this table.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerBase,
)

from maskgym import policies
from maskgym.data.scenes import vocabulary
from maskgym.policies.needs.usersal import UserSal
from maskgym.segmenters.text import word_tokenizer

NEED = "find the small red striped star number {}"
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def needs() -> Iterator[str]:
    """Yield needs of one length, each of them once."""
    return (NEED.format(number) for number in itertools.count(1000))


def text_tower(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write a randomly initialised text tower of CLIP ViT-B as the published one is laid out; return the folder."""
    CLIPTextModel(CLIPTextConfig()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clipseg(
    tokenizer: PreTrainedTokenizerBase, tiny: bool, device: str
) -> tuple[Callable[[torch.Tensor, list[str]], torch.Tensor], int]:
    """Build a function that answers images (B, 3, S, S) and needs with CLIPSeg, and how many parameters it has."""
    config = CLIPSegConfig()
    if tiny:
        text, vision = {**TINY, "projection_dim": 32}, {**TINY, "projection_dim": 32, "patch_size": 16}
        config = CLIPSegConfig(
            text_config=text, vision_config=vision, projection_dim=32, extract_layers=[0, 1, 2], reduce_dim=16
        )
    model = CLIPSegForImageSegmentation(config).to(device).eval()
    length = config.text_config.max_position_embeddings

    def answer(pixels: torch.Tensor, texts: list[str]) -> torch.Tensor:
        ids = tokenizer(texts, return_tensors="pt", truncation=True, max_length=length).input_ids.to(device)
        return model(pixel_values=pixels, input_ids=ids, interpolate_pos_encoding=True).logits

    return answer, count(model)


def usersal(name: str, given: argparse.Namespace, folder: Path) -> UserSal:
    """Build a policy with random weights."""
    backbone = (
        {"name": "vst_tiny", "pretrained": False}
        if given.tiny
        else {"name": "vst", "pretrained": False, "image_size": given.size}
    )
    encoder = {"name": "clip_tiny"} if given.tiny else {"name": "clip", "checkpoint": str(folder)}
    own = {"siamese": given.siamese} if name == "usersal_plus" else {}
    return policies.make(
        name, backbone=backbone, encoder={**encoder, "device": given.device}, device=given.device, **own
    ).eval()


def count(module: torch.nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def seconds(
    runs: dict[str, Callable[[], torch.Tensor]], rounds: int, repeats: int, wait: Callable[[], None]
) -> dict[str, float]:
    """Measure the seconds per call, the median over alternating rounds; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            wait()
            begun = time.perf_counter()
            for _ in range(repeats):
                run()
            wait()
            found[name].append((time.perf_counter() - begun) / repeats)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help="side of the images; 352 unless --tiny (UserSOD, section 4.1: 352)")
    parser.add_argument("--batch", type=int, default=1, help="images a call")
    parser.add_argument("--rounds", type=int, default=5, help="counted, after one that warms up")
    parser.add_argument("--repeats", type=int, default=3, help="calls a round")
    parser.add_argument("--siamese", default="swin", help="linear, convolution, attention or swin")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try it out")
    given = parser.parse_args()
    given.size = given.size or (128 if given.tiny else 352)
    torch.manual_seed(0)
    tokenizer = word_tokenizer(vocabulary())
    with tempfile.TemporaryDirectory() as folder:
        tower = Path(folder) if given.tiny else text_tower(Path(folder), tokenizer)
        models = {name: usersal(name, given, tower) for name in ("usersal", "usersal_plus")}
        for model in models.values():
            model.encoder.encode(["find it"])  # The first use reads the text tower.
    sizes = {name: count(model.backbone) + count(model.encoder.network) for name, model in models.items()}
    trained = {name: sum(p.numel() for p in model.trainable_parameters()) for name, model in models.items()}
    answer, sizes["clipseg"] = clipseg(tokenizer, given.tiny, given.device)
    pixels, texts = torch.rand(given.batch, 3, given.size, given.size, device=given.device), needs()

    def words() -> list[str]:
        return list(itertools.islice(texts, given.batch))

    runs: dict[str, Callable[[], torch.Tensor]] = {
        "backbone": lambda: models["usersal"].backbone(pixels),
        "usersal": lambda: models["usersal"](pixels, words()),
        "usersal_plus": lambda: models["usersal_plus"](pixels, words()),
        "clipseg": lambda: answer(pixels, words()),
    }
    sizes["backbone"] = count(models["usersal"].backbone)
    with torch.no_grad():
        wait = torch.cuda.synchronize if given.device.startswith("cuda") else lambda: None
        found = seconds(runs, given.rounds, given.repeats, wait)
    device = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"{given.size} x {given.size}, {given.batch} images a call, {device}, PyTorch {torch.__version__}")
    print(f"{'':14}{'images/s':>10}{'x clipseg':>11}{'M params':>10}{'x clipseg':>11}{'M trained':>11}")
    for name in runs:
        total, own = sizes[name] + trained.get(name, 0), trained.get(name, 0) / 1e6
        speed = f"{given.batch / found[name]:10.1f}{found['clipseg'] / found[name]:11.2f}"
        print(f"{name:14}{speed}{total / 1e6:10.2f}{total / sizes['clipseg']:11.2f}{own:11.2f}")


if __name__ == "__main__":
    main()
