"""Questions and completions as files: JSONL rows, and the layout of reasoning-teacher's CompletionDataset.

A folder of completions that kdlab wrote can be read back with `rationales=recorded`, and by the official code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.context import Context
from kdlab.data.answers import Form
from kdlab.data.prompts import is_exemplar

Row = dict[str, Any]  # id, question, answer; of embedded tasks facts
Records = dict[int, list[Row]]  # by the question's id, in the order of completion_index


def read_rows(folder: Path, name: str) -> list[Row]:
    """The rows of `folder/name.jsonl`; none where there is no such file."""
    file = folder / f"{name}.jsonl"
    if not file.exists():
        return []
    with open(file, encoding="utf-8") as lines:  # `str.splitlines` would also split at U+2028 inside of a text
        return [json.loads(line) for line in lines]


def asked_rows(ctx: Context, questions: Path, exemplars: Sequence[str], *, overlap: str) -> list[Row]:
    """The test questions without those that are exemplars, unless overlap is "keep"; a warning counts them."""
    rows = read_rows(questions, "test")
    both = {row["id"] for row in rows if is_exemplar(row["question"], exemplars)}
    if both:
        what = "left out" if overlap == "exclude" else "asked all the same"
        ctx.warn(f"{len(both)} of {len(rows)} test questions are exemplars of the prompt: {what}")
    return [row for row in rows if overlap == "keep" or row["id"] not in both]


def read_form(folder: Path) -> Form:
    """What an answer is, as the questions of this folder say."""
    return Form(**json.loads((folder / "facts.json").read_text(encoding="utf-8"))["answer"])


def write_rows(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_records(file: Path) -> Records:
    """The completions that a stage wrote."""
    data = json.loads(file.read_text(encoding="utf-8"))["data"]
    return {int(number): records for number, records in data.items()}


def write_records(
    file: Path, records: Records, *, model: str, task_key: str, completion_key: str, template: str
) -> None:
    """template: by which the completions are parsed."""
    metadata = {
        "base_model": model,
        "dataset_key": task_key,
        "completion_key": completion_key,
        "prediction_template": template,
        "finetune_key": None,
        "train_key": None,
        "epoch": None,
    }
    content = {"metadata": metadata, "data": {str(number): records[number] for number in sorted(records)}}
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def record(
    row: Mapping[str, Any],
    index: int,
    *,
    prompt: str,
    completion: str,
    finish_reason: str | None,
    reasoning_prompt: str | None = None,
    reasoning: str | None = None,
    reasoning_finish_reason: str | None = None,
) -> Row:
    """One completion of a question; with `reasoning`, what came before the answer was asked for."""
    found: Row = {
        "sample_index": row["id"],
        "completion_index": index,
        "question": row["question"],
        "answer": row["answer"],
    }
    if reasoning is not None:
        found |= {
            "reasoning_prompt": reasoning_prompt,
            "reasoning_completion": reasoning,
            "reasoning_finish_reason": reasoning_finish_reason,
        }
    return {**found, "prompt": prompt, "completion": completion, "finish_reason": finish_reason}


def template_of(file: Path) -> str:
    """By which the completions are parsed."""
    return str(json.loads(file.read_text(encoding="utf-8"))["metadata"]["prediction_template"])
