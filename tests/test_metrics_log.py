"""metrics.jsonl: strict lines, cut back on resume, torn lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdlab.engine.metrics_log import MetricsLog
from kdlab.errors import TrackingError


def test_points_come_back_in_order(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl")
    points = [{"stage": "teacher", "global_step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for point in points:
        log.append(point)
    assert MetricsLog.read(log.path) == points
    assert log.offset() == log.path.stat().st_size


def test_numbers_that_are_not_finite_are_null_and_the_lines_strict_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"loss": float("nan"), "lr": np.float32("inf"), "parts": [1.0, float("-inf")], "step": np.int64(3)})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    point = json.loads(log.path.read_text(), parse_constant=refuse)
    assert point == {"loss": None, "lr": None, "parts": [1.0, None], "step": 3}


def test_a_resumed_log_is_the_unbroken_one(tmp_path: Path) -> None:
    whole = MetricsLog(tmp_path / "whole.jsonl")
    broken = MetricsLog(tmp_path / "broken.jsonl")
    for step in range(5):
        whole.append({"global_step": step})
    for step in range(3):
        broken.append({"global_step": step})
    checkpoint = broken.offset()
    broken.append({"global_step": 3, "lost": True})
    with open(broken.path, "ab") as file:
        file.write(b'{"global_step": 4, "lo')

    resumed = MetricsLog(broken.path)
    resumed.cut(checkpoint)
    for step in (3, 4):
        resumed.append({"global_step": step})
    assert broken.path.read_bytes() == whole.path.read_bytes()


def test_a_torn_last_line_is_left_out_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"global_step": 1}\n{"global_')
    assert MetricsLog.read(path) == [{"global_step": 1}]
    MetricsLog(path).append({"global_step": 2})
    assert MetricsLog.read(path) == [{"global_step": 1}, {"global_step": 2}]


def test_cut_beyond_the_end_keeps_everything_and_inside_a_line_drops_it(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"a": 1})
    first = log.offset()
    log.append({"b": 2})
    log.cut(10_000)
    assert len(MetricsLog.read(log.path)) == 2
    log.cut(first + 3)
    assert log.offset() == first
    assert MetricsLog.read(log.path) == [{"a": 1}]


def test_no_file_is_no_points(tmp_path: Path) -> None:
    assert MetricsLog.read(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("line", [b"not json", b"[1, 2]"])
def test_an_unreadable_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(TrackingError, match="line 2"):
        MetricsLog.read(path)
