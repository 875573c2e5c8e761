"""An endpoint that fails in every way: no answer is lost, none that arrived is paid for twice, and spending stops."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from endpoint_server import MODEL, Fault, Server, answer_to, serving, usage_of
from kdlab import config
from kdlab.errors import BudgetError, EndpointError, StoreError
from kdlab.rationales.client import NO_KEY
from kdlab.rationales.completion import Completion, Progress, Request
from kdlab.rationales.endpoint import Endpoint
from kdlab.rationales.journal import Journal, Journaled, key_of
from kdlab.rationales.prices import Price, tokens_at_most

SECRET = "sk-proj-ThisKeyIsNobodysBusiness0123456789"
CENT = Price(input=10_000.0, output=10_000.0, source="here")  # a cent a token


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Import the SDK before any test measures time."""
    import openai.resources.chat
    import openai.resources.completions  # noqa: F401


class Pauses:
    """Notes the pauses that are asked for and makes none."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def endpoint(url: str | None, **changes: Any) -> Endpoint:
    named: dict[str, Any] = {
        "base_url": url,
        "model": "teacher",
        "api": "completions",
        "max_tokens": 20,
        "temperature": 0.7,
        "stop": ["END"],
        "concurrency": 8,
        "timeout": 5.0,
        "attempts": 6,
        "budget": config.Budget(),
        "price": None,
        "sleep": Pauses(),
    }
    return Endpoint(**(named | changes))


def questions(count: int, samples: int = 1) -> list[Request]:
    return [Request(f"question {number:03}", sample) for number in range(count) for sample in range(samples)]


def ask(
    completer: Endpoint | Journaled, requests: Sequence[Request], report: Callable[[Progress], None] | None = None
) -> dict[int, Completion]:
    """All answers by index; an index that came twice is an error."""
    answers: dict[int, Completion] = {}

    def done(index: int, completion: Completion) -> None:
        assert index not in answers
        answers[index] = completion

    completer.complete(requests, done, report)
    return answers


def check(answers: dict[int, Completion], requests: Sequence[Request]) -> None:
    assert answers.keys() == set(range(len(requests)))
    assert all(answers[index].text == answer_to(request.prompt) for index, request in enumerate(requests))


def first(*faults: Fault) -> Callable[[str, int], Fault | None]:
    """Every request's first tries fail like this."""
    return lambda prompt, tried: faults[tried] if tried < len(faults) else None


# what is sent and what comes back


def test_plain_completions() -> None:
    with serving() as server:
        answers = ask(endpoint(server.url), [Request("Q: 1 + 1?\nA:")])
    prompt_tokens, completion_tokens = usage_of("Q: 1 + 1?\nA:")
    assert answers == {0: Completion(answer_to("Q: 1 + 1?\nA:"), "stop", prompt_tokens, completion_tokens, MODEL)}
    assert server.paths == ["/v1/completions"]
    assert server.bodies == [
        {"model": "teacher", "prompt": "Q: 1 + 1?\nA:", "max_tokens": 20, "temperature": 0.7, "stop": ["END"]}
    ]
    assert server.keys == {NO_KEY}


def test_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(key=SECRET) as server:
        answers = ask(endpoint(server.url, api="chat", stop=[], temperature=0.0), [Request("How many?")])
    assert answers[0].text == answer_to("How many?")
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "teacher",
            "messages": [{"role": "user", "content": "How many?"}],
            "max_tokens": 20,
            "temperature": 0.0,
        }
    ]


def test_nothing_wanted_nothing_sent() -> None:
    assert ask(endpoint(None), []) == {}  # not even a key is needed


def test_an_answer_cut_at_max_tokens_is_an_answer() -> None:
    with serving(finish="length") as server:
        answers = ask(endpoint(server.url), questions(3))
    assert {answer.finish_reason for answer in answers.values()} == {"length"}
    assert server.tries == server.delivered and max(server.tries.values()) == 1


@pytest.mark.parametrize(("max_tokens", "finish"), [(10, "length"), (11, "stop")])
def test_a_finish_reason_that_is_absent_is_told_by_the_tokens(max_tokens: int, finish: str) -> None:
    with serving(finish=None) as server:
        assert ask(endpoint(server.url, max_tokens=max_tokens), questions(1))[0].finish_reason == finish


