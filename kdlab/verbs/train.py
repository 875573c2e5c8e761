"""`kdlab train`: a run, or the jobs of a sweep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.errors import KdlabError, bug
from kdlab.verbs.plan import pins, refuse_bad_plans, requests, warn_of

if TYPE_CHECKING:
    from kdlab.compose import Composition
    from kdlab.config import Hardware, Run
    from kdlab.engine.progress import Display


def main(words: list[str]) -> int:
    from kdlab import compose

    if compose.hydra_passthrough(words):
        return 0
    composition = compose.jobs(words)
    warn_of(composition)
    if not composition.multirun:
        return compose.launch(words, train_one, composition)[0]
    refuse_bad_plans(composition)
    sweep = sweep_folder(composition)
    names = {tuple(job.overrides): job.name for job in composition.jobs}
    codes = compose.launch(words, partial(train_job, sweep=sweep, names=names, renewed=set()), composition)
    return report_sweep(composition, sweep, codes) if first_process() else max(codes)


def first_process() -> bool:
    """Of those that torchrun started: the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def agreed(answer: bool, hardware: Hardware) -> bool:
    """The first process's answer, in all that torchrun started."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return answer
    from kdlab.engine import device

    device.join(hardware)
    return bool(device.share(int(answer)))


def train_one(run: Run, overrides: list[str]) -> int:
    """A single run, in outputs/runs/."""
    from kdlab.methods import plan
    from kdlab.rundir import RunDirectory, default_name

    graph = plan(run, pins())
    pins().require(run, graph)
    run.name = run.name or default_name(run, graph)
    folder = RunDirectory(Path(run.outputs) / "runs" / run.name, run, graph, group=None, overrides=overrides)
    return execute(folder, renewed=set())


def train_job(
    run: Run, overrides: list[str], *, sweep: Path, names: dict[tuple[str, ...], str], renewed: set[str]
) -> int:
    """One job of a sweep, in its folder. An error is written there and does not stop the other jobs."""
    from kdlab.methods import plan
    from kdlab.rundir import RunDirectory

    name = names[tuple(overrides)]
    folder = sweep / name
    try:
        graph = plan(run, pins())
        pins().require(run, graph)
        run.name = name
        directory = RunDirectory(folder, run, graph, group=sweep.name, overrides=overrides)
        finished = agreed(directory.result() is not None and not run.fresh, run.hardware)
        if first_process():
            print(f"done  {name}: finished before" if finished else f"job   {name}", flush=True)
        return 0 if finished else execute(directory, brief=True, renewed=renewed)
    except Exception as error:
        if first_process():
            text = str(error) if isinstance(error, KdlabError) else bug(error)
            with suppress(OSError):  # a full disk must not hide what went wrong
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "failure.txt").write_text(f"{text}\n", encoding="utf-8")
        raise


def execute(folder: Any, *, brief: bool = False, renewed: set[str]) -> int:
    """Run a planned run in its folder, and show the result; of two processes with the same run, one waits.

    renewed: fingerprints of the stages that this command has run, which `fresh` need not run again; added to.
    """
    from kdlab.artifacts import Store

    def waiting() -> None:
        print(f"wait  {folder.path}: another process is at this run", flush=True)

    if not first_process():
        return execute_alone(folder, brief=brief, renewed=renewed)
    with Store(folder.run.store).locked(f"run-{folder.run_id}", waiting):
        return execute_alone(folder, brief=brief, renewed=renewed)


def execute_alone(folder: Any, *, brief: bool, renewed: set[str]) -> int:
    from dataclasses import asdict, replace

    from rich.console import Console

    from kdlab import runner
    from kdlab.artifacts import Artifact, Store, disk_errors
    from kdlab.config import Crosslingual, Reasoning
    from kdlab.engine.progress import Display
    from kdlab.engine.tracking import Tracker
    from kdlab.graph import Stage
    from kdlab.report import card, languages, result, samples, summary
    from kdlab.report.sync import summary_of
    from kdlab.rundir import points

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
    ):
        screen = Both(shown, Display(console=Console(file=log, width=200, force_terminal=False, no_color=True)))
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
            screen.kept.note(f"failed: {error}")
            raise
        renewed |= {stage.fingerprint for stage in graph if stage.label in outcome.ran}
        targets = {name: outcome.artifacts[stage.fingerprint] for name, stage in graph.targets.items()}
        found = result.build(run, targets, dict(done), outcome.seconds)
        model = targets["student"].path / "model" if "student" in targets else None
        student = model is not None and model.is_dir()  # not of prompting, nor of a student behind an endpoint
        if before is None or outcome.ran or student != (folder.path / "student").is_dir():
            if model is not None and student:
                folder.write_student(model, card.model_card(found, asdict(run), folder.overrides))
            folder.write_result(found)
        else:
            found = before
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
        kept = f"   student: {folder.path / 'student'}" if student else ""
        screen.note(f"result: {folder.path / 'result.json'}{kept}")
    return 0


class Both:
    """Two displays as one: the terminal's, and the one that is kept in the run's console.log."""

    def __init__(self, shown: Display, kept: Display) -> None:
        self.kept = kept
        self.displays = (shown, kept)

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


def sweep_folder(composition: Composition) -> Path:
    """outputs/sweeps/<name>, the same for the same sweep given again."""
    import hashlib

    first = composition.jobs[0].run
    if first.name:
        return Path(first.outputs) / "sweeps" / first.name
    words = "\n".join(sorted(" ".join(sorted(job.overrides)) for job in composition.jobs))
    methods = "+".join(dict.fromkeys(job.run.method.name for job in composition.jobs))
    tasks = "+".join(dict.fromkeys(job.run.task.name.replace("/", "_") for job in composition.jobs))
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    return Path(first.outputs) / "sweeps" / f"{methods}-{tasks}-{digest}"[-120:]


def report_sweep(composition: Composition, sweep: Path, codes: Sequence[int]) -> int:
    """The sweep's table, and at its end what failed and why."""
    from rich.console import Console

    from kdlab.report import languages, summary
    from kdlab.rundir import read

    results = [read(sweep / job.name / "result.json") for job in composition.jobs]
    whole = [result for result in results if result is not None]
    console = Console(highlight=False)
    if whole:
        several = all("languages" in result for result in whole)
        console.print(languages.comparison_table(whole) if several else summary.comparison_table(whole))
    failed = [job for job, code in zip(composition.jobs, codes, strict=True) if code]
    console.print(f"{len(codes) - len(failed)} of {len(codes)} jobs finished: {sweep}", soft_wrap=True)
    for job in failed:
        file = sweep / job.name / "failure.txt"
        reason = (file.read_text(encoding="utf-8").strip() if file.exists() else "") or "see above"
        console.print(f"failed: {job.name}: {reason}", markup=False, soft_wrap=True)
    if failed:
        console.print("give the same command again: finished jobs are skipped, failed ones run", soft_wrap=True)
    return 2 if failed else 0
