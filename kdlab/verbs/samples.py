"""`kdlab samples`: look at a reasoning run."""

from __future__ import annotations

from pathlib import Path

from kdlab.verbs import parser


def main(words: list[str]) -> int:
    from kdlab.report import samples

    arguments = parser("samples", "Look at a reasoning run: questions, rationales and answers, right or wrong.")
    arguments.add_argument("run", type=Path, help="the folder of a run")
    arguments.add_argument("--only", choices=list(samples.KINDS), help="a kind of answer, or of error")
    arguments.add_argument("--split", choices=["test", "train"], help="default: both; train has the teacher's only")
    arguments.add_argument("--limit", type=int, help="default: 10; with --json all")
    arguments.add_argument("--seed", type=int, help="draw them at random; default: the first ones")
    arguments.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments.add_argument("--store", help="where the run's artifacts are; default: as the run says")
    given = arguments.parse_args(words)

    from rich.console import Console

    found = samples.load(given.run, given.store)
    limit = 10 if given.limit is None and not given.json else given.limit
    chosen = samples.select(found, only=given.only, split=given.split, limit=limit, seed=given.seed)
    if given.json:
        print(samples.json_lines(chosen), end="")
        return 0
    samples.show(Console(highlight=False), chosen, found)
    return 0
