"""CGPO: its loss derived again, its schedule, its optimizers, and resume to the same numbers."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import re
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from maskgym import manifest
from maskgym.agents.text.cgpo import SUPPORTED, CGPOConfig, CGPOTrainer, clipped_objective
from maskgym.errors import UserError
from maskgym.policies.text.mllm import vision_token_ids


def parameters_of(trainer):
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])


class StepRecorder(TrainerCallback):
    """Keep what ``look`` returns after each optimizer step."""

    def __init__(self, look):
        self.look = look
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.look())


# Pure parts.


def test_clipping_stops_only_what_would_go_too_far():
    log_ratio = torch.tensor([[0.5, 0.5, 1.5, 1.5]]).log().T.contiguous()  # (4, 1)
    objective, clipped = clipped_objective(log_ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2, 0.3)
    assert objective.flatten().tolist() == pytest.approx([0.5, -0.8, 1.3, -1.5])
    assert clipped.flatten().tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("period", "sft_steps", "expected"),
    [
        (5, 2, "...SS...SS"),
        (5, 1, "....S....S"),
        (5, 0, ".........."),
        (2, 2, "SSSSSSSSSS"),
        (1, 1, "SSSSSSSSSS"),
    ],
)
def test_schedule(make_config, tmp_path, period, sft_steps, expected):
    config = make_config(tmp_path, isr_period=period, isr_sft_steps=sft_steps)
    assert "".join("S" if config.is_sft_step(step) else "." for step in range(10)) == expected


# Settings.


@pytest.mark.parametrize("size", [1, 3, 4])
def test_any_batch_passes_with_one_generation(make_config, tmp_path, size):
    config = make_config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=3)
    assert (config.num_generations, config.per_device_train_batch_size) == (1, size)
    assert (config.steps_per_generation, config.generation_batch_size) == (3, 3 * size)


def test_defaults_are_the_papers(tmp_path):
    config = CGPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert (
        config.learning_rate,
        config.adam_beta1,
        config.adam_beta2,
        config.epsilon,
    ) == (1e-4, 0.9, 0.95, 0.2)
    assert (config.isr_period, config.isr_sft_steps, config.isr_learning_rate) == (
        5,
        2,
        1e-6,
    )
    assert (config.beta, config.loss_type, config.temperature) == (0.0, "grpo", 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.04},
        {"num_generations": 8},
        {"loss_type": "dapo"},
        {"isr_sft_steps": 6},
        {"isr_sft_steps": -1},
        {"isr_period": 0, "isr_sft_steps": 0},
        {"isr_batch_size": 0},
        {"num_generations": 0},
        {"use_bias_correction_kl": True},
    ],
)
def test_what_is_not_supported_is_refused(make_config, tmp_path, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        make_config(tmp_path, **changes)


def test_settings_of_another_trainer_are_refused(tmp_path, text_model):
    with pytest.raises(UserError, match="CGPOConfig"):
        CGPOTrainer(
            text_model, lambda completions, **_: [], GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
        )


def test_isr_needs_rows_with_completions(make_trainer, text_rows):
    with pytest.raises(UserError, match="isr_dataset"):
        make_trainer(isr_dataset=[])
    with pytest.raises(UserError, match="completion"):
        make_trainer(isr_dataset=text_rows.remove_columns("completion"))


# The loss against plain torch.


def reference_loss(model, inputs, temperature, epsilon, centered):
    """Eq. 10, 13 and 14, answer by answer and token by token."""
    answers, advantages = [], []
    for row in range(len(inputs["rewards"])):
        ids = torch.cat([inputs["prompt_ids"][row], inputs["completion_ids"][row]])
        attention = torch.cat([inputs["prompt_mask"][row], inputs["completion_mask"][row]])
        logits = model(input_ids=ids[None], attention_mask=attention[None]).logits[0] / temperature
        first, count = (
            len(inputs["prompt_ids"][row]),
            int(inputs["completion_mask"][row].sum()),
        )
        new = [logits[first + t - 1].log_softmax(-1)[ids[first + t]] for t in range(count)]
        if "old_per_token_logps" in inputs:
            old = [inputs["old_per_token_logps"][row, t].item() for t in range(count)]
        else:
            old = [value.item() for value in new]
        answers.append((new, old))
        advantages.append(inputs["rewards"][row].item() - sum(map(math.exp, old)) / count)
    if centered:
        mean = sum(advantages) / len(advantages)
        advantages = [advantage - mean for advantage in advantages]
    total = 0
    for (new, old), advantage in zip(answers, advantages, strict=True):
        terms = []
        for new_token, old_token in zip(new, old, strict=True):
            ratio = (new_token - old_token).exp()
            terms.append(torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage))
        total = total - sum(terms) / len(terms)
    return total / len(answers)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("temperature", "noise", "centered", "epsilon"),
    [
        *itertools.product((1.0, 0.5), (0.0, 0.3), (False, True), (0.2,)),
        (1.0, 0.3, False, 0.05),
    ],
)
def test_loss_and_gradient_equal_the_reference(
    make_trainer, fixed_inputs, temperature, noise, centered, epsilon, accumulation
):
    trainer = make_trainer(temperature=temperature, center_advantage=centered, epsilon=epsilon)
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = accumulation
    if noise:
        shift = noise * torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
        fixed_inputs["old_per_token_logps"] = -math.log(model.config.vocab_size) + shift
    expected = reference_loss(model, fixed_inputs, temperature, epsilon, centered) / accumulation
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = trainer._compute_loss(model, fixed_inputs)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for ours, reference in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-4)
    assert (trainer._metrics["train"]["clip_ratio/region_mean"][0] > 0) == bool(noise)


def test_several_answers_to_a_prompt_have_the_same_advantage_as_one(make_trainer):
    seen = []

    def look(prompts, completions, **_):
        seen.append([str(prompt) for prompt in prompts])
        return [0.4] * len(completions)

    trainer = make_trainer(num_generations=2, reward_funcs=look, isr_sft_steps=0, max_steps=1)
    trainer.train()
    (batch,) = seen
    assert batch[0] == batch[1] != batch[2] == batch[3]
    logged = trainer.state.log_history[0]
    assert logged["cgpo/advantage"] == pytest.approx(0.4 - logged["cgpo/confidence"])  # not 0, as in a group


def test_an_answer_without_a_reward_moves_nothing(make_trainer, fixed_inputs):
    trainer = make_trainer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    fixed_inputs["rewards"] = torch.full((3,), math.nan)
    loss = trainer._compute_loss(trainer.model, fixed_inputs)
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, list(trainer.model.parameters())))


def test_the_reward_is_the_weighted_sum_of_the_terms(make_trainer, text_rows, share_of_red):
    def half(completions, **_):
        return [0.5] * len(completions)

    def absent(completions, **_):
        return [None] * len(completions)

    trainer = make_trainer(reward_funcs=[half, absent, share_of_red], reward_weights=[0.6, 3.0, 0.0])
    trainer.model.train()
    outputs = trainer._generate_and_score_completions(list(text_rows))
    assert outputs["rewards"].tolist() == pytest.approx([0.3] * len(text_rows))


# ISR.


def plain_cross_entropy(model, processor, rows):
    """Eq. 4 without any padding, one example after another."""
    total, count = 0.0, 0
    for row in rows:
        content = [{"type": "image", "image": image} for image in row.get("images", [])]
        content.append({"type": "text", "text": row["prompt"][0]["content"]})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        tokenizer = getattr(processor, "tokenizer", processor)
        answer = torch.tensor([[*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]])
        first = inputs["input_ids"].size(1)
        ids = torch.cat([inputs.pop("input_ids"), answer], dim=1)
        inputs.pop("attention_mask")
        if "mm_token_type_ids" in inputs:
            types = inputs.pop("mm_token_type_ids")
            inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answer)], dim=1)
        logits = model(input_ids=ids, **inputs).logits[0, first - 1 : -1]
        total -= logits.log_softmax(-1).gather(1, answer.T).sum().item()
        count += answer.numel()
    return total / count


@pytest.mark.parametrize("sees", [False, True])
def test_supervised_loss_equals_the_unpadded_one(
    make_trainer,
    sees,
    text_rows,
    image_rows,
    text_model,
    vision_model,
    tokenizer,
    processor,
):
    model, rows, processing_class = (
        (vision_model, image_rows, processor) if sees else (text_model, text_rows, tokenizer)
    )
    trainer = make_trainer(model=model, rows=rows, processing_class=processing_class, temperature=0.5)
    trainer.current_gradient_accumulation_steps = 1
    batch = list(rows.select(range(4)))
    with torch.no_grad():
        trainer._isr_tokens = trainer._count_tokens([batch])
        loss = trainer._sft_loss(trainer.model, trainer._sft_inputs(batch)).item()
        assert loss == pytest.approx(plain_cross_entropy(trainer.model, processing_class, batch), rel=1e-5)


@pytest.mark.parametrize("adapter", [None, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")])
def test_the_supervised_loss_does_not_depend_on_the_size_of_a_pass(make_trainer, make_model, text_rows, adapter):
    words = "a red cat sat".split()
    texts = [" ".join(words[n % 4] for n in range(count)) for count in (9, 89)]  # 10 and 90 tokens with their end
    rows = Dataset.from_list([{**text_rows[n], "completion": text} for n, text in enumerate(texts)])
    losses, gradients = [], []
    for size in (2, 1):
        trainer = make_trainer(
            model=make_model(False),
            isr_dataset=rows,
            isr_period=1,
            isr_sft_steps=1,
            isr_learning_rate=0.0,
            temperature=0.5,
            peft_config=adapter,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=2 // size,
            max_steps=1,
        )
        trainer.train()
        logged = trainer.state.log_history[0]
        assert logged["loss"] == pytest.approx(logged["isr/loss"], abs=1e-4)  # the Trainer rounds the former
        losses.append(logged["isr/loss"])
        gradients.append(logged["grad_norm"])
    assert (
        losses[0]
        == pytest.approx(losses[1], rel=1e-5)
        == pytest.approx(plain_cross_entropy(trainer.model, trainer.processing_class, rows), rel=1e-5)
    )
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_a_pass_adds_its_share_of_an_updates_tokens(make_trainer):
    """Completions of 10 tokens at 1 and of 90 tokens at 0 have the mean 0.1, in one pass and in two."""
    trainer, ignored = make_trainer(), -100
    labels = torch.full((2, 90), ignored)
    labels[0, :10], labels[1] = 5, 5
    trainer._isr_tokens = torch.tensor(100.0)

    class Head:
        def __call__(self, labels, fused_lm_head):
            cost = torch.tensor([1.0, 0.0]) if len(labels) == 2 else labels[:, 20].eq(ignored).float()
            self.log_probs = -cost[:, None] * (labels != ignored)
            return self

    for passes in (1, 2):
        trainer.current_gradient_accumulation_steps = passes
        shares = [trainer._sft_loss(Head(), {"labels": part}) for part in labels.chunk(passes)]
        assert sum(shares) == pytest.approx(0.1)
        assert sum(trainer._metrics["train"].pop("isr/loss")) / passes == pytest.approx(0.1)


def test_supervised_steps_make_no_logits(make_trainer, text_rows):
    """The vocabulary's width appears in no tensor that autograd keeps for the backward pass."""
    trainer, kept = make_trainer(isr_period=1, isr_sft_steps=1), []
    batch = list(text_rows.select(range(4)))
    trainer.current_gradient_accumulation_steps, trainer._isr_tokens = 1, trainer._count_tokens([batch])
    inputs = trainer._sft_inputs(batch)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        trainer._sft_loss(trainer.model.train(), inputs)
    weights = {value.data_ptr() for value in trainer.model.parameters()}
    wide = [
        value.shape
        for value in kept
        if value.data_ptr() not in weights and value.shape[-1:] == (trainer.model.config.vocab_size,)
    ]
    assert kept and not wide


