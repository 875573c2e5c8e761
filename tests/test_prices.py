"""What answers cost, by hand-computed numbers, and a ledger that stops before the budget is exceeded."""

from __future__ import annotations

import re
from datetime import date

import pytest

from kdlab import config
from kdlab.errors import BudgetError, ConfigError
from kdlab.rationales.completion import Completion, Request, endpoint_name, resolve_api, resolve_url
from kdlab.rationales.prices import (
    Estimate,
    Ledger,
    Price,
    cost,
    dollars,
    estimate,
    excess,
    price,
    shown,
    table,
    tokens_at_most,
)

MINI = Price(input=0.15, output=0.6, source="here")
NONE = config.Price()


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# the table


def test_every_price_says_where_and_when_it_was_read() -> None:
    assert len(table()) >= 15
    for name, one in table().items():
        assert 0 < one.input <= one.output, name
        assert re.match(r"https://\S+$", one.source), name
        assert one.date is not None and date.fromisoformat(one.date) >= date(2026, 11, 25), name


def test_the_table_holds_for_openai_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known = price("gpt-4o-mini", base_url=None, override=NONE)
    assert known is not None and (known.input, known.output) == (0.15, 0.6)
    assert price("gpt-4o-mini", base_url="https://api.openai.com/v1/", override=NONE) == known
    assert price("gpt-4o-mini-2031-01-01", base_url=None, override=NONE) is None
    for url in ("http://127.0.0.1:8000/v1", "https://api.openai.com.evil.example/v1"):
        assert price("gpt-4o-mini", base_url=url, override=NONE) is None
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    assert price("gpt-4o-mini", base_url=None, override=NONE) is None


