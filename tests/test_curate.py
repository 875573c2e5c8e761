"""Which rationales a student learns from: each reason to leave one out, the report, and teachers that don't reason."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from cot import NUMBER, YES_NO, completion, completions, context, question, questions
from kdlab.config import Curation
from kdlab.errors import DataError, TrainingError
from kdlab.stages.completions import Row, read_rows
from kdlab.stages.curate import REASONS, curate
from lab import read

ONE = question(0, "yes")


@dataclass
class Curated:
    kept: list[Row]
    dropped: list[tuple[int, int, str]]
    report: dict[str, Any]
    facts: dict[str, Any]
    notes: list[str]
    warned: list[str]


def curated(
    folder: Path,
    records: list[Row],
    rows: list[Row] | None = None,
    *,
    form: dict[str, Any] = YES_NO,
    template: str = "zs_cot",
    **changes: Any,
) -> Curated:
    rows = rows or [ONE, question(1, "no")]
    ctx = context(folder, "curate")
    curate(
        ctx,
        rationales=completions(folder / "rationales", records, template=template),
        questions=questions(folder / "questions", form, train=rows, test=[question(99)]),
        curation=asdict(Curation(**changes)),
    )
    dropped = [(row["id"], row["completion_index"], row["why"]) for row in read_rows(ctx.out, "dropped")]
    report = read(ctx.out / "report.json")
    return Curated(read_rows(ctx.out, "train"), dropped, report, ctx.facts, ctx.notes, ctx.warned)


def test_a_right_rationale_is_kept_with_the_gold_answer(tmp_path: Path) -> None:
    found = curated(tmp_path, [completion(ONE, " Yes, it is.", reasoning_completion="  It is short.\n")])
    assert found.kept == [
        {"id": 0, "completion_index": 0, "question": ONE["question"], "rationale": "It is short.", "answer": "yes"}
    ]
    assert found.dropped == [] and found.report["dropped"] == {}


# why one is left out

CUT = {"reasoning_finish_reason": "length"}
WHY: list[tuple[str, dict[str, Any], dict[str, Any], str | None]] = [
    # its answer, changes of the record, curation, why
    (" yes.", {"finish_reason": "length"}, {"complete": True}, "incomplete"),
    (" yes.", CUT, {"complete": True}, "incomplete"),
    (" yes.", CUT, {}, None),
    (" yes.", {"finish_reason": None, "reasoning_finish_reason": None}, {"complete": True}, None),
    (" no.", CUT, {"complete": True}, "incomplete"),
    (" perhaps.", {}, {}, "unparsed"),
    (" perhaps.", {}, {"correct": False}, None),
    (" no.", {}, {}, "wrong"),
    (" no.", {}, {"correct": False}, None),
    (" no.", {"reasoning_completion": ""}, {}, "wrong"),
    (" yes.", {"reasoning_completion": " \n"}, {}, "short"),
    (" yes.", {"reasoning_completion": None}, {}, "short"),
    (" yes.", {"reasoning_completion": "one two"}, {"min_words": 3}, "short"),
    (" yes.", {"reasoning_completion": "one two three"}, {"min_words": 3}, None),
    (" yes.", {"reasoning_completion": "one two three"}, {"max_words": 3}, None),
    (" yes.", {"reasoning_completion": "one two three four"}, {"max_words": 3}, "long"),
    (" Of course: yes.", {}, {}, None),
    (" Of course: yes.", {}, {"parser": "strict"}, "unparsed"),
]


@pytest.mark.parametrize(("text", "changes", "curation", "why"), WHY)
def test_why_a_rationale_is_left_out(
    text: str, changes: dict[str, Any], curation: dict[str, Any], why: str | None, tmp_path: Path
) -> None:
    other = question(1, "no")
    good = completion(other, " no.", reasoning_completion="a b c")
    found = curated(tmp_path, [completion(ONE, text, **changes), good], **curation)
    assert found.dropped == ([] if why is None else [(0, 0, why)])
    assert [row["id"] for row in found.kept] == ([0, 1] if why is None else [1])
    assert found.report["dropped"] == ({} if why is None else {why: 1})
    assert why is None or why in REASONS


def test_repeated_rationales_of_a_question_count_once(tmp_path: Path) -> None:
    other = question(1, "yes")
    texts = ["It is easy.", " it IS\n easy. ", "It is easy!", "It is easy."]
    records = [completion(ONE, " yes", n, reasoning_completion=text) for n, text in enumerate(texts)]
    records.append(completion(other, " yes", reasoning_completion="It is easy."))
    rows = [ONE, other, question(2, "no")]
    found = curated(tmp_path, records, rows)
    assert found.dropped == [(0, 1, "duplicate"), (0, 3, "duplicate")]
    assert [(row["id"], row["completion_index"]) for row in found.kept] == [(0, 0), (0, 2), (1, 0)]
    assert curated(tmp_path, records, rows, duplicates=True).dropped == []


def test_what_is_left_out_uses_up_nothing(tmp_path: Path) -> None:
    """A wrong rationale neither makes a right one a duplicate, nor counts among those of its question."""
    same = {"reasoning_completion": "It is easy."}
    records = [
        completion(ONE, " no", 0, **same),
        completion(ONE, " yes", 1, **same),
        completion(ONE, " yes", 2, **same),
        completion(ONE, " yes", 3),
        completion(ONE, " yes", 4),
    ]
    found = curated(tmp_path, records, per_question=2)
    assert [row["completion_index"] for row in found.kept] == [1, 3]
    assert found.dropped == [(0, 0, "wrong"), (0, 2, "duplicate"), (0, 4, "surplus")]


def test_a_wrong_rationale_that_is_kept_ends_in_the_gold_answer(tmp_path: Path) -> None:
    (row,) = curated(tmp_path, [completion(ONE, " no")], correct=False).kept
    assert row["answer"] == "yes"


def test_answers_are_read_by_the_template_of_the_completions(tmp_path: Path) -> None:
    row = question(0, "7")
    text = " 3 and 4 are 7. The answer is 7, or 8."
    kept = curated(tmp_path, [completion(row, text)], [row], form=NUMBER, template="fs_cot").kept
    assert [one["answer"] for one in kept] == ["7"]
    with pytest.raises(TrainingError, match="1 wrong"):
        curated(tmp_path, [completion(row, text)], [row], form=NUMBER, template="zs_cot")


@pytest.mark.parametrize(("template", "mark"), [("fs_cot", "The answer is"), ("ft_cot_token", "-->")])
def test_one_text_may_hold_rationale_and_answer(template: str, mark: str, tmp_path: Path) -> None:
    """As few-shot completions of the official code do."""
    record = completion(ONE, f" It is short. {mark} yes.", reasoning_completion=None)
    (row,) = curated(tmp_path, [record], template=template).kept
    assert (row["rationale"], row["answer"]) == ("It is short.", "yes")


# the report


def test_the_report_counts(tmp_path: Path) -> None:
    rows = [question(0, "yes"), question(1, "no"), question(2, "no"), question(3, "yes")]
    records = [
        completion(rows[0], " yes", 0),
        completion(rows[0], " yes", 1),
        completion(rows[1], " yes", 0),
        completion(rows[1], " hm", 1),
        completion(rows[2], " no", 0, reasoning_completion=""),
        completion(question(99), " yes", 0),  # of test: nobody learns from it
    ]
    found = curated(tmp_path, records, rows)
    assert found.report == {
        "asked": 4,
        "rationales": 5,
        "kept": 2,
        "dropped": {"short": 1, "unparsed": 1, "wrong": 1},
        "questions": 1,
        "accuracy": 3 / 5,  # of question 2 the answer is right, though nothing is kept
        "constant": {"answer": "yes", "share": 3 / 5},
    }
    assert found.facts == {**found.report, "rows": {"train": 2}}
    assert found.notes == ["      kept 2 of 5 rationales; dropped: 1 short, 1 unparsed, 1 wrong"]
    assert found.warned == []


def test_nothing_left_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        curated(tmp_path, [completion(ONE, " no"), completion(ONE, " hm", 1)])
    assert "of 2, 1 unparsed, 1 wrong" in str(caught.value) and "method.samples" in str(caught.value)
    with pytest.raises(TrainingError, match="of 0, there are none"):
        curated(tmp_path, [completion(question(99), " yes")])


# a teacher that does not reason


def answers(texts: list[str]) -> tuple[list[Row], list[Row]]:
    rows = [question(n, "yes" if n % 2 else "no") for n in range(len(texts))]
    return [completion(row, text) for row, text in zip(rows, texts, strict=True)], rows


def test_one_answer_to_nearly_everything_is_warned_of(tmp_path: Path) -> None:
    records, rows = answers([" yes"] * 19 + [" no"])
    found = curated(tmp_path, records, rows)
    assert found.warned == ["the teacher answers 'yes' to 95 % of the questions"]
    assert found.report["constant"] == {"answer": "yes", "share": 0.95}
    with pytest.raises(TrainingError) as caught:
        curated(tmp_path, records, rows, on_constant="stop")
    assert "it does not reason" in str(caught.value) and "on_constant=warn" in str(caught.value)
    records, rows = answers([" yes"] * 18 + [" no"] * 2)
    assert curated(tmp_path, records, rows, on_constant="stop").warned == []


def test_a_teacher_that_never_answers_is_one_too(tmp_path: Path) -> None:
    records, rows = answers([" hm"] * 3)
    found = curated(tmp_path, records, rows, correct=False)
    assert found.warned == ["the teacher answers nothing that can be read to 100 % of the questions"]
    assert found.report["constant"] == {"answer": None, "share": 1.0}


def test_one_right_answer_to_all_is_no_constant(tmp_path: Path) -> None:
    rows = [question(n) for n in range(4)]
    assert curated(tmp_path, [completion(row, " yes") for row in rows], rows, on_constant="stop").warned == []


def test_completions_without_rationales_are_told_from_bad_ones(tmp_path: Path) -> None:
    bare = {key: value for key, value in completion(ONE, " yes").items() if not key.startswith("reasoning")}
    with pytest.raises(DataError, match="hold answers and no rationales"):
        curated(tmp_path, [bare], template="zs")


def test_an_arrow_in_a_rationale_is_told(tmp_path: Path) -> None:
    found = curated(tmp_path, [completion(ONE, " yes.", reasoning_completion="So 3 --> 4.")])
    assert len(found.kept) == 1 and any("1 kept rationales hold '-->'" in text for text in found.warned)
