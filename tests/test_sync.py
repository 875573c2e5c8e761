"""`kdlab sync`: each run's folder replayed as one wandb run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import wandb_file
from kdlab import cli
from kdlab.config import Tracking
from kdlab.engine.metrics_log import MetricsLog
from kdlab.engine.tracking import Tracker
from kdlab.errors import TrackingError
from kdlab.report.sync import summary_of, sync

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

    sent = list(sync([first, second], settings=OFFLINE))

    assert [one.place for one in sent] == [f"offline: {folder / 'wandb'}" for folder in (first, second)]
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
    assert found.exit_code == 0
    (other,) = wandb_file.read_folder(second)
    assert other.run.run_id == "id-second"
    assert len(other.points) == 1
    assert other.exit_code == 1  # it did not get to its end


def test_a_folder_that_can_not_be_sent_stops_no_other(tmp_path: Path) -> None:
    good = run_dir(tmp_path / "good", [{"global_step": 1, "loss": 1.0}], None)
    (tmp_path / "bad").mkdir()
    torn = run_dir(tmp_path / "torn", [], None)
    (torn / "result.json").write_text('{"scores": ')
    nameless = run_dir(tmp_path / "nameless", [], None)
    (nameless / "run.json").write_text('{"name": "x"}')
    sent = list(sync([tmp_path / "bad", torn, good, nameless], settings=OFFLINE))
    assert [one.place is not None for one in sent] == [False, False, True, False]
    assert "not the folder of a run" in str(sent[0].problem) and "run.json" in str(sent[0].problem)
    assert "the result can't be read" in str(sent[1].problem)
    assert "no 'run_id' in it" in str(sent[3].problem)
    assert not (torn / "wandb").exists()


def test_after_three_failures_in_a_row_the_rest_is_not_tried(tmp_path: Path) -> None:
    good = run_dir(tmp_path / "good", [], None)
    sent = list(sync([*[tmp_path / f"bad{number}" for number in range(3)], good], settings=OFFLINE))
    assert "not tried" in str(sent[-1].problem) and not (good / "wandb").exists()


def test_the_score_that_methods_are_compared_by_has_one_key_for_every_task() -> None:
    scores = {"dev": {"mcc": {"selected": 0.25, "best": 0.5}}, "test": {"mcc": {"selected": 0.125}}}
    found = summary_of({"metric": "mcc", "split": "dev", "scores": scores})
    assert (found["score"], found["score_of"]) == (0.25, "mcc on dev")
    assert "score" not in summary_of({"scores": scores})


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
    (sent,) = sync([folder], settings=Tracking(name="wandb", mode="online"))
    wandb.teardown()
    assert "can't be sent" in str(sent.problem) and "127.0.0.1" in str(sent.problem)


# the command


def sweep(root: Path) -> Path:
    """Two finished jobs, one that was interrupted, one that can't be read; the first was tracked offline before."""
    folder = root / "outputs" / "sweeps" / "crild"
    folder.mkdir(parents=True)
    for seed in (1, 2, 3):
        result = {"metric": "accuracy", "split": "dev", "scores": {"dev": {"accuracy": {"selected": seed / 10}}}}
        points = [{"stage": "teacher", "global_step": 1, "loss": 0.5}]
        job = run_dir(folder / f"seed={seed}", points, result if seed < 3 else None)
        told = json.loads((job / "run.json").read_text())
        config = {"method": {"name": "kd"}, "task": {"name": "glue/rte"}, "model": {"name": "bert_6l"}, "seed": seed}
        config["expected"] = {"scores": {"kd": {"glue/rte": 67.1}}}
        (job / "run.json").write_text(json.dumps({**told, "group": "crild", "config": config, "overrides": []}))
    (folder / "seed=4").mkdir()
    (folder / "seed=4" / "run.json").write_text("{")
    return folder


def test_a_sweep_is_sent_run_by_run_and_what_failed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep(tmp_path)
    assert cli.main(["sync", "--offline", str(folder)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["sent", "sent", "sent", "3", "failed:"]
    assert "(unfinished)" in lines[2] and "3 of 4 runs sent to project kdlab" in lines[3]
    assert "seed=4" in lines[4] and "can't be read" in lines[4]
    found = [wandb_file.read_folder(folder / f"seed={seed}")[0] for seed in (1, 2, 3)]
    assert {file.run.run_group for file in found} == {"crild"}
    assert [file.config["seed"] for file in found] == [1, 2, 3]
    for key, value in {"method": "kd", "task": "glue/rte", "model": "bert_6l"}.items():
        assert {file.config[key]["name"] for file in found} == {value}  # what wandb shows as method.name
    assert all("expected" not in file.config for file in found)
    assert [file.summary.get("score") for file in found] == [0.1, 0.2, None]
    assert [file.exit_code for file in found] == [0, 0, 1]


def test_what_ran_offline_is_sent_as_the_run_it_was(tmp_path: Path) -> None:
    folder = sweep(tmp_path) / "seed=1"
    identity = json.loads((folder / "run.json").read_text())
    own = {key: identity[key] for key in ("run_id", "name", "group", "job_type", "tags", "config")}
    with Tracker(OFFLINE, **own, folder=folder) as tracker:  # as the job itself did
        tracker.log({"stage": "teacher", "global_step": 1, "loss": 0.5})
    list(sync([folder], settings=OFFLINE))
    before, after = wandb_file.read_folder(folder)
    assert before.run.run_id == after.run.run_id == "id-seed=1"
    assert before.points[0]["teacher/loss"] == after.points[0]["teacher/loss"]


def test_patterns_and_folders_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep(tmp_path)
    assert cli.main(["sync", "--offline", str(folder.parent / "cr*" / "seed=[12]")]) == 0
    assert "2 of 2 runs sent" in capsys.readouterr().out
    assert cli.main(["sync", "--offline", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
