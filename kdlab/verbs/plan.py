"""`kdlab plan`: the graph of a run or of a sweep, what is cached, what would run, how much work."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kdlab.errors import ConfigError, KdlabError

if TYPE_CHECKING:
    from kdlab.compose import Composition, Job
    from kdlab.config import Run
    from kdlab.context import Requests


def main(words: list[str]) -> int:
    from rich.console import Console

    from kdlab import compose
    from kdlab.artifacts import Store
    from kdlab.graph import Graph, Stage
    from kdlab.methods import plan
    from kdlab.report.graph import cost_notes, plan_notes, plan_table

    if compose.hydra_passthrough(words):
        return 0
    composition = compose.jobs(words)
    warn_of(composition)
    refuse_bad_plans(composition)
    targets: dict[str, Stage] = {}
    for job in composition.jobs:
        graph = plan(job.run, pins())
        targets |= {f"{job.name}/{name}": stage for name, stage in graph.targets.items()}
    run = composition.jobs[0].run
    console = Console(highlight=False)
    if composition.multirun:
        console.print(f"{len(composition.jobs)} jobs; what they share is listed once")
    whole = Graph.of(targets)
    console.print(plan_table(whole, Store(run.store), run.fresh))
    for line in [*plan_notes(whole), *cost_notes(whole, Store(run.store), requests(run))]:
        console.print(line, markup=False, soft_wrap=True)
    for note in dict.fromkeys(pinned.note for pinned in pins().known.values() if pinned.note):
        console.print(f"unpinned: {note}", markup=False, soft_wrap=True)
    console.print("~ is an estimate, or known only when the data is prepared", soft_wrap=True)
    return 0


def refuse_bad_plans(composition: Composition) -> None:
    """Say all that is wrong with any job before the first one starts; what else a job meets is its own matter."""
    from kdlab.methods import plan

    problems: dict[str, None] = {}
    for job in composition.jobs:
        try:
            plan(job.run, pins())
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
        except KdlabError:
            continue
    if problems:
        raise ConfigError(list(problems))


def warn_of(composition: Composition) -> None:
    from kdlab.checks import warnings

    jobs: list[Job] = composition.jobs
    for text in dict.fromkeys(text for job in jobs for text in warnings(job.run)):
        print(f"warning: {text}", file=sys.stderr)


def requests(run: Run) -> Requests:
    from kdlab.context import Requests

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


_PINS: Any = None


def pins() -> Any:
    """What is pinned once for all jobs of this process."""
    global _PINS
    if _PINS is None:
        from kdlab.pins import Pins

        _PINS = Pins()
    return _PINS
