"""Completions of an OpenAI-compatible endpoint: many at once, none lost, none paid for twice if it can be helped.

What may pass is tried again with growing pauses (status 408, 409, 429 and 5xx, timeouts, broken connections, cut or
malformed answers); what will not pass (wrong key, no such model, bad request, no credit) ends the run at once. Then
no further request is sent, those in flight are awaited and handed on, and only then the error is raised. An answer
that was cut at max_tokens is an answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdlab import config
from kdlab.errors import EndpointError
from kdlab.rationales.client import (
    Passing,
    failure_of,
    find_key,
    malformed,
    open_async_client,
    pause,
    refusal,
    unanswered,
)
from kdlab.rationales.completion import (
    OPENAI_HOST,
    Completion,
    Done,
    Progress,
    Report,
    Request,
    Section,
    endpoint_name,
    resolve_url,
)
from kdlab.rationales.journal import key_of
from kdlab.rationales.prices import Ledger, Price

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from tenacity import RetryCallState

MODEL: dict[Section, str] = {"rationales": "rationales.model", "model": "model.student.id"}  # the setting that names it
CHANGEABLE: dict[Section, str] = {  # settings of a request
    "rationales": "rationales.api, rationales.max_tokens, rationales.stop (stop=[] for none), method.temperature",
    "model": "model.api, method.answer.max_tokens",
}


class _Stopping(Exception):
    """Another worker met an error that ends the run."""


class Endpoint:
    """Asks one model of one endpoint.

    base_url: None: what OPENAI_BASE_URL says, else OpenAI's own. The key is OPENAI_API_KEY of the environment.
    api: "completions" sends the prompt as it is, "chat" as the one message of a user.
    timeout: seconds for one whole answer. attempts: tries of one request, the first included.
    section: of the configuration, which error messages speak of.
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
        section: Section = "rationales",
        note: Callable[[str], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        assert api in ("completions", "chat"), api
        self.url, self.name = resolve_url(base_url), endpoint_name(base_url)
        self.model, self.api = model, api
        self.max_tokens, self.temperature, self.stop = max_tokens, temperature, list(stop)
        self.concurrency, self.timeout, self.attempts = concurrency, timeout, attempts
        self.section: Section = section
        self.ledger = Ledger(budget, price, section=section)
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
            key = find_key(self.url, section=self.section)
            asyncio.run(_Run(self, requests, done, progress, key=key).all())


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
        endpoint = self.endpoint
        workers = min(endpoint.concurrency, len(self.requests))
        async with open_async_client(endpoint.url, key=self.key, timeout=endpoint.timeout) as client:
            await asyncio.gather(*(self._work(client) for _ in range(workers)))
        if self.error is not None:
            raise self.error

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
            retry=retry_if_exception_type(Passing),
            wait=self._pause,
            stop=stop_after_attempt(self.endpoint.attempts),
            sleep=self._rest,
            reraise=True,
        )
        try:
            return await tries(self._try, client, request)
        except Passing as last:
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
        except Passing as failure:
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
        failure, seconds = failure_of(state), pause(state)
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
        """One try. Raises Passing for what may pass, EndpointError for what won't."""
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
        except (asyncio.TimeoutError, openai.APIConnectionError) as error:
            failure: Exception = unanswered(error, key=self.key, timeout=endpoint.timeout)
        except openai.APIStatusError as error:
            failure = refusal(error, key=self.key, name=endpoint.name, meaning=self._meaning)
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
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise malformed(text, key=self.key) from None
        if not isinstance(said, str):
            raise Passing("an answer whose text is no text", billed=True)
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

    def _meaning(self, status: int) -> tuple[str, str]:
        """What a status means that is neither of the key nor of credit, and what to do."""
        model, section = self.endpoint.model, self.endpoint.section
        if status == 403:
            return (
                f"The key has no access to {model!r}",
                f"Use a key or a project that may, or another {MODEL[section]}.",
            )
        if status == 404:
            fix = f"Check {MODEL[section]} and {section}.base_url, which often ends in /v1; a model that only chats "
            return f"The endpoint has no model {model!r}, or not at this address", f"{fix}needs {section}.api=chat."
        fix = f"Change what it complains of: {CHANGEABLE[section]}, or a prompt that is too long."
        return "The endpoint refuses the request", fix
