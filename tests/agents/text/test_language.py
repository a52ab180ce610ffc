"""Language agents: environments as TRL's data and reward, training, resuming, and rationales."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from maskgym import agents, manifest, policies
from maskgym.agents.text.forward_size import bytes_per_answer, head_bytes, largest_fitting, state_bytes
from maskgym.agents.text.reward_function import EnvReward, Episodes, Rows
from maskgym.agents.text.training import Watch, check_gpus, last_checkpoint
from maskgym.data import Dataset, Sample
from maskgym.data.sample import Subset
from maskgym.data.scenes import Scenes
from maskgym.envs.base import unwrap
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.envs.text.base import TextVectorEnv
from maskgym.errors import UserError


def make_env(task: str, num_envs: int = 4, **arguments: object) -> ReasoningVectorEnv:
    return ReasoningVectorEnv(num_envs, task, autoreset_mode=AutoresetMode.DISABLED, **arguments)


def make_agent(name: str, output: Path, **settings: object):
    policy = policies.make("qwen2_5_vl_tiny", device="cpu")
    defaults = {"batch_size": 4, "max_new_tokens": 24, "seed": 3, "save_every": 2}
    defaults |= {"isr_learning_rate": 1e-4} if name in ("cgpo", "sft") else {}
    defaults |= {} if name in ("cgpo", "sft", "spo") else {"group_size": 4}
    return agents.make(name, policy=policy, output=output, **{**defaults, **settings})


def weights(agent) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in agent.policy.model.parameters()])


def test_rows_show_what_reset_shows() -> None:
    env = make_env("sis")
    episodes = Episodes([env])
    rows = episodes.rows(steps=2, batch=3, seed=0)
    assert len(rows) == 6
    again = make_env("sis", num_envs=1)
    for row in rows:
        observations, infos = again.reset(options={"index": row["index"]})
        assert row["prompt"] == [{"role": "user", "content": observations["instruction"][0]}]
        np.testing.assert_array_equal(np.asarray(row["images"][0]), observations["image"][0])
        assert row["completion"] == infos["rationale"][0]


def test_a_batch_is_of_one_task_and_tasks_take_turns() -> None:
    rows = Episodes([make_env(task) for task in ("sod", "sis", "cosod")]).rows(steps=7, batch=5, seed=1)
    tasks = np.array(rows.with_format(None)["task"]).reshape(7, 5)
    assert (tasks == (np.arange(7) % 3)[:, None]).all()


def test_no_sample_comes_twice_before_all_have_come() -> None:
    rows = Episodes([make_env("sis")]).rows(steps=20, batch=100, seed=2)
    assert sorted(rows.with_format(None)["index"]) == list(range(2000))


def test_the_reward_function_is_the_envs_reward() -> None:
    env, logged = make_env("sis"), []
    reward = pickle.loads(pickle.dumps(EnvReward(Episodes([env]), parsers=[unwrap(env, TextVectorEnv).parser])))
    indices = [5, 9, 2, 7, 1]  # more than the env is wide
    rows = Rows(Episodes([env]))({"task": [0] * 5, "index": indices})
    completions = [[{"role": "assistant", "content": text}] for text in rows["completion"][:4]] + ["nonsense"]
    ids = [[1] * length for length in (3, 1, 4, 1, 5)]
    values = reward(completions, ids, [0] * 5, indices, log_metric=lambda name, value: logged.append(name))
    scalar = make_env("sis", num_envs=1)
    for index, completion, value in zip(indices, completions, values, strict=True):
        scalar.reset(options={"index": index})
        text = completion if isinstance(completion, str) else completion[0]["content"]
        assert scalar.step((text,))[1][0] == pytest.approx(value, abs=1e-5)
    assert values[4] == 0 and set(logged) == {"reward/correctness", "reward/format"}
    cost = reward.cost()
    assert cost["scoring_ms"] == pytest.approx(1000 * cost.pop("scoring_seconds") / cost["reward_calls"])
    assert cost.pop("scoring_ms") > 0 and 0 < cost.pop("scoring_share") < 1
    assert cost == {"generated_tokens": 14, "reward_calls": 5, "readable_share": 0.8}
    assert set(reward.cost().values()) == {0}


@pytest.mark.parametrize("name", ["cgpo", "sft"])
def test_training_moves_the_language_part_and_logs(name: str, tmp_path: Path) -> None:
    agent, seen = make_agent(name, tmp_path), []
    before, vision = weights(agent), agent.policy.model.model.visual.patch_embed.proj.weight.clone()
    agent.train([make_env("sis")], 5, lambda step, values: seen.append((step, values)))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]
    assert not torch.equal(before, weights(agent))
    assert torch.equal(vision, agent.policy.model.model.visual.patch_embed.proj.weight)
    supervised = ["isr/loss" in values for _, values in seen]
    assert supervised == ([False, False, False, True, True] if name == "cgpo" else [True] * 5)
    assert [values["reward_calls"] > 0 for _, values in seen] == [not step for step in supervised]
    if name == "cgpo":
        assert {"reward", "reward/correctness", "reward/format", "cgpo/confidence", "entropy"} <= set(seen[0][1])


GROUPS = {"group/share_without_signal", "frac_reward_zero_std"}
LOGGED = {
    "grpo": GROUPS | {"kl"},
    "dr_grpo": GROUPS,
    "dapo": GROUPS | {"dapo/rounds", "dapo/share_unfilled"},
    "gspo": GROUPS,
    "cispo": GROUPS,
    "sapo": GROUPS,
    "rloo": GROUPS | {"kl"},
    "spo": {"spo/value", "spo/advantage_abs", "spo/share_known"},
}


@pytest.mark.parametrize("name", LOGGED)
@pytest.mark.parametrize("task", ["sis", "cosod"])
def test_every_algorithm_trains_through_the_same_environment(name: str, task: str, tmp_path: Path) -> None:
    agent, seen = make_agent(name, tmp_path, **({} if name == "spo" else {"group_size": 2})), []
    before, vision = weights(agent), agent.policy.model.model.visual.patch_embed.proj.weight.clone()
    agent.train([make_env(task)], 2, lambda step, values: seen.append(values))
    assert len(seen) == 2 and LOGGED[name] | {"reward", "reward/correctness", "entropy"} <= set(seen[0])
    moved = any(values.get("reward_std", 0) > 0 for values in seen)  # cut short, every answer on a group is as bad
    assert moved or task == "cosod"
    assert torch.equal(before, weights(agent)) != moved
    assert torch.equal(vision, agent.policy.model.model.visual.patch_embed.proj.weight)


def test_a_group_is_of_one_sample(tmp_path: Path) -> None:
    env = make_env("sis")
    shown: list[int] = []
    reset = env.reset

    def look(*arguments, **keywords):
        shown.extend(np.asarray(keywords["options"]["index"]).tolist())
        return reset(*arguments, **keywords)

    env.reset = look
    make_agent("dr_grpo", tmp_path, batch_size=8, group_size=4).train([env], 1, lambda *_: None)
    scored = shown[-8:]  # after the rows were read
    assert len(set(scored[:4])) == len(set(scored[4:])) == 1 and scored[0] != scored[4]


@pytest.mark.parametrize("name", ["grpo", "spo"])
def test_a_stopped_run_of_another_algorithm_goes_on_to_the_same_weights(name: str, tmp_path: Path) -> None:
    group = {} if name == "spo" else {"group_size": 2}
    whole = make_agent(name, tmp_path / "whole", **group)
    whole.train([make_env("sod")], 4, lambda *_: None)
    shutil.rmtree(tmp_path / "whole" / "checkpoint-4")
    again = make_agent(name, tmp_path / "whole", **group)
    again.train([make_env("sod")], 4, lambda *_: None, resume=True)
    assert torch.equal(weights(whole), weights(again))


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = make_agent("cgpo", tmp_path / "whole")
    whole.train([make_env("sod")], 6, lambda *_: None)
    parts = make_agent("cgpo", tmp_path / "parts")

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.train([make_env("sod")], 6, stop)
    (tmp_path / "parts" / "checkpoint-9").mkdir()  # cut short while written
    again = make_agent("cgpo", tmp_path / "parts")
    again.train([make_env("sod")], 6, lambda *_: None, resume=True)
    assert torch.equal(weights(whole), weights(again))
    assert last_checkpoint(tmp_path / "parts").name == "checkpoint-6"


def test_entries_that_are_no_checkpoint_stay_and_do_not_matter(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("checkpoint-abc", "checkpoint-2", "checkpoint-03", "checkpoint-4", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("")
    (tmp_path / "checkpoint-2" / manifest.NAME).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert {file.name for file in tmp_path.iterdir()} == {
        *("checkpoint-abc", "checkpoint-2", "checkpoint-03", "checkpoint-7", "runs")
    }
    assert "checkpoint-4: no maskgym_manifest.json, so it was not finished: removed" in capsys.readouterr().out


def test_several_gpus_in_one_process_are_refused() -> None:
    check_gpus(0)
    check_gpus(1)
    with pytest.raises(UserError, match="8 GPUs are visible.*CUDA_VISIBLE_DEVICES=0 .* or scale=ray"):
        check_gpus(8)


def test_log_probabilities_of_the_policy_are_those_of_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskgym.agents.text.cgpo import CGPOTrainer

    agent, fresh, found = make_agent("cgpo", tmp_path), make_agent("cgpo", tmp_path), []
    generate = CGPOTrainer._generate_and_score_completions

    def look(trainer: CGPOTrainer, rows: list) -> dict:
        inputs = generate(trainer, rows)
        answers, _ = trainer._score(trainer.model, inputs)
        total = (answers.log_probabilities * answers.mask).sum()
        (gradient,) = torch.autograd.grad(total, trainer.model.lm_head.weight)
        tokens = [row[: int(n)].tolist() for row, n in zip(inputs["completion_ids"], answers.mask.sum(1), strict=True)]
        found.append((answers, gradient, tokens, [row["index"] for row in trainer._prompted]))
        return inputs

    monkeypatch.setattr(CGPOTrainer, "_generate_and_score_completions", look)
    agent.train([make_env("sis")], 1, lambda *_: None)
    [(answers, gradient, tokens, indices)] = found
    observations, _ = Episodes([make_env("sis")]).reset(0, indices)
    values, mask = fresh.policy.log_probabilities(observations, tokens)
    assert torch.equal(mask, answers.mask.bool())
    torch.testing.assert_close(values, answers.log_probabilities * answers.mask, atol=1e-5, rtol=1e-5)
    (own,) = torch.autograd.grad(values.sum(), fresh.policy.model.lm_head.weight)
    torch.testing.assert_close(own, gradient, atol=1e-4, rtol=1e-4)


def test_seeds_decide_the_numbers(tmp_path: Path) -> None:
    found = []
    for run, seed in enumerate((0, 0, 1)):
        agent = make_agent("cgpo", tmp_path / str(run), seed=seed, isr_sft_steps=0)
        agent.train([make_env("sis")], 1, lambda step, values: found.append(values["entropy"]))
    assert found[0] == found[1] != found[2]


def test_rationales_may_come_from_elsewhere(tmp_path: Path, photos) -> None:
    bare = photos("sis", split="test")  # no rationale outside the training split
    with pytest.raises(UserError, match="rationale"):
        make_agent("sft", tmp_path).train([make_env("sis", dataset=bare)], 1, lambda *_: None)
    make_agent("sft", tmp_path).train([make_env("sis", dataset=bare)], 1, lambda *_: None, supervised=[make_env("sis")])


class Sparse(Subset):
    """Scenes of which every third one has a rationale."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample if index % 3 == 1 else replace(sample, rationale=None)

    with_rationale = Dataset.with_rationale


