"""A student behind an OpenAI-compatible endpoint: fine-tuned through its API, and asked there, as in the paper.

Source: Ho et al. 2023, section 4.1 (GPT-3 students); reasoning-teacher src/openai_utils; papers.md 2.2. A target ends
in " END", at which an answer stops; no hyper-parameter is sent unless the user gives epochs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdlab.artifacts import read_json, write_json
from kdlab.context import Context
from kdlab.data.prompts import Style, fit_exemplars, prompt, read_exemplars, target
from kdlab.errors import DataError
from kdlab.rationales.completion import Completion, Request, address
from kdlab.rationales.prices import CHARACTERS_PER_TOKEN, tokens_at_most
from kdlab.rationales.tuning import Size, Tuner, training_cost
from kdlab.stages.asking import Asker, asking, two_steps
from kdlab.stages.completions import Records, Row, asked_rows, read_rows, record, write_records


def finetune_endpoint(
    ctx: Context,
    *,
    data: Path,
    endpoint: str,
    model: str,
    api: str,
    style: Mapping[str, Any],
    epochs: int | None = None,
) -> None:
    """Export the rows to learn from, have the endpoint fine-tune its model on them, and wait for it.

    data: has `train.jsonl`, curated or (answers only) of questions. api: "completions" writes rows of prompt and
    completion, "chat" rows of messages. Leaves `train.jsonl` as it was sent, and `model.json`: model (the fine-tuned
    one's name), job, file, base, epochs and trained_tokens. What was made is noted in `work/job.json`; a job that the
    endpoint has for the same data, model and epochs is never made again, with `fresh` neither.

    Raises EndpointError (see `Tuner`), BudgetError, and DataError if there are no rows.
    """
    file = ctx.out / "train.jsonl"
    size = _export(file, read_rows(data, "train"), Style(**style), api=api)
    notes = ctx.work / "job.json"
    asked = ctx.requests
    tuner = Tuner(
        base_url=address(endpoint),
        model=model,
        epochs=epochs,
        timeout=asked.timeout,
        attempts=asked.attempts,
        budget=asked.budget,
        price=asked.student_price.training,
        note=ctx.note,
    )
    tuned = tuner.tune(
        file,
        size,
        _noted(notes, ctx.note),
        lambda known: write_json(notes, known, seal=True),
    )
    write_json(ctx.out / "model.json", asdict(tuned))
    ctx.facts.update(
        rows={"train": size.rows},
        model=tuned.model,
        job=tuned.job,
        trained_tokens=tuned.trained_tokens,
        usd=None if tuned.trained_tokens is None else training_cost(tuned.trained_tokens, tuner.price),
    )


def _noted(notes: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """What an interrupted attempt has noted of its job. If that is damaged the endpoint is asked for the job."""
    try:
        return dict(read_json(notes))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        tell(f"damaged: {notes}: {error}; the endpoint is asked whether it has the job")
        return {}


def _export(file: Path, rows: Sequence[Row], style: Style, *, api: str) -> Size:
    """Write the rows as the fine-tuning API reads them. In chat no blank leads an answer: nothing stands before it."""
    if not rows:
        raise DataError("There is nothing to fine-tune on.", where=f"{file.parent.name}, train.jsonl")
    tokens = 0
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            asked = prompt(row["question"], style)
            wanted = target(row["answer"], row.get("rationale"), style)
            tokens += tokens_at_most(asked) + tokens_at_most(wanted)
            line: dict[str, Any] = {"prompt": asked, "completion": wanted}
            if api == "chat":
                said = {"user": asked, "assistant": wanted.lstrip(" ")}
                line = {"messages": [{"role": role, "content": text} for role, text in said.items()]}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return Size(rows=len(rows), tokens=tokens)


def answer_endpoint(
    ctx: Context,
    *,
    questions: Path,
    student: Path | None = None,
    model: str | None = None,
    endpoint: str,
    api: str,
    task_key: str,
    style: Mapping[str, Any],
    answering: Mapping[str, Any],
    exemplars: Mapping[str, Any] | None = None,
) -> None:
    """Write `answers.json`: one completion of each test question at temperature 0, in CompletionDataset's layout.

    student: what `finetune_endpoint` left; model: one that is asked as it is. answering: max_tokens; of fs_cot also
    max_prompt, too_long and overlap; a prompt of one request has no padding to mask. exemplars: of fs_cot, {"key"} and,
    unless they are kdlab's own, {"path"}. Facts: rows, requests, prompt_tokens, completion_tokens and usd as of
    `rationalise`; answers: tokens, seconds, and tokens_per_second (None if some came from the journal).
    """
    name = model if student is None else json.loads((student / "model.json").read_text(encoding="utf-8"))["model"]
    assert name is not None, "a student or a model"
    shape = Style(**style)
    shots = read_exemplars(exemplars.get("path"), exemplars["key"]) if exemplars else []
    rows = asked_rows(ctx, questions, shots, overlap=answering["overlap"])
    writer = {"endpoint": endpoint, "model": name, "api": api}
    stop = [] if shape.stop is None else [shape.stop]
    started = time.monotonic()
    options = {"max_tokens": answering["max_tokens"], "temperature": 0.0, "stop": stop}
    with asking(ctx, writer, **options, section="model") as asker:
        told = _Told(asker)
        records = _ask(rows, shape, shots, told, answering)
        ctx.facts.update(asker.facts())
    seconds = time.monotonic() - started
    template = shape.template
    write_records(
        ctx.out / "answers.json", records, model=name, task_key=task_key, completion_key=template, template=template
    )
    tokens = ctx.facts["completion_tokens"]
    ctx.facts["rows"] = {"test": len(rows)}
    ctx.facts["answers"] = {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": None if told.known else round(tokens / max(seconds, 1e-9), 3),
    }


class _Told:
    """Asks, and counts how many answers the journal held."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker
        self.known = 0

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        self.known += sum(one is not None for one in self.asker.known(requests))
        return self.asker(requests)


def _ask(rows: Sequence[Row], style: Style, shots: Sequence[str], ask: _Told, answering: Mapping[str, Any]) -> Records:
    """One completion of each question."""
    if style.template == "zs_cot":
        return two_steps([(row, 0) for row in rows], style, ask, ask.asker.known)
    prompts = [_prompt(row, style, shots, answering) for row in rows]
    found = ask([Request(text) for text in prompts])
    return {
        row["id"]: [record(row, 0, prompt=text, completion=one.text, finish_reason=one.finish_reason)]
        for row, text, one in zip(rows, prompts, found, strict=True)
    }


def _prompt(row: Row, style: Style, shots: Sequence[str], answering: Mapping[str, Any]) -> str:
    if style.template != "fs_cot":
        return prompt(row["question"], style)
    return fit_exemplars(
        shots,
        row["question"],
        style,
        length=lambda text: -(-len(text) // CHARACTERS_PER_TOKEN),
        limit=answering["max_prompt"],
        how=answering["too_long"],
    )
