"""UserSal and UserSal+: frozen parts, empty needs, the losses again in plain PyTorch, switches, files."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from maskgym import manifest, policies
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import (
    DESCRIPTION,
    WEIGHTS,
    UserSal,
    UserSalPlus,
    fingerprint,
)

NEEDS = ["find the red car", "find the blue one"]
SMALL = {"width": 8, "heads": 2, "window": 3}


def photos(count=2, side=32, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def targets(count=2, side=32):
    found = torch.zeros(count, 1, side, side)
    found[:, :, 4:20, 8:24] = 1
    return found


def make(kind, backbone, encoder, seed=0, disturbed=False, **settings):
    torch.manual_seed(seed)
    policy = kind(backbone, encoder, hidden=8, **(SMALL if kind is UserSalPlus else {}), **settings)
    if disturbed:  # as training might leave it: what starts with zeros has some weight
        torch.manual_seed(seed + 1)
        for parameter in policy.trainable_parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return policy


@pytest.fixture(params=[UserSal, UserSalPlus], ids=["usersal", "usersal_plus"])
def kind(request):
    return request.param


def test_maps_and_tokens_have_their_shapes(kind, backbone, need_encoder):
    policy = make(kind, backbone, need_encoder, tokens=3)
    assert policy(photos(), NEEDS).shape == (2, 1, 32, 32)
    prompts = policy.prompts(need_encoder.encode(NEEDS).clone())
    assert [tuple(prompt.shape) for prompt in prompts] == [(2, 3, 12), (2, 3, 16), (2, 3, 16)]


def test_the_need_decides_and_every_place_is_prompted(kind, backbone, need_encoder):
    policy = make(kind, backbone, need_encoder)
    one, other = (policy(photos(1), [need]) for need in NEEDS)
    assert (one - other).abs().max() > 1e-3
    policy.loss(photos(), NEEDS, targets())[0].backward()
    assert all(place.weight.grad.abs().sum() > 0 for place in policy.prompts.places)


def test_what_is_frozen_stays_as_it_is(kind, backbone, need_encoder):
    before = deepcopy(backbone.state_dict()), deepcopy(need_encoder.state_dict())
    policy = make(kind, backbone, need_encoder)
    optimizer = torch.optim.Adam(policy.trainable_parameters(), 1e-2)
    trained = {name: value.clone() for name, value in policy.trained_state().items()}
    policy.train()
    assert policy.training and not any(module.training for module in (*backbone.modules(), *need_encoder.modules()))
    for _ in range(3):
        optimizer.zero_grad()
        policy.loss(photos(), NEEDS, targets())[0].backward()
        optimizer.step()
    frozen = [*backbone.parameters(), *need_encoder.parameters()]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    for module, state in zip((backbone, need_encoder), before, strict=True):  # statistics of batch norm included
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    changed = {name for name, value in policy.trained_state().items() if not torch.equal(value, trained[name])}
    assert not any(name.startswith(("backbone", "encoder")) for name in trained)
    assert changed == set(trained)


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_need_is_the_plain_detector(kind, backbone, need_encoder, empty):
    policy, pixels = make(kind, backbone, need_encoder, disturbed=True), photos(3)
    plain = backbone(pixels)
    torch.testing.assert_close(policy(pixels, [empty] * 3), plain, atol=0, rtol=0)
    mixed = policy(pixels, [NEEDS[0], empty, NEEDS[1]])
    torch.testing.assert_close(mixed[1], plain[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[[0, 2]], policy(pixels[[0, 2]], NEEDS), atol=1e-5, rtol=1e-5)
    assert (mixed[[0, 2]] - plain[[0, 2]]).abs().max() > 1e-3
    loss, terms = policy.loss(pixels, [empty] * 3, targets(3))
    assert not loss.requires_grad and set(terms) == {"loss", *policy.terms} and terms["loss"] == terms["mse"]


def test_zero_tokens_in_the_attention_would_change_it(kind, backbone, need_encoder):
    padded = make(kind, backbone, need_encoder, skip_empty_need=False)
    assert all(not tokens.any() for tokens in padded.prompts(need_encoder.encode([""]).clone()))
    assert (padded(photos(1), [""]) - backbone(photos(1))).abs().max() > 1e-4


def test_equations_2_and_5_again(backbone, need_encoder):
    policy = make(UserSalPlus, backbone, need_encoder, disturbed=True, appearance_weight=0.5)
    pixels, truth = photos(), targets()
    loss, terms = policy.loss(pixels, NEEDS, truth)
    words = need_encoder.encode(NEEDS).clone()
    prompts = [
        place(F.gelu(policy.prompts.shared(F.layer_norm(words, (16,)))).flatten(1)) for place in policy.prompts.places
    ]
    prompts = [tokens.reshape(2, 4, -1) for tokens in prompts]
    images, wanted, adapted = backbone.scales(pixels), backbone.scales(pixels * truth), {}

    def adapt(n, features):
        adapted[n] = policy.adders[str(n)](features, images[n])
        return adapted[n]

    logits = backbone.decode(backbone.encode(pixels, prompts[:2]), prompts[2:], adapt)
    torch.testing.assert_close(policy(pixels, NEEDS), logits)
    mse = (logits.sigmoid() - truth).square().mean()
    appearance = sum(
        F.kl_div(adapted[n].log_softmax(1), wanted[n].softmax(1), reduction="none").sum(1).mean((1, 2)).mean()
        for n in range(3)
    )
    torch.testing.assert_close(loss, mse + 0.5 * appearance)
    assert terms == pytest.approx(
        {"loss": loss.item(), "mse": mse.item(), "appearance": 0.5 * appearance.item()}, rel=1e-4
    )


def test_training_of_usersal_plus_starts_at_usersal(backbone, need_encoder):
    torch.testing.assert_close(
        make(UserSalPlus, backbone, need_encoder)(photos(), NEEDS),
        make(UserSal, backbone, need_encoder)(photos(), NEEDS),
    )


def test_each_row_of_the_ablation_differs(backbone, need_encoder):
    """Table 5: prompts alone, + similarity, + adder, + appearance loss, + every scale."""
    rows = [
        {"similarity": False, "adder": False, "appearance_loss": False, "multi_scale": False},
        {"adder": False, "appearance_loss": False, "multi_scale": False},
        {"appearance_loss": False, "multi_scale": False},
        {"multi_scale": False},
        {},
    ]
    maps, names, losses = [], [], []
    for row in rows:
        policy = make(UserSalPlus, backbone, need_encoder, disturbed=True, **row)
        loss, terms = policy.loss(photos(), NEEDS, targets())
        maps.append(policy(photos(), NEEDS).detach())
        names.append(set(terms) - {"loss", "mse"})
        losses.append(loss.item())
        assert list(policy.adders) == ([] if row.get("similarity") is False else ["2"] if row else ["0", "1", "2"])
    torch.testing.assert_close(maps[0], make(UserSal, backbone, need_encoder, disturbed=True)(photos(), NEEDS))
    for a, b, same in ((0, 1, False), (1, 2, False), (2, 3, True), (3, 4, False)):
        assert torch.equal(maps[a], maps[b]) is same, (a, b)
    assert names == [set(), set(), set(), {"appearance"}, {"appearance"}]
    assert losses[3] > losses[2] and len(set(losses)) == 5


@pytest.mark.parametrize("change", [{"siamese": "linear"}, {"max_attention_keys": 4}, {"heads": 1}, {"window": 2}])
def test_each_setting_of_the_adder_matters(backbone, need_encoder, change):
    found = []
    for settings in (SMALL, SMALL | change):
        torch.manual_seed(0)
        policy = UserSalPlus(backbone, need_encoder, hidden=8, **settings)
        torch.manual_seed(1)
        for adder in policy.adders.values():
            torch.nn.init.normal_(adder.adder.attention.out.weight)
        found.append(policy(photos(), NEEDS))
    assert (found[0] - found[1]).abs().max() > 1e-5  # of features that are small


@pytest.mark.parametrize(
    "change",
    [{"kl_axis": "all"}, {"kl_temperature": 3.0}, {"appearance_weight": 2.0}, {"appearance_cells": "object"}],
)
def test_each_setting_of_the_loss_matters(backbone, need_encoder, change):
    losses = [make(UserSalPlus, backbone, need_encoder, **s).loss(photos(), NEEDS, targets())[0] for s in ({}, change)]
    assert losses[0].item() != pytest.approx(losses[1].item())


def test_only_what_is_trained_is_saved(kind, backbone, need_encoder, tmp_path):
    policy = make(kind, backbone, need_encoder, disturbed=True)
    policy.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [manifest.NAME, DESCRIPTION, WEIGHTS]
    size = sum(parameter.numel() * 4 for parameter in policy.trainable_parameters())
    assert size < (tmp_path / WEIGHTS).stat().st_size < size + 8192
    fresh = make(kind, backbone, need_encoder, seed=5)
    optimizer = torch.optim.SGD(fresh.trainable_parameters(), 0.1)
    assert not torch.equal(fresh(photos(), NEEDS), policy(photos(), NEEDS))
    fresh.load(tmp_path)
    torch.testing.assert_close(fresh(photos(), NEEDS), policy(photos(), NEEDS), atol=0, rtol=0)
    fresh.loss(photos(), NEEDS, targets())[0].backward()
    optimizer.step()  # an optimiser made before holds what was loaded
    assert not torch.equal(fresh(photos(), NEEDS), policy(photos(), NEEDS))


def test_weights_of_another_policy_are_refused_in_one_line(backbone, need_encoder, tmp_path):
    policy = make(UserSalPlus, backbone, need_encoder)
    policy.save(tmp_path)
    other_encoder = type(need_encoder)(seed=1)
    other_backbone = type(backbone)(seed=1).eval()
    assert fingerprint(backbone) != fingerprint(other_backbone)
    for other, expected in (
        (make(UserSal, backbone, need_encoder), "its policy has kind=usersal_plus: expected usersal"),
        (make(UserSalPlus, other_backbone, need_encoder), f"has backbone={fingerprint(backbone)}: expected"),
        (make(UserSalPlus, backbone, other_encoder), "has encoder=hash0: expected hash1"),
        (make(UserSalPlus, backbone, need_encoder, tokens=2), "has tokens=4: expected 2"),
        (make(UserSalPlus, backbone, need_encoder, multi_scale=False), "has multi_scale=True: expected False"),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            other.load(tmp_path)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere/policy\.json: no such file: expected the folder of a saved policy"):
        policy.load(tmp_path / "nowhere")
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"policy\.safetensors: differs from maskgym_manifest\.json"):
        policy.load(tmp_path)
    (tmp_path / manifest.NAME).unlink()
    (tmp_path / WEIGHTS).write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"policy\.safetensors: cannot be read as weights"):
        policy.load(tmp_path)
    for text in ("{", "[]", json.dumps({"kind": "usersal_plus"})):
        (tmp_path / DESCRIPTION).write_text(text)
        with pytest.raises(UserError, match=r"policy\.json: "):
            policy.load(tmp_path)


def test_descriptions_under_old_names_of_settings_still_fit(backbone, need_encoder, tmp_path):
    policy = make(UserSalPlus, backbone, need_encoder)
    policy.save(tmp_path)
    file = tmp_path / DESCRIPTION
    text = file.read_text().replace("skip_empty_need", "bypass").replace("max_attention_keys", "most_keys")
    file.write_text(text)
    (tmp_path / manifest.NAME).unlink()  # older policies have none
    assert "bypass" in text and "most_keys" in text
    policy.load(tmp_path)
    with pytest.raises(UserError, match="its policy has max_attention_keys=1024: expected 9"):
        make(UserSalPlus, backbone, need_encoder, max_attention_keys=9).load(tmp_path)


def test_what_is_adapted_is_a_setting_and_older_weights_adapt_the_encoder(backbone, need_encoder, tmp_path):
    old = make(UserSalPlus, backbone, need_encoder, disturbed=True, adapts="encoder")
    words = need_encoder.encode(NEEDS).clone()
    prompts, images = old.prompts(words), backbone.encode(photos())
    features = backbone.encode(photos(), prompts[:2])
    adapted = [old.adders[str(n)](features[n], images[n]) for n in range(3)]
    torch.testing.assert_close(old(photos(), NEEDS), backbone.decode(adapted, prompts[2:]))
    now = make(UserSalPlus, backbone, need_encoder, disturbed=True)
    assert (now(photos(), NEEDS) - old(photos(), NEEDS)).abs().max() > 1e-4
    old.save(tmp_path)
    file = tmp_path / DESCRIPTION
    file.write_text(json.dumps({name: v for name, v in json.loads(file.read_text()).items() if name != "adapts"}))
    (tmp_path / manifest.NAME).unlink()  # as before there was a choice
    make(UserSalPlus, backbone, need_encoder, seed=1, adapts="encoder").load(tmp_path)
    with pytest.raises(UserError, match="its policy has adapts=encoder: expected decoder"):
        make(UserSalPlus, backbone, need_encoder).load(tmp_path)


def test_parts_are_settings_or_modules(backbone, need_encoder, tmp_path):
    policy = UserSal(backbone, need_encoder, device="cpu", tokens=2, hidden=16)
    assert policy.settings == {"tokens": 2, "hidden": 16, "skip_empty_need": True}
    policy.save(tmp_path)
    again = UserSal(backbone, need_encoder, checkpoint=tmp_path, device="cpu", tokens=2, hidden=16)
    torch.testing.assert_close(again(photos(), NEEDS), policy(photos(), NEEDS), atol=0, rtol=0)
    settings = {"similarity": False, "appearance_loss": False, "multi_scale": False, "siamese": "linear", **SMALL}
    settings |= {
        "kl_axis": "all",
        "kl_temperature": 2.0,
        "max_attention_keys": 9,
        "tokens": 1,
        "hidden": 4,
        "skip_empty_need": False,
    }
    plus = UserSalPlus(backbone, need_encoder, device="cpu", **settings)
    assert plus.settings.items() >= {k: v for k, v in settings.items() if k[:3] not in ("kl_", "app")}.items()
    assert (plus.kl_axis, plus.kl_temperature, plus.appearance_weight) == ("all", 2.0, 0.0)
    assert policies.make("usersal", backbone=backbone, encoder=need_encoder).kind == "usersal"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"tokens": 0}, "policy.tokens=0: expected at least 1"),
        ({"kl_axis": "x"}, "policy.kl_axis='x': expected one of"),
        ({"kl_temperature": 0.0}, "policy.kl_temperature=0.0: expected more than 0"),
        ({"appearance_cells": "edge"}, "policy.appearance_cells='edge': expected one of all, object"),
        ({"appearance_cells": "object", "kl_axis": "all"}, "policy.kl_axis=all: has no positions to weigh"),
        ({"encoder": {"levels": 2}}, "policy.encoder={'levels': 2}: expected a name"),
    ],
)
def test_wrong_arguments(backbone, need_encoder, arguments, expected):
    with pytest.raises(UserError, match=expected):
        UserSalPlus(**{"backbone": backbone, "encoder": need_encoder} | arguments)
