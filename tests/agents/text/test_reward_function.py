"""Environments as reward functions of other trainers: rows, rewards, pickling, and TRL's own GRPOTrainer."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from trl import GRPOConfig, GRPOTrainer

from maskgym import data, policies
from maskgym.agents.text.reward_function import EnvRewardFunction
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError

ID = "maskgym/SIS-v0"
ANSWER = "<think>One.</think><answer><ins>a red disc</ins></answer>"


def make(**arguments: object) -> EnvRewardFunction:
    return EnvRewardFunction(ID, num_envs=2, **arguments)


def test_columns_of_another_length_are_named():
    reward = EnvRewardFunction("maskgym/SIS-v0")
    with pytest.raises(UserError, match="1 values of index for 2 completions"):
        reward(["a", "b"], index=[0])
    with pytest.raises(UserError, match="3 values of split for 2 completions"):
        reward(["a", "b"], index=[0, 1], split=["train"] * 3)


def test_rows_are_what_reset_shows() -> None:
    rows = make(dataset=data.make("scenes", task="sis", split="test", size=5)).rows()
    assert len(rows) == 5 and set(rows[0]) == {"prompt", "images", "index", "split", "data"}
    observations, _ = ReasoningVectorEnv(5, "sis", split="test").reset(options={"index": np.arange(5)})
    for i, row in enumerate(rows):
        assert row["index"] == i
        assert row["prompt"] == [{"role": "user", "content": observations["instruction"][i]}]
        np.testing.assert_array_equal(np.asarray(row["images"][0]), observations["image"][i])


def test_groups_have_all_their_images() -> None:
    assert len(EnvRewardFunction("maskgym/CoSOD-v0", num_envs=2, group_size=3).rows()[0]["images"]) == 3


def test_rewards_are_those_of_step() -> None:
    reward, logged, indices = make(split="test"), {}, [7, 0, 7]  # more than it is wide
    found = reward(
        completions=[ANSWER, [{"role": "assistant", "content": ANSWER}], "nonsense"],
        index=indices,
        prompts=[None] * 3,
        log_metric=logged.__setitem__,
    )
    env = ReasoningVectorEnv(3, "sis", split="test", autoreset_mode="Disabled")
    env.reset(options={"index": np.array(indices)})
    _, expected, _, _, infos = env.step((ANSWER, ANSWER, "nonsense"))
    assert found == pytest.approx(expected.tolist(), abs=1e-5) and all(isinstance(value, float) for value in found)
    assert found[0] > 0.4 > found[2] == 0
    assert logged == {
        f"reward/{name}": pytest.approx(infos["reward_terms"][name].mean(), abs=1e-5)
        for name in ("correctness", "format")
    }


def columns(rows, *numbers: int) -> dict[str, list]:
    return {name: [rows[number][name] for number in numbers] for name in ("index", "split", "data")}


def test_rows_of_another_split_are_scored_against_their_own_samples() -> None:
    train, test = make(), make(split="test")
    texts = [data.make("scenes", task="sis", split="test")[index].rationale for index in range(3)]
    shown = columns(train.rows("test"), 0, 1, 2)
    assert shown == columns(test.rows(), 0, 1, 2) and shown["split"] == ["test"] * 3
    found = train(texts, **shown)
    assert found == test(texts, **shown) == test(texts, [0, 1, 2])
    assert min(found) > 0.8 > max(train(texts, [0, 1, 2]))
    mixed = {name: [*shown[name], *columns(train.rows(), 0)[name]] for name in shown}
    assert train([*texts, texts[0]], **mixed) == [*found, train([texts[0]], [0])[0]]


def test_rows_of_another_data_set_are_refused() -> None:
    rows = make(dataset=data.make("scenes", task="sis", split="test", size=5)).rows()
    with pytest.raises(
        UserError, match="SIS-v0: a row is of Scenes, sis, test, 5 samples.*: this function scores .* 512"
    ):
        make()([ANSWER], **columns(rows, 0))
    given = make(dataset=data.make("scenes", task="sis", split="test", size=5))
    with pytest.raises(UserError, match="split='train': the data set given is of split 'test'"):
        given.rows("train")


def test_what_the_template_prefilled_is_part_of_the_answer() -> None:
    rest = ANSWER.removeprefix("<think>")
    assert make(prefilled="<think>")([rest], [0]) == make()([ANSWER], [0])
    assert make()([rest], [0])[0] < make()([ANSWER], [0])[0]


def test_arguments_reach_the_environment() -> None:
    direct = ANSWER.partition("</think>")[2]
    assert make(reasoning=False)([direct], [0])[0] > make()([direct], [0])[0]


def test_it_is_pickled_without_its_environment() -> None:
    reward = make(split="test")
    before = reward([ANSWER], [3])
    content = pickle.dumps(reward)
    assert len(content) < 500
    again = pickle.loads(content)
    assert again([ANSWER], [3]) == before and again.__name__ == reward.__name__ == "SIS-v0-test"
    assert make().__name__ == "SIS-v0"


@pytest.mark.parametrize("env_id", ["maskgym/Nothing-v0", "maskgym/PointPrompt-v0"])
def test_other_environments_are_refused(env_id: str) -> None:
    with pytest.raises(UserError, match=f"environment '{env_id}'"):
        EnvRewardFunction(env_id, num_envs=2)([ANSWER], [0])


def test_the_plain_trainer_of_trl_learns_from_it(tmp_path) -> None:
    policy, reward = policies.make("qwen2_5_vl_tiny", device="cpu"), make()
    before = policy.model.lm_head.weight.detach().clone()
    trainer = GRPOTrainer(
        model=policy.model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=96,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=reward.rows(),
        processing_class=policy.processor,
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert [row["step"] for row in logs] == [1, 2]
    assert all(row["rewards/SIS-v0/mean"] == row["reward"] and 0 <= row["reward"] <= 1 for row in logs)
    assert "reward/format" in logs[0]
    assert (policy.model.lm_head.weight != before).any()
