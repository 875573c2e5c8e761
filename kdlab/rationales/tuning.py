"""A model fine-tuned through an OpenAI-compatible fine-tuning API: one job for the same data, whatever happens.

A job is paid for when it runs, so that none is made before it is known that there is none yet: neither in the notes of
an earlier attempt, nor at the endpoint, where file and job carry the sha256 of data, model and epochs (in the file's
name and the job's metadata). A try whose answer was lost may have made a job too: it is looked for before the next one.
A job that failed or was cancelled counts as none: once its error was told, the same command makes a new one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab import config
from kdlab.errors import BudgetError, EndpointError
from kdlab.rationales.client import (
    NO_KEY,
    Passing,
    failure_of,
    find_key,
    malformed,
    open_client,
    pause,
    redacted,
    refusal,
    unanswered,
)
from kdlab.rationales.completion import endpoint_name, resolve_url
from kdlab.rationales.prices import dollars, limits, unpriced

if TYPE_CHECKING:
    from openai import OpenAI
    from tenacity import RetryCallState

FAILED = ("failed", "cancelled")
POLLS = (2.0, 30.0)  # seconds between two looks at a job: the first ones, and at most
SHOWN_EVERY = 60.0  # seconds between two lines about a job whose status stays the same
SETTLING = (0.0, 2.0, 5.0)  # seconds before each look for a job that a lost answer may have made
PAGE = 100
SUFFIX = "kdlab"  # of the fine-tuned model's name
_MILLION = 1_000_000

Job = dict[str, Any]  # as the endpoint sends it
Notes = Mapping[str, Any]  # of an attempt: digest; file, its id; asked, once a job was asked for; job, its id


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a job that succeeded left."""

    model: str  # the endpoint's name of the fine-tuned model
    job: str
    file: str
    base: str
    epochs: int | None  # as the endpoint says
    trained_tokens: int | None  # as billed: over all epochs; None: the endpoint doesn't say


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is to train on. tokens: of one epoch, at most."""

    rows: int
    tokens: int


class JobError(EndpointError):
    """A fine-tuning job came to nothing: it failed, was cancelled, or would have exceeded the budget."""


def default_epochs(rows: int) -> int:
    """Epochs that OpenAI chooses, as far as it is known: 3, more for few rows, fewer for many.

    Source: cookbook.openai.com/examples/chat_finetuning_data_prep, "Pricing and default n_epochs estimate".
    """
    if 3 * rows < 100:
        return min(25, 100 // max(rows, 1))
    if 3 * rows > 25_000:
        return max(1, 25_000 // rows)
    return 3


def training_cost(tokens: int, price: float | None) -> float | None:
    """US dollars for so many tokens, all epochs counted. price: dollars per million; None: not known."""
    return None if price is None else float(tokens * Decimal(str(price)) / _MILLION)


def digest_of(data: bytes, model: str, epochs: int | None) -> str:
    """The identity of a job: 64 hexadecimal digits."""
    settings = json.dumps({"model": model, "epochs": epochs}, sort_keys=True)
    return hashlib.sha256(hashlib.sha256(data).digest() + settings.encode()).hexdigest()


class Tuner:
    """Fine-tunes one model at one endpoint.

    base_url: None: what OPENAI_BASE_URL says, else OpenAI's own. The key is OPENAI_API_KEY of the environment.
    epochs: None: none is sent, and the endpoint chooses. price: US dollars per million tokens of training.
    timeout: seconds for one answer. attempts: tries of one call, the first included. note: told how the job is.
    pause: how time passes between two calls.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        model: str,
        epochs: int | None,
        timeout: float,
        attempts: int,
        budget: config.Budget,
        price: float | None,
        note: Callable[[str], None] = lambda _: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self.name = resolve_url(base_url), endpoint_name(base_url)
        self.model, self.epochs = model, epochs
        self.timeout, self.attempts = timeout, attempts
        self.budget, self.price = budget, price
        self._note, self._pause = note, pause
        self._key = NO_KEY

    def tune(self, file: Path, size: Size, notes: Notes, remember: Callable[[Notes], None]) -> Tuned:
        """Have the model fine-tuned on a file of JSON lines, and wait until it is.

        notes: what `remember` was given last by an earlier attempt, {} if there was none; `remember` must have put it
        on the disk when it returns. Raises BudgetError before anything is uploaded if the job could cost more than the
        budget allows; EndpointError if the endpoint refuses or can't be reached; JobError if the job comes to nothing.
        """
        if self.budget.usd is not None and self.price is None:
            raise unpriced(f"training {self.model}", settings="model.price.training")
        digest = digest_of(file.read_bytes(), self.model, self.epochs)
        known = dict(notes) if notes.get("digest") == digest else {"digest": digest}
        self._key = find_key(self.url, section="model")
        with open_client(self.url, key=self._key, timeout=self.timeout) as client:
            job = self._job(client, known["job"]) if known.get("job") else self._find_job(client, file, known)
            if job is None:
                self._afford(size, self.epochs or default_epochs(size.rows))
                job = self._make(client, file, known, remember)
                self._note(
                    f"      job {job['id']}: runs at {self.name}, also if this command is stopped; "
                    "the same command goes on with it"
                )
            else:
                self._note(f"      job {job['id']}: was made before, it is not paid for again")
            remember(known | {"job": job["id"], "file": job["training_file"]})
            try:
                return self._outcome(self._watch(client, job, size), file)
            except JobError:
                remember({"digest": digest})  # the user is told, and the next attempt makes a new one
                raise

    # one job -------------------------------------------------------------------------------------------------------

    def _find_job(self, client: OpenAI, file: Path, known: Mapping[str, Any]) -> Job | None:
        """A job of this data at the endpoint: one that succeeded, else the oldest one that still may."""
        waits = SETTLING if known.get("asked") else SETTLING[:1]
        for seconds in waits:
            if seconds:
                self._pause(seconds)
            files = self._files(client, file, known)
            jobs = [
                job
                for job in self._pages(lambda **page: client.fine_tuning.jobs.with_raw_response.list(**page))
                if self._is_own(job, known["digest"], files) and job.get("status") not in FAILED
            ]
            if jobs:
                first = min(jobs, key=lambda job: (job.get("status") != "succeeded", job.get("created_at") or 0))
                return self._job(client, first["id"])
        return None

    def _is_own(self, job: Job, digest: str, files: list[str]) -> bool:
        return (job.get("metadata") or {}).get("kdlab") == digest or job.get("training_file") in files

    def _files(self, client: OpenAI, file: Path, known: Mapping[str, Any]) -> list[str]:
        """Ids of the endpoint's whole copies of the file, oldest first."""
        sent = client.files.with_raw_response
        found = self._pages(lambda **page: sent.list(purpose="fine-tune", **page))
        name, size = _file_name(known["digest"]), file.stat().st_size
        return [
            one["id"]
            for one in sorted(found, key=lambda one: one.get("created_at") or 0)
            if one.get("filename") == name and one.get("bytes", size) == size and one.get("status") != "error"
        ]

    def _make(self, client: OpenAI, file: Path, known: dict[str, Any], remember: Callable[[Notes], None]) -> Job:
        """Upload the file unless it is there, and make the job."""
        content = (_file_name(known["digest"]), file.read_bytes())

        def upload(again: bool) -> str:
            there = self._files(client, file, known)
            if there:
                return there[0]
            sent = client.files.with_raw_response.create(file=content, purpose="fine-tune")
            return str(self._object(sent.text)["id"])

        known["file"] = self._call("upload", upload)
        known["asked"] = True
        remember(known)
        more: dict[str, Any] = {} if self.epochs is None else {"hyperparameters": {"n_epochs": self.epochs}}

        def make(again: bool) -> Job:
            there = self._find_job(client, file, known) if again else None
            if there is not None:
                return there
            sent = client.fine_tuning.jobs.with_raw_response.create(
                model=self.model,
                training_file=known["file"],
                suffix=SUFFIX,
                metadata={"kdlab": known["digest"]},
                **more,
            )
            return self._object(sent.text, "status", "training_file")

        job: Job = self._call("create", make)
        return job

    def _watch(self, client: OpenAI, job: Job, size: Size) -> Job:
        """Wait until the job is over."""
        started = shown = time.monotonic()
        status, seconds = None, POLLS[0]
        limited = self.epochs is None and job["status"] != "running"
        while True:
            now = time.monotonic()
            if job["status"] != status or now - shown >= SHOWN_EVERY:
                status, shown = job["status"], now
                self._note(f"      job {job['id']}: {status}, {now - started:.0f} s")
            if status == "succeeded" or status in FAILED:
                return job
            chosen = _epochs(job)
            if limited and chosen is not None:
                self._allow(client, job, size, chosen)
                limited = False
            self._pause(seconds)
            seconds = min(1.5 * seconds, POLLS[1])
            job = self._job(client, job["id"])

    def _allow(self, client: OpenAI, job: Job, size: Size, epochs: int) -> None:
        """Cancel a job for which the endpoint chose more epochs than the budget allows."""
        try:
            self._afford(size, epochs)
        except BudgetError as error:
            self._call("cancel", lambda again: client.fine_tuning.jobs.with_raw_response.cancel(job["id"]))
            what = f"The fine-tuning job was cancelled: the endpoint chose {epochs} epochs. {error.what}"
            raise JobError(what, where=error.where, fix=error.fix) from None

    def _outcome(self, job: Job, file: Path) -> Tuned:
        """Of a job that is over."""
        if job["status"] in FAILED:
            raise self._failure(job, file)
        if not job.get("fine_tuned_model"):
            raise EndpointError(
                "The fine-tuning job succeeded, but the endpoint does not name the model.",
                where=f"{self.name}, job {job['id']}",
                fix="Run the same command again: it looks at the same job.",
            )
        trained = job.get("trained_tokens")
        return Tuned(
            model=str(job["fine_tuned_model"]),
            job=str(job["id"]),
            file=str(job["training_file"]),
            base=str(job.get("model") or self.model),
            epochs=_epochs(job),
            trained_tokens=trained if type(trained) is int else None,
        )

    def _failure(self, job: Job, file: Path) -> JobError:
        where = f"{self.name}, job {job['id']}"
        again = "the same command then makes a new job"
        if job["status"] == "cancelled":
            what = "The fine-tuning job was cancelled."
            return JobError(what, where=where, fix=f"Find out who did it, and why; {again}.")
        error = job.get("error") or {}
        said = redacted(str(error.get("message") or "the endpoint doesn't say why"), self._key)
        code = error.get("code")
        what = f"The fine-tuning job failed{f' ({code})' if code else ''}: {said}"
        if "file" in f"{code} {error.get('param')}":
            fix = f"Look at {file}, and at what made it (method.curation, task.few); {again}."
        else:
            fix = f"Change what it complains of; {again}."
        return JobError(what, where=where, fix=fix)

    def _afford(self, size: Size, epochs: int) -> None:
        """Raises BudgetError if so many epochs could cost more than the budget."""
        tokens = size.tokens * epochs
        usd = training_cost(tokens, self.price)
        given, enough = limits(self.budget, tokens, usd)
        if enough:
            cost = "" if usd is None else f", {dollars(usd)}"
            guess = "" if self.epochs else " (as the endpoint chooses; model.epochs)"
            raise BudgetError(
                f"Fine-tuning could exceed the budget of this stage: {size.rows:,} rows and {epochs} epochs{guess} are "
                f"at most {tokens:,} tokens{cost}. It is not begun.",
                where=" ".join(given),
                fix=f"Raise it: {' '.join(enough)} is enough. Or train on less: model.epochs, "
                "method.curation.per_question, task.few.examples.",
            )

    # calls ---------------------------------------------------------------------------------------------------------

    def _job(self, client: OpenAI, name: str) -> Job:
        def look(again: bool) -> Job:
            sent = client.fine_tuning.jobs.with_raw_response.retrieve(name)
            return self._object(sent.text, "status", "training_file")

        job: Job = self._call("watch", look)
        return job

    def _pages(self, send: Callable[..., Any]) -> list[dict[str, Any]]:
        """All entries of a list that the endpoint sends in pages."""
        found: list[dict[str, Any]] = []
        while True:
            page: dict[str, Any] = {"limit": PAGE} | ({"after": found[-1]["id"]} if found else {})
            answer = self._call("find", partial(self._page, send, page))
            seen = {one["id"] for one in found}
            new = [one for one in answer["data"] if one["id"] not in seen]
            found += new
            if not answer.get("has_more") or not new:
                return found

    def _page(self, send: Callable[..., Any], page: Mapping[str, Any], again: bool) -> dict[str, Any]:
        text = send(**page).text
        try:
            found = json.loads(text)
            if all(isinstance(one["id"], str) for one in found["data"]):
                return dict(found)
        except (ValueError, TypeError, KeyError):
            pass
        raise malformed(text, key=self._key)

    def _call(self, doing: str, send: Callable[[bool], Any]) -> Any:
        """One call, with as many tries as it needs; `send` is told whether it was tried before."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

        tried = False

        def attempt() -> Any:
            nonlocal tried
            again, tried = tried, True
            return self._try(doing, send, again)

        tries = Retrying(
            retry=retry_if_exception_type(Passing),
            wait=self._wait,
            stop=stop_after_attempt(self.attempts),
            sleep=self._pause,
            reraise=True,
        )
        try:
            return tries(attempt)
        except Passing as last:
            raise EndpointError(
                f"The endpoint failed {self.attempts} times; the last time: {last.why}.",
                where=self.name,
                fix="Look whether the endpoint runs and how it is; then run the same command again: a job that was "
                "made is found and goes on (rationales.attempts, rationales.timeout).",
            ) from None

    def _try(self, doing: str, send: Callable[[bool], Any], again: bool) -> Any:
        """Raises Passing for what may pass, EndpointError for what won't."""
        import openai

        try:
            return send(again)
        except openai.APIConnectionError as error:
            failure: Exception = unanswered(error, key=self._key, timeout=self.timeout)
        except openai.APIStatusError as error:
            failure = refusal(error, key=self._key, name=self.name, meaning=partial(self._meaning, doing))
        raise failure  # out here, so that it carries nothing of the SDK's error, which may repeat the key

    def _wait(self, state: RetryCallState) -> float:
        seconds = pause(state)
        self._note(f"{self.name}: {failure_of(state).why}; trying again in {seconds:.0f} s")
        return seconds

    def _object(self, text: str, *names: str) -> dict[str, Any]:
        """A JSON object with an id and these keys."""
        try:
            found = json.loads(text)
            if all(isinstance(found[name], str) for name in ("id", *names)):
                return dict(found)
        except (ValueError, TypeError, KeyError):
            pass
        raise malformed(text, key=self._key)

    def _meaning(self, doing: str, status: int) -> tuple[str, str]:
        """What a status means that is neither of the key nor of credit, and what to do.

        doing: find, upload, create, watch or cancel.
        """
        if status == 403:
            what = f"The key may not fine-tune {self.model!r}"
            fix = "Use a key or a project that may, or another model.student.id."
        elif doing == "watch":
            what = "The endpoint has no such job, though an earlier attempt made it with this data"
            fix = "Use the key and the address with which it was made: it is paid for already. If it is gone for good, "
            fix += "remove work/job.json of this stage, and a new one is made."
        elif doing == "find" and status in (404, 405):
            what = "The endpoint has no fine-tuning API, or not at this address"
            fix = (
                "Check model.base_url, which often ends in /v1; models of your own are trained with model.kind=decoder."
            )
        elif doing == "upload":
            what = "The endpoint refuses the file with the training data"
            fix = "Look at train.jsonl of this stage; model.api says in which format it is written."
        elif doing == "create":
            what = f"The endpoint does not fine-tune {self.model!r} on this file"
            fix = "Check model.student.id (OpenAI: babbage-002 and davinci-002 with model.api=completions, others with "
            fix += "model.api=chat) and model.epochs."
        else:
            what, fix = "The endpoint refuses the request", "Change what it complains of."
        return what, fix


def _file_name(digest: str) -> str:
    return f"kdlab-{digest}.jsonl"


def _epochs(job: Job) -> int | None:
    """Of a job, once the endpoint has chosen them."""
    chosen = (job.get("hyperparameters") or {}).get("n_epochs")
    return chosen if type(chosen) is int else None
