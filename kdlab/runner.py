"""Walk a graph against a store: re-use what is there, run what is not, wait for what another process runs."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from kdlab import provenance
from kdlab.artifacts import Artifact, Store
from kdlab.config import Hardware
from kdlab.context import Context, Requests
from kdlab.errors import HubError, StoreError, disk_errors
from kdlab.graph import Graph, Stage

REQUESTS = Requests()  # how endpoints are asked, unless told otherwise
State = Literal["cached", "run", "resume", "idle"]


class Screen(Protocol):
    """What the runner tells the user; `engine.progress.Display` is one."""

    def stage_started(self, label: str, why: str = "") -> None: ...

    def stage_hit(self, label: str, age: float, note: str = "") -> None: ...

    def stage_waiting(self, label: str) -> None: ...

    def stage_done(self, label: str, seconds: float) -> None: ...

    def update(self, point: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class Outcome:
    """What a walk left: the artifact of every stage that was needed, and which of them ran now."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)  # by fingerprint
    ran: list[str] = field(default_factory=list)  # labels
    seconds: float = 0.0


def states(graph: Graph, store: Store, fresh: list[str], renewed: Collection[str] = ()) -> dict[str, State]:
    """For each stage by fingerprint: cached, to run, to resume, or idle (nothing that runs needs it).

    What is damaged is to run, needed or not: its points and figures are part of what the run shows.
    """
    again = graph.dependents(fresh).difference(renewed)
    targets = {stage.fingerprint for stage in graph.targets.values()}
    needed = set(targets)
    found: dict[str, State] = {}
    for stage in reversed(graph.stages):
        name = stage.fingerprint
        damaged = stage.pinned and bool(store.faults(stage.artifact))
        there = stage.pinned and not damaged and store.path(stage.artifact).is_dir()
        if there and name not in again:
            found[name] = "cached"
        elif name not in needed and not damaged:
            found[name] = "idle"
        else:
            interrupted = stage.pinned and store.interrupted(stage.artifact)
            found[name] = "resume" if interrupted else "run"
            needed |= {need.fingerprint for need in stage.needs()}
    return found


def run(
    graph: Graph,
    store: Store,
    *,
    hardware: Hardware,
    curves: int = 0,
    requests: Requests = REQUESTS,
    fresh: list[str],
    renewed: Collection[str] = (),
    screen: Screen,
    track: Callable[[Stage, Mapping[str, Any]], None],
    finished: Callable[[Stage, Artifact], None],
) -> Outcome:
    """Run what the graph's targets need. `finished` is called after each stage, cached ones included, in order.

    curves: rows on which each trained stage's loss is followed. requests: how endpoints are asked. fresh: labels of
    stages to run again; renewed: fingerprints of those that this command has run again already.
    """
    for stage in graph:
        if not stage.pinned:
            raise HubError(
                f"stage '{stage.label}' needs a model or data set whose commit could not be looked up",
                where=os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
                fix="connect to the Hub once, or give local folders (model.teacher.id=FOLDER, task.source.path=FILE); "
                "`kdlab doctor` tells what is reachable",
            )
    started = time.monotonic()
    outcome = Outcome()
    look = _inspected if _first() else states
    plan = _agreed(look(graph, store, fresh, renewed), hardware)
    again = graph.dependents(fresh).difference(renewed)
    stages = _data_first(graph)
    if _first():
        try:
            _try([stage for stage in stages if plan[stage.fingerprint] in ("run", "resume")], store)
        except BaseException:
            _tell(FAILED)  # the others follow the first stage that is to run
            raise
    for stage in stages:
        if plan[stage.fingerprint] == "idle":
            continue
        cached = plan[stage.fingerprint] == "cached"
        artifact = store.find(stage.artifact) if cached else None
        if _first() and artifact is not None:
            store.tidy(stage.artifact)
            screen.stage_hit(stage.label, _age(artifact), other_code(artifact))
        if not cached:
            artifact, ran = _obtain(
                stage,
                store,
                graph,
                hardware,
                screen,
                track,
                curves=curves,
                requests=requests,
                again=stage.fingerprint in again,
            )
            if ran:
                outcome.ran.append(stage.label)
        if artifact is None:
            raise StoreError(
                f"{stage.artifact} was removed from the store while the run began",
                where=str(store.path(stage.artifact)),
                fix="give the same command again",
            )
        outcome.artifacts[stage.fingerprint] = artifact
        finished(stage, artifact)
    outcome.seconds = time.monotonic() - started
    return outcome