def test_a_completion_may_be_a_message(make_trainer):
    trainer = make_trainer()
    message = [{"role": "assistant", "content": "a red cat"}]
    assert trainer._completion_ids(message) == trainer._completion_ids("a red cat")
    assert trainer._completion_ids(message)[-1] == trainer._tokenizer.eos_token_id


def test_supervised_steps_generate_nothing_and_are_logged(make_trainer, share_of_red):
    calls = []

    def counting(completions, **keywords):
        calls.append(len(completions))
        return share_of_red(completions, **keywords)

    trainer = make_trainer(reward_funcs=counting, max_steps=10)
    trainer.train()
    history = trainer.state.log_history[:10]
    assert calls == [4] * 6
    assert ["isr/loss" in row for row in history] == [
        False,
        False,
        False,
        True,
        True,
    ] * 2
    assert ["cgpo/advantage" in row for row in history] == [
        True,
        True,
        True,
        False,
        False,
    ] * 2
    names = {
        "confidence",
        "advantage",
        "advantage_abs",
    }
    logged = {
        "reward",
        "rewards/counting/mean",
        "clip_ratio/region_mean",
        "entropy",
        "completions/mean_length",
    }
    assert {f"cgpo/{name}" for name in names} | logged <= set(history[0])
    assert history[0]["cgpo/advantage"] == pytest.approx(history[0]["reward"] - history[0]["cgpo/confidence"])


