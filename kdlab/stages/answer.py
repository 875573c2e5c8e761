"""Let a student answer the test questions, greedily; and measure its size and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.prompts import Style, read_exemplars
from kdlab.engine import device
from kdlab.engine.progress import duration
from kdlab.integrity import kept_lines, sealed
from kdlab.models.writing import generate
from kdlab.stages.completions import Row, asked_rows, record, write_records
from kdlab.stages.generation import (
    KERNEL,
    Answered,
    answer_questions,
    cut_warning,
    named_generator,
    saved_generator,
)

CHUNK_BATCHES = 4  # batches whose answers are written down together, so that a killed stage goes on from there
SHOWN_EVERY = 10.0  # seconds between two lines of progress
TIMED_TOKENS = 32
TIMED_ROUNDS = 3


def answer(
    ctx: Context,
    *,
    questions: Path,
    student: Path | None = None,
    model: Mapping[str, Any] | None = None,
    task_key: str,
    style: Mapping[str, Any],
    answering: Mapping[str, Any],
    exemplars: Mapping[str, Any] | None = None,
) -> None:
    """Write `answers.json`: one completion of each test question, in CompletionDataset's layout.

    student: a trained one; model: one that is asked as it is. style, answering: as for `finetune_generator`.
    exemplars: of fs_cot, {"key"} and, unless they are kdlab's own, {"path"}. Facts: answers: tokens, seconds and
    tokens_per_second of what was generated.
    """
    shots = read_exemplars(exemplars.get("path"), exemplars["key"]) if exemplars else []
    rows = asked_rows(ctx, questions, shots, overlap=answering["overlap"])
    loaded, tokenizer = _open(ctx, student, model)
    shape = Style(**style)
    done = _Kept(ctx.work / "answers.jsonl", ctx.note)
    batch = ctx.hardware.eval_batch
    todo = [row for row in rows if row["id"] not in done.records]
    if done.records:
        ctx.note(f"continues after {len(done.records)} of {len(rows)} answers")
    started = shown = time.monotonic()
    for start in range(0, len(todo), CHUNK_BATCHES * batch):
        chunk = todo[start : start + CHUNK_BATCHES * batch]
        began = time.monotonic()
        found = answer_questions(
            loaded,
            tokenizer,
            chunk,
            shape,
            max_tokens=answering["max_tokens"],
            max_prompt=answering["max_prompt"],
            too_long=answering["too_long"],
            exemplars=shots,
            batch_size=batch,
            unmasked_left_pad=answering["unmasked_left_pad"],
        )
        each = (time.monotonic() - began) / len(chunk)
        done.add(
            [
                {**_record(row, one), "cut": one.cut, "tokens": _tokens(one), "seconds": each}
                for row, one in zip(chunk, found, strict=True)
            ]
        )
        if time.monotonic() - shown > SHOWN_EVERY:
            shown = time.monotonic()
            ctx.note(f"      {ctx.stage} {len(done.records)}/{len(rows)}: {duration(shown - started)}")
    if done.cut:
        ctx.warn(cut_warning(len(done.cut), len(rows), answering["max_prompt"]))
    name = str((model or {}).get("id") or "student")
    records = {number: [one] for number, one in done.records.items()}
    template = shape.template
    write_records(
        ctx.out / "answers.json", records, model=name, task_key=task_key, completion_key=template, template=template
    )
    ctx.facts["rows"] = {"test": len(rows)}
    ctx.facts["answers"] = {
        "tokens": done.tokens,
        "seconds": round(done.seconds, 3),
        "tokens_per_second": round(done.tokens / max(done.seconds, 1e-9), 3),
    }


def _open(
    ctx: Context, student: Path | None, model: Mapping[str, Any] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place = device.pick_device(ctx.hardware)
    if student is not None:
        loaded, tokenizer = saved_generator(student / "model", attention=KERNEL)
    else:
        assert model is not None
        loaded, tokenizer = named_generator(model, attention=KERNEL)
    loaded.to(place)  # type: ignore[arg-type]
    return loaded, tokenizer


def _tokens(one: Answered) -> int:
    return one.completion.tokens + (one.reasoning.tokens if one.reasoning is not None else 0)


def _record(row: Row, one: Answered) -> Row:
    thought = one.reasoning
    return record(
        row,
        0,
        prompt=one.prompt,
        completion=one.completion.text,
        finish_reason=one.completion.finish_reason,
        reasoning_prompt=one.reasoning_prompt,
        reasoning=None if thought is None else thought.text,
        reasoning_finish_reason=None if thought is None else thought.finish_reason,
    )


class _Kept:
    """All answers, an interrupted attempt's too: whose prompts were cut, how many tokens they have, how long they took.

    A torn last line is dropped, and so is all from a damaged line on, which is told: it is answered again.
    """

    def __init__(self, file: Path, tell: Callable[[str], None]) -> None:
        self.file = file
        self.records: dict[int, Row] = {}
        self.cut: set[int] = set()
        self.tokens, self.seconds = 0, 0.0
        lines, damage = kept_lines(file)
        for one in lines:
            self._keep(one)
        if damage is not None:
            tell(f"damaged: {damage}; the questions from there on are asked again")

    def add(self, records: list[Row]) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            for one in records:
                file.write(sealed(one))
                self._keep(one)

    def _keep(self, one: Row) -> None:
        if one.pop("cut", False):
            self.cut.add(one["sample_index"])
        self.tokens += one.pop("tokens", 0)
        self.seconds += one.pop("seconds", 0.0)
        self.records[one["sample_index"]] = one


def measure_generator(
    ctx: Context, *, student: Path | None = None, model: Mapping[str, Any] | None = None, machine: Mapping[str, Any]
) -> None:
    """Write figures.json: parameters, bytes on disk (of a trained student), and milliseconds for a token when one
    text is written alone: the median of three rounds of 32 tokens, after one to warm up.

    `machine` is what the time depends on; it is part of the identity.
    """
    loaded, tokenizer = _open(ctx, student, model)
    prompt = [int(tokenizer.eos_token_id or 0)] * 8
    times = []
    for _ in range(TIMED_ROUNDS + 1):
        start = time.perf_counter()
        (made,) = generate(loaded, tokenizer, [prompt], max_tokens=TIMED_TOKENS, batch_size=1)
        times.append((time.perf_counter() - start) / max(made.tokens, 1))
    files = [] if student is None else (student / "model").glob("*.safetensors")
    figures = {
        "parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "bytes": sum(path.stat().st_size for path in files) or None,
        "latency_ms": 1000 * statistics.median(times[1:]),
        "threads": torch.get_num_threads(),
        "device": next(loaded.parameters()).device.type,
        "machine": dict(machine),
    }
    write_json(ctx.out / "figures.json", figures)