def _inspected(graph: Graph, store: Store, fresh: list[str], renewed: Collection[str]) -> dict[str, State]:
    """`states`, after every byte of what is going to be read was compared with its checksum.

    Raises StoreError if that is damaged and not of this graph, so that no stage here can make it anew.
    """
    while True:
        found = states(graph, store, fresh, renewed)
        reading = [stage for stage in graph if found[stage.fingerprint] in ("run", "resume")]
        inputs = {need.artifact: need.fingerprint for stage in reading for need in stage.inputs.values()}
        for artifact, name in inputs.items():
            if name not in found:
                store.refuse_damaged(artifact)
        whole = [name for name, key in inputs.items() if found.get(key) == "cached"]
        if not any([store.faults(name, thorough=True) for name in whole]):
            return found


def _data_first(graph: Graph) -> list[Stage]:
    """The stages in an order in which they can run: before all others those that need nothing trained.

    So what is wrong with a test set is said before hours of training, not after them.
    """
    late: set[str] = set()
    for stage in graph:
        if stage.work.checkpoint or any(need.fingerprint in late for need in stage.needs()):
            late.add(stage.fingerprint)
    return sorted(graph, key=lambda stage: stage.fingerprint in late)


def _try(stages: list[Stage], store: Store) -> None:
    """Have what later stages are given looked at before the first one starts: weights that can't be used, say.

    What another process is building at this moment, it has looked at.
    """
    for stage in stages[1:]:
        if stage.tried is not None:
            module, _, name = stage.tried.partition(":")
            with disk_errors(f"stage '{stage.label}'", store.root), store.alone(stage.artifact) as alone:
                if alone and not store.path(stage.artifact).is_dir():
                    getattr(importlib.import_module(module), name)(**stage.arguments())


def _obtain(
    stage: Stage,
    store: Store,
    graph: Graph,
    hardware: Hardware,
    screen: Screen,
    track: Callable[[Stage, Mapping[str, Any]], None],
    *,
    curves: int,
    requests: Requests,
    again: bool,
) -> tuple[Artifact, bool]:
    """Build the artifact, or take it from the process that was faster. Second value: whether it was built here."""
    if not _first():
        _follow(stage, store, hardware)
        artifact = store.find(stage.artifact)
        assert artifact is not None
        return artifact, True
    with store.locked(stage.artifact, waiting=lambda: screen.stage_waiting(stage.label)):
        faults = store.faults(stage.artifact)
        for line in faults:
            screen.note(f"damaged: {line}; it is made anew")
        artifact = None if again or faults else store.find(stage.artifact)
        if artifact is not None:
            _tell(HIT)
            screen.stage_hit(stage.label, _age(artifact), other_code(artifact))
            return artifact, False
        _tell(RUN)
        try:
            artifact = _build(stage, store, graph, hardware, screen, track, curves, requests)
        except BaseException:
            _tell(FAILED, alone=not stage.parallel)
            raise
        _tell(RUN)
        return artifact, True


