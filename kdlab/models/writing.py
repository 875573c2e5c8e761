"""Let a model write. Rows that are done leave at once, and waiting prompts take their places.

transformers' own continuous batching (`generate_batch`) packs all rows into one and masks each from the others; without
a kernel for that, as on a processor, every token then costs the attention of all rows. Here rows are those of a batch.

Letters: B rows, L tokens of a prompt, T tokens that are held of the longest row, H heads, D width of one, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from inspect import signature
from itertools import groupby, islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput

from kdlab.errors import ModelError
from kdlab.models.architectures import longest_input
from kdlab.models.generator import ends, prompt_ids
from kdlab.models.packing import Packed

SLACK = 128  # tokens that a memory has room for when it is made anew
JOINING = 8  # newcomers are read together when an eighth of all places is free
READING = 4096  # tokens of newcomers, padding included, that are read at once


@dataclass(frozen=True)
class Generated:
    """What a model wrote."""

    text: str  # without end-of-text and stop string
    tokens: int  # generated, the end-of-text token and those of the stop string included
    finish_reason: str  # "stop": end-of-text or stop string; "length": max_tokens or the model's last position


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    seed: int | Sequence[int] = 0,
    unmasked_left_pad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """What `model` writes behind each prompt, in the order of the prompts; see `stream`.

    progress: called with (prompts done, all prompts) whenever some are done.
    """
    found: dict[int, Generated] = {}
    for some in stream(
        model,
        tokenizer,
        prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        stop=stop,
        batch_size=batch_size,
        seed=seed,
        unmasked_left_pad=unmasked_left_pad,
    ):
        found |= some
        if progress is not None:
            progress(len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    seed: int | Sequence[int] = 0,
    unmasked_left_pad: bool = False,
) -> Iterator[dict[int, Generated]]:
    """What `model` writes behind each prompt, by the prompt's number, as soon as it is done; the longest begin first.

    Padding is masked and not counted in positions, so a batch gives the texts that its prompts give alone. A prompt
    that is given several times is read once.

    prompts: texts, or token ids as `prompt_ids` makes them.
    max_tokens: of a completion; fewer where the model has no more positions.
    temperature: 0: the likeliest token at each step; else tokens are drawn from softmax(logits / temperature).
    batch_size: rows at once.
    seed: of the draws; a sequence: one for each prompt. A prompt's draws depend on its seed (of one for all: on its
      number, too) and not on the prompts beside it.
    unmasked_left_pad: attend to a decoder's padding and count it in positions, as the official evaluation of GPT-2 does
      (F2, src/custom/model.py validation_step); padded are `batch_size` prompts of like length to their longest.

    Raises ModelError for a prompt that is empty or leaves no position for an answer.
    """
    assert max_tokens > 0 and batch_size > 0 and temperature >= 0
    writer = _Writer(model, tokenizer, temperature, [text for text in stop if text])
    texts = [one for one in prompts if isinstance(one, str)]
    encoded = iter(prompt_ids(tokenizer, texts, encoder_decoder=writer.encoder_decoder))
    ids = [next(encoded) if isinstance(one, str) else list(one) for one in prompts]
    seeds = [(seed, number) for number in range(len(ids))] if isinstance(seed, int) else [(one,) for one in seed]
    room = [writer.room(tokens, max_tokens, number) for number, tokens in enumerate(ids)]
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    rows = [_Row(number, ids[number], room[number], seeds[number]) for number in order]
    if unmasked_left_pad and not writer.encoder_decoder:
        for batch in _batches(rows, batch_size):
            longest = len(batch[0].prompt)
            for row in batch:
                row.prompt = [writer.pad] * (longest - len(row.prompt)) + row.prompt
    way = way_of_writing(model)
    if way == "whole":
        for batch in _batches(rows, batch_size):
            yield writer.whole(batch)
        return
    places = _Places(writer, rows, batch_size, joining=way == "joining")
    while places.busy:
        yield places.write()


@dataclass
class _Row:
    """A prompt and what has been written behind it. room: how many tokens may be."""

    number: int
    prompt: list[int]
    room: int
    seed: Sequence[int]
    written: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None

    def draws(self, device: torch.device) -> torch.Generator:
        if self.generator is None:
            self.generator = torch.Generator(device).manual_seed(_mixed(self.seed))
        return self.generator


def _batches(rows: Sequence[_Row], size: int) -> Iterator[list[_Row]]:
    """Rows that may write equally much, so that none goes beyond the last position when all write on."""
    for _, group in groupby(rows, key=lambda row: row.room):
        some = list(group)
        yield from (some[start : start + size] for start in range(0, len(some), size))


def _mixed(seed: Sequence[int]) -> int:
    return int(np.random.SeedSequence([abs(one) for one in seed]).generate_state(1, np.uint64)[0] >> 1)


class _Writer:
    """One way of writing: model, tokenizer, temperature, where to stop."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, stop: Sequence[str]
    ) -> None:
        self.model, self.tokenizer, self.temperature, self.stop = model, tokenizer, temperature, list(stop)
        self.encoder_decoder: bool = model.config.is_encoder_decoder
        self.limit = longest_input(model.config.to_dict())
        self.ends = ends(tokenizer.eos_token_id, model.generation_config.eos_token_id)  # type: ignore[union-attr]
        if not self.ends:
            raise ModelError("the tokenizer has no end-of-text token", fix="use the tokenizer of a model that writes")
        self.pad = self.ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.reach = max((len(text.encode()) for text in stop), default=0) + 4  # tokens; each is a byte or more
        last = {text[-1] for text in stop}
        self._last = last if all(one.isascii() and not one.isspace() for one in last) else None
        self._may_end: dict[int, bool] = {}

    def room(self, ids: Sequence[int], max_tokens: int, number: int) -> int:
        """How many tokens may follow a prompt."""
        if not ids:
            raise ModelError(f"prompt {number} is empty")
        if self.limit is None:
            return max_tokens
        room = self.limit - (0 if self.encoder_decoder else len(ids))
        if room < 1 or len(ids) > self.limit:
            raise ModelError(
                f"prompt {number} has {len(ids)} tokens of the model's {self.limit}: none is left for an answer",
                fix="lower method.prompt.max_prompt, or use a model with more positions",
            )
        return min(room, max_tokens)

    def choose(self, logits: Tensor, rows: Sequence[_Row]) -> list[int]:
        """The next token of each row. logits: [B, V]."""
        scores = logits.float()
        if self.temperature:  # Gumbel noise: then the likeliest token is one drawn from the softmax
            noise = torch.empty_like(scores)
            for line, row in zip(noise, rows, strict=True):
                line.exponential_(generator=row.draws(scores.device))
            scores = scores / self.temperature - noise.log_()
        return scores.argmax(dim=-1).tolist()  # type: ignore[no-any-return]

    def done(self, row: _Row) -> bool:
        last = row.written[-1]
        if last in self.ends or len(row.written) == row.room:
            return True
        return bool(self.stop) and self._completes(last) and self.stopped(row.written[-self.reach :])

    def stopped(self, tail: list[int]) -> bool:
        text = self.tokenizer.decode(tail, clean_up_tokenization_spaces=False)
        return any(some in text for some in self.stop)

    def _completes(self, token: int) -> bool:
        """Whether a stop string may end in this token. One that ends in a visible ASCII character does so in a token
        that has it, whatever stands around it."""
        if self._last is None:
            return True
        if token not in self._may_end:
            self._may_end[token] = not self._last.isdisjoint(self.tokenizer.decode([token]))
        return self._may_end[token]

    def judge(self, ids: list[int]) -> Generated:
        """ids: what was written, with padding behind it if other rows of the batch went on."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        text = self._text(ids if end is None else ids[:end])
        cut = min((place for some in self.stop if (place := text.find(some)) >= 0), default=None)
        if cut is None:
            tokens = len(ids) if end is None else end + 1
            return Generated(text, tokens, "length" if end is None else "stop")
        tokens = next(n for n in range(1, len(ids) + 1) if any(some in self._text(ids[:n]) for some in self.stop))
        return Generated(text[:cut], tokens, "stop")

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def whole(self, rows: Sequence[_Row]) -> dict[int, Generated]:
        """A batch by transformers' `generate`, which ends with its last row: see `way_of_writing`."""
        input_ids, mask = _padded([row.prompt for row in rows], self.pad, left=not self.encoder_decoder)
        first = 1 if self.encoder_decoder else input_ids.shape[1]  # where the written tokens begin
        place = self.model.device
        with _evaluating(self.model):
            written: Tensor = self.model.generate(  # type: ignore[operator]
                input_ids=input_ids.to(place),
                attention_mask=mask.to(place),
                generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                    max_new_tokens=rows[0].room,
                    do_sample=False,
                    num_beams=1,
                    use_cache=True,
                    pad_token_id=self.pad,
                    eos_token_id=self.ends,
                ),
                logits_processor=LogitsProcessorList([_Choice(self, rows)] if self.temperature else []),
                stopping_criteria=StoppingCriteriaList([_StopAt(self, first)] if self.stop else []),
            )
        return {row.number: self.judge(ids) for row, ids in zip(rows, written[:, first:].tolist(), strict=True)}


