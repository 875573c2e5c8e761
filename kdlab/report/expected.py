"""The papers' numbers that an experiment brings along (`config.Expected`), cell by cell, and what they are found by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def cells(expected: Mapping[str, Any]) -> list[dict[str, Any]]:
    """[{"axes": {axis: text}, "paper": fraction or None}], in the order of the file; None: the paper has no number.

    expected: config.expected of a run.json; {} or one without scores has no cells.
    """
    axes = list(expected.get("axes") or [])
    return [
        {"axes": dict(zip(axes, path, strict=True)), "paper": None if score is None else score / 100}
        for path, score in _leaves(expected.get("scores") or {}, ())
    ]


def value(config: Mapping[str, Any], axis: str) -> str:
    """Where a run stands on an axis, as text: the value at that path, or its name (method, task, model, supplement).

    config: that of a run.json. "" if it has no such path.
    """
    node: Any = config
    for part in axis.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ""
        node = node[part]
    return text(node.get("name", "") if isinstance(node, Mapping) else node)


def text(node: Any) -> str:
    """A value as YAML and the command line write it: 64, true, null, [hidden,attention]."""
    if node is None or isinstance(node, bool):
        return "null" if node is None else str(node).lower()
    if isinstance(node, str) or not isinstance(node, Sequence):
        return str(node)
    return "[" + ",".join(text(item) for item in node) + "]"


def _leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, Mapping):
        for key, inner in node.items():
            yield from _leaves(inner, (*path, text(key)))
    else:
        yield path, node
