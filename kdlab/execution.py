"""Carries out one planned run in its folder, and shows the result."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kdlab.config import Hardware, Run
from kdlab.context import Requests
from kdlab.errors import KdlabError, disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from kdlab.artifacts import Store
    from kdlab.engine.progress import Display
    from kdlab.graph import Graph
    from kdlab.rundir import RunDirectory, Status


def execute(folder: RunDirectory, *, brief: bool = False, renewed: set[str]) -> int:
    """Run a planned run in its folder, and show the result; of two processes with the same run, one waits.

    renewed: fingerprints of the stages that this command has run, which `fresh` need not run again; added to.
    """
    from kdlab.artifacts import Store

    waited = []

    def waiting() -> None:
        waited.append(True)
        print(f"wait  {folder.path}: another process is at this run", flush=True)

    if not first_process():
        return execute_alone(folder, brief=brief, renewed=renewed)
    with disk_errors("the run", folder.path), Store(folder.run.store).locked(f"run-{folder.run_id}", waiting):
        alone = os.environ.get("WORLD_SIZE", "1") == "1"
        if waited and brief and alone and not folder.run.fresh and folder.result() is not None:
            print(f"done  {folder.path}: that process has finished it", flush=True)
            return 0
        return execute_alone(folder, brief=brief, renewed=renewed)


def execute_alone(folder: RunDirectory, *, brief: bool, renewed: set[str]) -> int:
    from dataclasses import asdict, replace

    from rich.console import Console

    from kdlab import runner
    from kdlab.artifacts import Artifact, Store
    from kdlab.config import Crosslingual, Reasoning
    from kdlab.engine.progress import Display
    from kdlab.engine.tracking import Tracker
    from kdlab.graph import Stage
    from kdlab.report import card, languages, result, samples, summary
    from kdlab.report.sync import summary_of
    from kdlab.rundir import Status, points

    run, graph = folder.run, folder.graph
    store = Store(run.store)
    done: list[tuple[str, Artifact]] = []
    if not first_process():
        quiet = Display(quiet=True)
        outcome = runner.run(
            graph, store, hardware=run.hardware, fresh=run.fresh, renewed=renewed, screen=quiet, **silent()
        )
        renewed |= {stage.fingerprint for stage in graph if stage.label in outcome.ran}
        return 0
    damaged = folder.damage(_student(graph, store))
    folder.open()
    before = folder.result()
    found_states = runner.states(graph, store, run.fresh, renewed)
    cached = all(state in ("cached", "idle") for state in found_states.values())
    mode = "none" if cached and before is not None else run.tracking.mode

    with (
        disk_errors("writing the run's folder", folder.path),
        store.reading(artifact.path.name for _, artifact in done),
        open(folder.path / "console.log", "a", encoding="utf-8") as log,
        Display(console=Console(highlight=False)) as shown,
        Tracker(replace(run.tracking, mode=mode), **folder.identity(), folder=folder.path) as tracker,
        Status(folder.path) as status,
    ):
        logged = Display(console=Console(file=log, width=200, force_terminal=False, no_color=True))
        screen = Screens(shown, logged, status)
        for line in damaged:
            screen.note(f"damaged: {folder.path / line}; it is written anew")
        offset = 0
        live: set[str] = set()

        def track(stage: Stage, point: Any) -> None:
            live.add(stage.fingerprint)
            tracker.log({**point, "global_step": offset + point["step"]})

        def finished(stage: Stage, artifact: Artifact) -> None:
            nonlocal offset
            done.append((stage.label, artifact))
            folder.write_metrics(done)
            if "steps" in artifact.facts:
                if stage.fingerprint not in live:
                    for point in points([(stage.label, artifact)]):
                        tracker.log({**point, "global_step": offset + point["global_step"]})
                offset += int(artifact.facts["steps"])

        try:
            outcome = runner.run(
                graph,
                store,
                hardware=run.hardware,
                curves=run.curves,
                requests=requests(run),
                fresh=run.fresh,
                renewed=renewed,
                screen=screen,
                track=track,
                finished=finished,
            )
        except KdlabError as error:
            folder.write_failure(str(error))
            logged.note(f"failed: {error}")
            raise
        renewed |= {stage.fingerprint for stage in graph if stage.label in outcome.ran}
        targets = {name: outcome.artifacts[stage.fingerprint] for name, stage in graph.targets.items()}
        found = result.build(run, targets, dict(done), outcome.seconds)
        model = targets["student"].path / "model" if "student" in targets else None
        student = model is not None and model.is_dir()  # not of prompting, nor of a student behind an endpoint
        found = before if before is not None and not outcome.ran else found
        if before is None or damaged or outcome.ran or student != (folder.path / "student").is_dir():
            if model is not None and student:
                folder.write_student(model, card.model_card(found, asdict(run), folder.overrides))
            folder.write_result(found)
        if isinstance(run.method, Reasoning):
            rows = samples.read_samples(targets["student_scores"].path / "samples.jsonl")
            tracker.table(*samples.tables(rows))
        if isinstance(run.method, Crosslingual):
            tracker.table(*languages.tables(found))
        tracker.finish(summary_of(found))
        for line in found["warnings"]:
            screen.note(f"warning: {line['stage']}: {line['text']}")
        if not brief:
            screen.table(summary.summary_table(found))
            if isinstance(run.method, Crosslingual):
                screen.table(languages.language_table(found))
            screen.table(summary.score_table(found))
        place = f"   student: {folder.path / 'student'}" if student else ""
        screen.note(f"result: {folder.path / 'result.json'}{place}")
    return 0


class Screens:
    """Several displays as one: the terminal's, the one that is kept in the run's console.log, the run's status."""

    def __init__(self, *displays: Display | Status) -> None:
        self.displays = displays

    def stage_started(self, label: str, why: str = "") -> None:
        for display in self.displays:
            display.stage_started(label, why)

    def stage_hit(self, label: str, age: float, note: str = "") -> None:
        for display in self.displays:
            display.stage_hit(label, age, note)

    def stage_waiting(self, label: str) -> None:
        for display in self.displays:
            display.stage_waiting(label)

    def stage_done(self, label: str, seconds: float) -> None:
        for display in self.displays:
            display.stage_done(label, seconds)

    def update(self, point: Any) -> None:
        for display in self.displays:
            display.update(point)

    def note(self, text: str) -> None:
        for display in self.displays:
            display.note(text)

    def table(self, table: Any) -> None:
        for display in self.displays:
            display.table(table)


