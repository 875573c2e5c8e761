"""A student behind an endpoint: one job is paid for, whenever the process dies, and every refusal says what to do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from endpoint_server import Fault, Server, answer_to
from kdlab.config import Budget, Hardware, Price
from kdlab.context import Context, Requests
from kdlab.errors import BudgetError, DataError, KdlabError
from kdlab.rationales.prices import tokens_at_most
from kdlab.rationales.tuning import JobError, Size, Tuner, default_epochs, digest_of, training_cost
from kdlab.stages.endpoint import answer_endpoint, finetune_endpoint
from lab import Lab, read, run_folder

SECRET = "sk-proj-ThisKeyIsNobodysBusiness0123456789"
STYLE = {"template": "ft_cot_token", "stop": "END"}
ROWS = [
    {"id": number, "completion_index": 0, "question": f"How many, {number}?", "rationale": "I see.", "answer": "4"}
    for number in range(12)
]
Call = tuple[str, int]  # "POST files" and how often it was called before


class Fine(Server):
    """The fake endpoint with files and fine-tuning jobs, which take two looks to be done."""

    def __init__(self, fail: Callable[[str, int], Fault | None] = lambda call, tried: None, **named: Any) -> None:
        super().__init__(**named)
        self.fail_call = fail
        self.files: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        self.contents: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.after: Callable[[str, int, str], bool] = lambda call, tried, when: False  # whether the client is gone
        self.outcome: dict[str, Any] = {"status": "succeeded", "fine_tuned_model": "ft:babbage-002:me:kdlab:1"}
        self.chosen = 3  # epochs
        self.late = 0  # lists of jobs that don't show them yet

    def open(self) -> None:
        super().open()
        both = type("Both", (self.http.RequestHandlerClass,), {"do_GET": lambda handler: self.handle(handler)})
        self.http.RequestHandlerClass = both

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path.removeprefix("/v1/")
        if "completions" in path:
            super().handle(handler)
            return
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        call = f"{handler.command} {re.sub(r'ftjob-[0-9]+', 'JOB', path)}"
        key = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        with self.lock:
            tried = self.calls[call]
            self.calls[call] += 1
        if self.key is not None and key != self.key:
            self.fail(handler, Fault("status", 401, error={"message": f"Incorrect API key provided: {key}."}), {})
            return
        fault = self.fail_call(call, tried)
        if fault is not None and fault.kind == "status":  # refused before anything happened
            self.fail(handler, fault, {})
            return
        if self.after(call, tried, "before"):
            handler.close_connection = True
            return
        with self.lock:
            answer = self.answer(handler, call, path, body)
        if self.after(call, tried, "done"):
            handler.close_connection = True
        elif fault is not None:
            self.fail(handler, fault, answer)
        else:
            self.send(handler, 200, answer)
            self.after(call, tried, "told")

    def answer(self, handler: BaseHTTPRequestHandler, call: str, path: str, body: bytes) -> dict[str, Any]:
        if call == "POST files":
            return self.uploaded(handler.headers["Content-Type"], body)
        if call == "GET files":
            return self.page(self.files, handler.path)
        if call == "GET fine_tuning/jobs":
            hidden, self.late = self.late > 0 and bool(self.jobs), self.late - bool(self.jobs)
            return self.page([] if hidden else self.jobs[::-1], handler.path)
        if call == "POST fine_tuning/jobs":
            return self.created(json.loads(body))
        job = next(one for one in self.jobs if one["id"] in path)
        if path.endswith("/cancel"):
            job["status"] = "cancelled"
        elif job["status"] not in ("succeeded", "failed", "cancelled"):
            self.looks[job["id"]] += 1
            job |= {"hyperparameters": {"n_epochs": job["asked_epochs"] or self.chosen}, "status": "queued"}
            if self.looks[job["id"]] >= 2:
                job |= {"trained_tokens": 999, **self.outcome}
        return job

    def uploaded(self, kind: str, body: bytes) -> dict[str, Any]:
        boundary = kind.partition("boundary=")[2].encode()
        parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)]
        fields = {re.search(rb'name="(\w+)"', head).group(1): (head, text[:-2]) for head, _, text in parts if text}
        head, content = fields[b"file"]
        name = f"file-{len(self.files)}"
        self.contents[name] = content
        made = {
            "id": name,
            "object": "file",
            "filename": re.search(rb'filename="([^"]+)"', head).group(1).decode(),
            "bytes": len(content),
            "purpose": fields[b"purpose"][1].decode(),
            "created_at": 100 + len(self.files),
            "status": "processed",
        }
        self.files.append(made)
        return made

    def created(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        assert body["training_file"] in self.contents
        job = {
            "id": f"ftjob-{len(self.jobs)}",
            "object": "fine_tuning.job",
            "model": body["model"],
            "training_file": body["training_file"],
            "metadata": body.get("metadata"),
            "status": "validating_files",
            "fine_tuned_model": None,
            "trained_tokens": None,
            "created_at": 100 + len(self.jobs),
            "hyperparameters": {"n_epochs": "auto"},
            "asked_epochs": body.get("hyperparameters", {}).get("n_epochs"),
        }
        self.jobs.append(job)
        return job

    def page(self, found: list[dict[str, Any]], path: str) -> dict[str, Any]:
        """Two at a time, so that there are pages."""
        after = parse_qs(urlsplit(path).query).get("after")
        start = 1 + [one["id"] for one in found].index(after[0]) if after else 0
        return {"object": "list", "data": found[start : start + 2], "has_more": start + 2 < len(found)}

    @property
    def file(self) -> list[dict[str, Any]]:
        """The rows of the only file."""
        (content,) = self.contents.values()
        return [json.loads(line) for line in content.decode().splitlines()]


@contextmanager
def serving(*arguments: Any, **named: Any) -> Iterator[Fine]:
    server = Fine(*arguments, **named)
    server.open()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for; none is made."""
    made: list[float] = []
    monkeypatch.setattr(Tuner.__init__, "__kwdefaults__", {**Tuner.__init__.__kwdefaults__, "pause": made.append})
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return folder(tmp_path / "data", "train", ROWS)


