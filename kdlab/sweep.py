"""The jobs of a sweep: sweep.json, where each job stands, and doing what is left of them.

    outputs/sweeps/<name>/sweep.json  <job>/  <job>/ ...  .submitit/ (of that launcher)

A job is done in a process of its own (`kdlab.workers`), so that what kills one job kills no other. Who looks at a sweep
reads the jobs' folders; so it works the same for every launcher, and for several commands on one sweep.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import interruption
from kdlab.artifacts import MANIFEST, Store, write_json
from kdlab.errors import ConfigError, KdlabError, StoreError, disk_errors
from kdlab.report.jobs import Standing, State, jobs_table
from kdlab.rundir import Status, alive, read
from kdlab.showing import redact
from kdlab.workers import Died, Team, cores, end_with

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kdlab.compose import Job, Launcher
    from kdlab.config import Run
    from kdlab.graph import Graph

FORMAT = 1
TABLE_SECONDS = 0.5  # between two looks at all jobs
ATTEMPTS = 2  # of a job whose launcher lost the process that had it


def folder_of(jobs: Sequence[Job]) -> Path:
    """outputs/sweeps/<name>, the same for the same sweep given again."""
    first = jobs[0].run
    if first.name:
        return Path(first.outputs) / "sweeps" / first.name
    words = "\n".join(sorted(" ".join(sorted(job.overrides)) for job in jobs))
    methods = "+".join(dict.fromkeys(job.run.method.name for job in jobs))
    tasks = "+".join(dict.fromkeys(job.run.task.name.replace("/", "_") for job in jobs))
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    return Path(first.outputs) / "sweeps" / f"{methods}-{tasks}-{digest}"[-120:].lstrip("-+.")


def announce(
    folder: Path,
    jobs: Sequence[Job],
    words: Sequence[str],
    graphs: Mapping[str, Graph] | None = None,
    *,
    verb: str = "train",
) -> None:
    """Write sweep.json, merged by name with the jobs of commands that were given before or work on it now.

    graphs: of the jobs by name; what they are made of is kept by `kdlab store prune` before a job has begun.
    """
    command = shlex.join(["kdlab", verb, *words])
    told = [
        {
            "name": job.name,
            "overrides": job.overrides,
            "method": job.run.method.name,
            "task": job.run.task.name,
            "model": job.run.model.name,
            "seed": job.run.seed,
            "artifacts": [stage.artifact for stage in (graphs or {}).get(job.name, ())],
        }
        for job in jobs
    ]
    if folder.exists() and not folder.is_dir():
        raise StoreError("a file is where the sweep's folder is to be", where=str(folder), fix="choose another name=")
    lock = f"sweep-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]}"
    with disk_errors("creating the sweep's folder", folder), Store(jobs[0].run.store).locked(lock):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("sweep.json.*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)
        before = _told_before(folder / "sweep.json")
        merged = {job["name"]: job for job in [*before["jobs"], *redact(told)]}
        commands = dict.fromkeys([*before["commands"], redact(command)])
        write_json(
            folder / "sweep.json",
            {"format": FORMAT, "name": folder.name, "commands": list(commands), "jobs": list(merged.values())},
        )


def _told_before(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"commands": [], "jobs": []}
    found = read(path)
    if found is None or found.get("format") != FORMAT or not {"commands", "jobs"} <= found.keys():
        raise StoreError(
            "the list of the sweep's jobs can't be read, or was written by another kdlab",
            where=str(path),
            fix="move the file away; the jobs that have run are in their folders",
        )
    return found


def standing(folder: Path) -> Standing:
    """Where the job with this folder stands, as its files say."""
    status = read(folder / "status.json")
    if status is not None and status.get("state") in ("running", "waiting"):
        elsewhere = status.get("host") if status.get("host") != socket.gethostname() else None
        progress = {name: status.get(name) for name in ("stage", "step", "steps", "seconds_left")}
        held_up = status["state"] == "waiting"
        state: State = "running" if alive(status) else "stopped"
        return Standing(name=folder.name, state=state, host=elsewhere, held_up=held_up, **progress)
    if status is not None and status.get("state") == "failed":
        return Standing(name=folder.name, state="failed", error=failure(folder))
    result = read(folder / "result.json")
    if result is None:
        return Standing(name=folder.name)
    scores = result.get("scores", {}).get(result.get("split"), {}).get(result.get("metric"), {})
    return Standing(name=folder.name, state="finished", score=scores.get("selected"))


def failure(folder: Path) -> str | None:
    """failure.txt: why the job did not finish."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "failure.txt").read_text(encoding="utf-8").strip() or None
    return None


