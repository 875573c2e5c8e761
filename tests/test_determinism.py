"""`scripts/determinism.py`: it tells what changes bits, and sees that the same command does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lab import TINY, script

RUN = f"method=ft {TINY}".split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    assert script("determinism").train(place, RUN) is None
    return place


def test_what_differs_is_counted(whole: Path, tmp_path: Path) -> None:
    differences = script("determinism").differences
    assert differences(whole, whole)[0].startswith("0 of ") and differences(whole, whole)[1:] == ("0", "0")
    shutil.copytree(whole, tmp_path / "other")
    (student,) = (tmp_path / "other").glob("runs/*/student/model.safetensors")
    weights = load_file(student)
    name = sorted(weights)[0]
    weights[name] = weights[name] + torch.tensor(0.25)
    student.unlink()  # it is the artifact's file as well
    save_file(weights, student)
    (history,) = (tmp_path / "other").glob("artifacts/finetune-*/history.json")
    history.chmod(0o644)
    history.write_text("{}")
    count, weight, score = differences(whole, tmp_path / "other")
    assert count.startswith("1 of ") and weight == f"2.5e-01 {name}" and score == "0"


def test_what_can_not_be_run_is_said(tmp_path: Path) -> None:
    assert "unknown option" in script("determinism").train(tmp_path, ["method=nothing"])


@pytest.mark.slow
def test_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("determinism").main([*RUN, "--change", "hardware.checkpoint_seconds=0"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " of " in line]
    assert len(lines) == 2 and all("│ 0 of " in line for line in lines)