def _build(
    stage: Stage,
    store: Store,
    graph: Graph,
    hardware: Hardware,
    screen: Screen,
    track: Callable[[Stage, Mapping[str, Any]], None],
    curves: int,
    requests: Requests,
) -> Artifact:
    out = store.begin(stage.artifact)
    continues = any((out / "work").iterdir())
    if not continues:
        _empty(out)
    needed_by = ", ".join(graph.needed_by(stage)) or "result"
    screen.stage_started(stage.label, f"needed by {needed_by}" + (", continues" if continues else ""))
    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        screen.note(f"warning: {text}")

    context = Context(
        out=out,
        stage=stage.label,
        hardware=hardware,
        curves=curves,
        requests=requests,
        track=lambda point: track(stage, point),
        show=screen.update,
        note=screen.note,
        warn=warn,
    )
    started = time.monotonic()
    with disk_errors(f"stage '{stage.label}'", out):
        with store.reading([other.artifact for other in stage.inputs.values()]):
            _call(stage, store, context)
        gc.collect()  # models and optimisers are in reference cycles: let go of them before the next stage
        seconds = time.monotonic() - started
        if stage.work.parameters is not None and "trained_tokens" in context.facts:
            flops = 2 * stage.work.cost * stage.work.parameters * context.facts["trained_tokens"]
            context.facts["trained_flops"] = round(flops)
        artifact = store.publish(
            stage.artifact,
            {
                "label": stage.label,
                "function": stage.function,
                "version": stage.version,
                "fingerprint": stage.fingerprint,
                "values": dict(stage.values),
                "inputs": {name: other.artifact for name, other in stage.inputs.items()},
                "facts": context.facts,
                "warnings": warnings,
                "made": {
                    "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "seconds": round(seconds, 3),
                    "continued": continues,
                    "peak_memory_mb": _peak_memory_mb(),
                    "versions": provenance.versions(),
                    "git": provenance.git(),
                    "hardware": {
                        "device": hardware.device,
                        "threads": hardware.threads,
                        "cores": os.cpu_count(),
                    },
                },
            },
        )
    screen.stage_done(stage.label, seconds)
    return artifact


def _call(stage: Stage, store: Store, context: Context) -> None:
    module, _, name = stage.function.partition(":")
    known = module in sys.modules
    function = getattr(importlib.import_module(module), name)
    if not known:
        gc.freeze()  # libraries stay for good: the collection after each stage, 0.3 s over all of them, skips them
    inputs = {name: store.path(other.artifact) for name, other in stage.inputs.items()}
    function(context, **stage.arguments(), **inputs)


def _empty(folder: Path) -> None:
    """Remove what an attempt without a checkpoint left."""
    for path in folder.iterdir():
        if path.name != "work":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# Distributed jobs: the first process decides and publishes, the others follow. -----------------------------------

HIT, RUN, FAILED = 0, 1, 2


def _agreed(found: dict[str, State], hardware: Hardware) -> dict[str, State]:
    """The first process's view, in every process: others may have looked at the store a moment later."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return found
    from kdlab.engine import device

    device.join(hardware)
    words = get_args(State)
    return {name: words[device.share(words.index(state))] for name, state in found.items()}


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _tell(word: int, *, alone: bool = True) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1" and alone:
        from kdlab.engine import device

        device.share(word)


def _hear() -> int:
    from kdlab.engine import device

    return device.share(HIT)


def _follow(stage: Stage, store: Store, hardware: Hardware) -> None:
    """What a process other than the first does while the first obtains the stage."""
    word = _hear()
    if word == HIT:
        return
    if word == FAILED:
        sys.exit(2)
    if stage.parallel:
        out = store.building(stage.artifact)
        _call(stage, store, Context(out=out, stage=stage.label, hardware=hardware))
    if _hear() == FAILED:
        sys.exit(2)


def _age(artifact: Artifact) -> float:
    """Seconds since the artifact was made."""
    made = datetime.fromisoformat(artifact.manifest["made"]["at"])
    return max(0.0, (datetime.now(timezone.utc) - made).total_seconds())


def _peak_memory_mb() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def other_code(artifact: Artifact) -> str:
    """A mark for what another version of kdlab made, else nothing."""
    made = artifact.manifest["made"]["versions"]["kdlab"]
    return "" if made == provenance.code() else f"by other code: kdlab {made}"
