"""SAMed: the effect of its low-rank updates."""

from __future__ import annotations

import torch
from torch import nn

from maskgym.policies.few_shot.samed import SAMed


def test_low_rank_updates_leave_the_keys_alone(segmenter):
    model, tokens = SAMed(segmenter, rank=2), torch.randn(2, 3, 3, 96)
    before = segmenter.network.image_encoder.blocks[0].attn.qkv
    after = model.sam.image_encoder.blocks[0].attn.qkv
    torch.testing.assert_close(after(tokens), before(tokens))
    for name, part in (("query", 0), ("value", 2)):
        down, up = (getattr(getattr(after, name), f"lora_{end}")["default"].weight for end in "AB")
        nn.init.normal_(up)
        change = (after(tokens) - before(tokens))[..., 96 * part : 96 * part + 96]
        torch.testing.assert_close(change, tokens @ (up @ down).T, atol=1e-4, rtol=1e-4)
        assert torch.linalg.matrix_rank(up @ down) == 2
    assert (after(tokens) - before(tokens))[..., 96:192].abs().max() < 1e-5


def test_with_rank_0_the_decoder_alone_is_adapted(segmenter, samples):
    model = SAMed(segmenter, rank=0, steps=3, batch_size=2)
    given = segmenter.network.state_dict()
    losses = model.fit(samples)
    changed = {name for name, value in model.sam.state_dict().items() if not torch.equal(value, given[name])}
    assert model.sam.state_dict().keys() == given.keys() and len(losses) == 3
    assert not any(name.startswith("image_encoder") for name in changed)
    assert "prompt_encoder.no_mask_embed.weight" in changed
    assert any(name.startswith("mask_decoder.") for name in changed)
