"""The jobs of a sweep while it runs: a table that stays readable with hundreds of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from kdlab.engine.progress import duration
from kdlab.report.summary import hundredfold

State = Literal["running", "waiting", "stopped", "failed", "finished"]
TELLING: tuple[State, ...] = ("running", "stopped", "failed", "finished", "waiting")  # the most wanted first
STYLES: dict[State, str] = {"running": "bold", "stopped": "yellow", "failed": "red", "finished": "green"}
FRAME = 7  # lines of the terminal that are not rows of jobs


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a job stands. stopped: its process is gone, and never said why."""

    name: str
    state: State = "waiting"
    stage: str | None = None  # of a running job
    held_up: bool = False  # another process makes that stage
    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None  # of the stage
    host: str | None = None  # if it runs on another machine
    score: float | None = None
    error: str | None = None


def jobs_table(title: str, jobs: Sequence[Standing], *, height: int) -> Table:
    """Job, state, score, time left: all of them if they fit into so many lines, else those that say most."""
    shown = list(jobs)
    room = max(3, height - FRAME)
    if len(shown) > room:
        ranked = sorted(shown, key=lambda job: TELLING.index(job.state))[:room]
        shown = [job for job in shown if job in ranked]
    table = Table(
        title=Text(title, style="table.title"),
        title_justify="left",
        caption=Text(overview(jobs, shown=len(shown)), style="table.caption"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=True,
    )
    table.add_column("job", no_wrap=True, overflow="ellipsis", ratio=3)
    table.add_column("state", no_wrap=True, overflow="ellipsis", ratio=2)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    names = telling_names([job.name for job in jobs])
    for job in shown:
        table.add_row(
            Text(names[job.name]),
            Text(_state(job), style=STYLES.get(job.state, "")),
            "" if job.score is None else hundredfold(job.score),
            "" if job.seconds_left is None else duration(job.seconds_left),
        )
    return table


def overview(jobs: Sequence[Standing], *, shown: int) -> str:
    """ "36 jobs: 2 running, 12 finished, 22 waiting", and how many of them have no row."""
    counts = Counter(job.state for job in jobs)
    parts = ", ".join(f"{counts[state]} {state}" for state in TELLING if counts[state])
    hidden = f"; {len(jobs) - shown} not shown" if shown < len(jobs) else ""
    return f"{len(jobs)} job{'s' if len(jobs) != 1 else ''}: {parts}{hidden}"


def telling_names(names: Sequence[str]) -> dict[str, str]:
    """Each name without the words that all have: "method=kd,seed=1" of "method=kd,seed=1,task=rte" and the like."""
    words = {name: name.split(",") for name in names}
    shared = set.intersection(*map(set, words.values())) if len(words) > 1 else set()
    return {name: ",".join(word for word in parts if word not in shared) or name for name, parts in words.items()}


def grouped(errors: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(error, the jobs that failed with it), from (job, error); each error once, also where it names the job."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, text in errors:
        alike = re.sub(rf"(?<![\w=,.+~-]){re.escape(name)}(?![\w=,.+~-])", "JOB", text)
        _, names = found.setdefault(alike, (text, []))
        names.append(name)
    return [(alike if len(names) > 1 else text, names) for alike, (text, names) in found.items()]


def _state(job: Standing) -> str:
    place = f" on {job.host}" if job.host else ""
    if job.state == "failed" and job.error:
        return f"failed: {' '.join(job.error.split())}"
    if job.state != "running" or job.stage is None:
        return f"{job.state}{place}"
    if job.held_up:
        return f"waits for {job.stage}, which another job makes{place}"
    steps = f" {job.step}/{job.steps}" if job.step is not None and job.steps else ""
    return f"{job.stage}{steps}{place}"
