"""GRPO and its relatives: each loss derived again from its paper, advantages, groups without signal, resume."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer

from maskgym.agents.text.group_methods import GroupConfig, LeaveOneOutConfig, without_signal
from maskgym.agents.text.trainer import ResumableTrainer
from maskgym.agents.text.training import METHODS
from maskgym.errors import UserError


def parameters_of(trainer):
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])


def clipped(ratio, advantage, low, high):
    return torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def grpo(new, old, reference, advantages, longest):
    """DeepSeekMath, Eq. 3 and 4: a mean over tokens, less the divergence, then a mean over answers."""
    total = 0.0
    for answer, advantage in enumerate(advantages):
        tokens = 0.0
        for n, o, r in zip(new[answer], old[answer], reference[answer], strict=True):
            divergence = (r - n).exp() - (r - n) - 1
            tokens = tokens + clipped((n - o).exp(), advantage, 0.2, 0.2) - 0.04 * divergence
        total = total + tokens / len(new[answer])
    return total / len(advantages)


def dr_grpo(new, old, reference, advantages, longest):
    """Section 3.2: the sum over tokens, divided by a constant in place of the answer's length."""
    terms = [
        clipped((n - o).exp(), advantage, 0.2, 0.2).sum() / longest
        for n, o, advantage in zip(new, old, advantages, strict=True)
    ]
    return sum(terms) / len(terms)


def dapo(new, old, reference, advantages, longest):
    """Eq. 8: the sum over all tokens of a group, divided by their number."""
    terms = [clipped((n - o).exp(), a, 0.2, 0.28).sum() for n, o, a in zip(new, old, advantages, strict=True)]
    return sum(terms) / sum(len(answer) for answer in new)


def gspo(new, old, reference, advantages, longest):
    """Eq. 5 and 7: the ratio of whole answers, to the power of one over their length."""
    terms = []
    for n, o, advantage in zip(new, old, advantages, strict=True):
        ratio = (n.sum().exp() / o.sum().exp()) ** (1 / len(n))
        terms.append(clipped(ratio, advantage, 3e-4, 4e-4))
    return sum(terms) / len(terms)


def cispo(new, old, reference, advantages, longest):
    """MiniMax-M1: the clipped ratio is a constant weight; a mean over all tokens."""
    terms = [
        ((n - o).exp().clamp(max=5.0).detach() * advantage * n).sum()
        for n, o, advantage in zip(new, old, advantages, strict=True)
    ]
    return sum(terms) / sum(len(answer) for answer in new)


def sapo(new, old, reference, advantages, longest):
    """The gate 4 / t sigmoid(t (ratio - 1)) of each token; a mean over tokens, then over answers."""
    terms = []
    for n, o, advantage in zip(new, old, advantages, strict=True):
        t = 1.0 if advantage > 0 else 1.05
        terms.append((4 / t / (1 + (-t * ((n - o).exp() - 1)).exp()) * advantage).mean())
    return sum(terms) / len(terms)


@pytest.mark.parametrize("formula", [grpo, dr_grpo, dapo, gspo, cispo, sapo], ids=lambda formula: formula.__name__)
@pytest.mark.parametrize("shift", [1.0, 1e-4], ids=["far", "near"])
def test_loss_and_gradient_equal_the_papers(
    make_algorithm, four_answers, token_log_probabilities, formula, shift, monkeypatch
):
    trainer = make_algorithm(formula.__name__)
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    new = token_log_probabilities(model, four_answers)
    lengths = [len(answer) for answer in new]
    old = [o[:n] for o, n in zip(four_answers["old_per_token_logps"], lengths, strict=True)]
    if shift < 1:  # ratios near 1: inside every clip range
        old = [n.detach() + shift * (o - n.detach()) for n, o in zip(new, old, strict=True)]
        for row, answer in enumerate(old):
            four_answers["old_per_token_logps"][row, : len(answer)] = answer
    reference = [r[:n] for r, n in zip(four_answers["ref_per_token_logps"], lengths, strict=True)]
    expected = -formula(new, old, reference, four_answers["advantages"], trainer.args.max_completion_length)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = trainer._compute_loss(model, four_answers)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    if formula not in (cispo, sapo):  # which have no clip range
        assert (trainer._metrics["train"]["clip_ratio/region_mean"][0] > 0) == (shift == 1)


