"""`kdlab verify-resume`: does a command that is killed, and given again, end with the bits of an unbroken one?

The command runs whole, twice, in folders of its own: the same bytes, or it can't be compared with anything. Then it
is given in another folder, where its processes get SIGKILL at a random moment, and given again with the next moment
until it has come to its end; then in the next folder, until there were as many kills as were asked for. Every second
moment is one of the clock, the others are drawn from what the unbroken run did to files, each kind of it in turn:
so that rare moments, such as a publication, are met as often as frequent ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.errors import ConfigError, KdlabError
from kdlab.verbs import parser

if TYPE_CHECKING:
    from kdlab.graph import Stage

EXAMPLES = """\
kdlab verify-resume method=cr_ild task=demo/nli model=tiny debug=fast        half a minute
kdlab verify-resume --kills 3 method=kd task=glue/rte hardware.checkpoint_seconds=10
kdlab verify-resume --kills 0 method=kd task=glue/rte                        only that two runs give the same bytes

The words are those of `kdlab train`, of a run or (with -m) a sweep. A checkpoint is written after every step, unless
hardware.checkpoint_seconds says otherwise; tracking is offline, unless told otherwise. Exit code: 0 if nothing
differed, 1 if something did, 2 if the command itself can't be run.
"""

CLOCK = "clock"
CHECKPOINT, PUBLICATION, FILES = "checkpoint", "publication", "stage's files"
LAST_LINES = 15  # of a failed command's output
PATIENCE = 20.0  # seconds for the other processes of a finished command to end
MISSES = 10  # attempts that may end before their moment, more than there are kills

# What may differ between two runs of one command: when, how long, in how much memory, where, by which code.
TIMES = frozenset({"made", "seconds", "seconds_of_stages", "latency_ms", "tokens_per_second"})
PLACES = frozenset({"outputs", "store", "overrides", "commands", "versions", "made_by", "git"})
READ = ("manifest.json", "figures.json", "result.json", "run.json", "sweep.json")  # compared but for those keys
TIMED = ("figures.json", "student/README.md")  # files whose checksum tells of times
FREE = ("console.log", "status.json", "README.md")  # a log, a moment, and a card with result.json's times

# Forked where that is safe, with the heavy modules loaded: then what is broken off is the run, not Python's start.
PRELOADED = ("torch", "transformers", "accelerate", "datasets", "pyarrow", "hydra", "kdlab")
_CONTEXT = multiprocessing.get_context("fork") if sys.platform == "linux" else multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Moment:
    """When to kill: after so many seconds, or at the operation on files of that kind and number."""

    kind: str
    seconds: float = 0.0
    number: int = 0

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s" if self.kind == CLOCK else f"{self.kind} {self.number}"


@dataclass
class Kill:
    """One SIGKILL: when, and what it broke off."""

    folder: Path
    moment: Moment
    stage: str
    doing: str
    identical: bool = False


@dataclass
class Proof:
    """What was found."""

    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def main(words: list[str]) -> int:
    arguments = parser("verify-resume", "Kill a command at random moments; it must end with the same bits.")
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.epilog = EXAMPLES
    arguments.usage = "kdlab verify-resume [--kills N] [--seed S] [--folder DIR] OVERRIDE ..."
    arguments.add_argument("--kills", type=int, default=10, metavar="N", help="how many; default: 10")
    arguments.add_argument("--seed", type=int, default=0, metavar="S", help="of the moments; default: 0")
    arguments.add_argument("--folder", type=Path, metavar="DIR", help="where to run; kept. Default: a temporary one")
    given, overrides = arguments.parse_known_args(words)

    from kdlab import compose
    from kdlab.verbs.plan import refuse_bad_plans

    refuse(given.kills, given.folder, overrides)
    composition = compose.jobs(overrides)
    graphs = refuse_bad_plans(composition, strictly=True)
    refuse_paid(stage for graph in graphs.values() for stage in graph)
    kept = given.folder is not None
    folder = given.folder.absolute() if kept else Path(tempfile.mkdtemp(prefix="kdlab-verify-"))
    try:
        proof = prove(folder, prepared(overrides, sweep=composition.multirun), given.kills, given.seed)
        kept = kept or bool(proof.differences)
        report(proof, folder if kept else None)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if proof.differences else 0


def refuse_paid(stages: Iterable[Stage]) -> None:
    """Each folder has a journal of its own, so an endpoint would be paid again and again. Raises ConfigError."""
    from kdlab.report.result import endpoint_of

    asked = {endpoint for stage in stages if (endpoint := endpoint_of(stage.values)) is not None}
    paid = [name for name in sorted(asked) if not re.search(r"//(localhost|127\.[0-9.]+|\[::1\])(:|/|$)", name)]
    if paid:
        raise ConfigError(
            [
                f"{name}: every attempt would ask it for everything again; take an endpoint on this machine"
                for name in paid
            ]
        )


def refuse(kills: int, folder: Path | None, overrides: Sequence[str]) -> None:
    """Raise ConfigError for what can't be proved."""
    problems = []
    if kills < 0:
        problems.append(f"--kills {kills}: must be 0 or more")
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problems.append(f"--folder {folder}: is not an empty folder")
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0]
        if key in ("outputs", "store", "fresh"):
            problems.append(f"{word}: the command runs in folders of its own, from an empty store; leave it out")
        if word.partition("=")[0] == "hydra/launcher" and word.partition("=")[2].startswith("submitit"):
            problems.append(f"{word}: only what runs on this machine can be killed from here")
    if problems:
        raise ConfigError(problems)


