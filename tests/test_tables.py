"""kdlab.engine.tables: sparse gradients of embedding tables train as dense ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import toy
from kdlab.engine import loop, tables
from kdlab.engine.tables import TableGradients, values
from kdlab.models.taps import Tapped
from kdlab.stages.steps import LabelStep
from test_taps import tiny

CPU = torch.device("cpu")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2048, 256)
        self.head = nn.Linear(256, 2048, bias=False)
        self.head.weight = self.words.weight


def test_which_tables_are_meant() -> None:
    free, small, frozen = nn.Embedding(2048, 256), nn.Embedding(8, 4), nn.Embedding(2048, 256)
    frozen.weight.requires_grad_(False)
    model = nn.ModuleList([free, small, frozen, Tied()])
    assert TableGradients(model, CPU, processes=1).tables == [free]
    assert [module.sparse for module in model.modules() if isinstance(module, nn.Embedding)] == [True] + [False] * 3
    assert not TableGradients(model, CPU, processes=2).tables
    assert not TableGradients(model, torch.device("meta"), processes=1).tables


def test_rows_are_gathered_spread_and_cleared() -> None:
    table = nn.Embedding(2048, 256, padding_idx=0)
    found = TableGradients(nn.ModuleList([table]), CPU, processes=1)
    ids = torch.tensor([[3, 5, 3, 0], [7, 3, 0, 0]])
    outer = torch.randn(2, 4, 256)
    (table(ids) * outer).sum().backward()
    (table(ids[:1]) * outer[:1]).sum().backward()  # a second micro-batch
    found.gather()
    assert table.weight.grad is not None and values(table.weight.grad).shape == (3, 256)
    dense = nn.Embedding(2048, 256, padding_idx=0)
    (dense(ids) * outer).sum().backward()
    (dense(ids[:1]) * outer[:1]).sum().backward()
    assert dense.weight.grad is not None
    torch.testing.assert_close(values(table.weight.grad).norm(), dense.weight.grad.norm())
    found.spread()
    assert not table.weight.grad.is_sparse
    torch.testing.assert_close(table.weight.grad, dense.weight.grad)
    found.clear()
    assert table.weight.grad is None and found.whole[0] is not None and not found.whole[0].any()
    found.close()
    assert not table.sparse


def test_a_table_that_is_read_whole_keeps_its_dense_gradient() -> None:
    read, looked_up = nn.Embedding(2048, 256), nn.Embedding(2048, 256)
    found = TableGradients(nn.ModuleList([read, looked_up]), CPU, processes=1)
    ids = torch.tensor([1, 2, 2])
    (read.weight.square().sum() + looked_up(ids).sum()).backward()
    found.gather()
    found.spread()
    assert read.weight.grad is not None
    torch.testing.assert_close(read.weight.grad, 2 * read.weight)
    assert looked_up.weight.grad is not None and looked_up.weight.grad[2].eq(2).all()
    found.clear()
    assert read.weight.grad is None and looked_up.weight.grad is None


@pytest.mark.parametrize("name", ["deberta-v2", "mpnet", "modernbert"])
def test_other_architectures_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tables, "SMALL", 1)
    model = Tapped(tiny(name))
    loop.fit(model, LabelStep("classification"), toy.batches(8), toy.plan(epochs=1), toy.context(tmp_path))


@pytest.mark.parametrize("optimizer", ["adamw", "bert_adam"])
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, micro_batch: int
) -> None:
    found: list[dict[str, torch.Tensor]] = []
    histories: list[Any] = []
    for name, small in (("sparse", 1), ("dense", 1 << 60)):
        monkeypatch.setattr(tables, "SMALL", small)
        model = toy.encoder(layers=1)
        plan = toy.plan(epochs=2, lr=1e-2, optimizer=optimizer, clip=0.1)
        batches = toy.batches(micro_batch=micro_batch)
        loop.fit(model, LabelStep("classification"), batches, plan, toy.context(tmp_path / name))
        found.append(model.state_dict())
        histories.append((tmp_path / name / "metrics.jsonl").read_text())
        assert not any(module.sparse for module in model.modules() if isinstance(module, nn.Embedding))
    for name, weight in found[0].items():
        # a key's bias has no gradient but rounding, which Adam blows up
        if not name.endswith("key.bias"):
            torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=2e-4, msg=name)
    assert len(histories[0].splitlines()) == len(histories[1].splitlines())