def test_the_loss_of_rloo_weighs_whole_answers(make_algorithm, four_answers, token_log_probabilities):
    """REINFORCE with the probability of the whole answer (section 3.1), in PPO's clip range, as TRL has it."""
    trainer = make_algorithm("rloo")
    model = trainer.model.train()
    new = token_log_probabilities(model, four_answers)
    four_answers["old_logps"] = torch.stack([answer.sum().detach() for answer in new]) + torch.tensor([0.1, 1, -1, 0])
    terms = [
        clipped((n.sum() - o).exp(), a, 0.2, 0.2)
        for n, o, a in zip(new, four_answers["old_logps"], four_answers["advantages"], strict=True)
    ]
    loss = trainer._compute_loss(model, four_answers)
    assert loss.item() == pytest.approx(-(sum(terms) / 4).item(), abs=1e-6)
    wanted = torch.autograd.grad(-sum(terms) / 4, list(model.parameters()))
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("equal", [True, False])
def test_on_policy_gspo_is_grpo_without_divergence(make_algorithm, four_answers, equal):
    """With one update a batch every ratio is 1, and both are a mean over tokens, then over answers."""
    del four_answers["old_per_token_logps"]
    if equal:
        four_answers["completion_mask"] = torch.ones_like(four_answers["completion_mask"])
    found = []
    for trainer in (make_algorithm("gspo"), make_algorithm("grpo", beta=0.0)):
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(trainer.model.train(), four_answers)
        found.append(torch.autograd.grad(loss, list(trainer.model.parameters())))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
    assert any(gradient.any() for gradient in found[0])


REWARDS = [0.1, 0.5, 0.6, 0.8, 0.3, 0.3, 0.3, 0.7]  # two groups of four


def fixed_rewards(completions, **_):
    return REWARDS


def expected_advantages(name):
    groups = torch.tensor(REWARDS).view(2, 4)
    if name == "rloo":
        others = [[sum(g for j, g in enumerate(group) if j != i) / 3 for i in range(4)] for group in groups.tolist()]
        return (groups - torch.tensor(others)).flatten()
    centred = groups - groups.mean(1, keepdim=True)
    # TRL adds 1e-4 to the deviation; Dr. GRPO has no deviation.
    return (centred if name == "dr_grpo" else centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "rloo"])
def test_advantages(make_algorithm, name):
    unpunished = {"overlong_share": 0.0} if name == "dapo" else {}
    trainer = make_algorithm(name, reward_funcs=fixed_rewards, **unpunished)
    trainer.model.train()
    outputs = trainer._generate_and_score_completions([0] * 4 + [5] * 4)
    torch.testing.assert_close(outputs["advantages"], expected_advantages(name), atol=1e-5, rtol=1e-5)


def test_a_divergence_lowers_rloos_reward(make_algorithm):
    trainer = make_algorithm("rloo", reward_funcs=fixed_rewards, beta=0.5)
    trainer.model.train()
    before = trainer._generate_and_score_completions([0] * 4 + [5] * 4)["advantages"]
    torch.testing.assert_close(before, expected_advantages("rloo"), atol=1e-5, rtol=1e-5)  # none yet
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    after = trainer._generate_and_score_completions([0] * 4 + [5] * 4)["advantages"]
    assert not torch.allclose(before, after, atol=1e-3)


# Groups without signal.


def test_a_group_without_signal_deviates_by_less_than_the_tolerance():
    groups = [[0.5, 0.5, 0.5], [0.5, 0.5004, 0.4996], [0.4, 0.5, 0.6], [float("nan"), 0.1, 0.2], [float("nan")] * 3]
    rewards = torch.tensor(groups).flatten()
    assert without_signal(rewards, 3, 1e-3).tolist() == [True, True, False, False, True]
    assert without_signal(rewards, 3, 1e-4).tolist() == [True, False, False, False, True]
    assert without_signal(rewards, 3, 0.2).tolist() == [True] * 5
    assert without_signal(torch.tensor([0.5, float("nan")]), 2, 1e-3).tolist() == [True]  # nothing to compare with


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "gspo", "cispo", "sapo", "rloo"])
@pytest.mark.parametrize(("tolerance", "expected"), [(1e-3, 0.5), (1e-5, 0.0)])
def test_the_share_of_groups_without_signal_is_logged(make_algorithm, name, tolerance, expected):
    def almost_equal(completions, **_):
        return [0.5, 0.5, 0.5, 0.5001, *REWARDS[4:]]

    trainer = make_algorithm(name, reward_funcs=almost_equal, max_steps=1, signal_tolerance=tolerance)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["group/share_without_signal"] == expected
    assert logged["frac_reward_zero_std"] == 0.0


