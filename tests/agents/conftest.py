"""Tiny models with random weights, made on the spot: the real classes at a small size, nothing to download."""

from __future__ import annotations

import gc
from functools import cache

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F

from maskgym.data import Sample
from maskgym.envs.need import UserNeedVectorEnv

WORDS = (
    "the",
    "a",
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "cup",
    "left",
    "small",
    "name",
    "<answer>",
    "</answer>",
)
SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IMAGE_SIZE = 56  # pixels: 4 x 4 patches of 14, merged two by two, so four image tokens
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer():
    """Return a fast word-level tokenizer; its vision tokens are named as Qwen's are."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *VISION, *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", *VISION],
        padding_side="left",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        },
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_text_model(tokenizer):
    """Return a two-layer Qwen2 with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config)


def make_processor(tokenizer):
    """Return a Qwen2.5-VL processor whose images all become ``IMAGE_SIZE`` squares."""
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    pixels = IMAGE_SIZE**2
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=pixels, max_pixels=pixels),
        video_processor=Qwen2VLVideoProcessor(min_pixels=pixels, max_pixels=pixels),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )


def make_vision_model(tokenizer):
    """Return a Qwen2.5-VL with two text and two vision layers and random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    ids = dict(zip(VISION, tokenizer.convert_tokens_to_ids(list(VISION)), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 10000.0,
            },
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0, 1],
        },
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture(scope="session", autouse=True)
def frozen_libraries():
    """Spare the garbage collector, which the Trainer calls at each start, the libraries' million objects."""
    import trl.trainer.grpo_trainer  # noqa: F401

    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def make_model(tokenizer):
    """Return a function that makes the same model anew: one that sees, or one of text only."""
    return lambda sees: make_vision_model(tokenizer) if sees else make_text_model(tokenizer)


@pytest.fixture
def text_model(make_model):
    return make_model(sees=False)


@pytest.fixture
def processor(tokenizer):
    return make_processor(tokenizer)


@pytest.fixture
def vision_model(make_model):
    return make_model(sees=True)


@pytest.fixture
def text_rows():
    """Twelve prompts of unequal length with the answer a supervised step would teach."""
    colours = ("red", "green", "blue")
    return Dataset.from_list(
        [
            {
                "prompt": [
                    {
                        "role": "user",
                        "content": "name the " + "small " * (i % 4) + colours[i % 3] + " cat",
                    }
                ],
                "completion": "<answer> a " + colours[i % 3] + " cat </answer>",
            }
            for i in range(12)
        ]
    )


@pytest.fixture
def image_rows(text_rows):
    """The same rows, each with one image of plain noise."""
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)) for _ in text_rows
    ]
    return Dataset.from_list([{**row, "images": [image]} for row, image in zip(text_rows, images, strict=True)])


def share_of_red(completions, **_):
    """Reward an answer by the share of its words that are "red"."""
    texts = [completion[0]["content"].split() for completion in completions]
    return [sum(word == "red" for word in words) / max(len(words), 1) for words in texts]


@pytest.fixture(name="share_of_red")
def share_of_red_fixture():
    return share_of_red


@pytest.fixture
def make_algorithm(tmp_path, make_model, tokenizer, processor, text_rows, image_rows):
    """Return a function that makes the trainer of a registered agent, with the settings of that agent.

    The model comes from a folder, where a reference model finds it again.
    """
    from maskgym import agents
    from maskgym.agents.text.training import METHODS

    def make(name, folder=None, sees=False, rows=None, reward_funcs=share_of_red, callbacks=None, **changes):
        agent = agents.get(name)
        method, source = METHODS[agent.method], make_model(sees)
        source.save_pretrained(tmp_path / f"model-{sees}")
        settings = {
            "per_device_train_batch_size": 8,
            "num_generations": 1 if name == "spo" else 4,
            "max_completion_length": 8,
            "max_steps": 2,
            "lr_scheduler_type": "constant",
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
        }
        own = {**agent.defaults, **({"key_columns": ["prompt"]} if name == "spo" else {})}
        return method.trainer(
            model=type(source).from_pretrained(tmp_path / f"model-{sees}"),
            reward_funcs=reward_funcs,
            args=method.config(output_dir=str(folder or tmp_path / "run"), **{**settings, **own, **changes}),
            train_dataset=rows if rows is not None else image_rows if sees else text_rows,
            processing_class=processor if sees else tokenizer,
            callbacks=callbacks,
        )

    return make


