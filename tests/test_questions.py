"""The questions of a reasoning task, whatever they are read from, and one clear message for each that can't be used."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kdlab import compose as composition
from kdlab.context import Context
from kdlab.data.answers import Form, judge
from kdlab.data.archive import dataset_file
from kdlab.data.questions import DEMOS, Questions, read_questions
from kdlab.errors import DataError
from kdlab.stages.completions import read_rows
from kdlab.stages.questions import prepare_questions

CONF = Path(__file__).resolve().parents[1] / "conf"
PLAIN: dict[str, Any] = {
    "splits": {"train": "train", "test": None},
    "text": ["question"],
    "label": "answer",
    "answer": "text",
    "choices": None,
    "options": None,
    "suffix": "",
    "after": None,
    "compare": "string",
    "generate": None,
}
WHOLE = {"rule": "source", "train": None, "limit": None, "size": None, "until": None}
GENERATE = {"train": 20, "test": 10, "steps": 3, "objects": 3, "seed": 0}
Task = Callable[[str], dict[str, Any]]
Prepared = tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]


@pytest.fixture(scope="module")
def task() -> Iterator[Task]:
    """What conf/task/reasoning/NAME.yaml says, all defaults filled in."""
    composition.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):

        @cache
        def read(name: str) -> dict[str, Any]:
            found = OmegaConf.to_container(compose(f"task/reasoning/{name}"))
            assert isinstance(found, dict)
            return dict(found["task"]["reasoning"])

        yield read


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Prepared]:
    """The stage on a source; returns its splits and facts."""
    count = iter(range(100))

    def call(source: Path | dict[str, Any], **changes: Any) -> Prepared:
        out = tmp_path / f"out{next(count)}"
        out.mkdir()
        ctx = Context(out=out, stage="questions")
        settings = {"partition": WHOLE, "heldout": 0.0, "few": None, "dev_limit": None, "rows": None}
        given = {"path": str(source)} if isinstance(source, Path) else source
        prepare_questions(ctx, source=given, **(PLAIN | settings | changes))
        assert json.loads((out / "facts.json").read_text(encoding="utf-8")) == ctx.facts
        return {file.stem: read_rows(out, file.stem) for file in out.glob("*.jsonl")}, ctx.facts

    return call


def read(source: Path | dict[str, Any], **changes: Any) -> Questions:
    given = {"path": str(source)} if isinstance(source, Path) else source
    return read_questions(given, **(PLAIN | changes))


def asked(source: Path | dict[str, Any], **changes: Any) -> list[tuple[str, str]]:
    return [(row["question"], row["answer"]) for row in read(source, **changes).rows]


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def archive(folder: Path, key: str, *rows: dict[str, Any]) -> Path:
    """A folder in the layout of reasoning-teacher."""
    (folder / "dataset").mkdir(parents=True, exist_ok=True)
    content = {"metadata": {"dataset_key": key}, "data": list(rows)}
    (folder / "dataset" / f"{key}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Question i is "What is i?", its answer i."""
    return [
        {"sample_index": number, "question": f"What is {number}?", "answer": str(number)}
        for number in range(start, start + count)
    ]


# The paper's tasks


def test_twelve_tasks_say_what_they_are(task: Task) -> None:
    files = sorted((CONF / "task" / "reasoning").glob("*.yaml"))
    assert len(files) == 12
    sizes = {file.stem: task(file.stem)["partition"]["size"] for file in files}
    assert sum(sizes.values()) == 508 + 395 + 600 + 8792 + 97721 + 1000 + 750 + 369 + 500 + 500 + 10962 + 2290
    for file in files:
        found = task(file.stem)
        assert (found["name"], found["kind"]) == (f"reasoning/{file.stem}", "reasoning")
        assert found["source"]["key"] == file.stem
        assert found["splits"]["dev"] is None


