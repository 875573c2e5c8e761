"""The published transcripts of a 175B teacher (shared/reasoning): every file is read, and fits its data set.

Nine of the paper's twelve tasks are there: svamp, date_understanding and last_letter_concatenation are not run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import DataError
from kdlab.rationales.recorded import FIELDS, completion_file, prediction_template, read, select

pytestmark = pytest.mark.real

COUNTS = {  # recorded questions
    "addsub": 395,
    "aqua": 254,
    "coin_flip": 500,
    "commonsense_qa": 1221,
    "gsm8k": 1319,
    "multiarith": 600,
    "single_eq": 508,
    "strategy_qa": 2290,
    "tracking_shuffled_objects": 750,
}


def questions(shared: Path, task: str) -> list[dict[str, Any]]:
    rows = json.loads((shared / "reasoning" / "dataset" / f"{task}.json").read_text(encoding="utf-8"))["data"]
    return [{"id": row["sample_index"], "question": row["question"]} for row in rows]


@pytest.mark.parametrize("key", ["zs", "zs_cot"])
@pytest.mark.parametrize("task", COUNTS)
def test_every_transcript_fits_its_questions(shared: Path, task: str, key: str) -> None:
    file = completion_file(shared / "reasoning", "text-davinci-002", key, task)
    assert prediction_template(file) == key
    records = read(file)
    assert len(records) == COUNTS[task]
    for rows in records.values():
        assert [row["completion_index"] for row in rows] == [0]
        assert tuple(rows[0]) == FIELDS and rows[0]["finish_reason"] is None
        assert isinstance(rows[0]["reasoning_completion"], str if key == "zs_cot" else type(None))
    taken = select(records, questions(shared, task), 1)
    assert len(taken.records) == COUNTS[task] and not taken.short


def test_what_is_absent_is_said_with_what_there_is(shared: Path) -> None:
    with pytest.raises(DataError, match=r"no completions for 'svamp'. It has: addsub, aqua, coin_flip, "):
        completion_file(shared / "reasoning", "text-davinci-002", "zs_cot", "svamp")
    with pytest.raises(DataError, match=r"There are: B_text-davinci-002__C_zs, B_text-davinci-002__C_zs_cot\."):
        completion_file(shared / "reasoning", "text-davinci-002", "zs_cot_t70_8aug", "multiarith")


def test_completions_of_another_task_are_refused(shared: Path) -> None:
    records = read(completion_file(shared / "reasoning", "text-davinci-002", "zs_cot", "addsub"))
    with pytest.raises(DataError, match="answers another question"):
        select(records, questions(shared, "multiarith"), 1)
