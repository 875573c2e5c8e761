"""Weights & Biases, offline: what a run leaves in its .wandb file, and what must never be there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wandb_file
from kdlab.config import Tracking
from kdlab.engine.tracking import Tracker, key_configured, resolve_mode
from kdlab.errors import TrackingError
from kdlab.showing import redact

WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"
OPENAI_KEY = "sk-not-a-real-key-at-all"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without a wandb account, whose home is empty."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A key, and a server that refuses connections. wandb reads its variables once a session."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("kdlab.engine.tracking.INIT_SECONDS", 1.0)
    yield
    wandb.teardown()


def tracker(folder: Path, *, mode: str = "offline", **changes: Any) -> Tracker:
    identity: dict[str, Any] = {
        "run_id": "cr-ild-0a1b2c",
        "name": "cr_ild rte",
        "group": "sweep-7",
        "job_type": "cr_ild",
        "tags": ["rte", "short"],
        "config": {"seed": 42, "method": {"name": "cr_ild", "layers": {"mixup": 1.0}}},
    }
    settings = Tracking(name="wandb", mode=mode, tags=["ours"])
    return Tracker(settings, **{**identity, **changes}, folder=folder)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("kdlab")]


def test_an_offline_run_reads_back(tmp_path: Path) -> None:
    with tracker(tmp_path) as run:
        run.log({"stage": "teacher", "global_step": 1, "loss": 0.7, "lr": 1e-5})
        run.log(
            {
                "stage": "layers",
                "global_step": 2,
                "loss": 0.5,
                "parts/attention": 0.25,
                "parts/hidden": float("nan"),
            }
        )
        run.log({"stage": "layers", "global_step": 2, "eval/dev/accuracy": 0.5})
        run.table("comparison", ["method", "score"], [["kd", 0.5], ["cr_ild", None]])
        run.finish({"scores": {"dev": {"accuracy": {"selected": 0.53}}}, "seconds": 12})

    (found,) = wandb_file.read_folder(tmp_path)
    assert found.run.run_id == "cr-ild-0a1b2c"
    assert found.run.display_name == "cr_ild rte"
    assert found.run.run_group == "sweep-7"
    assert found.run.job_type == "cr_ild"
    assert found.run.project == "kdlab"
    assert sorted(found.run.tags) == ["ours", "rte", "short"]
    assert found.config["seed"] == 42
    assert found.config["method"] == {"name": "cr_ild", "layers": {"mixup": 1.0}}
    first, second = found.points
    assert (first["_step"], first["global_step"], first["teacher/loss"], first["teacher/lr"]) == (
        1,
        1,
        0.7,
        1e-5,
    )
    assert (second["_step"], second["layers/parts/attention"], second["layers/eval/dev/accuracy"]) == (
        2,
        0.25,
        0.5,
    )
    assert "layers/parts/hidden" not in second
    assert second["comparison/nrows"] == 2
    assert found.summary["scores/dev/accuracy/selected"] == 0.53
    assert found.summary["seconds"] == 12
    assert found.exit_code == 0


def test_two_attempts_share_the_id_and_each_keeps_its_points(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracker(tmp_path) as run:
        run.log({"global_step": 1, "loss": 1.0})
        raise KeyboardInterrupt
    with tracker(tmp_path) as run:
        run.log({"global_step": 1, "loss": 1.0})
        run.log({"global_step": 2, "loss": 0.5})
        run.log({"global_step": 1, "loss": 9.0})  # a step that is over
        run.finish({})

    attempts = [file for file in wandb_file.read_folder(tmp_path)]
    assert len({file.run.run_id for file in attempts}) == 1
    last = attempts[-1]
    assert [(point["_step"], point["loss"]) for point in last.points] == [(1, 1.0), (2, 0.5)]
    assert last.exit_code == 0


def test_no_secret_and_no_host_data_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI_KEY)
    monkeypatch.setenv("DB_PASSWORD", "correct-horse")
    monkeypatch.setattr(socket, "gethostname", lambda: "host-that-must-not-leave")
    monkeypatch.setenv("USER", "user-that-must-not-leave")
    import wandb

    wandb.teardown()  # so that wandb's service starts with these variables
    config = {"note": f"key={OPENAI_KEY}", "list": ["correct-horse"], "model": {"id": "bert"}}
    with tracker(tmp_path / "run", config=config, name=f"run {WANDB_KEY}", tags=[OPENAI_KEY]) as run:
        print("printed-by-the-run")
        run.log({"global_step": 1, "loss": 1.0})
        run.table("answers", ["text"], [[OPENAI_KEY]])
        run.finish({"note": "correct-horse"})

    (found,) = wandb_file.read_folder(tmp_path / "run")
    assert found.run.host == "kdlab"
    assert found.config["note"] == "key=***"
    assert found.config["list"] == ["***"]
    assert found.config["model"] == {"id": "bert"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    secrets = [WANDB_KEY, OPENAI_KEY, "correct-horse"]
    host_data = ["host-that-must-not-leave", "user-that-must-not-leave", "printed-by-the-run"]
    for path in files:
        content = path.read_bytes()
        for word in [*secrets, *host_data]:
            assert word.encode() not in content, f"{word} in {path.relative_to(tmp_path)}"
    names = {path.name for path in files}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log", "diff.patch"}


def test_redact_keeps_the_shape_and_ordinary_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    monkeypatch.setenv("SHORT_KEY", "us")
    config = {
        "a": "hf_abcdefgh",
        "b": ["https://user:hf_abcdefgh@host", 1, None],
        "c": {"d": "parallel", "e": "us"},
    }
    assert redact(config) == {
        "a": "***",
        "b": ["https://user:***@host", 1, None],
        "c": {"d": "parallel", "e": "us"},
    }
    assert config["a"] == "hf_abcdefgh"


def test_auto_goes_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    auto = Tracking(name="wandb")
    assert resolve_mode(auto) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    assert resolve_mode(auto) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode(auto) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode(auto) == "none"
    assert resolve_mode(Tracking(name="none", mode="none")) == "none"


def test_netrc_is_read_for_the_configured_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {WANDB_KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert key_configured()
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert not key_configured()
    netrc.write_text(f"machine wandb.example.org\n  login user\n  password {WANDB_KEY}\n")
    assert key_configured()


@pytest.mark.usefixtures("server_out_of_reach")
def test_a_server_out_of_reach_means_offline_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracker(tmp_path, mode="auto") as run:
        assert run.mode == "offline"
        run.log({"global_step": 1, "loss": 1.0})
        run.finish({})
    (warning,) = warnings_of(caplog)
    assert "offline" in warning
    assert "127.0.0.1" in warning
    assert WANDB_KEY not in caplog.text
    assert [point["loss"] for file in wandb_file.read_folder(tmp_path) for point in file.points] == [1.0]


def test_online_without_a_key_asks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tracker(tmp_path, mode="online") as run:
        assert run.mode == "offline"
    assert warnings_of(caplog) == ["no wandb API key is configured; the run is tracked offline"]


def test_a_failing_wandb_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("the service is gone")

    with tracker(tmp_path) as run:
        run._close(exit_code=0)
        run._run = Broken()
        run.log({"global_step": 1, "loss": 1.0})
        run.log({"global_step": 2, "loss": 1.0})
        run.finish({})
    assert warnings_of(caplog) == [
        "wandb has not taken all of the run, which goes on without it; `kdlab sync` with its folder sends the rest "
        "(the service is gone)"
    ]


def test_without_fall_back_a_failure_is_an_error(tmp_path: Path) -> None:
    strict = Tracker(
        Tracking(name="wandb", mode="online"),
        run_id="x", name="x", group=None, job_type=None, tags=[], config={}, folder=tmp_path, fall_back=False,
    )  # fmt: skip
    with pytest.raises(TrackingError, match="wandb login"), strict:
        pass


def test_none_imports_nothing_and_writes_nothing(tmp_path: Path) -> None:
    code = """
import sys
from collections.abc import Iterator
from pathlib import Path
from kdlab.config import Tracking
from kdlab.engine.tracking import Tracker
folder = Path(sys.argv[1])
with Tracker(Tracking(name="none", mode="none"), run_id="x", name="x", group=None, job_type=None, tags=[],
             config={}, folder=folder) as run:
    run.log({"global_step": 1, "loss": 1.0})
    run.table("t", ["a"], [[1]])
    run.finish({"a": 1})
assert not {"wandb", "torch", "transformers"} & set(sys.modules)
assert not list(folder.iterdir())
"""
    folder = tmp_path / "run"
    folder.mkdir()
    repository = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )


def test_wandb_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tracker(tmp_path) as run:
        run.log({"global_step": 3, "loss": 1.0})
        run.log({"global_step": 2, "loss": 1.0})
        run.finish({"a": 1})
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
