"""Completions of an OpenAI-compatible endpoint: many at once, none lost, none paid for twice if it can be helped.

What may pass is tried again with growing pauses (status 408, 409, 429 and 5xx, timeouts, broken connections, cut or
malformed answers); what will not pass (wrong key, no such model, bad request, no credit) ends the run at once. Then
no further request is sent, those in flight are awaited and handed on, and only then the error is raised. An answer
that was cut at max_tokens is an answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdlab import config
from kdlab.errors import KdlabError
from kdlab.rationales.completion import (
    OPENAI_HOST,
    Completion,
    Done,
    Progress,
    Report,
    Request,
    endpoint_name,
    resolve_url,
)
from kdlab.rationales.journal import key_of
from kdlab.rationales.prices import Ledger, Price

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI
    from tenacity import RetryCallState

LONGEST_PAUSE = 60.0  # seconds between two tries, if the endpoint doesn't ask for more
LONGEST_REQUEST = 600.0  # seconds that an endpoint may ask to wait
NO_KEY = "none"  # what is sent to an endpoint other than OpenAI's if OPENAI_API_KEY is not set
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
RETRIED = (408, 409, 429)  # and 5xx


class EndpointError(KdlabError):
    """An endpoint refuses what it is asked, or can't be reached."""


class _Passing(Exception):
    """A try failed in a way that may pass. after: seconds that the endpoint asks to wait; billed: perhaps paid for."""

    def __init__(self, why: str, *, after: float | None = None, billed: bool = False) -> None:
        self.why, self.after, self.billed = why, after, billed
        super().__init__(why)


class _Stopping(Exception):
    """Another worker met an error that ends the run."""


