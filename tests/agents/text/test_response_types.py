"""Response types: which answers are of which, ranks by hand, and what trainers log of them while they train."""

from __future__ import annotations

import math

import pytest
import torch

from maskgym.agents.text.response_types import (
    TYPES,
    confidence,
    geometric_confidence,
    mean_by_type,
    rank_normalized,
    response_types,
    shares,
    thresholds,
)
from maskgym.agents.text.trainer import ResumableTrainer


def test_confidence_is_the_mean_probability_not_the_exponential_of_the_mean_logarithm():
    log_probabilities = torch.tensor([[0.5, 0.1, 0.9], [0.25, 0.75, 0.5]]).log()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert confidence(log_probabilities, mask).tolist() == pytest.approx([0.3, 0.5])


def test_confidence_is_zero_without_tokens():
    assert confidence(torch.zeros(1, 2), torch.zeros(1, 2)).item() == 0


def test_the_other_confidence_is_the_exponential_of_the_mean_logarithm():
    log_probabilities = torch.tensor([[0.5, 0.1, 0.9], [0.25, 0.75, 0.5], [0.5, 0.5, 0.5]]).log()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    expected = [0.05**0.5, (0.25 * 0.75 * 0.5) ** (1 / 3), 0]
    assert geometric_confidence(log_probabilities, mask).tolist() == pytest.approx(expected)


# Ten answers: the quantiles at 20 % and 80 % of 0..9 are 1.8 and 7.2, so 0, 1 are low and 8, 9 are high.
REWARDS = torch.arange(10.0)
CONFIDENCES = torch.tensor([0, 9, 2, 3, 4, 5, 6, 7, 8, 1]) / 10


def chosen(rewards, confidences):
    found = response_types(rewards, confidences)
    assert tuple(found) == TYPES
    return {name: answers.nonzero().flatten().tolist() for name, answers in found.items()}


def test_an_answer_is_of_a_type_if_it_is_extreme_in_both():
    assert torch.stack(thresholds(REWARDS)).tolist() == pytest.approx([1.8, 7.2])
    assert chosen(REWARDS, CONFIDENCES) == {"hrhc": [8], "hrlc": [9], "lrhc": [1], "lrlc": [0]}
    assert chosen(REWARDS, REWARDS) == {"hrhc": [8, 9], "hrlc": [], "lrhc": [], "lrlc": [0, 1]}
    assert chosen(REWARDS, -REWARDS) == {"hrhc": [], "hrlc": [8, 9], "lrhc": [0, 1], "lrlc": []}


def test_an_answer_without_a_reward_is_of_no_type_and_moves_no_threshold():
    rewards, confidences = torch.cat([REWARDS, torch.tensor([math.nan])]), torch.cat([CONFIDENCES, torch.ones(1)])
    assert chosen(rewards, confidences) == chosen(REWARDS, CONFIDENCES)


def test_shares_are_of_the_answers_of_any_type():
    assert shares(response_types(REWARDS, CONFIDENCES)) == dict.fromkeys(TYPES, 0.25)
    assert shares(response_types(REWARDS, REWARDS)) == {"hrhc": 0.5, "hrlc": 0, "lrhc": 0, "lrlc": 0.5}


@pytest.mark.parametrize("rewards", [torch.ones(5), torch.full((5,), math.nan)], ids=["equal", "unscored"])
def test_shares_without_extremes_are_nan(rewards):
    assert all(math.isnan(share) for share in shares(response_types(rewards, torch.rand(5))).values())


def test_ranks_run_from_minus_one_to_one_and_equal_values_share_theirs():
    values = torch.tensor([5.0, -3.0, 100.0, 5.0, 5.0, 0.0])  # ranks 3 (of 2, 3, 4), 0, 5, 3, 3, 1
    assert rank_normalized(values).tolist() == pytest.approx([0.2, -1, 1, 0.2, 0.2, -0.6])
    assert rank_normalized(torch.exp(values / 50)).tolist() == rank_normalized(values).tolist()
    assert rank_normalized(torch.full((4,), 2.0)).tolist() == [0, 0, 0, 0]
    assert rank_normalized(torch.tensor([2.0])).tolist() == [0]
    assert len(rank_normalized(torch.tensor([]))) == 0


