"""Completions of a model on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdlab import config
from kdlab.rationales.completion import Completion, Done, Progress, Report, Request
from kdlab.rationales.journal import key_of
from kdlab.rationales.prices import Ledger


class LocalCompleter:
    """Answers requests with a function that generates text.

    stream: called once for all requests, with a list of prompts and `max_tokens`, `temperature`, `stop`, `batch_size`
    and `seed`, one for each; gives by the prompt's number, as soon as they are done, objects with `text`, `tokens`
    (their number) and `finish_reason`.
    model: names it, revision included.
    """

    def __init__(
        self,
        stream: Callable[..., Iterator[Mapping[int, Any]]],
        *,
        model: str,
        max_tokens: int,
        temperature: float,
        stop: Sequence[str],
        batch_size: int,
    ) -> None:
        self._stream = stream
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
        """Answer all requests; `done` gets each completion as soon as it is written.

        Each request has a seed of its own, made from its content and sample number: whatever shares its batch, it is
        answered alike.
        """
        if not requests:
            return
        keys = [key_of(**self.content(request)) for request in requests]
        written = self._stream(
            [request.prompt for request in requests],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            stop=self.stop,
            batch_size=self.batch_size,
            seed=[int(key[:7], 16) for key in keys],
        )
        answered = 0
        for some in written:
            for index, one in some.items():
                completion = Completion(
                    text=one.text, finish_reason=one.finish_reason, completion_tokens=one.tokens, model=self.model
                )
                self.ledger.spend(keys[index], requests[index], completion)
                done(index, completion)
            answered += len(some)
            if progress is not None:
                progress(Progress(done=answered, total=len(requests), tokens=self.ledger.tokens, usd=None))
        assert answered == len(requests)