class Endpoint:
    """Asks one model of one endpoint.

    base_url: None: what OPENAI_BASE_URL says, else OpenAI's own. The key is OPENAI_API_KEY of the environment.
    api: "completions" sends the prompt as it is, "chat" as the one message of a user.
    timeout: seconds for one whole answer. attempts: tries of one request, the first included.
    note: told once of each kind of trouble that is waited out. sleep: how pauses between tries are made.
    Raises BudgetError if the budget is in dollars and no price is known.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        model: str,
        api: str,
        max_tokens: int,
        temperature: float,
        stop: Sequence[str],
        concurrency: int,
        timeout: float,
        attempts: int,
        budget: config.Budget,
        price: Price | None,
        note: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        assert api in ("completions", "chat"), api
        self.url, self.name = resolve_url(base_url), endpoint_name(base_url)
        self.model, self.api = model, api
        self.max_tokens, self.temperature, self.stop = max_tokens, temperature, list(stop)
        self.concurrency, self.timeout, self.attempts = concurrency, timeout, attempts
        self.ledger = Ledger(budget, price)
        self._note, self._sleep = note, sleep

    def content(self, request: Request) -> dict[str, Any]:
        """All that the answer depends on, as the arguments of `journal.key_of`."""
        return {
            "endpoint": self.name,
            "model": self.model,
            "api": self.api,
            "prompt": request.prompt,
            "sample": request.sample,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
        }

    def complete(self, requests: Sequence[Request], done: Done, progress: Report | None = None) -> None:
        """Ask for all completions; `done` gets each one, with its index, as it arrives.

        Raises EndpointError, or BudgetError before a request that could exceed the budget; also what `done` raises.
        """
        if requests:
            asyncio.run(_Run(self, requests, done, progress, key=self._key()).all())

    def _key(self) -> str:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if "@" in parts.netloc or parts.query:
            raise EndpointError(
                "The address holds a user name, a password or a query, which logs would show: nothing was sent.",
                where="rationales.base_url or OPENAI_BASE_URL",
                fix=f"Give the address alone ({self.name}) and put the key into OPENAI_API_KEY.",
            )
        if not host or parts.scheme not in ("http", "https"):
            raise EndpointError(
                f"{self.name!r} is no address of an endpoint.",
                where="rationales.base_url or OPENAI_BASE_URL",
                fix="Give the whole address: http://127.0.0.1:8000/v1",
            )
        if not key and (host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")):
            raise EndpointError(
                "OpenAI needs a key, and OPENAI_API_KEY is not set: nothing was sent.",
                where=self.name,
                fix="export OPENAI_API_KEY=..., or name another endpoint in rationales.base_url.",
            )
        if not (key.isascii() and key.isprintable()):
            raise EndpointError(
                "OPENAI_API_KEY holds characters that no key has: nothing was sent.",
                where=self.name,
                fix="Copy the key again.",
            )
        return key or NO_KEY


class _Run:
    """One call of `Endpoint.complete`: so many workers take requests from one queue."""

    def __init__(
        self, endpoint: Endpoint, requests: Sequence[Request], done: Done, progress: Report | None, *, key: str
    ) -> None:
        self.endpoint, self.requests, self.done, self.progress, self.key = endpoint, requests, done, progress, key
        self.ledger = endpoint.ledger
        self.queue: Iterator[int] = iter(range(len(requests)))
        self.answered: set[int] = set()
        self.error: BaseException | None = None  # the first one that ends the run
        self.noted: set[str] = set()
        self.in_flight = 0

    async def all(self) -> None:
        self.stopping = asyncio.Event()
        self.settled = asyncio.Condition()  # a try has ended: what it held of the budget is free
        workers = min(self.endpoint.concurrency, len(self.requests))
        async with self._client() as client:
            await asyncio.gather(*(self._work(client) for _ in range(workers)))
        if self.error is not None:
            raise self.error

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

        host = urlsplit(self.endpoint.url).hostname or ""
        direct: dict[str, None] = {}  # a proxy of the environment is not meant for this machine
        if _is_loopback(host):
            direct = {f"all://[{host}]" if ":" in host else f"all://{host}": None}
        seconds = Timeout(self.endpoint.timeout, connect=min(self.endpoint.timeout, 30.0))
        return AsyncOpenAI(
            api_key=self.key,
            base_url=self.endpoint.url,
            max_retries=0,
            timeout=seconds,
            http_client=DefaultAsyncHttpxClient(timeout=seconds, mounts=direct),
        )

    async def _work(self, client: AsyncOpenAI) -> None:
        for index in self.queue:
            if self.stopping.is_set():
                return
            try:
                completion = await self._ask(client, self.requests[index])
                key = key_of(**self.endpoint.content(self.requests[index]))
                self.ledger.spend(key, self.requests[index], completion)
                self.done(index, completion)
                self.answered.add(index)
                self._report()
            except _Stopping:
                return
            except Exception as error:
                self.error = self.error or error
                await self._stop()
                return

    async def _stop(self) -> None:
        self.stopping.set()
        async with self.settled:
            self.settled.notify_all()

    def _report(self) -> None:
        if self.progress is not None:
            tokens, usd = self.ledger.tokens, self.ledger.usd
            self.progress(Progress(done=len(self.answered), total=len(self.requests), tokens=tokens, usd=usd))

    async def _ask(self, client: AsyncOpenAI, request: Request) -> Completion:
        """One request, with as many tries as it needs."""
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        tries = AsyncRetrying(
            retry=retry_if_exception_type(_Passing),
            wait=self._pause,
            stop=stop_after_attempt(self.endpoint.attempts),
            sleep=self._rest,
            reraise=True,
        )
        try:
            return await tries(self._try, client, request)
        except _Passing as last:
            if self.stopping.is_set():
                raise _Stopping from None
            raise EndpointError(
                f"The endpoint failed {self.endpoint.attempts} times for one request; the last time: {last.why}.",
                where=self.endpoint.name,
                fix="Look whether the endpoint runs and how it is; then run the same command again. It goes on with "
                "what is not answered yet (rationales.attempts, rationales.timeout, rationales.concurrency).",
            ) from None

    async def _try(self, client: AsyncOpenAI, request: Request) -> Completion:
        await self._reserve(request)
        self.in_flight += 1
        try:
            return await self._send(client, request)
        except _Passing as failure:
            if failure.billed:
                self.ledger.lose(request, self.endpoint.max_tokens)
            raise
        finally:
            self.in_flight -= 1
            self.ledger.release(request, self.endpoint.max_tokens)
            async with self.settled:
                self.settled.notify_all()

    async def _reserve(self, request: Request) -> None:
        """Wait until the budget has room for the request; BudgetError if it will never have."""
        async with self.settled:
            while not self.stopping.is_set():
                if self.ledger.hold(request, self.endpoint.max_tokens):
                    return
                if not self.in_flight:
                    left = [one for index, one in enumerate(self.requests) if index not in self.answered]
                    raise self.ledger.exceeded(left, self.endpoint.max_tokens)
                await self.settled.wait()
        raise _Stopping

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: what the endpoint asks for, else growing; at random, so that not all come back
        at once."""
        from tenacity import wait_random_exponential

        assert state.outcome is not None
        failure = state.outcome.exception()
        assert isinstance(failure, _Passing)
        if failure.after is not None:
            seconds = failure.after + random.random()
        else:
            seconds = 0.5 + float(wait_random_exponential(multiplier=1, max=LONGEST_PAUSE)(state))
        kind = failure.why.partition(" (")[0]
        if kind not in self.noted:
            self.noted.add(kind)
            self.endpoint._note(f"{self.endpoint.name}: {failure.why}; trying again in {seconds:.0f} s")
        return seconds

    async def _rest(self, seconds: float) -> None:
        """A pause that ends when the run does."""
        rest: asyncio.Future[Any] = asyncio.ensure_future(self.endpoint._sleep(seconds))
        end: asyncio.Future[Any] = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({rest, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            rest.cancel()
            end.cancel()
        if self.stopping.is_set():
            raise _Stopping

    async def _send(self, client: AsyncOpenAI, request: Request) -> Completion:
        """One try. Raises _Passing for what may pass, EndpointError for what won't."""
        import openai

        endpoint = self.endpoint
        body: dict[str, Any] = {"model": endpoint.model, "temperature": endpoint.temperature}
        if endpoint.stop:
            body["stop"] = endpoint.stop
        try:
            if endpoint.api == "chat":
                # OpenAI's reasoning models know the new name only, other servers may know the old one only
                own = urlsplit(endpoint.url).hostname == OPENAI_HOST
                body["max_completion_tokens" if own else "max_tokens"] = endpoint.max_tokens
                body["messages"] = [{"role": "user", "content": request.prompt}]
                sent: Awaitable[Any] = client.chat.completions.with_raw_response.create(**body)
            else:
                body["max_tokens"] = endpoint.max_tokens
                sent = client.completions.with_raw_response.create(prompt=request.prompt, **body)
            answer = await asyncio.wait_for(sent, endpoint.timeout)
            return self._read(answer.text)
        except (asyncio.TimeoutError, openai.APITimeoutError) as error:
            sent_at_all = type(error.__cause__).__name__ not in ("ConnectTimeout", "PoolTimeout")
            failure: Exception = _Passing(f"no answer within {endpoint.timeout:g} s", billed=sent_at_all)
        except openai.APIConnectionError as error:
            refused = type(error.__cause__).__name__ == "ConnectError"
            what = "it can't be reached" if refused else "the connection broke"
            failure = _Passing(f"{what} ({self._redacted(str(error.__cause__ or error))})", billed=not refused)
        except openai.APIStatusError as error:
            failure = self._refusal(error)
        raise failure  # out here, so that it carries nothing of the SDK's error, which may repeat the key

    def _read(self, text: str) -> Completion:
        try:
            payload = json.loads(text)
            choice = payload["choices"][0]
            if self.endpoint.api == "chat":
                message = choice["message"]
                said = message.get("content") or message.get("refusal") or ""
            else:
                said = choice["text"]
            usage = payload.get("usage") or {}
            tokens = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            finish, model = choice.get("finish_reason"), payload.get("model")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise _Passing(
                f"an answer that is cut off or malformed ({self._redacted(text[:200])})", billed=True
            ) from None
        if not isinstance(said, str):
            raise _Passing("an answer whose text is no text", billed=True)
        asked, answered = (count if type(count) is int and count >= 0 else None for count in tokens)
        if not isinstance(finish, str):
            finish = "length" if answered is not None and answered >= self.endpoint.max_tokens else "stop"
        return Completion(
            text=said.encode("utf-8", "replace").decode("utf-8"),
            finish_reason=finish,
            prompt_tokens=asked,
            completion_tokens=answered,
            model=model if isinstance(model, str) else None,
        )

    def _refusal(self, error: APIStatusError) -> Exception:
        """What a status other than 200 means."""
        status, body = error.status_code, error.body
        no_credit = error.code in NO_CREDIT or error.type in NO_CREDIT
        said = body.get("message") if isinstance(body, dict) else None
        message = self._redacted(str(said or error.message))
        if not no_credit and (status in RETRIED or status >= 500):
            after = _retry_after(error.response.headers)
            if after is None or after <= LONGEST_REQUEST:
                return _Passing(f"status {status} ({message})", after=after)
            what = f"The endpoint asks to wait {after:.0f} s before the next request"
            fix = "Run the same command again then: it goes on with what is not answered yet."
        elif no_credit:
            what, fix = "The account has no credit left", "Add credit, then run the same command again."
        elif status == 401:
            what, fix = "The endpoint does not accept the key", "Set OPENAI_API_KEY to a key that is valid for it."
        elif status == 403:
            what = f"The key has no access to {self.endpoint.model!r}"
            fix = "Use a key or a project that may use it, or another rationales.model."
        elif status == 404:
            what = f"The endpoint has no model {self.endpoint.model!r}, or not at this address"
            fix = "Check rationales.model and rationales.base_url, which often ends in /v1; a model that only chats "
            fix += "needs rationales.api=chat."
        else:
            what = "The endpoint refuses the request"
            fix = "Change what it complains of: rationales.api, rationales.max_tokens, rationales.stop (stop=[] for "
            fix += "none), method.temperature, or a prompt that is too long."
        return EndpointError(f"{what} (status {status}: {message})", where=self.endpoint.name, fix=fix)

    def _redacted(self, text: str) -> str:
        """The endpoint's words without the key, which some of them repeat; on one line and not too long."""
        if self.key != NO_KEY:
            text = text.replace(self.key, "[key]")
        text = re.sub(r"(?i)\bbearer\s+\S+", "Bearer [key]", text)
        text = re.sub(r"\bsk-[\w*.-]+", "[key]", text)
        text = " ".join(text.split())
        return text if len(text) <= 500 else f"{text[:500]}..."


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _retry_after(headers: Any) -> float | None:
    """Seconds that the headers ask to wait: retry-after-ms; Retry-After in seconds or as a date (RFC 9110, 10.2.3)."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = str(headers.get(name, "")).strip()
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value) * scale
    try:
        when = parsedate_to_datetime(str(headers.get("retry-after", "")))
    except (ValueError, TypeError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone.utc)
    return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