def test_a_user_knows_better() -> None:
    own = price("mine", base_url="http://127.0.0.1:1/v1", override=config.Price(input=0.0, output=0.02))
    assert own is not None and (own.input, own.output, own.date) == (0.0, 0.02, None)
    half = price("gpt-4o-mini", base_url=None, override=config.Price(output=0.5))
    assert half is not None and (half.input, half.output) == (0.15, 0.5)
    with pytest.raises(ConfigError, match=r"rationales\.price\.output: the other one is given"):
        price("mine", base_url=None, override=config.Price(input=1.0))
    with pytest.raises(ConfigError, match=r"rationales\.price\.input: -1.* is below 0"):
        price("mine", base_url=None, override=config.Price(input=-1.0, output=1.0))
    with pytest.raises(ConfigError, match=r"- model\.price\.output: the other one is given"):
        price("mine", base_url=None, override=config.Price(input=1.0), section="model")


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_url(None) == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://env/v1/")
    assert resolve_url(None) == "http://env/v1" and resolve_url("http://given/v1/") == "http://given/v1"
    assert endpoint_name("https://me:secret@Host:81/v1/?api-key=secret") == "https://host:81/v1/"
    assert endpoint_name("http://[::1]:8000/v1") == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    ("model", "api"),
    [
        ("gpt-4o-mini", "chat"),
        ("gpt-3.5-turbo", "chat"),
        ("ft:gpt-4o-mini-2024-07-18:me::1", "chat"),
        ("davinci-002", "completions"),
        ("babbage-002", "completions"),
        ("gpt-3.5-turbo-instruct", "completions"),
        ("ft:babbage-002:me::1", "completions"),
        ("ft:davinci-002", "completions"),
    ],
)
def test_models_that_only_chat(model: str, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (None, "https://API.openai.com/v1/", "https://eu.api.openai.com/v1"):
        assert resolve_api("auto", model, url) == api
    for url in ("http://127.0.0.1:8000/v1", "https://api.openai.com.evil.example/v1", "https://notapi.openai.com/v1"):
        assert resolve_api("auto", model, url) == "completions"
    for given in ("completions", "chat"):
        assert resolve_api(given, model, None) == given
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    assert resolve_api("auto", model, None) == "completions"


# costs and estimates


def test_cost_by_hand() -> None:
    assert cost(1_000_000, 0, MINI) == 0.15 and cost(0, 1_000_000, MINI) == 0.6
    assert cost(100, 50, MINI) == 0.000045  # 0.000015 + 0.00003
    assert cost(3, 0, Price(input=100_000.0, output=0.0, source="here")) == 0.3  # 0.1 three times is more as a float


def test_estimate_by_hand() -> None:
    # two steps, three samples: 10 questions of 400 characters in all are 100 tokens, and 12 each for the template
    found = estimate(10, 400, 3, 128, 2, MINI)
    first, second = 100 + 10 * 12, 100 + 10 * 12 + 10 * 128
    assert found.requests == 60
    assert found.prompt_tokens == 3 * (first + second)
    assert found.completion_tokens_at_most == 60 * 128
    assert found.usd_at_most == cost(3 * (first + second), 60 * 128, MINI)
    assert estimate(10, 400, 1, 128, 1, None).prompt_tokens == first
    assert estimate(10, 400, 1, 128, 1, None).usd_at_most is None
    assert estimate(1, 401, 1, 1, 1, None).prompt_tokens == 101 + 12  # rounded up


def test_estimate_in_one_line() -> None:
    line = shown(estimate(420, 80_000, 8, 128, 2, table()["gpt-4o-mini"]))
    assert line == (
        "6,720 requests, ~830,720 tokens in, at most 860,160 out, "
        "at most $0.64 ($0.15 in, $0.6 out, prices of 2026-11-25)"
    )
    free = Estimate(requests=1, prompt_tokens=2, completion_tokens_at_most=3, usd_at_most=None)
    assert shown(free).startswith("1 requests, ~2 tokens in, at most 3 out, price unknown (rationales.price")
    assert "price unknown (model.price.input and .output" in shown(free, "model")
    assert "rationales.price)" in shown(estimate(1, 4, 1, 1, 1, MINI_OWN))


def test_an_estimate_above_the_budget_says_so() -> None:
    assert excess(config.Budget(), 10**9, 10**9) == ""
    assert excess(config.Budget(usd=0.5, tokens=10), 10, 0.5) == ""
    assert excess(config.Budget(usd=0.01), 10, 0.0101) == "; more than budget.usd=0.01, it will stop there"
    assert excess(config.Budget(tokens=10), 11, None) == "; more than budget.tokens=10, it will stop there"
    assert excess(config.Budget(usd=1, tokens=10), 11, 2.0).startswith(
        "; more than budget.usd=1 and budget.tokens=10, "
    )


MINI_OWN = Price(input=1.0, output=1.0, source="rationales.price")


@pytest.mark.parametrize(
    ("usd", "text"),
    [(0.0, "$0.00"), (1234.567, "$1,234.57"), (0.12, "$0.12"), (0.0123, "$0.012"), (0.000361, "$0.00036")],
)
def test_fractions_of_a_cent_are_shown(usd: float, text: str) -> None:
    assert dollars(usd) == text


@pytest.mark.parametrize(
    "text", ["Q: How many?\nA: Let's think step by step.", "Wie viele Äpfel?", "有多少个苹果？", ""]
)
def test_the_safe_guess_is_above_what_tokenizers_count(text: str) -> None:
    assert tokens_at_most(text) >= max(len(text.encode()) / 2, 8)


# the ledger


def answer(tokens: int | None) -> Completion:
    return Completion("abcd", "stop", tokens, tokens)


def test_dollars_need_a_price() -> None:
    with pytest.raises(BudgetError, match="nothing was sent") as caught:
        Ledger(config.Budget(usd=1.0), None)
    assert "rationales.price.input" in str(caught.value)
    with pytest.raises(BudgetError, match=r"\n  fix:   Set model\.price\.input and model\.price\.output \("):
        Ledger(config.Budget(usd=1.0), None, section="model")
    Ledger(config.Budget(usd=1.0), MINI)
    assert Ledger(config.Budget(tokens=1), None).usd is None


def test_answers_count_each_time_they_are_paid_with_what_was_billed() -> None:
    ledger = Ledger(config.Budget(), MINI)
    ledger.spend("a", Request("x"), answer(100))
    ledger.recall("a", Request("x"), answer(100))
    assert (ledger.tokens, ledger.usd) == (200, cost(100, 100, MINI))
    ledger.recall("b", Request("x"), answer(100))
    ledger.recall("b", Request("x"), answer(100))
    ledger.spend("b", Request("x"), answer(100))  # asked again, paid again
    assert ledger.tokens == 600
    ledger.spend("c", Request("x"), answer(None))  # nothing was said: a safe guess
    assert ledger.tokens == 600 + tokens_at_most("x") + tokens_at_most("abcd")


def test_what_is_in_flight_counts_at_its_worst() -> None:
    request = Request("x" * 84)  # at most 50 tokens
    assert tokens_at_most(request.prompt) == 50
    ledger = Ledger(config.Budget(tokens=320), None)
    assert [ledger.hold(request, 100) for _ in range(3)] == [True, True, False]
    ledger.release(request, 100)
    ledger.spend("a", request, Completion("x", "stop", 20, 10))
    assert not ledger.hold(request, 141)  # 30 spent, 150 held
    assert ledger.hold(request, 90)  # exactly 320


def test_dollars_are_met_to_the_cent() -> None:
    even = Price(input=100_000.0, output=0.0, source="here")  # 0.1 a token
    ledger = Ledger(config.Budget(usd=1.1), even)
    for key in "abc":
        ledger.spend(key, Request(""), Completion("", "stop", 1, 0))
    assert ledger.usd == 0.3
    assert ledger.hold(Request(""), 0)  # 8 tokens at most: 1.1 in all
    assert not ledger.hold(Request(""), 0)


def test_a_lost_try_is_spent() -> None:
    ledger = Ledger(config.Budget(tokens=115), None)
    assert ledger.hold(Request(""), 100)
    ledger.release(Request(""), 100)
    ledger.lose(Request(""), 100)
    assert ledger.tokens == 108 and not ledger.hold(Request(""), 0)


def test_the_error_says_what_was_spent_and_what_to_raise() -> None:
    price = Price(input=1_000.0, output=2_000.0, source="here")  # 0.1 and 0.2 cents a token
    ledger = Ledger(config.Budget(usd=0.5, tokens=1_000_000), price)
    ledger.spend("a", Request(""), Completion("", "stop", 100, 150))  # $0.40
    error = ledger.exceeded([Request(""), Request("")], 100)  # 2 * (8 tokens in, 100 out): $0.416
    assert "exceed the budget of this stage: $0.40 and 250 tokens spent, 2 requests of this step left to do" in str(
        error
    )
    assert "budget.usd=0.5 budget.tokens=1000000" in str(error)
    assert "budget.usd=0.816 is enough for this step" in str(error)
    tokens = Ledger(config.Budget(tokens=50), None).exceeded([Request("")], 100)
    assert "0 tokens spent, 1 request of this step left to do" in str(tokens)
    assert "budget.tokens=108 is enough" in str(tokens)
