"""Completions become scores, intervals and samples: every number counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cot import NUMBER, YES_NO, Told, completion, completions, context, question, questions
from kdlab.data.prompts import Style
from kdlab.stages.completions import Row, read_rows, write_rows
from kdlab.stages.score import score_answers
from lab import read

TOKEN = asdict(Style(template="ft_cot_token"))
ROWS = [question(10, "yes"), question(11, "no"), question(12, "no"), question(13, "yes")]
TEXTS = [
    (" Easy. --> yes", "stop"),  # right
    (" no, hard. --> yes", "length"),  # wrong: only what stands behind the arrow counts
    (" yes or no", "stop"),  # no arrow: the last candidate, right
    (" Nobody knows.", "length"),  # no answer
]


def answered(row: Row, text: str, finish_reason: str | None = "stop", **more: Any) -> Row:
    """A record of a student, which is asked once."""
    found = completion(row, text, finish_reason=finish_reason, prompt=f"{row['question']} ###", **more)
    return {name: value for name, value in found.items() if not name.startswith("reasoning")}


def scored(folder: Path, records: Sequence[Row], rows: Sequence[Row] = ROWS, **changes: Any) -> Told:
    """The student's score stage; style=None makes it the teacher's."""
    style = changes.get("style", TOKEN)
    name = "completions" if style is None else "answers"
    ctx = context(folder, f"{'teacher' if style is None else 'student'}_scores")
    settings: dict[str, Any] = {"style": TOKEN, "parser": "official", "splits": ["test"]}
    template, form = changes.pop("template", "zs_cot"), changes.pop("form", YES_NO)
    score_answers(
        ctx,
        completions=completions(folder / "completions", records, name=name, template=template),
        questions=changes.pop("questions", None) or questions(folder / "questions", form, test=rows),
        **(settings | changes),
    )
    return ctx


def student(folder: Path, **changes: Any) -> Told:
    records = [answered(row, *given) for row, given in zip(ROWS, TEXTS, strict=True)]
    return scored(folder, records, **changes)


def test_the_scores_of_four_answers(tmp_path: Path) -> None:
    ctx = student(tmp_path)
    scores = {"accuracy": 2 / 4, "contains_answer": 2 / 4, "correct_format": 2 / 4, "complete": 2 / 4}
    assert read(ctx.out / "scores.json") == {"test": scores} == ctx.facts["scores"]
    low, high = read(ctx.out / "intervals.json")["test"]["accuracy"]
    assert (low, high) == (0.0, 1.0)  # of four questions, two right: P(none) = P(all) = 1/16
    assert ctx.warned == []


def test_the_interval_shrinks_with_more_questions(tmp_path: Path) -> None:
    rows = [question(n, "yes" if n % 2 else "no") for n in range(400)]
    ctx = scored(tmp_path, [answered(row, "--> yes" if row["id"] < 200 else "--> no") for row in rows], rows)
    low, high = read(ctx.out / "intervals.json")["test"]["accuracy"]
    assert 0.5 - 0.055 < low < 0.5 - 0.045 and 0.5 + 0.045 < high < 0.5 + 0.055  # 1.96 * sqrt(1/4 / 400) = 0.049


def test_a_sample_tells_all_of_one_answer(tmp_path: Path) -> None:
    rows = read_rows(student(tmp_path).out, "samples")
    assert [row["id"] for row in rows] == [10, 11, 12, 13]
    assert rows[1] == {
        "id": 11,
        "split": "test",
        "question": ROWS[1]["question"],
        "answer": "no",
        "text": " no, hard. --> yes",
        "prediction": "yes",
        "correct": False,
        "contains_answer": False,
        "correct_format": True,
        "complete": False,
        "teacher": [],
    }
    assert [row["prediction"] for row in rows] == ["yes", "yes", "no", None]
    assert [row["correct_format"] for row in rows] == [True, True, False, False]


def test_the_parser_is_chosen(tmp_path: Path) -> None:
    ctx = student(tmp_path, parser="strict")
    assert [row["prediction"] for row in read_rows(ctx.out, "samples")] == ["yes", "yes", None, None]
    assert ctx.facts["scores"]["test"]["accuracy"] == 1 / 4


def test_numbers_are_compared_as_the_task_says(tmp_path: Path) -> None:
    row = question(1, "18")
    records = [answered(row, "9 + 9 --> 18.0")]
    assert scored(tmp_path, records, [row], form=NUMBER).facts["scores"]["test"]["accuracy"] == 0
    same = scored(tmp_path, records, [row], form={**NUMBER, "compare": "number"})
    assert same.facts["scores"]["test"]["accuracy"] == 1


@pytest.mark.parametrize(("comma", "prediction"), [(False, "7"), (True, "8")])
def test_the_comma_of_the_sentence_is_the_styles(comma: bool, prediction: str, tmp_path: Path) -> None:
    row = question(1, "7")
    style = asdict(Style(template="ft_cot_natural", natural_comma=comma))
    ctx = scored(tmp_path, [answered(row, "Therefore the answer is 7, not 8")], [row], style=style, form=NUMBER)
    assert read_rows(ctx.out, "samples")[0]["prediction"] == prediction


def test_two_steps_are_shown_as_one_text(tmp_path: Path) -> None:
    style = asdict(Style(template="zs_cot"))
    record = completion(ROWS[0], " yes.", reasoning_completion=" It is short.")
    (row,) = read_rows(scored(tmp_path, [record], [ROWS[0]], style=style).out, "samples")
    assert row["text"] == " It is short. [...]  yes." and row["correct"]


def test_text_that_no_line_may_hold_survives(tmp_path: Path) -> None:
    text = "one\u2028two\r\nthree\x85\U0001f600 --> yes"
    (row,) = read_rows(scored(tmp_path, [answered(ROWS[0], text)], [ROWS[0]]).out, "samples")
    assert row["text"] == text and row["correct"]


# constant answers


def test_a_student_with_one_answer_is_warned_of(tmp_path: Path) -> None:
    ctx = scored(tmp_path, [answered(row, "--> yes") for row in ROWS])
    assert ctx.warned == ["100 % of the test answers are 'yes': this is no reasoning"]
    ctx = scored(tmp_path, [answered(row, "hm") for row in ROWS])
    assert ctx.warned == ["100 % of the test answers are nothing that can be read: this is no reasoning"]


def test_one_question_and_a_teacher_are_not(tmp_path: Path) -> None:
    assert scored(tmp_path, [answered(ROWS[0], "--> yes")], ROWS[:1]).warned == []
    assert scored(tmp_path, [completion(row, " yes") for row in ROWS], style=None).warned == []


# teachers

TRAIN = [question(0, "yes"), question(1, "no"), question(2, "no")]
ASKED = [
    completion(TRAIN[0], " yes.", 0),
    completion(TRAIN[0], " no.", 1),
    completion(TRAIN[1], " yes.", 0),
    completion(TRAIN[1], " no.", 1),
    completion(ROWS[0], " yes.", 0),
]


def test_of_a_teacher_the_first_rationale_of_each_question_is_scored(tmp_path: Path) -> None:
    both = questions(tmp_path / "both", train=TRAIN, test=ROWS)
    whole = [*ASKED, *(completion(row, " yes.", 0) for row in ROWS[1:])]
    ctx = scored(tmp_path, whole, style=None, splits=["test", "train"], questions=both)
    scores = read(ctx.out / "scores.json")
    right = sum(row["answer"] == "yes" for row in ROWS) / len(ROWS)
    assert {split: found["accuracy"] for split, found in scores.items()} == {"test": right, "train": 1 / 2}
    assert read_rows(ctx.out, "samples") == [] and not (ctx.out / "baselines.json").exists()


def test_a_teacher_that_answered_a_part_of_the_test_gets_no_score_there(tmp_path: Path) -> None:
    both = questions(tmp_path / "both", train=TRAIN, test=ROWS)
    ctx = scored(tmp_path, ASKED, style=None, splits=["test", "train"], questions=both)
    assert set(read(ctx.out / "scores.json")) == {"train"}
    assert ctx.warned == [f"the teacher answered 1 of {len(ROWS)} test questions: it gets no score there"]


def test_baselines_are_of_the_questions_that_were_asked(tmp_path: Path) -> None:
    test = [question(10, "yes"), question(11, "no"), question(12, "no")]
    both = questions(tmp_path / "both", train=TRAIN, test=test)  # train: one yes, two no
    ctx = scored(tmp_path, [answered(row, "--> no") for row in test[:2]], questions=both)
    assert read(ctx.out / "baselines.json") == {
        "majority": {"test": {"accuracy": 0.5}},
        "chance": {"test": {"accuracy": pytest.approx(1 / 3 * 1 / 2 + 2 / 3 * 1 / 2)}},
        "rows": {"test": 2},
    }


def test_a_split_that_it_was_not_asked_has_no_score(tmp_path: Path) -> None:
    both = questions(tmp_path / "both", train=TRAIN, test=ROWS)
    ctx = scored(tmp_path, ASKED[:4], style=None, splits=["test", "train"], questions=both)
    assert set(read(ctx.out / "scores.json")) == set(read(ctx.out / "intervals.json")) == {"train"}


def test_a_teacher_is_read_by_the_template_of_its_completions(tmp_path: Path) -> None:
    row = question(1, "7")
    records = [completion(row, "3 + 4 = 7. The answer is 7.")]
    for template, accuracy in (("fs_cot", 1.0), ("zs_cot", 0.0)):
        ctx = scored(tmp_path, records, [row], style=None, template=template, form=NUMBER)
        assert ctx.facts["scores"]["test"]["accuracy"] == accuracy


def test_the_teacher_stands_beside_the_student(tmp_path: Path) -> None:
    both = questions(tmp_path / "both", train=TRAIN, test=ROWS[:2])
    curated = tmp_path / "curated"
    curated.mkdir()
    dropped = [{"id": 0, "completion_index": 1, "why": "wrong"}, {"id": 1, "completion_index": 0, "why": "wrong"}]
    write_rows(curated, "dropped", dropped)
    ctx = scored(
        tmp_path,
        [answered(row, "--> yes") for row in ROWS[:2]],
        questions=both,
        rationales=completions(tmp_path / "rationales", ASKED),
        curated=curated,
    )
    rows = read_rows(ctx.out, "samples")
    assert [(row["split"], row["id"], len(row["teacher"])) for row in rows] == [
        *(("test", 10, 1), ("test", 11, 0)),
        *(("train", 0, 2), ("train", 1, 2), ("train", 2, 0)),
    ]
    alone = rows[2]
    assert all(alone[name] is None for name in ("text", "prediction", "correct", "correct_format", "complete"))
    assert alone["teacher"] == [
        {
            "completion_index": 0,
            "rationale": " Thought 0 of 0.",
            "completion": " yes.",
            "prediction": "yes",
            "correct": True,
            "why": None,
        },
        {
            "completion_index": 1,
            "rationale": " Thought 1 of 0.",
            "completion": " no.",
            "prediction": "no",
            "correct": False,
            "why": "wrong",
        },
    ]


def test_the_teacher_is_read_by_the_parser_that_curated_it(tmp_path: Path) -> None:
    """Else a rationale that was kept could be shown as wrong."""
    both = questions(tmp_path / "both", train=TRAIN[:1], test=ROWS[:1])
    record = completion(TRAIN[0], " I would say yes.")
    for parser, correct in (("official", True), ("strict", False)):
        ctx = scored(
            tmp_path,
            [answered(ROWS[0], "--> yes")],
            questions=both,
            rationales=completions(tmp_path / "rationales", [record]),
            teacher_parser=parser,
        )
        assert read_rows(ctx.out, "samples")[1]["teacher"][0]["correct"] is correct
