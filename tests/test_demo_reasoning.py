"""The embedded reasoning tasks: distinct, balanced, the same everywhere, and answered rightly by their own words."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import kdlab
from kdlab.data.demo import arithmetic, coin_flip, last_letter, shuffled_objects
from kdlab.data.demo.distinct import arrangement, arrangements
from kdlab.errors import DataError

CONF = Path(kdlab.__file__).parent.parent / "conf"
GENERATE = {"train": 1000, "test": 300, "steps": 4, "objects": 3, "seed": 0}
TASKS = [coin_flip, last_letter, shuffled_objects, arithmetic]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__.rpartition(".")[2])


def name_of(task: ModuleType) -> str:
    return task.__name__.rpartition(".")[2]


def both(task: ModuleType, **changes: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    generate = GENERATE | changes
    return task.questions("train", generate), task.questions("test", generate)


# answers worked out from the questions' words


def coin(question: str) -> str:
    flips = len(re.findall(r"\w+ flips the coin\.", question))
    assert flips + question.count("does not flip") == question.count("the coin.")
    return "yes" if flips % 2 == 0 else "no"


def letters(question: str) -> str:
    quoted = re.search(r'"([a-z ]+)"', question)
    assert quoted
    return "".join(word[-1] for word in quoted[1].split())


def objects(question: str) -> str:
    story, options = question.split("\nWhich choice is true? Answer choices: ")
    holds = dict(re.findall(r"(\w+) has the (\w+ \w+)", story))
    for one, other in re.findall(r"(\w+) and (\w+) swap", story):
        holds[one], holds[other] = holds[other], holds[one]
    asked = re.search(r"At the end, (\w+) has the$", story)
    letter = {item: letter for letter, item in re.findall(r"\((\w)\) (\w+ \w+)", options)}
    assert asked and len(letter) == len(holds) == len(set(holds.values()))
    return letter[holds[asked[1]]]


OPERATIONS = (  # the first that fits a sentence
    (r"equal|[Oo]ne of every|divides", lambda value, number: divmod(value, number)),
    (r"times|[Ee]ach of|multiplies|turns", lambda value, number: (value * number, 0)),
    (r"gives away|loses|costs|get off|leave|sold|eat|run away", lambda value, number: (value - number, 0)),
    (r"more|wins|brings", lambda value, number: (value + number, 0)),
)


def arithmetic_answer(question: str) -> str:
    start, *events, ask = re.split(r"(?<=\.) ", question)
    assert ask.startswith("How many ")
    value, least = int(re.findall(r"\d+", start)[0]), 1
    for event in events:
        (number,) = map(int, re.findall(r"\d+", event))
        work = next(work for words, work in OPERATIONS if re.search(words, event))
        value, rest = work(value, number)
        assert rest == 0 and least <= value <= arithmetic.LARGEST
    return str(value)


SOLVERS: dict[str, Callable[[str], str]] = {
    "coin_flip": coin,
    "last_letter": letters,
    "shuffled_objects": objects,
    "arithmetic": arithmetic_answer,
}


@each_task
@pytest.mark.parametrize("steps", [2, 3, 7, 40])
def test_answers_follow_from_the_words(task: ModuleType, steps: int) -> None:
    for row in task.questions("train", GENERATE | {"train": 200, "steps": steps}):
        assert row["answer"] == SOLVERS[name_of(task)](row["question"]), row["question"]


@pytest.mark.parametrize("players", [2, 5, 8])
def test_any_number_of_players(players: int) -> None:
    train, test = both(shuffled_objects, objects=players, train=90, test=40)
    assert all(row["answer"] == objects(row["question"]) for row in train + test)
    assert {row["answer"] for row in train} == set("ABCDEFGH"[:players])


def test_a_question_of_each_task() -> None:
    """Worded as in the papers, with the facts that rationales are written from."""
    made = {name_of(task): task.questions("train", GENERATE | {"train": 1, "steps": 2})[0] for task in TASKS}
    assert made == QUESTIONS


QUESTIONS: dict[str, Any] = {
    "coin_flip": {
        "question": ("A coin is heads up. Mia flips the coin. Ada does not flip the coin. Is the coin still heads up?"),
        "answer": "no",
        "facts": {"kind": "coin_flip", "names": ["Mia", "Ada"], "flips": [True, False]},
    },
    "last_letter": {
        "question": 'Take the last letter of each word in "desk taxi" and join the letters.',
        "answer": "ki",
        "facts": {"kind": "last_letter", "words": ["desk", "taxi"]},
    },
    "shuffled_objects": {
        "question": (
            "Alan has the black cap, Bea has the blue cap and Cleo has the orange cap. "
            "First, Alan and Bea swap caps. "
            "Finally, Alan and Cleo swap caps. "
            "At the end, Cleo has the\n"
            "Which choice is true? Answer choices: (A) black cap, (B) blue cap, (C) orange cap."
        ),
        "answer": "B",
        "facts": {
            "kind": "shuffled_objects",
            "players": ["Alan", "Bea", "Cleo"],
            "items": ["black", "blue", "orange"],
            "thing": "cap",
            "swaps": [[0, 1], [0, 2]],
            "asked": 2,
        },
    },
    "arithmetic": {
        "question": (
            "Leo has 17 apples. "
            "Leo finds 6 more. "
            "A magician turns each of them into 2. "
            "How many apples does Leo have now?"
        ),
        "answer": "46",
        "facts": {
            "kind": "arithmetic",
            "who": "Leo",
            "things": "apples",
            "start": 17,
            "operations": [["+", 6], ["*", 2]],
        },
    },
}


# distinct, balanced, the same


@each_task
@pytest.mark.parametrize("steps", [2, 5, 30])
def test_no_question_twice_and_none_of_train_in_test(task: ModuleType, steps: int) -> None:
    for seed in range(2):
        train, test = both(task, steps=steps, seed=seed, train=500, test=200)
        assert (len(train), len(test)) == (500, 200)
        assert len({row["question"] for row in train + test}) == 700


@each_task
def test_the_smallest_questions_are_all_different(task: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question there is, no more and no fewer: the numbers of questions are those of their texts."""
    monkeypatch.setattr(arithmetic, "_STARTS", range(11, 13))
    monkeypatch.setattr(shuffled_objects, "_THINGS", ("ball", "cap"))
    with pytest.raises(DataError) as caught:
        task.questions("train", GENERATE | {"train": 10**9, "steps": 1})
    number = re.search(r"has (\d+) different questions", str(caught.value))
    assert number
    size = int(number[1])
    train, test = both(task, steps=1, train=size - 7, test=7)
    assert len({row["question"] for row in train + test}) == size
    with pytest.raises(DataError, match=f"has {size} different questions"):
        both(task, steps=1, train=size - 7, test=8)


