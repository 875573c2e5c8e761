"""`kdlab evaluate`: finished runs on another task or split, and files for GLUE's leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.errors import ConfigError, KdlabError
from kdlab.verbs import parser

if TYPE_CHECKING:
    from kdlab.config import Run
    from kdlab.evaluation import Subject
    from kdlab.runs import Record

ABOUT = """Score a finished run's model on its own task, on another one (task=glue/mnli, with task.xxx=... as for train)
or on other rows. The result stands in RUN/evaluations/, and is cached like a stage of the run."""


def main(words: list[str]) -> int:
    arguments = parser("evaluate", ABOUT)
    arguments.add_argument(
        "given", nargs="+", metavar="RUN|KEY=VALUE", help="folders of runs or sweeps; task=... words"
    )
    arguments.add_argument(
        "--split",
        default="",
        metavar="NAMES",
        help="of dev, test, the task's further sets, and the source's own splits; default: what the task names",
    )
    arguments.add_argument("--side", choices=["student", "teacher"], default="student")
    arguments.add_argument("--store", help="where the runs' artifacts are; default: as each run says")
    arguments.add_argument("--out", type=Path, help="default: RUN/evaluations/TASK-SETS-DIGEST")
    arguments.add_argument(
        "--leaderboard", type=Path, metavar="DIR", help="collect GLUE's files of the runs here, in submission.zip"
    )
    arguments.add_argument("--config-dir", type=Path, metavar="DIR", help="with task files of your own, as for train")
    given = arguments.parse_intermixed_args(words)

    from rich.console import Console

    from kdlab import evaluation, runs
    from kdlab.engine.progress import Display
    from kdlab.execution import requests
    from kdlab.report import evaluation as report

    folders, changes = _sorted(given.given)
    records, left_out = runs.collect(folders)
    unfinished = [record for record in records if record.result is None]
    if len(records) > len(unfinished):
        left_out += [f"{record.folder}: it has not finished" for record in unfinished]
        records = [record for record in records if record.result is not None]
    problems = []
    if given.out is not None and len(records) > 1:
        problems.append(f"--out {given.out}: is for one run, and {len(records)} are given")
    for flag, folder in (("--out", given.out), ("--leaderboard", given.leaderboard)):
        if folder is not None and folder.exists() and not folder.is_dir():
            problems.append(f"{flag} {folder}: is a file; give a folder")
        elif folder is not None and (folder / "run.json").exists():
            problems.append(f"{flag} {folder}: is the folder of a run; give another")
    if problems:
        raise ConfigError(problems)
    sets = [name.strip() for name in given.split.split(",") if name.strip()]
    if given.leaderboard is not None:
        sets = sets or ["test"]
    console = Console(highlight=False)
    for line in left_out:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    asked: list[tuple[Subject, Run]] = []
    failed: list[str] = []

    def told(problem: KdlabError, record: Record) -> None:
        """One run that can't be asked stops no other."""
        if len(records) == 1:
            raise problem
        failed.append(f"{record.folder}: {problem}")

    for record in records:
        try:
            subject = evaluation.Subject.open(record, side=given.side, store=given.store)
            asked.append((subject, _question(subject, changes, given.config_dir)))
        except KdlabError as problem:
            told(problem, record)
    if given.leaderboard is not None:
        _refuse_for_the_leaderboard(asked)
    for subject, run in asked:
        try:
            with Display(console=console) as screen:
                found = evaluation.evaluate(
                    subject,
                    run,
                    sets=sets,
                    words=changes,
                    translate=any(word.lstrip("+").startswith("translator") for word in changes),
                    out=given.out,
                    screen=screen,
                    requests=requests(run),
                )
        except KdlabError as problem:
            told(problem, subject.record)
            continue
        for table in report.tables(found.told):
            console.print(table)
        for line in found.told["warnings"]:
            console.print(f"warning: {line}", markup=False, soft_wrap=True)
        files = _leaderboard_files(run, found, given.leaderboard)
        console.print(f"evaluation: {found.folder / 'evaluation.json'}", markup=False, soft_wrap=True)
        for line in files:
            console.print(line, markup=False, soft_wrap=True)
    if given.leaderboard is not None:
        _pack(console, given.leaderboard)
    for line in failed:
        console.print(f"failed: {line}", markup=False, soft_wrap=True)
    return 2 if failed else 0


def _sorted(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """(folders of runs, words of the configuration); a folder's name may hold "="."""
    folders: list[str] = []
    words: list[str] = []
    for word in given:
        is_word = not Path(word).exists() and ("=" in word or word.startswith(("+", "~")))
        (words if is_word else folders).append(word)
    if not folders:
        raise ConfigError([f"{' '.join(given)}: no run is given; kdlab evaluate outputs/runs/NAME task=glue/mnli"])
    return folders, words


def _question(subject: Subject, words: Sequence[str], config_dir: Path | None) -> Run:
    """The run's configuration with the words on top, checked."""
    from kdlab import checks, compose
    from kdlab.methods.evaluation import OPEN

    record = subject.record
    return compose.further(
        record.config, words, open_to=OPEN[record.family], check=checks.check_question, config_dir=config_dir
    )


def _refuse_for_the_leaderboard(asked: Sequence[tuple[Subject, Run]]) -> None:
    """Say which runs give no file of the leaderboard, or the same."""
    from kdlab.data.glue import hidden_sets

    problems: list[str] = []
    files: dict[str, Path] = {}
    for subject, run in asked:
        own = hidden_sets(run.task)
        if not own:
            problems.append(f"{subject.record.folder}: task={run.task.name} is none of GLUE's, so it gives no file")
        for one in own.values():
            if one.file in files:
                problems.append(
                    f"{subject.record.folder}: gives {one.file}, as {files[one.file]} does; give one of them"
                )
            files.setdefault(one.file, subject.record.folder)
    if problems:
        raise ConfigError(problems)


def _leaderboard_files(run: Run, found: Any, folder: Path | None) -> list[str]:
    """Write GLUE's files of the sets that were asked; what there is to say of them."""
    from kdlab.data.glue import hidden_sets
    from kdlab.errors import DataError
    from kdlab.report import leaderboard

    lines = []
    for name, one in hidden_sets(run.task).items():
        if name in found.predictions:
            try:
                file = leaderboard.write_file(one, found.predictions[name], folder or found.folder)
            except DataError as problem:
                lines.append(f"no file for the leaderboard: {problem.what}")
            else:
                lines.append(f"leaderboard: {file}, {one.rows} rows")
    return lines


def _pack(console: Any, folder: Path) -> None:
    from kdlab.report import leaderboard

    packed = leaderboard.pack(folder)
    for line in packed.unfit:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)
    wanted = len(packed.there) + len(packed.missing)
    console.print(f"submission: {packed.archive}, {len(packed.there)} of {wanted} files", markup=False, soft_wrap=True)
    if packed.missing:
        missing = ", ".join(packed.missing)
        console.print(f"missing: {missing}; a submission needs all {wanted}", markup=False, soft_wrap=True)
