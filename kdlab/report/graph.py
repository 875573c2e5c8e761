"""The run graph as a table: what `kdlab plan` prints."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rich import box
from rich.table import Table

from kdlab.artifacts import Artifact, Store
from kdlab.config import Budget
from kdlab.context import Requests
from kdlab.data.prompts import read_exemplars
from kdlab.engine.progress import duration
from kdlab.graph import Graph, Stage
from kdlab.rationales.completion import Section
from kdlab.rationales.prices import CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS, dollars, estimate, excess, price, shown
from kdlab.rationales.prices import Estimate as Asked
from kdlab.rationales.tuning import default_epochs, training_cost
from kdlab.report.summary import count, megabytes
from kdlab.runner import State, other_code, states

UNKNOWN = "~"
MANY = 4  # stages of one label that a sweep still lists one by one
FLOPS_PER_SECOND = 5e10  # of a processor nobody has measured yet
BYTES_PER_PARAMETER = 4
TOKENS_PER_ROW = 0.4  # of max_length, until the data is prepared
QUESTION_CHARACTERS = 200  # of a question, until the data is prepared
RATIONALE_CHARACTERS = 400  # of a rationale, until it is written


Number = TypeVar("Number", int, float)


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
        artifact = _known(stage, store)
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


@dataclass(frozen=True)
class _Row:
    """A stage of a sweep: where it stands, what it costs, how many jobs need it."""

    stage: Stage
    state: State
    work: Estimate  # to do, or done
    jobs: int

    @property
    def left(self) -> bool:
        return self.state in ("run", "resume")


def sweep_table(jobs: Sequence[Graph], store: Store, fresh: Sequence[str], *, every_stage: bool = False) -> Table:
    """The graphs of a sweep's jobs as one: what they share once, with the number of jobs that need it; then the sums.

    Stages of one label are added up where there are many, unless every stage is wanted.
    """
    whole = Graph.of(
        {f"{number}/{name}": stage for number, job in enumerate(jobs) for name, stage in job.targets.items()}
    )
    rows = _sweep_rows(jobs, whole, store, fresh)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("stage", "state", "needed by", "steps", "tokens", "time", "MB"):
        words = column in ("stage", "state", "needed by")
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    alike: dict[str, list[_Row]] = {}
    for row in rows:
        alike.setdefault(row.stage.label, []).append(row)
    for label, group in alike.items():
        parts = [group] if len(group) > MANY and not every_stage else [[row] for row in group]
        for part in parts:
            name = label if len(part) == 1 else f"{label} x {len(part)}"
            table.add_row(name, _states(part), _needed_by(part), *_figures([row.work for row in part], part[0]))
    left = [row for row in rows if row.left]
    table.add_section()
    table.add_row("to run", f"{len(left)} of {len(rows)}", "", *_totals([row.work for row in left]))
    alone = [row.work for row in left for _ in range(row.jobs)]
    if len(alone) > len(left):
        table.add_row("without sharing", f"{len(alone)}", "", *_totals(alone))
    done = [row for row in rows if row.state == "cached"]
    if done:
        table.add_row("finished already", f"{len(done)} of {len(rows)}", "", *_totals([row.work for row in done], "0"))
    return table


def code_notes(graph: Graph, store: Store) -> list[str]:
    """How many of the stages that a sweep takes from the store were made by another version of kdlab."""
    made = [artifact for stage in graph if (artifact := _known(stage, store)) is not None]
    other = [artifact for artifact in made if other_code(artifact)]
    return [f"other code: {len(other)} of the {len(made)} stages in the store were made by another kdlab"] * bool(other)


def finished_jobs(jobs: Sequence[Graph], store: Store, fresh: Sequence[str]) -> int:
    """Of how many jobs the store has all that they end in."""
    return sum(all(state in ("cached", "idle") for state in states(job, store, list(fresh)).values()) for job in jobs)


def _sweep_rows(jobs: Sequence[Graph], whole: Graph, store: Store, fresh: Sequence[str]) -> list[_Row]:
    found = states(whole, store, list(fresh))
    speed = _speed(store)
    needed: Counter[str] = Counter(stage.fingerprint for job in jobs for stage in job)
    rows = []
    for stage in whole:
        state = found[stage.fingerprint]
        artifact = _known(stage, store) if state == "cached" else None
        work = _estimate(stage, store, speed) if artifact is None else _cached(artifact)
        rows.append(_Row(stage, state, work, needed[stage.fingerprint]))
    return rows


def _states(rows: Sequence[_Row]) -> str:
    counts = Counter(row.state if row.stage.pinned else "unpinned" for row in rows)
    if counts["cached"] and len(counts) > 1:
        return f"{counts['cached']}/{len(rows)} cached"
    return next(state for state in ("unpinned", "resume", "run", "cached", "idle") if counts[state])


def _needed_by(rows: Sequence[_Row]) -> str:
    """ "6 jobs"; of several stages each: "1-3 jobs"."""
    numbers = sorted({row.jobs for row in rows})
    spread = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    return f"{spread} job{'s' if numbers[-1] > 1 else ''}"


def _figures(work: Sequence[Estimate], row: _Row) -> tuple[str, str, str, str]:
    """Steps, tokens, time and disk of a stage, or of several alike together."""
    return (
        _number(_added(one.steps for one in work), row.stage),
        _number(_added(one.tokens for one in work), row.stage),
        _shown(_added(one.seconds for one in work), _rough),
        _shown(_added(one.bytes for one in work), _megabytes),
    )


def _totals(work: Sequence[Estimate], mark: str = UNKNOWN) -> tuple[str, str, str, str]:
    """Sums of what is known, marked where they are estimates, or something is not known."""
    shown = []
    for values, show in (
        ([one.steps for one in work], lambda value: count(value) if value >= 10_000 else f"{value:.0f}"),
        ([one.tokens for one in work], count),
        ([one.seconds for one in work], _rough),
        ([one.bytes for one in work], _megabytes),
    ):
        known = [value for value in values if value is not None]
        text = show(float(sum(known))) if known else ""
        shown.append(("0" if not work else UNKNOWN) if not known else text if mark == "0" else f"~{text}")
    steps, tokens, seconds, size = shown
    return steps, tokens, seconds, size


def _added(values: Iterable[Number | None]) -> Number | None:
    """The sum; None if any is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return None if len(known) < len(found) or not known else sum(known[1:], known[0])


