"""The parser against tables of texts, and under fuzzing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskgym.errors import UserError
from maskgym.rewards.answers import TAGS, Answer, format_answer, parse, without_reasoning


def in_blocks(content: str) -> str:
    return f"<think>one, two</think><answer>{content}</answer>"


GOOD = [
    ("sod", in_blocks("<rg>an orange kitten</rg>"), ["an orange kitten"]),
    ("sod", in_blocks("<rg>a kitten</rg><rg>a stuffed animal</rg>"), ["a kitten", "a stuffed animal"]),
    ("sod", in_blocks("<rg>[semantic] person</rg>"), ["[semantic] person"]),
    ("sod", in_blocks("<rg>[semantic] person</rg><rg>a dog</rg>"), ["[semantic] person", "a dog"]),
    ("sod", in_blocks("<rg>a dog</rg><rg>a dog</rg>"), ["a dog", "a dog"]),
    ("sod", in_blocks("<rg>semantic dog</rg>"), ["semantic dog"]),
    ("sis", in_blocks("<ins>a red cup on the left</ins>"), ["a red cup on the left"]),
    ("sis", in_blocks("<ins>a</ins><ins>b</ins><ins>c</ins>"), ["a", "b", "c"]),
    ("cosod", in_blocks("<rg>[semantic] rubber duck</rg>"), ["[semantic] rubber duck"]),
    # Whitespace between tags, after the marker and around a description is free.
    ("sis", in_blocks("\n <ins>a</ins>\n\t<ins>b</ins> \n"), ["a", "b"]),
    ("sis", in_blocks("<ins> a  red\ncup\u00a0here </ins>"), ["a red cup here"]),
    ("cosod", in_blocks("<rg>[semantic]duck</rg>"), ["[semantic] duck"]),
    ("cosod", in_blocks("<rg>[semantic]  \n duck</rg>"), ["[semantic] duck"]),
    ("cosod", in_blocks(" <rg> [semantic] duck </rg> "), ["[semantic] duck"]),
    # Text outside the two blocks costs nothing, the tags of expressions included.
    ("sis", "Well. <think>a</think> so\n<answer><ins>a</ins></answer> Bye <ins>b</ins><|im_end|>", ["a"]),
    # The reasoning may say anything, or nothing.
    ("sis", "<think></think><answer><ins>a</ins></answer>", ["a"]),
    ("sis", "<think>3 < 4, <rg>x</ins> [semantic \x00 \ud800</think><answer><ins>a</ins></answer>", ["a"]),
    # Only the exact characters are a tag.
    ("sis", "<think><Answer></think ></think><answer><ins>a</ins></answer>", ["a"]),
    ("sis", in_blocks("<ins>un café à l'ombre, 猫</ins>"), ["un café à l'ombre, 猫"]),
]


@pytest.mark.parametrize(("task", "text", "expressions"), GOOD)
def test_well_formed_answers(task: str, text: str, expressions: list[str]) -> None:
    answer = parse(text, task)
    assert (answer.structured, answer.tagged) == (True, True)
    assert answer.expressions == tuple(expressions)
    assert answer.text == text


BAD_TAGS = [
    ("sod", ""),
    ("sod", "a dog"),
    ("sod", "<ins>a dog</ins>"),
    ("sod", "<rg>a dog</rg><ins>a cat</ins>"),
    ("sod", "<rg>a dog</rg>, <rg>a cat</rg>"),
    ("sod", "The regions: <rg>a dog</rg>"),
    ("sod", "<rg>a dog</rg>."),
    ("sod", "<rg></rg>"),
    ("sod", "<rg> \n </rg>"),
    ("sod", "<rg>a dog</rg><rg></rg>"),
    ("sod", "<rg>a dog"),
    ("sod", "<rg>a dog</rg><rg>a cat"),
    ("sod", "<rg>a dog</rg"),
    ("sod", "<rg>a dog<rg>"),
    ("sod", "<rg>a dog</rg></rg>"),
    ("sod", "<rg>a dog<rg>a cat</rg></rg>"),
    ("sod", "<rg><rg>a dog</rg>"),
    ("sod", "</rg>a dog<rg>"),
    ("sod", "a dog</rg>"),
    ("sod", "rg>a dog</rg>"),
    ("sod", "<rg a dog</rg>"),
    ("sod", "<<rg>a dog</rg>"),
    ("sod", "<rg>>a dog</rg>"),
    ("sod", "<rg>a dog</rg>>"),
    ("sod", "<rg>a dog</ins>"),
    ("sod", "<RG>a dog</RG>"),
    ("sod", "<rg >a dog</rg>"),
    ("sod", "<rg/>"),
    ("sod", "<rg>[semantic]</rg>"),
    ("sod", "<rg>[semantic] </rg>"),
    ("sod", "<rg>[semantic dog</rg>"),
    ("sod", "<rg>semantic] dog</rg>"),
    ("sod", "<rg>[Semantic] dog</rg>"),
    ("sod", "<rg>[ semantic ] dog</rg>"),
    ("sod", "<rg>[[semantic]] dog</rg>"),
    ("sod", "<rg>[semantic] [semantic] dog</rg>"),
    ("sod", "<rg>a [semantic] dog</rg>"),
    ("sod", "<rg>dog [semantic]</rg>"),
    ("sod", "<rg>[instance] dog</rg>"),
    ("sod", "[semantic]<rg>dog</rg>"),
    ("sod", "<rg>a\x00dog</rg>"),
    ("sod", "<rg>a \ud800 dog</rg>"),
    ("sis", "<rg>a dog</rg>"),
    ("sis", "<ins>[semantic] dog</ins>"),
    ("sis", "<ins>a dog</ins><rg>a cat</rg>"),
    ("sis", "<ins>a dog</ins> and <ins>a cat</ins>"),
    ("sis", "<ins>a dog</ins><ins>a <b>black</b> cat</ins>"),
    ("sis", "1. <ins>a dog</ins>"),
    ("sis", "<ins>a dog</ins\n>"),
    ("cosod", "<rg>duck</rg>"),
    ("cosod", "<rg>a duck [semantic]</rg>"),
    ("cosod", "<rg>[semantic] duck</rg><rg>[semantic] duck</rg>"),
    ("cosod", "<rg>[semantic]</rg>"),
    ("cosod", "[semantic] duck"),
    ("cosod", "<rg>[semantic]] duck</rg>"),
    ("cosod", "<ins>[semantic] duck</ins>"),
]


@pytest.mark.parametrize(("task", "content"), BAD_TAGS)
def test_a_malformed_content_loses_the_tag_half_and_has_no_expressions(task: str, content: str) -> None:
    answer = parse(in_blocks(content), task)
    assert (answer.structured, answer.tagged, answer.expressions) == (True, False, ())
    assert answer.think == "one, two"


INS = "<ins>a</ins>"
BAD_BLOCKS = [  # text, whether the answer block can still be read, the reasoning that can be
    ("", False, None),
    ("<", False, None),
    (INS, False, None),
    (f"<answer>{INS}</answer>", True, None),
    ("<think>x</think>", False, "x"),
    (f"<think>x</think>{INS}", False, "x"),
    (f"<think>x<answer>{INS}</answer>", True, None),
    (f"x</think><answer>{INS}</answer>", True, None),
    (f"<think>x</think><answer>{INS}", False, "x"),
    (f"<think>x</think><answer>{INS}</answer", False, "x"),
    (f"<think>x</think>{INS}</answer>", False, "x"),
    (f"<think>x</think></answer>{INS}<answer>", False, "x"),
    (f"</think>x<think><answer>{INS}</answer>", True, None),
    (f"<answer>{INS}</answer><think>x</think>", True, "x"),
    (f"<think>x<answer>{INS}</answer></think>", True, f"x<answer>{INS}</answer>"),
    (f"<answer>{INS}<think>x</think></answer>", False, "x"),
    (f"<think>x<answer>{INS}</think></answer>", False, f"x<answer>{INS}"),
    (f"<think>x</think><think>y</think><answer>{INS}</answer>", True, None),
    (f"<think>x<think>y</think></think><answer>{INS}</answer>", True, None),
    (f"<think>x</think></think><answer>{INS}</answer>", True, None),
    (f"<think>x</think><answer>{INS}</answer></think>", True, None),
    (f"<think>x</think><answer>{INS}</answer><answer>{INS}</answer>", False, "x"),
    (f"<think>x</think><answer><answer>{INS}</answer></answer>", False, "x"),
    (f"<think>x</think><answer>{INS}</answer></answer>", False, "x"),
    (f"<think>the <answer> is</think><answer>{INS}</answer>", False, "the <answer> is"),
    (f"<Think>x</Think><answer>{INS}</answer>", True, None),
    (f"<think >x</think><answer>{INS}</answer>", True, None),
    (f"<think>x</think><Answer>{INS}</Answer>", False, "x"),
    (f"think>x</think><answer>{INS}</answer>", True, None),
    (f"<think>x</thinking><answer>{INS}</answer>", True, None),
]


@pytest.mark.parametrize(("text", "tagged", "think"), BAD_BLOCKS)
def test_malformed_blocks_lose_the_structure_half(text: str, tagged: bool, think: str | None) -> None:
    assert parse(text, "sis") == Answer(text, think, ("a",) if tagged else (), structured=False, tagged=tagged)


@pytest.mark.parametrize(("text", "tagged", "think"), BAD_BLOCKS)
def test_without_reasoning_one_answer_block_is_structure_enough(text: str, tagged: bool, think: str | None) -> None:
    answer = parse(text, "sis", reasoning=False)
    alone = text.count("<answer>") == text.count("</answer>") == 1 and text.index("<answer>") < text.index("</answer>")
    assert answer == Answer(text, think, ("a",) if tagged else (), structured=alone, tagged=tagged)


@pytest.mark.parametrize(("task", "text", "expressions"), GOOD)
def test_the_answer_alone_says_the_same(task: str, text: str, expressions: list[str]) -> None:
    direct = without_reasoning(text)
    assert direct.startswith("<answer>") and direct.endswith("</answer>") and direct in text
    for written in (direct, text):
        answer = parse(written, task, reasoning=False)
        assert (answer.structured, answer.tagged, answer.expressions) == (True, True, tuple(expressions))


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UserError, match="unknown task 'ins'"):
        parse("", "ins")


def test_a_long_hostile_text_is_parsed() -> None:
    assert not parse("<" * 10_000_000, "sis").tagged


tags = [f"<{slash}{tag}>" for tag in ("think", "answer", "rg", "ins") for slash in ("", "/")]
fragments = st.sampled_from(
    [*tags, "<", ">", "[semantic]", "[", "]", "a cat", " ", "\n", "\x00", "\ud800", "</", "<answer"]
)
texts = st.one_of(
    st.text(st.characters(), max_size=80),
    st.lists(fragments, max_size=20).map("".join),
    st.lists(fragments, max_size=8).map("".join).map(in_blocks),
)
tasks = st.sampled_from(sorted(TAGS))


@given(texts, tasks)
def test_any_text_gives_an_answer_that_writes_itself_again(text: str, task: str) -> None:
    answer = parse(text, task)
    assert answer.tagged == bool(answer.expressions)
    assert not answer.structured or answer.think is not None
    for expression in answer.expressions:
        expression.encode()  # a tokenizer takes it
        assert expression == " ".join(expression.split()) != ""
    if answer.structured and answer.tagged:
        again = parse(format_answer(answer.think, answer.expressions, task), task)
        assert (again.think, again.expressions) == (answer.think, answer.expressions)
        assert again.structured
        assert again.tagged


def test_an_answer_has_at_most_a_hundred_phrases() -> None:
    most, more = ("<answer>" + "<ins>a</ins>" * count + "</answer>" for count in (100, 101))
    assert len(parse(most, "sis").expressions) == 100
    assert parse(more, "sis").expressions == () and not parse(more, "sis").tagged


words = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="<>[]"), min_size=1, max_size=20)


@given(st.data(), tasks, st.text(st.characters(blacklist_characters="<"), max_size=30))
def test_what_is_written_is_read_back(data: st.DataObject, task: str, think: str) -> None:
    count = 1 if task == "cosod" else data.draw(st.integers(1, 5))
    marker = {"sod": ("", "[semantic] "), "sis": ("",), "cosod": ("[semantic] ",)}[task]
    expressions = tuple(
        data.draw(st.sampled_from(marker)) + " ".join(data.draw(words.filter(str.strip)).split()) for _ in range(count)
    )
    answer = parse(format_answer(think, expressions, task), task)
    assert answer.structured
    assert (answer.think, answer.expressions) == (think, expressions)


@pytest.mark.parametrize(
    ("think", "expressions", "task"),
    [
        ("a", [], "sod"),
        ("a", ["duck"], "cosod"),
        ("a", ["[semantic] duck"] * 2, "cosod"),
        ("a", ["[semantic] duck"], "sis"),
        ("a", [""], "sis"),
        ("a", ["a < b"], "sis"),
        ("a", ["a</ins><ins>b"], "sis"),
        ("a", ["a</ins></answer>"], "sis"),
        ("</think>", ["a"], "sis"),
        ("the <answer>", ["a"], "sis"),
        ("a", ["a"], "ins"),
    ],
)
def test_what_cannot_be_read_back_is_not_written(think: str, expressions: list[str], task: str) -> None:
    with pytest.raises(UserError):
        format_answer(think, expressions, task)
