"""Advantages of every algorithm from the same answers, held against those that the trainers give them."""

from __future__ import annotations

import math

import pytest
import torch

from maskgym.agents.text.advantages import advantages_by_algorithm, share_within_prompts
from maskgym.agents.text.cgpo import Answers

# Four groups of four; the second says nothing.
REWARDS = torch.tensor([0.1, 0.5, 0.6, 0.8, 0.3, 0.3, 0.3, 0.3, 0.0, 1.0, 1.0, 1.0, 0.9, 0.7, 0.8, 0.2])
CONFIDENCES = torch.linspace(0.2, 0.95, 16)


@pytest.fixture
def found():
    return advantages_by_algorithm(REWARDS, CONFIDENCES, 4)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "gspo", "rloo", "dapo"])
def test_they_are_those_of_trls_trainers(make_algorithm, found, name):
    kept = []

    def by_batch(completions, **_):
        kept.append(len(completions))
        start = sum(kept[:-1])
        return (REWARDS.tolist() + [0.5] * 99)[start : start + len(completions)]  # DAPO's further groups are flat

    settings = {"overlong_share": 0.0, "sampling_rounds": 2} if name == "dapo" else {}
    trainer = make_algorithm(name, reward_funcs=by_batch, per_device_train_batch_size=16, **settings)
    trainer.model.train()
    theirs = trainer._generate_and_score_completions([0] * 4 + [1] * 4 + [2] * 4 + [3] * 4)["advantages"].double()
    ours = found[name]
    if name == "dapo":  # which puts what it keeps first; answers that it drops have no advantage
        assert ours[4:8].isnan().all() and ours.isnan().sum() == 4
        assert (theirs[12:] == 0).all()
        ours, theirs = ours[~ours.isnan()], theirs[:12]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_spo_answers_every_prompt_once_a_batch(make_algorithm, found):
    batches = REWARDS.view(4, 4).T.tolist()

    def next_rewards(completions, **_):
        return batches.pop(0)

    trainer = make_algorithm("spo", reward_funcs=next_rewards, per_device_train_batch_size=4)
    trainer.model.train()
    theirs = [trainer._generate_and_score_completions([0, 1, 2, 3])["advantages"] for _ in range(4)]
    torch.testing.assert_close(found["spo"].float(), torch.stack(theirs, dim=1).flatten(), atol=1e-4, rtol=1e-4)


def test_cgpo_subtracts_the_confidence(make_trainer, found):
    trainer = make_trainer(isr_sft_steps=0)
    tokens = CONFIDENCES.log().unsqueeze(1)  # answers of one token
    answers = Answers(REWARDS, torch.ones(16, 1), tokens, old=tokens, reference=None, entropies=tokens)
    loss = trainer.policy_loss(answers)
    torch.testing.assert_close(loss, -found["cgpo"].float().mean())  # every ratio is 1


def test_equal_rewards_have_equal_advantages():
    """Without rounding errors, which a rank would make as large as any difference."""
    found = advantages_by_algorithm(torch.full((14,), 0.1), torch.zeros(14), 7)
    assert all(not found[name].any() for name in ("grpo", "dr_grpo", "gspo", "rloo", "spo"))
    assert found["dapo"].isnan().all()


def test_an_answer_without_a_reward_has_none_and_is_left_out():
    rewards = torch.tensor([0.2, math.nan, 0.6, 0.4])
    for name, values in advantages_by_algorithm(rewards, torch.zeros(4), 4).items():
        assert values.isnan().tolist() == [False, True, False, False], name
    assert advantages_by_algorithm(rewards, torch.zeros(4), 4)["rloo"].tolist()[0] == pytest.approx(0.2 - 0.5)


def test_what_is_the_same_for_all_answers_to_a_prompt_tells_none_apart():
    # Prompt means 2 and -2, answers 1 above and below them: 1 of a mean square of 4 + 1.
    advantages = torch.tensor([3.0, 1.0, -1.0, -3.0])
    assert share_within_prompts(advantages, 2) == pytest.approx(0.2)
    assert share_within_prompts(torch.tensor([3.0, 1.0, torch.nan, torch.nan]), 2) == pytest.approx(0.2)
    assert share_within_prompts(torch.tensor([1.0, -1.0, 0.5, -0.5]), 2) == pytest.approx(1)
    assert share_within_prompts(torch.ones(4), 2) == 0
