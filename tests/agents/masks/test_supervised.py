"""Supervised training of UserSal through an environment: what is shown, the schedule, learning, resuming, files."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgym import agents
from maskgym.agents.masks.acting import content, letterboxed
from maskgym.agents.masks.batches import Batches, batch_of, loading, show
from maskgym.agents.masks.supervised import UserSalAgent, UserSalPlusAgent
from maskgym.data.layout.images import DataFault
from maskgym.data.scenes import Scenes
from maskgym.envs.need import UserNeedVectorEnv
from maskgym.envs.ranking import RankingVectorEnv
from maskgym.errors import UserError
from maskgym.policies.needs.usersal import UserSal, UserSalPlus

SMALL = {"width": 8, "heads": 2, "window": 4, "siamese": "linear"}
KINDS = {"usersal": (UserSalAgent, UserSal, {}), "usersal_plus": (UserSalPlusAgent, UserSalPlus, SMALL)}


@pytest.fixture
def squares(squares_env):
    """The class of the data set that `squares_env` shows."""
    return type(squares_env(1).dataset)


@pytest.fixture
def make_agent(detector, need_encoder, squares_env, tmp_path):
    def make(kind="usersal", env=None, output=None, policy=None, **settings):
        agent, network, sizes = KINDS[kind]
        torch.manual_seed(0)
        policy = network(detector, need_encoder, hidden=16, **sizes | (policy or {}))
        given = {"learning_rate": 3e-3, "batch_size": 16, "save_every": 1000, "decay_epoch": 1000} | settings
        return agent(policy, env or squares_env(16), output=output or tmp_path, **given)

    return make


def train(agent, env, updates, resume=False):
    rows = {}
    agent.train([env], updates, lambda step, values: rows.update({step: dict(values)}), resume=resume)
    return rows


def quality(agent, env, need=None):
    """Return the mean IoU on every sample of an environment that shows them all at once."""
    observations, _ = env.reset(options={"index": np.arange(env.num_envs)})
    asked = [{"image": observations["image"][i], "need": observations["need"][i]} for i in range(env.num_envs)]
    return env.step(agent.act([row if need is None else row | {"need": need} for row in asked]))[1].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_square_that_is_asked_for_is_learned_and_the_detector_stays(make_agent, squares_env, kind):
    env, held_out = squares_env(16), squares_env(16, split="test")
    # At Eq. 5's weight of 1 the appearance loss, 6 beside a squared error of 0.14 here, would decide alone at first.
    agent = make_agent(kind, env, policy={"appearance_weight": 0.02} if kind == "usersal_plus" else None)
    plain = quality(agent, held_out, need="")
    assert 0.4 < plain < 0.55  # both squares for one
    rows = train(agent, env, 60)
    assert quality(agent, held_out) > 0.75
    assert rows[60]["train/mse"] < 0.3 * rows[1]["train/mse"]
    assert quality(agent, held_out, need="") == plain


def loaded(env, indices, chances):
    """Return pixels, needs and targets of samples, as a step takes them."""
    batch, cpu = show(env.resized(len(indices)), np.asarray(indices), chances), torch.device("cpu")
    return batch.pixels(cpu), batch.needs, batch.wanted(cpu)


def test_a_batch_holds_what_the_environment_shows_and_loads_no_more(squares_env):
    env = squares_env(4)
    pixels, needs, targets = loaded(env, [3, 0, 7, 7, 9, 2], np.zeros(6))
    assert env.shown == [3, 0, 7, 7, 9, 2]  # whatever the number of sub-environments
    for row, index in enumerate([3, 0, 7, 7, 9, 2]):
        sample = env.dataset[index]
        assert needs[row] == sample.need
        assert torch.equal(pixels[row], torch.from_numpy(sample.images[0]).permute(2, 0, 1) / 255)
        assert torch.equal(targets[row, 0], torch.from_numpy(sample.union()).float())


def test_of_ranked_objects_the_target_is_the_first_that_is_not_erased(ranked_squares):
    env = RankingVectorEnv(4, ranked_squares, image_size=32, autoreset_mode="Disabled")
    indices = np.tile(np.arange(11), 2)
    chances = np.random.default_rng(0).random(len(indices))
    pixels, needs, targets = loaded(env, indices, chances)
    seen = set()
    for row, index in enumerate(indices):
        sample = ranked_squares[index]
        order = np.argsort(-sample.ranks[0])
        first, second = sample.masks[0][order]
        erased = sample.images[0].copy()
        erased[first] = sample.images[0][~first].mean(axis=0).round()
        image, target = (pixels[row] * 255).permute(1, 2, 0).numpy().round(), targets[row, 0].numpy() > 0.5
        depth = int(chances[row] >= 0.5)
        assert needs[row] == sample.need
        assert (target == (second if depth else first)).all()
        assert (image == (erased if depth else sample.images[0])).all()
        seen.add((int(index), depth))
    assert {depth for _, depth in seen} == {0, 1}
    assert len(seen) > 11  # some images at both


def test_no_more_is_erased_than_the_environment_has_steps(ranked_squares):
    env = RankingVectorEnv(4, ranked_squares, image_size=32, steps=1, autoreset_mode="Disabled")
    pixels, _, _ = loaded(env, np.arange(16), np.linspace(0, 0.99, 16))
    shown = (pixels * 255).permute(0, 2, 3, 1).numpy().round()
    assert all((shown[i] == ranked_squares[i].images[0]).all() for i in range(16))


def test_targets_lie_where_the_letterboxed_image_does():
    mask = np.zeros((2, 20, 40), bool)
    mask[0, :10], mask[1, :, :20] = True, True
    target = torch.from_numpy(letterboxed([mask], 20))[0] / 255
    expected = torch.zeros(20, 20)
    expected[:5], expected[:10, :10] = 1, 1
    torch.testing.assert_close(target, expected, atol=0.5, rtol=0)
    image = np.zeros((20, 20, 3), np.uint8)
    assert content(image) == (20, 20)
    image[:10, :, 1] = 7
    assert content(image) == (10, 20)


def test_epochs_are_permutations_that_differ():
    shown = np.concatenate([batch_of(number, 4, 10, seed=3) for number in range(5)])
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert list(shown[:10]) != list(shown[10:])
    assert list(shown) == list(batch_of(0, 20, 10, seed=3)) != list(batch_of(0, 20, 10, seed=4))


def test_the_rate_falls_by_ten_at_its_epoch(make_agent, squares_env):
    env = squares_env(8)
    agent = make_agent(env=env, batch_size=8, decay_epoch=1, learning_rate=1e-3)
    rows = train(agent, env, 4)
    assert [rows[n]["epoch"] for n in range(1, 5)] == [0, 0, 1, 1]
    assert [rows[n]["train/learning_rate"] for n in range(1, 5)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert sorted(env.shown) == sorted([*range(16)] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_is_the_uninterrupted_one(make_agent, squares_env, kind, tmp_path):
    env = squares_env(8)
    settings = {"batch_size": 6, "save_every": 1, "decay_epoch": 0}
    whole = make_agent(kind, env, tmp_path / "whole", **settings)
    rows = train(whole, env, 3)
    train(make_agent(kind, env, tmp_path / "parts", **settings), env, 2)
    second = make_agent(kind, env, tmp_path / "parts", policy={}, **settings)
    for parameter in second.policy.trainable_parameters():
        parameter.data.zero_()
    torch.rand(7)  # whatever else was drawn in between
    again = train(second, env, 3, resume=True)
    assert list(again) == [3] and again[3] == rows[3]
    for name, value in whole.policy.trained_state().items():
        torch.testing.assert_close(second.policy.trained_state()[name], value, atol=0, rtol=0)
    assert train(second, env, 3, resume=True) == {}


def test_a_batch_without_a_need_teaches_nothing(make_agent, squares_env):
    env = squares_env(8, need="")
    agent = make_agent(env=env)
    before = {name: value.clone() for name, value in agent.policy.trained_state().items()}
    rows = train(agent, env, 1)
    assert rows[1]["train/mse"] > 0
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.trained_state().items())


def test_answers_are_legal_whatever_the_batch(make_agent, squares_env):
    env = squares_env(16)
    agent = make_agent(env=env)
    observations, _ = env.reset(options={"index": np.arange(16)})
    rows = [{"image": observations["image"][i], "need": observations["need"][i]} for i in range(16)]
    rows += rows[:3]  # more than go through at once
    maps = agent.act(rows)
    assert maps.shape == (19, 32, 32) and maps.dtype == np.float32
    assert maps[0] in env.single_action_space
    np.testing.assert_allclose(maps[16:], maps[:3], atol=1e-6)
    np.testing.assert_allclose(agent.act(rows[4:5])[0], maps[4], atol=1e-5)


def test_saved_and_loaded_by_another_agent(make_agent, squares_env, tmp_path):
    env = squares_env(8)
    agent, other = make_agent(env=env), make_agent(env=env)
    train(agent, env, 2)
    agent.save(tmp_path / "policy")
    assert quality(other, squares_env(16)) != quality(agent, squares_env(16))
    other.load(tmp_path / "policy")
    assert quality(other, squares_env(16)) == quality(agent, squares_env(16))
    with pytest.raises(UserError, match="its policy has kind=usersal: expected usersal_plus"):
        make_agent("usersal_plus", env).load(tmp_path / "policy")


def test_a_checkpoint_of_another_policy_is_refused_in_one_line(make_agent, squares_env, tmp_path):
    env = squares_env(8)
    train(make_agent(env=env, save_every=1), env, 1)
    with pytest.raises(UserError, match=r"masks\.pt: its policy has tokens=4: expected 2") as caught:
        train(make_agent(env=env, policy={"tokens": 2}), env, 2, resume=True)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(make_agent, squares_env, detector, need_encoder, tmp_path):
    env = squares_env(4)
    assert agents.get("usersal") is UserSalAgent and agents.get("usersal_plus") is UserSalPlusAgent
    with pytest.raises(UserError, match="policy=usersal: expected usersal_plus"):
        UserSalPlusAgent(UserSal(detector, need_encoder), env, output=tmp_path)
    with pytest.raises(UserError, match="policy=object: expected usersal"):
        UserSalAgent(object(), env, output=tmp_path)
    with pytest.raises(UserError, match="algo.batch_size=0: expected at least 1"):
        make_agent(batch_size=0)
    with pytest.raises(UserError, match="algo.decay_epoch=-1: expected at least 0"):
        make_agent(decay_epoch=-1)
    detector.size_divisor = 24
    with pytest.raises(UserError, match="env.image_size=32: expected a multiple of 24"):
        make_agent()


def test_the_checkpoint_of_another_algorithm_is_refused(make_agent, squares_env):
    env = squares_env(8)
    train(make_agent("usersal", env, save_every=1), env, 1)
    with pytest.raises(UserError, match=r"a checkpoint of UserSalAgent: expected one of UserSalPlusAgent"):
        train(make_agent("usersal_plus", env), env, 2, resume=True)


def test_a_faulty_sample_is_named_in_one_line_and_the_checkpoint_before_it_stays(
    make_agent, squares_env, squares, monkeypatch
):
    env = squares_env(8)
    agent, (faulty, *_) = make_agent(env=env, batch_size=8, save_every=1), batch_of(1, 8, 16, seed=0)
    read = squares.__getitem__

    def fail(dataset, index):
        if index == faulty:
            raise DataFault(f"squares{index}.png: cannot be decoded")
        return read(dataset, index)

    monkeypatch.setattr(squares, "__getitem__", fail)
    with pytest.raises(DataFault, match=rf"^squares{faulty}\.png: cannot be decoded$"):
        train(agent, env, 3)
    assert make_agent(env=env, batch_size=8).restore() == 1


def scenes_env(num_envs=2, image_size=32, size=12):
    return UserNeedVectorEnv(
        num_envs, Scenes("need", "train", size=size), image_size=image_size, autoreset_mode="Disabled"
    )


@pytest.mark.e2e(seconds=30)
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_worker_processes_gives_the_same_training(make_agent, workers, tmp_path):
    env, settings = scenes_env(), {"batch_size": 4, "save_every": 2}
    rows = train(one := make_agent(env=env, output=tmp_path / "one", **settings), env, 5)
    several = make_agent(env=env, output=tmp_path / "several", workers=workers, **settings)
    assert train(several, env, 5) == rows
    for name, value in one.policy.trained_state().items():
        assert torch.equal(several.policy.trained_state()[name], value)
    assert not multiprocessing.active_children()


class Faulty(Scenes):
    """Scenes of which one has no picture."""

    def __getitem__(self, index):
        if index == 5:
            raise DataFault("scenes/5.png: cannot be decoded")
        return super().__getitem__(index)


@pytest.mark.e2e(seconds=30)
def test_worker_processes_end_with_a_fault_a_kill_or_an_interruption(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])  # where a new process finds `Faulty`
    env = scenes_env()
    batches = Batches([env], 4, seed=0)

    def use(end):
        with loading(batches, range(3), workers=1) as batches_of_worker:
            for _ in batches_of_worker:
                end()

    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(0.5)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(UserError, match=r"^data\.workers=1: a process that loads samples died") as caught:
        use(kill)
    assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt):
        use(interrupt)
    used = []

    def press():  # Ctrl-C reaches all processes of a terminal
        used.append(os.kill(multiprocessing.active_children()[0].pid, signal.SIGINT))

    use(press)
    assert len(used) == 3 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    batches.envs[0].dataset = Faulty("need", "train", size=12)
    with pytest.raises(DataFault, match=r"^scenes/5\.png: cannot be decoded$"):
        use(lambda: None)
    del caught
    gc.collect()
    assert not multiprocessing.active_children()


def test_several_workers_share_each_batch(squares_env, monkeypatch):
    env, images, needs = squares_env(8), [], []
    whole = Batches([env], 6, seed=1)[3]
    monkeypatch.setattr("maskgym.agents.common.parallel.size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("maskgym.agents.common.parallel.rank", lambda rank=rank: rank)
        share = Batches([env], 6, seed=1)[3]
        images.append(share.images)
        needs.append(share.needs)
    assert torch.equal(torch.stack(images, dim=1).flatten(0, 1), whole.images)
    assert [need for pair in zip(*needs, strict=True) for need in pair] == whole.needs


def test_a_batch_of_another_process_is_the_same():
    batches = Batches([scenes_env()], 4, seed=0)
    sent = pickle.loads(pickle.dumps(batches))
    for update in (0, 4):
        one, other = batches[update], sent[update]
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        assert one.needs == other.needs and one.images.dtype == one.targets.dtype == torch.uint8


def test_data_that_no_process_can_receive_is_refused_in_one_line():
    class Local(Scenes):
        pass

    env = UserNeedVectorEnv(2, Local("need", "train", size=12), image_size=32, autoreset_mode="Disabled")
    refused = r"^data\.workers=2: the data cannot be sent to another process \(.*Local.*\): expected 0$"
    with pytest.raises(UserError, match=refused), loading(Batches([env], 4, seed=0), range(2), workers=2):
        pass


def test_loading_makes_no_random_draw_of_the_run(squares_env):
    batches = Batches([squares_env(4)], 4, seed=0)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with loading(batches, range(2), workers=0) as found:
        next(found)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_bfloat16_and_the_loss_in_float32(make_agent, squares_env, kind, monkeypatch):
    env, seen, losses = squares_env(8), set(), set()
    agent = make_agent(kind, env, autocast="bfloat16", batch_size=8)
    exact = make_agent(kind, env, autocast="float32", batch_size=8)
    assert make_agent(kind, env).precision is torch.float32  # auto, on a CPU
    agent.policy.prompts.shared.register_forward_hook(lambda module, given, found: seen.add(found.dtype))
    loss = type(agent.policy).loss

    def watched(policy, *given):
        found = loss(policy, *given)
        losses.add(found[0].dtype)
        return found

    monkeypatch.setattr(type(agent.policy), "loss", watched)
    rows, expected = train(agent, env, 2), train(exact, env, 2)
    assert seen == {torch.bfloat16} and losses == {torch.float32}
    assert all(value.dtype == torch.float32 for value in agent.policy.trained_state().values())
    assert rows[2]["train/loss"] != expected[2]["train/loss"]
    assert rows[2]["train/loss"] == pytest.approx(expected[2]["train/loss"], rel=0.05)
    assert agent.check_data([env], 1000 * 16)[0] == "algo.autocast: bfloat16"
    with pytest.raises(UserError, match="algo.autocast=float16: expected one of auto, float32, bfloat16"):
        make_agent(kind, env, autocast="float16")


def test_a_decay_that_never_comes_is_told(make_agent, squares_env):
    env = squares_env(8)
    agent = make_agent(env=env, batch_size=8, decay_epoch=3)
    assert agent.check_data([env], 7) == []  # 16 samples: the last update is the first of epoch 3
    (told,) = agent.check_data([env], 6)
    assert told == (
        "algo.decay_epoch=3: never comes, the learning rate stays: 6 updates of 8 samples are 3 epochs of 16"
    )


def test_training_without_a_need_is_refused_or_told(make_agent, squares_env, squares, monkeypatch):
    env, read = squares_env(8), squares.__getitem__
    monkeypatch.setattr(squares, "__getitem__", lambda dataset, index: replace(read(dataset, index), need=None))
    agent = make_agent(env=env)
    with pytest.raises(UserError, match="none of 16 training samples has a need, so the policy answers as the plain"):
        agent.check_data([env], 1)
    env.need = False
    assert "env.need=false" in agent.check_data([env], 10**6)[0]
    paper = make_agent(env=env, policy={"skip_empty_need": False})
    assert paper.check_data([env], 10**6) == []