def made_since(graph: Graph, store: Store, moment: float) -> set[str]:
    """Fingerprints of the stages whose artifact is newer than that (seconds since 1970)."""
    found = set()
    for stage in graph:
        with suppress(OSError):
            if (store.path(stage.artifact) / MANIFEST).stat().st_mtime >= moment:
                found.add(stage.fingerprint)
    return found


def write_failure(folder: Path, text: str) -> None:
    with suppress(OSError):  # a full disk must not hide what went wrong
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failure.txt").write_text(f"{text}\n", encoding="utf-8")
        Status(folder).write("failed")


# Doing the jobs ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Crew:
    """Does jobs by their numbers in processes of their own, where a launcher takes it: in this process, or another.

    work: does a job in the process it is called in, and returns its exit code.
    """

    folder: Path
    jobs: list[Job]
    work: Callable[[int], int]
    quiet: bool  # what the jobs print is not shown
    claims: bool  # GPUs; Slurm has its own way to give them
    token: str  # tells this launch from every other
    launched_by: int | None = None  # process that every process of this launch ends with; None: they outlive it

    def __call__(self, number: int) -> int:
        """Do a job; the processes stay for the next one that comes here.

        Who is asked to stop does no further job. Where submitit asks (Slurm is about to take the machine away), it is
        given back its signal once there is a checkpoint, and puts the job into the queue again.
        """
        global _TEAM, _REQUEUE
        if _TEAM is None or _TEAM[0] != self.token:
            if _TEAM is not None:
                _TEAM[1].dismiss()
            if self.launched_by is not None:
                end_with(self.launched_by)
            asks = [signal.SIGUSR2] if callable(signal.getsignal(signal.SIGUSR2)) else []
            _REQUEUE = interruption.remember(*asks).get(signal.SIGUSR2)
            _TEAM = self.token, self.team()
            Finalize(None, _TEAM[1].dismiss, exitpriority=1)  # else a process waits for its children when it ends
        try:
            return self.do(number, _TEAM[1])
        except interruption.Interrupted as stop:
            if stop.signum == signal.SIGUSR2 and _REQUEUE is not None:
                _REQUEUE(stop.signum, None)
            return interruption.code(stop)

    def team(self) -> Team:
        return Team(self.work, quiet=self.quiet, claims=self.claims)

    def do(self, number: int, team: Team, beat: Callable[[], None] = lambda: None) -> int:
        """The job's exit code. That its process died is written to its folder, as any other error is."""
        job = self.jobs[number]
        hardware = job.run.hardware
        try:
            on_gpu = hardware.device in ("auto", "cuda")
            code = team.do(number, processes=hardware.processes, on_gpu=on_gpu, beat=beat)
            place = self.folder / job.name
            stopped = code > 128  # asked to stop
            # A result may be that of another run.
            if code == 0 or stopped or failure(place) is not None or (place / "result.json").exists():
                return code
            text = "a process of this job stopped, and the others had to be ended; see its console.log"
        except Died as death:
            text = (
                f"the process of this job died: {death.how}\n"
                "  fix:   give the same command again, it goes on at the last checkpoint; if memory was short, run "
                "fewer jobs at once, or set hardware.micro_batch"
            )
            code = 1
        except KdlabError as error:
            text, code = str(error), 2
        write_failure(self.folder / job.name, text)
        if not self.quiet:
            print(f"error: {job.name}: {text}", file=sys.stderr, flush=True)
        return code


# Of a process that a launcher calls for one job after the other.
_TEAM: tuple[str, Team] | None = None
_REQUEUE: Callable[[int, None], object] | None = None  # submitit's own handler


