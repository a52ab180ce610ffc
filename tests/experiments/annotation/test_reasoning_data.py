"""Output-to-reasoning, against a real server that knows the scenes: what is asked, what passes, what is left behind."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from maskgym import data, files, rewards
from maskgym.agents.text.language import SFTAgent
from maskgym.chat.asker import Asker, Reply, to_png
from maskgym.chat.server import ChatServer
from maskgym.data.rationales import WithRationales
from maskgym.envs.instructions import instruction
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.envs.rendering import overlay
from maskgym.errors import UserError
from maskgym.experiments.annotation import paper_prompts, reasoning_data
from maskgym.experiments.annotation import reasoning_prompts as prompts
from maskgym.experiments.wiring import composition
from maskgym.policies.text.mllm import TINY, tiny_policy
from maskgym.segmenters import make as make_segmenter

pytest.importorskip("openai")
SIZE = 3
TASKS = ("sod", "sis", "cosod")


def think(task: str = "sis") -> str:
    return "\n".join(f"Step {n}: {step}: words." for n, step in enumerate(prompts.STEPS[task], start=1))


def answer(phrases, task: str = "sis", reasoning: str | None = None) -> str:
    return f"Sure!\n{rewards.format_answer(think(task) if reasoning is None else reasoning, phrases, task)}\nDone."


@pytest.fixture(scope="module")
def scenes():
    return {task: data.make("scenes", task=task, size=5) for task in TASKS}


@pytest.fixture(scope="module")
def segmenter():
    return make_segmenter("evf_sam_tiny")


@pytest.fixture(scope="module")
def composed():
    return {}


@pytest.fixture(autouse=True)
def quick(monkeypatch, composed):
    """Compose what was composed before only once: it takes most of a test's time."""
    compose = composition.compose

    def once(arguments):
        key = tuple(arguments)
        if key not in composed:
            composed[key] = compose(arguments)
        return copy.deepcopy(composed[key])

    monkeypatch.setattr(composition, "compose", once)


@pytest.fixture(autouse=True)
def knowing(chat_server, scenes):
    """Make the server answer well: it knows every scene by its picture."""
    known = {to_png(scene.images[0]): scene for found in scenes.values() for scene in map(found.__getitem__, range(5))}
    tags = {"sis": "one <ins>", "cosod": "exactly one <rg>", "sod": "one <rg>"}

    def reply(parts) -> str:
        text = " ".join(part for part in parts if isinstance(part, str))
        task, sample = next(task for task, tag in tags.items() if f"nothing but {tag}" in text), known[parts[1]]
        return answer(sample.phrases[0] if task != "cosod" else (f"[semantic] {sample.category}",), task)

    chat_server.reply = reply


@pytest.fixture
def write(chat_server, tmp_path, capfd):
    """Return a function that runs the command and gives its status, standard output and the line that says error."""

    def write(*options: str, server: str | None = "", size: int = SIZE, task: str = "sis") -> tuple[int, str, str]:
        given = [str(tmp_path / "out"), "--task", task, "--model", "m", "--pause", "0.01", f"data.size={size}"]
        given += [] if server is None else ["--server", server or chat_server.url]
        capfd.readouterr()
        status = reasoning_data.main([*given, *options])
        out, error = capfd.readouterr()
        lines = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("error: ")]
        assert "Traceback" not in error and len(lines) == (status == 2)
        return status, out, "".join(lines)

    return write


def rows(folder, name: str = "rationales.jsonl") -> list[dict]:
    file = folder / "out" / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def last_text(request: dict) -> str:
    return request["messages"][0]["content"][-1]["text"]


