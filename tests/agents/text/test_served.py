"""A model behind a real server, as an agent: what it is asked, what it is asked once, and what goes wrong."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from maskgym import agents, data, rewards
from maskgym.agents.text.served import ServedAgent, question
from maskgym.chat.asker import to_png
from maskgym.envs.instructions import form, instruction
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError
from maskgym.experiments import run
from maskgym.policies.text.mllm import TINY, LanguagePolicy

pytest.importorskip("openai")
GOOD = "<think>One.</think><answer><ins>a red star</ins></answer>"


def see(task: str = "sis", count: int = 1, reasoning: bool = True) -> list[dict]:
    """Return observations, each of another grey."""
    text = instruction(task, reasoning)
    if task == "cosod":
        return [{"images": np.full((3, 8, 8, 3), n, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None],
                 "instruction": text} for n in range(count)]  # fmt: skip
    return [{"image": np.full((6, 9, 3), n, np.uint8), "instruction": text} for n in range(count)]


@pytest.fixture
def make(chat_server, tmp_path):
    def make(**settings) -> ServedAgent:
        given = {"model": "m", "base_url": chat_server.url, "output": tmp_path / "checkpoints", "pause": 0.01}
        return agents.make("chat_model", **{**given, **settings})

    return make


def texts(request: dict) -> list[str]:
    return [part["text"] for part in request["messages"][0]["content"] if part["type"] == "text"]


@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("task", ["sod", "sis", "cosod"])
def test_it_asks_with_the_images_and_the_instruction_and_the_form_can_be_read(task, reasoning):
    (observation,) = see(task, reasoning=reasoning)
    parts = question(observation)
    shown = [np.asarray(Image.open(io.BytesIO(part))) for part in parts if isinstance(part, bytes)]
    expected = list(observation["images"]) if task == "cosod" else [observation["image"]]
    assert len(shown) == len(expected) and all((a == b).all() for a, b in zip(shown, expected, strict=True))
    assert parts[len(shown) :] == [observation["instruction"]]
    assert instruction(task, reasoning, hint=True) == instruction(task, reasoning) + form(task, reasoning)
    (example,) = (line for line in form(task, reasoning).splitlines() if "<answer>" in line and "Inside" not in line)
    answer = rewards.parse(example, task, reasoning)
    assert answer.structured and answer.tagged and ("<think>" in example) == reasoning


@pytest.mark.parametrize("task", ["sod", "sis", "cosod"])
@pytest.mark.parametrize(("name", "hint"), [("paper", False), ("paper", True), ("maskgym", False), ("maskgym", True)])
def test_served_and_local_models_are_asked_the_same(task, name, hint):
    scenes = data.make("scenes", task=task, size=1)
    env = ReasoningVectorEnv(1, task, scenes, instruction=name, hint=hint, autoreset_mode="Disabled")
    observations, _ = env.reset(options={"index": 0})
    assert observations in env.observation_space
    (row,) = ({key: value[0] for key, value in observations.items()},)
    (message,), images = LanguagePolicy(TINY, device="cpu").prompt(row)
    served = question(row)
    assert message["content"][-1] == {"type": "text", "text": served[-1]}
    assert [part["type"] for part in message["content"][:-1]] == ["image"] * len(images)
    shown = [np.asarray(Image.open(io.BytesIO(part))) for part in served[:-1]]
    assert all((np.asarray(one) == other).all() for one, other in zip(images, shown, strict=True))
    assert served[-1] == instruction(task, name=name, hint=hint)
    assert (form(task) in served[-1]) == hint


@pytest.mark.parametrize(("asked", "hint"), [((), True), (("env.hint=false", "env.instruction=paper"), False)])
def test_the_run_says_how_it_asked(chat_server, tmp_path, asked, hint):
    out = tmp_path / "run"
    given = ["env=sod", "algo=chat_model", "algo.model=m", f"algo.base_url={chat_server.url}", f"out={out}"]
    assert run.main([*given, "data.size=1", "data.image_size=32", "env.image_size=32", *asked]) == 0
    results = json.loads((out / "results.json").read_text())
    name = "maskgym" if hint else "paper"
    assert (results["instruction"], results["hint"]) == (name, hint)
    (request,) = chat_server.requests
    assert texts(request) == [instruction("sod", name=name, hint=hint)]


def test_answers_come_in_the_order_of_the_observations_and_are_asked_for_once(make, chat_server):
    chat_server.reply = lambda parts: f"grey {np.asarray(Image.open(io.BytesIO(parts[0])))[0, 0, 0]}"
    assert make().act(see(count=12)) == [f"grey {n}" for n in range(12)]
    assert make().act(see(count=12)[::-1], greedy=False) == [f"grey {n}" for n in range(12)][::-1]
    assert len(chat_server.requests) == 12


def test_the_request_is_as_the_settings_have_it(make, chat_server, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "not-this-one")
    monkeypatch.setenv("OTHER_KEY", "secret-key\n")
    make(temperature=0.5, max_tokens=None, options={"max_completion_tokens": 9}, key_variable="OTHER_KEY").act(see())
    (request,) = chat_server.requests
    assert (request["model"], request["temperature"], request["max_completion_tokens"]) == ("m", 0.5, 9)
    assert "max_tokens" not in request and chat_server.keys == ["Bearer secret-key"]
    make().act(see())
    assert (chat_server.requests[1]["temperature"], chat_server.requests[1]["max_tokens"]) == (0.0, 2048)
    assert chat_server.keys[1] == "Bearer not-this-one"
    assert all("secret" not in file.read_text() for file in tmp_path.rglob("*.json"))


def test_a_seed_matters_where_answers_are_drawn_and_a_shared_cache_is_shared(make, chat_server, tmp_path):
    shared = tmp_path / "shared"
    for settings, asked in [
        ({}, 1),
        ({"seed": 1}, 1),
        ({"temperature": 1.0}, 2),
        ({"temperature": 1.0, "seed": 1}, 3),
        ({"temperature": 1.0, "seed": 1, "output": tmp_path / "other"}, 3),
        ({"model": "other"}, 4),
    ]:
        make(cache=shared, **settings).act(see())
        assert len(chat_server.requests) == asked
    make().act(see())
    assert len(chat_server.requests) == 5 and len(list((tmp_path / "checkpoints" / "answers").iterdir())) == 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_so_many_questions_are_on_their_way_at_a_time(make, chat_server, concurrency):
    def reply(parts) -> str:
        ends = time.monotonic() + 10
        while chat_server.most < concurrency and time.monotonic() < ends:
            time.sleep(0.01)
        return GOOD

    chat_server.reply = reply
    make(concurrency=concurrency).act(see(count=8))
    assert chat_server.most == concurrency


HOSTILE = [b"<html>", b"[]", b"null", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[" * 100_000, b"\xff",
           b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1e999}}',
           b'{"choices": [{"message": {"content": "a"}}], "usage": [1]}']  # fmt: skip


@pytest.mark.parametrize("fault", ["gone", "429", "500", "503", *HOSTILE])
def test_it_asks_again_where_no_answer_came(make, chat_server, fault):
    chat_server.plan = [fault, fault, GOOD]
    assert make(retries=2).act(see()) == [GOOD] and len(chat_server.requests) == 3


def test_a_late_answer_is_none(make, chat_server):
    chat_server.seconds = 0.5
    with pytest.raises(UserError, match=r"no answer after 1 tries \(no answer within 0.1 s\)"):
        make(retries=0, timeout=0.1).act(see())


def test_a_server_that_is_gone_ends_it_in_one_line_and_what_was_answered_is_kept(make, chat_server, tmp_path):
    chat_server.plan = [GOOD, *["gone"] * 9]
    with pytest.raises(UserError) as error:
        make(retries=1, concurrency=1).act(see(count=5))
    kept = tmp_path / "checkpoints" / "answers"
    assert str(error.value).startswith(f"{chat_server.url}/: no answer after 2 tries (no connection")
    assert str(error.value).endswith(f"algo.cache={kept} continues from there") and "\n" not in str(error.value)
    assert len(chat_server.requests) == 3  # the others were not asked
    chat_server.plan.clear()
    agent = make(cache=kept)
    assert agent.act(see(count=5))[0] == GOOD and len(chat_server.requests) == 3 + 4


def test_nobody_at_the_address_is_told_in_one_line(make):
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9/v1/: no answer after 2 tries \(no connection"):
        make(base_url="http://127.0.0.1:9/v1", retries=1).act(see())


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_wrong_key_or_model_is_told_at_once(make, chat_server, status):
    chat_server.plan = [status] * 9
    with pytest.raises(
        UserError, match=f"status {status}: .*as planned.*is the key in OPENAI_API_KEY, is the model m?"
    ):
        make(concurrency=1).act(see(count=5))
    assert len(chat_server.requests) == 1


def test_a_picture_that_is_refused_is_a_malformed_answer_and_a_request_that_is_always_refused_a_mistake(
    make, chat_server, capsys
):
    chat_server.plan = ["400", GOOD]
    agent = make(concurrency=1)
    assert agent.act(see(count=2)) == ["", GOOD]
    assert "1 of 2 questions were refused (status 400" in capsys.readouterr().out
    chat_server.plan = ["400"]
    assert agent.act(see(count=3)[2:]) == [""]  # it has answered others
    chat_server.plan = ["400"] * 9
    with pytest.raises(UserError, match="3 of 3 questions were refused .status 400: .*see algo.options"):
        make(model="other").act(see(count=3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": None}, "algo.model is not set"),
        ({"base_url": None}, "OPENAI_API_KEY is not set"),
        ({"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"key_variable": "sk-a-real-key"}, "expected the name of an environment variable, not the key itself"),
        ({"base_url": "no url"}, "server no url"),
        ({"concurrency": 0}, "algo.concurrency=0: expected at least 1"),
        ({"retries": -1}, "algo.retries=-1: expected at least 0"),
        ({"pause": -1.0}, "algo.pause=-1.0: expected at least 0"),
        ({"timeout": -1.0}, "algo.timeout=-1.0: expected at least 0"),
        ({"options": {"messages": []}}, "option messages of the request: is set by the question itself"),
        ({"cache": "/dev/null/x"}, "/dev/null/x: cannot be written"),
    ],
)
def test_what_cannot_be_is_told_at_construction(make, monkeypatch, settings, expected):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match=expected) as error:
        make(**settings)
    assert "sk-a-real-key" not in str(error.value)


def test_a_key_with_signs_that_none_has_is_not_shown(make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sécret key")
    with pytest.raises(UserError, match="OPENAI_API_KEY: holds signs that no key has$"):
        make()


def test_an_answer_that_a_crash_cut_off_is_asked_for_again(make, chat_server, tmp_path):
    make().act(see())
    (kept,) = (tmp_path / "checkpoints" / "answers").iterdir()
    for content in (kept.read_bytes()[:20], b"", b"[]", b'{"text": 7}'):
        kept.write_bytes(content)
        assert make().act(see()) == ["I see a thing."]
    assert len(chat_server.requests) == 5 and json.loads(kept.read_text())["text"] == "I see a thing."


@pytest.mark.parametrize("task", ["sod", "sis", "cosod"])
def test_a_whole_run_scores_what_the_server_says(task, chat_server, tmp_path, capfd):
    size = 64
    scenes = data.make("scenes", task=task, split="test", size=5, image_size=size)
    shown = {to_png(scenes[i].images[0]): scenes[i] for i in range(5)}

    def reply(parts) -> str:
        sample = shown[next(part for part in parts if isinstance(part, bytes))]
        phrases = sample.phrases[0] if task != "cosod" else (f"[semantic] {sample.category}",)
        return rewards.format_answer("I look.", phrases, task)

    chat_server.reply = reply
    given = [
        f"env={task}",
        "algo=chat_model",
        "algo.model=m",
        f"algo.base_url={chat_server.url}",
        f"out={tmp_path / 'run'}",
    ]
    given += [f"data.image_size={size}", "data.size=5", f"env.image_size={size}", "env.num_envs=3"]
    assert run.main(given) == 0, capfd.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["after"]["format"] == 1.0 and results["after"]["s_measure"] > 0.7 and results["steps"] == 0
    assert len(chat_server.requests) == 5


def test_a_run_without_a_server_ends_with_one_line_and_status_2(tmp_path, capfd, monkeypatch):
    given = ["env=sod", "algo=chat_model", "algo.model=m", "algo.base_url=http://127.0.0.1:9/v1", "algo.retries=0"]
    assert run.main([*given, f"out={tmp_path / 'run'}", "data.size=2"]) == 2
    lines = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error")]
    assert len(lines) == 1 and "no answer after 1 tries" in lines[0]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert run.main(["env=sod", "algo=chat_model", "algo.model=m", f"out={tmp_path / 'other'}", "data.size=2"]) == 2
    assert "OPENAI_API_KEY is not set" in capfd.readouterr().err
    assert run.main(["env=point_prompt", "algo=chat_model"]) == 2
    assert "not a pair" in capfd.readouterr().err


def test_a_run_that_lost_its_server_goes_on_by_the_same_command(chat_server, tmp_path, capfd):
    given = ["env=sis", "algo=chat_model", "algo.model=m", f"algo.base_url={chat_server.url}", f"out={tmp_path}/run"]
    given += ["data.size=4", "algo.retries=0", "algo.concurrency=1", "algo.temperature=null", "algo.max_tokens=null"]
    given += ["+algo.options.max_completion_tokens=9", "+algo.options.reasoning_effort=low"]
    chat_server.plan = [GOOD, "gone"]
    assert run.main(given) == 2
    assert run.main(given) == 0, capfd.readouterr().err
    assert len(chat_server.requests) == 2 + 3
    (request, *_) = chat_server.requests
    assert (request["max_completion_tokens"], request["reasoning_effort"]) == (9, "low")
    assert "temperature" not in request and "max_tokens" not in request


def test_the_environment_scores_a_refusal_as_malformed(make, chat_server):
    env = ReasoningVectorEnv(2, "sis", data.make("scenes", size=2), image_size=32, autoreset_mode="Disabled")
    observations, _ = env.reset(options={"index": [0, 1]})
    chat_server.plan = ["400", GOOD]
    rows = [{name: value[i] for name, value in observations.items()} for i in range(2)]
    _, _, _, _, infos = env.step(tuple(make(concurrency=1).act(rows)))
    assert list(infos["reward_terms"]["format"]) == [0.0, 1.0]
