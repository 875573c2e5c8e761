"""The next step's batches, made ready while a GPU works on this one's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

Steps = Iterable[list[dict[str, Any]]]  # an epoch's optimiser steps as lists of micro-batches
DEPTH = 2  # steps made ready in advance


def feed(steps: Steps, place: torch.device) -> Iterator[list[dict[str, Any]]]:
    """`steps` in their order. For a GPU a thread makes them ready in pinned memory, from which copies are asynchronous;
    a processor has no time to spare for it. (On a GPU untested: there was none.)"""
    return ahead(steps, pin=True) if place.type == "cuda" else iter(steps)


def ahead(steps: Steps, *, pin: bool) -> Iterator[list[dict[str, Any]]]:
    """`steps` in their order, each made by a thread while those before it are used. Its errors are raised here."""
    ready: queue.Queue[Any] = queue.Queue(DEPTH)
    done, stop = object(), threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for step in steps:
                if not put([_pinned(micro) for micro in step] if pin else step):
                    return
            put(done)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=make, name="feed", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}