# Settings.


@pytest.mark.parametrize("kind", [GroupConfig, LeaveOneOutConfig])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_generations": 1}, "group_size=1"),
        ({"signal_tolerance": -1.0}, "signal_tolerance"),
        ({"beta": -0.1}, "beta"),
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"epsilon_high": -1.0}, "epsilon_high"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"signal_tolerance": None}, "signal_tolerance=None: expected at least 0"),
        ({"learning_rate": "x"}, "learning_rate=x: expected at least 0"),
        ({"temperature": True}, "temperature=True: expected more than 0"),
        ({"per_device_train_batch_size": 4}, "must be divisible by num_generations"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path, kind, changes, words):
    with pytest.raises(UserError, match=words):
        kind(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)


# Training.


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "spo"])
def test_the_rewarded_word_becomes_likely(make_algorithm, name):
    def probability_of_red():
        ids = torch.tensor([trainer._tokenizer("<user> name the red cat <assistant>")["input_ids"]])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, -1]
        return logits.softmax(-1)[trainer._tokenizer.convert_tokens_to_ids("red")].item()

    trainer = make_algorithm(name, per_device_train_batch_size=12, max_completion_length=4, max_steps=40)
    before = probability_of_red()
    trainer.train()
    assert before < 0.1
    assert probability_of_red() > 0.3


MID_BATCH = {
    "num_iterations": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "per_device_train_batch_size": 2,
}  # two passes a step and eight a generation, so the checkpoint falls in the middle of one


@pytest.mark.parametrize(
    ("name", "sees", "changes"),
    [
        ("grpo", False, {}),
        ("grpo", True, MID_BATCH),
        ("rloo", False, MID_BATCH),
        ("gspo", False, MID_BATCH),
        ("dapo", True, MID_BATCH),
        ("spo", False, {}),
        ("spo", True, MID_BATCH),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make_algorithm, tmp_path, name, sees, changes):
    def run(folder, resume=None):
        settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, **changes}
        trainer = make_algorithm(name, folder=folder, sees=sees, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-3"))
    assert torch.equal(parameters_of(whole), parameters_of(resumed))
    logged = [
        [(row["loss"], row["reward"]) for row in t.state.log_history if "reward" in row] for t in (whole, resumed)
    ]
    assert logged[0] == logged[1]


def test_each_row_is_read_once_a_batch(make_algorithm, text_rows):
    read = []

    def look(batch):
        read.append(len(batch["prompt"]))
        return batch

    make_algorithm("gspo", rows=text_rows.with_transform(look)).train()
    assert read == [2, 2]  # eight answers to two prompts, twice


# What is taken from TRL: these fail when it changes, so that the overrides are looked at again.


SIGNATURES = {
    "get_train_dataloader": [],
    "_get_train_sampler": ["dataset"],
    "_generate_and_score_completions": ["inputs"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate": ["prompts"],
    "_compute_loss": ["model", "inputs"],
    "_save_optimizer_and_scheduler": ["output_dir"],
    "_save_checkpoint": ["model", "trial"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
}


@pytest.mark.parametrize("parent", [GRPOTrainer, RLOOTrainer])
@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_of_the_parents(parent, name):
    assert list(inspect.signature(getattr(parent, name)).parameters)[1:] == SIGNATURES[name]
    for kind in (ResumableTrainer, *(method.trainer for method in METHODS.values())):
        if name in vars(kind):
            assert list(inspect.signature(vars(kind)[name]).parameters)[1:] == SIGNATURES[name]


@pytest.mark.parametrize("parent", [GRPOTrainer, RLOOTrainer])
def test_the_parents_buffer_answers_as_we_save_them(parent):
    source = inspect.getsource(parent._prepare_inputs)
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in source
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source
    for read in (r"self\.num_generations", r"generation_batch_size", r"self\.num_iterations"):
        assert re.search(read, inspect.getsource(parent._get_train_sampler))
