"""What is asked of a rationale writer, and what it answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from kdlab.rationales.prices import Ledger

OPENAI_HOST = "api.openai.com"
_OPENAI_URL = f"https://{OPENAI_HOST}/v1"
COMPLETES = ("davinci-002", "babbage-002", "gpt-3.5-turbo-instruct", "gpt-3.5-turbo-instruct-0914")  # of OpenAI

Section = Literal["rationales", "model"]  # of the configuration: who is asked, the teacher or the student


@dataclass(frozen=True)
class Request:
    """One completion that is wanted.

    sample: 0 to D - 1. The same prompt with another number is another request: it is asked, and paid, for itself.
    """

    prompt: str
    sample: int = 0


@dataclass(frozen=True)
class Completion:
    """An answer, as it came. Tokens are those that were billed; None: the endpoint didn't say."""

    text: str
    finish_reason: str  # "stop" or "length"; a word of the endpoint's own for anything else ("content_filter")
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None  # as the endpoint names what answered: "gpt-4o-mini-2024-07-18"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a `complete` is, with what the run has cost until now."""

    done: int
    total: int
    tokens: int  # prompts and completions
    usd: float | None  # None: no price is known


Done = Callable[[int, Completion], None]  # called once for each request, as its answer arrives, with its index
Report = Callable[[Progress], None]


class Completer(Protocol):
    """Who answers requests: an endpoint, a local model, or either of them behind a journal."""

    ledger: Ledger

    def content(self, request: Request) -> dict[str, Any]:
        """All that the answer depends on, as the arguments of `journal.key_of`."""
        ...

    def complete(self, requests: Sequence[Request], done: Done, progress: Report | None = None) -> None: ...


def resolve_url(base_url: str | None) -> str:
    """The address that is asked: the argument, else OPENAI_BASE_URL, else OpenAI's own."""
    return (base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_URL).rstrip("/")


def endpoint_name(base_url: str | None) -> str:
    """The address without user name, password and query, which may be secrets: what journals and messages show."""
    parts = urlsplit(resolve_url(base_url))
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def resolve_api(api: str, model: str, base_url: str | None) -> str:
    """How a model is asked, "completions" or "chat". At OpenAI's own address all chat but the few of `COMPLETES`.

    api: "auto", or one of the two. model: a fine-tuned one is asked as its base is ("ft:babbage-002:owner::id").
    """
    if api != "auto":
        return api
    host = urlsplit(resolve_url(base_url)).hostname or ""
    base = model.split(":")[1] if model.startswith("ft:") else model
    own = host == OPENAI_HOST or host.endswith(f".{OPENAI_HOST}")
    return "chat" if own and base not in COMPLETES else "completions"


def address(name: str) -> str | None:
    """The base_url behind an endpoint's name: None for the environment's, which may hold what no name should."""
    return None if endpoint_name(None) == name else name
