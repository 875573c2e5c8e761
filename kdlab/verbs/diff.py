"""`kdlab diff`: what differs between two runs."""

from __future__ import annotations

import json
from pathlib import Path

from kdlab.verbs import parser


def main(words: list[str]) -> int:
    about = "What differs between two runs: settings, data, versions, stages and why, scores, answers, times."
    arguments = parser("diff", about)
    arguments.add_argument("a", type=Path, metavar="RUN_A", help="the folder of a run, finished or not")
    arguments.add_argument("b", type=Path, metavar="RUN_B", help="the folder of another one")
    arguments.add_argument("--format", choices=["table", "json"], default="table", help="json: all of it, to stdout")
    arguments.add_argument(
        "--all", action="store_true", help="also what can't change a number, what is the same, and every score"
    )
    arguments.add_argument("--store", help="where the runs' artifacts are; default: as each run says")
    given = arguments.parse_args(words)

    from rich.console import Console

    from kdlab.report import diff

    found = diff.compared(diff.opened(given.a), diff.opened(given.b), given.store)
    if given.format == "json":
        print(json.dumps(found, indent=2))
        return 0
    console = Console(highlight=False)
    for part in diff.shown(found, everything=given.all):
        console.print(part, crop=False)
    return 0
