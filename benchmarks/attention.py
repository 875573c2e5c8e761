"""Which attention kernel is faster on this device: makes the table `ATTENTION` in kdlab/engine/device.py.

    python benchmarks/attention.py [--rounds 5] [--threads 2]

A MiniLM-sized encoder (6 layers, width 384) with random weights, batch 32, forward and backward or forward alone. The
kernels take turns in every round; the figures are medians, in padded tokens per second, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from transformers import BertConfig, BertForSequenceClassification

BATCH = 32
LENGTHS = (16, 64, 128)


def build(kernel: str) -> BertForSequenceClassification:
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        attn_implementation=kernel,
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config)


def seconds(model: BertForSequenceClassification, length: int, *, train: bool, dtype: torch.dtype) -> float:
    ids = torch.randint(0, 1000, (BATCH, length))
    mask = torch.ones_like(ids)
    mask[:, length - length // 4 :] = 0
    model.train(train)
    start = time.perf_counter()
    with torch.set_grad_enabled(train), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=ids, attention_mask=mask).logits
    if train:
        torch.autograd.backward(logits.float().square().sum())
        model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    models = {kernel: build(kernel) for kernel in ("eager", "sdpa")}
    rows = []
    print(f"{given.threads} threads, batch {BATCH}, torch {torch.__version__}")
    print("train  dtype     length    eager     sdpa  eager/sdpa")
    for train in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            for length in LENGTHS:
                times: dict[str, list[float]] = {kernel: [] for kernel in models}
                for _ in range(given.rounds + 1):
                    for kernel, model in models.items():
                        times[kernel].append(seconds(model, length, train=train, dtype=dtype))
                speed = {kernel: BATCH * length / statistics.median(found[1:]) for kernel, found in times.items()}
                ratio = speed["eager"] / speed["sdpa"]
                name = str(dtype).removeprefix("torch.")
                rows.append({"train": train, "dtype": name, "length": length, **speed, "ratio": ratio})
                print(f"{train!s:5}  {name:8}  {length:6}  {speed['eager']:7.0f}  {speed['sdpa']:7.0f}  {ratio:10.2f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