@pytest.mark.parametrize("task", TASKS)
def test_every_sample_gets_a_row(write, chat_server, scenes, tmp_path, task):
    status, out, _ = write("--prices", "2", "4", task=task)
    assert status == 0 and "3 accepted, 0 rejected" in out and "0.00072 price" in out
    found = rows(tmp_path)
    assert [row["key"] for row in found] == [scenes[task][i].key for i in range(SIZE)]
    for row, index in zip(found, range(SIZE), strict=True):
        sample = scenes[task][index]
        assert row["task"] == task and row["instruction"] == instruction(task)
        parsed = rewards.parse(row["rationale"], task)
        assert parsed.structured and parsed.tagged and parsed.think == think(task)
        assert row["rationale"].startswith("<think>") and row["rationale"].endswith("</answer>")
        assert row["score"] > 0.7 and row["attempts"] == 1 and row["tokens"] == {"input": 100, "output": 10}
        assert row["model"] == "model-7" and row["at"]
        for name, image in zip(row["images"], sample.images, strict=True):
            assert (np.asarray(Image.open(tmp_path / "out" / name)) == image).all()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["samples"], summary["accepted"], summary["rejected"], summary["attempts"]) == (SIZE, SIZE, 0, 1.0)
    assert (summary["input_tokens"], summary["output_tokens"], summary["price"]) == (300, 30, 0.00072)
    assert summary["score"] == pytest.approx(np.mean([row["score"] for row in found]), abs=1e-3)
    before = len(chat_server.requests)
    assert write("--prices", "2", "4", task=task)[0] == 0 and len(chat_server.requests) == before == SIZE


@pytest.mark.parametrize("task", TASKS)
def test_the_model_sees_photo_and_truth_and_is_told_the_steps_and_the_form(scenes, task):
    sample = scenes[task][0]
    parts = prompts.question(sample, task)
    shown = [np.asarray(Image.open(io.BytesIO(part))) for part in parts if isinstance(part, bytes)]
    expected = [
        picture
        for image, masks in zip(sample.images, sample.masks, strict=True)
        for picture in (image, overlay(image, masks))
    ]
    assert all((one == other).all() for one, other in zip(shown, expected, strict=True))
    text = parts[-1]
    places = [text.index(f"Step {n}: {step}.") for n, step in enumerate(prompts.STEPS[task], start=1)]
    assert places == sorted(places) and "{" not in text
    assert (f"'{sample.category}'" in text) == (task == "cosod")
    (form,) = (line for line in text.splitlines() if line.startswith("<think>"))
    assert rewards.parse(form, task).tagged
    small = prompts.question(sample, task, largest=32)[1]
    assert Image.open(io.BytesIO(small)).size == (32, 32)


@pytest.mark.parametrize("task", TASKS)
def test_the_paper_s_prompt_goes_with_the_pictures_that_it_speaks_of(scenes, task):
    sample = scenes[task][0]
    parts = paper_prompts.question(sample, task)
    shown = [np.asarray(Image.open(io.BytesIO(part))) for part in parts if isinstance(part, bytes)]
    if task == "cosod":
        assert all((one == other).all() for one, other in zip(shown, sample.images, strict=True))
        assert f"in this group of images is {sample.category}, which" in parts[-1]
        with pytest.raises(UserError, match="has no category"):
            paper_prompts.question(dataclasses.replace(sample, category=None), task)
        return
    image, marked = shown
    assert (image == sample.images[0]).all() and ((marked > 0).any(axis=2) == sample.union()).all()
    colours = {tuple(colour) for mask in sample.masks[0] for colour in marked[mask]}
    assert colours == {(255, 255, 255)} if task == "sod" else len(colours) == len(sample.masks[0])
    places = [parts[-1].index(f"Step {n}: {step}") for n, step in enumerate(prompts.STEPS[task], start=1)]
    assert places == sorted(places)