def test_supervised_steps_leave_buffered_answers_alone(make_trainer, share_of_red):
    calls = []

    def counting(completions, **keywords):
        calls.append(trainer.state.global_step)
        return share_of_red(completions, **keywords)

    # Two updates with each of four quarters of 16 answers, two passes a step: eight RL passes, so four RL steps.
    trainer = make_trainer(
        reward_funcs=counting,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        max_steps=10,
    )
    trainer.train()
    assert calls == [0, 6]  # RL steps are 0, 1, 2, 5 and 6, 7
    assert trainer._step == 12


def test_rows_are_read_only_when_answers_are_generated(make_trainer, text_rows):
    read = []

    def look(batch):
        read.append(len(batch["prompt"]))
        return batch

    make_trainer(rows=text_rows.with_transform(look), isr_dataset=list(text_rows), max_steps=5).train()
    assert read == [4, 4, 4]


@pytest.mark.parametrize(("size", "expected"), [(None, 4), (3, 3), (20, 20)])
def test_isr_batch_size(make_trainer, size, expected):
    trainer = make_trainer(isr_batch_size=size)
    assert [len(batch) for batch in trainer._isr_batches(2)] == [expected] * 2


def test_isr_batches_follow_seed_and_step(make_trainer):
    def drawn(seed, step):
        trainer = make_trainer(seed=seed)
        trainer.state.global_step = step
        return [row["prompt"] for row in trainer._isr_batches(1)[0]]

    assert drawn(0, 3) == drawn(0, 3)
    assert drawn(0, 3) != drawn(0, 4)
    assert drawn(0, 3) != drawn(1, 3)


