"""Reads a `.wandb` file back: wandb 0.31 ships no reader in Python, so the framing is parsed here.

The file begins with 7 bytes (":W&B", a magic number, a version) and goes on in blocks of 32 KiB. Each chunk
has a CRC (4 bytes), a length (2) and a type (1: whole, 2: first, 3: middle, 4: last); joined, they are
protobuf records.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
WAIT_SECONDS = 10.0


@dataclass
class WandbFile:
    """What a `.wandb` file says, values parsed from JSON."""

    run: Any = None  # the last RunRecord
    config: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read(path: Path) -> WandbFile:
    from wandb.proto import wandb_internal_pb2

    found = WandbFile()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("run"):
            found.run = record.run
            found.config.update(_values(record.run.config.update))
        elif record.HasField("config"):
            found.config.update(_values(record.config.update))
        elif record.HasField("history"):
            found.points.append(_values(record.history.item))
        elif record.HasField("summary"):
            found.summary.update(_values(record.summary.update))
        elif record.HasField("exit"):
            found.exit_code = record.exit.exit_code
    return found


def read_folder(folder: Path) -> list[WandbFile]:
    """Every offline run under `folder`/wandb, the oldest first.

    wandb's service writes the last records some milliseconds after the run has finished: wait for them.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        paths = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=_written)
        files = [read(path) for path in paths]
        if all(file.exit_code is not None for file in files) or time.monotonic() > deadline:
            return files
        time.sleep(0.02)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B", "not a .wandb file"
    place, record = 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # too little room for a chunk: padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        chunk = data[place + 7 : place + 7 + length]
        place += 7 + length
        record = chunk if kind in (WHOLE, FIRST) else record + chunk
        if kind in (WHOLE, LAST):
            yield record