PAPER_ANSWERS = {
    "sod": (
        "Final answer: \\n<rg> a red star\\n<rg> [semantic] disc",
        ("a red star", "[semantic] disc"),
        "My final answer regarding salient object detection is: a red star, and disc.",
    ),
    "sis": (
        "**Final answer:** \n<ins> a red star \n<ins> a blue disc on the left",
        ("a red star", "a blue disc on the left"),
        "My final answer regarding salient instance detection is: a red star, and a blue disc on the left.",
    ),
    "cosod": (
        "My final answer regarding co-salient object detection is: <rg>[semantic]star</rg>",
        ("[semantic] star",),
        "My final answer regarding co-salient object detection is star.",
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_to_the_paper_s_prompt_becomes_that_of_its_figure_6(task):
    conclusion, phrases, sentence = PAPER_ANSWERS[task]
    parsed = rewards.parse(paper_prompts.restore(f"{think(task)}\n{conclusion}", task), task)
    assert parsed.expressions == phrases and parsed.think == f"{think(task)} {sentence}"
    assert prompts.fault_of(parsed, task) is None
    for other in ("I see a star.", answer(phrases, task), f"{think(task)} {conclusion.split('<')[0]}", "<rg></rg>"):
        assert paper_prompts.restore(other, task) == other


def test_rows_of_the_paper_s_prompt(write, chat_server, scenes, tmp_path):
    phrases = iter([scenes["sis"][index].phrases[0] for index in range(SIZE)])
    chat_server.reply = lambda parts: f"{think()} Final answer: " + "".join(f"\n<ins> {p}" for p in next(phrases))
    status, out, _ = write("--prompt", "paper", "--jobs", "1")
    assert status == 0 and "3 accepted, 0 rejected" in out
    assert last_text(chat_server.requests[0]) == paper_prompts.published()["sis"]
    assert all(rewards.parse(row["rationale"], "sis").tagged for row in rows(tmp_path))
    status, _, error = write()
    assert status == 2 and "its rows were made with prompt paper, not maskgym" in error


FAULTS = [
    ("I see a star.", "expected exactly one <think>"),
    (answer(["a star"]) + "<think>", "expected exactly one <think>"),
    (f"<think>{think()}</think><answer>a star</answer>", "inside <answer>: expected nothing but one <ins>"),
    (f"<think>{think()}</think><answer><rg>a star</rg></answer>", "inside <answer>: expected nothing but one <ins>"),
    (f"<think>{think()}</think><answer><ins>\x00</ins></answer>", "inside <answer>: expected nothing but one <ins>"),
    (answer(["a star"], reasoning="It is a star."), "lacks 'Step 1: Scene Description'"),
    (answer(["a star"], reasoning="\n".join(think().splitlines()[::-1])), "lacks 'Step 2: Identify Salient Instances'"),
    (answer(["a star"], reasoning=think() + " <|image_pad|>"), "the reasoning holds angle brackets"),
    (answer(["a star"], reasoning=think() + " \x1b[2J"), "the reasoning holds signs that are no text"),
    (answer(["a star"], reasoning=think() + " \ud800"), "the reasoning holds signs that are no text"),
    (answer(["a star"], reasoning=think() + "." * 8000), "characters of reasoning: expected at most 8000"),
    (answer(["a star"], reasoning=think() + " The Ground Truth shows it."), "'ground truth' speaks of what cannot"),
    (answer(["a tinted star"]), "'tinted' speaks of what cannot"),
    (answer(["a star", "A star"]), "two descriptions are the same"),
    (answer([f"star {n}" for n in range(51)]), "51 descriptions: expected at most 50"),
    (answer(["a small pale cyan ring at bottom right"]), "score 0.00 of 1, expected at least 0.7; 1 descriptions of 2"),
]


@pytest.fixture
def author(chat_server, segmenter, scenes, tmp_path):
    env = ReasoningVectorEnv(1, "sis", scenes["sis"], segmenter=segmenter, reward="correctness")
    asker = Asker(ChatServer("m", chat_server.url), tmp_path / "answers", pause=0.01)
    return reasoning_data.Author(env, asker, attempts=3, threshold=0.7, largest=1024)


@pytest.mark.parametrize(("first", "expected"), FAULTS)
def test_what_was_wrong_is_told_to_the_model_which_mends_it(author, chat_server, scenes, first, expected):
    chat_server.plan = [first]
    written = author.write(scenes["sis"][0])
    assert written.accepted and len(chat_server.requests) == 2
    before, after = (request["messages"][0]["content"] for request in chat_server.requests)
    assert after[:-1] == before and "Your last answer was:" not in last_text(chat_server.requests[0])
    told = last_text(chat_server.requests[1])
    assert expected in told and first[:20] in told
    assert written.row["attempts"] == 2 and written.row["tokens"] == {"input": 200, "output": 20}


def test_what_is_never_mended_is_rejected_with_the_reason_and_asked_again_when_told(write, chat_server, tmp_path):
    chat_server.plan = ["I see a star."] * 2
    status, out, _ = write("--attempts", "2", "--jobs", "1")
    assert status == 0 and "2 accepted, 1 rejected" in out
    (rejected,) = rows(tmp_path, "rejected.jsonl")
    assert "expected exactly one <think>" in rejected["reason"] and rejected["answer"] == "I see a star."
    assert rejected["attempts"] == 2 and rejected["key"].endswith("00000")
    asked = len(chat_server.requests)
    assert write("--attempts", "2")[0] == 0 and len(chat_server.requests) == asked
    chat_server.plan = ["I see a disc."] * 2
    assert write("--attempts", "2", "--retry")[0] == 0
    (rejected,) = rows(tmp_path, "rejected.jsonl")
    assert rejected["attempts"] == 4 and rejected["answer"] == "I see a disc."
    assert write("--attempts", "2", "--retry")[0] == 0
    assert rows(tmp_path, "rejected.jsonl") == [] and len(rows(tmp_path)) == SIZE
    assert rows(tmp_path)[-1]["attempts"] == 5 and len(chat_server.requests) == asked + 3
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["answers"] == asked + 3 and summary["rejected"] == 0


def test_a_threshold_decides(write, chat_server, tmp_path):
    assert write("--threshold", "0.999", "--attempts", "1", size=1)[0] == 0
    (rejected,) = rows(tmp_path, "rejected.jsonl")
    assert 0.9 < rejected["score"] < 0.999 and "expected at least 0.999" in rejected["reason"]


def test_the_request_is_as_the_options_have_it(write, chat_server, monkeypatch, tmp_path):
    monkeypatch.setenv("OTHER_KEY", "secret-key")
    options = ["--temperature", "0.3", "--max-tokens", "77", "--request", '{"reasoning_effort": "low"}']
    assert write(*options, "--key-variable", "OTHER_KEY", "--largest", "128", size=1)[0] == 0
    (request,) = chat_server.requests
    assert (request["temperature"], request["max_tokens"], request["reasoning_effort"]) == (0.3, 77, "low")
    assert chat_server.keys == ["Bearer secret-key"]
    assert not any(b"secret-key" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize("jobs", [1, 3])
def test_so_many_samples_are_asked_about_at_a_time(write, chat_server, jobs):
    reply = chat_server.reply

    def slow(parts) -> str:
        ends = time.monotonic() + 10
        while chat_server.most < jobs and time.monotonic() < ends:
            time.sleep(0.01)
        return reply(parts)

    chat_server.reply = slow
    assert write("--jobs", str(jobs))[0] == 0 and chat_server.most == jobs


HOSTILE = [b"<html>", b"[]", b"null", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[" * 100_000, b"\xff",
           b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1e999}}']  # fmt: skip


def test_answers_that_are_none_are_asked_for_again(write, chat_server, tmp_path):
    chat_server.plan = [*HOSTILE, "503", "gone"]
    assert write("--retries", "10", "--pause", "0", size=1)[0] == 0
    assert len(chat_server.requests) == len(HOSTILE) + 3 and len(rows(tmp_path)) == 1


def test_contents_of_other_types_are_texts(write, chat_server, tmp_path):
    parts = json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "I see"}, {"text": None}]}}]})
    chat_server.plan = [
        parts.encode(),
        b'{"choices": [{"message": {"content": {"a": 1}}}]}',
        b'{"choices": [{"message": {}}]}',
    ]
    assert write(size=1)[0] == 0
    (rejected,) = rows(tmp_path, "rejected.jsonl")
    assert rejected["answer"] == "" and rejected["attempts"] == 3
    assert "Your last answer was:\nI see\n" in last_text(chat_server.requests[1])


