"""A Hub on this machine: repositories from memory, with faults to order, that writes down all it is asked."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from kdlab import hub

# A library's logger goes on writing to what was standard error when it was imported, that of another test.
logging.raiseExceptions = False

Files = dict[str, bytes]


@dataclass
class Fault:
    """Spoils the first `times` requests of a method ("" for all) whose path has `part` in it.

    kind: a status; "cut" sends half a body and closes; "short" half of it as if it were all; "spoilt" other bytes of
    the same length; "html" a page; "loop" leads back; "close" answers nothing; "slow" waits a second.
    """

    part: str
    kind: int | str
    times: int = 10**9
    method: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    agent: str


class FakeHub:
    """repositories: files by ("models" or "datasets", name). `url` is where it answers while it is open."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Files] = {}
        self.faults: list[Fault] = []
        self.log: list[Asked] = []
        self.gated: set[str] = set()
        self.url = ""
        self._lock = threading.Lock()

    def model(self, name: str, files: Files) -> str:
        """Adds one; returns its commit."""
        self.repositories["models", name] = files
        return self.commit(files)

    def dataset(self, name: str, files: Files) -> str:
        self.repositories["datasets", name] = files
        return self.commit(files)

    @staticmethod
    def commit(files: Files) -> str:
        listed = [[name, hashlib.sha256(content).hexdigest()] for name, content in sorted(files.items())]
        return hashlib.sha1(json.dumps(listed).encode()).hexdigest()

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.method in ("", method) and fault.part in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    @contextmanager
    def opened(self) -> Iterator[FakeHub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.log.append(Asked(self.command, path, self.headers.get("User-Agent", "")))
        fault = self.hub.fault(self.command, path)
        kind = None if fault is None else fault.kind
        if kind == "close":
            self.close_connection = True
            return
        if kind == "slow":
            time.sleep(1)
        if kind == "loop":
            self.send(302, b"", {"Location": self.path})
        elif kind == "html":
            self.send(200, b"<html><body>Please log in</body></html>", {"Content-Type": "text/html"})
        elif isinstance(kind, int):
            assert fault is not None
            self.send(kind, b"", fault.headers)
        else:
            status, content, headers = self.found(path, query, body)
            self.send(status, content, headers, kind)

    def found(self, path: str, query: Mapping[str, list[str]], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        parts = path.strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, action, rest = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", parts[3:]
        files = self.hub.repositories.get((kind, name))
        if name in self.hub.gated:
            return 403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}
        if files is None:
            return 404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"}
        commit = self.hub.commit(files)
        if rest and rest[0] not in ("main", commit):
            return 404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "none"}
        if api:
            return 200, json.dumps(self.told(name, files, commit, action, rest[1:], body)).encode(), {}
        file = "/".join(rest[1:])
        if file not in files:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "none", "X-Repo-Commit": commit}
        etag = hashlib.sha256(files[file]).hexdigest()
        return 200, files[file], {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}

    def told(self, name: str, files: Files, commit: str, action: str, inner: list[str], body: bytes) -> Any:
        if action == "tree":
            return list(self.tree(files, "/".join(inner)).values())
        if action == "paths-info":
            wanted = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
            known = {
                entry["path"]: entry for folder in self.folders(files) for entry in self.tree(files, folder).values()
            }
            return [known[path] for path in wanted if path in known]
        siblings = [
            {"rfilename": file, "size": len(content), "blobId": blob(content)} for file, content in files.items()
        ]
        return {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}

    @staticmethod
    def folders(files: Files) -> set[str]:
        return {str(folder).removeprefix(".") for file in files for folder in PurePosixPath(file).parents}

    @staticmethod
    def tree(files: Files, folder: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        start = f"{folder}/" if folder else ""
        for file, content in files.items():
            if file.startswith(start):
                first, _, more = file.removeprefix(start).partition("/")
                entry = {"type": "directory", "path": start + first, "size": 0, "oid": blob(first.encode())}
                if not more:
                    entry |= {"type": "file", "size": len(content), "oid": blob(content)}
                found[first] = entry
        return found

    def send(self, status: int, content: bytes, headers: Mapping[str, str], kind: object = None) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
        if start and status == 200:
            status, content, headers = 206, content[start:], {**headers, "Content-Range": f"bytes {start}-/*"}
        if kind == "short":
            content = content[: len(content) // 2]
        if kind == "spoilt":
            content = bytes(byte ^ 1 for byte in content)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if kind == "cut" else content)
        if kind == "cut":
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def blob(content: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, home: Path, *, offline: bool = False) -> None:
    """Make libraries that have read their environment use this Hub, with caches of its own."""
    import datasets.config
    import huggingface_hub.constants as constants
    from huggingface_hub import HfFileSystem

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    HfFileSystem.clear_instance_cache()
    hub.listing.cache_clear()


@contextmanager
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What inside is looked up or connected to, this machine included; there must be nothing."""
    import socket

    asked: list[Any] = []

    def refused(*args: Any, **named: Any) -> Any:
        asked.append(args[-1])
        raise OSError("no network here")

    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", refused)
        patched.setattr(socket.socket, "connect_ex", refused)
        patched.setattr(socket, "getaddrinfo", refused)
        yield asked
