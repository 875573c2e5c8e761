"""`kdlab train`: a run, or the jobs of a sweep."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdlab.errors import ConfigError, KdlabError, bug
from kdlab.execution import agreed, execute, first_process, is_finished
from kdlab.verbs.plan import pins, refuse_bad_plans, warn_of

if TYPE_CHECKING:
    from rich.console import Console

    from kdlab.compose import Composition, Job
    from kdlab.config import Run
    from kdlab.graph import Graph
    from kdlab.hub import File, Part


def main(words: list[str]) -> int:
    from kdlab import compose

    if compose.hydra_passthrough(words):
        return 0
    composition = compose.jobs(words)
    warn_of(composition)
    if composition.multirun:
        return train_sweep(composition, words)
    if composition.jobs[0].run.hardware.processes > 1 and not started_by_torchrun():
        return train_together(composition.jobs[0])
    return compose.launch(words, train_one, composition)[0]


def started_by_torchrun() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def train_one(run: Run, overrides: list[str]) -> int:
    """A single run, in outputs/runs/."""
    from kdlab.methods import plan
    from kdlab.rundir import RunDirectory, default_name

    graph = plan(run, pins())
    have_supplies(run, graph, overrides)
    run.name = run.name or default_name(run, graph)
    folder = RunDirectory(Path(run.outputs) / "runs" / run.name, run, graph, group=None, overrides=overrides)
    return execute(folder, renewed=set())


def have_supplies(run: Run, graph: Graph, overrides: list[str]) -> None:
    """Fetch what the run reads of the Hub, before anything starts; offline, say all that is lacking."""
    from kdlab import supplies

    def tell(part: Part, file: File) -> None:
        if first_process():
            print(supplies.line_of(part, file), flush=True)

    supplies.require(run, graph, pins(), command=shlex.join(["kdlab", "fetch", *overrides]), tell=tell)


def train_together(job: Job) -> int:
    """A single run in several processes on this machine."""
    from kdlab import sweep
    from kdlab.compose import Composition
    from kdlab.workers import Died, Team

    refuse_bad_plans(Composition(jobs=[job], multirun=False, config_dir=None))
    (placed,) = sweep.placed([job], 1)
    team = Team(Work(jobs=[placed], function=train_one), claims="SLURM_JOB_ID" not in os.environ)
    try:
        on_gpu = job.run.hardware.device in ("auto", "cuda")
        return team.do(0, processes=job.run.hardware.processes, on_gpu=on_gpu)
    except Died as death:
        raise KdlabError(
            f"a process of this run died: {death.how}",
            fix="give the same command again, it goes on at the last checkpoint; if memory was short, set "
            "hardware.micro_batch",
        ) from death
    finally:
        team.dismiss()


def train_job(
    run: Run,
    overrides: list[str],
    *,
    sweep: Path,
    names: Mapping[tuple[str, ...], str],
    renewed: set[str],
    since: float | None = None,
) -> int:
    """One job of a sweep, in its folder. An error is written there and does not stop the other jobs.

    renewed, since: what `fresh` need not run again; fingerprints, and all stages that were made after that moment.
    """
    from kdlab.artifacts import Store
    from kdlab.methods import plan
    from kdlab.rundir import RunDirectory, Taken
    from kdlab.sweep import failure, made_since, write_failure

    name = names[tuple(overrides)]
    folder = sweep / name
    try:
        graph = plan(run, pins())
        have_supplies(run, graph, overrides)
        run.name = name
        directory = RunDirectory(folder, run, graph, group=sweep.name, overrides=overrides)
        finished = agreed(is_finished(directory), run.hardware)
        if first_process():
            print(f"done  {name}: finished before" if finished else f"job   {name}", flush=True)
        if finished:
            return 0
        if run.fresh and since is not None:
            renewed |= made_since(graph, Store(run.store), since)
        return execute(directory, brief=True, renewed=renewed)
    except Taken:
        raise
    except Exception as error:
        if first_process() or failure(folder) is None:
            write_failure(folder, str(error) if isinstance(error, KdlabError) else bug(error))
        raise


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a process that does jobs is sent to do: a function, for the job of a number. Picklable."""

    jobs: list[Job]
    function: Callable[[Run, list[str]], int]

    def __call__(self, number: int) -> int:
        from kdlab.compose import tolerant
        from kdlab.sweep import under_slurm

        job = self.jobs[number]
        return tolerant(self.function, replace(job, run=under_slurm(job.run)))


def train_sweep(composition: Composition, words: list[str]) -> int:
    """What is left to do of a sweep, by the launcher that the command line chooses."""
    from rich.console import Console

    from kdlab import compose, sweep

    launcher = compose.launcher(words)
    if started_by_torchrun():
        if launcher.name != compose.BASIC:
            raise ConfigError(
                [
                    f"hydra/launcher={launcher.name}: torchrun has started processes already, and each of them would "
                    "launch all jobs; leave torchrun out and set hardware.processes=N, or leave the launcher out"
                ]
            )
        if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
            return train_across_machines(composition, words)
        if not first_process():
            return 0  # the first process starts as many for each job
        composition = in_processes(composition, int(os.environ["WORLD_SIZE"]))
    console = Console(highlight=False)
    folder = sweep.folder_of(composition.jobs)
    graphs = refuse_bad_plans(composition)
    warn_of_lacking(composition.jobs, graphs, words)
    numbers, errors = left_to_do(composition.jobs, graphs, folder, quiet=console.is_terminal)
    at_once = sweep.at_once(launcher, len(numbers))
    sweep.announce(folder, composition.jobs, words, graphs)
    jobs = sweep.placed(composition.jobs, at_once)
    board = sweep.Board(folder, [job.name for job in jobs], console)
    names = {tuple(job.overrides): job.name for job in jobs}
    function = partial(train_job, sweep=folder, names=names, renewed=set(), since=time.time())
    crew = sweep.Crew(
        folder=folder,
        jobs=jobs,
        work=Work(jobs=jobs, function=function),
        quiet=board.live,
        claims=launcher.name != "submitit_slurm",
        token=secrets.token_hex(8),
        launched_by=os.getpid() if launcher.name == "joblib" else None,
    )
    here = launcher.name == compose.BASIC or (launcher.name == "joblib" and at_once == 1)
    codes = dict.fromkeys(range(len(jobs)), 0) | dict.fromkeys(errors, 2)
    with board.shown(by_itself=not here) as beat:
        if numbers and here:
            codes |= sweep.do_here(crew, numbers, beat)
        elif numbers:
            launch = partial(compose.launch_elsewhere, words, folder=folder)
            codes |= sweep.do_elsewhere(crew, launcher, numbers, launch)
    return report_sweep(jobs, folder, [codes[number] for number in range(len(jobs))], errors, console)


