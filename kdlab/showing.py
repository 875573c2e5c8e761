"""What a text from outside is like where it is shown or written down: nothing that a terminal obeys, no secret."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_SECRET_NAME = re.compile(r"KEY|TOKEN(?!IZER)|SECRET|PASSWORD", re.IGNORECASE)
_SHORTEST_SECRET = 6  # shorter ones would black out ordinary words
# C0 but tab and newline, C1, line separators, bidirectional controls, lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: Any) -> str:
    """The text with its control characters as escapes, so that a terminal shows and does not obey them."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def redact(value: Any) -> Any:
    """A copy of plain values in which the environment's secrets read "***"; nothing is dropped.

    Secrets are the values, of at least 6 characters, of variables that are called something with KEY, TOKEN,
    SECRET or PASSWORD.
    """
    secrets = {
        secret for name, secret in os.environ.items() if _SECRET_NAME.search(name) and len(secret) >= _SHORTEST_SECRET
    }
    return _redact(value, sorted(secrets, key=len, reverse=True))


def _redact(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        return value
    if isinstance(value, Mapping):
        return {_redact(key, secrets): _redact(inner, secrets) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(inner, secrets) for inner in value]
    return value