def prepared(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """The words, with what makes many moments to kill at, unless they say otherwise themselves."""
    more = ["hardware.checkpoint_seconds=0", "tracking.mode=offline", *(["name=sweep"] if sweep else [])]
    said = {word.lstrip("+").partition("=")[0] for word in overrides}
    more = [word for word in more if word.partition("=")[0] not in said]
    return [*overrides, *(word for word in more if not (word.startswith("tracking.") and "tracking" in said))]


# the proof --------------------------------------------------------------------------------------------------------


def prove(root: Path, words: Sequence[str], count: int, seed: int) -> Proof:
    """Run the command whole, and killed `count` times; prints a line for each attempt. Raises KdlabError."""
    proof, draw = Proof(), random.Random(seed)
    began = attempt(root / "whole", words)
    if began.code:
        raise KdlabError(
            f"the command failed with exit code {began.code}, unbroken:\n{last_lines(root / 'whole')}",
            where=str(root / "whole"),
            fix="give it to `kdlab train` first, and mend what it says",
        )
    if _CONTEXT.get_start_method() == "fork":
        for name in began.modules:
            if name.partition(".")[0] in PRELOADED:
                with suppress(Exception):
                    importlib.import_module(name)
    again = attempt(root / "again", words)
    whole, operations = Left.of(root / "whole"), began.operations
    if again.code:
        proof.differences.append(f"again: failed with exit code {again.code}:\n{last_lines(root / 'again')}")
    proof.differences += [f"again: {line}" for line in compared(Left.of(root / "again"), whole)]
    print(f"whole: {again.seconds:.1f} s, {len(whole.files)} files, and once more: {verdict(proof.differences)}")

    moments = drawn(draw, again.seconds, operations)
    numbers = iter(range(2 * count + MISSES))
    while len(proof.kills) < count:
        folder = root / f"killed-{next(numbers)}"
        kills, wrong = broken(folder, words, moments, count - len(proof.kills), whole)
        for kill in kills:
            kill.identical = not wrong
        proof.kills += kills
        proof.differences += [f"{folder.name}: {line}" for line in wrong]
        if not wrong:
            shutil.rmtree(folder)
    return proof


def drawn(draw: random.Random, seconds: float, operations: Mapping[str, int]) -> Iterator[Moment]:
    """Moments without end: of the clock and of files by turns, of files each kind by turns."""
    kinds = sorted(operations)
    turn = 0
    while True:
        yield Moment(CLOCK, seconds=draw.uniform(0.0, seconds))
        if kinds:
            kind = kinds[turn % len(kinds)]
            yield Moment(kind, number=draw.randint(1, operations[kind]))
        turn += 1


def broken(
    folder: Path, words: Sequence[str], moments: Iterator[Moment], most: int, whole: Left
) -> tuple[list[Kill], list[str]]:
    """Give the command until it ends, killed at most so many times; its kills, and what then differs."""
    kills: list[Kill] = []
    while True:
        moment = next(moments) if len(kills) < most else None
        said = console(folder)
        ended = attempt(folder, words, moment)
        if ended.code is None:
            assert moment is not None
            stage, doing = interrupted(folder, console(folder)[len(said) :], moment)
            kills.append(Kill(folder, moment, stage, doing))
            print(f"kill  {folder.name}  {moment!s:22}  {stage}: {doing}", flush=True)
            continue
        if ended.code:
            return kills, [f"failed with exit code {ended.code} after its kills:\n{last_lines(folder)}"]
        wrong = ended.orphans + compared(Left.of(folder), whole)
        print(f"done  {folder.name}  {ended.seconds:.1f} s{' ':17}  {verdict(wrong)}", flush=True)
        return kills, wrong


def verdict(differences: Sequence[str]) -> str:
    return f"{len(differences)} things differ" if differences else "the same bytes"


def report(proof: Proof, folder: Path | None) -> None:
    from rich.console import Console

    screen = Console(highlight=False)
    if proof.kills:
        screen.print(f"kills by stage: {counted(kill.stage for kill in proof.kills)}", soft_wrap=True)
        screen.print(f"kills by work broken off: {counted(kill.doing for kill in proof.kills)}", soft_wrap=True)
    for line in proof.differences:
        screen.print(f"differs: {line}", markup=False, soft_wrap=True)
    same = sum(kill.identical for kill in proof.kills)
    screen.print(f"{same} of {len(proof.kills)} kills left no trace")
    screen.print("not compared: times and latency, memory, console.log, status.json, wandb's own files", soft_wrap=True)
    if folder is not None:
        screen.print(f"kept: {folder}", markup=False, soft_wrap=True)


def counted(words: Iterable[str]) -> str:
    """How often each word is there: "checkpoint 3, lock 1"."""
    return ", ".join(f"{word} {times}" for word, times in Counter(words).most_common())


# one attempt ------------------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """How an attempt ended. code: None if it was killed."""

    code: int | None
    seconds: float
    operations: dict[str, int] = field(default_factory=dict)  # on files, by their kind
    modules: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def attempt(folder: Path, words: Sequence[str], moment: Moment | None = None) -> Attempt:
    """Give the command in `folder`, and kill all its processes at a moment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attempt.json").unlink(missing_ok=True)
    started = time.monotonic()
    target = None if moment is None or moment.kind == CLOCK else (moment.kind, moment.number)
    process = _CONTEXT.Process(target=_train, args=(folder, list(words), target))
    process.start()
    pid = process.pid
    assert pid is not None
    try:
        process.join(moment.seconds if moment is not None and moment.kind == CLOCK else None)
    finally:
        running = process.exitcode is None
        if running:
            _kill(pid)
            process.join()
    seconds = time.monotonic() - started
    if running or process.exitcode == -signal.SIGKILL:
        _kill(pid)
        return Attempt(None, seconds)
    told = json.loads((folder / "attempt.json").read_text(encoding="utf-8"))
    return Attempt(process.exitcode, seconds, told["operations"], told["modules"], _orphans(pid))


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(group, signal.SIGKILL)  # it may not have its group yet
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _orphans(group: int) -> list[str]:
    """A line if a finished command's processes go on without it; they are killed."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return []
        time.sleep(0.05)
    _kill(group)
    return [f"processes went on {PATIENCE:.0f} s after the command had ended"]


def _train(folder: Path, words: list[str], target: tuple[str, int] | None) -> None:
    """The command, in a process of its own: it is the first of a group, so that all it starts can be killed."""
    os.setsid()
    log = os.open(folder / "attempts.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    from kdlab import cli

    outputs = folder / "outputs"
    seen = Operations(outputs, target)
    seen.watch()
    code = cli.main(["train", *words, f"outputs={outputs}", f"store={outputs / 'artifacts'}"])
    told = {"operations": dict(seen.counts), "modules": sorted(sys.modules)}
    (folder / "attempt.json").write_text(json.dumps(told), encoding="utf-8")
    sys.exit(code)


class Operations:
    """Counts what this process does to the files below a folder, by kind, and kills its group at one of them."""

    def __init__(self, root: Path, target: tuple[str, int] | None) -> None:
        self.root, self.target = str(root), target
        self.counts: Counter[str] = Counter()

    def watch(self) -> None:
        """For the rest of this process's life."""
        sys.addaudithook(self.audit)
        os.pwrite = partial(self.torn, os.pwrite)  # of the journal; Python tells of no writing

    def audit(self, event: str, details: tuple[Any, ...]) -> None:
        path = _changed(event, details)
        if path is not None:
            kind = kind_of(path, self.root)
            if kind is not None and self.count(kind):
                os.killpg(os.getpgrp(), signal.SIGKILL)

    def torn(self, write: Callable[[int, bytes, int], int], file: int, content: bytes, offset: int) -> int:
        """Half of what was to be written is there when the kill comes."""
        if self.count("journal"):
            write(file, content[: len(content) // 2], offset)
            os.killpg(os.getpgrp(), signal.SIGKILL)
        return write(file, content, offset)

    def count(self, kind: str) -> bool:
        """Whether this is the operation to kill at."""
        self.counts[kind] += 1
        return (kind, self.counts[kind]) == self.target


def _changed(event: str, details: tuple[Any, ...]) -> str | None:
    """The path that an event of Python's is about to change, else None."""
    if event == "open":
        path, _, flags = details
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            return None
    elif event in ("os.rename", "os.link", "os.symlink"):
        path = details[1]
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
        path = details[0]
    else:
        return None
    return None if isinstance(path, int) or path is None else os.fsdecode(path)


def kind_of(path: str, root: str) -> str | None:
    """What kind of file of a run this is; None of one outside of `root`."""
    if not path.startswith(f"{root}/"):
        return None
    place, *rest = path[len(root) + 1 :].split("/")
    if place != "artifacts":
        return "wandb" if "wandb" in rest else "run's folder"
    if not rest:
        return "store"
    if rest[0] in ("locks", "journals", "translations"):
        return {"locks": "lock", "journals": "journal"}.get(rest[0], rest[0])
    if rest[0] != "building":
        return PUBLICATION
    if len(rest) < 3:
        return PUBLICATION if "." in rest[-1] else FILES
    if rest[2] == "work":
        return CHECKPOINT
    return PUBLICATION if rest[2].startswith("manifest.json") else FILES


# what an attempt left ---------------------------------------------------------------------------------------------


@dataclass
class Left:
    """What a finished command left."""

    files: dict[str, str]  # path -> content, or its sha256
    wrong: list[str]  # what is wrong by itself

    @classmethod
    def of(cls, folder: Path) -> Left:
        from kdlab.artifacts import Store, files_below
        from kdlab.integrity import SEAL, checksum

        outputs = folder / "outputs"
        store = Store(outputs / "artifacts")
        files: dict[str, str] = {}
        wrong = [f"kdlab store verify: {line}" for line in store.verify()]
        wrong += [f"unfinished work was left: {path.name}" for path in store.unfinished()]
        wrong += [f"a lock is still held: {path.name}" for path in held(outputs / "artifacts" / "locks")]
        for path in files_below(outputs):
            name = path.relative_to(outputs).as_posix()
            if "/wandb/" in name or "/locks/sweep-" in name:  # named by the moment, by the folder
                continue
            if path.name in READ:
                content = json.loads(path.read_text(encoding="utf-8"))
                content.pop(SEAL, None)  # of all of it, times too
                files[name] = json.dumps(comparable(content), sort_keys=True)
            elif "/journals/" in name and path.suffix == ".jsonl":
                files[name], twice = journal(path)
                wrong += [f"{name}: asked twice: {key}" for key in twice]
            elif path.name in FREE or any(f"/{kind}/" in name for kind in ("translations", "locks", "verified")):
                files[name] = "there"
            else:
                files[name] = checksum(path)
            if path.name == "metrics.jsonl":
                wrong += [f"{name}: logged twice: {point}" for point in twice_logged(path)]
        return cls(files, wrong)


def compared(left: Left, whole: Left) -> list[str]:
    """What differs from what the unbroken command left; one line each."""
    lines = list(left.wrong)
    for name in sorted(left.files.keys() | whole.files.keys()):
        here, there = left.files.get(name), whole.files.get(name)
        if here is None:
            lines.append(f"{name}: missing")
        elif there is None:
            lines.append(f"{name}: left behind, the unbroken run has no such file")
        elif here != there:
            lines.append(f"{name}: {difference(here, there) if Path(name).name in READ else 'other bytes'}")
    return lines


def comparable(value: Any) -> Any:
    """JSON without times and places."""
    if isinstance(value, Mapping):
        value = {key: None if key in TIMED else inner for key, inner in value.items()}  # in a list of checksums
        return {key: comparable(inner) for key, inner in value.items() if key not in TIMES | PLACES}
    return [comparable(inner) for inner in value] if isinstance(value, list) else value


def difference(here: str, there: str) -> str:
    """The keys in which two JSON objects differ."""
    one, other = json.loads(here), json.loads(there)
    keys = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
    return f"differs in {', '.join(keys)}"


def journal(path: Path) -> tuple[str, list[str]]:
    """(the answers of a journal without their times and seals, in any order; keys that are in it twice)."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = Counter(line["key"] for line in lines)
    answers = sorted(json.dumps({**line, "time": None, "sha256": None}, sort_keys=True) for line in lines)
    return "\n".join(answers), [key for key, times in counts.items() if times > 1]


def twice_logged(path: Path) -> list[str]:
    """Points of one stage and step that tell of the same things."""
    points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = Counter((point.get("stage"), point["step"], *sorted(point)) for point in points)
    return [f"{stage} step {step}" for (stage, step, *_), times in counts.items() if times > 1]


def held(locks: Path) -> list[Path]:
    from filelock import FileLock, Timeout

    found = []
    for path in sorted(locks.glob("*.lock")):
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            found.append(path)
    return found


def console(folder: Path) -> list[str]:
    """What the run said until now, over all attempts."""
    files = sorted(folder.glob("outputs/**/console.log"), key=lambda path: path.stat().st_mtime)
    return files[-1].read_text(encoding="utf-8", errors="replace").splitlines() if files else []


def interrupted(folder: Path, said: Sequence[str], moment: Moment) -> tuple[str, str]:
    """(the stage that a kill broke off, and what it was doing); said: by this attempt."""
    stage = "start"
    for line in said:
        word, _, rest = line.partition(" ")
        if word in ("run", "done", "hit"):
            label = rest.strip().partition(":")[0]
            stage = label if word == "run" else f"after {label}"
        if line.startswith("result:"):
            stage = "end"
    if moment.kind != CLOCK:
        return stage, moment.kind
    building = folder / "outputs" / "artifacts" / "building"
    if any(building.glob("*/work/*.tmp")) or any(building.glob("*/work/*.replaced")):
        return stage, CHECKPOINT
    if any(building.glob("*/manifest.json*")) or any(building.glob("*.done-*")):
        return stage, PUBLICATION
    return stage, "work"


def last_lines(folder: Path) -> str:
    text = (folder / "attempts.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  | {line}" for line in text[-LAST_LINES:])
