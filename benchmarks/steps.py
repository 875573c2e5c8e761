"""What a training step of each method costs, beside plain KD and beside this machine's matrix products.

    python benchmarks/steps.py [--rounds 5] [--threads 2] [--lengths 16,64] [--precision fp32]

MiniLM-sized models (6 layers to 3, width 384, 12 heads), random weights, batch 32, forward and backward of the stage
that the method adds. The methods take turns in every round; figures are medians. "of peak": model FLOP/s over those of
a plain matrix product of the same type, measured in the same run. "transport": BERT-EMD's costs, plans and flows alone,
as a share of its step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdlab import compose
from kdlab.config import Distillation
from kdlab.engine import device
from kdlab.engine.loop import Progress
from kdlab.methods.distillation import stage_objective
from kdlab.models.encoder import load_encoder
from kdlab.models.taps import Tapped
from kdlab.stages import steps
from kdlab.stages.steps import JointStep, LayerStep, LogitStep, Objective

BATCH = 32
METHODS = ("kd", "mixkd", "pkd", "tinybert", "u_ild", "minilm", "minilm_v2", "bert_emd", "l_ild", "cr_ild", "joint")
CPU = torch.device("cpu")


def model(layers: int) -> Tapped:
    config = {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    spec = {"init": "random", "config": config}
    return Tapped(load_encoder(spec, num_labels=2, kind="classification", labels=None, attention="eager", seed=0))


def objective(method: str, teacher: Tapped, precision: str) -> Objective:
    """The step of the first stage after the teacher, as the method's preset configures it."""
    (job,) = compose.jobs([f"method={method}", "task=demo/nli", "model=tiny"]).jobs
    settings = job.run.method
    assert isinstance(settings, Distillation)
    stage = settings.stages[1]
    values = stage_objective(getattr(settings, stage))
    placed: dict[str, Any] = {"precision": precision, "place": CPU}
    if stage == "logits":
        return LogitStep(teacher, values, kind="classification", **placed)
    layers = LayerStep(teacher, values, layers=(3, 6), **placed)
    return layers if stage == "layers" else JointStep(layers, values, kind="classification")


def batch(length: int) -> dict[str, torch.Tensor]:
    lengths = torch.randint(length // 2, length + 1, (BATCH, 1), generator=torch.Generator().manual_seed(0))
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    return {
        "input_ids": torch.randint(1000, 2000, (BATCH, length)) * mask,
        "attention_mask": mask,
        "labels": torch.randint(0, 2, (BATCH,)),
    }


def run(step: Objective, student: Tapped, rows: dict[str, torch.Tensor], precision: str) -> None:
    # in the third of four epochs, so that a ramp is under way
    progress = Progress(20, 40, 2, 4, 10, np.random.default_rng(0))
    with device.autocast(CPU, precision):
        loss = step(student, rows, progress)
    torch.autograd.backward(loss.total / BATCH)
    student.zero_grad(set_to_none=True)


def peak(precision: str) -> float:
    """FLOP/s of a matrix product."""
    dtype = device.DTYPES.get(precision, torch.float32)
    left, right = torch.randn(1536, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.matmul(left, right)
        times.append(time.perf_counter() - start)
    return 2 * 1536**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lengths", default="16,64")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    teacher, student = model(6).eval().requires_grad_(False), model(3).train()
    limit = peak(given.precision)
    print(
        f"{given.threads} threads, {given.precision}, batch {BATCH}, torch {torch.__version__}, matrix product "
        f"{limit / 1e9:.0f} GFLOP/s"
    )
    print("length  method       s a step  over kd  GFLOP  of peak")
    rows = []
    for length in (int(text) for text in given.lengths.split(",")):
        data = batch(length)
        ready = {name: objective(name, teacher, given.precision) for name in METHODS}
        flops, times = {}, {name: list[float]() for name in METHODS}
        for name, step in ready.items():
            with FlopCounterMode(display=False) as counter:
                run(step, student, data, given.precision)
            flops[name] = counter.get_total_flops()
        for _ in range(given.rounds):
            for name, step in ready.items():
                start = time.perf_counter()
                run(step, student, data, given.precision)
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(found) for name, found in times.items()}
        for name in METHODS:
            row = {
                "length": length,
                "method": name,
                "seconds": medians[name],
                "over_kd": medians[name] / medians["kd"],
                "gflop": flops[name] / 1e9,
                "of_peak": flops[name] / medians[name] / limit,
            }
            rows.append(row)
            print(
                f"{length:6}  {name:11}  {row['seconds']:8.3f}  {row['over_kd']:7.2f}  {row['gflop']:5.0f}  "
                f"{row['of_peak']:7.0%}"
            )
        print(f"{length:6}  transport's share of bert_emd: {transport_share(ready['bert_emd'], student, data):.0%}")
    print(json.dumps(rows))


def transport_share(step: Objective, student: Tapped, data: dict[str, torch.Tensor]) -> float:
    """Seconds in `transport_terms` over those of the forward pass of the whole step."""
    spent = [0.0]
    terms = steps.transport_terms

    def timed(*views: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return terms(*views, **named)
        finally:
            spent[0] += time.perf_counter() - start

    start = time.perf_counter()
    with mock.patch.object(steps, "transport_terms", timed):
        run(step, student, data, "fp32")
    return spent[0] / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
