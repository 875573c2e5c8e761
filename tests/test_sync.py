"""`kdlab sync`: a run's folder replayed as one wandb run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import wandb_file
from kdlab.config import Tracking
from kdlab.engine.metrics_log import MetricsLog
from kdlab.errors import TrackingError
from kdlab.report.sync import sync

OFFLINE = Tracking(name="wandb", mode="offline", project="proj", tags=["replayed"])


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def run_dir(folder: Path, points: list[dict[str, Any]], result: dict[str, Any] | None) -> Path:
    folder.mkdir()
    identity = {
        "run_id": f"id-{folder.name}",
        "name": f"name {folder.name}",
        "group": "sweep",
        "job_type": "kd",
        "tags": ["rte"],
        "config": {"seed": 1},
    }
    (folder / "run.json").write_text(json.dumps(identity))
    log = MetricsLog(folder / "metrics.jsonl")
    for point in points:
        log.append(point)
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_folders_become_one_run_each_without_duplicates(tmp_path: Path) -> None:
    points = [
        {"stage": "teacher", "global_step": 1, "loss": 0.7},
        {"stage": "teacher", "global_step": 2, "loss": 0.6},
        {"stage": "teacher", "global_step": 2, "loss": 0.6},  # a second attempt that was not cut back
        {"stage": "teacher", "global_step": 2, "eval/dev/accuracy": 0.5},
        {"stage": "logits", "global_step": 3, "loss": float("nan"), "lr": 1e-5},
        {"stage": "teacher", "global_step": 1, "loss": 0.75},
    ]
    result = {"run": {"name": "first"}, "scores": {"dev": {"accuracy": {"selected": 0.5}}}, "teacher": None}
    first = run_dir(tmp_path / "first", points, result)
    second = run_dir(tmp_path / "second", points[:1], None)

    places = sync([first, second], settings=OFFLINE)

    assert places == [f"offline: {folder / 'wandb'}" for folder in (first, second)]
    (found,) = wandb_file.read_folder(first)
    assert (found.run.run_id, found.run.display_name, found.run.project) == ("id-first", "name first", "proj")
    assert (found.run.run_group, found.run.job_type) == ("sweep", "kd")
    assert sorted(found.run.tags) == ["replayed", "rte"]
    assert found.config["seed"] == 1
    assert [point["_step"] for point in found.points] == [1, 2, 3]
    assert found.points[0]["teacher/loss"] == 0.75
    assert (found.points[1]["teacher/loss"], found.points[1]["teacher/eval/dev/accuracy"]) == (0.6, 0.5)
    assert found.points[2]["logits/lr"] == 1e-5
    assert "logits/loss" not in found.points[2]
    assert found.summary["scores/dev/accuracy/selected"] == 0.5
    (other,) = wandb_file.read_folder(second)
    assert other.run.run_id == "id-second"
    assert len(other.points) == 1


def test_a_folder_that_is_no_run_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    good = run_dir(tmp_path / "good", [{"global_step": 1, "loss": 1.0}], None)
    (tmp_path / "bad").mkdir()
    with pytest.raises(TrackingError, match="not the folder of a run") as caught:
        sync([good, tmp_path / "bad"], settings=OFFLINE)
    assert "run.json" in str(caught.value)
    assert not (good / "wandb").exists()


def test_a_run_file_without_an_id_is_refused(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run", [], None)
    (folder / "run.json").write_text('{"name": "x"}')
    with pytest.raises(TrackingError, match="run_id"):
        sync([folder], settings=OFFLINE)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_the_fix_is_named(tmp_path: Path, mode: str) -> None:
    folder = run_dir(tmp_path / "run", [], None)
    with pytest.raises(TrackingError, match="wandb login"):
        sync([folder], settings=Tracking(name="wandb", mode=mode))


def test_tracking_switched_off_can_not_be_synced(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="switched off"):
        sync([tmp_path], settings=Tracking(name="none", mode="none"))


def test_a_server_out_of_reach_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    folder = run_dir(tmp_path / "run", [{"global_step": 1, "loss": 1.0}], None)
    wandb.teardown()  # wandb reads its variables once a session
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("kdlab.engine.tracking.INIT_SECONDS", 1.0)
    with pytest.raises(TrackingError, match="can't be sent") as caught:
        sync([folder], settings=Tracking(name="wandb", mode="online"))
    wandb.teardown()
    assert "127.0.0.1" in str(caught.value)
