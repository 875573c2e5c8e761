"""Settings of runs beside each other: their paths and values, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ABSENT = "(absent)"  # in place of a value, where a run has no such key: it is of another family, or of another kdlab


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The paths at which the configurations don't all have the same value, each with its value in all of them.

    Where not all have a group of settings (one has no teacher, or is of another family), the whole group is one value.
    """
    return {path: values for path, values in _walk(configs) if any(value != values[0] for value in values[1:])}


def _walk(nodes: Sequence[Mapping[str, Any]], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    for key in dict.fromkeys(key for node in nodes for key in node):
        where, values = f"{path}.{key}" if path else key, [node.get(key, ABSENT) for node in nodes]
        if all(isinstance(value, Mapping) for value in values):
            yield from _walk(values, where)
        else:
            yield where, values
