"""Random checkpoints of reduced depth and width in the published layouts: SAM, CLIP, BLIP, BERT and VST.

They keep the classes, the names of files and weights, the number of token ids and the special tokens of the published
ones, so that a run on them takes the code paths of a run on the published weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedModel,
)

from maskgym import files
from maskgym.aliases import Settings
from maskgym.data.scenes import vocabulary
from maskgym.experiments.reproduce.miniature_models import texts
from maskgym.policies.needs.vst import UNUSED, VST
from maskgym.segmenters.points.sam import SamConfig
from maskgym.segmenters.weights import Network

SAM = SamConfig(  # of ViT-B, whose attention is global in every third block
    image_size=256,
    embed_dim=48,
    depth=3,
    num_heads=2,
    window_size=7,
    global_attention_layers=(2,),
    prompt_embed_dim=32,
    decoder_num_heads=2,
    decoder_mlp_dim=64,
    iou_head_dim=32,
)
VST_SIZES: Settings = {
    **{"embed_dim": 32, "depth": 2, "heads": 2, "token_dim": 16},
    **{"converter_depth": 1, "decoder_depth": 1, "token_depth": 1},
}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
VISION = {**TOWER, "num_hidden_layers": 6, "image_size": 224, "patch_size": 16}  # CLIP Surgery changes six blocks
CLIP_IDS, CLIP_ENDS = 49408, ("<|startoftext|>", "<|endoftext|>")  # the ends are the last two ids
BERT_IDS, BERT_SPECIAL = 30522, {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
BLIP_IDS = BERT_IDS + 2  # with [DEC] and [ENC]


def write_sam(folder: Path, name: str = "sam_vit_b_01ec64", seed: int = 0) -> Path:
    """Write a SAM: the official file with the official names of weights, and its sizes in ``config.json``.

    Args:
        folder: Parent of the checkpoint's folder.
        name: Name of the folder, and of the file without ``.pth``.
        seed: Seed of the weights.

    Returns:
        The checkpoint's folder.
    """
    sam = _random(SAM.build, seed)
    (folder / name).mkdir(parents=True, exist_ok=True)
    torch.save(sam.state_dict(), folder / name / f"{name}.pth")
    files.write(folder / name / "config.json", json.dumps(asdict(SAM), indent=2) + "\n")
    return folder / name


def write_vst(file: Path, seed: int = 0) -> None:
    """Write a VST of `VST_SIZES` as published: from parallel training, with the classifier that it does not use."""
    state = _random(lambda: VST(pretrained=False, **VST_SIZES), seed).state_dict()
    weight, bias = UNUSED
    state |= {weight: torch.zeros(1000, VST_SIZES["embed_dim"]), bias: torch.zeros(1000)}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({f"module.{key}": value for key, value in state.items()}, file)


def write_clip(folder: Path, seed: int = 0) -> None:
    """Write a CLIP ViT with 16-pixel patches: weights, byte-pair tokenizer of 49,408 ids, image processor."""
    trained = CLIPTokenizer().train_new_from_iterator(texts(), vocab_size=CLIP_IDS - 2, show_progress=False)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    words = _filled([word for word in model["vocab"] if word not in CLIP_ENDS], CLIP_IDS - 2)
    merges = [tuple(pair) for pair in model["merges"]]
    ids = {word: number for number, word in enumerate([*words, *CLIP_ENDS])}
    tokenizer = CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)
    text = {**TOWER, "vocab_size": CLIP_IDS, "bos_token_id": CLIP_IDS - 2, "eos_token_id": CLIP_IDS - 1}
    config = CLIPConfig(text_config={**text, "pad_token_id": 1}, vision_config=VISION, projection_dim=32)
    _save(folder, lambda: CLIPModel(config), tokenizer, seed)
    files.write(folder / "vocab.json", json.dumps(ids, ensure_ascii=False) + "\n")
    lines = ("#version: 0.2", *(" ".join(pair) for pair in merges))
    files.write(folder / "merges.txt", "".join(f"{line}\n" for line in lines))
    CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}).save_pretrained(folder)


def write_bert(folder: Path, seed: int = 0) -> None:
    """Write an uncased BERT: weights, and word pieces of 30,522 ids."""
    config = BertConfig(**TOWER, vocab_size=BERT_IDS, max_position_embeddings=512)
    _save(folder, lambda: BertForMaskedLM(config), _word_pieces(folder), seed)


def write_blip(folder: Path, seed: int = 0) -> None:
    """Write a BLIP for retrieval: weights, and BERT's word pieces with two more tokens."""
    tokenizer = _word_pieces(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DEC]", "[ENC]"]})
    text = {**TOWER, "vocab_size": BLIP_IDS, "encoder_hidden_size": TOWER["hidden_size"]}
    ids = {"bos_token_id": BERT_IDS, "sep_token_id": 102, "eos_token_id": 2, "pad_token_id": 0}
    config = BlipConfig(text_config={**text, **ids}, vision_config=VISION)
    _save(folder, lambda: BlipForImageTextRetrieval(config), tokenizer, seed)


ENCODERS = {"clip": write_clip, "bert": write_bert, "blip": write_blip}  # of needs


def _word_pieces(folder: Path) -> BertTokenizer:
    """Write ``vocab.txt``: special tokens at BERT's ids, signs, the words of scenes, and words that no text has."""
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    known = [*signs, *(f"##{sign}" for sign in signs if sign.isalnum()), *dict.fromkeys(vocabulary())]
    words = list(dict.fromkeys(known))
    free = [number for number in range(104, BERT_IDS)]
    ids = BERT_SPECIAL | {number: f"[unused{number}]" for number in range(1, 100)}
    ids |= dict(zip(free, _filled(words, len(free)), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "vocab.txt", "".join(f"{ids[number]}\n" for number in range(BERT_IDS)))
    return BertTokenizer.from_pretrained(folder, model_max_length=512)


def _filled(words: Iterable[str], count: int) -> list[str]:
    """Extend a vocabulary to a number of entries by words that no text has."""
    found = list(words)
    return [*found, *(f"unused{number:06d}" for number in range(count - len(found)))]


def _save(
    folder: Path, build: Callable[[], PreTrainedModel], tokenizer: CLIPTokenizer | BertTokenizer, seed: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _random(build, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _random(build: Callable[[], Network], seed: int) -> Network:
    """Build a network with random weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()