@pytest.mark.parametrize("shared", [False, True])
def test_supervised_steps_touch_the_policys_state_only_if_shared(make_trainer, shared):
    def moments():
        states = trainer._interleaved.policy.state.values()
        return torch.cat([state["exp_avg_sq"].flatten().clone() for state in states])

    recorder = StepRecorder(moments)
    trainer = make_trainer(callbacks=[recorder], isr_shared_optimizer=shared)
    trainer.train()
    rl, first_sft, second_sft = recorder.seen[2:5]
    assert torch.equal(rl, first_sft) != shared
    assert torch.equal(first_sft, second_sft) != shared
    assert trainer._interleaved.policy.defaults["betas"] == (0.9, 0.95)
    assert all(group["betas"] == (0.9, 0.95) for group in trainer._interleaved.isr.param_groups)


@pytest.mark.parametrize("shared", [False, True])
def test_each_kind_of_step_has_its_own_rate(make_trainer, shared):
    recorder = StepRecorder(lambda: parameters_of(trainer))
    trainer = make_trainer(
        callbacks=[recorder],
        isr_shared_optimizer=shared,
        isr_learning_rate=0.0,
        lr_scheduler_type="linear",
    )
    trainer.train()
    assert not torch.equal(recorder.seen[1], recorder.seen[2])
    assert torch.equal(recorder.seen[2], recorder.seen[4])
    assert trainer._interleaved.param_groups[0]["lr"] == pytest.approx(0.0)  # the linear schedule's end, untouched


