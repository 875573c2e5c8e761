"""`kdlab compare`: runs beside each other."""

from __future__ import annotations

import sys
from pathlib import Path

from kdlab.verbs import parser


def main(words: list[str]) -> int:
    from kdlab.report import compare, tables

    about = "Runs beside each other: scores over seeds with intervals and tests, size and speed, the papers' numbers."
    arguments = parser("compare", about)
    arguments.add_argument("paths", nargs="+", help="folders of sweeps or runs, a whole outputs/, or patterns of them")
    arguments.add_argument(
        "--baseline",
        metavar="METHOD",
        help="what the others are tested against; default: ft, or another plain method, beside tests of all pairs; "
        "none: all pairs only",
    )
    arguments.add_argument("--metric", metavar="NAME", help="default: each task's own")
    arguments.add_argument("--split", metavar="NAME", help="default: what each family is compared on")
    arguments.add_argument(
        "--by",
        default="",
        metavar="NAMES",
        help="pool runs that are alike in these: method,task,model or keys such as method.samples; "
        "default: runs that differ in their seed only",
    )
    arguments.add_argument("--format", choices=["table", *tables.FORMATS], help="print only this, and write no files")
    arguments.add_argument("--out", type=Path, metavar="DIR", help="default: outputs/compare/NAME")
    arguments.add_argument("--html", type=Path, metavar="FILE", help="the page, written there")
    arguments.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    arguments.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    arguments.add_argument("--alpha", type=float, default=0.05, help="chance of an error that the tests may have")
    arguments.add_argument("--correction", choices=["holm", "bh", "none"], default="holm", help="for several tests")
    arguments.add_argument("--store", metavar="FOLDER", help="where the runs' artifacts are; default: as each run says")
    given = arguments.parse_args(words)

    from rich.console import Console

    from kdlab.runs import collect

    settings = compare.Settings(
        metric=given.metric,
        split=given.split,
        baseline=given.baseline,
        by=tuple(word.strip() for word in given.by.split(",") if word.strip()),
        alpha=given.alpha,
        correction=given.correction,
        resamples=given.resamples,
        seed=given.seed,
    )
    settings.check()
    records, left_out = collect(given.paths)
    found = compare.compare(records, settings=settings, left_out=left_out, given=given.paths, store=given.store)
    files: dict[Path, str] = {}
    out = given.out or (compare.default_folder(given.paths, records) if given.format is None else None)
    if out is not None:
        files |= {out / name: tables.FORMATS[form](found) for form, name in tables.FILES.items()}
    pages = [path for path in (out and out / "index.html", given.html) if path is not None]
    if pages:
        from kdlab.report.page import render

        page = render(found, compare.by_id(found, records), store=given.store)
        files |= dict.fromkeys(pages, page)
    compare.write(files)
    if given.format in (None, "table"):
        console = Console(highlight=False)
        for part in tables.shown(found):
            console.print(part, soft_wrap=isinstance(part, str), crop=False)
        for path in pages[-1:] if given.html else pages:
            console.print(f"page: {path}", markup=False, soft_wrap=True)
        if out is not None:
            names = ", ".join(tables.FILES.values())
            console.print(f"tables: {out} ({names})", markup=False, soft_wrap=True)
        return 0
    sys.stdout.write(tables.FORMATS[given.format](found))
    for line in tables.remarks(found):
        print(line, file=sys.stderr)
    return 0
