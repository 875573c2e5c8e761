"""Runs as they lie in their folders: what every verb that looks back starts from.

    records, left_out = collect(["outputs/sweeps/my-sweep", "outputs/runs/cr_ild-*"])

Only run.json and result.json are read at once; what is large is read when it is asked for.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdlab import artifacts
from kdlab.errors import StoreError
from kdlab.integrity import checksum, parsed

AGAIN = "give the run's command again; it goes on where it stopped"


@dataclass(frozen=True, eq=False)
class Record:
    """One run: finished, failed, or neither yet."""

    folder: Path
    told: dict[str, Any]  # run.json
    result: dict[str, Any] | None  # result.json; None: the run has not finished
    failure: str | None  # failure.txt

    @classmethod
    def open(cls, folder: Path) -> Record:
        """Raises StoreError if the folder is not that of a run, or a file of it can't be read."""
        if not (folder / "run.json").is_file():
            raise StoreError(
                "not the folder of a run: it has no run.json",
                where=str(folder),
                fix="give folders such as outputs/runs/NAME, outputs/sweeps/NAME or outputs/sweeps/NAME/JOB",
            )
        told = read_json(folder / "run.json")
        if not _tells(told):
            raise StoreError("this run was written by another kdlab", where=str(folder / "run.json"), fix=AGAIN)
        result = read_json(folder / "result.json") if (folder / "result.json").is_file() else None
        if result is not None and not _results(result):
            raise StoreError("this result was written by another kdlab", where=str(folder / "result.json"), fix=AGAIN)
        failure = folder / "failure.txt"
        reason = failure.read_text(encoding="utf-8", errors="replace").strip() if failure.is_file() else None
        return cls(folder, told, result, reason)

    @property
    def state(self) -> str:
        """finished, failed (and not finished since), or unfinished."""
        return "finished" if self.result is not None else "failed" if self.failure else "unfinished"

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.told["config"])

    def _setting(self, *names: str) -> Any:
        """What the configuration has under a path. Raises StoreError if it is not that of a run."""
        found = self.told["config"]
        for name in names:
            if not isinstance(found, dict) or name not in found:
                raise self._foreign()
            found = found[name]
        return found

    def _foreign(self) -> StoreError:
        return StoreError("this run was written by another kdlab", where=str(self.folder / "run.json"), fix=AGAIN)

    @property
    def family(self) -> str:
        return str(self._setting("method", "family"))

    @property
    def method(self) -> str:
        return str(self._setting("method", "name"))

    @property
    def task(self) -> str:
        return str(self._setting("task", "name"))

    @property
    def model(self) -> str:
        return str(self._setting("model", "name"))

    @property
    def seed(self) -> int:
        seed = self._setting("seed")
        if type(seed) is not int:
            raise self._foreign()
        return seed

    @property
    def command(self) -> str:
        """What was typed to get this run; of a sweep's job, what it comes to alone."""
        return shlex.join(["kdlab", "train", *self.told["overrides"]])

    @property
    def finished(self) -> dict[str, Any]:
        """result.json; raises StoreError if there is none."""
        if self.result is None:
            why = f": {self.failure}" if self.failure else ": it has no result.json"
            raise StoreError(f"the run has not finished{why}", where=str(self.folder), fix=AGAIN)
        return self.result

    @cached_property
    def graph(self) -> list[dict[str, Any]]:
        """graph.json: its stages as `Graph.describe` tells them; empty where there is none. Raises StoreError."""
        path = self.folder / "graph.json"
        found: list[dict[str, Any]] = read_json(path) if path.is_file() else []
        words, sections = ("label", "function", "artifact", "fingerprint"), ("values", "inputs")
        if not isinstance(found, list) or not all(
            isinstance(stage, dict)
            and "version" in stage
            and all(isinstance(stage.get(name), str) for name in words)
            and _is_name(stage["artifact"])
            and all(isinstance(stage.get(name), dict) for name in sections)
            for stage in found
        ):
            raise StoreError("this graph was written by another kdlab", where=str(path), fix=AGAIN)
        return found

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """metrics.jsonl: the points of training, in order; a line that was cut short is left out. Raises StoreError."""
        path = self.folder / "metrics.jsonl"
        found = []
        for line in path.read_bytes().split(b"\n") if path.is_file() else []:
            try:
                point = parsed(line)
            except ValueError:
                continue
            if not isinstance(point, dict):
                raise StoreError("a line is no point of training", where=str(path), fix=AGAIN)
            found.append(point)
        return found

    def store(self, given: str | Path | None = None) -> Path:
        """The folder of the artifacts: the given one, or the one that the run names.

        A relative name is looked for beside the run's runs/ or sweeps/ first, then from where the command is given.
        """
        if given is not None:
            return Path(given)
        named = Path(str(self._setting("store")))
        beside = [place.parent for place in self.folder.resolve().parents[:2] if place.name in ("runs", "sweeps")]
        near = [place / named.name for place in beside]
        places = [named, *near] if named.is_absolute() else [*near, named]
        return next((place for place in places if os.path.isdir(place)), named)  # False too for what can be no name

    def artifact(self, label: str, store: str | Path | None = None) -> Path | None:
        """The folder of what the stage of that label left, or None: no such stage, or the store no longer has it."""
        name = (self.result or {}).get("artifacts", {}).get(label)
        name = name or next((stage["artifact"] for stage in self.graph if stage["label"] == label), None)
        if name is None:
            return None
        return self.whole(name, store)

    def whole(self, name: str, store: str | Path | None = None) -> Path | None:
        """The folder of an artifact, or None: the store no longer has it. Raises StoreError if it is damaged."""
        shelf = artifacts.Store(self.store(store))
        if not os.path.isdir(shelf.path(name)):
            return None
        if (shelf.path(name) / artifacts.MANIFEST).exists():
            shelf.refuse_damaged(name, thorough=False)
        return shelf.path(name)

    def refuse_damaged_student(self) -> None:
        """Raises StoreError if a file of student/ is not as the run wrote it; its card is for people to change."""
        for name, wanted in self.finished.get("files", {}).items():
            folder, _, file = name.partition("/")
            if folder != "student" or file == "README.md":
                continue
            try:
                found = checksum(self.folder / name)
            except FileNotFoundError:
                continue  # which says itself that it is not there
            except OSError as problem:
                found = str(problem)
            if found != wanted:
                raise StoreError(
                    f"the student of run {self.name} is damaged: {name} is not as it was written",
                    where=str(self.folder),
                    fix="give the run's command again: it is made anew",
                )


