from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from maskgym.errors import UserError
from maskgym.policies.clicks.point import PointActorCritic

SIDE = 4
ACTIONS = {"patches": spaces.Discrete(SIDE**2), "labelled": spaces.MultiDiscrete([SIDE**2, 2])}


@pytest.fixture
def shown() -> spaces.Dict:
    box = {"state": (6, SIDE, SIDE), "mask": (1, SIDE, SIDE)}
    maps = {name: spaces.Box(-1, 1, shape, np.float32, seed=0) for name, shape in box.items()}
    return spaces.Dict({**maps, "clicked": spaces.MultiBinary((1, SIDE, SIDE), seed=1)})


@pytest.fixture
def rows(shown):
    shown.seed(0)
    return [shown.sample() for _ in range(5)]


def build(shown, name):
    torch.manual_seed(0)
    network = PointActorCritic(8, 1).network(shown, ACTIONS[name])
    torch.nn.init.normal_(network.actor.patch.weight)  # far from uniform
    return network


@pytest.mark.parametrize("name", ACTIONS)
def test_log_probabilities_are_those_of_stable_baselines3_with_the_same_weights(shown, rows, name):
    from maskgym.agents.clicks.sb3 import GridPolicy

    network = build(shown, name)
    theirs = GridPolicy(shown, ACTIONS[name], lambda _: 1e-3, networks=PointActorCritic(8, 1))
    theirs.features_extractor.trunk.load_state_dict(network.trunk.state_dict())
    theirs.action_net.load_state_dict(network.actor.state_dict())
    actions = network.sample(rows)
    batch = {key: np.stack([row[key] for row in rows]) for key in shown.spaces}
    tensors, _ = theirs.obs_to_tensor(batch)
    expected = theirs.get_distribution(tensors).log_prob(torch.from_numpy(actions))
    found = network.log_probabilities(rows, actions)
    assert found.shape == (5,) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert np.array_equal(network.sample(rows, greedy=True), theirs.predict(batch, deterministic=True)[0])


@pytest.mark.parametrize("name", ACTIONS)
def test_the_gradient_raises_the_probability_of_an_action(shown, rows, name):
    network = build(shown, name)
    free = [int(np.flatnonzero(row["clicked"].ravel() == 0)[0]) for row in rows]
    actions = np.array(free if name == "patches" else [(patch, 1) for patch in free])
    before = network.log_probabilities(rows, actions)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    (-before.mean()).backward()
    optimizer.step()
    assert network.log_probabilities(rows, actions).mean() > before.mean()


def test_probabilities_of_all_actions_sum_to_one(shown, rows):
    network = build(shown, "labelled")
    pairs = np.array([(patch, label) for patch in range(SIDE**2) for label in (0, 1)])
    values = network.log_probabilities([rows[0]] * len(pairs), pairs)
    assert values.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert all(pair in ACTIONS["labelled"] for pair in network.sample(rows))


def test_the_input_of_equation_5_is_the_state_alone(shown, rows):
    torch.manual_seed(0)
    network = PointActorCritic(8, 1, inputs="state").network(shown, ACTIONS["patches"])
    torch.nn.init.normal_(network.actor.patch.weight)
    free = [{**row, "clicked": np.zeros_like(row["clicked"])} for row in rows]
    (before,) = network(free)
    (masked,) = network([{**row, "mask": 1 - row["mask"]} for row in free])
    torch.testing.assert_close(masked.logits, before.logits, atol=0, rtol=0)
    turned = [{**row, "state": np.rot90(row["state"], 2, (1, 2)).copy()} for row in free]  # no place is told apart
    network.trunk.blocks[2].weight.data[:, :, [0, 0, 0, 1, 2, 2, 2, 1], [0, 1, 2, 2, 2, 1, 0, 0]] = 0
    (upright,), (upside_down,) = network(free), network(turned)
    torch.testing.assert_close(upside_down.logits.flip(1), upright.logits)
    (clicked,) = network(rows)
    assert (clicked.probs[torch.tensor(np.stack([row["clicked"].ravel() for row in rows])) > 0] == 0).all()
    with pytest.raises(UserError, match="inputs='mask': expected one of all, state"):
        PointActorCritic(8, 1, inputs="mask")


def test_clicked_patches_are_not_drawn(shown, rows):
    network, row = build(shown, "patches"), dict(rows[0])
    row["clicked"] = np.ones((1, SIDE, SIDE), np.int8)
    row["clicked"][0, 1, 2] = 0
    assert set(network.sample([row] * 20).tolist()) == {6}


@pytest.mark.parametrize(("name", "shape"), [("patches", (5, 2)), ("labelled", (5,)), ("patches", (4,))])
def test_actions_of_a_wrong_shape_are_refused(shown, rows, name, shape):
    with pytest.raises(UserError, match=r"log_probabilities: actions of shape \(\d, ?\d?\): expected \(5"):
        build(shown, name).log_probabilities(rows, np.zeros(shape, int))
