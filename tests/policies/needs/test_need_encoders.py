"""Need encoders: the hidden state that each pools, empty needs, and strange texts."""

from __future__ import annotations

import io
import json
import pickle

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from maskgym import policies
from maskgym.errors import UserError
from maskgym.policies.needs.need_encoders import clean
from maskgym.segmenters.text import word_tokenizer

NEEDS = ["find the red car", "", "find a dog on the left side of the house", "   \n"]
STRANGE = [
    "z" * 10_000,
    "find " * 2_000,
    "找到红色的车",
    "🚗🟥 \u202e!",
    "\ud83d",
    "\x00\x01",
    "[CLS] </s> <unk>",
    "a" + "́" * 300,
]
WORDS = ["find", "a", "the", "red", "car", "dog", "on", "left", "side", "of", "house"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
VISION = {**SIZES, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
NAMES = ("clip", "siglip", "blip", "bert")


def word_pieces(folder):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return BertTokenizer.from_pretrained(folder)


def sentence_pieces(folder):
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["find the red car", "find a dog on the left side of the house"] * 20),
        model_writer=made,
        vocab_size=40,
        bos_id=-1,
        pad_id=-1,
        eos_id=1,
        unk_id=2,
        control_symbols=["<pad>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(made.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"}))


def build(name, folder):
    """Write a checkpoint of random weights with a tokenizer of its own kind."""
    if name == "clip":
        tokenizer = word_tokenizer(WORDS, special_last=True)
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        text = {**SIZES, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))
        tokenizer.save_pretrained(folder)
    elif name == "siglip":
        sentence_pieces(folder)
        ids = {"vocab_size": 40, "max_position_embeddings": 48, "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 1}
        text = {**SIZES, **ids, "projection_size": 16}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    elif name == "blip":
        word_pieces(folder).save_pretrained(folder)
        ids = {"vocab_size": 16, "max_position_embeddings": 16, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
        text = {**SIZES, **ids, "encoder_hidden_size": 16}
        model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=VISION))
    else:
        word_pieces(folder).save_pretrained(folder)
        model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=16, max_position_embeddings=16))
    with torch.no_grad():
        for weights in model.parameters():  # drawn small, they would hide what is wrong
            weights.add_(torch.randn(weights.shape) * 0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    return {name: (folder, build(name, folder)) for name, folder in folders.items()}


def make(models, name, **settings):
    return policies.make_need_encoder(name, checkpoint=models[name][0], device="cpu", **settings)


def expected(models, name, text):
    """Compute (levels, width) for one text from depths 1, 2 and 4 of 4, step by step."""
    encoder, model = make(models, name), models[name][1]
    tokenizer = encoder.text.tokenizer
    if name == "siglip":
        ids = tokenizer(text, padding="max_length", max_length=48, return_tensors="pt").input_ids
        output = model.text_model(ids, output_hidden_states=True)
        place = [47]
    else:
        ids = tokenizer(text, return_tensors="pt").input_ids
        tower = {"clip": "text_model", "blip": "text_encoder", "bert": "bert"}[name]
        output = model.get_submodule(tower)(ids, output_hidden_states=True)
        place = {"clip": [ids.shape[1] - 1], "blip": [0], "bert": list(range(ids.shape[1]))}[name]
    states = [output.hidden_states[1], output.hidden_states[2], output.last_hidden_state]
    return torch.stack([F.layer_norm(state[0, place].mean(dim=0), (16,)) for state in states])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_pooled_where(models, name):
    encoder = make(models, name)
    features = encoder.encode(NEEDS)
    assert (features.shape, features.dtype, features.requires_grad) == ((4, 3, 16), torch.float32, False)
    assert not features.is_inference()
    assert (encoder.levels, encoder.width) == (3, 16)
    for row in (0, 2):
        torch.testing.assert_close(features[row], expected(models, name, NEEDS[row]), atol=1e-4, rtol=1e-4)
    assert not features[1].any() and not features[3].any()
    assert (features[0] - features[2]).abs().amax(dim=1).min() > 0.01  # at every depth


@pytest.mark.parametrize("name", [*NAMES, "clip_tiny", "bag_of_words"])
def test_no_text_is_too_strange(models, name):
    encoder = make(models, name) if name in NAMES else policies.make_need_encoder(name)
    features = encoder.encode([*STRANGE, ""])
    assert features.shape == (9, encoder.levels, encoder.width) and features.isfinite().all()
    assert not features[-1].any()
    assert encoder.encode([]).shape == (0, encoder.levels, encoder.width)
    with pytest.raises(TypeError, match="one string"):
        encoder.encode("find the red car")


@pytest.mark.parametrize("name", [*NAMES, "bag_of_words"])
def test_whitespace_and_company_change_nothing(models, name):
    encoder = make(models, name, cached=0) if name in NAMES else policies.make_need_encoder(name)
    alone = encoder.encode(["find the red car"])
    together = encoder.encode(["  find  the\nred car ", "find a dog on the left side of the house"])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


def test_what_is_too_long_is_cut(models):
    for name in NAMES:
        encoder = make(models, name)
        first, second = encoder.encode(["red " * 40 + "dog", "red " * 40 + "car"])
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_levels_end_with_the_last_depth(models, levels):
    three, other = make(models, "bert"), make(models, "bert", levels=levels)
    features = other.encode(NEEDS)
    assert features.shape == (4, levels, 16)
    torch.testing.assert_close(features[:, -1], three.encode(NEEDS)[:, -1])
    if levels == 4:  # all depths, of which three levels are the first, the second and the last
        torch.testing.assert_close(features[:, [0, 1, 3]], three.encode(NEEDS))


def test_each_need_is_read_once_while_it_is_kept(models, monkeypatch):
    encoder, asked = make(models, "clip", cached=2), []
    read = encoder.text.read
    monkeypatch.setattr(encoder.text, "read", lambda texts: asked.append(list(texts)) or read(texts))
    first = encoder.encode(["red", "car", "red"])
    torch.testing.assert_close(first[0], first[2])
    torch.testing.assert_close(encoder.encode(["red"]), first[:1])
    encoder.encode(["dog"])  # car was used longest ago
    encoder.encode(["red", "dog"])
    encoder.encode(["car"])
    assert asked == [["red", "car"], ["dog"], ["car"]]
    features = encoder.encode(["red"])
    features += 1  # what is kept is not what is returned
    torch.testing.assert_close(encoder.encode(["red"]), features - 1)


def test_every_setting_that_matters_changes_the_fingerprint(models):
    made = [make(models, "clip"), make(models, "clip", levels=2), make(models, "clip", dtype="bfloat16")]
    assert len({encoder.fingerprint for encoder in [*made, make(models, "bert"), make(models, "blip")]}) == 5
    assert make(models, "clip", cached=0, batch_size=1).fingerprint == made[0].fingerprint
    small, large = make(models, "clip", batch_size=1).encode(NEEDS), made[0].encode(NEEDS)
    torch.testing.assert_close(small, large, atol=1e-5, rtol=1e-4)
    coarse = made[2].encode(NEEDS)
    assert coarse.dtype == torch.float32 and 0 < (coarse - large).abs().max() < 0.2


def test_nothing_is_loaded_before_it_is_used_and_nothing_is_pickled(models):
    encoder = make(models, "siglip")
    assert "network" not in vars(encoder.text)
    features = encoder.encode(NEEDS)
    assert not any(weights.requires_grad for weights in encoder.network.parameters())
    assert not list(encoder.parameters())  # checkpoints of policies stay small
    packed = pickle.dumps(encoder)
    assert len(packed) < 4000
    torch.testing.assert_close(pickle.loads(packed).encode(NEEDS), features)


def test_the_bundled_one_tells_words_apart():
    encoder = policies.make_need_encoder("clip_tiny", device="cpu")
    features = encoder.encode(["a red star", "a blue star", "a red star"])
    assert features.shape == (3, 3, 128)
    torch.testing.assert_close(features[0], features[2])
    assert (features[0] - features[1]).abs().amax(dim=1).min() > 0.1
    assert 100_000 < sum(weights.numel() for weights in encoder.network.parameters()) < 1_000_000


def test_what_cannot_be_used_is_refused(models, tmp_path):
    with pytest.raises(UserError, match="levels=5: expected 1 to 4, the blocks it has"):
        make(models, "clip", levels=5)
    with pytest.raises(UserError, match="levels=0"):
        make(models, "bert", levels=0)
    with pytest.raises(UserError, match="cached -1: expected at least 0"):
        make(models, "bert", cached=-1)
    with pytest.raises(UserError, match="holds a 'bert' model: expected clip or clip_text_model"):
        policies.make_need_encoder("clip", checkpoint=models["bert"][0])
    with pytest.raises(UserError, match="neither a folder nor a model"):
        policies.make_need_encoder("siglip", checkpoint=tmp_path / "no" / "where")
    with pytest.raises(UserError, match="unknown need encoder 'flip': expected one of clip"):
        policies.make_need_encoder("flip")
    assert {*NAMES, "clip_tiny", "bag_of_words"} <= set(policies.need_encoder_names())


def test_a_blip_without_a_text_encoder_is_refused(models, tmp_path):
    config = BlipConfig.from_pretrained(models["blip"][0])
    BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    word_pieces(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="BlipForConditionalGeneration: expected one with a text encoder"):
        policies.make_need_encoder("blip", checkpoint=tmp_path, device="cpu").encode(["red"])


def test_a_folder_without_words_is_refused(models, tmp_path):
    models["bert"][1].save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no tokenizer there: expected tokenizer.json or vocab.txt"):
        policies.make_need_encoder("bert", checkpoint=tmp_path, device="cpu").encode(["red"])


def test_a_surrogate_without_its_other_half_is_replaced():
    assert clean(["\ud83d a", "\t"]) == ["? a", ""]