def fields(found: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A task's own fields as the stage takes them, of a data set of five questions."""
    chosen = {name: found[name] for name in PLAIN if name not in ("generate", "splits")}
    splits = {"train": found["splits"]["train"], "test": found["splits"]["test"]}
    return {**chosen, "splits": splits, "partition": {**found["partition"], "size": None}} | changes


SVAMP = [
    {
        "ID": f"chal-{n}",
        "Body": f" Ann has {n} pens and buys {n} more.",
        "Question": " How many has she? ",
        "Answer": 2.0 * n,
    }
    for n in range(1, 6)
]


@pytest.mark.parametrize("copy", ["hub", "folder"])
def test_svamp_joins_body_and_question(task: Task, run: Callable[..., Prepared], tmp_path: Path, copy: str) -> None:
    """Of the columns of the Hub's copy and of the authors' file come the same questions."""
    source: Path | dict[str, Any]
    if copy == "hub":
        parquet(tmp_path / "train.parquet", *SVAMP[:4])
        parquet(tmp_path / "test.parquet", *SVAMP[4:])
        source = tmp_path
    else:
        joined = [f"Ann has {n} pens and buys {n} more. How many has she?" for n in range(1, 6)]
        rows = [{"question": text, "answer": f"{2.0 * n}"} for n, text in enumerate(joined, start=1)]
        source = {"path": str(archive(tmp_path, "svamp", *rows)), "key": "svamp"}
    splits, facts = run(source, **fields(task("svamp")))
    assert [row["id"] for row in splits["train"]] == [0, 1, 2, 3]  # random, in the folder: 4 of 5, without the last
    assert [row["question"] for row in splits["test"]] == ["Ann has 5 pens and buys 5 more. How many has she?"]
    assert splits["test"][0]["answer"] == ("10" if copy == "hub" else "10.0")
    assert facts["conditions"]["partition"]["rule"] == ("source" if copy == "hub" else "random")
    assert facts["majority_answer"] == "2"  # as a number, "2.0" in the folder


def test_date_understanding_takes_the_authors_letters_and_parts_whole_stories(
    task: Task, run: Callable[..., Prepared], tmp_path: Path
) -> None:
    asks = ["today", "tomorrow", "yesterday"]
    rows = [
        {
            "question": f"Today is {story}. What is the date {ask} in MM/DD/YYYY?\nWhich choice is true?"
            " Answer choices: (A) 01/02/1999, (B) 01/03/1999.",
            "answer": "B",
        }
        for story, ask in [
            ("Jan 2", asks[0]),
            ("Jan 2", asks[1]),
            ("May 9", asks[0]),
            ("May 9", asks[1]),
            ("May 9", asks[2]),
        ]
    ]
    source = {"path": str(archive(tmp_path, "date_understanding", *rows)), "key": "date_understanding"}
    found = fields(task("date_understanding"))
    splits, facts = run(source, **(found | {"partition": found["partition"] | {"rule": "template"}}))
    # two stories: round(2 * 0.7) = 1 is trained on, RandomState(0).permutation(2) = [1, 0] says it is the second
    assert [row["id"] for row in splits["train"]] == [2, 3, 4]
    assert [row["question"] for row in splits["test"]] == [row["question"] for row in rows[:2]]
    assert facts["answer"] == {"kind": "choice", "choices": "ABCDEF", "compare": "string"}
    assert any("same answer, 'B'" in warning for warning in facts["warnings"])


def test_last_letters_are_read_from_the_authors_older_lists(
    task: Task, run: Callable[..., Prepared], tmp_path: Path
) -> None:
    names = ["Ada Ben", "Carla Dan", "Ella Finn", "Gina Hugo", "Ida Jack"]
    rows = [
        {"question": f'Take the last letters of each words in "{pair}" and concatenate them.', "answer": letters}
        for pair, letters in zip(names, ["an", "an", "an", "ao", "ak"], strict=True)
    ]
    (tmp_path / "last_letter_concatenation.json").write_text(json.dumps(rows), encoding="utf-8")
    source = {"path": str(tmp_path), "key": "last_letter_concatenation"}
    splits, facts = run(source, **fields(task("last_letter_concatenation")))
    assert [row["answer"] for row in splits["train"]] == ["an", "an", "an", "ao"]
    assert [row["answer"] for row in splits["test"]] == ["ak"]
    assert facts["majority"] == {"test": {"accuracy": 0.0}}


def test_gsm8k_takes_the_answer_from_behind_its_mark_and_keeps_the_rest(task: Task, tmp_path: Path) -> None:
    row = {"question": "How much?", "answer": "Twice 540 is <<2*540=1080>>1080.\n#### 1,080"}
    lines(tmp_path / "train.jsonl", row)
    lines(tmp_path / "test.jsonl", row)
    found = fields(task("gsm8k"))
    found.pop("partition")
    questions = read(tmp_path, **found)
    assert questions.rows[0]["answer"] == "1,080"
    assert questions.rows[0]["rationale"] == "Twice 540 is <<2*540=1080>>1080."
    assert (questions.train, len(questions.rows)) == (1, 2)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_aqua_loses_the_letters_in_its_options(task: Task, tmp_path: Path, suffix: str) -> None:
    write = lines if suffix == "jsonl" else parquet
    row = {
        "question": "How old? ",
        "options": ["A)21", "B)22 ", "C)", "D)4)", "E)x"],
        "rationale": "So B.",
        "correct": "B",
    }
    for split in ("train", "test"):
        write(tmp_path / f"{split}.{suffix}", row)
    found = fields(task("aqua"))
    found.pop("partition")
    made = read(tmp_path, **found).rows[1]
    assert made == {
        "id": 1,
        "question": "How old? Answer choices: (A) 21, (B) 22, (C) , (D) 4), (E) x.",
        "answer": "B",
        "rationale": "So B.",
    }


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_commonsense_qa_has_labelled_choices_and_tests_on_validation(task: Task, tmp_path: Path, suffix: str) -> None:
    write = lines if suffix == "jsonl" else parquet
    choices = {"label": list("ABCDE"), "text": ["ignore", "enforce", "a", "b", "avoid"]}
    row = {"question": "What?", "question_concept": "x", "choices": choices, "answerKey": "E"}
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.{suffix}", row)
    found = fields(task("commonsense_qa"))
    found.pop("partition")
    asked_here = asked(tmp_path, **found)
    assert asked_here == [("What? Answer choices: (A) ignore, (B) enforce, (C) a, (D) b, (E) avoid.", "E")] * 2


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_truth_is_yes_and_no(task: Task, tmp_path: Path, suffix: str) -> None:
    rows = [{"question": "Is it?", "answer": True}, {"question": "Or not?", "answer": False}]
    if suffix == "csv":
        (tmp_path / "train.csv").write_text("question,answer\nIs it?,true\nOr not?,False\n")
    else:
        (lines if suffix == "jsonl" else parquet)(tmp_path / f"train.{suffix}", *rows)
    assert [answer for _, answer in asked(tmp_path, answer="yes_no")] == ["yes", "no"]


# Folders of reasoning-teacher


def test_rows_are_found_by_their_index_not_by_their_place(run: Callable[..., Prepared], tmp_path: Path) -> None:
    source = {"path": str(archive(tmp_path, "own", *reversed(numbered(10)))), "key": "own"}
    splits, _ = run(source, answer="number", partition=WHOLE | {"rule": "random"})
    assert [row["id"] for row in splits["test"]] == [0, 3, 5]  # see test_partition
    assert all(row["question"] == f"What is {row['id']}?" for part in splits.values() for row in part)


@pytest.mark.parametrize("place", ["data/dataset/own.json", "dataset/own.json", "own.json"])
def test_a_data_sets_file_is_found_where_the_authors_put_it(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[]")
    assert dataset_file(tmp_path, "own") == file
    assert dataset_file(file, "own") == file


def test_a_part_of_a_data_set_is_partitioned_as_the_whole(run: Callable[..., Prepared], tmp_path: Path) -> None:
    """As aqua.json in ../shared: the last three of ten questions, two of which the rule would train on."""
    source = {"path": str(archive(tmp_path, "own", *numbered(3, start=7))), "key": "own"}
    first = WHOLE | {"rule": "first", "train": 9, "size": 10}
    splits, facts = run(source, answer="number", partition=first, heldout=0.5)
    assert {name: [row["id"] for row in part] for name, part in splits.items()} == {
        "train": [8],
        "heldout": [7],
        "test": [9],
    }
    assert facts["warnings"] == ["the source has 3 of the 10 questions: 2 of 9 to train on, 1 of 1 to test on"]
    splits, facts = run(source, answer="number", partition=first | {"train": 7}, heldout=0.5)
    assert splits["train"] == [] and "heldout" not in splits
    assert (facts["majority"], facts["chance"], facts["majority_answer"]) == ({}, {}, None)
    assert facts["warnings"][-1] == "there are no training questions"
    with pytest.raises(DataError, match=r"3 questions with places up to 9.*unknown size"):
        run(source, answer="number")
    with pytest.raises(DataError, match=r"place 9, and the whole data set is said to have 9"):
        run(source, answer="number", partition=first | {"train": 7, "size": 9})
    with pytest.raises(DataError, match=r"need all 10 questions"):
        run(source, answer="number", partition=first | {"rule": "template"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ('{"metadata": {"dataset_key": "other"}, "data": []}', "holds other, not own"),
        ('{"questions": []}', "not in the layout"),
        ('[["question", "answer"]]', "not in the layout"),
        ("[]", "no questions"),
        (
            '[{"sample_index": 4, "question": "a", "answer": "b"}, {"question": "a", "answer": "b"}]',
            "sample_index None",
        ),
        (
            '[{"sample_index": 4, "question": "a"}, {"sample_index": 4, "question": "b"}]',
            "sample_index 4 is there twice: in rows 0 and 1",
        ),
        ('[{"question": ["a"], "answer": "b"}]', "question is no text but list"),
        ('[{"question": "\\ud800", "answer": "b"}]', "surrogate"),
        ('[{"answer": "b"}]', "question is empty"),
        ('[{"question": "a"}]', "answer is missing"),
    ],
)
def test_a_broken_file_is_told_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        read({"path": str(tmp_path), "key": "own"})
    assert "own.json" in str(raised.value.where)


def test_an_absent_data_set_tells_what_is_there(tmp_path: Path) -> None:
    archive(tmp_path, "addsub")
    with pytest.raises(DataError, match=r"no dataset/own.json. It has: addsub") as raised:
        read({"path": str(tmp_path), "key": "own"})
    assert "task.source.key=null" in str(raised.value.fix)
    with pytest.raises(DataError, match="does not exist"):
        read({"path": str(tmp_path / "nowhere"), "key": "own"})


def test_a_plan_can_ask_for_a_data_sets_file_without_slow_imports() -> None:
    code = "import kdlab.data.archive, sys; print(sorted({'pyarrow', 'torch', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# A task of one's own


def test_choices_are_letters_texts_or_numbers(tmp_path: Path) -> None:
    wanted = [("a? Answer choices: (A) sun, (B) moon.", "B"), ("b? Answer choices: (A) 4, (B) 0, (C) 5.", "A")]
    own = {"answer": "choice", "options": "options"}
    for kind, answers in {"letters": ["B", "(A)"], "texts": ["moon", "4"], "numbers": [1, 0]}.items():
        rows = [
            {"question": "a?", "options": ["sun", "moon"], "answer": answers[0]},
            {"question": "b?", "options": [4, 0, 5.0], "answer": answers[1]},
        ]
        if kind == "numbers":
            rows[1]["options"], rows[1]["answer"] = [4, 7, 5], 0
            assert [answer for _, answer in asked(lines(tmp_path / "own.jsonl", *rows), **own)] == ["B", "A"]
        else:
            assert asked(lines(tmp_path / "own.jsonl", *rows), **own) == wanted
    assert read(tmp_path / "own.jsonl", **own).choices == "ABC"


def test_options_may_carry_their_own_labels(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "options": {"label": ["1", "2"], "text": ["sun", "moon"]}, "answer": "2"},
        {"question": "b?", "options": {"A": "sun", "B": "moon", "C": None}, "answer": "A"},
    ]
    made = asked(lines(tmp_path / "own.jsonl", *rows), answer="choice", options="options", suffix="\nWhich?")
    assert made == [
        ("a?\nWhich? Answer choices: (A) sun, (B) moon.", "B"),
        ("b?\nWhich? Answer choices: (A) sun, (B) moon.", "A"),
    ]


def test_an_answer_that_can_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "options": ["1", "0"], "answer": "1"},
        {"question": "b?", "options": ["0", "1"], "answer": "1"},
    ]
    with pytest.raises(DataError, match=r"'1' is the text of one option and the number of another") as raised:
        read(lines(tmp_path / "own.jsonl", *rows), answer="choice", options="options")
    assert str(raised.value.where).endswith("own.jsonl, line 1")


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"question": " ", "answer": "1"}, {}, "question is empty"),
        ({"question": "q", "answer": " "}, {}, "answer is missing"),
        ({"question": "q", "answer": None}, {}, "answer is missing"),
        ({"question": "q", "answer": "two"}, {"answer": "number"}, "'two' is no number"),
        ({"question": "q", "answer": "$18"}, {"answer": "number"}, r"'\$18' is no number"),
        ({"question": "q", "answer": "nan"}, {"answer": "number", "compare": "number"}, "'nan' is no number"),
        ({"question": "q", "answer": "maybe"}, {"answer": "yes_no"}, "'maybe' is neither yes nor no"),
        ({"question": "q", "answer": "72"}, {"after": "####"}, "no '####'"),
        ({"question": "q", "answer": "so ####"}, {"after": "####"}, "answer is missing"),
        (
            {"question": "q", "answer": "F"},
            {"answer": "choice", "choices": "ABCDE"},
            "'F' is none of the letters ABCDE",
        ),
        (
            {"question": "q", "answer": "C", "o": ["x", "y"]},
            {"answer": "choice", "options": "o"},
            r"'C' is none of the options: \(A\) x, \(B\) y\.",
        ),
        (
            {"question": "q", "answer": "A", "o": ["x"]},
            {"answer": "choice", "options": "o"},
            "no list of 2 to 26 texts",
        ),
        ({"question": "q", "answer": "A", "o": "x or y"}, {"answer": "choice", "options": "o"}, "no list of 2 to 26"),
        (
            {"question": "q", "answer": "A", "o": ["x", None]},
            {"answer": "choice", "options": "o"},
            "no list of 2 to 26",
        ),
        (
            {"question": "q", "answer": "A", "o": {"label": ["A"], "text": ["x", "y"]}},
            {"answer": "choice", "options": "o"},
            "2 texts and the labels A",
        ),
        (
            {"question": "q", "answer": "A", "o": ["x", "y", "z"]},
            {"answer": "choice", "options": "o", "choices": "AB"},
            "3 options, and only the letters AB",
        ),
    ],
)
def test_a_row_that_cant_be_used_is_told_with_its_line(
    tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    good = {"question": "q", "answer": "A", "o": ["x", "y"]}
    if changes.get("answer") in ("number", "yes_no") or "after" in changes:
        good["answer"] = {"number": "1,000.5", "yes_no": "Yes"}.get(changes.get("answer", ""), "so #### 7")
    file = lines(tmp_path / "own.jsonl", good, row)
    with pytest.raises(DataError, match=message) as raised:
        read(file, **changes)
    assert str(raised.value.where).endswith("own.jsonl, line 2")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"text": ["body"]}, "task.text"),
        ({"label": "gold"}, "task.label"),
        ({"answer": "choice", "options": "choices"}, "task.options"),
    ],
)
def test_an_absent_column_names_the_key_to_set(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(DataError, match="There is no column") as raised:
        read(lines(tmp_path / "own.jsonl", {"question": "q", "answer": "A"}), **changes)
    assert key in str(raised.value.fix)


def test_choices_without_letters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="letters are not given"):
        read(lines(tmp_path / "own.jsonl", {"question": "q", "answer": "A"}), answer="choice")


