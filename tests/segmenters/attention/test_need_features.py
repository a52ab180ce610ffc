"""Features of needs by the bundled CLIP: their width without weights, unit length, zeros for empty needs."""

from __future__ import annotations

import pytest
import torch

from maskgym.errors import UserError
from maskgym.policies.needs.need_encoder import NeedEncoder
from maskgym.segmenters.attention.clip_surgery import clip_tiny
from maskgym.segmenters.attention.need_features import NeedFeatures


@pytest.fixture(scope="module")
def clip():
    return clip_tiny(device="cpu")


def test_the_width_needs_no_weights():
    fresh = clip_tiny(device="cpu")
    assert NeedFeatures(fresh).width == 128 and "network" not in vars(fresh)


def test_features_are_clips_and_an_empty_need_has_none(clip):
    found = NeedFeatures(clip).encode(["find a red star", " ", "find a red star", "[semantic]", "a blue disc"])
    assert found.shape == (5, 1, 128) and found.dtype == torch.float32 and not found.requires_grad
    assert found[:, 0].norm(dim=-1).tolist() == pytest.approx([1, 0, 1, 0, 1])
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[4], atol=0.1)
    torch.testing.assert_close(found[[0, 4], 0], clip.text_features(["find a red star", "a blue disc"]))
    assert NeedFeatures(clip).encode([]).shape == (0, 1, 128)


def test_it_has_the_form_of_a_need_encoder(clip):
    for name in NeedEncoder.__annotations__:
        assert getattr(NeedFeatures(clip), name) == {"levels": 1, "width": 128, "random_weights": False}.get(
            name, clip.fingerprint
        )


def test_an_empty_text_has_no_feature_of_clips(clip):
    with pytest.raises(UserError, match="text 1 is empty"):
        clip.text_features(["a star", "[semantic]"])
    with pytest.raises(TypeError, match="one string"):
        clip.text_features("a star")
