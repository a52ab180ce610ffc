"""Answers that vLLM sampled: given its log-probabilities, each loss is corrected as TRL does it, by hand.

vLLM itself needs a GPU; here its answers and their log-probabilities are given.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from maskgym.errors import UserError

OFF = (0.0, 0.2, -0.3, 0.5, 1.4, -1.2, 0.1, 0.05)  # log-probability of each answer's first token, minus the policy's


def sampled(trainer, rows):
    """Let a trainer learn from rows, the answers to which and their log-probabilities come from elsewhere."""
    model = trainer.model.train()
    trainer.use_vllm, trainer.current_gradient_accumulation_steps = True, 1
    generator = torch.Generator().manual_seed(0)

    def answer(prompt_ids, *_):
        found = []
        for place in range(len(prompt_ids)):
            drawn = torch.randint(9, model.config.vocab_size, (2 + place % 3,), generator=generator)
            found.append([*drawn.tolist(), trainer._tokenizer.eos_token_id])
        own = [own_log_probabilities(model, *pair) for pair in zip(prompt_ids, found, strict=True)]
        return found, [[one[0] + OFF[place % len(OFF)], *one[1:]] for place, one in enumerate(own)]

    trainer._generate_single_turn = answer
    return trainer._generate_and_score_completions(rows)


def own_log_probabilities(model, prompt, answer):
    """Compute the log-probability of each token of an answer under the policy in training."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


def weight(place, mode):
    """Weigh an answer: the policy's probability over the sampler's, masked or truncated at 3."""
    ratio = math.exp(-OFF[place % len(OFF)])
    return min(ratio, 3.0) if "truncate" in mode else ratio * (ratio <= 3.0)


def expected(inputs, log_probabilities, advantages, mode):
    """Compute the mean over answers of the mean over tokens of ``ratio x advantage x weight``; the ratio is 1."""
    terms = []
    for row, own in enumerate(log_probabilities):
        ratio = (own - own.detach()).exp()
        weights = torch.ones_like(own)
        if mode.startswith("token"):
            weights[0] = weight(row, mode)
        else:
            weights[:] = weight(row, mode)
        terms.append((ratio * advantages[row] * weights).mean())
    return -sum(terms) / len(terms)


def equal_gradients(model, loss, wanted):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, wanted))
    assert any(gradient.abs().max() > 1e-4 for gradient in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mode", ["sequence_mask", "sequence_truncate", "token_truncate", "token_mask"])
@pytest.mark.parametrize("ablation", [{}, {"center_advantage": True}], ids=["cgpo", "centred"])
def test_cgpo(make_trainer, token_log_probabilities, mode, ablation):
    settings = {"per_device_train_batch_size": 8, "isr_sft_steps": 0, "vllm_importance_sampling_mode": mode}
    trainer = make_trainer(**settings, **ablation)
    inputs = sampled(trainer, [*range(8)])
    own = token_log_probabilities(trainer.model, inputs)
    confidence = torch.stack([values.detach().exp().mean() for values in own])  # the policy's own, not the sampler's
    advantages = inputs["rewards"] - confidence
    advantages = advantages - advantages.mean() * bool(ablation)
    wanted = expected(inputs, own, advantages, mode)
    loss = trainer._compute_loss(trainer.model, inputs)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    equal_gradients(trainer.model, loss, wanted)


@pytest.mark.parametrize("mode", ["sequence_mask", "token_truncate"])
def test_spo_and_grpo(make_algorithm, token_log_probabilities, mode):
    for name, rows in (("spo", [*range(8)]), ("grpo", [0] * 4 + [1] * 4)):
        trainer = make_algorithm(name, vllm_importance_sampling_mode=mode, beta=0.0)
        inputs = sampled(trainer, rows)
        own = token_log_probabilities(trainer.model, inputs)
        wanted = expected(inputs, own, inputs["advantages"], mode)
        loss = trainer._compute_loss(trainer.model, inputs)
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
        assert inputs["advantages"].abs().max() > 0.1
        equal_gradients(trainer.model, loss, wanted)


def test_the_rounds_of_dapo_keep_the_log_probabilities_of_each_answer(make_algorithm, token_log_probabilities):
    def rewards(prompts, **_):  # the first round's groups have no signal
        rounds.append(len(prompts))
        return [0.5 if len(rounds) == 1 and place < 4 else (place % 4) / 4 for place in range(len(prompts))]

    rounds = []
    settings = {"reward_funcs": rewards, "overlong_share": 0.0, "vllm_importance_sampling_mode": "token_truncate"}
    trainer = make_algorithm("dapo", **settings)
    inputs = sampled(trainer, [0] * 4 + [1] * 4)
    assert rounds == [8, 4]
    own = token_log_probabilities(trainer.model, inputs)
    # The batch is the second group of the first round, then the group of the second.
    for row, (values, place) in enumerate(zip(own, [4, 5, 6, 7, 0, 1, 2, 3], strict=True)):
        told = inputs["sampling_per_token_logps"][row, : len(values)]
        off = torch.tensor([OFF[place], *[0.0] * (len(values) - 1)])
        torch.testing.assert_close(told, values.detach() + off, atol=1e-5, rtol=1e-4)
        ratio = inputs["importance_sampling_ratio"][row, : len(values)]
        torch.testing.assert_close(ratio, (-off).exp().clamp(max=3.0), atol=1e-4, rtol=1e-4)


def test_vllm_never_samples_the_tokens_of_images(make_algorithm):
    trainer = make_algorithm("grpo", sees=True)
    trainer.use_vllm, chosen = True, {"logit_bias": {5: 1.0}, "seed": 1}
    trainer.vllm_generation = SimpleNamespace(generation_kwargs=chosen)
    trainer._never_sample([7, 8])
    assert trainer.vllm_generation.generation_kwargs == {"logit_bias": {5: 1.0, 7: -100.0, 8: -100.0}, "seed": 1}
    assert chosen == {"logit_bias": {5: 1.0}, "seed": 1}  # the settings stay as they are


def test_the_full_gradient_has_no_correction(make_config, tmp_path):
    with pytest.raises(UserError, match="full_gradient=True: expected .*use_vllm=False"):
        make_config(tmp_path, full_gradient=True, use_vllm=True)
