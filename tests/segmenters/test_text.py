"""Phrases and tokenizers."""

from __future__ import annotations

import io

import pytest
import sentencepiece

from maskgym.errors import UserError
from maskgym.segmenters.text import (
    find_tokenizer,
    load_tokenizer,
    split_semantic,
    tokenize,
    uniform_phrase,
    word_tokenizer,
)

SENTENCES = ["the red dog on the left side", "a blue car in the street", "[semantic] a small green bird"] * 20


@pytest.fixture(scope="module")
def pieces() -> bytes:
    """Build a small SentencePiece model in place of beit3.spm."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=stream, vocab_size=28, minloglevel=2
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("[semantic] ducks", "[semantic] ducks"),
        ("[semantic]ducks", "[semantic] ducks"),
        ("  [semantic] \n\t  yellow   ducks ", "[semantic] yellow ducks"),
        ("a  duck", "a duck"),
        ("ducks [semantic]", "ducks [semantic]"),
        ("", ""),
        ("[semantic]", "[semantic] "),
    ],
)
def test_whitespace_after_the_prefix_is_free(phrase, expected):
    assert uniform_phrase(phrase) == expected
    assert uniform_phrase(expected) == expected
    assert split_semantic(phrase)[0] == expected.startswith("[semantic]")


def test_word_tokenizer_by_hand(tmp_path):
    tokenizer = word_tokenizer(["red dog", "[semantic] dog", "close-up"])
    # Sorted after the four special tokens: - [semantic] close dog red up
    assert tokenizer("RED  dog").input_ids == [0, 8, 7, 2]
    assert tokenizer("[semantic] dog").input_ids == [0, 5, 7, 2]
    assert tokenizer("a dog").input_ids == [0, 3, 7, 2]
    assert tokenizer("").input_ids == [0, 2]
    assert len(tokenizer) == 10
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(find_tokenizer(tmp_path), vocabulary_size=12)
    assert again("Close-up of a red dog").input_ids == tokenizer("Close-up of a red dog").input_ids


def test_tokenize_pads_on_the_right_and_cuts_what_is_too_long():
    ids, padding = tokenize(word_tokenizer(["red dog"]), ["dog", "red red red dog", ""], max_tokens=4)
    assert ids.tolist() == [[0, 4, 2, 1], [0, 5, 5, 2], [0, 2, 1, 1]]
    assert padding.tolist() == [[False, False, False, True], [False] * 4, [False, False, True, True]]


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "beit3.spm"])
def test_sentencepiece_ids_are_piece_numbers_plus_one(tmp_path, pieces, name):
    (tmp_path / name).write_bytes(pieces)
    tokenizer = load_tokenizer(find_tokenizer(tmp_path), vocabulary_size=30)
    reference = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    for phrase in ("the red dog", "[semantic] a car"):
        expected = [0, *(number + 1 if number else 3 for number in reference.encode(phrase)), 2]
        assert 3 not in expected
        assert tokenizer(phrase).input_ids == expected
    assert tokenizer("ĵ").input_ids[-2:] == [3, 2]
    assert len(tokenizer) == 30  # 28 pieces, <pad> and <mask>


def test_sentencepiece_saved_as_json_keeps_its_ids(tmp_path, pieces):
    (tmp_path / "beit3.spm").write_bytes(pieces)
    first = load_tokenizer(find_tokenizer(tmp_path), vocabulary_size=30)
    (tmp_path / "tokenizer.json").write_text(first.backend_tokenizer.to_str())
    second = load_tokenizer(tmp_path / "tokenizer.json", vocabulary_size=30)
    for phrase in SENTENCES:
        assert second(phrase).input_ids == first(phrase).input_ids


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, pieces):
    file = tmp_path / "beit3.spm"
    file.write_bytes(pieces)
    with pytest.raises(UserError, match="30 ids, but the model has rows for 29"):
        load_tokenizer(file, vocabulary_size=29)
    file.write_bytes(b"no model")
    with pytest.raises(UserError, match="beit3.spm: cannot be read as a tokenizer") as caught:
        load_tokenizer(file, vocabulary_size=30)
    assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json: cannot be read"):
        load_tokenizer(find_tokenizer(tmp_path), vocabulary_size=30)


def test_special_tokens_in_another_order_are_refused(tmp_path):
    text = word_tokenizer(["dog"]).backend_tokenizer.to_str()
    (tmp_path / "tokenizer.json").write_text(text.replace('"<pad>":1', '"<pad>":5').replace('"dog":4', '"dog":1'))
    with pytest.raises(UserError, match="expected \\[0, 1, 2, 3\\]"):
        load_tokenizer(tmp_path / "tokenizer.json", vocabulary_size=9)


def test_a_missing_tokenizer_names_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json, sentencepiece.bpe.model, beit3.spm"):
        find_tokenizer(tmp_path)


def test_special_tokens_may_come_last():
    tokenizer = word_tokenizer(["red dog"], special_last=True)
    assert tokenizer("Red cat").input_ids == [2, 1, 5, 4]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (2, 3, 4)