def _rough(seconds: float) -> str:
    """A duration with its smaller unit only where the larger one is below 10."""
    number, unit, *_ = (text := duration(seconds)).split()
    return f"{number} {unit}" if float(number) >= 10 else text


def _megabytes(size: float) -> str:
    return megabytes(size) if size < 1e8 else f"{size / 1e6:.0f}"


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return "" if value is None else show(value)


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
    """What the stages that are to pay an endpoint will send and cost, a line each."""
    lines = []
    for stage in graph:
        if _known(stage, store) is not None:
            continue
        if stage.name == "rationalise" and "endpoint" in stage.values["writer"]:
            said = _writing_cost(stage, store, requests)
        elif stage.name == "finetune_endpoint":
            said = _training_cost(stage, store, requests)
        elif stage.name == "answer_endpoint":
            said = _answering_cost(stage, store, requests)
        else:
            continue
        lines.append(f"{stage.label}: {said or '~ until the questions are prepared'}")
    return lines


def _writing_cost(stage: Stage, store: Store, requests: Requests) -> str | None:
    """Of a teacher behind an endpoint; None: how much it is asked is not known yet."""
    writer = stage.values["writer"]
    size = _size(stage.inputs["questions"], store, stage.values["splits"], stage.work.examples)
    if size is None:
        return None
    rows, characters = size
    characters += rows * sum(map(len, _shots(stage)))
    steps = 2 if writer["prompt"] == "zs_cot" else 1
    known = price(writer["model"], base_url=writer["endpoint"], override=requests.price)
    found = estimate(rows, characters, stage.values["samples"], writer["max_tokens"], steps, known)
    return _asked(found, "rationales", requests.budget)


def _answering_cost(stage: Stage, store: Store, requests: Requests) -> str | None:
    """Of a student behind an endpoint, fine-tuned or as it is."""
    values = stage.values
    size = _size(stage.inputs["questions"], store, ["test"])
    if size is None:
        return None
    rows, characters = size
    shots = sum(map(len, _shots(stage)))
    characters += rows * min(shots, CHARACTERS_PER_TOKEN * values["answering"]["max_prompt"])
    steps = 2 if values["style"]["template"] == "zs_cot" else 1
    name = values["model"]
    if name is None:
        student = stage.inputs["student"]
        made = _known(student, store)
        name = f"ft:{student.values['model']}" if made is None else made.facts["model"]
    known = price(name, base_url=values["endpoint"], override=requests.student_price, section="model")
    found = estimate(rows, characters, 1, values["answering"]["max_tokens"], steps, known)
    return _asked(found, "model", requests.budget)


def _asked(found: Asked, section: Section, budget: Budget) -> str:
    above = excess(budget, found.prompt_tokens + found.completion_tokens_at_most, found.usd_at_most)
    return f"{shown(found, section)}; what the journal holds is not paid for again{above}"