def placed(jobs: Sequence[Job], at_once: int) -> list[Job]:
    """Each job with its share of the cores, if so many run at once; hardware.threads that was given stays."""
    placed = []
    for job in jobs:
        hardware = job.run.hardware
        sharing = at_once * hardware.processes
        if hardware.threads == 0 and sharing > 1:
            job = replace(job, run=replace(job.run, hardware=replace(hardware, threads=max(1, cores() // sharing))))
        placed.append(job)
    return placed


def under_slurm(run: Run) -> Run:
    """The run with the threads that Slurm gives its job, if it was started there and not told otherwise."""
    if run.hardware.threads or "SLURM_CPUS_PER_TASK" not in os.environ:
        return run
    threads = max(1, cores() // run.hardware.processes)
    return replace(run, hardware=replace(run.hardware, threads=threads))


def at_once(launcher: Launcher, jobs: int) -> int:
    """How many jobs a launcher runs on this machine at the same time; raises ConfigError."""
    if launcher.name == "joblib":
        wanted = launcher.settings.get("n_jobs")
        if wanted == 0:
            raise ConfigError(["hydra.launcher.n_jobs=0: must be 1 or more, or -1 for one job on each core"])
        wanted = 1 if wanted is None else int(wanted)
        return max(1, min(jobs, wanted if wanted > 0 else cores() + 1 + wanted))
    if launcher.name == "submitit_local":  # which would start them all
        return max(1, min(jobs, cores() // (launcher.settings.get("cpus_per_task") or 1)))
    return 1


def do_here(crew: Crew, numbers: Sequence[int], beat: Callable[[], None]) -> dict[int, int]:
    """One job after the other, those first that no other command is at; returns their exit codes."""
    codes = {}
    team = crew.team()
    left = list(numbers)
    try:
        while left:
            free = (number for number in left if standing(crew.folder / crew.jobs[number].name).state != "running")
            number = next(free, left[0])
            left.remove(number)
            codes[number] = crew.do(number, team, beat)
    finally:
        team.dismiss()
    return codes


def do_elsewhere(
    crew: Crew,
    launcher: Launcher,
    numbers: Sequence[int],
    launch: Callable[[Crew, Sequence[int]], Mapping[int, int | str]],
) -> dict[int, int]:
    """Where a launcher plugin takes them; returns their exit codes. launch: `compose.launch_elsewhere`.

    What a pool lost with one of its processes is given to a new one, each job so often as `ATTEMPTS`. Processes on this
    machine are told when this one is asked to stop; raises Interrupted when they have. Jobs at Slurm go on.
    """
    here = launcher.name != "submitit_slurm"

    def launched(some: Sequence[int]) -> Mapping[int, int | str]:
        with interruption.deferred(stop_children) if here else nullcontext():
            return launch(crew, some)

    codes: dict[int, int] = {}
    size = at_once(launcher, len(numbers)) if launcher.name == "submitit_local" else len(numbers)
    left, attempt = list(numbers), 1
    while left:
        told = {
            number: answer
            for place in range(0, len(left), size)
            for number, answer in launched(left[place : place + size]).items()
        }
        left = []
        for number, answer in told.items():
            folder = crew.folder / crew.jobs[number].name
            now = standing(folder)
            if isinstance(answer, int):
                codes[number] = answer
            elif now.state in ("finished", "failed"):
                codes[number] = 0 if now.state == "finished" else 2
            elif launcher.name == "joblib" and attempt < ATTEMPTS:
                left.append(number)
            else:
                codes[number] = 1
                write_failure(folder, f"hydra/launcher={launcher.name} lost this job: {answer}")
        attempt += 1
    return codes


def stop_children() -> None:
    """Ask the processes that a launcher has started to stop; they ask theirs."""
    import psutil

    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            process.terminate()


@dataclass
class Board:
    """The live table of a sweep's jobs on a terminal; elsewhere it shows nothing."""

    folder: Path
    names: Sequence[str]
    console: Console
    _known: dict[str, Standing] = field(default_factory=dict)  # of finished jobs

    @property
    def live(self) -> bool:
        return self.console.is_terminal

    def table(self) -> Table:
        jobs = []
        for name in self.names:
            if name not in self._known:
                now = standing(self.folder / name)
                if now.state == "finished":
                    self._known[name] = now
                jobs.append(now)
            else:
                jobs.append(self._known[name])
        return jobs_table(str(self.folder), jobs, height=self.console.height)

    @contextmanager
    def shown(self, *, by_itself: bool) -> Iterator[Callable[[], None]]:
        """Show the table; yields what to call now and then, unless it is to refresh by itself.

        A process that is going to fork must have no threads, so it calls.
        """
        if not self.live:
            yield lambda: None
            return
        from rich.live import Live

        live = Live(
            get_renderable=self.table,
            console=self.console,
            auto_refresh=by_itself,
            refresh_per_second=1 / TABLE_SECONDS,
            transient=False,
        )
        with live:
            yield Every(TABLE_SECONDS, live.refresh)


class Every:
    """Calls a function when so many seconds have passed since it last did."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        import time

        self.seconds, self.function, self.clock = seconds, function, time.monotonic
        self.at = -seconds

    def __call__(self) -> None:
        if self.clock() - self.at >= self.seconds:
            self.at = self.clock()
            self.function()
