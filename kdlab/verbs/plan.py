"""`kdlab plan`: the graph of a run or of a sweep, what is cached, what would run, how much work."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kdlab.errors import ConfigError, KdlabError

STAGES = "--stages"  # each stage of a sweep has a line, however many there are

if TYPE_CHECKING:
    from kdlab.compose import Composition, Job
    from kdlab.graph import Graph


def main(words: list[str]) -> int:
    from rich.console import Console

    from kdlab import compose, hub, supplies
    from kdlab.artifacts import Store
    from kdlab.execution import requests
    from kdlab.graph import Graph
    from kdlab.report.graph import code_notes, cost_notes, finished_jobs, plan_notes, plan_table, sweep_table

    every_stage = STAGES in words
    words = [word for word in words if word != STAGES]
    if compose.hydra_passthrough(words):
        return 0
    composition = compose.jobs(words)
    warn_of(composition)
    graphs = refuse_bad_plans(composition, strictly=True)
    run = composition.jobs[0].run
    store = Store(run.store)
    console = Console(highlight=False)
    whole = Graph.of({f"{job}/{name}": stage for job, graph in graphs.items() for name, stage in graph.targets.items()})
    notes = [*plan_notes(whole), *cost_notes(whole, store, requests(run))]
    if composition.multirun:
        finished = finished_jobs(list(graphs.values()), store, run.fresh)
        done = f", {finished} of them finished" if finished else ""
        console.print(f"{len(composition.jobs)} jobs{done}; what they share is listed once, and run once")
        console.print(sweep_table(list(graphs.values()), store, run.fresh, every_stage=every_stage))
        notes += code_notes(whole, store)
    else:
        console.print(plan_table(whole, store, run.fresh))
    for line in notes:
        console.print(line, markup=False, soft_wrap=True)
    for note in dict.fromkeys(pinned.note for pinned in pins().known.values() if pinned.note):
        console.print(f"unpinned: {note}", markup=False, soft_wrap=True)
    if hub.offline():
        for line in supplies.lacking(supplies.to_run(whole, store, run.fresh)):
            console.print(f"not in the cache: {line}", markup=False, soft_wrap=True)
    console.print("~ is an estimate, or known only when the data is prepared", soft_wrap=True)
    return 0


def refuse_bad_plans(composition: Composition, *, strictly: bool = False) -> dict[str, Graph]:
    """The jobs' graphs by name. Says all that is wrong with any before the first one starts.

    What else a job meets is its own matter, and it has no graph here; strictly: it is raised.
    """
    from kdlab.methods import plan

    graphs = {}
    problems: dict[str, None] = {}
    for job in composition.jobs:
        try:
            graphs[job.name] = plan(job.run, pins())
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
        except KdlabError:
            if strictly:
                raise
    if problems:
        raise ConfigError(list(problems))
    return graphs


def warn_of(composition: Composition) -> None:
    from kdlab.checks import warnings

    jobs: list[Job] = composition.jobs
    for text in dict.fromkeys(text for job in jobs for text in warnings(job.run)):
        print(f"warning: {text}", file=sys.stderr)


_PINS: Any = None


def pins() -> Any:
    """What is pinned once for all jobs of this process."""
    global _PINS
    if _PINS is None:
        from kdlab.pins import Pins

        _PINS = Pins()
    return _PINS
