"""Trainers of CGPO at a small size, with or without ablations, and the inputs of their losses."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def make_config():
    """Return a function that makes CGPO's settings, with those of its ablations if one is given."""
    from maskgym.agents.text.cgpo import CGPOConfig
    from maskgym.agents.text.cgpo_ablations import ABLATIONS, AblatedCGPOConfig

    def make(folder, **changes):
        settings = {
            "per_device_train_batch_size": 4,
            "max_completion_length": 8,
            "max_steps": 5,
            "learning_rate": 1e-2,
            "isr_learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
        }
        kind = AblatedCGPOConfig if ABLATIONS.keys() & changes.keys() else CGPOConfig
        return kind(output_dir=str(folder), **{**settings, **changes})

    return make


@pytest.fixture
def make_trainer(tmp_path, text_model, tokenizer, text_rows, make_config, share_of_red):
    """Return a function that makes the trainer of CGPO, or that of its ablations if one is given."""
    from maskgym.agents.text.cgpo import CGPOTrainer
    from maskgym.agents.text.cgpo_ablations import ABLATIONS, AblatedCGPOTrainer

    def make(model=None, rows=None, processing_class=None, reward_funcs=share_of_red, callbacks=None, **changes):
        rows = text_rows if rows is None else rows
        isr_rows = changes.pop("isr_dataset", rows)
        peft_config = changes.pop("peft_config", None)
        kind = AblatedCGPOTrainer if ABLATIONS.keys() & changes.keys() else CGPOTrainer
        return kind(
            model=text_model if model is None else model,
            reward_funcs=reward_funcs,
            args=make_config(changes.pop("folder", tmp_path / "run"), **changes),
            train_dataset=rows,
            isr_dataset=isr_rows,
            processing_class=tokenizer if processing_class is None else processing_class,
            callbacks=callbacks,
            peft_config=peft_config,
        )

    return make


@pytest.fixture
def fixed_inputs(text_model):
    generator = torch.Generator().manual_seed(1)
    vocabulary = text_model.config.vocab_size
    return {
        "prompt_ids": torch.randint(9, vocabulary, (3, 5), generator=generator),
        "prompt_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
        "completion_ids": torch.randint(9, vocabulary, (3, 4), generator=generator),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]),
        "rewards": torch.tensor([0.9, 0.0, 0.4]),
    }