def test_a_server_that_goes_away_ends_it_in_one_line_and_the_same_command_goes_on(write, chat_server, tmp_path):
    chat_server.plan = ["I see a star.", *["gone"] * 50]
    status, _, error = write("--jobs", "1", "--retries", "1", size=5)
    assert status == 2 and "3 samples in a row got no answer (no connection" in error
    assert "the same command goes on" in error and rows(tmp_path) == []
    asked = len(chat_server.requests)
    assert 1 + 3 * 2 <= asked <= 1 + 4 * 2  # one more may be on its way
    chat_server.plan = ["503"] * 2  # one sample more is lost, not three in a row
    status, out, error = write("--jobs", "1", "--retries", "1", size=5)
    assert status == 2 and "1 samples got no answer (status 503" in error and "accepted" in out
    status, _, _ = write("--jobs", "1", size=5)
    assert status == 0 and sorted(row["key"][-1] for row in rows(tmp_path)) == list("01234")


def test_a_wrong_key_and_a_request_that_is_refused_end_it_in_one_line(write, chat_server):
    chat_server.plan = ["401"] * 9
    status, _, error = write("--jobs", "1")
    assert status == 2 and "status 401: " in error and "OPENAI_API_KEY" in error and len(chat_server.requests) == 1
    chat_server.plan = ["400"] * 9
    status, _, error = write("--jobs", "1")
    assert (
        status == 2 and "3 samples in a row got no answer (status 400" in error and len(chat_server.requests) in (4, 5)
    )


