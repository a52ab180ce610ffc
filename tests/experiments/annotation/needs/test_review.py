from __future__ import annotations

import json
import resource

import pytest

from maskgym.errors import UserError
from maskgym.experiments.annotation.needs import review
from maskgym.experiments.annotation.needs.project import Project


def decided(project, count, by="ann"):
    decisions = review.Decisions(project, writing=True)
    for number in range(count):
        decisions.decide(f"object{number % 3}", by, "accepted", [f"find number {number}"])
    return decisions


def test_candidates_hold_what_every_stage_made(project, source):
    listed = review.candidates(project, source)
    assert [one.item.key for one in listed] == sorted(one.item.key for one in listed)
    one = listed[0]
    assert one.segmentation["size"] == [128, 128] and len(one.needs) == 3 and one.reason is None
    assert set(one.provenance) == {"box", "category", "segmentation", "needs"}
    with pytest.raises(UserError, match="nothing is detected yet"):
        review.candidates(Project(project.folder.parent / "new", {"dataset": "scenes"}), source)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_decisions_are_there_after_reopening(project, count, monkeypatch):
    monkeypatch.setattr(review, "SNAPSHOT_EVERY", 3)
    made = decided(project, count).made
    assert len(made) == min(count, 3)
    assert review.Decisions(project).made == made
    (project.folder / review.SNAPSHOT).unlink(missing_ok=True)  # the journal alone says it all
    assert review.Decisions(project).made == made


def test_a_line_cut_off_anywhere_costs_that_line_alone(project):
    made = dict(decided(project, 2).made)
    journal = project.folder / review.JOURNAL
    whole = journal.read_bytes()
    last = whole[: whole.rfind(b"\n", 0, -1) + 1]
    for cut in range(len(last) + 1, len(whole)):
        journal.write_bytes(whole[:cut])
        assert set(review.Decisions(project).made) == {"object0"}
    again = review.Decisions(project, writing=True)
    assert journal.read_bytes() == last
    again.decide("object1", "ann", "accepted", ["find number 1"])
    assert {name: one["needs"] for name, one in review.Decisions(project).made.items()} == {
        name: one["needs"] for name, one in made.items()
    }


def test_a_snapshot_newer_than_the_journal_does_not_count(project):
    decided(project, 4).save()
    journal = project.folder / review.JOURNAL
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))  # of an older copy
    assert set(review.Decisions(project).made) == {"object0", "object1"}


@pytest.mark.parametrize(
    "line",
    [
        *("gibberish", "5", "[]", "null", "{}", '{"object": 5}', '{"object": "a", "status": "accepted"}', "[" * 9999),
        '{"object": "a", "status": "maybe", "needs": [], "provenance": {}}',
        '{"object": ["a"], "status": "accepted", "needs": [], "provenance": {}}',
        '{"object": "a", "status": "accepted", "needs": "x", "provenance": {}}',
        '{"object": "a", "status": "accepted", "needs": [], "provenance": {}, "segmentation": [1]}',
        '{"object": "a", "status": "accepted", "needs": [], "provenance": {},'
        ' "segmentation": {"size": [2, 2], "counts": "9"}}',
    ],
)
def test_what_is_no_decision_is_named(project, line):
    decided(project, 1)
    with (project.folder / review.JOURNAL).open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(UserError, match="line 2 after byte 0: no decision"):
        review.Decisions(project)


def test_what_a_person_left_keeps_who_made_it(project, source):
    one = review.candidates(project, source)[0]
    decisions = review.Decisions(project, writing=True)
    decisions.decide(one.id, "ann", "accepted", one.needs)
    now = review.outcome(one, decisions.made[one.id])
    assert now["provenance"]["needs"]["by"] == "templates" and now["provenance"]["status"]["by"] == "ann"
    code = {"size": [1, 1], "counts": "01"}
    decisions.decide(
        one.id, "bob", "accepted", ["find it"], {"segmentation": code, "points": [[1, 2]], "labels": [1], "boxed": True}
    )
    now = review.outcome(one, decisions.made[one.id])
    assert (now["needs"], now["segmentation"]) == (["find it"], code)
    assert now["provenance"]["needs"]["by"] == "bob" and now["provenance"]["needs"]["from"]["by"] == "templates"
    assert now["provenance"]["segmentation"]["by"] == "bob" and now["provenance"]["segmentation"]["points"] == [[1, 2]]
    untouched = review.outcome(one, None)
    assert untouched["status"] == "undecided" and untouched["needs"] == list(one.needs)


def test_progress_counts_objects_that_are_there(project, source):
    listed = review.candidates(project, source)
    decisions = review.Decisions(project, writing=True)
    decisions.decide(listed[0].id, "ann", "accepted", ["find it"])
    decisions.decide(listed[1].id, "ann", "rejected", [])
    decisions.decide("of another detector", "ann", "accepted", ["find it"])
    count = len(listed)
    assert review.progress(listed, decisions) == {
        "objects": count,
        "accepted": 1,
        "rejected": 1,
        "undecided": count - 2,
    }
    assert json.loads((project.folder / review.JOURNAL).read_text().splitlines()[0])["provenance"]["at"]


def test_a_full_disk_is_told_and_loses_no_decision(project, monkeypatch):
    decisions = decided(project, 1)
    journal, limits = project.folder / review.JOURNAL, resource.getrlimit(resource.RLIMIT_FSIZE)
    before = journal.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))  # half of the next line fits
    try:
        with pytest.raises(UserError, match=r"corrections\.jsonl: not saved: File too large"):
            decisions.decide("object1", "ann", "accepted", ["find it"])
        with pytest.raises(UserError, match=r"corrections\.json: cannot be written: .*are in corrections\.jsonl"):
            decisions.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.read_bytes() == before and set(decisions.made) == {"object0"}
    decisions.decide("object2", "ann", "rejected", [])
    assert review.Decisions(project).made == decisions.made and set(decisions.made) == {"object0", "object2"}
    # A decision counts once it is in the journal, whether or not the snapshot can be written.
    monkeypatch.setattr(review, "SNAPSHOT_EVERY", 1)
    (project.folder / f"{review.SNAPSHOT}.tmp").mkdir()  # in the way of the snapshot
    decisions.decide("object1", "ann", "accepted", ["find it"])
    assert set(review.Decisions(project).made) == {"object0", "object1", "object2"}


@pytest.mark.parametrize(
    "content",
    ["5", "[]", "{}", '{"bytes": "x", "decisions": {}}', '{"bytes": 0, "decisions": {"a": 5}}', '{"bytes": 0}'],
)
def test_a_damaged_snapshot_is_named(project, content):
    decided(project, 2)
    (project.folder / review.SNAPSHOT).write_text(content)
    with pytest.raises(UserError, match=r"corrections\.json: is no snapshot .*: remove it: every decision is in"):
        review.Decisions(project)
    (project.folder / review.SNAPSHOT).unlink()
    assert len(review.Decisions(project).made) == 2