def folder(path: Path, split: str, rows: list[dict[str, Any]]) -> Path:
    path.mkdir(exist_ok=True)
    (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def context(out: Path, notes: list[str] | None = None, **requests: Any) -> Context:
    (out / "work").mkdir(parents=True, exist_ok=True)
    asked = Requests(**({"timeout": 5.0, "attempts": 4} | requests))
    told = [] if notes is None else notes
    return Context(out=out, stage="student", hardware=Hardware(name="cpu"), requests=asked, note=told.append)


def tune(ctx: Context, data: Path, server: Server, **changes: Any) -> dict[str, Any]:
    named = {"endpoint": server.url, "model": "babbage-002", "api": "completions", "style": STYLE}
    finetune_endpoint(ctx, data=data, **(named | changes))
    return dict(json.loads((ctx.out / "model.json").read_text(encoding="utf-8")))


# what is sent and what comes back


def test_a_student_is_fine_tuned(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    notes: list[str] = []
    ctx = context(tmp_path / "out", notes, student_price=Price(training=0.4))
    with serving() as server:
        made = tune(ctx, data, server)
    assert made == {
        "model": "ft:babbage-002:me:kdlab:1",
        "job": "ftjob-0",
        "file": "file-0",
        "base": "babbage-002",
        "epochs": 3,
        "trained_tokens": 999,
    }
    assert server.file[3] == {"prompt": "How many, 3? ###", "completion": " I see. --> 4 END"}
    assert len(server.file) == 12 and server.contents["file-0"] == (ctx.out / "train.jsonl").read_bytes()
    digest = digest_of(server.contents["file-0"], "babbage-002", None)
    assert server.files[0]["filename"] == f"kdlab-{digest}.jsonl" and server.files[0]["purpose"] == "fine-tune"
    assert server.bodies == [
        {"model": "babbage-002", "training_file": "file-0", "suffix": "kdlab", "metadata": {"kdlab": digest}}
    ]
    assert ctx.facts == {
        "rows": {"train": 12},
        "model": "ft:babbage-002:me:kdlab:1",
        "job": "ftjob-0",
        "trained_tokens": 999,
        "usd": pytest.approx(999 * 0.4 / 1e6),
    }
    told = "\n".join(notes)
    assert "goes on with it" in told and "queued" in told and "succeeded" in told
    assert pauses == [2.0, 3.0]


def test_chat_and_epochs(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    with serving() as server:
        made = tune(context(tmp_path / "out"), data, server, api="chat", epochs=7, model="gpt-4o-mini")
    assert server.file[0] == {
        "messages": [
            {"role": "user", "content": "How many, 0? ###"},
            {"role": "assistant", "content": "I see. --> 4 END"},
        ]
    }
    assert server.bodies[0]["hyperparameters"] == {"n_epochs": 7} and made["epochs"] == 7


def test_answers_only(tmp_path: Path, pauses: list[float]) -> None:
    questions = folder(tmp_path / "data", "train", [{"id": 1, "question": "1 + 1?", "answer": "2"}])
    style = {"template": "ft_token", "delimiters": "paper_gpt3", "stop": "END"}
    with serving() as server:
        tune(context(tmp_path / "out"), questions, server, style=style)
    assert server.file == [{"prompt": "1 + 1?\n\n###\n\n", "completion": " 2 END"}]


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with serving() as server, pytest.raises(DataError, match="nothing to fine-tune on"):
        tune(context(tmp_path / "out"), folder(tmp_path / "data", "train", []), server)
    assert not server.calls


# one job


def test_a_job_of_the_same_data_is_found_again(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    """Without a note: another store, or `fresh`."""
    with serving() as server:
        first = tune(context(tmp_path / "one"), data, server)
        for number in range(5):  # other people's, so that ours is on another page
            server.jobs.append({**server.jobs[0], "id": f"ftjob-{9 + number}", "metadata": None, "training_file": "x"})
        second = tune(context(tmp_path / "two"), data, server)
        server.jobs[0]["metadata"] = None  # an endpoint that keeps none: the file's name tells
        third = tune(context(tmp_path / "three"), data, server)
        server.jobs[0]["metadata"], server.files[:] = {"kdlab": server.bodies[0]["metadata"]["kdlab"]}, []
        fourth = tune(context(tmp_path / "four"), data, server)  # the file was removed: the metadata tells
        assert first == second == third == fourth
        assert server.calls["POST files"] == server.calls["POST fine_tuning/jobs"] == 1


@pytest.mark.parametrize("change", [{"model": "davinci-002"}, {"epochs": 2}, {"style": {**STYLE, "stop": "DONE"}}])
def test_another_model_schedule_or_text_is_another_job(
    tmp_path: Path, data: Path, pauses: list[float], change: dict[str, Any]
) -> None:
    with serving() as server:
        tune(context(tmp_path / "one"), data, server)
        tune(context(tmp_path / "two"), data, server, **change)
        assert len(server.jobs) == 2


@pytest.mark.parametrize("kind", ["drop", "cut", "malformed", "page"])
@pytest.mark.parametrize("call", ["POST files", "POST fine_tuning/jobs"])
def test_an_answer_that_is_lost_makes_no_second_one(
    tmp_path: Path, data: Path, pauses: list[float], call: str, kind: str
) -> None:
    """The endpoint did what it was asked, and the answer broke."""
    with serving(lambda made, tried: Fault(kind) if (made, tried) == (call, 0) else None) as server:
        assert tune(context(tmp_path / "out"), data, server)["job"] == "ftjob-0"
        assert len(server.files) == len(server.jobs) == 1 == server.calls[call]


def test_a_job_that_is_listed_late_is_waited_for(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    with serving(
        lambda call, tried: Fault("drop") if (call, tried) == ("POST fine_tuning/jobs", 0) else None
    ) as server:
        server.late = 2
        assert tune(context(tmp_path / "out"), data, server)["job"] == "ftjob-0"
        assert len(server.jobs) == 1 and pauses[1:3] == [2.0, 5.0]


def test_half_a_file_is_not_used(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    with serving() as server:
        tune(context(tmp_path / "one"), data, server)
        server.files[0]["bytes"] -= 1
        server.jobs.clear()
        assert tune(context(tmp_path / "two"), data, server)["file"] == "file-1"


@pytest.mark.parametrize("fault", [Fault("status", 500), Fault("status", 429, headers={"Retry-After": "9"})])
def test_what_may_pass_is_waited_out(tmp_path: Path, data: Path, pauses: list[float], fault: Fault) -> None:
    with serving(lambda call, tried: fault if tried == 0 else None) as server:
        tune(context(tmp_path / "out"), data, server)
        assert len(server.files) == len(server.jobs) == 1
        assert all(count >= 2 for count in server.calls.values()) and len(server.calls) == 5
    if fault.headers:
        assert sum(9.0 <= seconds < 10.0 for seconds in pauses) == 5


def test_an_endpoint_that_stays_away(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    fault = Fault("status", 503)
    with serving(lambda call, tried: fault if call == "GET fine_tuning/jobs/JOB" else None) as server:
        with pytest.raises(KdlabError, match=r"failed 4 times; the last time: status 503") as caught:
            tune(context(tmp_path / "out"), data, server)
        assert "a job that was made is found and goes on" in str(caught.value)
        server.fail_call = lambda call, tried: None
        assert tune(context(tmp_path / "out"), data, server)["job"] == "ftjob-0"
        assert len(server.jobs) == 1


NURSERY = """
import os, sys, traceback
from pathlib import Path
from openai import OpenAI
from kdlab.config import Hardware
from kdlab.context import Context, Requests
from kdlab.rationales.tuning import Tuner
from kdlab.stages.endpoint import finetune_endpoint

OpenAI(api_key="none").fine_tuning.jobs, OpenAI(api_key="none").files  # imports what is imported late
Tuner.__init__.__kwdefaults__["pause"] = lambda seconds: None
requests = Requests(timeout=5.0, attempts=4)
style = {"template": "ft_cot_token", "stop": "END"}
for line in sys.stdin:
    out, data, url = line.rstrip("\\n").split("\\t")
    ctx = Context(out=Path(out), stage="student", hardware=Hardware(name="cpu"), requests=requests)
    pid = os.fork()
    if pid == 0:
        try:
            finetune_endpoint(ctx, data=Path(data), endpoint=url, model="babbage-002", api="completions", style=style)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
JOBS, JOB = "fine_tuning/jobs", "fine_tuning/jobs/JOB"


class Nursery:
    """Runs the stage in processes of their own, which start with all modules imported."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.child = 0  # the last one's id

    def attempt(self, *arguments: object) -> int:
        """The exit code."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(*arguments, sep="\t", file=self.process.stdin, flush=True)
        self.child = int(self.process.stdout.readline())
        return int(self.process.stdout.readline())

    def kill(self) -> None:
        """kill -9, and wait until the process is gone."""
        child = self.child
        while True:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                return
            time.sleep(0.002)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    command = [sys.executable, "-c", NURSERY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("keep", [True, False], ids=["note", "no note"])
@pytest.mark.parametrize(
    "moments",
    [
        [
            *(("GET files", "before"), (f"GET {JOBS}", "done"), ("POST files", "before"), ("POST files", "done")),
            *((f"POST {JOBS}", "before"), (f"POST {JOBS}", "done"), (f"GET {JOB}", "before"), (f"GET {JOB}", "told")),
        ],
        [("POST files", "told"), (f"POST {JOBS}", "told")],
    ],
    ids=["lost", "told"],
)
def test_kill_at_any_moment(
    tmp_path: Path, data: Path, nursery: Nursery, keep: bool, moments: list[tuple[str, str]]
) -> None:
    """kill -9 before the endpoint does what it is asked (it then doesn't), before and after it tells so, one moment
    after the other; whether or not the note survives there is one file and one job."""
    left = list(moments)
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    with serving() as server:

        def die(call: str, tried: int, when: str) -> bool:
            if not left or (call, when) != left[0]:
                return False
            left.pop(0)
            nursery.kill()
            return True

        server.after = die
        codes: list[int] = []
        while 0 not in codes and len(codes) <= len(moments):
            if not keep:
                for file in (out / "work").iterdir():
                    file.unlink()
            codes.append(nursery.attempt(out, data, server.url))
        assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
        assert (len(codes) == len(moments) + 1 and not left) or moments[0][1] == "told"
        assert len(codes) > 1 and len(server.files) == len(server.jobs) == 1
    assert json.loads((out / "model.json").read_text())["job"] == "ftjob-0"


# what ends the run


def test_a_job_that_fails_is_told_and_made_anew(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    error = {"code": "invalid_training_file", "message": f"Line 4 is bad, {SECRET}", "param": "training_file"}
    with serving() as server:
        succeeds, server.outcome = server.outcome, {"status": "failed", "error": error}
        with pytest.raises(KdlabError) as caught:
            tune(context(tmp_path / "out"), data, server)
        text = str(caught.value)
        assert "The fine-tuning job failed (invalid_training_file): Line 4 is bad, [key]" in text
        assert "ftjob-0" in text and "train.jsonl" in text and "makes a new job" in text and SECRET not in text
        assert not (tmp_path / "out" / "model.json").exists()
        server.outcome = succeeds
        assert tune(context(tmp_path / "out"), data, server)["job"] == "ftjob-1"
        assert len(server.files) == 1 and len(server.jobs) == 2


def test_a_job_that_someone_cancelled(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    with serving() as server:
        server.outcome = {"status": "cancelled"}
        with pytest.raises(KdlabError, match="was cancelled"):
            tune(context(tmp_path / "out"), data, server)


def test_a_failure_that_nobody_was_told_is_told(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    """The process died while it waited; the job failed meanwhile."""
    ctx = context(tmp_path / "out")
    with serving() as server:
        server.outcome = {"status": "failed"}
        server.fail_call = lambda call, tried: Fault("status", 404) if "JOB" in call else None
        with pytest.raises(KdlabError, match="no such job"):
            tune(ctx, data, server)
        server.fail_call = lambda call, tried: None
        with pytest.raises(KdlabError, match="job failed"):
            tune(ctx, data, server)
        assert len(server.jobs) == 1


def refused(call: str, status: int, message: str = "no", code: str | None = None) -> Callable[[str, int], Fault | None]:
    fault = Fault("status", status, error={"message": f"{message} {SECRET}", "code": code})
    return lambda made, tried: fault if made == call else None


@pytest.mark.parametrize(
    ("fail", "what", "fix"),
    [
        (refused("GET files", 403), "The key may not fine-tune 'babbage-002'", "model.student.id"),
        (refused("GET files", 404), "has no fine-tuning API", "model.base_url"),
        (refused("GET fine_tuning/jobs", 404), "has no fine-tuning API", "model.kind=decoder"),
        (refused("POST files", 400, "not JSONL"), "refuses the file .*not JSONL", "model.api"),
        (refused("POST fine_tuning/jobs", 400, "No such model"), "does not fine-tune .*No such model", "student.id"),
        (refused("POST fine_tuning/jobs", 429, "empty", "insufficient_quota"), "no credit left", "Add credit"),
        (refused("POST fine_tuning/jobs", 404), "does not fine-tune 'babbage-002'", "davinci-002"),
    ],
)
def test_refusals(
    tmp_path: Path,
    data: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[str, int], Fault | None],
    what: str,
    fix: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(fail) as server, pytest.raises(KdlabError, match=what) as caught:
        tune(context(tmp_path / "out"), data, server)
    error: BaseException | None = caught.value
    assert isinstance(error, KdlabError) and error.fix is not None and fix in error.fix and not server.jobs
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__
    assert all(SECRET not in file.read_text() for file in (tmp_path / "out").rglob("*.json*"))
    assert pauses == []


def test_a_wrong_key(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(key="another") as server, pytest.raises(KdlabError, match="does not accept the key") as caught:
        tune(context(tmp_path / "out"), data, server)
    assert SECRET not in str(caught.value) and "OPENAI_API_KEY" in str(caught.value)


def test_openai_without_a_key(tmp_path: Path, data: Path) -> None:
    with pytest.raises(KdlabError, match="OPENAI_API_KEY is not set"):
        finetune_endpoint(
            context(tmp_path / "out"),
            data=data,
            endpoint="https://api.openai.com/v1",
            model="babbage-002",
            api="completions",
            style=STYLE,
        )


# money


def test_epochs_that_openai_chooses() -> None:
    assert [default_epochs(rows) for rows in (1, 10, 33, 34, 420, 8333, 8334, 25_001)] == [25, 10, 3, 3, 3, 3, 2, 1]


def test_cost_of_training() -> None:
    assert training_cost(2_500_000, 0.4) == 1.0 and training_cost(10, None) is None


def test_a_budget_that_is_too_small_sends_nothing(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    each = tokens_at_most("How many, 1? ###") + tokens_at_most(" I see. --> 4 END")
    most = (each * 10 + 2 * (tokens_at_most("How many, 10? ###") + tokens_at_most(" I see. --> 4 END"))) * 8
    assert default_epochs(12) == 8
    with serving() as server:
        with pytest.raises(BudgetError, match=rf"12 rows and 8 epochs .* at most {most:,} tokens") as caught:
            tune(context(tmp_path / "out", budget=Budget(tokens=most - 1)), data, server)
        assert f"budget.tokens={most} is enough" in str(caught.value)
        price = Price(training=1000.0)
        with pytest.raises(BudgetError, match=rf"\${most / 1000:.2f}.* It is not begun"):
            tune(context(tmp_path / "out", budget=Budget(usd=0.1), student_price=price), data, server)
        with pytest.raises(BudgetError, match=r"nothing is known of what training babbage-002 costs") as caught:
            tune(context(tmp_path / "out", budget=Budget(usd=1e9)), data, server)
        assert "model.price.training" in str(caught.value)
        assert not any("POST" in call for call in server.calls)
        enough = Budget(tokens=most, usd=most / 1000)
        tune(context(tmp_path / "out", budget=enough, student_price=price), data, server, epochs=8)
        nothing = context(tmp_path / "again", budget=Budget(tokens=1))
        assert tune(nothing, data, server, epochs=8)["job"] == "ftjob-0"  # paid for already


def test_more_epochs_than_the_budget_allows_are_cancelled(tmp_path: Path, data: Path, pauses: list[float]) -> None:
    with serving() as server:
        server.chosen = 40
        with pytest.raises(JobError, match=r"was cancelled: the endpoint chose 40 epochs.*12 rows and 40 epochs"):
            tune(context(tmp_path / "out", budget=Budget(tokens=8 * 12 * 40)), data, server)
        assert [job["status"] for job in server.jobs] == ["cancelled"]
        tune(context(tmp_path / "out"), data, server)
        assert [job["status"] for job in server.jobs] == ["cancelled", "succeeded"]


def test_the_guess_of_a_size_is_not_needed_without_a_budget(tmp_path: Path, pauses: list[float]) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("{}\n")
    with serving() as server:
        tuner = Tuner(
            base_url=server.url,
            model="m",
            epochs=None,
            timeout=5.0,
            attempts=1,
            budget=Budget(),
            price=None,
        )
        assert tuner.tune(file, Size(rows=10**9, tokens=10**12), {}, lambda notes: None).job == "ftjob-0"


# answers

ANSWERING = {
    "max_tokens": 20,
    "max_prompt": 512,
    "too_long": "exemplars",
    "overlap": "exclude",
    "unmasked_left_pad": False,
}
QUESTIONS = [{"id": number, "question": f"Q{number}?", "answer": "42"} for number in (3, 5, 8)]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return folder(tmp_path / "questions", "test", QUESTIONS)


def answers(ctx: Context, questions: Path, server: Server, style: dict[str, Any], **changes: Any) -> dict[str, Any]:
    named: dict[str, Any] = {
        "model": "base",
        "endpoint": server.url,
        "api": "completions",
        "task_key": "sums",
        "answering": ANSWERING,
    }
    answer_endpoint(ctx, questions=questions, style=style, **(named | changes))
    return dict(json.loads((ctx.out / "answers.json").read_text(encoding="utf-8")))


def test_a_fine_tuned_student_answers(tmp_path: Path, questions: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    (student / "model.json").write_text(json.dumps({"model": "ft:babbage-002:me:kdlab:1"}))
    ctx = context(tmp_path / "store" / "building" / "out", student_price=Price(input=1.0, output=2.0))
    with serving() as server:
        found = answers(ctx, questions, server, STYLE, model=None, student=student)
        assert found["metadata"] == {
            "base_model": "ft:babbage-002:me:kdlab:1",
            "dataset_key": "sums",
            "completion_key": "ft_cot_token",
            "prediction_template": "ft_cot_token",
            "finetune_key": None,
            "train_key": None,
            "epoch": None,
        }
        assert found["data"]["5"] == [
            {
                "sample_index": 5,
                "completion_index": 0,
                "question": "Q5?",
                "answer": "42",
                "prompt": "Q5? ###",
                "completion": answer_to("Q5? ###"),
                "finish_reason": "stop",
            }
        ]
        assert [body["stop"] for body in server.bodies] == [["END"]] * 3
        assert {(body["temperature"], body["max_tokens"], body["model"]) for body in server.bodies} == {
            (0.0, 20, "ft:babbage-002:me:kdlab:1")
        }
        facts = ctx.facts
        assert (facts["rows"], facts["requests"]) == ({"test": 3}, 3)
        assert (facts["prompt_tokens"], facts["completion_tokens"]) == (6, 30)
        assert facts["usd"] == pytest.approx(66e-6)
        assert facts["answers"]["tokens"] == 30 and facts["answers"]["tokens_per_second"] > 0
        again = replace(ctx, facts={})
        assert answers(again, questions, server, STYLE, model=None, student=student) == found
        assert len(server.bodies) == 3 and again.facts["answers"]["tokens_per_second"] is None
        assert again.facts["usd"] == facts["usd"]


def test_two_steps(tmp_path: Path, questions: Path) -> None:
    ctx = context(tmp_path / "store" / "building" / "out")
    with serving() as server:
        found = answers(ctx, questions, server, {"template": "zs_cot"})
    first = "Q: Q8?\nA: Let's think step by step."
    last = f"{first}{answer_to(first).strip()}\nTherefore, the answer is"
    (one,) = found["data"]["8"]
    assert (one["reasoning_prompt"], one["reasoning_completion"]) == (first, answer_to(first))
    assert (one["prompt"], one["completion"]) == (last, answer_to(last))
    assert ctx.facts["requests"] == 6 == len(server.bodies) and all("stop" not in body for body in server.bodies)


def test_exemplars_that_fit(tmp_path: Path, questions: Path) -> None:
    file = tmp_path / "exemplars.json"
    text = "Q: one?\nA: x. The answer is 1.\nQ: two?\nA: y. The answer is 2."
    file.write_text(json.dumps({"mine": {"prompt": text}}))
    with serving() as server:
        for limit, wanted in ((512, f"{text}\nQ: Q3?\nA:"), (13, f"{text[-30:]}\nQ: Q3?\nA:"), (1, "Q: Q3?\nA:")):
            found = answers(
                context(tmp_path / "store" / "building" / str(limit)),
                questions,
                server,
                {"template": "fs_cot"},
                answering=ANSWERING | {"max_prompt": limit},
                exemplars={"key": "mine", "path": str(file)},
            )
            assert found["data"]["3"][0]["prompt"] == wanted, limit


def test_the_price_of_the_student_is_not_that_of_the_teacher(tmp_path: Path, questions: Path) -> None:
    budget = Budget(usd=1.0)
    with serving() as server:
        ctx = context(tmp_path / "store" / "building" / "out", budget=budget, price=Price(input=1.0, output=1.0))
        with pytest.raises(BudgetError, match="nothing is known of what this model costs") as caught:
            answers(ctx, questions, server, {"template": "zs"})
        assert "model.price.input" in str(caught.value) and not server.bodies


def test_a_kill_while_it_answers_pays_for_nothing_twice(tmp_path: Path, questions: Path) -> None:
    ctx = context(tmp_path / "store" / "building" / "out", concurrency=1, attempts=1)
    with serving() as server:
        server.faults = lambda prompt, tried: Fault("status", 400) if prompt.startswith("Q: Q8") and not tried else None
        with pytest.raises(KdlabError, match="refuses the request"):
            answers(ctx, questions, server, {"template": "zs"})
        answers(ctx, questions, server, {"template": "zs"})
        assert sorted(server.delivered.values()) == [1, 1, 1]


def test_it_waits_for_real(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlab.rationales.tuning.POLLS", (0.05, 0.05))
    started = time.monotonic()
    with serving() as server:
        tune(context(tmp_path / "out"), data, server)
    assert time.monotonic() - started >= 0.1


# the command


def test_a_run_from_question_to_result(lab: Lab, tmp_path: Path) -> None:
    """Fine-tune-CoT with a student behind an endpoint; the same command again asks nothing."""
    words = (
        "method=ft_cot task=demo/coin_flip task.generate.train=12 task.generate.test=4 tracking=none rationales=rules "
        "rationales.error_rate=0 model=openai_babbage model.price.training=1 model.price.input=1 model.price.output=1 "
        "budget.usd=1"
    )
    with serving() as server:
        first = lab.run(f"{words} model.base_url={server.url}", outputs=tmp_path)
        assert first.code == 0, first.out + first.err
        asked = len(server.bodies)
        assert len(server.jobs) == 1 and len(server.file) == 12 and asked == 1 + 4
        again = lab.run(f"{words} model.base_url={server.url} fresh=[student]", outputs=tmp_path)
        assert again.code == 0 and "student" in again.stages("run")
        assert len(server.jobs) == 1 and len(server.bodies) == asked
    result = read(run_folder(tmp_path) / "result.json")
    assert result["student"]["path"] is None and result["scores"]["test"]["accuracy"]["selected"] == 0.0
    cost = result["cost"]
    assert (cost["requests"], cost["trained_tokens"]) == (4, 999)
    assert cost["usd"] == pytest.approx((999 + cost["prompt_tokens"] + cost["completion_tokens"]) / 1e6)