def _alone(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    os._exit(reasoning_data.main(arguments))


def test_a_killed_run_goes_on_and_asks_nothing_twice(write, chat_server, tmp_path):
    arguments = [str(tmp_path / "out"), "--model", "m", "--server", chat_server.url, "--jobs", "1", f"data.size={SIZE}"]
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(arguments,))
    reply = chat_server.reply

    def deadly(parts) -> str:
        if len(chat_server.requests) == 3:
            os.kill(child.pid, signal.SIGKILL)
        return reply(parts)

    chat_server.plan, chat_server.reply = ["I see a star."], deadly
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    # Answers are kept at once; the row is written by another thread, which may not have come to it.
    assert len(rows(tmp_path)) <= 1 and len(list((tmp_path / "out" / "answers").glob("*.json"))) == 2
    chat_server.reply = reply
    assert write()[0] == 0
    assert len(chat_server.requests) == 3 + 2  # the second, whose answer was lost, and the third
    assert [row["attempts"] for row in rows(tmp_path)] == [2, 1, 1]
    questions = [json.dumps(request["messages"]) for request in chat_server.requests]
    assert len(set(questions)) == len(questions) - 1
    assert not [path for path in (tmp_path / "out").rglob("*.tmp")]


@pytest.mark.parametrize("name", ["rationales.jsonl", "rejected.jsonl"])
def test_a_line_that_a_crash_cut_off_is_written_anew_without_asking(write, chat_server, tmp_path, name):
    chat_server.plan = ["I see a star."] * 3
    assert write("--jobs", "1")[0] == 0
    file, asked = tmp_path / "out" / name, len(chat_server.requests)
    content = file.read_bytes()
    for cut in (1, 30):
        file.write_bytes(content[:-cut])
        assert write("--jobs", "1")[0] == 0
        assert len(rows(tmp_path)) == 2 and len(rows(tmp_path, "rejected.jsonl")) == 1
        assert file.read_bytes() == content
    assert len(chat_server.requests) == asked


def test_a_whole_line_that_is_no_row_is_told(write, tmp_path):
    assert write()[0] == 0
    file = tmp_path / "out" / "rationales.jsonl"
    whole = file.read_bytes()
    for line in (b'{"key": 7}', b'{"key": "a", "attempts": 1}', b'{"key": "a", "attempts": 1, "score": "x"}'):
        file.write_bytes(line + b"\n" + whole)
        assert "rationales.jsonl: line 1: expected a row with its key, attempts, score" in write()[2]


def test_two_at_a_time_are_refused(write, tmp_path):
    assert write(size=1)[0] == 0
    with files.alone(tmp_path / "out", "reason"):
        assert "another process is at work here (reason)" in write(size=1)[2]


