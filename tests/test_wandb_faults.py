"""Weights & Biases that refuses, fails, dies in the middle, or is something else: the run goes on and loses nothing."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError

import wandb_file
from kdlab.config import Tracking
from kdlab.engine.tracking import Tracker
from kdlab.errors import TrackingError

KEY = "0123456789abcdef0123456789abcdef01234567"
FAULTS = {
    "wrong key": (401, b'{"errors": [{"message": "invalid API key"}]}'),
    "not allowed": (403, b'{"errors": [{"message": "permission denied"}]}'),
    "broken": (500, b""),
    "busy": (503, b""),
    "a login page": (200, b"<html><body>Please log in</body></html>"),
    "no answer": (0, b""),
}


class Server(ThreadingHTTPServer):
    """As much of wandb's server as a run needs. fault: what it does instead, a status and a body; 0 answers nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault: tuple[int, bytes] | None = None
        self.asked: list[str] = []
        self.points: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that is gone is no error."""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        told = json.loads(body or b"{}")
        if "graphql" not in path:
            for file, lines in told.get("files", {}).items():
                self.points += [json.loads(line) for line in lines["content"] if file == "wandb-history.jsonl"]
            return {}
        if "upsertBucket" in told["query"]:
            project = {"id": "p", "name": "kdlab", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "x", "name": "a1", "displayName": "run", "project": project, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in told["query"]:
            files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in told["variables"]["files"]]
            return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        return {"data": {}}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        status, content = self.server.fault or (200, b"")
        if not status:
            time.sleep(3)
            return
        if self.server.fault is None and self.command == "POST":
            content = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server that is configured."""
    import wandb

    server = Server()
    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.chdir(tmp_path)
    yield server
    wandb.teardown()  # as at the end of a process: raises if the service has died and nobody has let go of it
    server.shutdown()
    server.server_close()


def tracker(folder: Path, **more: bool) -> Tracker:
    settings = Tracking(name="wandb", mode="online")
    labels: dict[str, Any] = {"run_id": "a1", "name": "run", "group": None, "job_type": None, "tags": [], "config": {}}
    return Tracker(settings, **labels, folder=folder, **more)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for its last points no longer than this."""
    monkeypatch.setattr("kdlab.engine.tracking.FINISH_SECONDS", 2.0)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("kdlab")]


def kept(folder: Path) -> list[float]:
    """Of the points in wandb's own files, which are there online too."""
    try:
        files = [wandb_file.read(path) for path in folder.glob("wandb/*/*.wandb")]
    except DecodeError:  # one is being written
        return []
    return [point["loss"] for file in files for point in file.points if "loss" in point]


@pytest.mark.parametrize("name", FAULTS)
def test_the_run_goes_on_offline(
    name: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdlab.engine.tracking.INIT_SECONDS", 1.0)
    server.fault = FAULTS[name]
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), tracker(tmp_path / "run") as run:
        assert run.mode == "offline" and run.url is None
        for step in (1, 2, 3):
            run.log({"global_step": step, "loss": 1.0 / step})
        run.finish({"score": 0.5})
    assert time.monotonic() - started < 30
    (warning,) = complaints(caplog)
    assert warning.startswith("wandb can't be reached; the run is tracked offline") and "\n" not in warning
    assert KEY not in caplog.text
    (file,) = wandb_file.read_folder(tmp_path / "run")
    assert [point["loss"] for point in file.points] == [1.0, 1.0 / 2, 1.0 / 3]
    assert server.asked


def test_a_server_that_takes_all(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), tracker(tmp_path / "run") as run:
        assert run.mode == "online" and str(run.url).startswith(server.url)
        for step in (1, 2, 3):
            run.log({"global_step": step, "loss": 1.0 / step})
        run.finish({"score": 0.5})
    assert complaints(caplog) == []
    assert [point["loss"] for point in server.points] == [1.0, 1.0 / 2, 1.0 / 3]


def killed(server: Server) -> None:
    """The service of wandb, as when memory runs out."""
    (service,) = [one for one in gc.get_objects() if isinstance(one, subprocess.Popen) and one.returncode is None]
    assert "wandb" in str(service.args)
    service.kill()
    service.wait()


def fails(name: str) -> Callable[[Server], None]:
    def change(server: Server) -> None:
        server.fault = FAULTS[name]

    return change


LACKING = "wandb has not taken all of the run, which goes on without it; `kdlab sync` with its folder sends the rest"
DYING: dict[str, Callable[[Server], None]] = {
    "its service is killed": killed,
    "its server refuses": fails("wrong key"),
    "its server is broken": fails("broken"),
    "its server is silent": fails("no answer"),
    "its server is gone": lambda server: server.server_close(),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "name",
    ["its service is killed", "its server refuses"]
    + [pytest.param(f"its server is {word}", marks=pytest.mark.slow) for word in ("broken", "silent", "gone")],
)
def test_it_dies_in_the_middle(name: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it took until then is kept, nothing waits longer than it may, and one line says what to do."""
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), tracker(tmp_path / "run") as run:
        assert run.mode == "online"
        for step in range(1, 21):
            run.log({"global_step": step, "loss": 1.0 / step})
            if step == 10:
                until = time.monotonic() + 20
                while len(kept(tmp_path / "run")) < 9 and time.monotonic() < until:  # flushed every two seconds
                    time.sleep(0.1)
                DYING[name](server)
        run.finish({"score": 0.5})
    assert time.monotonic() - started < 50
    (warning,) = complaints(caplog)
    assert warning.startswith(LACKING) and "\n" not in warning and KEY not in caplog.text
    assert kept(tmp_path / "run")[:9] == [1.0 / step for step in range(1, 10)]  # it holds the last one back


@pytest.mark.parametrize("moment", ["table", "finish", "exit"])
def test_its_service_is_killed_at_the_end(
    moment: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), tracker(tmp_path / "run") as run:
        run.log({"global_step": 1, "loss": 1.0})
        killed(server)
        if moment == "table":
            run.table("answers", ["question"], [["?"]])
        if moment != "exit":
            run.finish({"score": 0.5})
    (warning,) = complaints(caplog)
    assert warning.startswith(LACKING) and KEY not in caplog.text


@pytest.mark.usefixtures("hasty")
def test_a_server_that_has_not_taken_all_is_an_error_of_sync(server: Server, tmp_path: Path) -> None:
    with (
        pytest.raises(TrackingError, match="has not taken all of the run within 2 s") as caught,
        tracker(tmp_path / "run", fall_back=False) as run,
    ):
        run.log({"global_step": 1, "loss": 1.0})
        server.fault = FAULTS["broken"]
        run.finish({"score": 0.5})
    assert "same command again" in str(caught.value.fix)
