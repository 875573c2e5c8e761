"""The moving average, checked by hand."""

from __future__ import annotations

import torch
from torch import nn

from kdlab.models.ema import MovingAverage


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("running", torch.tensor([10.0]))
        self.register_buffer("count", torch.tensor(1))


def test_two_updates_by_hand() -> None:
    model = Small()
    average = MovingAverage(model, 0.9)
    for value in (2.0, 4.0):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running.fill_(0.0)
            model.count.add_(5)
        average.update(model)
    # 1 -> .9 + .2 = 1.1 -> .99 + .4 = 1.39;  2 -> 1.8 + .2 = 2 -> 1.8 + .4 = 2.2;  10 -> 9 -> 8.1
    torch.testing.assert_close(average.module.weight.detach(), torch.tensor([1.39, 2.2]))
    torch.testing.assert_close(average.module.running, torch.tensor([8.1]))
    assert average.module.count.item() == 11
    assert model.weight.tolist() == [4.0, 4.0]


def test_the_copy_is_in_eval_mode_and_has_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9)).train()
    average = MovingAverage(model, 0.999)
    assert not average.module.training and model.training
    assert not any(weight.requires_grad for weight in average.module.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    average.update(model)
    assert not average.module(torch.ones(1, 2)).requires_grad


def test_state_goes_round() -> None:
    model = Small()
    average = MovingAverage(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(8.0)
    average.update(model)
    state = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())

    other = MovingAverage(Small(), 0.5)
    other.load_state_dict(state)
    other.update(model)
    average.update(model)
    assert torch.equal(other.module.weight, average.module.weight)
    assert average.module.weight.tolist() == [6.25, 6.5]
