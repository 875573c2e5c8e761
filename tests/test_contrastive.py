"""The contrastive loss against values worked out by hand, and the head whose vectors it compares."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdlab.models.projection import ProjectionHead
from kdlab.objectives.contrastive import supcon

E = math.e
FIRST, SECOND = [1.0, 0.0], [0.0, 1.0]  # of unit length, at right angles


def near(result: Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(result, torch.as_tensor(expected, dtype=result.dtype), rtol=tolerance, atol=tolerance)


def unit(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(drawn, dim=-1)


def test_one_view_by_hand() -> None:
    # anchors 0 and 1: similarity 1 with each other, 0 with the third: -ln(e / (e + 1)) = 0.3132617; the third has none
    features, labels = torch.tensor([[FIRST], [FIRST], [SECOND]]), torch.tensor([0, 0, 1])
    near(supcon(features, labels, temperature=1.0, positives="clamp"), [0.3132617, 0.3132617, 0.0])
    # one positive + 1e-4: 0.3132617 / 1.0001
    near(supcon(features, labels, temperature=1.0), [0.3132304, 0.3132304, 0.0])
    near(supcon(features, labels, temperature=1.0, epsilon=1.0), [0.1566308, 0.1566308, 0.0])


def test_temperature_divides_similarities_and_scales_the_loss() -> None:
    # similarity 1 / 0.5 = 2: -ln(e^2 / (e^2 + 1)) = 0.1269280, times 0.5 / 2
    features, labels = torch.tensor([[FIRST], [FIRST], [SECOND]]), torch.tensor([0, 0, 1])
    found = supcon(features, labels, temperature=0.5, base_temperature=2.0, positives="clamp")
    near(found, [0.0317320, 0.0317320, 0.0])


def test_two_views_by_hand() -> None:
    # each anchor sees its other view (1) and two vectors at right angles (0): -ln(e / (e + 2)) = 0.5514447
    features = torch.tensor([[FIRST, FIRST], [SECOND, SECOND]])
    near(supcon(features, torch.tensor([3, 5]), temperature=1.0, positives="clamp"), [0.5514447, 0.5514447])
    # all three others are positives: ln(e + 2) - (1 + 0 + 0) / 3 = 1.5514447 - 0.3333333
    near(supcon(features, torch.tensor([4, 4]), temperature=1.0, positives="clamp"), [1.2181114, 1.2181114])
    near(supcon(features, torch.tensor([4, 4]), temperature=1.0), [1.2181114 * 3 / 3.0001] * 2)


def test_an_example_gets_the_mean_of_its_views() -> None:
    features, labels = torch.tensor([[FIRST, SECOND], [FIRST, FIRST]]), torch.tensor([0, 0])
    # an anchor e1 sees e1, e1 and e2, all positives: ln(2e + 1) - (1 + 1 + 0) / 3; e2 sees three at right angles: ln 3
    first = math.log(2 * E + 1) - 2 / 3
    expected = [(first + math.log(3)) / 2, first]
    near(supcon(features, labels, temperature=1.0, positives="clamp"), expected)


def test_gradient_by_hand() -> None:
    # one anchor (1, 0) with its positive p = (1, 0) and one other n = (0, 1), which are no anchors; temperature 1:
    # d/dz -ln softmax = -p + softmax(1, 0) . (p, n) = (-1 + 0.7310586, 0.2689414)
    anchor = torch.tensor([[FIRST]], requires_grad=True)
    others = (torch.tensor([[FIRST], [SECOND]]), torch.tensor([0, 1]))
    supcon(anchor, torch.tensor([0]), temperature=1.0, positives="clamp", others=others).sum().backward()
    assert anchor.grad is not None
    near(anchor.grad, [[[-0.2689414, 0.2689414]]])


@pytest.mark.parametrize("positives", ["epsilon", "clamp"])
def test_gradients_are_those_of_finite_differences(positives: str) -> None:
    features, further = unit(3, 2, 4).requires_grad_(), unit(2, 2, 4, seed=1).requires_grad_()
    labels, theirs = torch.tensor([0, 1, 0]), torch.tensor([1, 2])

    def loss(ours: Tensor, others: Tensor) -> Tensor:
        return supcon(ours, labels, temperature=0.3, positives=positives, others=(others, theirs))

    assert torch.autograd.gradcheck(loss, (features, further))


def test_others_are_candidates_and_no_anchors() -> None:
    features, labels = unit(5, 2, 6), torch.tensor([0, 1, 0, 1, 1])
    whole = supcon(features, labels, temperature=0.3)
    parts = []
    for own, rest in (([0, 1, 2], [3, 4]), ([3, 4], [0, 1, 2])):
        parts.append(supcon(features[own], labels[own], temperature=0.3, others=(features[rest], labels[rest])))
    near(torch.cat(parts), whole, 1e-12)
    nobody = (features[:0], labels[:0])
    near(supcon(features, labels, temperature=0.3, others=nobody), whole, 1e-12)


def test_the_order_of_rows_and_of_views_does_not_matter() -> None:
    features, labels = unit(5, 2, 6), torch.tensor([0, 1, 0, 1, 2])
    whole = supcon(features, labels, temperature=0.3)
    near(supcon(features.flip(0), labels.flip(0), temperature=0.3).flip(0), whole, 1e-12)
    near(supcon(features.flip(1), labels, temperature=0.3), whole, 1e-12)


def test_it_is_stable() -> None:
    """Without its maximum taken off, exp(1 / 0.001) is infinite; with that of itself taken off, the rest is ln 0."""
    features = (30 * unit(4, 2, 8)).float().requires_grad_()
    loss = supcon(features, torch.tensor([0, 0, 1, 1]), temperature=0.001)
    loss.sum().backward()
    assert loss.isfinite().all() and features.grad is not None and features.grad.isfinite().all()
    double = supcon(features.detach().double(), torch.tensor([0, 0, 1, 1]), temperature=0.001)
    torch.testing.assert_close(loss.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_anchors_without_positives_cost_nothing(rows: int, epsilon: float) -> None:
    features = unit(rows, 1, 4).requires_grad_()
    loss = supcon(features, torch.arange(rows), temperature=0.3, epsilon=epsilon)
    loss.sum().backward()
    assert loss.tolist() == [0.0] * rows and features.grad is not None and not features.grad.any()


def test_half_precision_is_promoted() -> None:
    features, labels = unit(4, 2, 8).bfloat16(), torch.tensor([0, 1, 0, 1])
    found = supcon(features, labels, temperature=0.3)
    assert found.dtype == torch.float32
    assert torch.equal(found, supcon(features.float(), labels, temperature=0.3))
    assert supcon(features.double(), labels, temperature=0.3).dtype == torch.float64


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="'epsilon' or 'clamp'"):
        supcon(unit(2, 2, 3), torch.tensor([0, 1]), temperature=0.3, positives="mean")
    with pytest.raises(ValueError, match="examples, views, width"):
        supcon(unit(2, 3), torch.tensor([0, 1]), temperature=0.3)


# the head ---------------------------------------------------------------------------------------------------------


def test_the_head_is_linear_relu_linear_of_unit_length() -> None:
    head = ProjectionHead(6, 4, "mlp", 3)
    states = unit(5, 6).float()
    first, second = (layer for layer in head.layers if isinstance(layer, nn.Linear))
    assert first.weight.shape == (6, 6) and second.weight.shape == (4, 6)
    inner = (states @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    near(head(states).detach(), (inner / inner.norm(dim=-1, keepdim=True)).detach())

    linear = ProjectionHead(6, 4, "linear", 3)
    assert [tuple(weight.shape) for weight in linear.parameters()] == [(4, 6), (4,)]
    (only,) = linear.layers
    near(linear(states).detach(), nn.functional.normalize(only(states), dim=-1).detach())
    with pytest.raises(ValueError, match="'mlp' or 'linear'"):
        ProjectionHead(6, 4, "tanh", 3)


def test_the_seed_makes_the_head_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = ProjectionHead(6, 4, "mlp", 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again, other = ProjectionHead(6, 4, "mlp", 3), ProjectionHead(6, 4, "mlp", 4)
    weights = [nn.utils.parameters_to_vector(head.parameters()) for head in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_vectors_are_fp32_under_autocast() -> None:
    head = ProjectionHead(6, 4, "mlp", 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(unit(5, 6).float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().norm(dim=-1).numpy(), 1.0, rtol=1e-6)
