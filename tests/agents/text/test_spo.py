"""SPO: its tracker by hand, its advantages, and what a checkpoint holds of it."""

from __future__ import annotations

import math

import pytest
import torch

from maskgym.agents.text.spo import SPOConfig, ValueTracker, normalized
from maskgym.errors import UserError


def test_the_tracker_is_a_fading_beta_distribution():
    tracker = ValueTracker(forgetting=0.9, prior_weight=2.0)
    assert tracker.observe(["a", "b"], [1.0, 0.2]) == pytest.approx([0.6, 0.6])
    # alpha = 0.9 * 1.2 + r and beta = 0.9 * 0.8 + 1 - r
    assert tracker.counts["a"] == pytest.approx((2.08, 0.72))
    assert tracker.counts["b"] == pytest.approx((1.28, 1.52))
    assert tracker.observe(["a", "c"], [0.0, 0.5]) == pytest.approx([2.08 / 2.8, 0.6])
    assert tracker.counts["a"] == pytest.approx((0.9 * 2.08, 0.9 * 0.72 + 1))
    assert tracker.observe(["d"], [0.0]) == pytest.approx([0.25])  # the mean of the batch before


def test_without_forgetting_the_value_is_the_mean():
    tracker, rewards = ValueTracker(forgetting=1.0, prior_weight=1e-9), [0.3, 0.7, 0.1, 0.4]
    for reward in rewards:
        tracker.observe(["a"], [reward])
    assert tracker.observe(["a"], [0.0]) == pytest.approx([sum(rewards) / 4])


def test_the_effective_number_of_answers_is_bounded():
    tracker = ValueTracker(forgetting=0.875, prior_weight=1.0)
    for _ in range(200):
        tracker.observe(["a"], [0.3])
    assert sum(tracker.counts["a"]) == pytest.approx(1 / (1 - 0.875))


def test_a_prompt_twice_in_a_batch_is_compared_with_what_came_before():
    tracker = ValueTracker(forgetting=1.0, prior_weight=1.0)
    assert tracker.observe(["a", "a"], [1.0, 0.0]) == [0.5, 0.5]
    assert tracker.counts["a"] == pytest.approx((1.5, 1.5))


def test_an_answer_without_a_reward_teaches_nothing():
    tracker = ValueTracker(forgetting=0.9, prior_weight=1.0)
    assert tracker.observe(["a", "b"], [math.nan, 0.8]) == pytest.approx([0.8, 0.8])
    assert set(tracker.counts) == {"b"}
    assert tracker.observe(["a"], [math.nan]) == pytest.approx([0.8])
    assert tracker.mean == pytest.approx(0.8)


def test_advantages_are_normalised_over_the_batch():
    values = normalized(torch.tensor([0.5, -0.1, math.nan, 0.2]))
    assert values[2] == 0
    rest = values[[0, 1, 3]]
    assert rest.mean().item() == pytest.approx(0, abs=1e-6)
    assert rest.std().item() == pytest.approx(1, abs=1e-3)
    assert not normalized(torch.full((3,), 0.4)).any()


def test_advantages_of_a_trainer_by_hand(make_algorithm):
    given = [[0.2, 0.4, 0.6, 0.8], [1.0, 0.0, 0.5, 0.5]]

    def next_rewards(completions, **_):
        return given.pop(0)

    trainer = make_algorithm("spo", reward_funcs=next_rewards, forgetting=0.5, prior_weight=1.0)
    trainer.model.train()
    trainer._generate_and_score_completions([0, 1, 2, 3])
    outputs = trainer._generate_and_score_completions([0, 1, 8, 9])
    # After the first batch of mean 0.5: prompt 0 has (0.25 + 0.2) / 1.5, prompt 1 (0.25 + 0.4) / 1.5, new ones 0.5.
    advantages = torch.tensor([1.0 - 0.3, 0.0 - 0.65 / 1.5, 0.0, 0.0])
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    torch.testing.assert_close(outputs["advantages"], expected, atol=1e-5, rtol=1e-5)
    metrics = trainer._metrics["train"]
    assert metrics["spo/share_known"] == [0.0, 0.5]
    assert metrics["spo/value"][1] == pytest.approx((0.3 + 0.65 / 1.5 + 1.0) / 4)
    assert "frac_reward_zero_std" not in metrics


def test_key_columns_tell_prompts_apart(make_algorithm, text_rows):
    rows = text_rows.add_column("index", [number // 2 for number in range(12)])
    trainer = make_algorithm("spo", rows=rows, key_columns=["index"])
    trainer.model.train()
    trainer._generate_and_score_completions([0, 1, 4, 5])
    assert set(trainer.tracker.counts) == {"0", "2"}


def test_a_checkpoint_holds_the_tracker(make_algorithm, tmp_path):
    trainer = make_algorithm("spo", folder=tmp_path / "a", max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    other = make_algorithm("spo", folder=tmp_path / "b", max_steps=2)
    other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert other.tracker.counts == trainer.tracker.counts and len(other.tracker.counts) >= 8
    assert other.tracker.mean == trainer.tracker.mean
    assert other._step == 2


@pytest.mark.parametrize(
    "changes",
    [{"forgetting": 1.1}, {"forgetting": -0.1}, {"prior_weight": 0.0}, {"num_generations": 8}, {"temperature": 0.0}],
)
def test_values_out_of_range_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        SPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)