def test_usage_that_is_absent_is_guessed_for_the_budget_only() -> None:
    with serving(usage=False) as server:
        asked = endpoint(server.url)
        answers = ask(asked, questions(1))
    assert (answers[0].prompt_tokens, answers[0].completion_tokens) == (None, None)
    assert asked.ledger.tokens == tokens_at_most("question 000") + tokens_at_most(answers[0].text)


def test_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as first, serving() as second:
        monkeypatch.setenv("OPENAI_BASE_URL", first.url)
        ask(endpoint(None), questions(1))
        ask(endpoint(second.url), questions(2))
    assert (sum(first.tries.values()), sum(second.tries.values())) == (1, 2)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_does_not_catch_what_is_for_this_machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with serving() as server, serving() as proxy:
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        check(ask(endpoint(server.url), questions(2)), questions(2))
    assert not proxy.tries


def test_progress() -> None:
    reports: list[Progress] = []
    with serving() as server:
        ask(endpoint(server.url, price=CENT, concurrency=1), questions(3), reports.append)
    each = sum(usage_of("question 000"))
    assert [(r.done, r.total, r.tokens, r.usd) for r in reports] == [
        (n, 3, n * each, pytest.approx(n * each / 100)) for n in (1, 2, 3)
    ]


def test_no_more_at_once_than_asked_for() -> None:
    tasks: list[int] = []
    requests = questions(80)
    with serving(delay=0.005) as server:
        endpoint(server.url, concurrency=5).complete(requests, lambda i, c: tasks.append(len(asyncio.all_tasks())))
    assert 2 <= server.most_in_flight <= 5
    assert max(tasks) < 5 * 4  # of 80 requests: so many workers, and what each of them waits for


# what may pass


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault("status", status) for status in (408, 409, 429, 500, 502, 503, 504, 529)),
        *(Fault(kind) for kind in ("cut", "malformed", "page", "drop")),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_what_may_pass_is_tried_again(fault: Fault) -> None:
    pauses, notes = Pauses(), []
    with serving(first(fault, fault)) as server:
        answers = ask(endpoint(server.url, sleep=pauses, note=notes.append), questions(3))
    check(answers, questions(3))
    assert set(server.tries.values()) == {3} and set(server.delivered.values()) == {1}
    assert len(pauses.seconds) == 6 and all(0.5 <= seconds <= 2.5 for seconds in pauses.seconds)
    assert len(notes) == 1 and server.url in notes[0] and "trying again" in notes[0]


def test_an_answer_that_takes_too_long_is_asked_again() -> None:
    with serving(lambda prompt, tried: Fault("hang", seconds=0.8) if tried == 0 else None) as server:
        answers = ask(endpoint(server.url, timeout=0.3), questions(4))
    check(answers, questions(4))
    assert set(server.delivered.values()) == {1}


def test_a_slow_endpoint_is_waited_for() -> None:
    with serving(delay=0.4) as server:
        check(ask(endpoint(server.url), questions(4)), questions(4))
    assert set(server.tries.values()) == {1}


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        (lambda: {"Retry-After": "7"}, 7.0, 8.0),
        (lambda: {"Retry-After": "0"}, 0.0, 1.0),
        (lambda: {"Retry-After": in_seconds(30)}, 27.0, 31.0),
        (lambda: {"Retry-After": in_seconds(-30)}, 0.0, 1.0),
        (lambda: {"retry-after-ms": "2500", "Retry-After": "9"}, 2.5, 3.5),
        (lambda: {"Retry-After": "soon"}, 0.5, 1.5),
    ],
    ids=["seconds", "none", "date", "past", "milliseconds", "nonsense"],
)
def test_the_endpoint_says_how_long_to_wait(headers: Callable[[], dict[str, str]], low: float, high: float) -> None:
    pauses = Pauses()
    with serving(first(Fault("status", 429, headers=headers()))) as server:
        ask(endpoint(server.url, sleep=pauses), questions(1))
    (seconds,) = pauses.seconds
    assert low <= seconds <= high


