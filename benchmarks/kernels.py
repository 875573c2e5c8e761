"""Which kernels are faster on this device: makes the tables of kdlab/engine/device.py and kdlab/models/packing.py.

A MiniLM-sized encoder (6 layers, width 384), random weights and dropout 0.1, as kdlab runs it, batch 32. Attention:
forward and backward, or forward alone, beside eager. Packed weights of a frozen model: forward, beside torch's own
products. Figures are padded tokens per second, and their ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.machine import Row, Settings, interleave
from kdlab.engine import device
from kdlab.models.attention import KERNEL
from kdlab.models.encoder import load_encoder
from kdlab.models.taps import Tapped

NAME = "kernels"
BATCH = 32
LENGTHS = (16, 64, 128)
KERNELS = ("eager", "sdpa", KERNEL)
CPU = torch.device("cpu")


def build(kernel: str) -> Tapped:
    config = {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    spec = {"init": "random", "config": config}
    return Tapped(load_encoder(spec, num_labels=2, kind="classification", labels=None, attention=kernel, seed=0))


def one_pass(model: Tapped, length: int, *, train: bool, precision: str) -> Callable[[], None]:
    """Forward, and backward if `train`, on rows of which a quarter is padding."""
    ids = torch.randint(0, 1000, (BATCH, length))
    mask = torch.ones_like(ids)
    mask[:, length - length // 4 :] = 0

    def run() -> None:
        model.train(train)
        with torch.set_grad_enabled(train), device.autocast(CPU, precision):
            logits = model({"input_ids": ids, "attention_mask": mask}).logits
        if train:
            torch.autograd.backward(logits.float().square().sum())
            model.zero_grad(set_to_none=True)

    return run


def run(settings: Settings) -> Iterator[Row]:
    yield from attention(settings)
    yield from packing(settings)


def packing(settings: Settings) -> Iterator[Row]:
    models = {"torch": build(KERNEL), "kdlab": build(KERNEL).freeze()}
    for precision in settings.precisions:
        for length in LENGTHS:
            contenders = {
                name: one_pass(model, length, train=False, precision=precision) for name, model in models.items()
            }
            times = interleave(contenders, settings)
            row: Row = {"table": "forward of a frozen model, tokens a second", "dtype": precision, "length": length}
            row |= {name: BATCH * length / found for name, found in times.items()}
            yield row | {"kdlab_over_torch": times["torch"] / times["kdlab"]}


def attention(settings: Settings) -> Iterator[Row]:
    models = {kernel: build(kernel) for kernel in KERNELS}
    for train in (True, False):
        for precision in settings.precisions:
            for length in LENGTHS:
                contenders = {
                    kernel: one_pass(model, length, train=train, precision=precision)
                    for kernel, model in models.items()
                }
                times = interleave(contenders, settings)
                row: Row = {
                    "table": "attention kernels, tokens a second",
                    "pass": "training" if train else "forward",
                    "dtype": precision,
                    "length": length,
                }
                row |= {kernel: BATCH * length / found for kernel, found in times.items()}
                yield row | {f"{kernel}_over_eager": times["eager"] / times[kernel] for kernel in KERNELS[1:]}
