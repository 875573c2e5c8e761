"""Ask an endpoint or a model on this machine, with a journal of what it answered, and say how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kdlab.context import Context
from kdlab.data.prompts import Style, prompt
from kdlab.engine.progress import duration
from kdlab.rationales.completion import Completer, Completion, Progress, Request, Section, address
from kdlab.rationales.endpoint import Endpoint
from kdlab.rationales.journal import Journal, Journaled, journal_path
from kdlab.rationales.local import LocalCompleter
from kdlab.rationales.prices import dollars, price
from kdlab.stages.completions import Records, Row, record

SHOWN_EVERY = 10.0  # seconds between two lines of progress
LOCAL = "local"  # what stands for the endpoint of a model on this machine


class Asker:
    """Answers to lists of requests, in their order; nothing is asked that the journal holds."""

    def __init__(self, ctx: Context, completer: Completer, journal: Journal) -> None:
        self.ctx = ctx
        self.requests = 0  # answered, by the journal or anew
        self.journaled = Journaled(completer, journal)

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        found: dict[int, Completion] = {}
        self.journaled.complete(requests, found.__setitem__, self._progress())
        self.requests += len(found)
        return [found[index] for index in range(len(requests))]

    def known(self, requests: Sequence[Request]) -> list[Completion | None]:
        """What the journal holds already; it counts as spent."""
        return self.journaled.known(requests)

    def facts(self) -> dict[str, Any]:
        ledger = self.journaled.ledger
        return {
            "requests": self.requests,
            "prompt_tokens": ledger.prompt_tokens,
            "completion_tokens": ledger.completion_tokens,
            "usd": ledger.usd,
        }

    def _progress(self) -> Callable[[Progress], None]:
        started = shown = time.monotonic()

        def show(now: Progress) -> None:
            nonlocal shown
            passed = time.monotonic()
            if passed - shown < SHOWN_EVERY:
                return
            shown = passed
            cost = "" if now.usd is None else f", {dollars(now.usd)} so far"
            self.ctx.note(
                f"      {self.ctx.stage} {now.done}/{now.total}: {now.tokens:,} tokens{cost}, "
                f"{duration(passed - started)}"
            )

        return show


def two_steps(
    pairs: Sequence[tuple[Row, int]],
    style: Style,
    ask: Callable[[Sequence[Request]], list[Completion]],
    known: Callable[[Sequence[Request]], list[Completion | None]],
) -> Records:
    """Zero-shot-CoT: all rationales, then with them all answers. pairs: a question and the number of the sample.

    known: what the journal holds; asked first, so that the budget sees what the second step has cost already.
    """

    def last_prompt(row: Row, text: str, thought: str) -> str:
        return prompt(row["question"], style, step=2, reasoning_prompt=text, rationale=thought)

    first = [prompt(row["question"], style, step=1) for row, _ in pairs]
    requests = [Request(text, index) for text, (_, index) in zip(first, pairs, strict=True)]
    before = zip(pairs, first, known(requests), strict=True)
    known([Request(last_prompt(row, text, one.text), index) for (row, index), text, one in before if one])
    thoughts = ask(requests)
    second = [last_prompt(row, text, one.text) for (row, _), text, one in zip(pairs, first, thoughts, strict=True)]
    answers = ask([Request(text, index) for text, (_, index) in zip(second, pairs, strict=True)])
    records: Records = {row["id"]: [] for row, _ in pairs}
    for (row, index), text, thought, last, answer in zip(pairs, first, thoughts, second, answers, strict=True):
        records[row["id"]].append(
            record(
                row,
                index,
                prompt=last,
                completion=answer.text,
                finish_reason=answer.finish_reason,
                reasoning_prompt=text,
                reasoning=thought.text,
                reasoning_finish_reason=thought.finish_reason,
            )
        )
    return records


@contextmanager
def asking(
    ctx: Context,
    writer: Mapping[str, Any],
    *,
    max_tokens: int,
    temperature: float,
    stop: Sequence[str],
    seed: int = 0,
    section: Section = "rationales",
) -> Iterator[Asker]:
    """writer: endpoint, model and api; or the id and revision, or path and content, of a model on this machine.

    section: of the configuration, which says what an endpoint costs.
    """
    completer: Completer
    if "endpoint" in writer:
        completer = _endpoint(ctx, writer, section, max_tokens=max_tokens, temperature=temperature, stop=stop)
        place, name = completer.name, completer.model
    else:
        name = f"{writer.get('id') or 'folder'}@{writer.get('revision') or writer['content']}"
        completer = _local(ctx, writer, name, max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed)
        place = LOCAL

    def waiting() -> None:
        ctx.note(f"wait  {ctx.stage}: another process asks {name}")

    with Journal(journal_path(ctx.journals, place, name), waiting=waiting) as journal:
        yield Asker(ctx, completer, journal)


def _endpoint(
    ctx: Context,
    writer: Mapping[str, Any],
    section: Section,
    *,
    max_tokens: int,
    temperature: float,
    stop: Sequence[str],
) -> Endpoint:
    base_url = address(writer["endpoint"])
    own = ctx.requests.student_price if section == "model" else ctx.requests.price
    return Endpoint(
        base_url=base_url,
        model=writer["model"],
        api=writer["api"],
        max_tokens=max_tokens,
        temperature=temperature,
        stop=stop,
        concurrency=ctx.requests.concurrency,
        timeout=ctx.requests.timeout,
        attempts=ctx.requests.attempts,
        budget=ctx.requests.budget,
        price=price(writer["model"], base_url=base_url, override=own, section=section),
        section=section,
        note=ctx.note,
    )


def _local(
    ctx: Context,
    writer: Mapping[str, Any],
    name: str,
    *,
    max_tokens: int,
    temperature: float,
    stop: Sequence[str],
    seed: int,
) -> LocalCompleter:
    from kdlab.engine import device  # late: they load torch, which an endpoint's answers don't need
    from kdlab.models.generator import load_generator
    from kdlab.models.writing import stream
    from kdlab.stages.generation import KERNEL
    from kdlab.stages.targets import writing_tokenizer

    place = device.pick_device(ctx.hardware)
    model = load_generator(writer, attention=KERNEL, seed=seed)
    model.to(place)  # type: ignore[arg-type]
    tokenizer = writing_tokenizer(writer)

    def write(prompts: list[str], **settings: Any) -> Iterator[Mapping[int, Any]]:
        return stream(model, tokenizer, prompts, **{**settings, "seed": [one ^ seed for one in settings["seed"]]})

    return LocalCompleter(
        write,
        model=name if not temperature else f"{name}#{seed}",
        max_tokens=max_tokens,
        temperature=temperature,
        stop=stop,
        batch_size=ctx.hardware.eval_batch,
    )
