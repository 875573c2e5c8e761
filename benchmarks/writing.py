"""Fine-tune-CoT: training and writing, against what the official code does (`benchmarks.plain_cot`).

A model of GPT-2's size (124M) with random weights, at the lengths of MultiArith. So that it ends where a rationale
ends, its likeliest token is always one less than the last: a prompt that ends in 57 is answered by 56, ..., 1, 0, where
0 is end-of-text. All contenders write the same tokens.

kdlab's training runs in its own loop, as in `benchmarks.training`. Answers are written in the first dtype only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks import plain_cot
from benchmarks.lengths import MULTIARITH, MULTIARITH_TEST
from benchmarks.machine import Row, Settings, interleave_steps, memory_as_it_is, peak, seconds
from benchmarks.training import CPU, Chosen, Stepper, count, fitted, in_turn, representative
from kdlab import compose
from kdlab.config import Reasoning
from kdlab.data.batches import Batches
from kdlab.data.sequences import Sequences
from kdlab.engine import device
from kdlab.methods.distillation import FIT_FIELDS
from kdlab.models.generator import Student, load_generator
from kdlab.models.writing import generate
from kdlab.stages.generation import KERNEL, CompletionStep

NAME = "writing"
WORDS, PAD, END = 50257, 50256, 0
ASKED = 32  # questions of the test split, from the first
AT_ONCE = (plain_cot.BATCH, 16, 32)  # rows that kdlab writes
PLAIN_AT_ONCE = (plain_cot.BATCH, 32)  # the official evaluation's, and as many as kdlab's most
LONGEST_ANSWER = 256  # tokens; none is as long
STEPS = 3  # of training: batches whose widths are about the mean of all
SPEC = {"init": "random", "config": {"model_type": "gpt2"}}


def run(settings: Settings) -> Iterator[Row]:
    counted: dict[str, float] = {}
    for precision in settings.precisions:
        yield from _training(settings, precision, counted)
    yield from _writing(settings, settings.precisions[0])


def _model(attention: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_generator(
        SPEC, attention=attention, seed=0, vocabulary=WORDS, pad_token_id=PAD, eos_token_id=END, dtype=dtype
    )


def _ids(lengths: np.ndarray[Any, Any], seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(300, PAD, int(length)).tolist() for length in lengths]


def _training(settings: Settings, precision: str, counted: dict[str, float]) -> Iterator[Row]:
    """counted: FLOP a step by contender, filled where it is not there yet."""
    prompts, targets = _ids(MULTIARITH[:, 0], 1), _ids(MULTIARITH[:, 1], 2)
    columns = {"prompt_ids": prompts, "target_ids": targets}
    lists = {name: pa.array(rows, pa.list_(pa.int32())) for name, rows in columns.items()}
    rows = Sequences(pa.table({"id": np.arange(len(prompts)), **lists}), encoder_decoder=False)
    batches = Batches(rows, batch_size=plain_cot.BATCH, seed=0, shuffle=True, pad_token_id=PAD)
    chosen = representative(rows, batches.order(0), STEPS)
    contenders = {
        "plain": _official(plain_cot.Trainer(_model("eager"), prompts, targets, PAD), precision),
        "kdlab": fitted(Student(_model(KERNEL)), CompletionStep(), rows, _preset(), precision),
    }
    count(contenders, chosen, counted)
    found = interleave_steps(in_turn(contenders, chosen), settings)
    tokens = float(np.mean([rows.lengths[batch].sum() for batch in chosen]))
    limit, plain = peak(precision), float(np.mean(found["plain"]))
    for name, times in found.items():
        step = float(np.mean(times))
        yield {
            "table": "Fine-tune-CoT training: GPT-2 124M, batches of 8 at MultiArith's lengths",
            "dtype": precision,
            "contender": name,
            "s_a_step": step,
            "tokens_a_s": tokens / step,
            "of_peak": counted[name] / step / limit,
            "times_plain": plain / step,
        }


def _preset() -> dict[str, Any]:
    """How the method's preset trains the student."""
    (job,) = compose.jobs(["method=ft_cot", "task=demo/arithmetic", "model=tiny_decoder"]).jobs
    assert isinstance(job.run.method, Reasoning)
    return {name: value for name, value in asdict(job.run.method.student).items() if name in FIT_FIELDS}


def _official(trainer: plain_cot.Trainer, precision: str) -> Stepper:
    def step(batch: np.ndarray[Any, Any]) -> None:
        with device.autocast(CPU, precision):
            trainer.step(batch.tolist())

    def train(chosen: Chosen) -> list[float]:
        with memory_as_it_is():
            return [seconds(partial(step, batch)) for batch in chosen]

    return train


def _writing(settings: Settings, precision: str) -> Iterator[Row]:
    dtype = device.DTYPES.get(precision, torch.float32)
    model, plain_model = _model(KERNEL, dtype), _model("eager", dtype)
    for one in (model, plain_model):
        one.register_forward_hook(_countdown, with_kwargs=True)
    asked = MULTIARITH_TEST[:ASKED]
    prompts = [[*ids, int(tokens)] for ids, (_, tokens) in zip(_ids(asked[:, 0] - 1, 3), asked, strict=True)]
    tokenizer = _tokenizer()

    def official(size: int, most: int) -> list[int]:
        with memory_as_it_is():
            rows = plain_cot.write(plain_model, prompts, pad=PAD, end=END, max_tokens=most, batch=size)
        return [len(row) for row in rows]

    def ours(size: int, most: int) -> list[int]:
        return [one.tokens for one in generate(model, tokenizer, prompts, max_tokens=most, batch_size=size)]

    contenders: dict[str, Callable[[int], list[int]]] = {
        **{f"plain, {size} at once": partial(official, size) for size in PLAIN_AT_ONCE},
        **{f"kdlab, {size} at once": partial(ours, size) for size in AT_ONCE},
    }

    def timed(write: Callable[[int], list[int]]) -> list[float]:
        start = time.perf_counter()
        lengths = write(LONGEST_ANSWER)
        took = time.perf_counter() - start
        assert lengths == asked[:, 1].tolist(), "all write the same"
        return [took]

    for write in contenders.values():
        write(2)  # to warm up
    found = interleave_steps({name: partial(timed, write) for name, write in contenders.items()}, settings)
    first = found[next(iter(found))][0]
    for name, (took,) in found.items():
        yield {
            "table": f"Fine-tune-CoT answers: GPT-2 124M, the first {ASKED} test questions of MultiArith",
            "dtype": precision,
            "contender": name,
            "seconds": took,
            "tokens_per_s": int(asked[:, 1].sum()) / took,
            "prompts_per_s": len(prompts) / took,
            "times_plain": first / took,
        }


def _countdown(module: Any, _: Any, given: dict[str, Any], output: Any) -> None:
    last = given["input_ids"][:, -1:]
    output.logits[:, -1].scatter_add_(1, (last - 1).clamp(min=0), torch.full(last.shape, 100.0).to(output.logits))


def _tokenizer() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.WordLevel({str(word): word for word in range(WORDS)}, unk_token="1"))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=str(END), pad_token=str(PAD)
    )
