"""The command `kdlab`: its verbs, and what they print. Everything heavy is imported by the verb that needs it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import __version__
from kdlab.errors import ConfigError, KdlabError, StoreError, bug

if TYPE_CHECKING:
    from kdlab.compose import Composition, Job
    from kdlab.config import Hardware, Run
    from kdlab.context import Requests
    from kdlab.engine.progress import Display

EXIT_USER, EXIT_BUG, EXIT_INTERRUPTED = 2, 1, 130

USAGE = """\
usage: kdlab VERB ...

  train       run a graph: kdlab train method=cr_ild task=glue/rte   (-m for a sweep, --help for all groups)
  plan        show the same graph: what is cached, what would run, how much work; runs nothing
  list        what there is to choose from: kdlab list methods|tasks|models|rationales|translators|hardware|experiments
  doctor      look at device, versions, Hub, wandb and store, each problem with its fix
  store       the artifacts: kdlab store ls|verify|prune
  analyze     how much finished runs overfit: curves, loss surface, noise on weights, distance to the teacher;
              of runs in several languages: scores by language, matrix of training and test texts
  samples     look at a reasoning run: questions, rationales, answers, right or wrong
  sync        send finished runs to Weights & Biases: kdlab sync outputs/runs/*
  completion  shell completion: eval "$(kdlab completion bash)"

  --version, --help; KDLAB_DEBUG=1 shows the traceback of an error
"""

# Libraries that would otherwise report home, or talk over our own output.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not words or words[0] in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0 if words else EXIT_USER
    if words[0] == "--version":
        print(f"kdlab {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        from kdlab.checks import suggest

        print(f"error: kdlab has no verb '{verb}'{suggest(verb, VERBS)}\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_USER
    try:
        return VERBS[verb](rest)
    except KdlabError as error:
        show_traceback()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("\ninterrupted; give the same command again to continue", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        show_traceback()
        print(f"error: {bug(error)}", file=sys.stderr)
        return EXIT_BUG


def show_traceback() -> None:
    if os.environ.get("KDLAB_DEBUG"):
        traceback.print_exc()


# train and plan ----------------------------------------------------------------------------------------------------


def train(words: list[str]) -> int:
    from kdlab import compose

    if compose.hydra_passthrough(words):
        return 0
    composition = compose.jobs(words)
    warn_of(composition)
    if not composition.multirun:
        return compose.launch(words, train_one, composition)[0]
    refuse_bad_plans(composition)
    sweep = sweep_folder(composition)
    names = {tuple(job.overrides): job.name for job in composition.jobs}
    codes = compose.launch(words, partial(train_job, sweep=sweep, names=names, renewed=set()), composition)
    return report_sweep(composition, sweep, codes) if first_process() else max(codes)


def first_process() -> bool:
    """Of those that torchrun started: the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def agreed(answer: bool, hardware: Hardware) -> bool:
    """The first process's answer, in all that torchrun started."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return answer
    from kdlab.engine import device

    device.join(hardware)
    return bool(device.share(int(answer)))


def train_one(run: Run, overrides: list[str]) -> int:
    """A single run, in outputs/runs/."""
    from kdlab.methods import plan
    from kdlab.rundir import RunDirectory, default_name

    graph = plan(run, pins())
    pins().require(run, graph)
    run.name = run.name or default_name(run, graph)
    folder = RunDirectory(Path(run.outputs) / "runs" / run.name, run, graph, group=None, overrides=overrides)
    return execute(folder, renewed=set())


def train_job(
    run: Run, overrides: list[str], *, sweep: Path, names: dict[tuple[str, ...], str], renewed: set[str]
) -> int:
    """One job of a sweep, in its folder. An error is written there and does not stop the other jobs."""
    from kdlab.methods import plan
    from kdlab.rundir import RunDirectory

    name = names[tuple(overrides)]
    folder = sweep / name
    try:
        graph = plan(run, pins())
        pins().require(run, graph)
        run.name = name
        directory = RunDirectory(folder, run, graph, group=sweep.name, overrides=overrides)
        finished = agreed(directory.result() is not None and not run.fresh, run.hardware)
        if first_process():
            print(f"done  {name}: finished before" if finished else f"job   {name}", flush=True)
        return 0 if finished else execute(directory, brief=True, renewed=renewed)
    except Exception as error:
        if first_process():
            text = str(error) if isinstance(error, KdlabError) else bug(error)
            with suppress(OSError):  # a full disk must not hide what went wrong
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "failure.txt").write_text(f"{text}\n", encoding="utf-8")
        raise


def execute(folder: Any, *, brief: bool = False, renewed: set[str]) -> int:
    """Run a planned run in its folder, and show the result; of two processes with the same run, one waits.

    renewed: fingerprints of the stages that this command has run, which `fresh` need not run again; added to.
    """
    from kdlab.artifacts import Store

    def waiting() -> None:
        print(f"wait  {folder.path}: another process is at this run", flush=True)

    if not first_process():
        return execute_alone(folder, brief=brief, renewed=renewed)
    with Store(folder.run.store).locked(f"run-{folder.run_id}", waiting):
        return execute_alone(folder, brief=brief, renewed=renewed)


def execute_alone(folder: Any, *, brief: bool, renewed: set[str]) -> int:
    from dataclasses import asdict, replace

    from rich.console import Console

    from kdlab import runner
    from kdlab.artifacts import Artifact, Store, disk_errors
    from kdlab.config import Crosslingual, Reasoning
    from kdlab.engine.progress import Display
    from kdlab.engine.tracking import Tracker
    from kdlab.graph import Stage
    from kdlab.report import card, languages, result, samples, summary
    from kdlab.report.sync import summary_of
    from kdlab.rundir import points

    run, graph = folder.run, folder.graph
    store = Store(run.store)
    done: list[tuple[str, Artifact]] = []
    if not first_process():
        quiet = Display(quiet=True)
        outcome = runner.run(
            graph, store, hardware=run.hardware, fresh=run.fresh, renewed=renewed, screen=quiet, **_silent()
        )
        renewed |= {stage.fingerprint for stage in graph if stage.label in outcome.ran}
        return 0
    folder.open()
    before = folder.result()
    found_states = runner.states(graph, store, run.fresh, renewed)
    cached = all(state in ("cached", "idle") for state in found_states.values())
    mode = "none" if cached and before is not None else run.tracking.mode

    with (
        disk_errors("writing the run's folder", folder.path),
        store.reading(artifact.path.name for _, artifact in done),
        open(folder.path / "console.log", "a", encoding="utf-8") as log,
        Display(console=Console(highlight=False)) as shown,
        Tracker(replace(run.tracking, mode=mode), **folder.identity(), folder=folder.path) as tracker,
    ):
        screen = Both(shown, Display(console=Console(file=log, width=200, force_terminal=False, no_color=True)))
        offset = 0
        live: set[str] = set()

        def track(stage: Stage, point: Any) -> None:
            live.add(stage.fingerprint)
            tracker.log({**point, "global_step": offset + point["step"]})

        def finished(stage: Stage, artifact: Artifact) -> None:
            nonlocal offset
            done.append((stage.label, artifact))
            folder.write_metrics(done)
            if "steps" in artifact.facts:
                if stage.fingerprint not in live:
                    for point in points([(stage.label, artifact)]):
                        tracker.log({**point, "global_step": offset + point["global_step"]})
                offset += int(artifact.facts["steps"])

        try:
            outcome = runner.run(
                graph,
                store,
                hardware=run.hardware,
                curves=run.curves,
                requests=requests(run),
                fresh=run.fresh,
                renewed=renewed,
                screen=screen,
                track=track,
                finished=finished,
            )
        except KdlabError as error:
            folder.write_failure(str(error))
            screen.kept.note(f"failed: {error}")
            raise
        renewed |= {stage.fingerprint for stage in graph if stage.label in outcome.ran}
        targets = {name: outcome.artifacts[stage.fingerprint] for name, stage in graph.targets.items()}
        found = result.build(run, targets, dict(done), outcome.seconds)
        model = targets["student"].path / "model" if "student" in targets else None
        student = model is not None and model.is_dir()  # not of prompting, nor of a student behind an endpoint
        if before is None or outcome.ran or student != (folder.path / "student").is_dir():
            if model is not None and student:
                folder.write_student(model, card.model_card(found, asdict(run), folder.overrides))
            folder.write_result(found)
        else:
            found = before
        if isinstance(run.method, Reasoning):
            rows = samples.read_samples(targets["student_scores"].path / "samples.jsonl")
            tracker.table(*samples.tables(rows))
        if isinstance(run.method, Crosslingual):
            tracker.table(*languages.tables(found))
        tracker.finish(summary_of(found))
        for line in found["warnings"]:
            screen.note(f"warning: {line['stage']}: {line['text']}")
        if not brief:
            screen.table(summary.summary_table(found))
            if isinstance(run.method, Crosslingual):
                screen.table(languages.language_table(found))
            screen.table(summary.score_table(found))
        kept = f"   student: {folder.path / 'student'}" if student else ""
        screen.note(f"result: {folder.path / 'result.json'}{kept}")
    return 0


class Both:
    """Two displays as one: the terminal's, and the one that is kept in the run's console.log."""

    def __init__(self, shown: Display, kept: Display) -> None:
        self.kept = kept
        self.displays = (shown, kept)

    def stage_started(self, label: str, why: str = "") -> None:
        for display in self.displays:
            display.stage_started(label, why)

    def stage_hit(self, label: str, age: float, note: str = "") -> None:
        for display in self.displays:
            display.stage_hit(label, age, note)

    def stage_waiting(self, label: str) -> None:
        for display in self.displays:
            display.stage_waiting(label)

    def stage_done(self, label: str, seconds: float) -> None:
        for display in self.displays:
            display.stage_done(label, seconds)

    def update(self, point: Any) -> None:
        for display in self.displays:
            display.update(point)

    def note(self, text: str) -> None:
        for display in self.displays:
            display.note(text)

    def table(self, table: Any) -> None:
        for display in self.displays:
            display.table(table)


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


def _silent() -> dict[str, Any]:
    return {"track": lambda stage, point: None, "finished": lambda stage, artifact: None}


def sweep_folder(composition: Composition) -> Path:
    """outputs/sweeps/<name>, the same for the same sweep given again."""
    import hashlib

    first = composition.jobs[0].run
    if first.name:
        return Path(first.outputs) / "sweeps" / first.name
    words = "\n".join(sorted(" ".join(sorted(job.overrides)) for job in composition.jobs))
    methods = "+".join(dict.fromkeys(job.run.method.name for job in composition.jobs))
    tasks = "+".join(dict.fromkeys(job.run.task.name.replace("/", "_") for job in composition.jobs))
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    return Path(first.outputs) / "sweeps" / f"{methods}-{tasks}-{digest}"[-120:]


def report_sweep(composition: Composition, sweep: Path, codes: Sequence[int]) -> int:
    """The sweep's table, and at its end what failed and why."""
    from rich.console import Console

    from kdlab.report import languages, summary
    from kdlab.rundir import read

    results = [read(sweep / job.name / "result.json") for job in composition.jobs]
    whole = [result for result in results if result is not None]
    console = Console(highlight=False)
    if whole:
        several = all("languages" in result for result in whole)
        console.print(languages.comparison_table(whole) if several else summary.comparison_table(whole))
    failed = [job for job, code in zip(composition.jobs, codes, strict=True) if code]
    console.print(f"{len(codes) - len(failed)} of {len(codes)} jobs finished: {sweep}", soft_wrap=True)
    for job in failed:
        file = sweep / job.name / "failure.txt"
        reason = (file.read_text(encoding="utf-8").strip() if file.exists() else "") or "see above"
        console.print(f"failed: {job.name}: {reason}", markup=False, soft_wrap=True)
    if failed:
        console.print("give the same command again: finished jobs are skipped, failed ones run", soft_wrap=True)
    return EXIT_USER if failed else 0


def show_plan(words: list[str]) -> int:
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


_PINS: Any = None


def pins() -> Any:
    """What is pinned once for all jobs of this process."""
    global _PINS
    if _PINS is None:
        from kdlab.pins import Pins

        _PINS = Pins()
    return _PINS


# the other verbs ---------------------------------------------------------------------------------------------------


def parser(verb: str, about: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"kdlab {verb}", description=about, allow_abbrev=False)


def show_list(words: list[str]) -> int:
    from kdlab import catalog

    arguments = parser("list", "What there is to choose from, one line each.")
    arguments.add_argument("group", choices=list(catalog.GROUPS))
    arguments.add_argument("--config-dir", "-cd", help="a folder of your own with further options")
    given = arguments.parse_args(words)
    if given.config_dir is not None and not Path(given.config_dir).is_dir():
        raise ConfigError([f"--config-dir {given.config_dir}: no such folder"])
    entries = catalog.entries(given.group, given.config_dir)
    width = max((len(name) for name, _ in entries), default=0)
    for name, about in entries:
        print(f"{name:{width}}  {about}")
    return 0


def doctor(words: list[str]) -> int:
    arguments = parser("doctor", "Look at everything a run needs; each problem comes with its fix.")
    arguments.add_argument("--offline", action="store_true", help="ask no server")
    arguments.add_argument("--store", default="outputs/artifacts")
    given = arguments.parse_args(words)
    from kdlab import doctor as checks

    return checks.show(checks.diagnose(run_offline=given.offline, store=Path(given.store)))


def store(words: list[str]) -> int:
    arguments = parser("store", "Look after the artifacts.")
    arguments.add_argument("action", choices=["ls", "verify", "prune"])
    arguments.add_argument("--store", default="outputs/artifacts")
    arguments.add_argument("--outputs", default="outputs", help="prune keeps what the runs below it are made of")
    arguments.add_argument("--older-than", type=float, default=0.0, metavar="DAYS")
    arguments.add_argument("--yes", action="store_true", help="prune: remove; without it only say what would go")
    given = arguments.parse_args(words)

    from rich.console import Console

    from kdlab.artifacts import Store

    shelf, console = Store(given.store), Console(highlight=False)
    if given.action == "ls":
        from kdlab.report.store import store_table

        console.print(store_table(shelf))
        return 0
    if given.action == "verify":
        damage = shelf.verify()
        for line in damage:
            console.print(f"damaged: {line}", markup=False, soft_wrap=True)
        console.print(f"{len(shelf.artifacts())} artifacts, {len(damage)} damaged files")
        if damage:
            console.print("fix: remove the artifact's folder; the next run that needs it makes it again")
        return EXIT_USER if damage else 0
    from kdlab.rundir import used_artifacts

    if not Path(given.outputs).is_dir() and shelf.artifacts():
        raise StoreError(
            f"there is no folder {given.outputs}, so every artifact would look unused",
            where="--outputs",
            fix="give the folder that holds your runs/ and sweeps/; an empty one to keep nothing",
        )
    if given.yes and shelf.busy():
        raise StoreError(
            "a run is in progress on this store: what it reads must stay",
            where=str(shelf.root),
            fix="wait until it has ended; without --yes you see what would go",
        )
    chosen = shelf.prune(used_artifacts(Path(given.outputs)), older_than_days=given.older_than, remove=given.yes)
    for name, size in chosen:
        console.print(f"{'removed' if given.yes else 'unused'}  {name}  {size / 1e6:.1f} MB")
    total = sum(size for _, size in chosen) / 1e6
    console.print(f"{len(chosen)} artifacts, {total:.1f} MB" + ("" if given.yes else "; --yes removes them"))
    return 0


def analyze(words: list[str]) -> int:
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
        stores[subject.folder] = Store(given.store or subject.config["store"])
        study.require(subject, planned[subject.folder], settings, stores[subject.folder])
    hardware = Hardware(name="analyze", threads=max(0, given.threads))
    for store in {store.root: store for store in stores.values()}.values():
        graph = study.alone([planned[folder] for folder, own in stores.items() if own.root == store.root])
        with store.locked(f"run-{graph.identity()[:16]}"), Display(console=console) as screen:
            runner.run(graph, store, hardware=hardware, fresh=[], renewed=(), screen=screen, **_silent())
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


def show_samples(words: list[str]) -> int:
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


def sync(words: list[str]) -> int:
    arguments = parser("sync", "Send runs to Weights & Biases, each as one run, from its metrics.jsonl.")
    arguments.add_argument("runs", nargs="+", type=Path, help="folders of runs, or of a sweep")
    arguments.add_argument("--project", default="kdlab")
    arguments.add_argument("--entity")
    arguments.add_argument("--offline", action="store_true", help="write an offline run instead of sending")
    given = arguments.parse_args(words)

    from kdlab.config import Tracking
    from kdlab.report.sync import sync as send

    folders = [inner for folder in given.runs for inner in run_folders(folder)]
    mode = "offline" if given.offline else "online"
    settings = Tracking(name="wandb", mode=mode, project=given.project, entity=given.entity)
    for folder, place in zip(folders, send(folders, settings=settings), strict=True):
        print(f"{folder}: {place}")
    return 0


def run_folders(folder: Path) -> list[Path]:
    """The run folder itself, or those of a sweep's jobs."""
    inner = sorted(file.parent for file in folder.glob("*/run.json"))
    return [folder] if (folder / "run.json").exists() or not inner else inner


def completion(words: list[str]) -> int:
    from kdlab import completion as shells

    if words[:1] == ["line"]:
        print("\n".join(shells.complete(" ".join(words[1:]))))
        return 0
    arguments = parser("completion", 'Print a completion script: eval "$(kdlab completion bash)"')
    arguments.add_argument("shell", choices=["bash", "zsh"])
    print(shells.script(arguments.parse_args(words).shell), end="")
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "plan": show_plan,
    "list": show_list,
    "doctor": doctor,
    "store": store,
    "analyze": analyze,
    "samples": show_samples,
    "sync": sync,
    "completion": completion,
}