def test_pauses_grow_and_differ() -> None:
    pauses = Pauses()
    with serving(first(*[Fault("status", 500)] * 7)) as server:
        ask(endpoint(server.url, attempts=8, sleep=pauses), questions(10))
    by_try = sorted(pauses.seconds)
    assert len(set(by_try)) == 10 * 7 and by_try[-1] > 16 and by_try[-1] <= 60.5


def test_many_requests_through_every_fault() -> None:
    dice = random.Random(3)
    kinds = [
        Fault("status", 429, headers={"Retry-After": "0"}),
        *(Fault("status", status) for status in (500, 503)),
        *(Fault(kind) for kind in ("cut", "malformed", "drop")),
    ]
    plan = {
        (f"question {number:03}", tried): dice.choice(kinds)
        for number in range(120)
        for tried in range(4)
        if dice.random() < 0.3
    }
    assert len(plan) > 100
    with serving(lambda prompt, tried: plan.get((prompt, tried))) as server:
        answers = ask(endpoint(server.url), questions(120))
    check(answers, questions(120))
    assert server.delivered == Counter(request.prompt for request in questions(120))
    assert server.most_in_flight <= 8


# what won't pass


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("status", 400, error={"message": "max_tokens is too large: 20"}), "max_tokens is too large: 20"),
        (Fault("status", 403, error={"message": "no"}), "no access to 'teacher'"),
        (Fault("status", 404, error={"message": "no"}), "no model 'teacher'"),
        (Fault("status", 422, error={"message": "unknown field stop"}), "unknown field stop"),
        (Fault("status", 429, error={"message": "no", "code": "insufficient_quota"}), "no credit left"),
        (Fault("status", 429, error={"message": "no", "type": "insufficient_quota"}), "no credit left"),
        (Fault("status", 429, headers={"Retry-After": "7200"}), "asks to wait 7200 s"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Fault) else "",
)
def test_what_will_not_pass_ends_the_run_at_once(fault: Fault, said: str) -> None:
    pauses = Pauses()
    with serving(lambda prompt, tried: fault) as server:
        with pytest.raises(EndpointError) as caught:
            ask(endpoint(server.url, sleep=pauses, concurrency=1), questions(50))
        assert server.url in str(caught.value)
    assert said in str(caught.value) and "fix:" in str(caught.value)
    assert sum(server.tries.values()) == 1 and not pauses.seconds


LOCATED = [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": {}}, {"msg": "Too long"}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "max_tokens is too large"}, "status 400: max_tokens is too large)"),  # FastAPI, HTTPException
        ({"detail": LOCATED}, "status 400: body.prompt: Field required; Too long)"),  # FastAPI, validation
        ({"detail": {"error": "no stop words here"}}, "status 400: no stop words here)"),
        ({"error": "no such option"}, "status 400: no such option)"),
        ({"message": "max_tokens is too large", "object": "error"}, "status 400: max_tokens is too large)"),
        ({"why": "just so"}, "just so"),  # unknown: as it came
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_words_of_a_refusal(body: dict[str, Any], words: str) -> None:
    fault = Fault("status", 400, body=body)
    with serving(lambda prompt, tried: fault) as server, pytest.raises(EndpointError) as caught:
        ask(endpoint(server.url), questions(1))
    assert words in caught.value.what
    assert ("{" in caught.value.what) == ("why" in body)


@pytest.mark.parametrize("status", [400, 403, 404])
def test_the_errors_of_a_student_name_its_own_settings(status: int) -> None:
    with serving(lambda prompt, tried: Fault("status", status)) as server:
        told = []
        for section in ("rationales", "model"):
            with pytest.raises(EndpointError) as caught:
                ask(endpoint(server.url, section=section), questions(1))
            told.append(str(caught.value.fix))
    assert "rationales." in told[0] and "model.student" not in told[0]
    assert "rationales." not in told[1] and re.search(r"model\.(student\.id|api)", told[1])