def test_a_column_named_rationale_is_kept_if_it_holds_text(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a"}
    assert read(parquet(tmp_path / "text.parquet", row | {"rationale": "why"})).rows[0]["rationale"] == "why"
    assert "rationale" not in read(parquet(tmp_path / "list.parquet", row | {"rationale": ["why"]})).rows[0]
    assert read(lines(tmp_path / "list.jsonl", row | {"rationale": None})).rows[0] == {"id": 0, **row}


# The stage


def own_file(path: Path, answers: str) -> Path:
    """Question i asks for i; its answer is the i-th letter of `answers`."""
    return lines(path, *({"question": f"{n}?", "answer": letter} for n, letter in enumerate(answers)))


def test_majority_and_chance_by_hand(run: Callable[..., Prepared], tmp_path: Path) -> None:
    """Train aaab c, test a b b d: majority 1/4; chance 3/5 * 1/4 + 1/5 * 2/4 + 1/5 * 0 = 0.25."""
    own_file(tmp_path / "train.jsonl", "aaabc")
    lines(tmp_path / "test.jsonl", *({"question": f"t{n}?", "answer": letter} for n, letter in enumerate("abbd")))
    splits, facts = run(tmp_path, splits={"train": "train", "test": "test"})
    assert facts["rows"] == {"train": 5, "test": 4}
    assert facts["characters"] == {"train": 10, "test": 12}
    assert facts["majority_answer"] == "a"
    assert facts["majority"] == {"test": {"accuracy": 0.25}}
    assert facts["chance"]["test"]["accuracy"] == pytest.approx(0.25)
    assert facts["warnings"] == []
    assert splits["test"][0] == {"id": 5, "question": "t0?", "answer": "a"}


def test_answers_are_counted_as_they_are_compared(run: Callable[..., Prepared], tmp_path: Path) -> None:
    file = lines(
        tmp_path / "own.jsonl",
        *({"question": f"{n}?", "answer": a} for n, a in enumerate(["1,000", "1000.0", "1000", "7"])),
    )
    last = WHOLE | {"rule": "first", "train": 3}
    _, facts = run(file, answer="number", partition=last)
    assert facts["chance"]["test"]["accuracy"] == 0 and facts["majority_answer"] == "1000"
    assert not any("same answer" in warning for warning in facts["warnings"])
    _, facts = run(file, answer="number", compare="number", partition=last)
    assert any("same answer, '1,000'" in warning for warning in facts["warnings"])
    yes = lines(
        tmp_path / "yes.jsonl", *({"question": f"{n}?", "answer": a} for n, a in enumerate(["Yes", "yes", "no", "YES"]))
    )
    _, facts = run(yes, answer="yes_no", partition=last)
    assert (facts["majority_answer"], facts["majority"]) == ("yes", {"test": {"accuracy": 1.0}})
    towns = ["St. Louis", "St Louis", "Rome", "St. Louis."]
    file = lines(tmp_path / "town.jsonl", *({"question": f"{n}?", "answer": a} for n, a in enumerate(towns)))
    splits, facts = run(file, answer="text", partition=last)
    assert facts["majority"] == {"test": {"accuracy": 1.0}}
    assert facts["chance"]["test"]["accuracy"] == pytest.approx(2 / 3)
    assert facts["answer"] == {"kind": "text", "choices": None, "compare": "string", "cleanse": True}
    assert judge(" St Louis", "St. Louis", template="ft_token", form=Form(**facts["answer"])).correct
    assert splits["test"][0]["answer"] == "St. Louis."  # what the student learns is not cleansed


def test_few_are_drawn_first_then_some_are_held_out_and_the_test_never_changes(
    run: Callable[..., Prepared], tmp_path: Path
) -> None:
    file = own_file(tmp_path / "own.jsonl", "abcdefghij" * 3)
    whole, facts = run(file, heldout=0.1)
    assert facts["rows"] == {"train": 19, "heldout": 2, "test": 9}
    assert sorted(facts["majority"]) == ["heldout", "test"]
    drawn = []
    for seed in (1, 2):
        splits, facts = run(file, heldout=0.25, few={"examples": 8, "seed": seed})
        assert facts["rows"] == {"train": 6, "heldout": 2, "test": 9}
        assert facts["conditions"]["few"] == {"examples": 8, "seed": seed, "before": 21, "after": 8}
        assert splits["test"] == whole["test"]
        ids = sorted(row["id"] for name in ("train", "heldout") for row in splits[name])
        assert set(ids) <= {row["id"] for name in ("train", "heldout") for row in whole[name]}
        drawn.append(ids)
    assert drawn[0] != drawn[1]
    _, facts = run(file, few={"examples": 99, "seed": 1})
    assert facts["rows"]["train"] == 21
    assert facts["warnings"] == ["few.examples=99: there are only 21 training questions, all are used"]
    with pytest.raises(DataError, match="1 training questions are too few to set aside 50%"):
        run(file, few={"examples": 1, "seed": 1}, heldout=0.5)


def test_limits_are_the_same_for_every_run(run: Callable[..., Prepared], tmp_path: Path) -> None:
    file = own_file(tmp_path / "own.jsonl", "abcdefghij" * 3)
    whole, _ = run(file)
    splits, _ = run(file, dev_limit=4)
    assert len(splits["test"]) == 4 and splits["train"] == whole["train"]
    assert [row for row in whole["test"] if row in splits["test"]] == splits["test"]
    splits, facts = run(file, rows=3, heldout=0.2, few={"examples": 20, "seed": 5})
    assert facts["rows"] == {"train": 3, "heldout": 3, "test": 3}
    limited, facts = run(file, partition=WHOLE | {"limit": 5})
    assert facts["conditions"]["partition"] == {"rule": "random", "questions": 30, "train": 5, "test": 9}
    assert limited["test"] == whole["test"]


def test_a_sources_own_splits_are_kept_or_put_together(run: Callable[..., Prepared], tmp_path: Path) -> None:
    own_file(tmp_path / "train.jsonl", "abcdefg")
    lines(
        tmp_path / "held.jsonl",
        {"question": "x?", "answer": "x"},
        {"question": "y?", "answer": "y"},
        {"question": "z?", "answer": "z"},
    )
    both = {"train": "train", "test": "held"}
    splits, _ = run(tmp_path, splits=both)
    assert [row["question"] for row in splits["test"]] == ["x?", "y?", "z?"]
    splits, _ = run(tmp_path, splits=both, partition=WHOLE | {"rule": "random"})
    assert [row["id"] for row in splits["test"]] == [0, 3, 5]
    splits, facts = run(tmp_path / "train.jsonl", splits=both)  # one file has no other split
    assert facts["conditions"]["partition"] == {"rule": "random", "questions": 7, "train": 5, "test": 2}


def test_what_is_doubtful_is_said(run: Callable[..., Prepared], tmp_path: Path) -> None:
    own_file(tmp_path / "train.jsonl", "aaaa")
    lines(tmp_path / "test.jsonl", {"question": "2?", "answer": "a"}, {"question": "9?", "answer": "b"})
    _, facts = run(tmp_path, splits={"train": "train", "test": "test"}, heldout=0.25)
    assert facts["warnings"] == [
        "1 of 2 questions of test are questions of train too",
        "every training question has the same answer, 'a'",
    ]
    assert facts["shared_with_train"] == {"test": 1}


def test_a_partition_that_leaves_no_test_is_refused(run: Callable[..., Prepared], tmp_path: Path) -> None:
    file = own_file(tmp_path / "own.jsonl", "a")
    with pytest.raises(DataError, match="no test question"):
        run(file)
    with pytest.raises(DataError, match="first 7 questions are to be trained on, and there are 1"):
        run(file, partition=WHOLE | {"rule": "first", "train": 7})


def test_texts_of_any_kind_come_back_as_they_were(run: Callable[..., Prepared], tmp_path: Path) -> None:
    """Line ends inside a question, also those that only Unicode knows, don't part its line."""
    odd = 'a\nb\u2028c\x85d 猫 "q"'
    source = {
        "path": str(archive(tmp_path, "own", *({"question": f"{odd}{n}", "answer": "é"} for n in range(3)))),
        "key": "own",
    }
    splits, _ = run(source)
    assert sorted(row["question"] for part in splits.values() for row in part) == [f"{odd}{n}" for n in range(3)]


# Embedded tasks


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_embedded_tasks_are_prepared_like_all_others(run: Callable[..., Prepared], name: str) -> None:
    kinds = {"coin_flip": "yes_no", "last_letter": "text", "shuffled_objects": "choice", "arithmetic": "number"}
    letters = "ABC" if name == "shuffled_objects" else None
    splits, facts = run({"demo": name}, answer=kinds[name], choices=letters, generate=GENERATE, heldout=0.1)
    assert facts["rows"] == {"train": 18, "heldout": 2, "test": 10}
    assert all(row["facts"] for part in splits.values() for row in part)
    assert [row["id"] for row in splits["test"]] == list(range(20, 30))
    assert facts["shared_with_train"] == {"test": 0}


def test_an_unknown_embedded_task_is_told() -> None:
    with pytest.raises(DataError, match=r"no embedded reasoning task 'nli'\. There are: coin_flip"):
        read({"demo": "nli"}, generate=GENERATE)