def test_other_rows_are_not_mixed_in(write, chat_server, tmp_path):
    assert write()[0] == 0
    for options, expected in [
        (["--threshold", "0.5"], "made with threshold 0.7, not 0.5"),
        (["--model", "other"], "made with model"),
        (["--temperature", "1"], "made with model"),
        (["--largest", "64"], "made with largest 1024, not 64"),
        (["--split", "test"], "made with split train, not test"),
        (["train_samples=2"], "made with train_samples None, not 2"),
    ]:
        status, _, error = write(*options)
        assert status == 2 and expected in error and "choose another folder" in error
    assert write("--jobs", "2", "--attempts", "1", "--prices", "1", "1")[0] == 0  # what may change
    assert write("--task", "sod")[0] == 2 and len(chat_server.requests) == SIZE


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--threshold", "1.5"], "--threshold 1.5: expected 0 to 1"),
        (["--attempts", "0"], "--attempts 0: expected at least 1"),
        (["--jobs", "0"], "--jobs 0: expected at least 1"),
        (["--retries", "-1"], "--retries -1: expected at least 0"),
        (["--largest", "8"], "--largest 8: expected at least 28"),
        (["--max-tokens", "0"], "--max-tokens 0: expected at least 1"),
        (["--timeout", "nan"], "--timeout nan: expected at least 0"),
        (["--request", "{"], "--request {: no JSON"),
        (["--request", "[]"], "--request []: expected a JSON object"),
        (["--request", '{"model": "x"}'], "option model of the request"),
        (["--key-variable", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--task", "need"], "argument --task: invalid choice: 'need'"),
        (["--data", "cocoo"], "unknown data 'cocoo'"),
        (["--data", "coco"], "unknown key 'data.size'"),
        (["algo.updates=3"], "'algo.updates=3': expected key=value of data, segmenter"),
        (["train_samples=7"], "7 samples to train on"),
        (["segmenter=sam_tiny"], "takes no phrases"),
        (["--server", "nowhere"], "server nowhere: expected an address"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(write, chat_server, options, expected):
    status, _, error = write(*options)
    assert status == 2 and expected in error and not chat_server.requests


def test_a_folder_with_other_things_and_one_that_is_none_are_left_alone(write, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    assert "holds other things: expected a new folder" in write()[2]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("")
    assert "out: cannot be written: File exists" in write()[2]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(write, chat_server, tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device", str(self.file))

    with monkeypatch.context() as patched:
        patched.setattr(reasoning_data.Rows, "add", full)
        status, _, error = write("--jobs", "1")
        assert status == 2 and "cannot be written: No space left on device" in error
    asked = len(chat_server.requests)
    assert write("--jobs", "1")[0] == 0 and len(rows(tmp_path)) == SIZE
    assert len(chat_server.requests) <= max(SIZE, asked)


class Sure:
    """Says the same to every question."""

    settings = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        self.text = text

    def ask(self, parts) -> Reply:
        return Reply(self.text, "sure", 1, 1)


def test_a_sample_that_cannot_be_scored_is_rejected_by_name(photos, halves, tmp_path):
    env = ReasoningVectorEnv(1, "sis", photos(instances=0), segmenter=halves, reward="correctness")
    author = reasoning_data.Author(env, Asker(Sure(answer(["the left"])), tmp_path), 3, 0.5, 64)
    written = author.write(env.dataset[0])
    assert not written.accepted and "'photo0' cannot be scored" in written.row["reason"]
    assert written.row["attempts"] == 1


def test_what_finds_nothing_is_named(photos, halves, tmp_path):
    env = ReasoningVectorEnv(1, "sod", photos("sod"), segmenter=halves, reward="correctness")
    asked = Asker(Sure(answer(["the right", "the sky"], "sod")), tmp_path)
    written = reasoning_data.Author(env, asked, 1, 0.9, 64).write(env.dataset[0])
    assert written.row["reason"].endswith("; nothing was found by 'the sky'")


def test_a_model_on_this_machine_writes_too(write, tmp_path):
    options = ["--model", str(TINY), "--attempts", "1", "--device", "cpu", "--max-tokens", "40"]
    status, out, _ = write(*options, server=None, size=1)
    assert status == 0 and "0 accepted, 1 rejected" in out
    (rejected,) = rows(tmp_path, "rejected.jsonl")
    assert rejected["answer"] and 0 < rejected["tokens"]["output"] <= 40
    status, _, error = write("--key-variable", "PATH", server=None)
    assert status == 2 and "--key-variable: is for a server" in error
    assert write("--model", "nowhere/at-all/x", server=None)[0] == 2


def test_supervised_training_reads_what_was_written(write, chat_server, segmenter, tmp_path):
    chat_server.plan = ["I see a star."] * 3
    assert write("--jobs", "1")[0] == 0
    found = WithRationales(data.make("scenes", size=SIZE), tmp_path / "out" / "rationales.jsonl")
    assert [sample.rationale for sample in map(found.__getitem__, range(2))] == [r["rationale"] for r in rows(tmp_path)]
    env = ReasoningVectorEnv(2, "sis", found, segmenter=segmenter, image_size=112, autoreset_mode="Disabled")
    logged = []
    agent = SFTAgent(tiny_policy(device="cpu"), batch_size=2, output=tmp_path / "checkpoints")
    agent.train([env], 1, lambda step, values: logged.append(values))
    assert logged and any(np.isfinite(value) and value > 0 for name, value in logged[0].items() if "loss" in name)
