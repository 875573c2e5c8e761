"""Run a grid of the README for a given time and print its table; cells that did not finish read "not run".

    python scripts/grid.py [--experiment cpu/grid] --minutes 60 [--processes 2] [OVERRIDE ...]

The same as `kdlab train -m experiment=...`, one process per task. Give it again to go on where it stopped.
With --table it only prints the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Grid:
    """The cells of an experiment's table. tasks: with their titles."""

    tasks: dict[str, str]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


GRIDS = {
    "cpu/grid": Grid(
        {
            "sample/cola_2k": "CoLA, 2,000 (MCC)",
            "sample/stsb_1k": "STS-B, 1,000 (Pearson-Spearman)",
            "sample/qnli_1k": "QNLI, 1,000 (accuracy)",
            "sample/qnli_1k_noise30": "QNLI, 1,000, 30 % noise (accuracy)",
            "sample/rte_1k": "RTE, 1,000 (accuracy)",
        },
        ("ft", "kd", "pkd", "tinybert", "minilm_v2", "bert_emd", "l_ild", "cr_ild"),
        (1, 2, 3),
    ),
    "cpu/cot": Grid(
        {"reasoning/multiarith": "MultiArith (accuracy)", "reasoning/addsub": "AddSub (accuracy)"},
        ("zs", "ft_answer", "ft_cot"),
        (42,),
    ),
    "demo/cot": Grid(
        {"demo/coin_flip": "Coin flips (accuracy)", "demo/arithmetic": "Arithmetic, 3 steps (accuracy)"},
        ("ft_answer", "ft_cot", "ft_cot_diverse"),
        (42,),
    ),
}


def folder(experiment: str) -> Path:
    return Path("outputs") / "sweeps" / experiment.replace("/", "-")


def command(experiment: str, task: str, processes: int, overrides: list[str]) -> list[str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    name = folder(experiment).name
    words = [f"experiment={experiment}", f"task={task}", f"name={name}", f"hardware.threads={threads}", *overrides]
    return [sys.executable, "-m", "kdlab", "train", "-m", *words]


def run(experiment: str, minutes: float, processes: int, overrides: list[str]) -> None:
    """Start the tasks, `processes` at a time; stop what still runs when the time is over."""
    deadline = time.monotonic() + 60 * minutes
    waiting, running = list(GRIDS[experiment].tasks), {}
    logs = folder(experiment)
    logs.mkdir(parents=True, exist_ok=True)
    while (waiting or running) and time.monotonic() < deadline:
        while waiting and len(running) < processes:
            task = waiting.pop(0)
            with open(logs / f"{task.replace('/', '_')}.log", "a", encoding="utf-8") as log:
                running[task] = subprocess.Popen(
                    command(experiment, task, processes, overrides), stdout=log, stderr=subprocess.STDOUT
                )
            print(f"started {task}, see {log.name}", flush=True)
        time.sleep(1)
        running = {task: process for task, process in running.items() if process.poll() is None}
    for process in running.values():
        process.terminate()
        process.wait()


def results(experiment: str) -> list[dict[str, Any]]:
    files = sorted(folder(experiment).glob("*/result.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def table(grid: Grid, found: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation of the selected score, x 100."""
    lines = ["| | " + " | ".join(grid.tasks.values()) + " |", "|---|" + "---:|" * len(grid.tasks)]
    rows = {"majority or mean": [_majority(found, task) for task in grid.tasks]}
    rows["teacher"] = [_teacher(found, task) for task in grid.tasks]
    rows |= {method: [_cell(grid, found, task, method) for task in grid.tasks] for method in grid.methods}
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def _of(found: list[dict[str, Any]], task: str, method: str | None = None) -> list[dict[str, Any]]:
    return [one for one in found if one["run"]["task"] == task and method in (None, one["run"]["method"])]


def _majority(found: list[dict[str, Any]], task: str) -> str:
    for one in _of(found, task):
        return f"{100 * one['majority'][one['split']][one['metric']]:.1f}"
    return "not run"


def _teacher(found: list[dict[str, Any]], task: str) -> str:
    for one in _of(found, task):
        if one["teacher"]:
            return f"{100 * one['teacher']['scores'][one['split']][one['metric']]['selected']:.1f}"
    return "not run"


def _cell(grid: Grid, found: list[dict[str, Any]], task: str, method: str) -> str:
    runs = {one["run"]["seed"]: one for one in _of(found, task, method)}
    if not runs:
        return "not run"
    scores = [100 * one["scores"][one["split"]][one["metric"]]["selected"] for one in runs.values()]
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    missing = "" if len(scores) == len(grid.seeds) else f" ({len(scores)} of {len(grid.seeds)} seeds)"
    return f"{statistics.fmean(scores):.1f}{spread}{missing}"


def spent(found: list[dict[str, Any]]) -> str:
    """Seconds of training in all, and how many were saved because runs shared artifacts."""
    alone = sum(sum(one["seconds_of_stages"].values()) for one in found)
    once: dict[str, float] = {}
    for one in found:
        for label, artifact in one["artifacts"].items():
            once[artifact] = one["seconds_of_stages"][label]
    shared = sum(once.values())
    return f"{len(found)} runs: {shared / 60:.1f} minutes of stages; without sharing {alone / 60:.1f} minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=list(GRIDS), default="cpu/grid")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print the table")
    given, overrides = parser.parse_known_args()
    started = time.monotonic()
    if not given.table:
        run(given.experiment, given.minutes, given.processes, overrides)
    found = results(given.experiment)
    print(table(GRIDS[given.experiment], found))
    print(f"\n{spent(found)}; wall time of this call {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