def collect(paths: Iterable[str | Path]) -> tuple[list[Record], list[str]]:
    """(the runs below the given folders or patterns, each once, in order; what was left out, and why).

    A folder is that of a run, or has runs below it: of a sweep, of several sweeps, or a whole outputs/. Raises
    StoreError if one has none, or there is none of that name.
    """
    records: dict[Path, Record] = {}
    left_out = []
    for given in paths:
        for folder in _folders(str(given)):
            if folder.resolve() in records:
                continue
            try:
                records[folder.resolve()] = Record.open(folder)
            except StoreError as problem:
                left_out.append(f"{folder}: {problem.what}")
    if not records:
        raise StoreError(
            "no run can be read here: " + "; ".join(left_out),
            where=", ".join(str(path) for path in paths),
            fix="give folders such as outputs/runs/NAME or outputs/sweeps/NAME",
        )
    return list(records.values()), left_out


def _folders(given: str) -> Sequence[Path]:
    places = [Path(given)] if Path(given).exists() else [Path(place) for place in sorted(glob.glob(given))]
    if not places:
        raise StoreError(
            "there is no such folder", where=given, fix="give folders such as outputs/runs/NAME or outputs/sweeps/NAME"
        )
    found: list[Path] = []
    for place in places:
        depths = ("run.json", "*/run.json", "*/*/run.json", "*/*/*/run.json")
        inner = next((files for depth in depths if (files := sorted(place.glob(depth)))), [])
        if place.name == "outputs" or (place / "runs").is_dir() or (place / "sweeps").is_dir():
            inner = [*sorted(place.glob("runs/*/run.json")), *sorted(place.glob("sweeps/*/*/run.json"))]
        found += [file.parent for file in inner]
    if not found:
        raise StoreError(
            "no run here: no run.json below it",
            where=given,
            fix="give folders such as outputs/runs/NAME or outputs/sweeps/NAME",
        )
    return found


def _tells(told: Any) -> bool:
    """Whether a run.json has a configuration and words."""
    if not isinstance(told, dict) or not isinstance(told.get("config"), dict):
        return False
    words = told.get("overrides")
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


def _results(result: Any) -> bool:
    """Whether a result.json names the artifacts that it is from."""
    named = result.get("artifacts", {}) if isinstance(result, dict) else None
    return isinstance(named, dict) and all(map(_is_name, named.values()))


def _is_name(word: Any) -> bool:
    """Whether a word names something in a folder, and nothing outside of it."""
    return isinstance(word, str) and Path(word).name == word


def read_json(path: Path) -> Any:
    """Raises StoreError if the file can't be read, is not JSON, or not as it was written."""
    try:
        return artifacts.read_json(path)
    except (OSError, ValueError, RecursionError) as problem:
        raise StoreError(f"the file can't be read: {problem}", where=str(path), fix=AGAIN) from problem


def read_lines(path: Path, *, what: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file of an artifact. what: they are, for the message. Raises StoreError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # `str.splitlines` would also split inside of a text
        found: list[dict[str, Any]] = json.loads(f"[{','.join(filter(None, lines))}]")
        return found
    except (OSError, ValueError, RecursionError) as problem:
        raise StoreError(
            f"the {what} can't be read: {problem}",
            where=str(path),
            fix="`kdlab store verify` looks at all artifacts; remove the damaged one and give the run's command again",
        ) from problem
