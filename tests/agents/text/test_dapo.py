"""DAPO: which groups are dropped, what fills the batch up, and the punishment of overlong answers."""

from __future__ import annotations

import inspect

import pytest
import torch
from trl import GRPOTrainer

from maskgym.agents.text.dapo import DAPOConfig
from maskgym.errors import UserError

VARIED = [0.0, 0.25, 0.5, 0.75]


class Rewards:
    """Nearly the same for every answer to a prompt that names one of some colours, varied for the others."""

    __name__ = "rewards"

    def __init__(self, *flat):
        self.flat, self.calls = flat, []

    def __call__(self, prompts, log_metric, **_):
        texts = [str(prompt) for prompt in prompts]
        self.calls.append(len(texts))
        log_metric("calls", len(self.calls))
        return [
            0.5 + 1e-5 * (i % 4) if any(colour in text for colour in self.flat) else VARIED[i % 4]
            for i, text in enumerate(texts)
        ]


@pytest.fixture
def make_dapo(make_algorithm):
    """Return a function that makes a trainer which punishes no length, unless told to."""
    return lambda **settings: make_algorithm("dapo", **{"overlong_share": 0.0, **settings})


def sample(trainer, numbers):
    trainer.model.train()
    outputs = trainer._generate_and_score_completions([number for number in numbers for _ in range(4)])
    texts = [trainer.processing_class.decode(ids) for ids in outputs["prompt_ids"]]
    return outputs, texts


def logged(trainer, name):
    return trainer._metrics["train"][name][-1]


def test_flat_groups_are_dropped_and_the_batch_is_filled_up(make_dapo):
    rewards = Rewards("red")
    trainer = make_dapo(reward_funcs=rewards, per_device_train_batch_size=12)
    outputs, texts = sample(trainer, [0, 3, 1])  # two red ones and a green one
    assert len(texts) == 12
    assert not any("red" in text for text in texts)
    assert "green" in texts[0]  # what had signal stays first
    assert rewards.calls[:2] == [12, 8]  # as many prompts as were missing
    assert len(rewards.calls) == logged(trainer, "dapo/rounds")  # nothing is scored twice
    deviation = torch.tensor(VARIED).std() + 1e-4
    expected = ((torch.tensor(VARIED) - 0.375) / deviation).repeat(3)
    torch.testing.assert_close(outputs["advantages"], expected)
    sampled = sum(rewards.calls) // 4
    assert logged(trainer, "group/share_without_signal") == pytest.approx((sampled - 3) / sampled)
    assert logged(trainer, "dapo/share_unfilled") == 0
    assert logged(trainer, "calls") == 1  # of the first round
    assert logged(trainer, "reward") == pytest.approx(0.375)


def test_sampling_is_bounded_and_what_is_missing_has_no_advantage(make_dapo):
    rewards = Rewards("red", "green", "blue")
    trainer = make_dapo(reward_funcs=rewards, sampling_rounds=3)
    outputs, texts = sample(trainer, [0, 1])
    assert rewards.calls == [8, 8, 8]
    assert len(texts) == 8 and not outputs["advantages"].any()
    assert logged(trainer, "dapo/share_unfilled") == logged(trainer, "group/share_without_signal") == 1


def test_one_round_drops_nothing(make_dapo):
    rewards = Rewards("red")
    trainer = make_dapo(reward_funcs=rewards, sampling_rounds=1)
    _, texts = sample(trainer, [0, 1])
    assert rewards.calls == [8] and "red" in texts[0]
    assert logged(trainer, "group/share_without_signal") == 0.5


def test_the_tolerance_decides_what_is_flat(make_dapo):
    rewards = Rewards("red")
    trainer = make_dapo(reward_funcs=rewards, signal_tolerance=1e-7)
    sample(trainer, [0, 1])
    assert rewards.calls == [8]


def test_further_prompts_follow_seed_and_step(make_algorithm):
    trainer = make_algorithm("dapo", seed=3)

    def drawn(step, number):
        trainer._step = step
        return [row["prompt"] for row in trainer._further_rows(3, number)]

    assert drawn(4, 1) == drawn(4, 1)
    assert len(drawn(4, 1)) == 12
    assert drawn(4, 1) != drawn(5, 1) and drawn(4, 1) != drawn(4, 2)


def test_images_follow_their_groups(make_dapo, image_rows):
    trainer = make_dapo(sees=True, reward_funcs=Rewards("red"))
    outputs, texts = sample(trainer, [0, 1])
    assert not any("red" in text for text in texts)
    assert outputs["num_images"] == [1] * 8
    pixels = {
        tuple(trainer.processing_class.image_processor(images=[row["images"][0]])["pixel_values"][0][:4].tolist()): row
        for row in image_rows
    }
    for values, text in zip(outputs["pixel_values"].view(8, -1, outputs["pixel_values"].size(1)), texts, strict=True):
        row = pixels[tuple(values[0][:4].tolist())]
        assert row["prompt"][0]["content"] in text


def test_overlong_answers_are_punished_but_not_kept_for_it(make_algorithm):
    """Eq. 13 with at most 8 tokens, the last 4 of them punished: by 1/4 of the weight each."""

    def half(completions, **_):
        return [0.5] * len(completions)

    trainer = make_algorithm(
        "dapo", reward_funcs=half, overlong_share=0.5, overlong_weight=0.4, sampling_rounds=2, temperature=2.0
    )
    outputs, _ = sample(trainer, [0, 1])
    lengths = outputs["completion_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    punished = -0.4 * ((lengths - 4).clamp(min=0) / 4)
    torch.testing.assert_close(trainer._total_rewards(), 0.5 + punished)
    assert logged(trainer, "dapo/share_unfilled") == 1  # the rewards themselves are flat


def test_without_punishment_there_is_one_reward(make_algorithm):
    assert make_algorithm("dapo", overlong_share=0.0).reward_func_names == ["share_of_red"]
    assert len(make_algorithm("dapo").reward_funcs) == 2


@pytest.mark.parametrize(
    "changes",
    [{"sampling_rounds": 0}, {"overlong_share": 1.5}, {"overlong_weight": -1.0}],
)
def test_values_out_of_range_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        DAPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)


def test_defaults_are_the_papers(tmp_path):
    config = DAPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert (config.epsilon, config.epsilon_high, config.beta, config.loss_type) == (0.2, 0.28, 0.0, "dapo")
    assert config.overlong_share == 4096 / 20480


def test_the_parent_hands_answers_on_as_we_do():
    source = inspect.getsource(GRPOTrainer._generate)
    expected = "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images"
    assert expected in source
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "= self._generate(prompts)" in source
    assert "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)" in source