class _Choice(LogitsProcessor):
    """Leaves the token that the writer chooses."""

    def __init__(self, writer: _Writer, rows: Sequence[_Row]) -> None:
        self.writer, self.rows = writer, rows

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """scores: [B, V]."""
        chosen = torch.tensor(self.writer.choose(scores, self.rows), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0)


class _StopAt(StoppingCriteria):
    """Ends a row whose last tokens hold a stop string."""

    def __init__(self, writer: _Writer, first: int) -> None:
        self.writer, self.first = writer, first

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        tails = input_ids[:, max(self.first, input_ids.shape[1] - self.writer.reach) :].tolist()
        return torch.tensor([self.writer.stopped(tail) for tail in tails], device=input_ids.device)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients; afterwards the model is as it was."""
    training = model.training
    if training:
        model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train(True)


def _padded(prompts: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [B, L]."""
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        where = slice(longest - len(ids), longest) if left else slice(0, len(ids))
        input_ids[row, where] = torch.tensor(ids)
        mask[row, where] = 1
    return input_ids, mask


# What a model keeps of the tokens it has read


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [B, H, T, D], in memory with room for more: what is new copies nothing else."""

    def __init__(self, memory: _Memory, *, sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory, self.is_sliding, self.is_initialized = memory, sliding, True
        self.stores: list[Tensor] = []  # keys and values, [places, H, room, D]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.memory.end + key_states.shape[-2]
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store[: self.memory.rows, :, self.memory.end : end] = states
        self.show(end)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def show(self, end: int) -> None:
        self.keys, self.values = (store[: self.memory.rows, :, self.memory.start : end] for store in self.stores)

    def put(self, states: Sequence[Tensor], copies: Tensor) -> None:
        """Behind the last row, rows `copies` of keys and values [., H, up to T, D]."""
        new = slice(self.memory.rows, self.memory.rows + len(copies))
        for store, some in zip(self.stores, states, strict=True):
            store[new, :, self.memory.end - some.shape[-2] : self.memory.end] = some[copies]

    def renew(self, places: int, room: int, like: Sequence[Tensor] = ()) -> None:
        """Take other memory. like: keys and values, where there are none yet."""
        memory, new = self.memory, []
        for old in self.stores or like:
            store = old.new_zeros(places, old.shape[1], room, old.shape[3])  # what is masked is multiplied by 0
            if self.stores:
                store[: memory.rows, :, : memory.length] = old[: memory.rows, :, memory.start : memory.end]
            new.append(store)
        self.stores = new


class _Memory:
    """Of up to `places` rows. All end at the same token, before the first one of a shorter row is padding.

    sliding: of each layer, whether it looks at a window; it keeps all tokens, and the mask cuts out the window.
    """

    def __init__(self, sliding: Sequence[bool], places: int) -> None:
        self.places = places
        self.rows = self.start = self.end = 0
        self.layers = [_Layer(self, sliding=one) for one in sliding]
        self.cache = Cache(layers=list(self.layers))
        self._mask = torch.zeros(places, 0, dtype=torch.int64)

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def mask(self) -> Tensor:
        """[B, T], with the tokens that are being read."""
        return self._mask[: self.rows, self.start : self.end]

    def put(self, states: Sequence[Sequence[Tensor]], mask: Tensor, copies: Tensor) -> None:
        """Take rows `copies` of what was read: keys and values of each layer, mask [., L].

        Padding before the longest of them stays behind: it may be wider than the memory, once what it was for has left.
        """
        mask = mask[copies]
        width = mask.shape[1] - int(mask.amax(dim=0).argmax())
        if not self.rows:
            self.start, self.end = 0, width
        assert width <= self.length, "the longest rows come first"
        if self.end > self._mask.shape[1] or not self.layers[0].stores:
            self._renew(states)
        for layer, some in zip(self.layers, states, strict=True):
            layer.put([one[:, :, -width:] for one in some], copies)
        new = self._mask[self.rows : self.rows + len(copies)]
        new.zero_()
        new[:, self.end - width : self.end] = mask[:, -width:].to(new.device)
        self.rows += len(copies)
        self._show()

    def _renew(self, states: Sequence[Sequence[Tensor]] = ()) -> None:
        room = self.length + SLACK
        for number, layer in enumerate(self.layers):
            layer.renew(self.places, room, states[number] if states else ())
        device = self.layers[0].stores[0].device
        mask = torch.zeros(self.places, room, dtype=torch.int64, device=device)
        if self.rows:
            mask[: self.rows, : self.length] = self.mask
        self._mask, self.start, self.end = mask, 0, self.length

    @contextmanager
    def token(self) -> Iterator[Tensor]:
        """While the model reads one more token of each row: the mask with it, [B, T + 1]."""
        if self.end == self._mask.shape[1]:
            self._renew()
            self._show()
        self._mask[: self.rows, self.end] = 1
        yield self._mask[: self.rows, self.start : self.end + 1]
        self.end += 1

    def leave(self, row: int) -> None:
        """The last row takes the place of this one."""
        self.rows -= 1
        for store in (self._mask, *(store for layer in self.layers for store in layer.stores)):
            if row < self.rows:
                store[row] = store[self.rows]

    def shorten(self, length: int) -> None:
        """To the longest of the rows that are left."""
        self.start = self.end - length
        self._show()

    def _show(self) -> None:
        for layer in self.layers:
            layer.show(self.end)


# Rows of a model


@dataclass(frozen=True)
class _Reading:
    """Prompts that a model has read. Of a decoder `parts` has what it keeps of them; of an encoder-decoder what the
    decoder keeps of its start token, then what it keeps of the encoder's output."""

    index: dict[tuple[int, ...], int]  # the row of each prompt
    parts: list[tuple[list[tuple[Tensor, Tensor]], Tensor]]  # keys and values [., H, L, D] of each layer; mask [., L]
    logits: Tensor  # [., V] of the token behind each


