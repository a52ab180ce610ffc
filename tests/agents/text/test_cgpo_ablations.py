"""Ablations of CGPO: each loss derived again, the shared optimizer, and how settings select the trainer."""

from __future__ import annotations

import math

import pytest
import torch

from maskgym import agents, policies
from maskgym.agents.text.cgpo import CGPOTrainer, InterleavedOptimizer
from maskgym.agents.text.cgpo_ablations import (
    ABLATIONS,
    AblatedCGPOConfig,
    AblatedCGPOTrainer,
    SharedOptimizer,
    calibration_objective,
)
from maskgym.agents.text.training import Training
from maskgym.errors import UserError


def test_the_calibration_objective_has_equation_12_as_its_derivative():
    rewards, confidences = torch.tensor([0.9, 0.2, 0.5, math.nan]), torch.tensor([0.6, 0.95, 0.5, 0.5])
    confidences.requires_grad_()
    objective = calibration_objective(rewards, confidences)
    assert objective[0].item() == pytest.approx(0.9 * math.log(0.6) + 0.1 * math.log(0.4))
    (found,) = torch.autograd.grad(objective.sum(), confidences)
    assert found.tolist() == pytest.approx([0.3 / 0.24, -0.75 / (0.95 * 0.05), 0, 0], abs=1e-5)
    assert calibration_objective(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"confidence": "median"},
        {"full_gradient": True, "num_iterations": 2},
        {"full_gradient": True, "center_advantage": True},
        {"beta": 0.04},
        {"loss_type": "dapo", "center_advantage": True},
    ],
)
def test_ablations_that_exclude_each_other_are_refused(make_config, tmp_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        make_config(tmp_path, **changes)


@pytest.mark.parametrize("old", [False, True])
def test_with_no_ablation_the_loss_is_cgpos(make_trainer, fixed_inputs, old):
    if old:
        fixed_inputs["old_per_token_logps"] = torch.full((3, 4), -2.5)
    losses = []
    for changes in ({}, ABLATIONS):
        trainer = make_trainer(**changes)
        trainer.current_gradient_accumulation_steps = 1
        losses.append(trainer._compute_loss(trainer.model.train(), dict(fixed_inputs)))
        assert type(trainer) is (AblatedCGPOTrainer if changes else CGPOTrainer)
    assert torch.equal(*losses)


@pytest.mark.parametrize("form", ["mean_probability", "exp_mean_log"])
def test_the_full_gradient_is_equation_12_times_that_of_the_confidence(make_trainer, fixed_inputs, form):
    trainer = make_trainer(full_gradient=True, confidence=form, isr_sft_steps=0)
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    expected = 0
    for row, reward in enumerate(fixed_inputs["rewards"].tolist()):
        count = int(fixed_inputs["completion_mask"][row].sum())
        prompt = fixed_inputs["prompt_ids"][row][fixed_inputs["prompt_mask"][row].bool()]
        answer = fixed_inputs["completion_ids"][row, :count]
        logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        chances = logits.softmax(-1).gather(1, answer[:, None])
        c = chances.mean() if form == "mean_probability" else chances.prod() ** (1 / count)
        weight = ((reward - c) / (c * (1 - c))).detach()  # Eq. 12
        expected = expected - weight * c / 3
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    loss = trainer._compute_loss(model, fixed_inputs)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_the_confidence_of_choice_is_in_the_advantage(make_trainer, fixed_inputs):
    def logged(form):
        trainer = make_trainer(confidence=form)
        trainer.current_gradient_accumulation_steps = 1
        trainer._compute_loss(trainer.model.train(), dict(fixed_inputs))
        return trainer._metrics["train"]["cgpo/confidence"][0]

    fixed_inputs["old_per_token_logps"] = torch.tensor([[0.5, 0.1, 0.9, 0.3]]).log().repeat(3, 1)
    assert logged("mean_probability") == pytest.approx((1.8 / 4 + 0.5 + 1.5 / 3) / 3)
    assert logged("exp_mean_log") == pytest.approx(((0.5 * 0.1 * 0.9 * 0.3) ** 0.25 + 0.5 + 0.045 ** (1 / 3)) / 3)


def test_a_divergence_may_take_the_place_of_isr(make_trainer, fixed_inputs, text_model, tmp_path):
    text_model.save_pretrained(tmp_path / "model")
    model = type(text_model).from_pretrained(tmp_path / "model")
    trainer = make_trainer(model=model, beta=0.1, isr_sft_steps=0)
    trainer.current_gradient_accumulation_steps = 1
    plain = make_trainer(model=text_model, isr_sft_steps=0)
    plain.current_gradient_accumulation_steps = 1
    shift = torch.tensor([[0.3, -0.2, 0.1, 0.4]]).repeat(3, 1)
    ids = torch.cat([fixed_inputs["prompt_ids"], fixed_inputs["completion_ids"]], dim=1)
    mask = torch.cat([fixed_inputs["prompt_mask"], fixed_inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        new = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4)[0]
    without = plain._compute_loss(plain.model.train(), dict(fixed_inputs))
    loss = trainer._compute_loss(trainer.model.train(), {**fixed_inputs, "ref_per_token_logps": new + shift})
    tokens = [math.exp(s) - s - 1 for s in shift[0].tolist()]
    means = [sum(tokens) / 4, tokens[0], sum(tokens[:3]) / 3]
    assert (loss - without).item() == pytest.approx(0.1 * sum(means) / 3, abs=1e-6)
    assert trainer._metrics["train"]["kl"][0] == pytest.approx((sum(tokens) + tokens[0] + sum(tokens[:3])) / 8)
    trainer.train()
    assert trainer.state.log_history[-2]["kl"] > 0


def test_optimizer_states_of_another_form_are_refused():
    own, shared = (
        kind(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]), 1e-3)
        for kind in (InterleavedOptimizer, SharedOptimizer)
    )
    with pytest.raises(UserError, match="isr_shared_optimizer"):
        own.load_state_dict(shared.state_dict())


@pytest.mark.parametrize("name", ["cgpo", "sft"])
def test_a_setting_that_ablates_selects_the_trainer_and_the_others_do_not(tmp_path, name):
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    plain = agents.make(name, policy=policy, output=tmp_path, learning_rate=1e-3, **ABLATIONS)
    training = Training(plain)
    assert training.method.trainer is CGPOTrainer and not isinstance(training.config(1), AblatedCGPOConfig)
    others = {"confidence": "exp_mean_log", "full_gradient": True, "center_advantage": True, "beta": 0.1}
    for setting, value in {**others, "isr_shared_optimizer": True}.items():
        more = {"isr_sft_steps": 0} if setting == "beta" else {}
        agent = agents.make(name, policy=policy, output=tmp_path, **{**ABLATIONS, setting: value}, **more)
        training = Training(agent)
        assert training.method.trainer is AblatedCGPOTrainer and getattr(training.config(1), setting) == value
