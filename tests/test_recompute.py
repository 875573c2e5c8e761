"""kdlab.engine.recompute: layers computed again for the gradients give the same numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toy
import writers
from kdlab.engine.device import autocast
from kdlab.engine.loop import fit
from kdlab.engine.recompute import recomputed
from kdlab.models.generator import Student
from kdlab.objectives.completion import token_loss

CPU = torch.device("cpu")
DROPOUTS = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "llama": ("attention_dropout",),
    "t5": ("dropout_rate",),
    "bart": ("dropout", "attention_dropout", "activation_dropout"),
}


def held(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What a forward pass gives, and the bytes of tensors that it keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return call(), sum(kept.values())


def gradients(model: nn.Module, call: Callable[[], Tensor], *, wanted: bool) -> tuple[Tensor, list[Tensor], int]:
    model.zero_grad()
    torch.manual_seed(3)
    with recomputed(model, wanted=wanted):
        loss, memory = held(call)
        torch.autograd.backward(loss)
    after = torch.rand(1)  # the random numbers that come next are the same, too
    return torch.cat([loss.detach()[None], after]), [p.grad for p in model.parameters() if p.grad is not None], memory


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", DROPOUTS)
def test_a_writer_has_the_same_loss_and_gradients(name: str, precision: str) -> None:
    student = Student(writers.writer(name, **dict.fromkeys(DROPOUTS[name], 0.2))).train()
    data = writers.sequences(encoder_decoder=name in ("t5", "bart"))
    batch = data.collate(np.arange(len(data.lengths)), pad_token_id=writers.PAD, width=int(data.lengths.max()))

    def call() -> Tensor:
        with autocast(CPU, precision):
            return token_loss(*student(batch)).mean()

    one, mine, much = gradients(student, call, wanted=False)
    two, theirs, less = gradients(student, call, wanted=True)
    assert torch.equal(one, two) and len(mine) == len(theirs) > 10
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert less < 0.7 * much, (less, much)


def test_nothing_of_it_stays_and_passes_without_gradients_run_once() -> None:
    model, calls = toy.encoder(layers=2, dropout=0.1).train(), []
    layer = model.get_submodule("model.bert.encoder.layer.0")
    layer.get_submodule("output.dense").register_forward_hook(lambda *_: calls.append(1))
    before = dict(vars(layer))
    batch = toy.rows(4).collate(np.arange(4), pad_token_id=0, width=9)
    with recomputed(model, wanted=True):
        model(batch).logits.sum().backward()
        assert len(calls) == 2
        with torch.no_grad():
            model(batch)
        model.eval()
        model(batch).logits.sum().backward()
        assert len(calls) == 4
    assert dict(vars(layer)).keys() == before.keys() and "forward" not in vars(layer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_has_the_same_weights(precision: str, tmp_path: Path) -> None:
    found = []
    for wanted in (False, True):
        context = toy.context(tmp_path / str(wanted))
        context = replace(context, hardware=replace(context.hardware, recompute=wanted))
        model = toy.encoder(dropout=0.2)
        fit(model, toy.label_step, toy.batches(), toy.plan(precision=precision), context)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], weight) for name, weight in toy.encoder().state_dict().items())