class _Rows:
    """Texts that a model goes on with, token by token, in a batch that texts join and leave."""

    def __init__(self, model: PreTrainedModel, places: int, *, pad: int) -> None:
        self.model, self.pad = model, pad
        self.encoder_decoder: bool = model.config.is_encoder_decoder
        self.sizes: list[list[int]] = []  # tokens that are kept of each row, by memory
        sliding = [isinstance(layer, DynamicSlidingWindowLayer) for layer in self._empty().layers]
        self.memories = [_Memory(sliding, places) for _ in range(2 if self.encoder_decoder else 1)]
        takes = signature(model.forward).parameters
        self._cache = "cache" if "cache" in takes else "past_key_values"  # its name before transformers 5.24
        self._positions = "position_ids" in takes
        self._fixed: dict[str, Any] = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})
        self._encoded: Tensor | None = None  # [1, 1, D], of the encoder's kind

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config(decoder=True))

    def read(self, prompts: Sequence[tuple[int, ...]]) -> _Reading:
        """prompts: all different."""
        device = self.model.device
        ids, mask = (one.to(device) for one in _padded(prompts, self.pad, left=not self.encoder_decoder))
        index = {prompt: row for row, prompt in enumerate(prompts)}
        cache = self._empty()
        if not self.encoder_decoder:
            positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
            logits = self._forward(ids, mask, positions, cache)
            return _Reading(index, [(_kept(cache), mask)], logits)
        encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)  # type: ignore[no-untyped-call]
        self._encoded = encoded.last_hidden_state.new_zeros(1, 1, encoded.last_hidden_state.shape[-1])
        start = torch.full((len(prompts), 1), self._start(), device=device)
        cross = self._empty()
        both = EncoderDecoderCache(cache, cross)  # type: ignore[no-untyped-call]
        ones = torch.ones_like(start)
        logits = self._forward(start, ones, None, both, encoder_outputs=encoded, attention_mask=mask)
        return _Reading(index, [(_kept(cache), ones), (_kept(cross), mask)], logits)

    def _start(self) -> int:
        for config in (self.model.generation_config, self.model.config):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        raise ModelError("the config has no decoder_start_token_id", where="model")

    def join(self, reading: _Reading, which: Sequence[int]) -> None:
        """New rows behind the others: prompts `which` of those that were read, some more than once if need be."""
        copies = torch.tensor(which, device=reading.logits.device)
        for memory, (states, mask) in zip(self.memories, reading.parts, strict=True):
            memory.put(states, mask, copies)
        lengths = reading.parts[0][1].sum(dim=1)[copies].tolist()
        across = [mask.shape[1] for _, mask in reading.parts[1:]]
        self.sizes += [[length, *across] for length in lengths]

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of each row: logits [B, V] of the token behind it."""
        device = self.model.device
        ids = torch.tensor(tokens, device=device)[:, None]
        memory, *across = self.memories
        with memory.token() as mask:
            if across:
                assert self._encoded is not None
                source = across[0].mask
                # what the encoder wrote is in the memory: of this only the size is read
                states = BaseModelOutput(last_hidden_state=self._encoded.expand(*source.shape, -1))
                both = EncoderDecoderCache(memory.cache, across[0].cache)  # type: ignore[no-untyped-call]
                logits = self._forward(ids, mask, None, both, encoder_outputs=states, attention_mask=source)
            else:
                positions = torch.tensor([size[0] for size in self.sizes], device=device)[:, None]
                logits = self._forward(ids, mask, positions, memory.cache)
        for size in self.sizes:
            size[0] += 1
        return logits

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor | None, cache: Cache, **encoder: Any) -> Tensor:
        inputs: dict[str, Any] = {**self._fixed, **encoder, self._cache: cache}
        if self.encoder_decoder:
            inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        else:
            inputs |= {"input_ids": ids, "attention_mask": mask}
            if self._positions:
                inputs["position_ids"] = positions
        logits: Tensor = self.model(**inputs).logits
        return logits[:, -1]

    def leave(self, rows: Sequence[int]) -> None:
        """The last rows take the places of these: of the highest first."""
        for row in sorted(rows, reverse=True):
            last = self.sizes.pop()
            if row < len(self.sizes):
                self.sizes[row] = last
            for memory in self.memories:
                memory.leave(row)
        for number, memory in enumerate(self.memories):
            memory.shorten(max((size[number] for size in self.sizes), default=0))


def _kept(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return [(one.keys, one.values) for one in layers if one.keys is not None and one.values is not None]


_WAYS: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def way_of_writing(model: PreTrainedModel) -> str:
    """How this model may write in batches, tried on a few tokens against forward passes that keep nothing.

    "joining": prompts join a batch that is under way. "leaving": rows that are done leave, and the next batch begins
    when all have (models whose position is that of the whole batch, as BART's decoder). "whole": neither, as the memory
    is not of keys and values alone (recurrent states, chunks, shared layers), or the model does not give what it gives
    without: batches by transformers' `generate`.
    """
    if model not in _WAYS:
        with _evaluating(model):
            _WAYS[model] = _way(model)
    return _WAYS[model]


@torch.no_grad()
def _way(model: PreTrainedModel) -> str:
    text = model.config.get_text_config(decoder=True)
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    if getattr(text, "attention_chunk_size", None) or any(
        type(layer) not in kinds for layer in DynamicCache(config=text).layers
    ):
        return "whole"
    pad = text.pad_token_id if isinstance(text.pad_token_id, int) else -1
    known = [token for token in range(min(16, text.vocab_size)) if token != pad]
    long, short, new = known[1:6], known[4:7], known[2:4]
    ways = ["whole", "leaving", "joining"]
    found = 0
    with suppress(RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError, NotImplementedError):
        rows = _Rows(model, 2, pad=max(pad, 0))
        rows.join(rows.read([tuple(long), tuple(short)]), [0, 1])
        one, two, three = known[3:6]
        found += _same(rows.step([one, two]), [_plain(model, rows, long, [one]), _plain(model, rows, short, [two])])
        rows.leave([0])
        rows.join(rows.read([tuple(new)]), [0])
        wanted = [_plain(model, rows, short, [two, three]), _plain(model, rows, new, [one])]
        found += bool(found) and _same(rows.step([three, one]), wanted)
    return ways[found]


def _plain(model: PreTrainedModel, rows: _Rows, prompt: list[int], written: list[int]) -> Tensor:
    """Logits [V] behind a text."""
    device = model.device
    if rows.encoder_decoder:
        inputs = {"input_ids": prompt, "decoder_input_ids": [rows._start(), *written]}
    else:
        inputs = {"input_ids": [*prompt, *written]}
    tensors = {name: torch.tensor([ids], device=device) for name, ids in inputs.items()}
    logits: Tensor = model(**tensors, use_cache=False).logits
    return logits[0, -1]


def _same(found: Tensor, wanted: Sequence[Tensor]) -> bool:
    """Up to rounding: to the root of the type's precision, of the largest logit."""
    right = torch.stack(list(wanted)).float()
    near = torch.finfo(found.dtype).eps ** 0.5 * float(right.abs().max())
    return bool((found.float() - right).abs().max() <= near)


class _Places:
    """Rows of a model and the prompts that wait for their places, in the order in which they are to be begun.

    A prompt is no longer than those before it, so that it fits in beside what is kept of them.
    """

    def __init__(self, writer: _Writer, rows: Sequence[_Row], size: int, *, joining: bool) -> None:
        self.writer, self.joining = writer, joining
        self.size = min(size, len(rows))
        self.waiting = deque(rows)
        self.present: list[_Row] = []  # in the order of the model's rows; the last token of each is still to be read
        self._model = _Rows(writer.model, self.size, pad=writer.pad)
        self._packed = Packed(writer.model, rows=self.size)
        self._reading: _Reading | None = None  # the last one, while the next prompt is among its

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.present)

    def write(self) -> dict[int, Generated]:
        """Go on until some rows are done."""
        with _evaluating(self.writer.model), self._packed.used():
            while True:
                self._join()
                found = self._leave()
                if not found:
                    self._take(self._model.step([row.written[-1] for row in self.present]), self.present)
                    found = self._leave()
                if found:
                    return found

    def _join(self) -> None:
        enough = self.joining and self.size - len(self.present) >= max(1, self.size // JOINING)
        if self.present and not enough:
            return
        while self.waiting and len(self.present) < self.size:
            reading = self._read()
            new: list[_Row] = []
            while self.waiting and len(self.present) + len(new) < self.size:
                if tuple(self.waiting[0].prompt) not in reading.index:
                    break
                new.append(self.waiting.popleft())
            which = [reading.index[tuple(row.prompt)] for row in new]
            self._model.join(reading, which)
            self.present += new
            self._take(reading.logits[which], new)
            again = self.waiting and tuple(self.waiting[0].prompt) in reading.index
            self._reading = reading if again else None

    def _read(self) -> _Reading:
        """What the next prompts leave in the model."""
        if self._reading is not None:
            return self._reading
        free = self.size - len(self.present)
        prompts = list(dict.fromkeys(tuple(row.prompt) for row in islice(self.waiting, free)))
        return self._model.read(prompts[: max(1, READING // len(prompts[0]))])

    def _take(self, logits: Tensor, rows: Sequence[_Row]) -> None:
        for row, token in zip(rows, self.writer.choose(logits, rows), strict=True):
            row.written.append(token)

    def _leave(self) -> dict[int, Generated]:
        done = [place for place, row in enumerate(self.present) if self.writer.done(row)]
        found = {self.present[place].number: self.writer.judge(self.present[place].written) for place in done}
        for place in reversed(done):
            last = self.present.pop()
            if place < len(self.present):
                self.present[place] = last
        if done:
            self._model.leave(done)
        return found