def test_what_has_no_advantage_has_no_rank():
    ranks = rank_normalized(torch.tensor([math.nan, 2.0, 1.0, math.nan, 3.0]))
    assert ranks[[1, 2, 4]].tolist() == [0, -1, 1]
    assert ranks[[0, 3]].isnan().all()


def test_the_mean_of_a_type_leaves_out_what_has_no_value():
    types = {"a": torch.tensor([True, True, False, True]), "b": torch.tensor([False, False, True, False])}
    found = mean_by_type(torch.tensor([1.0, 2.0, math.nan, math.nan]), types)
    assert found["a"] == 1.5 and math.isnan(found["b"])


# In training.


@pytest.fixture
def noted(monkeypatch):
    """Return a list that fills, a row a forward pass, with the answers that trainers take note of: (B, 3)."""
    rows, log = [], ResumableTrainer._log_answers

    def look(self, *answers):
        rows.append(torch.stack(answers, dim=1))
        return log(self, *answers)

    monkeypatch.setattr(ResumableTrainer, "_log_answers", look)
    return rows


def expected_log(answers):
    rewards, confidences, advantages = answers.unbind(1)
    types = response_types(rewards, confidences)
    means = mean_by_type(rank_normalized(advantages), types)
    found = {f"response_types/{name}": share for name, share in shares(types).items()}
    found |= {f"response_advantage/{name}": mean for name, mean in means.items()}
    return {name: pytest.approx(None if math.isnan(value) else value) for name, value in found.items()}


def by_letters(completions, **_):
    """Reward answers in many different ways."""
    return [sum(map(ord, completion[0]["content"])) % 97 / 97 for completion in completions]


ALGORITHMS = ("cgpo", "grpo", "dr_grpo", "dapo", "gspo", "rloo", "spo")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("passes", [1, 3])
def test_every_algorithm_logs_the_types_of_an_update(make_algorithm, noted, name, passes):
    settings = {"isr_sft_steps": 0, "num_generations": 1} if name == "cgpo" else {}
    split = {"per_device_train_batch_size": 12 // passes, "gradient_accumulation_steps": passes}
    trainer = make_algorithm(name, reward_funcs=by_letters, **split, **settings)
    trainer.train()
    assert len(noted) == 2 * passes
    for update in range(2):
        answers = torch.cat(noted[update * passes : (update + 1) * passes])
        logged = trainer.state.log_history[update]
        wanted = expected_log(answers)
        assert len(answers) == 12 and {key: logged[key] for key in wanted} == wanted
        assert logged["reward"] == pytest.approx(answers[:, 0].mean().item())
        if name == "cgpo":
            assert logged["cgpo/confidence"] == pytest.approx(answers[:, 1].mean().item())
        assert sum(logged[f"response_types/{kind}"] for kind in TYPES) == pytest.approx(1)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_confidence_is_that_of_the_policy_that_sampled(make_algorithm, noted, name):
    """A second update with the same answers sees the same confidences, though the policy has moved."""
    settings = {"isr_sft_steps": 0, "num_generations": 1} if name == "cgpo" else {}
    trainer = make_algorithm(
        name, reward_funcs=by_letters, num_iterations=2, beta=0.0 if name in ("cgpo", "spo") else 0.1, **settings
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert moved and torch.equal(noted[0], noted[1])


@pytest.mark.parametrize("name", ["grpo", "rloo", "spo"])
def test_confidence_is_the_mean_probability_of_the_answers_tokens(
    make_algorithm, noted, four_answers, token_log_probabilities, name
):
    trainer = make_algorithm(name)
    trainer.current_gradient_accumulation_steps = 1
    del four_answers["old_per_token_logps"]
    four_answers["old_logps"] = torch.zeros(4)  # RLOO's
    trainer._compute_loss(trainer.model.train(), four_answers)
    wanted = [answer.exp().mean().item() for answer in token_log_probabilities(trainer.model, four_answers)]
    assert noted[0][:, 1].tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_log_costs_no_forward_pass(make_algorithm, monkeypatch):
    trainer = make_algorithm("gspo", max_steps=1)
    calls, score = [], type(trainer)._get_per_token_logps_and_entropies

    def count(self, *arguments, **settings):
        calls.append(1)
        return score(self, *arguments, **settings)

    monkeypatch.setattr(type(trainer), "_get_per_token_logps_and_entropies", count)
    trainer.train()
    assert len(calls) == 1  # the loss's own