def warn_of_lacking(jobs: Sequence[Job], graphs: Mapping[str, Graph], words: Sequence[str]) -> None:
    """Offline, all that jobs lack of the Hub, once; HubError if none of them can run."""
    from kdlab import hub, supplies
    from kdlab.artifacts import Store

    if not hub.offline():
        return
    lines: dict[str, None] = {}
    stopped = 0
    for job in jobs:
        if (graph := graphs.get(job.name)) is not None:
            stages = supplies.to_run(graph, Store(job.run.store), job.run.fresh)
            own = [*pins().lacking(job.run, graph), *supplies.lacking(stages)]
            lines |= dict.fromkeys(own)
            stopped += bool(own)
    if not lines:
        return
    error = hub.missing(list(lines), shlex.join(["kdlab", "fetch", *words]))
    if stopped == len(jobs):
        raise error
    print(f"warning: {stopped} of {len(jobs)} jobs can't run: {error}", file=sys.stderr)


def left_to_do(
    jobs: Sequence[Job], graphs: Mapping[str, Graph], folder: Path, *, quiet: bool
) -> tuple[list[int], dict[int, str]]:
    """(the numbers of the jobs that have not finished, why others can't start by number).

    What is known of earlier attempts of those jobs is taken away. quiet: a table will show which have finished.
    """
    from kdlab.rundir import RunDirectory, Taken, alive, read

    numbers, errors = [], {}
    for number, job in enumerate(jobs):
        if job.name in graphs:
            run = replace(job.run, name=job.name)
            own = RunDirectory(folder / job.name, run, graphs[job.name], group=folder.name, overrides=job.overrides)
            try:
                own.refuse_another()
            except Taken as problem:
                errors[number] = str(problem.problems[0])
                continue
            if is_finished(own):
                if not quiet:
                    print(f"done  {job.name}: finished before", flush=True)
                continue
        status = read(folder / job.name / "status.json")
        if status is None or not alive(status):
            with suppress(OSError):
                (folder / job.name / "status.json").unlink(missing_ok=True)
        numbers.append(number)
    return numbers, errors


def train_across_machines(composition: Composition, words: list[str]) -> int:
    """Every process that torchrun started on several machines does every job; one that fails ends the sweep."""
    from rich.console import Console

    from kdlab import compose, sweep

    graphs = refuse_bad_plans(composition)
    folder = sweep.folder_of(composition.jobs)
    if first_process():
        sweep.announce(folder, composition.jobs, words, graphs)
    names = {tuple(job.overrides): job.name for job in composition.jobs}
    codes = compose.launch(words, partial(train_job, sweep=folder, names=names, renewed=set()), composition)
    if not first_process():
        return max(codes)
    return report_sweep(composition.jobs, folder, codes, {}, Console(highlight=False))


def in_processes(composition: Composition, processes: int) -> Composition:
    """The jobs, each in so many processes on this machine."""
    jobs = []
    for job in composition.jobs:
        hardware = replace(job.run.hardware, processes=processes)
        jobs.append(replace(job, run=replace(job.run, hardware=hardware)))
    return replace(composition, jobs=jobs)


def report_sweep(
    jobs: Sequence[Job], folder: Path, codes: Sequence[int], errors: Mapping[int, str], console: Console
) -> int:
    """The sweep's table, and at its end what failed and why: each error once, with the jobs that it stopped."""
    from kdlab.report import tables
    from kdlab.report.compare import compare
    from kdlab.report.jobs import grouped, telling_names
    from kdlab.runs import collect
    from kdlab.sweep import failure

    finished = [folder / job.name for number, job in enumerate(jobs) if number not in errors]
    finished = [place for place in finished if (place / "result.json").is_file()]
    if finished:
        records, _ = collect(finished)
        for part in tables.brief(compare(records)):
            console.print(part)
    failed = [number for number, code in enumerate(codes) if code]
    console.print(f"{len(codes) - len(failed)} of {len(codes)} jobs finished: {folder}", soft_wrap=True)
    told = [
        (jobs[number].name, errors.get(number) or failure(folder / jobs[number].name) or "see above")
        for number in failed
    ]
    brief = telling_names([job.name for job in jobs])
    for text, names in grouped(told):
        which = names[0] if len(names) == 1 else f"{len(names)} jobs ({'; '.join(brief[name] for name in names)})"
        console.print(f"failed: {which}: {text}", markup=False, soft_wrap=True)
    if len(failed) > len(errors):
        console.print("give the same command again: finished jobs are skipped, failed ones run", soft_wrap=True)
    return 2 if failed else 0