def silent() -> dict[str, Any]:
    return {"track": lambda stage, point: None, "finished": lambda stage, artifact: None}


def first_process() -> bool:
    """Of those that torchrun started: the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def is_finished(folder: RunDirectory) -> bool:
    """Whether a run need not be given again: it has a result, and all that it is made of is as it was written."""
    from kdlab.artifacts import Store

    if folder.result() is None or folder.run.fresh:
        return False
    store = Store(folder.run.store)
    damaged = any(store.faults(stage.artifact) for stage in folder.graph)
    return not damaged and not folder.damage(_student(folder.graph, store))


def _student(graph: Graph, store: Store) -> Path | None:
    """Its folder in the store, where the run has one."""
    return store.path(graph.targets["student"].artifact) / "model" if "student" in graph.targets else None


def agreed(answer: bool, hardware: Hardware) -> bool:
    """The first process's answer, in all that torchrun started."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return answer
    from kdlab.engine import device

    device.join(hardware)
    return bool(device.share(int(answer)))


def requests(run: Run) -> Requests:
    writer = run.rationales
    return Requests(
        concurrency=writer.concurrency,
        timeout=writer.timeout,
        attempts=writer.attempts,
        price=writer.price,
        student_price=run.model.price,
        budget=run.budget,
        max_missing=run.translator.max_missing,
    )
