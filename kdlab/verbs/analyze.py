"""`kdlab analyze`: how much finished runs overfit, or do in each language."""

from __future__ import annotations

from pathlib import Path

from kdlab.execution import silent
from kdlab.verbs import parser, run_folders


def main(words: list[str]) -> int:
    about = "How much finished runs overfit, or do in each language: numbers in analysis.json, plots, and tables."
    arguments = parser("analyze", about)
    arguments.add_argument("runs", nargs="+", type=Path, help="folders of runs, or of a sweep")
    arguments.add_argument(
        "--what",
        default="",
        metavar="NAMES",
        help="of gap,surface,noise,distance (distillation), gap,languages (crosslingual); default: all",
    )
    arguments.add_argument(
        "--rows", type=int, help="that each part looks at; default: surface 64, noise 300, distance 128"
    )
    arguments.add_argument("--points", type=int, default=11, help="of the surface in each direction; odd")
    arguments.add_argument("--span", type=float, default=1.0, help="of the surface: from -SPAN to SPAN")
    arguments.add_argument("--draws", type=int, default=3, help="of noise at each scale")
    arguments.add_argument("--seed", type=int, default=0, help="of rows, directions and noise")
    arguments.add_argument("--out", type=Path, help="default: RUN/analysis; of several runs outputs/analysis/NAME")
    arguments.add_argument("--store", help="where the runs' artifacts are; default: as each run says")
    arguments.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    given = arguments.parse_args(words)

    from rich.console import Console

    from kdlab import runner, study
    from kdlab.artifacts import Store
    from kdlab.config import Hardware
    from kdlab.engine.progress import Display
    from kdlab.graph import Graph
    from kdlab.report import study as report

    numbers_of = {name: getattr(given, name) for name in ("rows", "points", "span", "draws", "seed")}
    settings = study.Settings.of(given.what, **numbers_of)
    subjects, left_out = study.open_all([run_folders(folder) for folder in given.runs])
    console = Console(highlight=False)
    for line in left_out:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    planned, stores = {}, {}
    for subject in subjects:
        prefix = f"{subject.name}/" if len(subjects) > 1 else ""
        planned[subject.folder] = study.plan(subject, settings, prefix=prefix)
        stores[subject.folder] = Store(subject.record.store(given.store))
        study.require(subject, planned[subject.folder], settings, stores[subject.folder])
    hardware = Hardware(name="analyze", threads=max(0, given.threads))
    for store in {store.root: store for store in stores.values()}.values():
        graph = study.alone([planned[folder] for folder, own in stores.items() if own.root == store.root])
        with store.locked(f"run-{graph.identity()[:16]}"), Display(console=console) as screen:
            runner.run(graph, store, hardware=hardware, fresh=[], renewed=(), screen=screen, **silent())
    found = {
        subject.folder: report.numbers(subject, planned[subject.folder], settings, stores[subject.folder])
        for subject in subjects
    }
    places = report.placed(subjects, found)
    out = given.out or study.default_folder(given.runs, subjects)
    targets = {stage.artifact: stage for stages in planned.values() for stage in stages.values()}
    plots = report.write(places, settings, out, Graph.of(targets).describe())
    for table in report.tables(places):
        console.print(table)
    for line in report.remarks(found.values()):
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"numbers: {out / 'analysis.json'}   plots: {len(plots)} files beside it", markup=False, soft_wrap=True
    )
    return 0
