"""Asking with patience, and once; servers and models on this machine are tested where they are used."""

from __future__ import annotations

import threading

import pytest

from maskgym.chat.asker import Asker, Reply, Unreachable, backoff, fingerprint

QUESTION = ["what is it?", b"a picture"]


class Planned:
    """Gives what is planned, one a question, then the number of the question."""

    settings = {"model": "m"}  # noqa: RUF012

    def __init__(self, *plan) -> None:
        self.plan, self.asked = list(plan), 0

    def ask(self, parts) -> Reply:
        self.asked += 1
        todo = self.plan.pop(0) if self.plan else str(self.asked)
        if isinstance(todo, Exception):
            raise todo
        return Reply(todo, "m-1", 10, 5)


def test_a_question_is_asked_once_and_with_another_number_again(tmp_path):
    chat = Planned("a \ud800 disc")
    first = Asker(chat, tmp_path / "kept").ask(QUESTION)
    assert first.at and Asker(chat, tmp_path / "kept").ask(QUESTION) == first and chat.asked == 1
    assert Asker(chat, tmp_path / "kept").ask(QUESTION, number=1).text == "2"
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_question_is_its_parts_and_who_is_asked():
    known = {
        fingerprint(settings, parts, number)
        for settings in ({"model": "m"}, {"model": "n"})
        for parts in (QUESTION, QUESTION[::-1], [*QUESTION, ""], ["what is it?", "a picture"], [b"a picture"])
        for number in (0, 1)
    }
    assert len(known) == 20 and fingerprint({"model": "m"}, QUESTION) in known


def test_so_many_tries_are_made_and_the_last_reason_told(tmp_path):
    lost = [Unreachable("gone", 0.0), Unreachable("late", 0.0)]
    assert Asker(Planned(*lost), tmp_path / "a", retries=2).ask(QUESTION).text == "3"
    with pytest.raises(Unreachable, match="late"):
        Asker(Planned(*lost), tmp_path / "b", retries=1).ask(QUESTION)


def test_stopping_ends_a_pause_and_asks_no_more(tmp_path):
    chat = Planned(*[Unreachable("gone", 60.0)] * 3)
    asker = Asker(chat, tmp_path)
    threading.Timer(0.2, asker.stopping.set).start()
    with pytest.raises(Unreachable, match="gone"):
        asker.ask(QUESTION)
    assert chat.asked == 1


def test_pauses_grow_and_a_server_may_name_its_own():
    for attempt, expected in enumerate((2, 4, 8)):
        assert 0.75 * expected <= backoff(2.0, attempt) <= 1.25 * expected
    assert backoff(2.0, 30) <= 75 and backoff(2.0, 0, 7.0) == 7 and backoff(2.0, 0, 1e9) == 60
