"""Fine-tune-CoT as its official code trains and evaluates decoders, with today's transformers.

Source: reasoning-teacher, src/custom/data_module.py and model.py. Rows are padded on the left to the longest of the
whole split; logits at all positions, eager attention, AdamW without clipping or schedule; `generate` for a batch at a
time, until its last row has ended. One thing is mended (F2): padding is masked in evaluation too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

BATCH = 8  # of training and evaluation
RATE = 3e-4


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask [rows, longest], padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class Trainer:
    """Optimiser steps on rows of prompt and target."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad: int
    ) -> None:
        self.model = model
        self.model.train()
        self.ids, self.mask = padded([[*one, *two] for one, two in zip(prompts, targets, strict=True)], pad)
        longest = self.ids.shape[1]
        asked = [[-100] * (longest - len(target)) + list(target) for target in targets]
        self.labels = torch.tensor(asked)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def step(self, rows: Sequence[int]) -> float:
        """rows: of a batch. Returns the loss."""
        which = torch.tensor(rows)
        mask = self.mask[which]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        loss: Tensor = self.model(
            input_ids=self.ids[which], attention_mask=mask, position_ids=positions, labels=self.labels[which]
        ).loss
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())


@torch.no_grad()
def write(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, pad: int, end: int, max_tokens: int, batch: int = BATCH
) -> list[list[int]]:
    """What the model writes greedily behind each prompt, its end-of-text included."""
    ids, mask = padded(prompts, pad)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_tokens, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=end
    )
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        some = slice(start, start + batch)
        written = model.generate(  # type: ignore[operator]
            input_ids=ids[some], attention_mask=mask[some], generation_config=settings
        )
        for row in written[:, ids.shape[1] :].tolist():
            found.append(row[: row.index(end) + 1] if end in row else row)
    return found
