"""What all calls to an OpenAI-compatible endpoint share: its key, the SDK's client, pauses, and what went wrong.

`section` is the one of the configuration that messages speak of: "rationales", or "model" for a student.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdlab.errors import EndpointError
from kdlab.rationales.completion import OPENAI_HOST, Section, endpoint_name, resolve_url

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI, OpenAI, Timeout
    from tenacity import RetryCallState

LONGEST_PAUSE = 60.0  # seconds between two tries, if the endpoint doesn't ask for more
LONGEST_REQUEST = 600.0  # seconds that an endpoint may ask to wait
LONGEST_SAYING = 500  # characters of an endpoint's words
NO_KEY = "none"  # what is sent to an endpoint other than OpenAI's if OPENAI_API_KEY is not set
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
RETRIED = (408, 409, 429)  # and 5xx
WORDS = ("message", "detail", "msg", "error")  # keys under which an endpoint says what it refuses


class Passing(Exception):
    """A try failed in a way that may pass. after: seconds that the endpoint asks to wait; billed: perhaps paid for."""

    def __init__(self, why: str, *, after: float | None = None, billed: bool = False) -> None:
        self.why, self.after, self.billed = why, after, billed
        super().__init__(why)


def find_key(base_url: str | None, *, section: Section) -> str:
    """OPENAI_API_KEY, or NO_KEY; EndpointError if the address or the key can't be right."""
    url, name = resolve_url(base_url), endpoint_name(base_url)
    setting = f"{section}.base_url"
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    parts = urlsplit(url)
    host = parts.hostname or ""
    if "@" in parts.netloc or parts.query:
        raise EndpointError(
            "The address holds a user name, a password or a query, which logs would show: nothing was sent.",
            where=f"{setting} or OPENAI_BASE_URL",
            fix=f"Give the address alone ({name}) and put the key into OPENAI_API_KEY.",
        )
    if not host or parts.scheme not in ("http", "https"):
        raise EndpointError(
            f"{name!r} is no address of an endpoint.",
            where=f"{setting} or OPENAI_BASE_URL",
            fix="Give the whole address: http://127.0.0.1:8000/v1",
        )
    if not key and (host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")):
        raise EndpointError(
            "OpenAI needs a key, and OPENAI_API_KEY is not set: nothing was sent.",
            where=name,
            fix=f"export OPENAI_API_KEY=..., or name another endpoint in {setting}.",
        )
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(
            "OPENAI_API_KEY holds characters that no key has: nothing was sent.", where=name, fix="Copy the key again."
        )
    return key or NO_KEY


# the client --------------------------------------------------------------------------------------------------------


def open_client(url: str, *, key: str, timeout: float) -> OpenAI:
    """timeout: seconds. The SDK's own tries are off: what is tried again is counted here."""
    from openai import DefaultHttpxClient, OpenAI

    seconds = _timeout(timeout)
    http = DefaultHttpxClient(timeout=seconds, mounts=_direct(url))
    return OpenAI(api_key=key, base_url=url, max_retries=0, timeout=seconds, http_client=http)


def open_async_client(url: str, *, key: str, timeout: float) -> AsyncOpenAI:
    """As `open_client`, for many requests at once."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    seconds = _timeout(timeout)
    http = DefaultAsyncHttpxClient(timeout=seconds, mounts=_direct(url))
    return AsyncOpenAI(api_key=key, base_url=url, max_retries=0, timeout=seconds, http_client=http)


def _timeout(seconds: float) -> Timeout:
    from openai import Timeout

    return Timeout(seconds, connect=min(seconds, 30.0))


def _direct(url: str) -> dict[str, None]:
    """What goes past the environment's proxy, which is not meant for this machine."""
    host = urlsplit(url).hostname or ""
    if not _is_loopback(host):
        return {}
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None}


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# what went wrong ---------------------------------------------------------------------------------------------------


def unanswered(error: Exception, *, key: str, timeout: float) -> Passing:
    """What a timeout or a broken connection means."""
    from openai import APIConnectionError, APITimeoutError

    cause = type(error.__cause__).__name__
    if isinstance(error, APITimeoutError) or not isinstance(error, APIConnectionError):
        return Passing(f"no answer within {timeout:g} s", billed=cause not in ("ConnectTimeout", "PoolTimeout"))
    refused = cause == "ConnectError"
    what = "it can't be reached" if refused else "the connection broke"
    return Passing(f"{what} ({redacted(str(error.__cause__ or error), key)})", billed=not refused)


def malformed(text: str, *, key: str) -> Passing:
    """What an answer means that can't be read; it may have been paid for."""
    return Passing(f"an answer that is cut off or malformed ({redacted(text[:200], key)})", billed=True)


def refusal(
    error: APIStatusError, *, key: str, name: str, meaning: Callable[[int], tuple[str, str]]
) -> Passing | EndpointError:
    """What a status other than 200 means.

    name: of the endpoint. meaning: what happened, and the fix, of a status that is not the same for all calls.
    """
    status = error.status_code
    no_credit = error.code in NO_CREDIT or error.type in NO_CREDIT
    message = redacted(said(error.body) or error.message, key)
    if not no_credit and (status in RETRIED or status >= 500):
        after = retry_after(error.response.headers)
        if after is None or after <= LONGEST_REQUEST:
            return Passing(f"status {status} ({message})", after=after)
        what = f"The endpoint asks to wait {after:.0f} s before the next request"
        fix = "Run the same command again then: it goes on with what is not done yet."
    elif no_credit:
        what, fix = "The account has no credit left", "Add credit, then run the same command again."
    elif status == 401:
        what, fix = "The endpoint does not accept the key", "Set OPENAI_API_KEY to a key that is valid for it."
    else:
        what, fix = meaning(status)
    return EndpointError(f"{what} (status {status}: {message})", where=name, fix=fix)


def said(body: object) -> str:
    """The words in the body of a refusal, "" if there are none.

    OpenAI has {"message"}, FastAPI {"detail": words} or {"detail": [{"loc": [...], "msg": words}, ...]}.
    """
    if isinstance(body, str):
        return body
    if isinstance(body, Mapping):
        found = next((words for name in WORDS if (words := said(body.get(name)))), "")
        place = body.get("loc")
        return f"{'.'.join(map(str, place))}: {found}" if found and isinstance(place, list) else found
    if isinstance(body, list):
        return "; ".join(words for part in body if (words := said(part)))
    return ""


def redacted(text: str, key: str) -> str:
    """The endpoint's words without the key, which some of them repeat; on one line and not too long."""
    if key != NO_KEY:
        text = text.replace(key, "[key]")
    text = re.sub(r"(?i)\bbearer\s+\S+", "Bearer [key]", text)
    text = re.sub(r"\bsk-[\w*.-]+", "[key]", text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SAYING else f"{text[:LONGEST_SAYING]}..."


# pauses ------------------------------------------------------------------------------------------------------------


def pause(state: RetryCallState) -> float:
    """Seconds before the next try: what the endpoint asks for, else growing; at random, so that not all come back at
    once."""
    from tenacity import wait_random_exponential

    failure = failure_of(state)
    if failure.after is not None:
        return failure.after + random.random()
    return 0.5 + float(wait_random_exponential(multiplier=1, max=LONGEST_PAUSE)(state))


def failure_of(state: RetryCallState) -> Passing:
    """What the last try failed of."""
    assert state.outcome is not None
    failure = state.outcome.exception()
    assert isinstance(failure, Passing)
    return failure


def retry_after(headers: Any) -> float | None:
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
