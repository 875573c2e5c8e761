"""What the stages of a graph read of the Hub, and that it is there before the first of them starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from kdlab import hub, runner
from kdlab.artifacts import Store
from kdlab.config import Run
from kdlab.graph import UNPINNED, Graph, Stage
from kdlab.hub import File, Part, Splits, Tell, What
from kdlab.pins import Pins, require_weights
from kdlab.showing import visible


def parts(stages: Iterable[Stage]) -> list[Part]:
    """What is read of models and data sets on the Hub whose commits are known; not what `streams`."""
    found = (part for stage in stages if not streams(stage) for part in _parts(stage.values))
    return list(dict.fromkeys(part for part in found if part.commit != UNPINNED))


def streams(stage: Stage) -> bool:
    """Whether a stage takes the first rows of a data set on the Hub, and does not read it whole."""
    passages = stage.values.get("passages")
    source = stage.values.get("source")
    rows = stage.values.get("rows")
    limited = isinstance(passages, Mapping) and (passages.get("limit") is not None or rows is not None)
    return limited and isinstance(source, Mapping) and "hub" in source


def to_run(graph: Graph, store: Store, fresh: list[str]) -> list[Stage]:
    """The stages that a run of the graph would not find in the store."""
    states = runner.states(graph, store, fresh)
    return [stage for stage in graph if states[stage.fingerprint] in ("run", "resume")]


def require(run: Run, graph: Graph, pins: Pins, *, command: str, tell: Tell | None = None) -> None:
    """Have all that a run reads before its first stage starts: of the Hub, where what is lacking is said at once
    offline, and the weights of local models.

    command: what fetches it, where there is a network. tell: hears of each file that is fetched.
    Raises HubError, ModelError, DataError.
    """
    stages = to_run(graph, Store(run.store), run.fresh)
    for stage in stages:
        for name, place in stage.places.items():
            if stage.values[name].get("init") == "pretrained":
                require_weights(Path(place))
    if hub.offline():
        if lines := [*pins.lacking(run, graph), *lacking(stages)]:
            raise hub.missing(lines, command)
        return
    pins.require(run, graph)
    obtain(stages, tell)
    pins.remember(graph)


def lacking(stages: Iterable[Stage]) -> list[str]:
    """A line for each thing that the stages read of the Hub and the cache does not have. Asks nobody."""
    stages = list(stages)
    lines = [f"{part}: {why}" for part in parts(stages) if (why := hub.absent(part)) is not None]
    for stage in filter(streams, stages):
        for part in _parts(stage.values):
            if part.commit != UNPINNED and hub.absent(part) is not None:
                lines.append(f"{part}: the rows that '{stage.label}' takes are not in the store")
    return lines


def obtain(stages: Iterable[Stage], tell: Tell | None) -> None:
    """Fetch what the stages read whole and the cache does not have. Raises HubError, ModelError or DataError."""
    for part in parts(stages):
        if hub.absent(part) is not None:
            hub.get(part, ask=data_files, tell=tell)


def data_files(part: Part) -> Splits:
    from kdlab.data.tasks import hub_files  # late: it takes a second

    return hub_files(part)


def line_of(part: Part, file: File) -> str:
    size = "" if file.size is None else f", {decimal(file.size)}"
    return visible(f"get   {part}: {file.name}{size}")


def _parts(values: Mapping[str, Any]) -> Iterator[Part]:
    for name, value in values.items():
        if name == "source" and isinstance(value, Mapping):
            if "hub" in value:
                yield from _rows(value, values)
        elif isinstance(value, Mapping):
            if isinstance(value.get("id"), str) and isinstance(value.get("revision"), str):
                yield from (Part("model", value["id"], value["revision"], what) for what in _read(name, value))
            else:
                yield from _parts(value)


def _read(argument: str, value: Mapping[str, Any]) -> list[What]:
    """What a stage reads of a model that is one of its arguments, or one of its translator's."""
    if argument in ("tokenizer", "partner"):
        return ["tokenizer"]
    if value.get("init") == "random":
        return ["config"]
    return ["weights"] if "init" in value else ["weights", "tokenizer"]  # who writes or translates reads texts himself


def _rows(source: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Part]:
    """The configurations and folders of a data set that a stage reads."""
    config, folder = source.get("config"), source.get("data_dir")
    chosen: list[tuple[str | None, str | None]] = []
    if isinstance(languages := values.get("languages"), Mapping):
        chosen += [(one["config"], one["data_dir"]) for one in languages.values()]
    else:
        splits = values.get("splits")
        if splits is None or any(split is not None for split in splits.values()):
            chosen.append((config, folder))
        for one in values.get("evaluations", {}).values():
            chosen.append((one.get("config") or config, one.get("data_dir") or folder))
    for config, folder in dict.fromkeys(chosen):
        yield Part("dataset", source["hub"], source["revision"], "rows", config=config, folder=folder)
