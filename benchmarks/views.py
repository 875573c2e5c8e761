"""What one forward pass for all views of MUSC saves beside one a view, and how near it comes to matrix products.

    python benchmarks/views.py [--rounds 3] [--threads 2] [--lengths 16,32,64] [--seconds 100]

A BERT-like encoder of the size of multilingual-e5-small (12 layers, width 384, 12 heads) with random weights and BERT's
vocabulary, 32 pairs, forward and backward of the whole objective: four views of 32 rows, so 128 rows in the one
pass. The two take turns in every round; figures are medians. "of peak": model FLOP/s over those of a plain matrix
product of the same type, measured in the same run, before and after. No round starts that would end after `seconds`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, fields

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdlab.config import Contrast, Fit, PairFit
from kdlab.engine import device
from kdlab.engine.loop import Progress
from kdlab.models.encoder import load_encoder
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tapped
from kdlab.stages.pair_steps import PairStep

PAIRS, WIDTH = 32, 384
CPU = torch.device("cpu")
SIDE = 1536  # of the matrices that the limit is measured with


def student() -> Tapped:
    config = {
        "model_type": "bert",
        "hidden_size": WIDTH,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 4 * WIDTH,
    }
    kernel = device.attention_kernel(CPU, train=True)
    spec = {"init": "random", "config": config}
    model = load_encoder(spec, num_labels=3, kind="classification", labels=None, attention=kernel, seed=0)
    return Tapped(model, contrast=ProjectionHead(WIDTH, 128, "mlp", 0)).train()


def step(*, fused: bool) -> PairStep:
    values = asdict(PairFit(mixup=1.0, contrast=Contrast(weight=0.1)))
    shared = {item.name for item in fields(Fit)}
    return PairStep({name: value for name, value in values.items() if name not in shared}, paired=True, fused=fused)


def batch(length: int) -> dict[str, torch.Tensor | float]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (2 * PAIRS, 1), generator=draw)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    return {
        "input_ids": torch.randint(1000, 2000, mask.shape, generator=draw) * mask,
        "attention_mask": mask,
        "labels": torch.randint(0, 3, (PAIRS,), generator=draw),
        "share": 1.0,
        "languages_share": 1.0,
    }


def run(objective: PairStep, model: Tapped, rows: dict[str, torch.Tensor | float], precision: str) -> None:
    """As the loop does it: the model's own pass under autocast, the losses outside."""

    def cast(*given: object, **named: object) -> object:
        with device.autocast(CPU, precision):
            return model(*given, **named)

    loss = objective(cast, rows, Progress(0, 1, 0, 1, 1, np.random.default_rng(0)))  # type: ignore[arg-type]
    torch.autograd.backward(loss.total)
    model.zero_grad(set_to_none=True)


def peak(precision: str) -> float:
    """FLOP/s of a matrix product."""
    dtype = device.DTYPES.get(precision, torch.float32)
    left, right = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.matmul(left, right)
        times.append(time.perf_counter() - start)
    return 2 * SIDE**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lengths", default="16,32,64")
    parser.add_argument("--seconds", type=float, default=100.0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    end = time.perf_counter() + given.seconds
    model, steps = student(), {"one": step(fused=True), "four": step(fused=False)}
    load = os.getloadavg()[0]
    print(f"{given.threads} threads of {os.cpu_count()}, load {load:.1f} at the start, torch {torch.__version__}")
    print("dtype  length  rounds  one pass  four passes  four/one  GFLOP  of peak: one  four   GFLOP/s of a product")
    rows = []
    for precision in ("bf16", "fp32"):
        for length in (int(text) for text in given.lengths.split(",")):
            if time.perf_counter() > end:
                print(f"{precision:5}  {length:6}  left out: time is over")
                continue
            data, limits = batch(length), [peak(precision)]
            with FlopCounterMode(display=False) as counter:
                run(steps["one"], model, data, precision)
            flops = counter.get_total_flops()
            times = {name: list[float]() for name in steps}
            for _ in range(given.rounds):
                began = time.perf_counter()
                for name, objective in steps.items():
                    start = time.perf_counter()
                    run(objective, model, data, precision)
                    times[name].append(time.perf_counter() - start)
                if 2 * time.perf_counter() - began > end:
                    break
            limits.append(peak(precision))
            one, four = (statistics.median(times[name]) for name in ("one", "four"))
            row = {
                "precision": precision,
                "length": length,
                "rounds": len(times["one"]),
                "one": one,
                "four": four,
                "ratio": four / one,
                "gflop": flops / 1e9,
                "one_of_peak": flops / one / max(limits),
                "four_of_peak": flops / four / max(limits),
                "peak": max(limits),
            }
            rows.append(row)
            print(
                f"{precision:5}  {length:6}  {row['rounds']:6}  {one:6.2f} s  {four:9.2f} s  {row['ratio']:8.2f}  "
                f"{row['gflop']:5.0f}  {row['one_of_peak']:12.0%}  {row['four_of_peak']:4.0%}  {max(limits) / 1e9:8.0f}"
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
