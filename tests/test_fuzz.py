"""The fuzzing of `benchmarks/fuzz.py` at a small count, and that it can fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import gymnasium as gym
import numpy as np
import pytest

from maskgym import data
from maskgym.benchmarks import fuzz
from maskgym.benchmarks.fuzzing import actions, files, mutations, trees, verdicts
from maskgym.benchmarks.fuzzing.layouts import layouts
from maskgym.benchmarks.fuzzing.verdicts import Tally
from maskgym.data.layout import listing
from maskgym.data.readers import coco, folder
from maskgym.envs import mask_action
from maskgym.envs.clicks.settings import ClickSettings
from maskgym.envs.mask_action import MaskVectorEnv
from maskgym.envs.reasoning import ReasoningVectorEnv
from maskgym.errors import UserError


def failures(tallies: Sequence[Tally]) -> list[str]:
    return [failure for tally in tallies for failure in tally.failures]


def of_actions(name: str, count: int, seed: int = 0) -> list[str]:
    (row,) = [row for row in actions.rows_of(seed) if row.variant.name == name]
    assert len(list(row.run(count))) == count == sum(tally.tried for tally in row.tallies)
    return failures(row.tallies)


def of_files(name: str, count: int, seed: int = 0) -> list[str]:
    (row,) = [row for row in files.rows_of(seed) if row.layout.name == name]
    assert len(list(row.run(count))) == count == sum(tally.tried for tally in row.tallies)
    return failures(row.tallies)


def test_random_actions_are_taken_or_refused_without_a_trace():
    tallies = fuzz.fuzz(seed=7, number_of_actions=1200, number_of_files=0)
    assert failures(tallies) == []
    assert sum(tally.told for tally in tallies) > 700


def test_mutated_files_are_told_or_change_no_value():
    tallies = fuzz.fuzz(seed=7, number_of_actions=0, number_of_files=140)
    assert failures(tallies) == []
    assert sum(tally.told for tally in tallies) > 70


def test_every_environment_and_every_data_set_has_a_row():
    ids = {env_id for env_id in gym.registry if env_id.startswith("maskgym/")}
    assert {(row.env_id, row.vector) for row in actions.variants()} == {(i, v) for i in ids for v in (False, True)}
    assert {layout.data for layout in layouts()} == {*data.names()} - {"scenes", "tasks"}  # which has no files
    roles = {role for layout in layouts() for role in layout.roles.values()}
    assert roles == mutations.HARMFUL.keys() == mutations.HARMLESS.keys()
    assert {path for layout in layouts() for path in layout.roles.keys() - layout.tree().keys()} == set()


def test_a_case_is_repeated_by_its_seed_row_and_number():
    layout = next(layout for layout in layouts() if layout.name == "coco")
    for number in range(20):
        one, other = (mutations.mutate(Random(f"0 coco {number}"), layout, layout.tree(), True) for _ in range(2))
        assert one == other
    assert of_actions("UserNeed-v0", 30, seed=3) == []


# --- It can fail -----------------------------------------------------------------------------------------------------


def test_an_exception_of_another_kind_is_reported(monkeypatch):
    def read(self, action):
        raise ValueError("no")

    monkeypatch.setattr(ClickSettings, "read", read)
    found = of_actions("PointPrompt-v0", 8)
    assert len(found) == 8 and all("ValueError at " in failure and "number " in failure for failure in found)


def test_an_illegal_action_that_is_taken_is_reported(monkeypatch):
    read = MaskVectorEnv._read
    monkeypatch.setattr(MaskVectorEnv, "_read", lambda self, i, action: np.zeros_like(read(self, i, _black(self))))
    found = of_actions("UserNeed-v0", 20)
    assert found and all("an illegal action was taken" in failure for failure in found)


def _black(env: MaskVectorEnv) -> np.ndarray:
    return np.zeros((env.image_size, env.image_size), np.float32)


def test_a_message_without_the_environment_or_of_several_lines_is_reported(monkeypatch):
    def read(self, i, action):
        raise UserError("expected\nsomething else")

    monkeypatch.setattr(ReasoningVectorEnv, "_read", read)
    assert any("a message of several lines" in failure for failure in of_actions("SIS-v0, SameStep", 10))


def test_a_trace_of_a_refused_action_is_reported(monkeypatch):
    read = ReasoningVectorEnv._read

    def traced(self, i, action):
        if not isinstance(action, str):
            self.generators[i].integers(9)  # draws from what the next episode draws from
        return read(self, i, action)

    monkeypatch.setattr(ReasoningVectorEnv, "_read", traced)
    assert any("left a trace" in failure for failure in of_actions("SIS-v0, SameStep", 60))


def test_a_legal_action_that_is_refused_or_misread_is_reported(monkeypatch):
    monkeypatch.setattr(mask_action, "unletterbox", lambda values, shape: np.full(shape[:2], np.nan, np.float32))
    assert of_actions("UserNeed-v0", 20)
    monkeypatch.undo()
    monkeypatch.setattr(ReasoningVectorEnv, "_read", lambda self, i, action: action.replace("<answer>", ""))
    assert any("expressions ()" in failure for failure in of_actions("SIS-v0", 60))


def test_harm_that_a_reader_swallows_is_reported(monkeypatch):
    monkeypatch.setattr(
        folder, "read_pair", lambda image, mask: (np.zeros((12, 16, 3), np.uint8), np.eye(12, 16) * 255)
    )
    found = of_files("duts", 30)
    assert any("it is not told" in failure for failure in found)


def always(
    monkeypatch: pytest.MonkeyPatch, path: str, harmful: bool, change: Callable[[trees.Node], bytes], *names: str
) -> None:
    """Let every mutation be one change of the content of one file."""

    def mutate(random, layout, tree, wanted):
        return mutations.Mutation({**tree, path: change(tree[path])}, harmful, names, "as planned")

    monkeypatch.setattr(files, "mutate", mutate)
    monkeypatch.setattr(files, "HARMFUL_SHARE", float(harmful))


def test_a_reader_that_is_wrong_about_harmless_files_is_reported(monkeypatch):
    always(monkeypatch, "train.txt", False, lambda content: b"\xef\xbb\xbf" + content)
    assert of_files("folder", 1) == []
    monkeypatch.setattr(listing, "read_lines", lambda path: path.read_text().splitlines())
    assert "as planned: a harmless mutation changed values" in of_files("folder", 1)[0]


def test_a_value_that_changes_is_reported(monkeypatch):
    always(monkeypatch, "images/pica0q.jpg", False, lambda content: trees.photo(99))
    assert "a harmless mutation changed values" in of_files("folder", 1)[0]
    always(monkeypatch, "images/pica0q.jpg", True, lambda content: trees.photo(99), "pica0q")
    assert "it is not told" in of_files("folder", 1)[0]
    always(monkeypatch, "images/pica0q.jpg", True, lambda content: b"", "another name")
    assert "it is refused by another name" in of_files("folder", 1)[0]


def test_exceptions_of_readers_are_reported(monkeypatch):
    always(monkeypatch, "annotations.json", True, lambda content: content[:-1], "annotations.json")
    assert of_files("coco", 1) == []
    monkeypatch.setattr(coco, "read_json", lambda source: json.loads(source.read_bytes()))
    assert "JSONDecodeError at " in of_files("coco", 1)[0]
    monkeypatch.setattr(coco, "read_json", lambda source: {})
    with pytest.raises(AssertionError, match="coco: the unchanged set is refused"):
        of_files("coco", 1)


def test_time_and_memory_are_bounded(monkeypatch):
    monkeypatch.setattr(verdicts, "PATIENCE_S", 0.2)
    with verdicts.strict():
        assert verdicts.guarded(partial(_sleep, 30)) == "did not end within 0.2 s"
        assert verdicts.guarded(lambda: "") == ""
        monkeypatch.setattr(verdicts, "MEMORY_KIB", -1)
        assert verdicts.guarded(lambda: "").endswith("MiB")


def _sleep(seconds: float) -> str:
    try:
        time.sleep(seconds)
    except Exception:
        return "swallowed"
    return ""


def test_the_table_and_the_exit_status(monkeypatch, capsys):
    assert fuzz.main(["--actions", "40", "--files", "0", "UserNeed-v0: legal"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(fuzz.HEADER) and "| UserNeed-v0: illegal |" in out and "| total |" in out
    monkeypatch.setattr(ClickSettings, "read", lambda self, action: 1 / 0)
    assert fuzz.main(["--actions", "40", "--files", "0", "PointPrompt-v0: legal"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_trees_are_written_and_read(tmp_path):
    tree: trees.Tree = {"a/b.txt": b"x", "c": b"", "d/e": trees.Folder(), "f": trees.Link("c"), "g": trees.Pipe()}
    trees.write(tree, tmp_path / "root", tmp_path / "outside")
    assert trees.read(tmp_path / "root") == {"a/b.txt": b"x", "c": b"", "f": b""}
    assert (tmp_path / "root" / "d" / "e").is_dir() and (tmp_path / "root" / "g").is_fifo()
