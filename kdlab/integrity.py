"""Checksums, and JSON that tells by itself whether it is still as it was written.

A sealed object holds the sha256 of its own text, without that entry, under `sha256`. It is whole only if its text is
letter for letter what its content is written as, so that any byte that changed is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "sha256"
CHANGED = "it is not as it was written"
_DIGEST = re.compile(rb"[0-9a-f]{64}")


def checksum(path: Path, size: int | None = None) -> str:
    """sha256 of a file; size: of its first bytes only."""
    digest, left = hashlib.sha256(), size
    with open(path, "rb") as file:
        while block := file.read(1 << 20 if left is None else min(left, 1 << 20)):
            digest.update(block)
            left = None if left is None else left - len(block)
    return digest.hexdigest()


def sealed(value: Mapping[str, Any], *, indent: int | None = None, finite: bool = True) -> str:
    """The text of an object with its seal, its line end included; if `finite`, ValueError for a number that is not.

    indent: as of `json.dumps`, and keys are sorted; None: on one line, with keys in their order.
    """
    plain = json.loads(
        _text(value, indent, finite=finite)
    )  # keys that are no text are sorted as the text that they become
    return _text({**plain, SEAL: _digest(_text(plain, indent))}, indent)


def unsealed(text: str, *, indent: int | None = None, required: bool = False) -> dict[str, Any]:
    """The object that `sealed` was given. One without a seal passes unless it is required: older versions wrote none.

    Raises ValueError if the text is no JSON object, or not as it was written.
    """
    value = parsed(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    if SEAL not in value:
        if required:
            raise ValueError(CHANGED)
        return value
    seal = value.pop(SEAL)
    if seal != _digest(_text(value, indent)) or _text({**value, SEAL: seal}, indent) != text:
        raise ValueError(CHANGED)
    return value


def parsed(text: str | bytes) -> Any:
    """What JSON holds; ValueError also for what is nested deeper than Python goes."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def kept_lines(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The objects of a file of sealed lines, to go on from; and what is damaged, if anything.

    The file is cut before the first line that is not whole: one that a kill tore, or a damaged one. Lines without any
    checksum are taken only before the first one that has one: older versions wrote none.
    """
    found: list[dict[str, Any]] = []
    damage, whole, required = None, 0, False
    if not path.exists():
        return found, damage
    with open(path, "r+b") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            required = required or _DIGEST.search(line) is not None
            try:
                found.append(unsealed(line.decode("utf-8"), required=required))
            except ValueError as error:
                damage = f"{path}, line {number}: {error}"
                break
            whole += len(line)
        file.truncate(whole)
    return found, damage


def _text(value: Mapping[str, Any], indent: int | None, *, finite: bool = False) -> str:
    return json.dumps(value, indent=indent, sort_keys=indent is not None, allow_nan=not finite) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