@pytest.mark.parametrize("url", [None, "127.0.0.1:8000/v1", "https://me:hush@host/v1"])
def test_an_address_of_a_student_names_its_own_setting(url: str | None) -> None:
    with pytest.raises(EndpointError) as caught:
        ask(endpoint(url, section="model"), questions(1))
    assert "model.base_url" in str(caught.value) and "rationales" not in str(caught.value)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_wrong_key_is_said_and_not_shown(monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(key="sk-another") as server, pytest.raises(EndpointError) as caught:
        ask(endpoint(server.url, api=api, concurrency=1), questions(50))
    assert "does not accept the key (status 401: Incorrect API key provided: [key]" in str(caught.value)
    assert server.keys == {SECRET} and sum(server.tries.values()) == 1
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert not any(SECRET in repr(error) + str(error) for error in chain)


@pytest.mark.parametrize(
    "echo",
    [
        f"bad header: Bearer {SECRET}",
        f"key={SECRET}",
        "Incorrect API key provided: sk-proj-********************6789.",
    ],
)
def test_no_part_of_a_key_is_repeated(monkeypatch: pytest.MonkeyPatch, echo: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    fault = Fault("status", 400, error={"message": echo})
    with serving(lambda prompt, tried: fault) as server, pytest.raises(EndpointError) as caught:
        ask(endpoint(server.url), questions(1))
    assert "[key]" in str(caught.value)
    assert "Nobodys" not in str(caught.value) and "6789" not in str(caught.value)


def test_openai_itself_needs_a_key() -> None:
    for url in (None, "https://eu.api.openai.com/v1"):
        with pytest.raises(EndpointError, match="OPENAI_API_KEY is not set: nothing was sent"):
            ask(endpoint(url), questions(1))


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http:///v1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(EndpointError, match="is no address of an endpoint"):
        ask(endpoint(url), questions(1))


@pytest.mark.parametrize("url", ["https://me:hush@host/v1", "https://host/v1?api-key=hush"])
def test_secrets_do_not_belong_into_the_address(url: str) -> None:
    with pytest.raises(
        EndpointError, match=r"The address holds .* \n|Give the address alone \(https://host/v1\)"
    ) as caught:
        ask(endpoint(url), questions(1))
    assert "hush" not in str(caught.value) and "(https://host/v1)" in str(caught.value)


def test_a_key_with_odd_characters_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET + "…")
    with pytest.raises(EndpointError, match="holds characters that no key has") as caught:
        ask(endpoint("http://127.0.0.1:9/v1"), questions(1))
    assert SECRET not in str(caught.value)


def test_nobody_listens() -> None:
    with serving() as server:
        url = server.url
    pauses = Pauses()
    with pytest.raises(EndpointError, match=r"failed 3 times for one request; the last time: it can't be reached"):
        ask(endpoint(url, attempts=3, concurrency=1, sleep=pauses), questions(5))
    assert len(pauses.seconds) == 2


def test_a_request_that_fails_for_good_loses_no_other_answer() -> None:
    answers: dict[int, Completion] = {}
    bad = "question 003"
    faults = {bad: Fault("status", 500)}
    with (
        serving(lambda prompt, tried: faults.get(prompt), delay=0.02) as server,
        pytest.raises(EndpointError, match="failed 2 times"),
    ):
        endpoint(server.url, attempts=2, concurrency=4).complete(questions(400), answers.__setitem__)
    assert len(answers) == sum(server.delivered.values()) < 400  # it ended, and what was in flight arrived
    assert all(answers[index].text == answer_to(f"question {index:03}") for index in answers)


def test_a_pause_ends_when_the_run_does() -> None:
    asleep = asyncio.sleep

    async def long(seconds: float) -> None:
        await asleep(60)

    def faults(prompt: str, tried: int) -> Fault | None:
        if prompt == "question 000":
            return Fault("status", 500)
        time.sleep(0.1)
        return Fault("status", 401)

    began = time.monotonic()
    with serving(faults) as server, pytest.raises(EndpointError, match="401"):
        ask(endpoint(server.url, concurrency=2, sleep=long), questions(2))
    assert time.monotonic() - began < 5


def test_a_journal_that_can_not_be_written_ends_the_run() -> None:
    arrived: list[int] = []

    def done(index: int, completion: Completion) -> None:
        arrived.append(index)
        if len(arrived) == 3:
            raise StoreError("no room")

    with serving() as server, pytest.raises(StoreError, match="no room"):
        endpoint(server.url, concurrency=2).complete(questions(100), done)
    assert len(arrived) == sum(server.delivered.values()) <= 4


# the journal


def journaled(path: Path, server: Server, requests: Sequence[Request], **changes: Any) -> dict[int, Completion]:
    with Journal(path) as journal:
        return ask(Journaled(endpoint(server.url, **changes), journal), requests)


def test_nothing_is_asked_twice_over_runs(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with serving() as server:
        check(journaled(path, server, questions(5)), questions(5))
        assert sum(server.tries.values()) == 5
        check(journaled(path, server, questions(5)), questions(5))
        assert sum(server.tries.values()) == 5
        check(journaled(path, server, questions(8)), questions(8))  # more questions
        assert sum(server.tries.values()) == 8
        check(journaled(path, server, questions(8, samples=3)), questions(8, samples=3))  # a larger D
        assert server.delivered == Counter({f"question {number:03}": 3 for number in range(8)})
        journaled(path, server, questions(8), temperature=0.0)  # something else
        assert sum(server.tries.values()) == 32


def test_a_journal_that_knows_everything_needs_no_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with serving() as server:
        journaled(path, server, questions(3))
    check(journaled(path, server, questions(3), attempts=1), questions(3))  # the server is gone


def test_what_arrived_before_an_error_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    broken = True
    with serving(lambda prompt, tried: Fault("status", 400) if broken and prompt == "question 020" else None) as server:
        with pytest.raises(EndpointError):
            journaled(path, server, questions(40), concurrency=3)
        broken = False
        check(journaled(path, server, questions(40), concurrency=3), questions(40))
    assert server.delivered == Counter(request.prompt for request in questions(40))


def test_no_secret_is_written_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    notes: list[str] = []
    fault = Fault("status", 500, error={"message": f"key {SECRET} failed"})
    with serving(first(fault), key=SECRET) as server, Journal(tmp_path / "journal.jsonl") as journal:
        check(ask(Journaled(endpoint(server.url, note=notes.append), journal), questions(3)), questions(3))
    written = {file.name: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert len(written["journal.jsonl"].splitlines()) == 3 and notes and "HTTP Request" in caplog.text
    for text in (*written.values(), *notes, caplog.text):
        assert SECRET not in text and "Bearer sk" not in text


# the budget


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("unit", ["tokens", "usd"])
def test_spending_stops_before_the_budget(tmp_path: Path, unit: str, concurrency: int) -> None:
    path = tmp_path / "journal.jsonl"
    each, worst = sum(usage_of("question 000")), tokens_at_most("question 000") + 20
    assert (each, worst) == (13, 34)
    limit = 10 * each + worst  # ten answers leave room for just one more
    budget = config.Budget(tokens=limit) if unit == "tokens" else config.Budget(usd=limit / 100)
    named: dict[str, Any] = {"budget": budget, "price": CENT, "concurrency": concurrency}
    with serving(delay=0.005) as server:
        with pytest.raises(BudgetError) as caught:
            journaled(path, server, questions(30), **named)
        assert sum(server.tries.values()) == sum(server.delivered.values()) == 11  # 10 * 13 + 34 fits, 11 * 13 + 34 not
        spent = 11 * each
        assert f"${spent / 100:.2f} and {spent} tokens spent, 19 requests of this step left" in str(caught.value)
        with Journal(path) as journal:
            assert len(journal) == 11
        with pytest.raises(BudgetError):  # the same again: what the journal holds is spent
            journaled(path, server, questions(30), **named)
        assert sum(server.tries.values()) == 11
        raised = str(caught.value).split(f"budget.{unit}=")[2].split()[0]
        named["budget"] = config.Budget(tokens=int(raised)) if unit == "tokens" else config.Budget(usd=float(raised))
        check(journaled(path, server, questions(30), **named), questions(30))
    assert server.delivered == Counter(request.prompt for request in questions(30))


def test_requests_in_flight_share_the_budget() -> None:
    """Eight at once, room for three: not one token over, at any moment."""
    budget = config.Budget(tokens=3 * 34)
    with serving(delay=0.1) as server:
        asked = endpoint(server.url, budget=budget)
        with pytest.raises(BudgetError):
            ask(asked, questions(40))
    assert server.most_in_flight <= 5  # 34 tokens each; those that came back count 13
    assert sum(server.tries.values()) == 6 and asked.ledger.tokens == 6 * 13


def test_dollars_without_a_price_are_refused_before_anything_is_sent() -> None:
    with serving() as server, pytest.raises(BudgetError, match="nothing was sent"):
        ask(endpoint(server.url, budget=config.Budget(usd=1.0)), questions(1))
    assert not server.tries


def test_tries_that_may_have_been_billed_count() -> None:
    """Cut answers were written and paid for: a budget of three requests is used up by three tries."""
    with serving(lambda prompt, tried: Fault("cut")) as server, pytest.raises(BudgetError):
        ask(endpoint(server.url, budget=config.Budget(tokens=3 * 34), concurrency=1), questions(1))
    assert sum(server.tries.values()) == 3
    with serving(first(*[Fault("status", 500)] * 5)) as server:  # these cost nothing
        check(ask(endpoint(server.url, budget=config.Budget(tokens=34), concurrency=1), questions(1)), questions(1))


# kills

CHILD = """
import asyncio, signal, sys
from pathlib import Path
from kdlab.config import Budget
from kdlab.rationales.completion import Request
from kdlab.rationales.endpoint import Endpoint
from kdlab.rationales.journal import Journal, Journaled

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
url, path, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
writer = Endpoint(
    base_url=url, model="teacher", api="completions", max_tokens=20, temperature=0.7, stop=["END"], concurrency=4,
    timeout=5.0, attempts=6, budget=Budget(), price=None, sleep=lambda seconds: asyncio.sleep(seconds / 100),
)
with Journal(path) as journal:
    Journaled(writer, journal).complete([Request(f"question {n:03}") for n in range(count)], lambda index, answer: None)
"""


class Child:
    """The rationale writer in a process of its own."""

    def __init__(self, server: Server, path: Path, count: int) -> None:
        environment = os.environ | {"OPENAI_API_KEY": SECRET}
        command = [sys.executable, "-c", CHILD, server.url, str(path), str(count)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def end(self) -> tuple[int, str]:
        _, shown = self.process.communicate(timeout=60)
        return self.process.returncode, shown


@pytest.mark.slow  # torn journals: test_journal
@pytest.mark.timeout(90)
def test_kills_at_any_moment_lose_nothing_that_was_written(tmp_path: Path) -> None:
    dice, count, path = random.Random(11), 160, tmp_path / "journal.jsonl"
    faults = {(f"question {number:03}", 0): Fault(dice.choice(["cut", "drop"])) for number in range(0, count, 9)}
    known: set[str] = set()
    allowed = 0  # answers that were on their way when their process was killed
    with serving(lambda prompt, tried: faults.get((prompt, tried)), delay=0.5) as server:  # 20 s in all
        keys = {key_of(**endpoint(server.url).content(request)): request.prompt for request in questions(count)}
        for sent in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
            before, tried = sum(server.tries.values()), server.tries.copy()
            child = Child(server, path, count)
            until = before + dice.randint(2, 16)
            while sum(server.tries.values()) < until and child.process.poll() is None:
                time.sleep(0.0005)
            time.sleep(dice.random() * 0.02)
            child.process.send_signal(sent)
            code, shown = child.end()
            assert code != 0 and SECRET not in shown
            allowed += 4
            assert not any(server.tries[prompt] > tried[prompt] for prompt in known), "an answer was asked for again"
            if sent == signal.SIGKILL:  # and as if it had been killed while it wrote
                with path.open("ab") as file:
                    file.write(b'{"key": "0a1b2c", "time": "2026-')
            with Journal(path) as journal:
                known = {prompt for key, prompt in keys.items() if key in journal}
        assert 0 < len(known) < count
        tried, server.delay = server.tries.copy(), 0.0
        child = Child(server, path, count)
        assert child.end() == (0, "")
        assert not any(server.tries[prompt] > tried[prompt] for prompt in known)
        with Journal(path) as journal:
            assert all(
                (found := journal.get(key)) is not None and found.text == answer_to(prompt)
                for key, prompt in keys.items()
            )
            assert len(journal) == count
    assert sum(server.delivered.values()) - count <= allowed
    assert SECRET not in path.read_text()
