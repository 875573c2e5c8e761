"""A short round of `scripts/fuzz.py`: damaged files of every kind, the same ones on every machine."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import DataError
from lab import script

FILES = 100  # of each kind


fuzz = script("fuzz")


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=[target.name for target in fuzz.TARGETS])
def test_damaged_files_are_read_or_refused(target: Any, tmp_path: Path) -> None:
    rng, valid = random.Random(f"test {target.name}"), target.valid()
    assert fuzz.trouble(target, valid, tmp_path) is None
    target.read(tmp_path / target.file)  # so that it is not refused
    for number in range(FILES):
        content = fuzz.mutated(valid, rng)
        assert fuzz.trouble(target, content, tmp_path) is None, (number, content)


@pytest.mark.parametrize("file", ["run.json", "result.json"])
def test_names_that_no_file_system_takes(file: str, tmp_path: Path) -> None:
    target = next(one for one in fuzz.TARGETS if one.file == f"good/{file}" and one.name.endswith("unsealed"))
    for long in ("a" * 300, "a\\u0000b"):
        name = f'"{long}"'.encode()
        content = re.sub(rb'("store": |"student": )"[^"]*"', lambda found: found[1] + name, target.valid())  # noqa: B023
        assert content != target.valid() and fuzz.trouble(target, content, tmp_path) is None


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself: another exception, a record that is not there, and a reader that does not come back."""

    def told(read: Any, strict: Any = lambda content, found: None) -> str | None:
        return fuzz.trouble(fuzz.Target("x", "a.json", lambda: b"{}", read, strict), b"{}", tmp_path)

    def refuse(path: Path) -> None:
        raise DataError("no")

    def differ(content: bytes, found: Any) -> None:
        fuzz.demand(json.loads(content) == found, "another object")

    assert told(lambda path: json.loads(path.read_text()), differ) is None
    assert told(refuse) is None
    assert "KeyError in test_fuzz.py" in str(told(lambda path: {}["a"]))
    assert told(lambda path: {"a": 1}, differ) == "silently wrong: Wrong: another object"
    monkeypatch.setattr(fuzz, "LIMIT", 1)
    assert told(lambda path: time.sleep(5)) == "takes more than 1 s"
