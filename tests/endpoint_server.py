"""An OpenAI-compatible endpoint on this machine that fails as it is told to, and counts what it delivered."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "teacher-2026"  # as the server names what answers


@dataclass(frozen=True)
class Fault:
    """How one try fails. kind: status, cut, malformed, page (HTML with status 200), drop, or hang."""

    kind: str
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=lambda: {"message": "something broke", "code": None})
    body: Any = None  # what is sent instead of {"error": error}
    seconds: float = 0.0  # hang: before the connection is closed


Faults = Callable[[str, int], Fault | None]  # of a prompt and its try, counted from 0


def answer_to(prompt: str) -> str:
    return f" I think about {prompt} and find 42."


def usage_of(prompt: str) -> tuple[int, int]:
    """Tokens that are billed: one per four characters of the prompt, ten for the answer."""
    return -(-len(prompt) // 4), 10


class Server:
    """What was asked and delivered. All of it may be read while the server runs."""

    def __init__(
        self,
        faults: Faults = lambda prompt, tried: None,
        *,
        delay: float = 0.0,
        key: str | None = None,
        usage: bool = True,
        finish: str | None = "stop",
    ) -> None:
        self.faults, self.delay, self.key, self.usage, self.finish = faults, delay, key, usage, finish
        self.tries: Counter[str] = Counter()  # by prompt
        self._delivered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: set[str] = set()
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self.http: ThreadingHTTPServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def delivered(self) -> Counter[str]:
        """Whole answers by prompt, when no request is in flight any more."""
        until = time.monotonic() + 5
        while self.in_flight and time.monotonic() < until:
            time.sleep(0.001)
        return self._delivered

    def open(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer takes 40 ms

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                server.handle(self)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:  # a client that was killed
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        chat = handler.path.endswith("/chat/completions")
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        key = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        with self.lock:
            tried = self.tries[prompt]
            self.tries[prompt] += 1
            self.bodies.append(body)
            self.paths.append(handler.path)
            self.keys.add(key)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.key is not None and key != self.key:
                fault: Fault | None = Fault("status", 401, error={"message": f"Incorrect API key provided: {key}."})
            else:
                fault = self.faults(prompt, tried)
            time.sleep(self.delay)
            if fault is None:
                self.send(handler, 200, self.payload(prompt, chat=chat))
                with self.lock:
                    self._delivered[prompt] += 1
            else:
                self.fail(handler, fault, self.payload(prompt, chat=chat))
        finally:
            with self.lock:
                self.in_flight -= 1

    def payload(self, prompt: str, *, chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish}
        if chat:
            choice["message"] = {"role": "assistant", "content": answer_to(prompt)}
        else:
            choice["text"] = answer_to(prompt)
        asked, answered = usage_of(prompt)
        usage = {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}
        return {"id": "x", "object": "any", "model": MODEL, "choices": [choice], "usage": usage if self.usage else None}

    def fail(self, handler: BaseHTTPRequestHandler, fault: Fault, payload: dict[str, Any]) -> None:
        if fault.kind == "status":
            body = {"error": dict(fault.error)} if fault.body is None else fault.body
            self.send(handler, fault.status, body, fault.headers)
            return
        whole = json.dumps(payload).encode()
        # after a whole answer the connection is kept: closed unsaid, it fails the next request now and then
        handler.close_connection = fault.kind in ("hang", "cut", "drop")
        if fault.kind == "hang":
            time.sleep(fault.seconds)
        elif fault.kind == "cut":
            self.raw(handler, whole[: len(whole) // 2], size=len(whole))
        elif fault.kind == "malformed":
            self.raw(handler, whole[: len(whole) // 2])
        elif fault.kind == "page":
            self.raw(handler, b"<html>Welcome to the proxy</html>", kind="text/html")
        else:
            assert fault.kind == "drop", fault.kind

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, payload: Any, headers: Mapping[str, str] | None = None
    ) -> None:
        self.raw(handler, json.dumps(payload).encode(), status=status, headers=headers)

    def raw(
        self,
        handler: BaseHTTPRequestHandler,
        content: bytes,
        *,
        status: int = 200,
        size: int | None = None,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content) if size is None else size))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)
        handler.wfile.flush()


@contextmanager
def serving(*arguments: Any, **named: Any) -> Iterator[Server]:
    server = Server(*arguments, **named)
    server.open()
    try:
        yield server
    finally:
        server.close()