@pytest.mark.parametrize(("task", "answers"), [(coin_flip, 2), (shuffled_objects, 3)])
def test_answers_are_balanced(task: ModuleType, answers: int) -> None:
    for rows in both(task, train=1001):
        counts = Counter(row["answer"] for row in rows)
        assert len(counts) == answers and max(counts.values()) - min(counts.values()) <= 1
        early = Counter(row["answer"] for row in rows[: 10 * answers])  # so that the first questions are balanced too
        assert set(early.values()) == {10}


def test_no_answer_of_arithmetic_is_frequent() -> None:
    counts = Counter(row["answer"] for row in arithmetic.questions("train", GENERATE))
    assert counts.most_common(1)[0][1] < 60
    signs = Counter(sign for row in arithmetic.questions("train", GENERATE) for sign, _ in row["facts"]["operations"])
    assert set(signs) == set("+-*/") and min(signs.values()) > 0.05 * sum(signs.values())


@each_task
def test_more_questions_leave_the_others_as_they_are(task: ModuleType) -> None:
    train, test = both(task, train=100, test=50)
    more, same = both(task, train=150, test=50)
    assert more[:100] == train and same == test
    assert both(task, train=100, test=50, seed=1)[0] != train


DIGESTS: dict[str, str] = {
    "coin_flip": "a57cb2e1dfa33e9fdcfaa71361caba23f0a53ec5f3f50abc4041570842600778",
    "last_letter": "8d56322b501d0f616135c8843a435320e8d5db71f45634baccdca62f44ca51aa",
    "shuffled_objects": "4970343cd0175bf331e92fd25d547fad09bb4bac432dd14f5937d091bbac4a3b",
    "arithmetic": "ed930ec58a4eda54e92471b78dcc0d346f718579208a880fcd0b1c4b9b7ee2fd",
}