# Generation.


def test_vision_tokens_are_found_and_never_sampled(make_trainer, vision_model, processor, image_rows, tokenizer):
    vision = set(vision_token_ids(vision_model.config, tokenizer))
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    assert vision == set(tokenizer.convert_tokens_to_ids(names))
    sampled = []

    def keep(completion_ids, **_):
        sampled.extend(itertools.chain(*completion_ids))
        return [0.5] * len(completion_ids)

    trainer = make_trainer(
        model=vision_model,
        rows=image_rows,
        processing_class=processor,
        reward_funcs=keep,
        max_completion_length=24,
        max_steps=3,
        learning_rate=0.0,
        generation_kwargs={"suppress_tokens": tokenizer.convert_tokens_to_ids(["cat"])},
    )
    trainer.train()
    assert len(sampled) > 100  # at random one token in six would be one of theirs
    assert vision.isdisjoint(sampled)
    assert tokenizer.convert_tokens_to_ids("cat") not in sampled


def test_vision_tokens_of_a_text_model_are_its_tokenizers(text_model, tokenizer):
    assert vision_token_ids(text_model.config, tokenizer) == [tokenizer.image_token_id, tokenizer.video_token_id]


# Training.


def test_the_rewarded_word_becomes_likely(make_trainer):
    def probability_of_red():
        prompt = "<user> name the red cat <assistant>"
        ids = torch.tensor([trainer._tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, -1]
        return logits.softmax(-1)[trainer._tokenizer.convert_tokens_to_ids("red")].item()

    trainer = make_trainer(
        per_device_train_batch_size=12,
        max_completion_length=4,
        max_steps=25,
        isr_sft_steps=0,
    )
    before = probability_of_red()
    trainer.train()
    assert before < 0.1
    assert probability_of_red() > 0.5


def test_supervised_steps_alone_teach_the_completions(make_trainer):
    trainer = make_trainer(max_steps=30, isr_period=1, isr_sft_steps=1, isr_batch_size=12)
    trainer.train()
    losses = [row["isr/loss"] for row in trainer.state.log_history[:30]]
    assert losses[-1] < 0.5 * losses[0]


def test_lora_trains_the_adapter_only(make_trainer, vision_model, processor, image_rows):
    adapter = LoraConfig(r=2, target_modules=r".*language_model.*(q|v)_proj", task_type="CAUSAL_LM")
    trainer = make_trainer(
        model=vision_model,
        rows=image_rows,
        processing_class=processor,
        peft_config=adapter,
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora" in name and "visual" not in name for name in moved)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_vision_encoder_has_no_gradient_whatever_trl_hooks(
    make_trainer, vision_model, processor, image_rows, freeze
):
    """With adapters and gradient checkpointing TRL makes the outputs of the patches' embedding require a gradient."""
    outputs, encoder = [], vision_model.model.visual
    encoder.requires_grad_(not freeze)
    encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output.last_hidden_state))
    trainer = make_trainer(
        model=vision_model,
        rows=image_rows,
        processing_class=processor,
        peft_config=LoraConfig(r=2, target_modules=r".*language_model.*(q|v)_proj", task_type="CAUSAL_LM")
        if freeze
        else None,
        gradient_checkpointing=True,
        isr_period=2,
        isr_sft_steps=1,
        max_steps=2,
    )
    trainer.train()
    learning = [output for output in outputs if output.requires_grad]
    assert outputs and bool(learning) != freeze