def test_supervised_steps_skip_samples_without_a_rationale(tmp_path: Path) -> None:
    data = Sparse(Scenes("sis"), range(10))
    rows = Episodes([make_env("sis", dataset=data)]).rationale_rows()
    assert [row["index"] for row in rows] == [1, 4, 7] and all(row["completion"] for row in rows)
    agent, seen = make_agent("sft", tmp_path, batch_size=8), []
    agent.train([make_env("sis", dataset=data)], 1, lambda step, values: seen.append(values["isr/loss"]))
    assert seen[0] > 0


class Thin(Subset):
    """Scenes cut to a line of pixels."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        images = tuple(np.tile(image[:1], (1, 4, 1)) for image in sample.images)
        return replace(sample, images=images, masks=(np.ones((1, 1, 512), bool),), phrases=None, ranks=None)


@pytest.mark.parametrize("name", ["sft", "dapo"])
def test_a_photo_that_the_processor_cannot_take_is_named_while_training(tmp_path: Path, name: str) -> None:
    data = Thin(Scenes("sis"), range(4))
    with pytest.raises(UserError, match=r"processor refuses photos of 512x1 pixels: absolute aspect ratio"):
        make_agent(name, tmp_path).train([make_env("sis", dataset=data, image_size=None)], 1, lambda *_: None)


def test_no_sample_with_a_rationale_is_refused() -> None:
    for split, size in (("train", 1), ("test", 5)):
        with pytest.raises(UserError, match=f"no sample of the {split} split has a rationale"):
            Episodes([make_env("sis", dataset=Sparse(Scenes("sis", split), range(size)))]).rationale_rows()


def test_what_a_template_prefills_is_scored_and_told(tmp_path: Path) -> None:
    agent, plain = make_agent("dr_grpo", tmp_path, max_new_tokens=64), make_agent("dr_grpo", tmp_path)
    template = "{% if add_generation_prompt %}<think>{% endif %}"
    agent.policy.processor.chat_template += template
    texts, told = [], []

    class Scorer(Episodes):
        def step(self, task: int, indices: list[int], answers: list[str]) -> tuple:
            texts.extend(answers)
            return super().step(task, indices, answers)

        def expect(self, task: int, index: int, answer: str) -> None:
            told.append(answer)

    env = make_env("sis")
    agent.train([env], 1, lambda step, values: None, scorer=Scorer([env]))
    assert all(text.startswith("<think>") and text.count("<think>") == 1 for text in texts) and set(told) <= set(texts)
    assert plain.policy.prefilled == ""


def test_save_and_load(tmp_path: Path) -> None:
    agent = make_agent("sft", tmp_path / "run")
    agent.train([make_env("sis")], 1, lambda *_: None)
    agent.save(tmp_path / "policy")
    other = make_agent("sft", tmp_path / "other")
    assert not torch.equal(weights(other), weights(agent))
    other.load(tmp_path / "policy")
    assert torch.equal(weights(other), weights(agent))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lerning_rate": 1}, "unknown setting algo.lerning_rate: expected one of this agent's or of .*Config's"),
        ({"micro_batch_size": 3}, "micro_batch_size=3: expected a divisor of batch_size"),
        ({"group_size": 3}, "group_size=3: expected a divisor of batch_size"),
        ({"num_generations": 2}, "unknown setting algo.num_generations"),
    ],
)
@pytest.mark.parametrize("name", ["cgpo", "sft", *LOGGED])
def test_bad_settings_are_named(name: str, settings: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        make_agent(name, tmp_path, **settings).check_training()


@pytest.mark.parametrize(
    ("period", "sft_steps", "iterations", "tasks", "without"),
    [
        (5, 2, 1, 3, 0),
        (3, 1, 1, 3, 1),
        (3, 2, 1, 3, 2),
        (6, 2, 1, 3, 0),
        (1, 1, 1, 3, 0),
        (2, 1, 1, 2, 1),
        (2, 1, 2, 2, 0),
    ],
)
def test_every_task_is_reinforced(
    tmp_path: Path, period: int, sft_steps: int, iterations: int, tasks: int, without: int
) -> None:
    settings = {"isr_period": period, "isr_sft_steps": sft_steps, "num_iterations": iterations}
    agent = make_agent("cgpo", tmp_path, **settings)
    if not without:
        agent.check_training(tasks)
        return
    with pytest.raises(UserError, match=f"isr_period={period}: {tasks} tasks take turns, and {without} of them would"):
        agent.check_training(tasks)


@pytest.mark.parametrize("task", ["sod", "sis", "cosod"])
def test_random_answers_are_in_form(task: str) -> None:
    agent, env = agents.make("random", seed=0), make_env(task)
    observations, _ = env.reset(seed=0)
    answers = agent.act([{name: value[i] for name, value in observations.items()} for i in range(4)])
    *_, infos = env.step(tuple(answers))
    assert (infos["reward_terms"]["format"] == 1).all()
    assert answers == agents.make("random", seed=0).act(
        [{name: value[i] for name, value in observations.items()} for i in range(4)]
    )


@pytest.mark.parametrize("name", ["cgpo", "rloo", "dapo"])
def test_answers_are_told_of_while_others_are_generated(name: str, tmp_path: Path) -> None:
    class Scorer(Episodes):
        expected: ClassVar[set] = set()
        asked: ClassVar[set] = set()

        def expect(self, task: int, index: int, answer: str) -> None:
            assert (task, index, answer) not in self.asked
            self.expected.add((task, index, answer))

        def step(self, task: int, indices: list[int], answers: list[str]) -> tuple:
            self.asked.update((task, int(index), answer) for index, answer in zip(indices, answers, strict=True))
            return super().step(task, indices, answers)

    env = make_env("sis")
    scorer = Scorer([env])
    agent = make_agent(name, tmp_path, max_new_tokens=64)
    agent.train([env], 1, lambda step, values: None, scorer=scorer)
    assert scorer.expected and scorer.expected <= scorer.asked  # the others were cut off at the longest length


# What one forward pass holds.


def test_the_estimate_of_a_pass_counts_what_autograd_keeps() -> None:
    sizes = {"hidden": 10, "inner": 30, "layers": 4, "tokens": 5}
    assert bytes_per_answer(**sizes, size=4, checkpointing=False, adapters=False) == 4 * 5 * 220 * 4
    assert bytes_per_answer(**sizes, size=4, checkpointing=True, adapters=False) == 5 * 220 * 4 + 5 * 4 * 10 * 4
    assert bytes_per_answer(**sizes, size=4, checkpointing=False, adapters=True) == 4 * 5 * 200 * 4
    assert bytes_per_answer(**sizes, size=2, checkpointing=False, adapters=True) == 4 * 5 * (130 * 2 + 110 * 4)
    assert state_bytes(trained=100, pairs=2) == 100 * 4 * 5
    assert head_bytes(words=10, gpu=True) == 4 * 4096 * 10 * 4
    assert head_bytes(words=152064, gpu=False, tokens=64) == 8 * 64 * 32768 * 4
    assert [largest_fitting(12, 8, 100, 100 + room) for room in (-50, 9, 21, 41, 121)] == [1, 1, 2, 4, 12]


@pytest.mark.parametrize(("rank", "dtype"), [(None, torch.float32), (4, torch.float32), (4, torch.bfloat16)])
def test_the_estimate_of_a_layer_is_that_of_saved_tensors(rank: int | None, dtype: torch.dtype) -> None:
    policy = policies.make("qwen2_5_vl_tiny", device="cpu", lora_rank=rank, dtype=str(dtype).removeprefix("torch."))
    model, text = policy.model, policy.model.config.get_text_config()
    weights = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    shown = torch.randn(3, 40, text.hidden_size, dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        held = model.get_decoder()(inputs_embeds=shown, use_cache=False)
    expected = bytes_per_answer(
        hidden=text.hidden_size,
        inner=text.intermediate_size,
        layers=text.num_hidden_layers,
        tokens=3 * 40,
        size=dtype.itemsize,
        checkpointing=False,
        adapters=rank is not None,
    )
    assert held and sum(saved.values()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("room", "expected"), [(100, 4), (2.1, 2), (0.1, 1)])
def test_a_pass_is_sized_by_the_memory_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, room: float, expected: int
) -> None:
    from maskgym.agents.text import training

    agent = make_agent("cgpo", tmp_path, micro_batch_size="auto", isr_sft_steps=0)
    agent.check_training()
    text = agent.policy.model.config.get_text_config()
    prompt = len(
        agent.policy._inputs([{"image": np.zeros((128, 128, 3), np.uint8), "instruction": ""}])["input_ids"][0]
    )
    trained = sum(value.numel() for value in agent.policy.model.parameters() if value.requires_grad)
    fixed, seen = state_bytes(trained, 1) + head_bytes(text.vocab_size, gpu=False), []

    def available(device: torch.device, workers: int) -> int:
        return int(fixed + room * seen[0] / 0.8)

    def needed(**sizes: int) -> int:
        seen.append(bytes_per_answer(**sizes))
        assert sizes["tokens"] > prompt + 24 and not sizes["checkpointing"] and sizes["size"] == 4
        return seen[0]

    monkeypatch.setattr(training, "available_bytes", available)
    monkeypatch.setattr(training, "bytes_per_answer", needed)
    agent.train([make_env("sis")], 2, lambda *_: None)
    assert agent.micro_batch_size == expected
    assert f"algo.micro_batch_size=auto: {expected} of 4 answers per forward pass" in capsys.readouterr().out
    # A resumed run takes the number of its checkpoint, whatever is free by then.
    monkeypatch.setattr(training, "available_bytes", lambda *_: 10**15)
    again = make_agent("cgpo", tmp_path, micro_batch_size="auto", isr_sft_steps=0)
    again.train([make_env("sis")], 3, lambda *_: None, resume=True)
    assert again.micro_batch_size == expected


@pytest.mark.parametrize("value", ["automatic", 2.5, True])
def test_a_size_of_a_pass_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=f"algo.micro_batch_size={value}: expected a whole number, auto or null"):
        make_agent("cgpo", tmp_path, micro_batch_size=value)


# Updates that teach nothing.

CUT = {"completions/clipped_ratio": 0.51, "readable_share": 0.4}
UNREADABLE = {"completions/clipped_ratio": 0.5, "readable_share": 0.0}
USEFUL = {"completions/clipped_ratio": 0.5, "readable_share": 0.01}
SUPERVISED = {"isr/loss": 1.0}


def test_useless_updates_in_a_row_stop_training_and_name_the_key(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    watch = Watch(3, 128, tmp_path)
    for step, values in enumerate([CUT, UNREADABLE, USEFUL, CUT, SUPERVISED, UNREADABLE], start=1):
        watch.look(step, values)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"update {step}: 51% of the answers are cut off at algo.max_new_tokens=128: expected a larger number"
        for step in (1, 4)
    ]
    with pytest.raises(UserError) as caught:
        watch.look(7, UNREADABLE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("update 7: no answer has the form that is asked for")
    assert "stopped after 3 such updates in a row (algo.patience; null never stops)" in str(caught.value)
    assert f"the last checkpoint is of update 4, in {tmp_path}" in str(caught.value)


def test_without_patience_training_never_stops(tmp_path: Path) -> None:
    watch = Watch(None, 128, tmp_path)
    for step in range(100):
        watch.look(step, CUT)
    with pytest.raises(UserError, match="algo.patience=0: expected at least 1"):
        make_agent("cgpo", tmp_path, patience=0)


@pytest.mark.parametrize("name", ["cgpo", "rloo", "dapo"])
def test_answers_that_are_cut_off_stop_a_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    agent, seen = make_agent(name, tmp_path, max_new_tokens=4, patience=2, save_every=1), []
    with pytest.raises(UserError, match="100% of the answers are cut off at algo.max_new_tokens=4"):
        agent.train([make_env("sis")], 4, lambda step, values: seen.append(values))
    assert [values["completions/clipped_ratio"] for values in seen] == [1, 1]
    assert [values["readable_share"] for values in seen] == [0, 0]
    assert capsys.readouterr().out.count("are cut off at") == 1
    assert last_checkpoint(tmp_path).name == "checkpoint-1"


def test_a_policy_that_answers_in_form_is_not_stopped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    agent, seen = make_agent("cgpo", tmp_path, max_new_tokens=128, patience=1), []
    agent.train([make_env("sis")], 2, lambda step, values: seen.append(values))
    assert all(values["readable_share"] > 0.7 and values["completions/clipped_ratio"] == 0 for values in seen)
    assert "cut off" not in capsys.readouterr().out


# Precision and sharding of full fine-tuning.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_half_precision_are_not_trained_themselves(tmp_path: Path, dtype: str) -> None:
    policy = policies.make("qwen2_5_vl_tiny", device="cpu", dtype=dtype)
    words = f"policy.dtype={dtype} with policy.lora_rank=null: .* expected policy.dtype=float32"
    with pytest.raises(UserError, match=words):
        agents.make("sft", policy=policy, output=tmp_path).check_training()
    adapted = policies.make("qwen2_5_vl_tiny", device="cpu", dtype=dtype, lora_rank=2)
    agents.make("sft", policy=adapted, output=tmp_path).check_training()
    trained = [value for value in adapted.model.parameters() if value.requires_grad]
    assert trained and all(value.dtype is torch.float32 for value in trained)


def test_a_run_that_computes_in_half_precision_is_evaluated_as_its_saved_policy(tmp_path: Path) -> None:
    """accelerate's forward pass in bfloat16 must not outlive training: no answer may depend on the process."""
    agent = make_agent("sft", tmp_path / "run", bf16=True)
    agent.train([make_env("sis")], 1, lambda *_: None)
    agent.save(tmp_path / "policy")
    other = make_agent("sft", tmp_path / "other")
    other.load(tmp_path / "policy")
    shown = {"image": np.zeros((128, 128, 3), np.uint8), "instruction": "Say what is salient."}
    values = [one.policy.log_probabilities([shown], ["a red disc"])[0] for one in (agent, other)]
    assert torch.equal(*values)


@pytest.mark.parametrize("name", ["sft", "cgpo"])
@pytest.mark.parametrize("settings", [{"fsdp": True}, {"deepspeed": {"zero_optimization": {"stage": 2}}}])
def test_supervised_steps_refuse_sharding_before_anything_runs(tmp_path: Path, name: str, settings: dict) -> None:
    (key,) = settings
    with pytest.raises(UserError, match=f"algo.{key}: supervised steps, those of sft and of cgpo with isr_sft_steps"):
        make_agent(name, tmp_path, **settings).check_training()
