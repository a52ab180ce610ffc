"""The bag of words: a mean without word order, trained with gradients, saved and loaded."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.nn import functional as F

from maskgym.data.scenes import vocabulary
from maskgym.errors import UserError
from maskgym.policies.needs.bag_of_words import BagOfWords


def test_a_need_is_the_mean_of_its_words():
    encoder = BagOfWords(["red car"], levels=2, width=4)
    table = encoder.table.weight  # of the unknown, car, red
    features = encoder.encode(["Red car car", "dog, red!"])
    for row, words in enumerate(([2, 1, 1], [0, 0, 2, 0])):
        for level in range(2):
            mean = table[words, 4 * level : 4 * level + 4].mean(dim=0)
            torch.testing.assert_close(features[row, level], F.layer_norm(mean, (4,)))


def test_order_is_lost():
    first, second = BagOfWords().encode(["a red star on a blue disc", "a blue star on a red disc"])
    torch.testing.assert_close(first, second)


def test_it_knows_the_words_of_scenes():
    encoder = BagOfWords()
    words = [word for word in vocabulary() if word != "[semantic]"]
    assert set(words) <= set(encoder.rows)
    features = encoder.encode(words).flatten(1)
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 1
    torch.testing.assert_close(*encoder.encode(["zebra", "quagga"]))


def test_it_learns():
    encoder = BagOfWords(["red", "blue"], levels=1, width=8)
    assert not encoder.encode(["red"]).requires_grad
    before = encoder.fingerprint
    optimizer, target = torch.optim.Adam(encoder.parameters(), 0.3), torch.tensor([-1.0, 1] * 4)
    for _ in range(100):
        loss = (encoder.embed(["red"])[0, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(encoder.encode(["red"])[0, 0], target, atol=0.1, rtol=0)
    assert encoder.fingerprint != before


def test_arguments_matter():
    made = [BagOfWords(["red"], width=4), BagOfWords(["red"], width=4, seed=1), BagOfWords(["blue"], width=4)]
    made += [BagOfWords(["red"], levels=2, width=6), BagOfWords(["red"], levels=3, width=2)]
    assert len({encoder.fingerprint for encoder in made}) == 5
    assert made[3].encode(["red"]).shape == (1, 2, 6)
    assert sum(weights.numel() for weights in made[3].network.parameters()) == 2 * 12


def test_what_is_saved_is_loaded(tmp_path):
    encoder = BagOfWords(["rot", "grün"], levels=2, width=4, seed=3)
    encoder.save(tmp_path / "bag")
    for loaded in (BagOfWords(checkpoint=tmp_path / "bag"), pickle.loads(pickle.dumps(encoder))):
        assert loaded.fingerprint == encoder.fingerprint
        torch.testing.assert_close(loaded.encode(["grün", ""]), encoder.encode(["grün", ""]))
        assert loaded.table.weight.requires_grad
    (tmp_path / "bag" / "vocabulary.json").write_text('{"words": ["one"], "levels": 2, "width": 4}')
    with pytest.raises(UserError, match=r"table.weight \(3, 8\) instead of \(2, 8\)"):
        BagOfWords(checkpoint=tmp_path / "bag")
    (tmp_path / "bag" / "vocabulary.json").write_text("{")
    with pytest.raises(UserError, match="vocabulary.json: cannot be read"):
        BagOfWords(checkpoint=tmp_path / "bag")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 0}, "levels=0"),
        ({"width": 1}, "width=1: expected at least"),
        ({"vocabulary": [" "]}, "the vocabulary is empty"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        BagOfWords(**arguments)