@each_task
def test_same_bytes_on_every_machine(task: ModuleType) -> None:
    digest = hashlib.sha256(json.dumps(both(task)).encode()).hexdigest()
    assert digest == DIGESTS[name_of(task)]


def test_arrangements_are_all_different() -> None:
    """Beyond as many as there are, all come again, in any order."""
    assert arrangements(3, 2) == 6 and arrangements(3, 3) == 6 and arrangements(3, 4) == 18
    lined = [arrangement(number, "abc", 4) for number in range(18)]
    assert len({tuple(items) for items, _ in lined}) == 18
    assert all(sorted(items[:3]) == ["a", "b", "c"] and left == 0 for items, left in lined)
    assert arrangement(6 * 5 + 1, "abc", 2) == (["b", "a"], 5)


# what can't be had


@each_task
def test_too_many_questions_are_refused_at_once(task: ModuleType) -> None:
    begin = time.perf_counter()
    for steps in (1, 2, 50):
        with pytest.raises(
            DataError, match=rf"{name_of(task)} has \d+ different questions with steps={steps}"
        ) as caught:
            task.questions("test", GENERATE | {"train": 10**200, "steps": steps})
        assert caught.value.where == "task.generate" and "ask for at most" in str(caught.value)
    assert time.perf_counter() - begin < 1


@each_task
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "1000 training questions and 300 test questions of 0 steps"),
        ({"train": 0}, "0 training questions"),
        ({"test": -1}, "-1 test questions"),
    ],
)
def test_impossible_sizes(task: ModuleType, changes: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        task.questions("train", GENERATE | changes)


@each_task
def test_unknown_split(task: ModuleType) -> None:
    with pytest.raises(DataError, match=f"{name_of(task)} has no split 'dev'"):
        task.questions("dev", GENERATE)


@pytest.mark.parametrize("players", [1, 9])
def test_too_few_and_too_many_players(players: int) -> None:
    with pytest.raises(DataError, match=f"can't have {players} players") as caught:
        shuffled_objects.questions("train", GENERATE | {"objects": players})
    assert caught.value.where == "task.generate.objects"


# configuration


@each_task
def test_configuration(task: ModuleType) -> None:
    """The task's own defaults can be made, and its answers are of the kind that it says."""
    name = name_of(task)
    conf = yaml.safe_load((CONF / "task" / "demo" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert conf["name"] == f"demo/{conf['source']['demo']}" == f"demo/{name}"
    assert importlib.import_module(f"kdlab.data.demo.{name}") is task
    train, test = both(task, **conf["generate"])
    assert len(train) == conf["rows"] and len(test) == conf["generate"]["test"]
    kinds = {
        "yes_no": r"yes|no",
        "choice": "[ABC]",
        "number": r"\d+",
        "text": r"[a-z]+",
    }
    assert all(re.fullmatch(kinds[conf["answer"]], row["answer"]) for row in train + test)
    assert conf["generate"].get("objects", 3) == 3 and conf.get("choices") is None  # ABC by the number of objects
