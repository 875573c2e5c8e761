"""Signals that ask a process to stop: SIGINT (Ctrl-C), SIGTERM (Slurm's preemption, `kill`).

The first one raises `Interrupted` wherever the main thread is: whatever kdlab writes may be broken off anywhere. Inside
`deferred()` it is remembered only, and who works there comes to a good place first: the training loop writes a
checkpoint at the end of its step, a process with workers waits until they have done so. A second SIGINT ends the
process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GAP_SECONDS = 1.0  # a SIGINT so soon after the first is the same one: torchrun sends its own to who got the terminal's

Tell = Callable[[], None]
Handler = Callable[[int, FrameType | None], Any]


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop, and nothing is lost."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _State:
    """Of this process: what it was sent, and whether that waits for a good place."""

    def __init__(self, *, speaks: bool) -> None:
        self.speaks = speaks
        self.signum = 0
        self.at = 0.0
        self.deferrals: list[Tell] = []


_STATE = _State(speaks=False)


def asked() -> int:
    """The signal that asked this process to stop, 0 if none did."""
    return _STATE.signum


def check() -> None:
    """Raise Interrupted if this process was asked to stop."""
    if _STATE.signum:
        raise Interrupted(_STATE.signum)


def code(stop: KeyboardInterrupt) -> int:
    """The exit code of a process that was asked to stop: 128 + the signal's number; the same command goes on."""
    return 128 + getattr(stop, "signum", signal.SIGINT)


@contextmanager
def watched(*, speaks: bool = True) -> Iterator[None]:
    """React to signals as this module says, in the main thread. speaks: says on standard error what is waited for."""
    global _STATE
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _STATE = _STATE, _State(speaks=speaks)
    handlers = _install(SIGNALS)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _STATE = before


def remember(*more: int) -> dict[int, Any]:
    """For the rest of this process's life signals are only remembered: another program's loop calls into kdlab.

    more: signals besides `SIGNALS`. Returns the handlers that were there before.
    """
    global _STATE
    _STATE = _State(speaks=False)
    _STATE.deferrals.append(lambda: None)
    return _install((*SIGNALS, *more))


@contextmanager
def deferred(tell: Tell = lambda: None) -> Iterator[None]:
    """In here a signal is remembered only, for `asked()`, and `tell` is called; raises Interrupted before and after."""
    check()
    held = _STATE.deferrals
    _STATE.deferrals = [*held, tell]
    try:
        yield
    finally:
        _STATE.deferrals = held
    check()


@contextmanager
def immediate() -> Iterator[None]:
    """Inside `deferred`: what may be broken off anywhere, since it is done again."""
    held, _STATE.deferrals = _STATE.deferrals, []
    try:
        check()
        yield
    finally:
        _STATE.deferrals = held


def _install(numbers: tuple[int, ...]) -> dict[int, Any]:
    """A signal that is ignored stays so: nohup, a shell's background job."""
    former = {number: signal.getsignal(number) for number in numbers}
    return {
        number: signal.signal(number, _handle)
        for number, handler in former.items()
        if handler is not signal.SIG_IGN and handler is not None
    }


def _handle(signum: int, frame: FrameType | None) -> None:
    state = _STATE
    if state.signum:
        if signum == signal.SIGINT and time.monotonic() - state.at > GAP_SECONDS:
            _end(signum)
        return
    state.signum, state.at = signum, time.monotonic()
    first = os.environ.get("RANK", "0") == "0"  # of processes that train together: it decides and speaks for all
    if state.deferrals:
        if state.speaks and first:
            _say("stopping at the next checkpoint; Ctrl-C again ends at once, what was checkpointed before stays")
        state.deferrals[-1]()
    elif first:
        raise Interrupted(signum)


def _end(signum: int) -> None:
    """As if nobody had reacted to the signal."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _say(text: str) -> None:
    with suppress(OSError):  # a handler must not write to a stream that it may have broken in on
        os.write(2, f"\n{text}\n".encode())
