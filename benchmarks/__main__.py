"""Measure kdlab's speed: all parts, or those that are named.

    python -m benchmarks [PART ...] [--threads N] [--rounds N] [--seconds S] [--precisions fp32,bf16]

Prints tables and writes the same rows, with the machine's facts, to outputs/benchmarks/<time>.json. Figures count on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib import import_module
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.machine import Row, Settings, facts

PARTS = ("kernels", "training", "writing", "jobs")
FOLDER = Path("outputs/benchmarks")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender at most; default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="after which a comparison starts no round; default %(default)s"
    )
    parser.add_argument("--precisions", default="fp32,bf16", help="default %(default)s")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    settings = Settings(given.threads, given.rounds, given.seconds, tuple(given.precisions.split(",")))
    torch.set_num_threads(settings.threads)
    warnings.filterwarnings("ignore")  # of libraries, about how they were asked here

    machine = facts(settings)
    found: dict[str, list[Row]] = {}
    print("\n".join(f"{name}: {shown(value)}" for name, value in machine.items()), flush=True)
    try:
        for part in given.parts or PARTS:
            rows = found[part] = []
            for row in printed(import_module(f"benchmarks.{part}").run(settings)):
                rows.append(row)
    finally:
        path = FOLDER / f"{datetime.now():%Y-%m-%d-%H%M%S}.json"
        write(path, machine, found)
        print(f"\n{path}")


def write(path: Path, machine: Row, found: dict[str, list[Row]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "parts": found}, indent=1) + "\n", encoding="utf-8")


def printed(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows as they come; each run of rows with the same columns is printed as a table when it is whole."""
    for (title, *_), group in groupby(rows, key=lambda row: (row.get("table", ""), *row)):
        together = []
        for row in group:
            together.append(row)
            yield row
        print(f"\n{title}\n{table(together)}" if title else f"\n{table(together)}", flush=True)


def table(rows: list[Row]) -> str:
    """Rows with the same columns, as text; their "table", the title, is left out."""
    names = [name for name in rows[0] if name != "table"]
    lines = [names, *([shown(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(names))]
    words = [isinstance(rows[0][name], str) for name in names]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in lines
    )


def shown(value: str | float | int) -> str:
    """Three figures that count, and all of a number's whole part."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
