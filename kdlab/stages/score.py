"""Judge completions by their final answers: of a student on the test questions, of a teacher on those it was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.answers import Form, Judgement, bootstrap, constant, judge, summary
from kdlab.data.prompts import Style
from kdlab.stages.completions import Row, read_form, read_records, read_rows, template_of, write_rows
from kdlab.stages.questions import baselines, shares

INTERVAL_SEED = 0  # of the bootstrap: the same for every run
INTERVAL_DRAWS = 10_000
LEVEL = 0.95
CONSTANT = 0.95  # share of one answer among the predictions that is worth a warning


def score_answers(
    ctx: Context,
    *,
    completions: Path,
    questions: Path,
    rationales: Path | None = None,
    curated: Path | None = None,
    style: Mapping[str, Any] | None,
    parser: str,
    splits: Sequence[str],
    teacher_parser: str | None = None,
) -> None:
    """Write `scores.json` and `intervals.json` by split, and `samples.jsonl`, a row a question, for `kdlab samples`.

    style: of the completions; None: those of a teacher, parsed by the template that they name. Of several completions
    of a question the first is scored. accuracy and contains_answer, correct_format and complete are shares of the
    questions (evaluator.py); an interval is the bootstrap's over questions at LEVEL. rationales, curated: the teacher's
    completions and what became of them, to show beside the student's; teacher_parser: by which they were judged.

    Of a student also `baselines.json`: majority, chance and rows of the questions that it was asked. A teacher that
    answered a part of the test questions only gets no score there.
    """
    form = read_form(questions)
    own = style is not None
    file = completions / ("answers.json" if own else "completions.json")
    records = read_records(file)
    template = style["template"] if style is not None else template_of(file)
    comma = bool(style and Style(**style).natural_comma)
    scores: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    samples: list[Row] = []
    notes = _Teacher(rationales, curated, form, teacher_parser or parser) if rationales is not None else None
    for split in splits:
        found: list[Judgement] = []
        for row in read_rows(questions, split):
            told = records.get(row["id"])
            if not told:
                continue
            first = told[0]
            judged = judge(
                first["completion"],
                row["answer"],
                template=template,
                form=form,
                parser=parser,
                finish_reason=first["finish_reason"],
                natural_comma=comma,
            )
            found.append(judged)
            if own:
                samples.append(_sample(row, split, first, judged, notes))
        rows = read_rows(questions, split)
        if not own and split == "test" and 0 < len(found) < len(rows):
            ctx.warn(f"the teacher answered {len(found)} of {len(rows)} test questions: it gets no score there")
            continue
        if not found:
            continue
        scores[split] = {**summary(found)}
        low, high = bootstrap([one.correct for one in found], seed=INTERVAL_SEED, draws=INTERVAL_DRAWS, level=LEVEL)
        intervals[split] = {"accuracy": [low, high]}
        answer, share = constant([one.prediction for one in found])
        if own and share >= CONSTANT and len(found) > 1:
            shown = "nothing that can be read" if answer is None else repr(answer)
            ctx.warn(f"{100 * share:.0f} % of the {split} answers are {shown}: this is no reasoning")
    if notes is not None:
        samples += [notes.alone(row) for row in read_rows(questions, "train")]
    if own:
        asked = {split: [row for row in read_rows(questions, split) if records.get(row["id"])] for split in splits}
        train = shares(read_rows(questions, "train"), form)
        known = {split: shares(rows, form) for split, rows in asked.items() if train and rows}
        counts = {split: len(rows) for split, rows in asked.items()}
        write_json(ctx.out / "baselines.json", {**baselines(train, known), "rows": counts})
    write_json(ctx.out / "scores.json", scores)
    write_json(ctx.out / "intervals.json", intervals)
    write_rows(ctx.out, "samples", samples)
    ctx.facts["scores"] = scores


class _Teacher:
    """The teacher's rationales of each question, with what curation made of them."""

    def __init__(self, rationales: Path, curated: Path | None, form: Form, parser: str) -> None:
        file = rationales / "completions.json"
        self.records, self.template = read_records(file), template_of(file)
        self.form, self.parser = form, parser
        dropped = [] if curated is None else read_rows(curated, "dropped")
        self.why = {(row["id"], row["completion_index"]): row["why"] for row in dropped}

    def of(self, row: Mapping[str, Any]) -> list[Row]:
        return [self.entry(row, record) for record in self.records.get(row["id"], [])]

    def entry(self, row: Mapping[str, Any], record: Mapping[str, Any]) -> Row:
        judged = judge(
            record["completion"],
            row["answer"],
            template=self.template,
            form=self.form,
            parser=self.parser,
            finish_reason=record["finish_reason"],
        )
        return {
            "completion_index": record["completion_index"],
            "rationale": record.get("reasoning_completion") or "",
            "completion": record["completion"],
            "prediction": None if judged.prediction is None else str(judged.prediction),
            "correct": judged.correct,
            "why": self.why.get((row["id"], record["completion_index"])),
        }

    def alone(self, row: Mapping[str, Any]) -> Row:
        """A training question, which the student was not asked."""
        empty = dict.fromkeys(("text", "prediction", "correct", "contains_answer", "correct_format", "complete"))
        return {
            "id": row["id"],
            "split": "train",
            "question": row["question"],
            "answer": row["answer"],
            **empty,
            "teacher": self.of(row),
        }


def _sample(
    row: Mapping[str, Any], split: str, record: Mapping[str, Any], judged: Judgement, teacher: _Teacher | None
) -> Row:
    text = record["completion"]
    if record.get("reasoning_completion") is not None and record["reasoning_prompt"] != record["prompt"]:
        text = f"{record['reasoning_completion']} [...] {text}"
    return {
        "id": row["id"],
        "split": split,
        "question": row["question"],
        "answer": row["answer"],
        "text": text,
        "prediction": None if judged.prediction is None else str(judged.prediction),
        "correct": judged.correct,
        "contains_answer": judged.contains_answer,
        "correct_format": judged.correct_format,
        "complete": judged.complete,
        "teacher": [] if teacher is None else teacher.of(row),
    }
