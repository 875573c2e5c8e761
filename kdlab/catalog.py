"""What there is to choose from, read from the yaml files themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable

GROUPS = {
    "methods": "method",
    "tasks": "task",
    "models": "model",
    "rationales": "rationales",
    "translators": "translator",
    "hardware": "hardware",
    "experiments": "experiment",
}


def config_root() -> str:
    """Where Hydra finds conf/: the package `kdlab.conf`, or the folder at the top of a bare checkout."""
    if importlib.util.find_spec("kdlab.conf") is not None:
        return "pkg://kdlab.conf"
    return f"file://{_checkout()}"


def entries(group: str, config_dir: str | Path | None = None) -> list[tuple[str, str]]:
    """(name, description) of every option of a group ("methods", or Hydra's name "method"), sorted by name.

    The description is the file's first comment line. Options of `config_dir` come on top; where both have a
    name, the package's file is the one that Hydra takes.
    """
    folder = GROUPS.get(group, group)
    found: dict[str, str] = {}
    roots: list[Traversable] = [_root()]
    if config_dir is not None:
        roots.append(Path(config_dir))
    for root in roots:
        for name, file in _yaml_files(root / folder, ""):
            found.setdefault(name, _description(file.read_bytes().decode("utf-8", errors="replace")))
    return sorted(found.items())


def _checkout() -> Path:
    return Path(__file__).resolve().parent.parent / "conf"


def _root() -> Traversable:
    if importlib.util.find_spec("kdlab.conf") is not None:
        return files("kdlab.conf")
    return _checkout()


def _yaml_files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    if not folder.is_dir():
        return
    for item in folder.iterdir():
        if item.is_dir() and item.name != "base":  # base: what presets share, not a choice
            yield from _yaml_files(item, f"{prefix}{item.name}/")
        elif item.name.endswith(".yaml"):
            yield prefix + item.name.removesuffix(".yaml"), item


def _description(text: str) -> str:
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment = line.lstrip("#").strip()
        if comment and not comment.startswith("@package"):
            return comment
    return ""
