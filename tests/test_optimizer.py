"""Parameter groups, BertAdam against an independent reference, schedules, and going on from a state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdlab.engine.optimizer import BertAdam, build_optimizer, parameter_groups, rate, set_rate


class OddRMSNorm(nn.Module):
    """A normalisation of a library's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.dense = nn.Linear(4, 4)
        self.odd = OddRMSNorm()
        self.relative_bias = nn.Embedding(3, 1)  # weights of an embedding, in spite of the name
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        position: Tensor = self.relative_bias(torch.arange(3)).sum()
        hidden: Tensor = self.head(self.odd.weight * torch.tanh(self.dense(self.norm(self.embedding(ids)))))
        return hidden * position


def model(seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Model()


def train(net: Model, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        ids = torch.randint(6, (5,), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(net(ids), ids.flip(0)).backward()
        set_rate(optimizer, 0.05 * rate("linear", step=step, steps=8, warmup=0.25))
        optimizer.step()


def names(net: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    known = {parameter: name for name, parameter in net.named_parameters()}
    return [known[parameter] for parameter in parameters]


class TestGroups:
    def test_biases_and_normalisations_do_not_decay(self) -> None:
        net = model()
        decayed, plain = parameter_groups(net, 0.01)
        assert decayed["weight_decay"] == 0.01 and plain["weight_decay"] == 0.0
        assert names(net, decayed["params"]) == ["embedding.weight", "dense.weight", "relative_bias.weight"]
        exempt = ["norm.weight", "norm.bias", "dense.bias", "odd.weight", "head.bias"]
        assert names(net, plain["params"]) == exempt

    def test_an_empty_group_is_left_out(self) -> None:
        (group,) = parameter_groups(nn.Linear(2, 2, bias=False), 0.1)
        assert group["weight_decay"] == 0.1
        (group,) = parameter_groups(nn.LayerNorm(2), 0.1)
        assert group["weight_decay"] == 0.0


def reference(parameter: Tensor, gradients: list[Tensor], rates: list[float], decay: float) -> Tensor:
    """BertAdam as it is described, on one parameter, in float64."""
    p, m, v = parameter.double(), torch.zeros_like(parameter).double(), torch.zeros_like(parameter).double()
    for gradient, lr in zip(gradients, rates, strict=True):
        g = gradient.double()
        norm = g.pow(2).sum().sqrt()
        g = g / (norm + 1e-6) if norm + 1e-6 > 1 else g
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (v.sqrt() + 1e-6) + decay * p)
    return p


class TestBertAdam:
    def test_first_step_by_hand(self) -> None:
        # gradient (0.6, -0.3), norm 0.67 < 1: m = (0.06, -0.03), v = 0.001 * (0.36, 0.09)
        # m / (sqrt(v) + 1e-6) = (0.06 / 0.018974666, -0.03 / 0.009487833) = (3.1621110, -3.1619444)
        # p = p - 0.1 * (that + 0.5 * p) = (2 - 0.3162111 - 0.1, 1 + 0.3161944 - 0.05)
        parameter = nn.Parameter(torch.tensor([2.0, 1.0]))
        parameter.grad = torch.tensor([0.6, -0.3])
        BertAdam([parameter], 0.1, weight_decay=0.5).step()
        expected = torch.tensor([1.5837889, 1.2661944])
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)

    def test_every_gradient_is_clipped_on_its_own(self) -> None:
        # norms 5 and 0.5: the first becomes (0.6, 0.8), the second stays
        large, small = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        large.grad, small.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
        optimizer = BertAdam([large, small], 0.1)
        optimizer.step()
        torch.testing.assert_close(optimizer.state[large]["exp_avg"], torch.tensor([0.06, 0.08]))
        torch.testing.assert_close(optimizer.state[small]["exp_avg"], torch.tensor([0.03, 0.04]))

    @pytest.mark.parametrize("decay", [0.0, 0.1])
    def test_against_the_reference(self, decay: float) -> None:
        generator = torch.Generator().manual_seed(0)
        starts = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
        gradients = [[torch.randn(x.shape, generator=generator) * 0.7 for _ in range(6)] for x in starts]
        rates = [0.02 * rate("linear", step=step, steps=6, warmup=0.3) for step in range(6)]
        parameters = [nn.Parameter(x.clone()) for x in starts]
        optimizer = BertAdam(parameters, 0.02, weight_decay=decay)
        for step in range(6):
            for parameter, own in zip(parameters, gradients, strict=True):
                parameter.grad = own[step].clone()
            set_rate(optimizer, rates[step])
            optimizer.step()
        for parameter, start, own in zip(parameters, starts, gradients, strict=True):
            expected = reference(start, own, rates, decay)
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=1e-6)

    def test_parameters_without_gradient_are_left_alone(self) -> None:
        used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        used.grad = torch.ones(2)
        optimizer = BertAdam([used, unused], 0.1)
        optimizer.step()
        assert torch.equal(unused, torch.ones(2)) and unused not in optimizer.state
        assert not torch.equal(used, torch.ones(2))

    def test_a_zero_gradient_is_no_division_by_zero(self) -> None:
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.zeros(2)
        BertAdam([parameter], 0.1, weight_decay=0.0).step()
        assert torch.equal(parameter, torch.ones(2))

    def test_closure(self) -> None:
        parameter = nn.Parameter(torch.ones(2))
        optimizer = BertAdam([parameter], 0.1)

        def closure() -> float:
            loss = parameter.square().sum()
            loss.backward()
            return float(loss.detach())

        assert optimizer.step(closure) == 2.0
        assert (parameter < 1).all()


class TestBuild:
    @pytest.mark.parametrize("name", ["adamw", "bert_adam"])
    def test_groups_and_rate(self, name: str) -> None:
        optimizer = build_optimizer(model(), name=name, lr=0.05, weight_decay=0.02, fused=False)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]
        assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
        set_rate(optimizer, 0.01)
        assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]

    def test_fused_equals_unfused(self) -> None:
        results = []
        for fused in (True, False):
            net = model()
            optimizer = build_optimizer(net, name="adamw", lr=0.05, weight_decay=0.01, fused=fused)
            assert all(bool(group["fused"]) is fused for group in optimizer.param_groups)
            train(net, optimizer, 6)
            results.append(net.state_dict())
        for key in results[0]:
            torch.testing.assert_close(results[0][key], results[1][key], rtol=0, atol=1e-6)
        assert not torch.equal(results[0]["dense.weight"], model().dense.weight)

    def test_fused_is_dropped_where_no_kernel_is(self) -> None:
        net = model().to("meta")
        optimizer = build_optimizer(net, name="adamw", lr=0.05, weight_decay=0.01, fused=True)
        assert not any(group["fused"] for group in optimizer.param_groups)

    @pytest.mark.parametrize(("name", "fused"), [("adamw", True), ("adamw", False), ("bert_adam", False)])
    def test_a_run_goes_on_from_its_state(self, name: str, fused: bool) -> None:
        def fresh(net: Model) -> torch.optim.Optimizer:
            return build_optimizer(net, name=name, lr=0.05, weight_decay=0.01, fused=fused)

        through = model()
        train(through, fresh(through), 6)

        first = model()
        stopped = fresh(first)
        train(first, stopped, 3)
        second = model(seed=1)
        second.load_state_dict(first.state_dict())
        resumed = fresh(second)
        resumed.load_state_dict(stopped.state_dict())
        train(second, resumed, 3, start=3)
        assert all(torch.equal(a, b) for a, b in zip(through.parameters(), second.parameters(), strict=True))

    def test_the_state_of_bert_adam_is_two_tensors(self) -> None:
        net = model()
        optimizer = build_optimizer(net, name="bert_adam", lr=0.05, weight_decay=0.01, fused=False)
        train(net, optimizer, 1)
        state = optimizer.state_dict()["state"]
        assert len(state) == 8
        for entry in state.values():
            assert list(entry) == ["exp_avg", "exp_avg_sq"]
            assert all(isinstance(value, Tensor) for value in entry.values())

    def test_unknown_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="bert_adam"):
            build_optimizer(model(), name="sgd", lr=0.1, weight_decay=0.0, fused=False)


