"""kill -9 at random moments of the real command, and the same command again: scripts/kill.py in small."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill.py"
COMMAND = [
    "method=cr_ild",
    "task=demo/nli",
    "model=tiny",
    "debug=fast",
    "tracking=none",
    "hardware=cpu",
    "hardware.checkpoint_seconds=0",
]


@pytest.fixture
def kill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(300)
def test_three_kills_leave_no_trace(kill: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = kill.main(["--rounds", "3", "--seed", "2", "--folder", str(tmp_path), "--command", *COMMAND])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "3 of 3 kills left no trace" in shown
    assert len(re.findall(r"^ *\d+\.\d\d s  killed-\d+ .* yes$", shown, re.MULTILINE)) == 3
    (compared,) = re.findall(r"(\d+) things to compare", shown)
    assert int(compared) >= 14


def test_a_difference_is_found(kill: ModuleType, tmp_path: Path) -> None:
    for name, weights in (("whole", b"one"), ("killed", b"two")):
        model = tmp_path / name / "outputs" / "artifacts" / "finetune-1" / "model"
        model.mkdir(parents=True)
        (model / "model.safetensors").write_bytes(weights)
        (model.parent / "scores.json").write_text("{}")
    whole = kill.fingerprints(tmp_path / "whole")
    assert len(whole) == 2
    assert kill.differences(tmp_path / "killed", whole)[0] == "artifacts/finetune-1/model/model.safetensors"
    assert kill.differences(tmp_path / "whole", whole) == []
