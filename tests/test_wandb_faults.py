"""A server of Weights & Biases that refuses, fails or is something else: the run goes on offline and loses nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import wandb_file
from kdlab.config import Tracking
from kdlab.engine.tracking import Tracker

KEY = "0123456789abcdef0123456789abcdef01234567"
FAULTS = {
    "wrong key": (401, b'{"errors": [{"message": "invalid API key"}]}'),
    "not allowed": (403, b'{"errors": [{"message": "permission denied"}]}'),
    "broken": (500, b""),
    "busy": (503, b""),
    "a login page": (200, b"<html><body>Please log in</body></html>"),
    "no answer": (0, b""),
}


@pytest.fixture
def wandb_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[list[str]]:
    """A server that answers everything with a fault, and is the one that is configured; the paths that it was asked."""
    import wandb

    status, body = FAULTS[request.param]
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            if not status:
                time.sleep(3)
                return
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr("kdlab.engine.tracking.INIT_SECONDS", 1.0)
    monkeypatch.chdir(tmp_path)
    yield asked
    wandb.teardown()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("wandb_server", FAULTS, indirect=True)
def test_the_run_goes_on_offline(wandb_server: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Tracking(name="wandb", mode="online")
    started = time.monotonic()
    with (
        caplog.at_level(logging.WARNING),
        Tracker(
            settings, run_id="a1", name="run", group=None, job_type=None, tags=[], config={}, folder=tmp_path / "run"
        ) as run,
    ):
        assert run.mode == "offline" and run.url is None
        for step in (1, 2, 3):
            run.log({"global_step": step, "loss": 1.0 / step})
        run.finish({"score": 0.5})
    assert time.monotonic() - started < 30
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("kdlab")]
    assert warning.startswith("wandb can't be reached; the run is tracked offline") and "\n" not in warning
    assert KEY not in caplog.text
    kept = [point for file in wandb_file.read_folder(tmp_path / "run") for point in file.points]
    assert [point["loss"] for point in kept] == [1.0, 1.0 / 2, 1.0 / 3]
    assert wandb_server  # it was asked
