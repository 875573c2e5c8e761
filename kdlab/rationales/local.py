"""Completions of a model on this machine, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kdlab import config
from kdlab.rationales.completion import Completion, Done, Progress, Report, Request
from kdlab.rationales.journal import key_of
from kdlab.rationales.prices import Ledger


class LocalCompleter:
    """Answers requests with a function that generates text.

    generate: called with a list of prompts and `max_tokens`, `temperature`, `stop`, `batch_size` and `seed`; returns
    for each an object with `text`, `tokens` (their number) and `finish_reason`.
    model: names it, revision included. length: of a prompt, by which batches are sorted.
    """

    def __init__(
        self,
        generate: Callable[..., list[Any]],
        *,
        model: str,
        max_tokens: int,
        temperature: float,
        stop: Sequence[str],
        batch_size: int,
        length: Callable[[str], int] = len,
    ) -> None:
        self._generate, self._length = generate, length
        self.model, self.max_tokens, self.temperature, self.stop = model, max_tokens, temperature, list(stop)
        self.batch_size = batch_size
        self.ledger = Ledger(config.Budget(), None)

    def content(self, request: Request) -> dict[str, Any]:
        """All that the answer depends on, as the arguments of `journal.key_of`."""
        return {
            "endpoint": "local",
            "model": self.model,
            "api": "generate",
            "prompt": request.prompt,
            "sample": request.sample,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
        }

    def complete(self, requests: Sequence[Request], done: Done, progress: Report | None = None) -> None:
        """Answer all requests, the longest prompts first; `done` gets each completion when its batch is through.

        Each request has a seed of its own, made from its content and sample number: whatever shares its batch, it is
        answered alike.
        """
        order = sorted(range(len(requests)), key=lambda index: -self._length(requests[index].prompt))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            keys = [key_of(**self.content(requests[index])) for index in batch]
            generated = self._generate(
                [requests[index].prompt for index in batch],
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                stop=self.stop,
                batch_size=len(batch),
                seed=[int(key[:7], 16) for key in keys],
            )
            for index, key, one in zip(batch, keys, generated, strict=True):
                completion = Completion(
                    text=one.text, finish_reason=one.finish_reason, completion_tokens=one.tokens, model=self.model
                )
                self.ledger.spend(key, requests[index], completion)
                done(index, completion)
            if progress is not None:
                answered = start + len(batch)
                progress(Progress(done=answered, total=len(order), tokens=self.ledger.tokens, usd=None))
