"""Let a teacher write rationales: by rules, from recorded completions, a model on this machine, or an endpoint.

Zero-shot-CoT asks twice: for a rationale ("Let's think step by step."), then with it for the answer. Few-shot-CoT asks
once, after exemplars. Source: Kojima et al. 2022; Ho et al. 2023, section 3.1; papers.md 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.context import Context
from kdlab.data.prompts import Style, answer_prefix, prompt, read_exemplars
from kdlab.errors import DataError
from kdlab.rationales import recorded, rules
from kdlab.rationales.completion import Request
from kdlab.stages.asking import Asker, asking, two_steps
from kdlab.stages.completions import Records, Row, read_rows, record, write_records


def rationalise(
    ctx: Context,
    *,
    questions: Path,
    writer: Mapping[str, Any],
    task_key: str,
    samples: int,
    temperature: float,
    splits: Sequence[str],
    seed: int,
    strip_fields: bool,
    exemplars: Mapping[str, Any] | None = None,
) -> None:
    """Write `completions.json`: `samples` completions of each question of `splits`, in CompletionDataset's layout.

    writer: kind, and what it needs (see `kdlab.methods.reasoning`). Facts: rows (questions by split), rationales,
    teacher (model, key and template: of recorded completions as their file names them), and
    of an endpoint requests, prompt_tokens, completion_tokens and usd: what the answers cost when they were asked for.
    """
    rows = {split: read_rows(questions, split) for split in splits}
    asked = [row for split in splits for row in rows[split]]
    kind = writer["kind"]
    template, model, key = "zs_cot", kind, "zs_cot"
    if kind == "rules":
        records = _by_rules(asked, samples, seed=seed, error_rate=writer["error_rate"])
    elif kind == "recorded":
        file = Path(writer["path"])
        chosen = recorded.select(recorded.read(file), asked, samples)
        records = {row["id"]: [] for row in asked}
        for one in chosen.records:
            records[one["sample_index"]].append({name: _writable(value) for name, value in one.items()})
        template = recorded.prediction_template(file)
        model, key = recorded.origin(file)
        for split, part in rows.items():
            missing = len({row["id"] for row in part} & set(chosen.missing))
            if missing:
                ctx.warn(f"{missing} of {len(part)} {split} questions have no recorded completion")
        if samples > 1 and all(len(found) <= 1 for found in records.values()):
            raise DataError(
                f"{samples} rationales of each question are wanted, and no question has more than one recorded.",
                where=str(file),
                fix="Choose completions of a key with several (rationales.key=zs_cot_t70_8aug), or method.samples=1.",
            )
        if chosen.short:
            have = "question has" if len(chosen.short) == 1 else "questions have"
            ctx.warn(f"{len(chosen.short)} {have} fewer than {samples} recorded completions")
    else:
        style = Style(template=writer["prompt"], strip_fields=strip_fields)
        shots = read_exemplars(exemplars.get("path"), exemplars["key"]) if exemplars else []
        template, key = style.template, style.template
        if temperature:
            key += f"_t{100 * temperature:02.0f}" + (f"_{samples}aug" if samples > 1 else "")
        model = str(writer.get("model") or writer.get("id") or Path(writer["path"]).name)
        options = {"max_tokens": writer["max_tokens"], "temperature": temperature, "stop": writer["stop"]}
        with asking(ctx, writer, **options, seed=seed) as asker:
            records = _ask(asked, style, shots, asker, samples=samples)
            ctx.facts.update(asker.facts())
    write_records(
        ctx.out / "completions.json", records, model=model, task_key=task_key, completion_key=key, template=template
    )
    ctx.facts["rows"] = {split: len(found) for split, found in rows.items()}
    ctx.facts["teacher"] = {"model": model, "key": key, "template": template}
    ctx.facts["rationales"] = sum(len(found) for found in records.values())
    if not ctx.facts["rationales"]:
        raise DataError("The teacher wrote nothing.", where=f"stage '{ctx.stage}'")


def _writable(value: Any) -> Any:
    """JSON may hold half of a surrogate pair, which no file in UTF-8 can."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _by_rules(rows: Sequence[Row], samples: int, *, seed: int, error_rate: float) -> Records:
    if rows and "facts" not in rows[0]:
        raise DataError(
            "Rules write rationales for the embedded tasks only.",
            where="rationales",
            fix="Choose rationales=recorded, openai or local.",
        )
    return {
        row["id"]: [rules.record(row, index, seed=seed, error_rate=error_rate) for index in range(samples)]
        for row in rows
    }


def _ask(rows: Sequence[Row], style: Style, shots: Sequence[str], asker: Asker, *, samples: int) -> Records:
    """Ask for `samples` completions of each question; all first steps before all second ones."""
    pairs = [(row, index) for row in rows for index in range(samples)]
    if style.template != "fs_cot":
        return two_steps(pairs, style, asker, asker.known)
    records: Records = {row["id"]: [] for row in rows}
    asked = [prompt(row["question"], style, exemplars=shots) for row, _ in pairs]
    found = asker([Request(text, index) for text, (_, index) in zip(asked, pairs, strict=True)])
    end = answer_prefix(style)
    assert end is not None
    for (row, index), text, one in zip(pairs, asked, found, strict=True):
        records[row["id"]].append(
            record(
                row,
                index,
                prompt=text,
                completion=one.text,
                finish_reason=one.finish_reason,
                reasoning_prompt=text,
                reasoning=one.text.partition(end)[0],
                reasoning_finish_reason=one.finish_reason,
            )
        )
    return records
