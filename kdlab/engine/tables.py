"""Gradients of embedding tables, of which a step touches few rows.

A dense gradient of 30,522 x 384 words is filled with zeros, measured, scaled and cleared in each step, for some
hundred rows that are not zero: a tenth of a small student's step on short sentences. Here the backward pass gives the
rows alone (torch's sparse gradients), which are put into one dense gradient that stays in memory, and taken out again.
The optimiser sees what it always saw. A table that a model reads whole (deberta-v2's positions) keeps a dense gradient.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

SMALL = 1 << 18  # elements; smaller tables are not worth it


class TableGradients:
    """The embedding tables of a model that trains in this process on a processor; elsewhere there are none."""

    def __init__(self, model: nn.Module, place: torch.device, *, processes: int) -> None:
        owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
        self.tables = [
            module
            for module in model.modules()
            if place.type == "cpu"
            and processes == 1
            and isinstance(module, nn.Embedding)
            and module.weight.requires_grad
            and module.weight.numel() >= SMALL
            and owners[id(module.weight)] == 1  # a head that shares it has a dense gradient
        ]
        self.whole: list[Tensor | None] = [None] * len(self.tables)  # dense gradients, from the first step on
        self.rows: list[Tensor | None] = [None] * len(self.tables)
        for table in self.tables:
            table.sparse = True

    def gather(self) -> None:
        """Make the rows of each table's gradient distinct, so that their norm is the gradient's."""
        for table in self.tables:
            if table.weight.grad is not None and table.weight.grad.is_sparse:
                table.weight.grad = table.weight.grad.coalesce()

    def spread(self) -> None:
        """Give each table its dense gradient, for the optimiser."""
        for number, table in enumerate(self.tables):
            found = table.weight.grad
            if found is None or not found.is_sparse:
                continue
            whole = self.whole[number]
            if whole is None:
                whole = self.whole[number] = torch.zeros_like(table.weight, requires_grad=False)
            self.rows[number] = rows = found.indices()[0]
            whole[rows] = found.values()
            table.weight.grad = whole

    def clear(self) -> None:
        """Take the gradients away again."""
        for number, table in enumerate(self.tables):
            whole, rows = self.whole[number], self.rows[number]
            if whole is not None and rows is not None:
                whole[rows] = 0.0
            self.rows[number] = None
            table.weight.grad = None

    def close(self) -> None:
        """Leave the model as it was."""
        for table in self.tables:
            table.sparse = False


def values(gradient: Tensor) -> Tensor:
    """Its numbers that may not be zero; of a dense one, all."""
    return gradient.values() if gradient.is_sparse else gradient