class TestRate:
    def test_linear_by_hand(self) -> None:
        # steps at x = 0, .25, .5, .75; warm-up to .5, then (1 - x) / .5
        factors = [rate("linear", step=step, steps=4, warmup=0.5) for step in range(5)]
        assert factors == [0.0, 0.5, 1.0, 0.5, 0.0]

    def test_cosine_by_hand(self) -> None:
        # without warm-up: (1 + cos(pi x)) / 2 at x = 0, 1/3, 2/3, 1
        factors = [rate("cosine", step=step, steps=3, warmup=0.0) for step in range(4)]
        assert factors == pytest.approx([1.0, 0.75, 0.25, 0.0], abs=1e-12)

    def test_constant(self) -> None:
        factors = [rate("constant", step=step, steps=4, warmup=0.5) for step in range(5)]
        assert factors == [0.0, 0.5, 1.0, 1.0, 1.0]
        assert {rate("constant", step=step, steps=4, warmup=0.0) for step in range(5)} == {1.0}

    @pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
    @pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
    def test_it_stays_between_0_and_1_even_past_the_end(self, schedule: str, warmup: float) -> None:
        for step in range(25):
            factor = rate(schedule, step=step, steps=20, warmup=warmup)
            assert math.isfinite(factor) and 0 <= factor <= 1

    def test_unknown_schedule_is_refused(self) -> None:
        with pytest.raises(ValueError, match="schedule"):
            rate("step", step=1, steps=2, warmup=0.0)
