"""The run graph as a table: what `kdlab plan` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table

from kdlab.artifacts import Artifact, Store
from kdlab.context import Requests
from kdlab.data.prompts import read_exemplars
from kdlab.engine.progress import duration
from kdlab.graph import Graph, Stage
from kdlab.rationales.prices import estimate, price, shown
from kdlab.report.summary import count, megabytes
from kdlab.runner import State, other_code, states

UNKNOWN = "~"
FLOPS_PER_SECOND = 5e10  # of a processor nobody has measured yet
BYTES_PER_PARAMETER = 4
TOKENS_PER_ROW = 0.4  # of max_length, until the data is prepared
QUESTION_CHARACTERS = 200  # of a question, until the data is prepared


@dataclass(frozen=True)
class Estimate:
    """steps, tokens: None if not known; seconds, bytes: always rough."""

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    bytes: float | None = None


def plan_table(graph: Graph, store: Store, fresh: Sequence[str]) -> Table:
    """Each stage: cached or to run, needed by whom, steps, tokens, estimated time and disk; then the sum."""
    found = states(graph, store, list(fresh))
    speed = _speed(store)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("stage", "state", "needed by", "steps", "tokens", "time", "disk MB"):
        left = column in ("stage", "state", "needed by")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "needed by")
    totals: list[Estimate] = []
    for stage in graph:
        artifact = store.find(stage.artifact) if stage.pinned else None
        state = found[stage.fingerprint]
        estimate = _estimate(stage, store, speed)
        if state in ("run", "resume"):
            totals.append(estimate)
        shown = _cached(artifact) if state == "cached" and artifact is not None else estimate
        table.add_row(
            stage.label,
            _state(state, artifact) if stage.pinned else "unpinned",
            _short(graph.needed_by(stage)),
            _number(shown.steps, stage),
            _number(shown.tokens, stage),
            "" if shown.seconds is None else duration(shown.seconds),
            "" if shown.bytes is None else megabytes(shown.bytes),
        )
    seconds = sum(one.seconds or 0.0 for one in totals)
    bytes_ = sum(one.bytes or 0.0 for one in totals)
    table.add_section()
    table.add_row(
        "to run",
        f"{len(totals)} of {len(graph.stages)}",
        "",
        "",
        "",
        _sum(duration(seconds), known=seconds > 0, any_left=bool(totals)),
        _sum(megabytes(bytes_), known=bytes_ > 0, any_left=bool(totals)),
    )
    return table


def plan_notes(graph: Graph) -> list[str]:
    """What the stages have to say beside their row: conditions of the data, which layer learns from which.

    Stages of a sweep that say the same are named together.
    """
    said: dict[tuple[str, tuple[str, ...]], int] = {}
    for stage in graph:
        if stage.notes:
            said[stage.label, stage.notes] = said.get((stage.label, stage.notes), 0) + 1
    lines = []
    for (label, notes), times in said.items():
        first, *rest = notes
        lines += [f"{label}{f' (of {times})' if times > 1 else ''}: {first}", *(f"  {line}" for line in rest)]
    return lines


def cost_notes(graph: Graph, store: Store, requests: Requests) -> list[str]:
    """What the stages that are to ask an endpoint will send and cost at most, a line each."""
    lines = []
    for stage in graph:
        writer = stage.values.get("writer", {})
        if stage.name != "rationalise" or "endpoint" not in writer or store.find(stage.artifact) is not None:
            continue
        questions = stage.inputs["questions"]
        prepared = store.find(questions.artifact) if questions.pinned else None
        if prepared is not None:
            splits = stage.values["splits"]
            rows = sum(prepared.facts["rows"].get(split, 0) for split in splits)
            characters = sum(prepared.facts["characters"].get(split, 0) for split in splits)
        elif stage.work.examples is not None:
            rows = stage.work.examples
            characters = rows * QUESTION_CHARACTERS
        else:
            lines.append(f"{stage.label}: ~ until the questions are prepared")
            continue
        if "exemplars" in stage.values:
            shots = read_exemplars(stage.places.get("exemplars"), stage.values["exemplars"]["key"])
            characters += rows * sum(len(shot) for shot in shots)
        steps = 2 if writer["prompt"] == "zs_cot" else 1
        known = price(writer["model"], base_url=writer["endpoint"], override=requests.price)
        found = estimate(rows, characters, stage.values["samples"], writer["max_tokens"], steps, known)
        lines.append(f"{stage.label}: {shown(found)}; what the journal holds is not paid for again")
    return lines


def _sum(text: str, *, known: bool, any_left: bool) -> str:
    if not any_left:
        return "0"
    return f"~ {text}" if known else UNKNOWN


def _number(value: int | None, stage: Stage) -> str:
    if value is None:
        return UNKNOWN if stage.work.checkpoint else ""
    return count(value) if value >= 10_000 else str(value)


def _state(state: State, artifact: Artifact | None) -> str:
    mark = other_code(artifact) if artifact is not None and state == "cached" else ""
    return f"{state} (other code)" if mark else state


def _short(labels: Sequence[str]) -> str:
    """The first of them, and how many more."""
    names = list(dict.fromkeys(labels))
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else "result"


def _cached(artifact: Artifact) -> Estimate:
    facts = artifact.facts
    return Estimate(
        facts.get("steps"), facts.get("trained_tokens"), artifact.manifest["made"]["seconds"], artifact.bytes
    )


def _estimate(stage: Stage, store: Store, speed: float) -> Estimate:
    work = stage.work
    if not work.checkpoint:
        return Estimate()
    data = stage.inputs["data"]
    artifact = store.find(data.artifact) if data.pinned else None
    rows = work.examples if artifact is None else artifact.facts["rows"]["train"]
    steps = replace(work, examples=rows).steps()
    size = None if work.parameters is None else float(work.parameters * BYTES_PER_PARAMETER)
    if steps is None or rows is None:
        return Estimate(bytes=size)
    if artifact is None:
        longest = data.values.get("max_length") or data.values["max_prompt"] + data.values["max_target"]
        per_row = TOKENS_PER_ROW * longest
    else:
        tokens_of = artifact.facts["tokens"]
        per_row = (tokens_of["train"] if "train" in tokens_of else tokens_of["all"]) / rows
    share = min(1.0, steps * work.batch_size / (rows * max(work.epochs, 1)))
    tokens = per_row * rows * work.epochs * share
    seconds = None if work.parameters is None else 2 * work.cost * work.parameters * tokens / speed
    return Estimate(steps, None if artifact is None else round(tokens), seconds, size)


def _speed(store: Store) -> float:
    """FLOP per second that this store's finished training reached, else a guess."""
    reached = [
        artifact.facts["trained_flops"] / artifact.manifest["made"]["seconds"]
        for artifact in store.artifacts()
        if artifact.facts.get("trained_flops")
        and not artifact.manifest["made"]["continued"]
        and artifact.manifest["values"].get("max_steps") is None  # a debug run spends its time elsewhere
    ]
    return statistics.median(reached) if reached else FLOPS_PER_SECOND