@pytest.fixture
def four_answers(text_model):
    """What a trainer's loss reads: one group of four answers of unequal length, their advantages and a reference."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = text_model.config.vocab_size
    noise = torch.randn(2, 4, 5, generator=generator)
    mask = (torch.arange(5) < torch.tensor([[5], [1], [3], [2]])).long()
    return {
        "prompt_ids": torch.randint(9, vocabulary, (4, 3), generator=generator),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 1, 1]]),
        "completion_ids": torch.randint(9, vocabulary, (4, 5), generator=generator),
        "completion_mask": mask,
        "advantages": torch.tensor([1.3, -0.7, 0.4, -1.0]),
        "rewards": torch.tensor([0.9, 0.3, 0.6, 0.2]),
        "old_per_token_logps": 0.4 * noise[0] - float(np.log(vocabulary)),
        "ref_per_token_logps": 0.4 * noise[1] - float(np.log(vocabulary)),
        "num_items_in_batch": mask.sum(),
    }


@pytest.fixture
def token_log_probabilities():
    """Return a function: the log-probabilities of each answer's tokens, answer by answer, without any padding."""

    def compute(model, inputs):
        answers = []
        for row in range(len(inputs["prompt_ids"])):
            prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
            answer = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
            logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            answers.append(logits.log_softmax(-1).gather(1, answer[:, None])[:, 0])
        return answers

    return compute


SIDE = 32
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}


class Squares:
    """Images of a red and a blue square, of which one is asked for in words: a data set with a known answer.

    Where they are ranked, both are there, and the one that is asked for comes first.
    """

    def __init__(self, split: str = "train", size: int = 16, ranked: bool = False) -> None:
        self.task, self.split, self.size, self.ranked = "need", split, size, ranked

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([index // 2, self.split == "train"])  # two needs an image
        image, masks = np.full((SIDE, SIDE, 3), 128, np.uint8), {}
        for colour, left in zip(COLOURS, rng.permutation([0, SIDE // 2]), strict=True):
            y, x = int(rng.integers(2, 18)), int(left + rng.integers(1, 4))
            masks[colour] = np.zeros((1, SIDE, SIDE), bool)
            masks[colour][0, y : y + 12, x : x + 12] = True
            image[masks[colour][0]] = COLOURS[colour]
        wanted = list(COLOURS)[index % 2]
        need = f"find the {wanted} square"
        if self.ranked:
            ranks = np.array([2.0 if colour == wanted else 1.0 for colour in COLOURS])
            both = np.concatenate([masks[colour] for colour in COLOURS])
            return Sample(f"squares{index}", (image,), (both,), need=need, ranks=(ranks,))
        return Sample(f"squares{index}", (image,), (masks[wanted],), need=need)


class SquaresVectorEnv(UserNeedVectorEnv):
    """Shows squares, records every index that was asked for, and rewards the IoU."""

    def __init__(self, num_envs: int = 8, split: str = "train", size: int = 16, need: str | None = None) -> None:
        self.words, self.shown = need, []
        super().__init__(num_envs, Squares(split, size), reward="iou", image_size=SIDE, autoreset_mode="Disabled")

    def reset(self, *, seed=None, options=None):
        found = super().reset(seed=seed, options=options)
        self.shown += self._indices.tolist()
        return found

    def _observe_row(self, i):
        return super()._observe_row(i) | ({} if self.words is None else {"need": self.words})


@pytest.fixture
def squares_env():
    return SquaresVectorEnv


@pytest.fixture
def ranked_squares():
    """Both squares of 16 images, the one that is asked for first."""
    return Squares(ranked=True)


@cache
def detector_state(kind):
    """Return the weights of a backbone that marks squares; it learned to tell them apart too, by a layer that is gone.

    A frozen network can be pointed only at what its features hold.
    """
    torch.manual_seed(0)
    backbone, colours, data = kind(), torch.nn.Conv2d(16, 2, 1), Squares(size=32)
    images = torch.from_numpy(np.stack([data[2 * i].images[0] for i in range(16)])).permute(0, 3, 1, 2).float() / 255
    apart = torch.from_numpy(np.stack([[data[2 * i].union(), data[2 * i + 1].union()] for i in range(16)])).float()
    optimizer = torch.optim.Adam([*backbone.parameters(), *colours.parameters()], 1e-2)
    for _ in range(60):
        features = backbone.encode(images)
        loss = F.binary_cross_entropy_with_logits(backbone.decode(features), apart.amax(dim=1, keepdim=True))
        loss = loss + F.binary_cross_entropy_with_logits(colours(features[2]), F.avg_pool2d(apart, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return backbone.state_dict()


@pytest.fixture
def detector(backbone):
    """A backbone that marks both squares."""
    backbone.load_state_dict(detector_state(type(backbone)))
    return backbone