@pytest.mark.parametrize("sees", [False, True], ids=["text", "vision"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        # Two passes a step and eight a generation, so the checkpoint falls in the middle of one.
        {
            "num_iterations": 2,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 4,
            "per_device_train_batch_size": 1,
        },
        {"isr_shared_optimizer": True, "lr_scheduler_type": "linear"},
        {"isr_sft_steps": 0, "num_iterations": 2},
    ],
    ids=["on-policy", "off-policy", "shared", "rl-only"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_trainer, tmp_path, make_model, sees, changes, text_rows, image_rows, tokenizer, processor
):
    def run(folder, resume=None):
        model = make_model(sees)
        trainer = make_trainer(
            model=model,
            rows=image_rows if sees else text_rows,
            processing_class=processor if sees else tokenizer,
            folder=folder,
            max_steps=8,
            save_strategy="steps",
            save_steps=3,
            **changes,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-3"))
    assert torch.equal(parameters_of(whole), parameters_of(resumed))
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (whole, resumed)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Hold the folder of a finished checkpoint."""
    return tmp_path_factory.mktemp("run") / "checkpoint-3"


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rename_a_tensor(folder):
    state = load_file(folder / "model.safetensors")
    state["other"] = state.pop(next(iter(state)))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGE = {
    "config deleted": lambda f: (f / "config.json").unlink(),
    "config empty": lambda f: (f / "config.json").write_text("{}"),
    "tensor renamed": rename_a_tensor,
    "no optimizer": lambda f: (f / "optimizer.pt").unlink(),
    "no scheduler": lambda f: (f / "scheduler.pt").unlink(),
    "no random state": lambda f: (f / "rng_state.pth").unlink(),
    "no state of ours": lambda f: (f / "cgpo_state_0.pt").unlink(),
    "wrong step": lambda f: edit(f / "trainer_state.json", lambda state: state.update(global_step=99)),
    "template changed": lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"),
    "no manifest": lambda f: (f / manifest.NAME).unlink(),
    "renamed": lambda f: edit(f / manifest.NAME, lambda content: content.update(step=7)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(make_trainer, checkpoint, tmp_path, kind):
    if not checkpoint.exists():
        make_trainer(folder=checkpoint.parent, max_steps=3, save_strategy="steps", save_steps=3).train()
    damaged = shutil.copytree(checkpoint, tmp_path / "checkpoint-3")
    DAMAGE[kind](damaged)
    with pytest.raises(UserError, match="missing|differs|manifest of a finished|of step 7: expected step 3") as caught:
        make_trainer(folder=tmp_path).train(resume_from_checkpoint=str(damaged))
    assert "\n" not in str(caught.value) and str(damaged) in str(caught.value)


class Touch:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("this code ran",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimizer.pt", "its optimizer or scheduler cannot be read"),
        ("scheduler.pt", "its optimizer or scheduler cannot be read"),
        ("rng_state.pth", "its states of random generators cannot be read"),
        ("trainer_state.json", "of step 99: expected step 3"),
        ("", "trainer_state.json: cannot be read as the state of a trainer"),
    ],
)
def test_what_a_manifest_that_was_written_again_covers_is_refused_too(make_trainer, checkpoint, tmp_path, name, words):
    if not checkpoint.exists():
        make_trainer(folder=checkpoint.parent, max_steps=3, save_strategy="steps", save_steps=3).train()
    damaged = shutil.copytree(checkpoint, tmp_path / "checkpoint-3")
    if name.endswith(".json"):
        edit(damaged / name, lambda state: state.update(global_step=99))
    elif name:
        torch.save({"x": Touch()}, damaged / name)
    else:
        (damaged / "trainer_state.json").unlink()
    (damaged / manifest.NAME).unlink()
    manifest.write(damaged, 3)
    with pytest.raises(UserError, match=words) as caught:
        make_trainer(folder=tmp_path).train(resume_from_checkpoint=str(damaged))
    assert "\n" not in str(caught.value)


def test_decoding_settings_of_a_checkpoint_do_not_leak(make_trainer, tmp_path, text_model):
    found = []
    for name, own in (("plain", {}), ("own", {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "min_p": 0.9})):
        text_model.save_pretrained(tmp_path / name)
        edit(tmp_path / name / "generation_config.json", lambda content, own=own: content.update(own))
        texts = []

        def keep(completions, texts=texts, **_):
            texts.extend(completion[0]["content"] for completion in completions)
            return [0.0] * len(completions)

        make_trainer(model=str(tmp_path / name), reward_funcs=keep, max_steps=2, isr_sft_steps=0).train()
        found.append(texts)
    assert found[0] == found[1] and len(set(found[0])) > 1


def test_an_example_without_completion_is_refused(make_trainer, text_rows):
    rows = Dataset.from_list([{**row, "completion": None if n == 3 else "a"} for n, row in enumerate(text_rows)])
    with pytest.raises(UserError, match="a row has no completion to imitate"):
        make_trainer(isr_dataset=rows, isr_period=1, isr_sft_steps=1, per_device_train_batch_size=12).train()


# What is taken from TRL: these fail when it changes, so that the overrides are looked at again.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("training_step", ["model", "inputs", "num_items_in_batch"]),
        ("get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
        ("create_optimizer", ["model"]),
        ("_prepare_inputs", ["generation_batch"]),
        ("_generate_and_score_completions", ["inputs"]),
        (
            "_calculate_rewards",
            ["inputs", "prompts", "completions", "completion_ids_list"],
        ),
        ("_compute_loss", ["model", "inputs"]),
        ("_tokenize_prompts", ["prompts"]),
        ("_get_train_sampler", ["dataset"]),
        ("_save_optimizer_and_scheduler", ["output_dir"]),
        ("_save_checkpoint", ["model", "trial"]),
        ("_load_optimizer_and_scheduler", ["checkpoint"]),
        ("_load_rng_state", ["checkpoint"]),
        ("_load_from_checkpoint", ["resume_from_checkpoint", "model"]),
        (
            "_get_per_token_logps_and_entropies",
            [
                "model",
                "input_ids",
                "attention_mask",
                "logits_to_keep",
                "batch_size",
                "compute_entropy",
                "compute_aux_loss",
                "pixel_values",
                "image_grid_thw",
                "num_images",
                "pixel_attention_mask",
                "spatial_shapes",
                "num_tiles",
                "image_sizes",
                "token_type_ids",
                "mm_token_type_ids",
                "image_position_ids",
            ],
        ),
    ],
)
def test_signatures_of_the_parent(name, expected):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[1:] == expected
    if name in vars(CGPOTrainer):
        assert list(inspect.signature(getattr(CGPOTrainer, name)).parameters)[1:] == expected


def test_the_parents_loss_reads_what_we_know_of():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    read = set(re.findall(r'inputs(?:\.get\(|\[)"(\w+)"', source))
    model_inputs = set(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    ours = {
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "tool_mask",
        "old_per_token_logps",
        "ref_per_token_logps",
    }
    replaced = {"advantages"}
    refused = {  # by SUPPORTED: vLLM, other losses
        "sampling_per_token_logps",
        "importance_sampling_ratio",
        "num_items_in_batch",
    }
    assert read - model_inputs == ours | replaced | refused


def test_the_parents_head_has_the_width_of_its_tiles_where_it_is_changed():
    assert "_CHUNKED_LOGPROB_CHUNK_SIZE," in inspect.getsource(add_fused_lm_head)
    assert "ctx.chunk_size" in inspect.getsource(ChunkedLogProbFunction.backward)


def test_the_parents_sampler_and_settings():
    assert list(inspect.signature(RepeatSampler).parameters) == [
        "data_source",
        "mini_repeat_count",
        "batch_size",
        "repeat_count",
        "shuffle",
        "seed",
    ]
    assert set(SUPPORTED) <= set(GRPOConfig.__dataclass_fields__)
