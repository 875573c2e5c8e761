"""`metrics.jsonl`: every point of a run, one JSON object a line, the truth from which any curve can be drawn.

A checkpoint remembers `offset()`; on resume `cut(offset)` drops what was written after it, so that an
interrupted run leaves the same file as an unbroken one. Lines are strict JSON: a number that is not finite is
written as null, with its key kept, so that "measured, but not a number" can be told from "not measured".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdlab.errors import TrackingError
from kdlab.integrity import parsed


class MetricsLog:
    """Appends points to one file. A point is safe from kill -9 when `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = False  # whether the file is known to end with a complete line

    def append(self, point: Mapping[str, Any]) -> None:
        """Write one point as one line. Values: JSON values, or scalars with `.item()` (numpy, torch)."""
        line = json.dumps(_strict(point), allow_nan=False, ensure_ascii=False) + "\n"
        self._mend()
        with open(self.path, "ab") as file:
            file.write(line.encode())

    def offset(self) -> int:
        """Length of the file in bytes, without a torn last line."""
        self._mend()
        return self.path.stat().st_size

    def cut(self, offset: int) -> None:
        """Drop all that was written after `offset`, and what then remains of a torn line."""
        self._mend()
        if self.path.stat().st_size > offset:
            os.truncate(self.path, offset)
            self._whole = False
            self._mend()

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All points in the order of writing; no file is no points. A torn last line is left out.

        Raises TrackingError for a line that is not a JSON object.
        """
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        points = []
        for number, line in enumerate(lines, start=1):
            try:
                point = parsed(line)
                if not isinstance(point, dict):
                    raise ValueError("not an object")
            except ValueError as problem:
                raise TrackingError(
                    "a line of the metrics can't be read",
                    where=f"{path}, line {number}: {problem}",
                    fix="delete the line, or give the command again with fresh=[<stage>]",
                ) from problem
            points.append(point)
        return points

    def _mend(self) -> None:
        """Make the file if there is none; drop a torn last line."""
        if self._whole:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        self._whole = True


def _strict(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return value
