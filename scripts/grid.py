"""Run a grid of the README for a given time and print its table; cells that did not finish read "not run".

    python scripts/grid.py [--experiment cpu/grid] --minutes 60 [--processes 2] [OVERRIDE ...]

The same as `kdlab train -m experiment=...`, one process per task, or per task and seed. Give it again to go on where it
stopped. With --table it only prints the table of what is there; with --task it runs these tasks only.
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
    by_seed: bool = False  # a process per seed: where seeds share no training
    modes: tuple[str, ...] = ()  # of inference, each a column; none: the method's own


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
    "cpu/musc": Grid(
        {
            "sample/tweets_en_es_fr": "Tweets (macro F1)",
            "sample/marc_en_es_fr": "MARC, 2,000 (accuracy)",
        },
        ("zero_shot_xlt", "translate_test", "translate_train", "translate_all", "supcon", "mixup", "musc"),
        (1, 2, 3),
        by_seed=True,
        modes=("original", "translated", "both"),
    ),
}


def folder(experiment: str) -> Path:
    return Path("outputs") / "sweeps" / experiment.replace("/", "-")


def command(experiment: str, part: list[str], processes: int, overrides: list[str]) -> list[str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    name = folder(experiment).name
    words = [f"experiment={experiment}", *part, f"name={name}", f"hardware.threads={threads}", *overrides]
    return [sys.executable, "-m", "kdlab", "train", "-m", *words]


def parts(experiment: str, tasks: list[str]) -> dict[str, list[str]]:
    """What each process runs: its name, and the words that tell it from the others."""
    grid = GRIDS[experiment]
    names = {task: task.replace("/", "_") for task in tasks or grid.tasks}
    if not grid.by_seed:
        return {name: [f"task={task}"] for task, name in names.items()}
    return {f"{name}-{seed}": [f"task={task}", f"seed={seed}"] for task, name in names.items() for seed in grid.seeds}


def run(experiment: str, tasks: list[str], minutes: float, processes: int, overrides: list[str]) -> None:
    """Start the parts, `processes` at a time; stop what still runs when the time is over."""
    deadline = time.monotonic() + 60 * minutes
    waiting, running = list(parts(experiment, tasks).items()), {}
    logs = folder(experiment)
    logs.mkdir(parents=True, exist_ok=True)
    while (waiting or running) and time.monotonic() < deadline:
        while waiting and len(running) < processes:
            name, part = waiting.pop(0)
            with open(logs / f"{name}.log", "a", encoding="utf-8") as log:
                running[name] = subprocess.Popen(
                    command(experiment, part, processes, overrides), stdout=log, stderr=subprocess.STDOUT
                )
            print(f"started {name}, see {log.name}", flush=True)
        time.sleep(1)
        running = {name: process for name, process in running.items() if process.poll() is None}
    for process in running.values():
        process.terminate()
        process.wait()


def results(experiment: str) -> list[dict[str, Any]]:
    files = sorted(folder(experiment).glob("*/result.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def tables(grid: Grid, found: list[dict[str, Any]]) -> str:
    """Markdown: one table of all tasks; with modes, one a task."""
    if not grid.modes:
        return table(grid, found, list(grid.tasks.values()), [(task, None) for task in grid.tasks])
    shown = []
    for task, title in grid.tasks.items():
        shown.append(f"{title}; bold: the method's own inference\n")
        shown.append(table(grid, found, list(grid.modes), [(task, mode) for mode in grid.modes]) + "\n")
    return "\n".join(shown)


def table(grid: Grid, found: list[dict[str, Any]], titles: list[str], columns: list[tuple[str, str | None]]) -> str:
    """Mean and standard deviation of the selected score, x 100; with modes, of the mean over languages."""
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(columns)]
    rows = {"majority or mean": [_majority(found, task) for task, _ in columns]}
    if not grid.modes:
        rows["teacher"] = [_teacher(found, task) for task, _ in columns]
    rows |= {method: [_cell(grid, found, task, method, mode) for task, mode in columns] for method in grid.methods}
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


def _cell(grid: Grid, found: list[dict[str, Any]], task: str, method: str, mode: str | None) -> str:
    runs = {one["run"]["seed"]: one for one in _of(found, task, method)}
    scores = [100 * score for score in (_score(one, mode) for one in runs.values()) if score is not None]
    if not scores:
        return "not run"
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    missing = "" if len(scores) == len(grid.seeds) else f" ({len(scores)} of {len(grid.seeds)} seeds)"
    own = mode is not None and mode == next(iter(runs.values()))["inference"]["mode"]
    shown = f"{statistics.fmean(scores):.1f}{spread}"
    return (f"**{shown}**" if own else shown) + missing


def _score(one: dict[str, Any], mode: str | None) -> float | None:
    """mode: of inference; None: the run's own. None where the run was not asked in that mode."""
    if mode is None:
        return float(one["scores"][one["split"]][one["metric"]]["selected"])
    means = one["means"][one["split"]].get(mode)
    return None if means is None else float(means["all"][one["metric"]])


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
    parser.add_argument("--task", action="append", default=[], help="only this one; may be given several times")
    parser.add_argument("--table", action="store_true", help="only print the table")
    given, overrides = parser.parse_known_args()
    started = time.monotonic()
    if not given.table:
        run(given.experiment, given.task, given.minutes, given.processes, overrides)
    found = results(given.experiment)
    print(tables(GRIDS[given.experiment], found))
    print(f"\n{spent(found)}; wall time of this call {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
