"""Prompts and targets of every template, their switches, and the exemplars of few-shot-CoT."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from kdlab.data.answers import Form, judge, parse
from kdlab.data.prompts import (
    TEMPLATES,
    TRAINABLE,
    TRIGGER,
    Style,
    answer_prefix,
    fit_exemplars,
    is_exemplar,
    prompt,
    read_exemplars,
    target,
)
from kdlab.errors import DataError

QUESTION, ANSWER, RATIONALE = "  How many? ", " 7 ", "\n\nA {b} and c.\nSo 7. "


def words(text: str) -> int:
    return len(text.split())


# prompts and targets


@pytest.mark.parametrize(
    ("template", "decoder", "encoder_decoder"),
    [
        ("zs", "Q: How many?\n\nA:", "question: How many?"),
        ("fs_cot", "Q: One?\nA: 1.\nQ: How many?\nA:", "Q: One?\nA: 1.\nQ: How many?\nA:"),
        ("ft_token", "How many? ###", "How many?"),
        ("ft_cot_token", "How many? ###", "How many?"),
        (
            "ft_cot_natural",
            "Q: How many?\n\nA: Let's think step by step.\n\n",
            "Q: How many?\n\nA: Let's think step by step.\n\n",
        ),
    ],
)
def test_prompts(template: str, decoder: str, encoder_decoder: str) -> None:
    for model_type, expected in (("decoder", decoder), ("encoder_decoder", encoder_decoder)):
        style = Style(template=template, model_type=model_type)
        assert prompt(QUESTION, style, exemplars=["Q: One?\nA: 1."]) == expected


@pytest.mark.parametrize("model_type", ["decoder", "encoder_decoder"])
def test_zero_shot_cot_in_two_steps(model_type: str) -> None:
    style = Style(template="zs_cot", model_type=model_type)
    first = prompt(QUESTION, style, step=1)
    assert first == "Q: How many?\nA: Let's think step by step."
    second = f"{first}A {{b}} and c.\nSo 7.\nTherefore, the answer is"
    assert prompt(QUESTION, style, step=2, rationale=RATIONALE) == second
    asked = prompt(QUESTION, style, step=2, rationale="r", reasoning_prompt=" Other. ", trigger="So it is")
    assert asked == "Other.r\nSo it is"
    assert prompt(QUESTION, style, step=2, rationale="", reasoning_prompt="") == f"\n{TRIGGER}"
    for wrong in ({}, {"step": 3, "rationale": "r"}, {"step": 2}):
        with pytest.raises(AssertionError, match="step"):
            prompt(QUESTION, style, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("ft_token", "7"),
        ("ft_cot_token", "A {b} and c.\nSo 7. --> 7"),
        ("ft_cot_natural", "A {b} and c.\nSo 7.\n\nTherefore the answer is 7"),
    ],
)
def test_targets(template: str, expected: str) -> None:
    for model_type, blank in (("decoder", " "), ("encoder_decoder", "")):
        for stop, end in ((None, ""), ("END", " END")):
            style = Style(template=template, model_type=model_type, stop=stop)
            assert target(ANSWER, RATIONALE, style) == blank + expected + end


def test_a_target_of_answers_only_needs_no_rationale() -> None:
    assert target("7", None, Style(template="ft_token")) == " 7"
    with pytest.raises(AssertionError, match="rationale"):
        target("7", None, Style(template="ft_cot_token"))


@pytest.mark.parametrize("template", sorted({*TEMPLATES} - {*TRAINABLE}))
def test_nothing_is_trained_on_prompts_alone(template: str) -> None:
    with pytest.raises(DataError, match=template) as caught:
        target("7", "r", Style(template=template))
    assert "ft_cot_token" in str(caught.value)


def test_unstripped_fields() -> None:
    style = Style(template="zs_cot", strip_fields=False)
    assert prompt(" q ", style, step=1) == "Q:  q \nA: Let's think step by step."
    # the blank between the sentences, which the released code swallows, is back
    asked = prompt("q", style, step=2, rationale=" r ", reasoning_prompt=" p. ")
    assert asked == " p.  r \nTherefore, the answer is"
    style = Style(template="ft_cot_token", strip_fields=False)
    assert (prompt(" q ", style), target(" 7\n", "\nr ", style)) == (" q  ###", " \nr  -->  7\n")


@pytest.mark.parametrize(
    ("template", "asked", "wanted"),
    [
        ("ft_token", "q\n\n###\n\n", " 7"),
        ("ft_cot_token", "q\n\n###\n\n", " r\n\n-->\n\n7"),
        ("ft_cot_natural", "Q: q\n\nA: Let's think step by step.\n\n", " r\n\nTherefore the answer is\n\n7"),
    ],
)
def test_delimiters_of_the_paper(template: str, asked: str, wanted: str) -> None:
    style = Style(template=template, delimiters="paper_gpt3")
    assert (prompt("q", style), target("7", "r", style)) == (asked, wanted)
    assert answer_prefix(style) == answer_prefix(Style(template=template))
    release = Style(template=template, model_type="encoder_decoder")
    moved = Style(template=template, model_type="encoder_decoder", delimiters="paper_gpt3")
    assert (prompt("q", moved), target("7", "r", moved)) == (prompt("q", release), target("7", "r", release))


@pytest.mark.parametrize("parser", ["official", "strict"])
@pytest.mark.parametrize("model_type", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("delimiters", ["release", "paper_gpt3"])
@pytest.mark.parametrize("template", TRAINABLE)
def test_what_is_trained_is_what_is_read(template: str, delimiters: str, model_type: str, parser: str) -> None:
    style = Style(template=template, model_type=model_type, delimiters=delimiters)
    rationale = "First 2, then 5 more: no B, yes."
    for answer, form in (
        ("7", Form(kind="number")),
        ("C", Form(kind="choice", choices="ABC")),
        ("no", Form(kind="yes_no")),
        ("xy", Form(kind="text")),
    ):
        text = target(answer, rationale, style)
        judged = judge(text, answer, template=template, form=form, parser=parser)
        assert judged.correct and judged.correct_format, (text, judged)


def test_prefixes() -> None:
    found = {template: answer_prefix(Style(template=template)) for template in TEMPLATES}
    assert found == {
        "zs": None,
        "zs_cot": None,
        "fs_cot": "The answer is",
        "ft_token": None,
        "ft_cot_token": "-->",
        "ft_cot_natural": "Therefore the answer is",
    }
    style = Style(template="ft_cot_natural", natural_comma=True)
    assert answer_prefix(style) == "Therefore, the answer is"
    assert target("7", "r", style) == target("7", "r", Style(template="ft_cot_natural"))  # training knows no comma


# exemplars


def test_exemplars_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    text = 'Q: One "Q: two"?\nA: 1.\nQuite so. The answer is 1.\nQ: Three?\nA: The answer is 3.'
    file.write_text(json.dumps({"mine": {"prompt": text, "sample_indices": [1]}}), encoding="utf-8")
    exemplars = read_exemplars(file, "mine")
    assert exemplars == ['Q: One "Q: two"?\nA: 1.\nQuite so. The answer is 1.', "Q: Three?\nA: The answer is 3."]
    assert prompt("Four?", Style(template="fs_cot"), exemplars=exemplars) == f"{text}\nQ: Four?\nA:"
    assert read_exemplars(str(file), "mine") == exemplars


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"other": {"prompt": "Q: a\\nA: b"}}', "no exemplars for 'mine'. There are: other."),
        ("{}", "There are: nothing."),
        ('{"mine": "Q: a"}', "no text `prompt`"),
        ('{"mine": {"prompt": 5}}', "no text `prompt`"),
        ('{"mine": {"prompt": ""}}', "Exemplar 1 is no question"),
        ('{"mine": {"prompt": "Q: a\\nA: b\\nQ: c"}}', "Exemplar 2 is no question"),
        ('{"mine": {"prompt": "Solve.\\nQ: a\\nA: b"}}', "Exemplar 1 is no question"),
        (b"\xff", "is no JSON"),
    ],
)
def test_files_that_hold_no_exemplars(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "prompts.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_exemplars(file, "mine")
    assert message in caught.value.what and str(file) in str(caught.value)
    assert "few_shot_cot_prompts.json" in str(caught.value) or "Q: ..." in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_exemplars(tmp_path / "none.json", "mine")


def test_tasks_without_exemplars_of_our_own() -> None:
    with pytest.raises(DataError, match="There are: arithmetic, coin_flip, last_letter, shuffled_objects") as caught:
        read_exemplars(None, "gsm8k")
    assert "method.prompt.exemplars" in str(caught.value)


EXEMPLARS = ["Q: a a a a\nA: b.", "Q: c c\nA: d.", "Q: e\nA: f."]  # 7, 5 and 4 words; the question's own are 3
STYLE = Style(template="fs_cot")


@pytest.mark.parametrize(
    ("limit", "left"), [(100, 3), (19, 3), (18, 2), (12, 2), (11, 1), (7, 1), (6, 0), (3, 0), (2, 0), (0, 0)]
)
def test_exemplars_are_dropped_from_the_front_and_the_question_stays(limit: int, left: int) -> None:
    text = fit_exemplars(EXEMPLARS, "why", STYLE, length=words, limit=limit)
    assert text == prompt("why", STYLE, exemplars=EXEMPLARS[len(EXEMPLARS) - left :])
    assert text.endswith("Q: why\nA:")


def test_a_question_without_exemplars() -> None:
    assert fit_exemplars([], " why ", STYLE, length=words, limit=1) == "Q: why\nA:"


@pytest.mark.parametrize("limit", [1, 5, 16, 18, 19, 20])
def test_cut_at_the_right_as_the_official_code_does(limit: int) -> None:
    whole = prompt("why", STYLE, exemplars=EXEMPLARS)
    text = fit_exemplars(EXEMPLARS, "why", STYLE, length=words, limit=limit, how="right")
    assert whole.startswith(text) and text.split() == whole.split()[:limit]
    assert ("why" in text) == (limit >= 18)
    # each character a token: exactly as many as fit
    assert fit_exemplars(EXEMPLARS, "why", STYLE, length=len, limit=limit, how="right") == whole[:limit]


# our own exemplars: each answer is worked out again from its question


def solve_coin(question: str) -> str:
    flips = len(re.findall(r"\w+ flips the coin", question))
    return "no" if flips % 2 else "yes"


def solve_letters(question: str) -> str:
    match = re.search(r'"(.*)"', question)
    assert match is not None
    return "".join(word[-1] for word in match[1].split())


def solve_objects(question: str) -> str:
    held = dict(re.findall(r"(\w+) has the (\w+ \w+)(?:,| and|\.)", question.partition("First")[0]))
    for one, other in re.findall(r"(\w+) and (\w+) swap", question):
        held[one], held[other] = held[other], held[one]
    asked = re.search(r"At the end, (\w+) has the\n", question)
    assert asked is not None and len(held) == 3
    (letter,) = re.findall(rf"\((\w)\) {held[asked[1]]}", question)
    return str(letter)


def solve_steps(question: str) -> str:
    """A number behind a word of its kind, sentence by sentence."""
    start, *steps, _ = re.split(r"(?<=[.])\s", question)
    value = int(re.findall(r"\d+", start)[0])
    kinds = {
        r"times|small ones|multiplies": lambda a, b: a * b,
        r"one of every|groups|share": lambda a, b: a // b if a % b == 0 else pytest.fail("no whole number"),
        r"gives away|loses|eat|sold\.$|leave|costs": lambda a, b: a - b,
        r"more": lambda a, b: a + b,
    }
    for step in steps:
        (number,) = re.findall(r"\d+", step)
        operation = next(work for kind, work in kinds.items() if re.search(kind, step, re.IGNORECASE))
        value = operation(value, int(number))
    return str(value)


OWN = {
    "coin_flip": (solve_coin, Form(kind="yes_no")),
    "last_letter": (solve_letters, Form(kind="text")),
    "shuffled_objects": (solve_objects, Form(kind="choice", choices="ABC")),
    "arithmetic": (solve_steps, Form(kind="number")),
}


@pytest.mark.parametrize("key", OWN)
def test_our_exemplars_are_right(key: str) -> None:
    solve, form = OWN[key]
    exemplars = read_exemplars(None, key)
    assert 4 <= len(exemplars) <= 8 and len(set(exemplars)) == len(exemplars)
    answers = []
    for exemplar in exemplars:
        question, _, completion = exemplar.removeprefix("Q: ").partition("\nA:")
        answer = solve(question)
        assert exemplar.endswith(f" The answer is {answer}.")
        parsed = parse(completion, template="fs_cot", form=form, parser="strict")
        assert (parsed.prediction, parsed.candidates) == (answer, (answer,))
        assert judge(completion, answer, template="fs_cot", form=form).correct
        for left, sign, right, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", completion):
            worked = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
            assert worked.get(sign, int(left) / int(right)) == int(result)
        answers.append(answer)
    assert max(Counter(answers).values()) <= len(answers) / 2  # none invites a constant answer


@pytest.mark.parametrize("key", OWN)
def test_our_exemplars_ask_as_the_embedded_tasks_do_and_are_none_of_their_questions(key: str) -> None:
    generate = {"train": 300, "test": 50, "steps": 4, "objects": 3, "seed": 0}
    rows = importlib.import_module(f"kdlab.data.demo.{key}").questions("train", generate)
    made = {word for row in rows for word in re.findall(r"\w+", row["question"])}
    asked = [exemplar.removeprefix("Q: ").partition("\nA:")[0] for exemplar in read_exemplars(None, key)]
    assert not {*asked} & {row["question"] for row in rows}
    always = set.intersection(*({*re.findall(r"\b[a-z]+\b", row["question"])} for row in rows))  # names left out
    for question in asked:
        used = re.findall(r"\w+", question)
        own = [word for word in used if word not in made]
        assert own, "a name or a thing that the task has not, so that it can't be one of its questions"
        assert always <= {*used}
        assert key not in ("shuffled_objects", "arithmetic") or min(Counter(own).values()) > 1  # no words of its own
    if key == "coin_flip":
        ends = {row["question"].partition("Is the coin")[2] for row in rows}
        assert {question.partition("Is the coin")[2] for question in asked} == ends
    if key == "last_letter":
        frames = {re.sub('".*"', "", row["question"]) for row in rows}
        assert {re.sub('".*"', "", question) for question in asked} == frames


def test_a_question_that_is_an_exemplar_is_recognised_however_it_is_written() -> None:
    exemplars = [
        "Q: Yes or no: Would a pear sink?\nA: It floats. The answer is no.",
        "Q: Which date? Which choice is true? Answer choices: (A) 1, (B) 2.\nA: The answer is A.",
    ]
    assert is_exemplar("Would a pear sink?", exemplars)
    assert is_exemplar("Which date?\nWhich choice is true? Answer Choices: (A) 2 (B) 1", exemplars)
    assert not is_exemplar("Would an apple sink?", exemplars)
    assert not is_exemplar("Would a pear sink?", [])
