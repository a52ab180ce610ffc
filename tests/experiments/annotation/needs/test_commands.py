from __future__ import annotations

import json
import time

import pytest

from maskgym.experiments.annotation.needs.commands import LONGEST, check, fault_of, read_answer


@pytest.mark.parametrize(
    "text",
    ["find the red car", "寻找红色汽车", "أين الكرسي", "लाल कार ढूंढो", "find <b>bold</b> text", "o'clock: where?"],
)
def test_language_of_any_script_passes(text):
    assert fault_of(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "0 characters"),
        ("  a ", "1 characters"),
        ("x" * (LONGEST + 1), "201 characters"),
        ("word " * 41, "characters|words"),
        ("a " * 60, "60 words"),
        (None, "NoneType in place of a text"),
        (["find it"], "list in place of a text"),
        ("12345 67890", "hardly any letters"),
        ("){};//<>!!", "hardly any letters"),
        ("find\x00the car", "cannot be seen"),
        ("find \u202eeht car", "cannot be seen"),
        ("find the \udcff car", "cannot be seen"),
    ],
)
def test_what_is_no_command(text, expected):
    import re

    assert re.search(expected, fault_of(text))


def test_duplicates_differ_in_more_than_case_and_space():
    good, faults = check(["Find  the car", "find the car ", "find the cars", 7, "cafe\u0301 table", "caf\u00e9 table"])
    assert good == ["Find the car", "find the cars", "caf\u00e9 table"]
    assert faults == ["command 2: a duplicate", "command 4: a int in place of a text", "command 6: a duplicate"]


LIST = json.dumps(["find one", "find two", "find three"])


@pytest.mark.parametrize(
    "answer",
    [LIST, f"```json\n{LIST}\n```", f"Here you are: {LIST} Enjoy.", f'{{"commands": {LIST}}}', f"[not this] {LIST}"],
)
def test_a_list_is_found_among_other_text(answer):
    assert read_answer(answer, 2) == (["find one", "find two"], None)


@pytest.mark.parametrize(
    ("answer", "kept", "expected"),
    [
        ("", 0, "no JSON list"),
        ("find one, find two", 0, "no JSON list"),
        ("[" * 100_000, 0, "no JSON list"),
        ("[1, 2, 3]", 0, "int in place of a text"),
        ('["find one", "FIND ONE"]', 1, "command 2: a duplicate; 1 of 2 commands"),
        ('["find one"]', 1, "1 of 2 commands"),
        ('{"a": "find one"}', 0, "no JSON list"),
    ],
)
def test_what_is_no_answer_says_why(answer, kept, expected):
    started = time.process_time()
    needs, fault = read_answer(answer, 2)
    assert len(needs) == kept and expected in fault and time.process_time() - started < 1