def _training_cost(stage: Stage, store: Store, requests: Requests) -> str | None:
    """Of a student that an endpoint fine-tunes. Until its rows are curated, as if all rationales were kept."""
    size = _examples(stage.inputs["data"], store)
    if size is None:
        return None
    rows, characters = size
    tokens = -(-characters // CHARACTERS_PER_TOKEN) + rows * TEMPLATE_TOKENS
    epochs = stage.values["epochs"]
    chosen = "" if epochs else " (about what the endpoint chooses)"
    epochs = epochs or default_epochs(rows)
    rate = requests.student_price.training
    usd = training_cost(tokens * epochs, rate)
    cost = "price unknown (model.price.training, US dollars per million tokens)"
    if usd is not None:
        cost = f"~{dollars(usd)} (${rate:g} per million tokens, model.price.training)"
    above = excess(requests.budget, tokens * epochs, usd)
    return f"fine-tuning on ~{rows:,} rows, ~{tokens:,} tokens an epoch, {epochs} epochs{chosen}, {cost}{above}"


def _examples(data: Stage, store: Store) -> tuple[int, int] | None:
    """Rows that a student learns from, and all their characters."""
    if "rationales" not in data.inputs:
        return _size(data, store, ["train"])
    made = _known(data, store)
    if made is not None:
        with open(made.path / "train.jsonl", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        parts = ("question", "rationale", "answer")
        return len(lines), sum(len(line.get(part) or "") for line in lines for part in parts)
    rationales = data.inputs["rationales"]
    of_train = rationales.work.examples if rationales.values["splits"] == ["train"] else None
    size = _size(data.inputs["questions"], store, ["train"], of_train)
    if size is None:
        return None
    rows, characters = size
    samples = rationales.values["samples"]
    kept = min(samples, data.values["curation"]["per_question"] or samples)
    longest = rationales.values["writer"].get("max_tokens")
    written = RATIONALE_CHARACTERS if longest is None else CHARACTERS_PER_TOKEN * longest
    return rows * kept, kept * (characters + rows * written)


def _size(questions: Stage, store: Store, splits: Sequence[str], rows: int | None = None) -> tuple[int, int] | None:
    """Questions of these splits and their characters: as prepared, else so many rows, else as many as are generated."""
    made = _known(questions, store)
    if made is not None:
        rows_of, characters_of = made.facts["rows"], made.facts["characters"]
        return sum(rows_of.get(split, 0) for split in splits), sum(characters_of.get(split, 0) for split in splits)
    generated, most = questions.values["generate"], questions.values["rows"]
    if rows is None and generated is not None:
        rows = sum(min(generated[split], most or generated[split]) for split in splits)
    return None if rows is None else (rows, rows * QUESTION_CHARACTERS)


def _shots(stage: Stage) -> list[str]:
    """Exemplars that are set before each question."""
    if "exemplars" not in stage.values:
        return []
    return read_exemplars(stage.places.get("exemplars"), stage.values["exemplars"]["key"])


def _known(stage: Stage, store: Store) -> Artifact | None:
    return store.find(stage.artifact) if stage.pinned else None


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
    if not work.cost:
        return Estimate()
    data = stage.inputs["data"]
    artifact = _known(data, store)
    rows = work.examples if artifact is None else _training_rows(artifact)
    steps = replace(work, examples=rows).steps()
    size = float(work.parameters * BYTES_PER_PARAMETER) if work.checkpoint and work.parameters is not None else None
    if steps is None or rows is None:
        return Estimate(bytes=size)
    if artifact is None:
        longest = data.values.get("max_length") or data.values["max_prompt"] + data.values["max_target"]
        per_row = TOKENS_PER_ROW * longest
    else:
        per_row = _tokens_per_row(artifact)
    share = min(1.0, steps * work.batch_size / (rows * max(work.epochs, 1)))
    tokens = per_row * rows * work.epochs * share
    if not work.checkpoint and artifact is not None:  # what runs a model over the data reads dev, too
        tokens += artifact.facts["tokens"].get("dev", 0)
    seconds = None if work.parameters is None else 2 * work.cost * work.parameters * tokens / speed
    shown = None if artifact is None else round(_texts(stage) * tokens)
    return Estimate(steps if work.checkpoint else None, shown, seconds, size)


def _training_tables(artifact: Artifact) -> list[str]:
    """train; of several languages train.en.original, train.en.es, ..."""
    return [name for name in artifact.facts["rows"] if name.partition(".")[0] == "train"]


def _training_rows(artifact: Artifact) -> int:
    """Of the language that has most: an epoch is as long as its."""
    return max(int(artifact.facts["rows"][name]) for name in _training_tables(artifact))


def _tokens_per_row(artifact: Artifact) -> float:
    rows, tokens = artifact.facts["rows"], artifact.facts["tokens"]
    if "all" in tokens:
        return float(tokens["all"] / rows["train"])
    names = _training_tables(artifact)
    return float(sum(tokens[name] for name in names) / sum(rows[name] for name in names))


def _texts(stage: Stage) -> int:
    """How many texts are read for each row of an epoch: of several languages one each, or a pair."""
    if stage.name != "finetune_pairs":
        return 1
    return len(stage.values["languages"]) * (2 if stage.values["texts"] == "translated" else 1)


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
