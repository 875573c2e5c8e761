"""Rationales by rules: read back from their own words, right ones hold at every step, wrong ones fail at one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import pytest

from kdlab.data.demo import arithmetic, coin_flip, last_letter, shuffled_objects
from kdlab.errors import DataError
from kdlab.rationales import rules

TASKS = {
    "coin_flip": coin_flip,
    "last_letter": last_letter,
    "shuffled_objects": shuffled_objects,
    "arithmetic": arithmetic,
}
KINDS = list(TASKS)


def rows_of(kind: str, count: int = 30, *, steps: int = 4, objects: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    generate = {"train": count, "test": 0, "steps": steps, "objects": objects, "seed": seed}
    return [{"id": number, **row} for number, row in enumerate(TASKS[kind].questions("train", generate))]


class Read(NamedTuple):
    """What a rationale says."""

    done: list[Any]  # what is done in each step
    failed: list[int]  # the steps whose result does not follow from the state before
    answer: str  # what the closing words give


def sentences(text: str) -> tuple[str, list[str], str]:
    """Opening, steps, closing."""
    opening, *steps, closing = re.split(r"(?<=\.)\s", re.sub(r"Step \d+: |\(\d+\) ", "", text))
    return opening, steps, closing


def read_coin(text: str) -> Read:
    opening, steps, closing = sentences(text)
    done, failed = [], []
    side = re.findall(r"heads|tails", opening.lower())[-1]
    assert side == "heads"
    for number, step in enumerate(steps):
        name = re.search(r"[A-Z]\w+", step.removeprefix("After "))
        assert name
        flips = "not" not in step
        done.append((name[0], flips))
        after = re.findall(r"heads|tails", step)[-1]
        if (after != side) != flips:
            failed.append(number)
        side = after
    yes = bool(re.search(r"still heads|ends heads|Heads at the end, so yes", closing))
    no = bool(re.search(r"no longer heads|ends tails|Tails at the end, so no", closing))
    assert yes != no and yes == (side == "heads")
    return Read(done, failed, "yes" if yes else "no")


def read_letters(text: str) -> Read:
    _, steps, closing = sentences(text)
    done, failed, joined = [], [], ""
    for number, step in enumerate(steps):
        taken = re.fullmatch(r"Take (\w) from the end of (\w+), which makes (\w+)\.", step)
        found = re.fullmatch(
            r'(?:The last letter of "(\w+)" is "(\w)", so far (\w+)'
            r"|(\w+) (?:is spelled (?:\w-)*\w and )?ends in (\w)(?:: |, so we have )(\w+))\.",
            step,
        )
        if taken:
            letter, word, after = taken.groups()
        else:
            assert found, step
            word, letter, after = (found.group(place) or found.group(place + 3) for place in (1, 2, 3))
        if "spelled" in step:
            assert "-".join(word) in step
        done.append(word)
        if letter != word[-1]:
            failed.append(number)
        joined += letter
        assert after == joined
    answer = re.search(r'(\w+)"?\.$', closing)
    assert answer and answer[1] == joined
    return Read(done, failed, joined)


def state_of(words: str) -> dict[str, str]:
    """Player: item, in the order in which they are said."""
    return dict(re.findall(r"([A-Z]\w+)(?: has |: | holds )([a-z]+)", words))


def read_objects(text: str) -> Read:
    opening, steps, closing = sentences(text)
    state = start = state_of(re.sub("^(At the start|First of all|In the beginning),? ", "", opening))
    assert len(set(start.values())) == len(start)
    done, failed = [], []
    for number, step in enumerate(steps):
        swap = re.match(
            r"(?:After )?(?P<one>\w+) (?:and (?P<other>\w+) swap (?P<mine>\w+) and (?P<yours>\w+)"
            r"|gives (?P<mine_>\w+) to (?P<other_>\w+) for (?P<yours_>\w+)"
            r"|trades (?P<mine__>\w+) for (?P<yours__>\w+) with (?P<other__>\w+))(?:: |, so |, )",
            step,
        )
        assert swap, step
        said = {name.rstrip("_"): word for name, word in swap.groupdict().items() if word}
        one, other = said["one"], said["other"]
        assert (said["mine"], said["yours"]) == (state[one], state[other])
        after = state_of(step[swap.end() :])
        assert list(after) == list(state) and sorted(after.values()) == sorted(state.values())
        if after != state | {one: state[other], other: state[one]}:
            failed.append(number)
        done.append((one, other))
        state = after
    who = re.search(r"([A-Z]\w+)(?: has|, who has| ends up with) (\w+) \((\w)\)\.$", closing)
    assert who and state[who[1]] == who[2]
    assert f" {who[2]} ({who[3]})" in opening
    return Read([start, who[1], *done], failed, who[3])


WORDS = {"plus": "+", "minus": "-", "times": "*", "divided by": "/", "Add": "+", "Take away": "-", "Multiply by": "*"}


def read_arithmetic(text: str) -> Read:
    opening, steps, closing = sentences(text)
    (value,) = map(int, re.findall(r"\d+", opening))
    done: list[Any] = [value]
    failed = []
    for number, step in enumerate(steps):
        found = re.search(r"(\d+) ([-+*/]|plus|minus|times|divided by) (\d+) (?:=|is|makes) (\d+)", step)
        assert found and int(found[1]) == value
        sign, operand, result = WORDS.get(found[2], found[2]), int(found[3]), int(found[4])
        deed = re.match(r"(Add|Take away|Multiply by|Divide by) (\d+):", step)
        assert not deed or (WORDS.get(deed[1], "/"), int(deed[2])) == (sign, operand)
        right = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value / operand}[sign]
        assert right == int(right)
        if result != right:
            failed.append(number)
        done.append((sign, operand))
        value = result
    assert re.findall(r"\d+", closing) == [str(value)]
    return Read(done, failed, str(value))


READERS: dict[str, Callable[[str], Read]] = {
    "coin_flip": read_coin,
    "last_letter": read_letters,
    "shuffled_objects": read_objects,
    "arithmetic": read_arithmetic,
}


def meant(facts: dict[str, Any]) -> list[Any]:
    """What is done by the facts, as the readers give it."""
    if facts["kind"] == "coin_flip":
        return list(zip(facts["names"], facts["flips"], strict=True))
    if facts["kind"] == "last_letter":
        return list(facts["words"])
    if facts["kind"] == "arithmetic":
        return [facts["start"], *((sign, operand) for sign, operand in facts["operations"])]
    players = facts["players"]
    start = dict(zip(players, facts["items"], strict=True))
    return [start, players[facts["asked"]], *((players[one], players[other]) for one, other in facts["swaps"])]


SIZES = [(1, 2), (1, 3), (2, 2), (3, 3), (4, 3), (6, 5), (25, 8)]  # steps, players


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "objects"), SIZES)
def test_right_rationales_hold_at_every_step(kind: str, steps: int, objects: int) -> None:
    for row in rows_of(kind, steps=steps, objects=objects):
        for sample in range(4):
            text, answer = rules.write(kind, row["facts"], Random(f"{row['id']} {sample}"), wrong=False)
            assert READERS[kind](text) == (meant(row["facts"]), [], answer), text
            assert answer == row["answer"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "objects"), SIZES)
def test_wrong_rationales_go_wrong_at_one_step_and_reason_on(kind: str, steps: int, objects: int) -> None:
    where = set()
    for row in rows_of(kind, steps=steps, objects=objects):
        for sample in range(4):
            text, answer = rules.write(kind, row["facts"], Random(f"{row['id']} {sample}"), wrong=True)
            read = READERS[kind](text)
            assert (read.done, read.answer) == (meant(row["facts"]), answer), text
            assert len(read.failed) == 1 and answer != row["answer"]
            where.update(read.failed)
    assert where == set(range(steps)) or (steps == 25 and len(where) > 12)  # any step can be the one


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [False, True])
def test_many_different_texts(kind: str, wrong: bool) -> None:
    """So that the samples of a question differ."""
    for row in rows_of(kind, 3, steps=1, objects=2):
        texts = {rules.write(kind, row["facts"], Random(number), wrong=wrong)[0] for number in range(1500)}
        assert len(texts) >= rules.TEXTS


def test_texts() -> None:
    """One of each kind, in full."""
    made = {kind: rules.write(kind, rows_of(kind, 1, steps=2)[0]["facts"], Random(3), wrong=False) for kind in KINDS}
    assert made == TEXTS


TEXTS: dict[str, tuple[str, str]] = {
    "coin_flip": (
        (
            "At first it is heads up.\n"
            "(1) Ben does not flip it: heads.\n"
            "(2) Zoe does not flip it: heads.\n"
            "It ends heads up, as it began."
        ),
        "yes",
    ),
    "last_letter": (
        ('Take one word after another.\n(1) door ends in r: r.\n(2) flower ends in r: rr.\nSo we get "rr".'),
        "rr",
    ),
    "shuffled_objects": (
        (
            "First of all, Alan holds orange (A), Bea holds blue (B), Cleo holds white (C).\n"
            "Step 1: After Bea and Cleo swap blue and white, Alan holds orange, Bea holds white, Cleo holds blue.\n"
            "Step 2: After Alan and Bea swap orange and white, Alan holds white, Bea holds orange, Cleo holds blue.\n"
            "So Alan has white (C)."
        ),
        "C",
    ),
    "arithmetic": (("There are 14 points at first.\n14 plus 7 is 21.\n21 plus 2 is 23.\nThe result is 23."), "23"),
}


def test_a_word_of_one_letter_can_go_wrong() -> None:
    facts = {"kind": "last_letter", "words": ["aa", "a"]}
    for number in range(20):
        _, answer = rules.write("last_letter", facts, Random(number), wrong=True)
        assert len(answer) == 2 and sorted(letter == "a" for letter in answer) == [False, True]


# records


@pytest.mark.parametrize("kind", KINDS)
def test_record(kind: str) -> None:
    row = rows_of(kind)[7]
    record = rules.record(row, 2, seed=5, error_rate=0.0)
    text = record["reasoning_completion"]
    prompt = f"Q: {row['question']}\nA: Let's think step by step."
    assert READERS[kind](text.strip()).failed == []
    assert record == {
        "sample_index": 7,
        "completion_index": 2,
        "question": row["question"],
        "answer": row["answer"],
        "reasoning_prompt": prompt,
        "reasoning_completion": text,
        "reasoning_finish_reason": "stop",
        "prompt": f"{prompt}{text}\nTherefore, the answer is",
        "completion": f" {row['answer']}.",
        "finish_reason": "stop",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_records_depend_on_row_index_and_seed_alone(kind: str) -> None:
    few, many = rows_of(kind, 5), rows_of(kind, 50)

    def records(rows: list[dict[str, Any]], samples: int, seed: int = 0) -> dict[tuple[int, int], str]:
        return {
            (row["id"], sample): rules.record(row, sample, seed=seed, error_rate=0.3)["prompt"]
            for row in reversed(rows)
            for sample in range(samples)
        }

    small, large = records(few, 2), records(many, 4)
    assert {key: large[key] for key in small} == small
    assert len(set(large.values())) > 0.97 * len(large)
    assert records(few, 2, seed=1) != small


@pytest.mark.parametrize("kind", KINDS)
def test_error_rate(kind: str) -> None:
    rows = rows_of(kind, 150)

    def wrong(rate: float) -> set[tuple[int, int]]:
        found = set()
        for row in rows:
            for sample in range(4):
                record = rules.record(row, sample, seed=0, error_rate=rate)
                if record["completion"] != f" {row['answer']}.":
                    found.add((row["id"], sample))
        return found

    assert len(wrong(0.0)) == 0 and len(wrong(1.0)) == 600
    assert 0.2 < len(wrong(0.25)) / 600 < 0.3
    assert wrong(0.1) < wrong(0.25)


def test_constant_answers_are_not_what_errors_give() -> None:
    """A teacher that errs is no teacher that always says the same."""
    rows = rows_of("shuffled_objects", 300)
    answers = Counter(rules.record(row, 0, seed=0, error_rate=1.0)["completion"] for row in rows)
    assert set(answers) == {" A.", " B.", " C."} and max(answers.values()) < 150


def test_a_kind_without_rules() -> None:
    with pytest.raises(DataError, match="no rules to write rationales for 'gsm8k'") as caught:
        rules.write("gsm8k", {}, Random(0), wrong=False)
    assert "task=demo/coin_flip, task=demo/last_letter" in str(caught.value)


@pytest.mark.parametrize("facts", [{}, {"facts": None}])
def test_a_row_without_facts(facts: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="question 3 has no facts") as caught:
        rules.record({"id": 3, "question": "1 + 1?", "answer": "2", **facts}, 0, seed=0, error_rate=0.0)
    assert "rationales=openai|local|recorded" in str(caught.value)
