"""Which of the teacher's rationales the student learns from, and why the others are left out.

Source: Ho et al. 2023, section 3.2; completion_dataset.py:149-165: a rationale is kept if its cleansed prediction
equals the cleansed gold answer. Its reasoning is not looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.answers import constant, judge
from kdlab.data.prompts import Style, answer_prefix
from kdlab.errors import DataError, TrainingError
from kdlab.stages.completions import Row, read_form, read_records, read_rows, template_of, write_rows

CONSTANT = 0.95  # share of one answer among all predictions that makes a teacher degenerate
ARROW = "-->"  # what a target of ft_cot_token has before its answer
REASONS = (
    "incomplete",  # cut at max_tokens, in either step
    "unparsed",  # no answer in it
    "wrong",
    "short",
    "long",
    "duplicate",
    "surplus",  # beyond per_question
)


def curate(ctx: Context, *, rationales: Path, questions: Path, curation: Mapping[str, Any]) -> None:
    """Write `train.jsonl` (kept: id, completion_index, question, rationale, gold answer), `dropped.jsonl` (id,
    completion_index, why) and `report.json`.

    curation: the fields of `config.Curation`. Why a rationale is dropped is the first of REASONS that holds. In the
    report, and in the facts: asked (questions), rationales, kept, dropped by reason, questions (with a kept rationale),
    accuracy (of all rationales), and constant (the most frequent answer and its share).

    Raises TrainingError if nothing is left to learn from, or the teacher is degenerate and `on_constant` says stop.
    """
    rows = {row["id"]: row for row in read_rows(questions, "train")}
    file = rationales / "completions.json"
    records, template = read_records(file), template_of(file)
    form, end = read_form(questions), answer_prefix(Style(template=template))
    kept: list[Row] = []
    dropped: list[Row] = []
    predictions: list[Any] = []
    right = 0
    for number, row in rows.items():
        seen: set[str] = set()
        taken = 0
        for record in records.get(number, []):
            found = judge(
                record["completion"],
                row["answer"],
                template=template,
                form=form,
                parser=curation["parser"],
                finish_reason=record["finish_reason"],
            )
            predictions.append(found.prediction)
            right += found.correct
            rationale = _rationale(record, end)
            why = _why(record, found.prediction, found.correct, rationale, seen, taken, curation)
            place = {"id": number, "completion_index": record["completion_index"]}
            if why is not None:
                dropped.append({**place, "why": why})
                continue
            seen.add(_plain(rationale))
            taken += 1
            kept.append({**place, "question": row["question"], "rationale": rationale, "answer": row["answer"]})
    answer, share = constant(predictions)
    report: dict[str, Any] = {
        "asked": len(rows),
        "rationales": len(predictions),
        "kept": len(kept),
        "dropped": dict(sorted(Counter(row["why"] for row in dropped).items())),
        "questions": len({row["id"] for row in kept}),
        "accuracy": right / len(predictions) if predictions else 0.0,
        "constant": {"answer": None if answer is None else str(answer), "share": share},
    }
    golds = Counter(str(row["answer"]) for row in rows.values())
    if share >= CONSTANT and len(predictions) > 1 and len(golds) > 1:
        _degenerate(ctx, report, curation["on_constant"])
    if not kept and template == "zs":
        raise DataError(
            "These completions hold answers and no rationales: they were asked for without a step by step.",
            where=f"stage '{ctx.stage}'",
            fix="Choose completions of zero-shot-CoT (rationales.key=zs_cot), or train on answers (method=ft_answer).",
        )
    if not kept:
        told = ", ".join(f"{count} {why}" for why, count in report["dropped"].items()) or "there are none"
        raise TrainingError(
            f"no rationale is left to learn from: of {len(predictions)}, {told}",
            where=f"stage '{ctx.stage}'",
            fix="ask a better teacher (rationales=), more often (method.samples), or keep more (method.curation)",
        )
    arrows = sum(ARROW in row["rationale"] for row in kept)
    if arrows:
        ctx.warn(
            f"{arrows} kept rationales hold '{ARROW}': behind the first one the official parser reads the answer "
            "(method.answer.parser=strict reads behind the last)"
        )
    write_rows(ctx.out, "train", kept)
    write_rows(ctx.out, "dropped", dropped)
    write_json(ctx.out / "report.json", report)
    ctx.facts.update({**report, "rows": {"train": len(kept)}})
    lost = ", ".join(f"{count} {why}" for why, count in report["dropped"].items())
    ctx.note(f"      kept {len(kept)} of {len(predictions)} rationales" + (f"; dropped: {lost}" if lost else ""))


def _rationale(record: Mapping[str, Any], end: str | None) -> str:
    """What was written before the answer; where one text holds both (few-shot), what stands before `end`."""
    written = record.get("reasoning_completion")
    if written is None and end is not None:
        written = record["completion"].partition(end)[0]
    return (written or "").strip()


def _why(
    record: Mapping[str, Any],
    prediction: Any,
    correct: bool,
    rationale: str,
    seen: set[str],
    taken: int,
    curation: Mapping[str, Any],
) -> str | None:
    words = len(rationale.split())
    if curation["complete"] and "length" in (record["finish_reason"], record.get("reasoning_finish_reason")):
        return "incomplete"
    if curation["correct"] and prediction is None:
        return "unparsed"
    if curation["correct"] and not correct:
        return "wrong"
    if words < curation["min_words"]:
        return "short"
    if curation["max_words"] is not None and words > curation["max_words"]:
        return "long"
    if not curation["duplicates"] and _plain(rationale) in seen:
        return "duplicate"
    if curation["per_question"] is not None and taken >= curation["per_question"]:
        return "surplus"
    return None


def _plain(rationale: str) -> str:
    """What two rationales must share to count as one: all but case and blanks."""
    return " ".join(rationale.lower().split())


def _degenerate(ctx: Context, report: Mapping[str, Any], on_constant: str) -> None:
    found = report["constant"]
    answer = "nothing that can be read" if found["answer"] is None else repr(found["answer"])
    message = f"the teacher answers {answer} to {100 * found['share']:.0f} % of the questions"
    if on_constant == "warn":
        ctx.warn(message)
        return
    raise TrainingError(
        f"{message}: it does not reason",
        where=f"stage '{ctx.stage}'",
        fix="look at completions.json of the stage 'rationales', ask another teacher, or set "
        "method.curation.on_constant=warn",
    )
