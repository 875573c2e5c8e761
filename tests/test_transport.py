"""Transport of layers: plans and weight updates worked out by hand, and what the stage relies on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from kdlab.errors import ModelError
from kdlab.objectives import layers
from kdlab.objectives.layers import (
    hidden_distance,
    layer_terms,
    relation,
    relation_cross_entropy,
    relation_distance,
    split_heads,
)
from kdlab.objectives.transport import LayerWeights, Transported, transport_plan, transport_terms

DISTANCE = np.array([[1.0, 3.0], [2.0, 1.0]])
HALVES, QUARTERS = np.array([0.5, 0.5]), np.array([0.25, 0.75])
# Student weights 1/2, 1/2; teacher weights 1/4, 3/4. With x = F_11 the flow is [[x, 1/2 - x], [1/4 - x, 1/4 + x]] and
# costs x + 3 (1/2 - x) + 2 (1/4 - x) + 1/4 + x = 9/4 - 3x, least at x = 1/4.
PLAN = np.array([[0.25, 0.25], [0.0, 0.5]])


def loaded(student: np.ndarray, teacher: np.ndarray, *, separate: bool = True) -> LayerWeights:
    """Weights of "hidden" that are not equal."""
    weights = LayerWeights(["hidden"], len(student), len(teacher), separate=separate)
    weights.load_state_dict({"hidden.student": torch.tensor(student), "hidden.teacher": torch.tensor(teacher)})
    return weights


class TestPlan:
    def test_by_hand(self) -> None:
        np.testing.assert_allclose(transport_plan(DISTANCE, HALVES, QUARTERS), PLAN, atol=1e-15)

    def test_one_student_layer_learns_from_all(self) -> None:
        weights = np.array([0.2, 0.3, 0.5])
        plan = transport_plan(np.array([[5.0, 1.0, 0.0]]), np.ones(1), weights)
        np.testing.assert_allclose(plan, weights[None])

    @pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
    def test_it_is_as_cheap_as_a_linear_program_finds(self, scale: float) -> None:
        rng = np.random.default_rng(0)
        for students, teachers in ((1, 1), (2, 5), (6, 12), (12, 6), (3, 24)):
            distance = rng.random((students, teachers))
            ours, theirs = rng.random(students), rng.random(teachers)
            ours, theirs = ours / ours.sum(), theirs / theirs.sum()
            plan = transport_plan(distance * scale, ours, theirs)
            rows = np.kron(np.eye(students), np.ones(teachers))
            columns = np.kron(np.ones(students), np.eye(teachers))
            best = linprog(distance.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([ours, theirs]))
            assert (plan * distance).sum() == pytest.approx(best.fun, abs=1e-8)
            np.testing.assert_allclose(plan.sum(1), ours, atol=1e-12)
            np.testing.assert_allclose(plan.sum(0), theirs, atol=1e-12)
            assert (plan > 0).sum() <= students + teachers - 1

    def test_nothing_left_over_by_rounding_counts(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(50):
            plan = transport_plan(rng.random((6, 12)), np.full(6, 1 / 6), np.full(12, 1 / 12))
            assert plan[plan > 0].min() > 1e-3

    def test_weights_may_sum_to_1_to_rounding_only(self) -> None:
        plan = transport_plan(DISTANCE, HALVES * (1 + 1e-9), QUARTERS)
        np.testing.assert_allclose(plan, PLAN, atol=1e-8)

    @pytest.mark.parametrize("cost", [0.0, 1.0])
    def test_where_all_plans_cost_the_same_it_is_one_of_them(self, cost: float) -> None:
        plan = transport_plan(np.full((2, 2), cost), HALVES, QUARTERS)
        np.testing.assert_allclose(plan.sum(1), HALVES)
        np.testing.assert_allclose(plan.sum(0), QUARTERS)
        assert np.array_equal(plan, transport_plan(np.full((2, 2), cost), HALVES, QUARTERS))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_distances_that_are_not_finite_reach_every_pair(self, bad: float) -> None:
        distance = DISTANCE.copy()
        distance[1, 0] = bad
        np.testing.assert_allclose(transport_plan(distance, HALVES, QUARTERS), [[0.125, 0.375], [0.125, 0.375]])


class TestLayerWeights:
    def test_equal_at_first(self) -> None:
        weights = LayerWeights(["attention", "hidden"], 2, 4, separate=True)
        for name in ("attention", "hidden"):
            student, teacher = weights.weights(name)
            assert student.tolist() == [0.5, 0.5] and teacher.tolist() == [0.25] * 4
            assert student.dtype == teacher.dtype == np.float64

    def test_update_by_hand(self) -> None:
        # Student: costs (1/4 + 3/4) / (1/2) = 2 and (1/2) / (1/2) = 1, inverses 1/2 : 1.
        # Teacher: costs (1/4) / (1/4) = 1 and (3/4 + 1/2) / (3/4) = 5/3, inverses 1 : 3/5.
        weights = loaded(HALVES, QUARTERS)
        weights.update({"hidden": PLAN}, {"hidden": DISTANCE})
        student, teacher = weights.weights("hidden")
        np.testing.assert_allclose(student, [1 / 3, 2 / 3])
        np.testing.assert_allclose(teacher, [5 / 8, 3 / 8])

    def test_the_scale_of_distances_does_not_matter(self) -> None:
        for scale in (1e-200, 1e200):
            weights = loaded(HALVES, QUARTERS)
            weights.update({"hidden": PLAN}, {"hidden": DISTANCE * scale})
            np.testing.assert_allclose(weights.weights("hidden")[0], [1 / 3, 2 / 3])

    def test_separate_relations_keep_their_own(self) -> None:
        weights = LayerWeights(["attention", "hidden"], 2, 2, separate=True)
        # costs 1 and 3: weights 3/4 and 1/4
        weights.update({"hidden": np.diag(HALVES)}, {"hidden": np.diag([1.0, 3.0])})
        assert weights.weights("attention")[0].tolist() == [0.5, 0.5]
        for side in weights.weights("hidden"):
            np.testing.assert_allclose(side, [0.75, 0.25])

    def test_else_all_relations_share_their_mean(self) -> None:
        weights = LayerWeights(["attention", "hidden"], 2, 2, separate=False)
        # costs 1 and 3, and 4 and 1: the mean of (3/4, 1/4) and (1/5, 4/5)
        flows = {"attention": np.diag(HALVES), "hidden": np.diag(HALVES)}
        weights.update(flows, {"attention": np.diag([1.0, 3.0]), "hidden": np.diag([4.0, 1.0])})
        for name in flows:
            for side in weights.weights(name):
                np.testing.assert_allclose(side, [0.475, 0.525])

    def test_the_mean_includes_a_relation_without_a_flow(self) -> None:
        weights = LayerWeights(["attention", "hidden"], 2, 2, separate=False)
        weights.update({"hidden": np.diag(HALVES)}, {"hidden": np.diag([1.0, 3.0])})
        for name in ("attention", "hidden"):
            np.testing.assert_allclose(weights.weights(name)[0], [0.625, 0.375])

    def test_a_layer_without_cost_leaves_some_weight_to_the_others(self) -> None:
        weights = LayerWeights(["hidden"], 2, 2, separate=True)
        weights.update({"hidden": np.diag(HALVES)}, {"hidden": np.diag([0.0, 2.0])})
        for side in weights.weights("hidden"):
            np.testing.assert_allclose(side, [1.0, 1e-8], rtol=1e-7)
            assert side.sum() == pytest.approx(1.0, abs=1e-15)
        plan = transport_plan(np.array([[0.0, 5.0], [5.0, 2.0]]), *weights.weights("hidden"))
        np.testing.assert_allclose(plan, np.diag([1.0, 1e-8]), rtol=1e-7)
        weights.update({"hidden": plan}, {"hidden": np.array([[2.0, 0.0], [0.0, 1.0]])})
        np.testing.assert_allclose(weights.weights("hidden")[0], [1 / 3, 2 / 3])

    def test_where_no_layer_costs_anything_weights_become_equal(self) -> None:
        weights = loaded(HALVES, QUARTERS)
        weights.update({"hidden": PLAN}, {"hidden": np.zeros((2, 2))})
        assert [side.tolist() for side in weights.weights("hidden")] == [[0.5, 0.5], [0.5, 0.5]]

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_distances_that_are_not_finite_leave_weights_alone(self, bad: float) -> None:
        weights = loaded(HALVES, QUARTERS)
        weights.update({"hidden": PLAN}, {"hidden": np.array([[bad, 1.0], [1.0, 1.0]])})
        np.testing.assert_array_equal(weights.weights("hidden")[1], QUARTERS)

    def test_reset(self) -> None:
        weights = loaded(HALVES, QUARTERS)
        weights.reset()
        assert weights.weights("hidden")[1].tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("separate", [True, False])
    def test_a_state_continues_as_if_nothing_had_happened(self, separate: bool) -> None:
        rng = np.random.default_rng(0)
        steps = [{name: rng.random((2, 3)) for name in ("attention", "value")} for _ in range(4)]

        def go_on(weights: LayerWeights, steps: list[dict[str, np.ndarray]]) -> None:
            for distances in steps:
                flows = {name: transport_plan(d, *weights.weights(name)) for name, d in distances.items()}
                weights.update(flows, distances)

        whole, first, second = (LayerWeights(["attention", "value"], 2, 3, separate=separate) for _ in range(3))
        go_on(whole, steps)
        go_on(first, steps[:2])
        state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
        go_on(first, steps[2:])  # must not reach into the state
        second.load_state_dict(state)
        go_on(second, steps[2:])
        assert sorted(state) == ["attention.student", "attention.teacher", "value.student", "value.teacher"]
        assert all(tensor.dtype == torch.float64 for tensor in state.values())
        for name in ("attention", "value"):
            for found, expected in zip(second.weights(name), whole.weights(name), strict=True):
                np.testing.assert_array_equal(found, expected)
        assert not np.allclose(whole.weights("value")[0], 0.5)


def views(seed: int, layers: int, *, heads: int = 2, size: int = 3, batch: int = 4, length: int = 5) -> SimpleNamespace:
    """Random views of all layers, float64; width 6."""
    generator = torch.Generator().manual_seed(seed)

    def each(*shape: int, first: int = 1) -> dict[int, Tensor]:
        return {
            layer: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
            for layer in range(first, layers + 1)
        }

    return SimpleNamespace(
        hidden=each(batch, length, 6, first=0),
        attention=each(batch, heads, length, length),
        query=each(batch, heads, length, size),
        key=each(batch, heads, length, size),
        value=each(batch, heads, length, size),
    )


def map_views(of: SimpleNamespace, change: Any) -> SimpleNamespace:
    """The views, each tensor changed: change(name, tensor); without gradient."""
    return SimpleNamespace(
        **{name: {k: change(name, x.detach()) for k, x in layers.items()} for name, layers in vars(of).items()}
    )


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
NAMES = ["attention", "hidden", "query", "key", "value"]


def moved(
    student: SimpleNamespace, teacher: SimpleNamespace, weights: LayerWeights, relations: list[str], **knobs: Any
) -> Transported:
    values = {"mask": MASK, "pad_rows": "exclude", "relation_divergence": "mse", "reduce": lambda sums: sums} | knobs
    return transport_terms(student, teacher, relations=relations, weights=weights, **values)


class TestTerms:
    def test_by_hand(self) -> None:
        # Two examples of one token and one feature; student layers 0, 0 and 3, 3, teacher layers 1, 3 and 3, 2.
        # D = [[(1 + 9) / 2, (9 + 4) / 2], [(4 + 0) / 2, (0 + 1) / 2]]; straight costs (5 + 0.5) / 2, crossed
        # (6.5 + 2) / 2. So example 0 pays (1 + 0) / 2, example 1 (9 + 1) / 2.
        def states(*layers: list[float]) -> SimpleNamespace:
            return SimpleNamespace(hidden={k: torch.tensor(x).view(2, 1, 1) for k, x in enumerate(layers)})

        student = states([9.0, 9.0], [0.0, 0.0], [3.0, 3.0])
        teacher = states([7.0, 7.0], [1.0, 3.0], [3.0, 2.0])
        weights = LayerWeights(["hidden"], 2, 2, separate=True)
        found = moved(student, teacher, weights, ["hidden"], mask=None)
        np.testing.assert_allclose(found.distances["hidden"], [[5.0, 6.5], [2.0, 0.5]])
        np.testing.assert_allclose(found.flows["hidden"], [[0.5, 0.0], [0.0, 0.5]])
        torch.testing.assert_close(found.terms["hidden"], torch.tensor([0.5, 5.0]))

    @pytest.mark.parametrize("divergence", ["kl", "mse", "l1"])
    @pytest.mark.parametrize("pad_rows", ["exclude", "include"])
    def test_value_and_gradient_are_those_of_the_pairs_with_the_flow_as_weight(
        self, divergence: str, pad_rows: str
    ) -> None:
        student, teacher = views(0, 2), views(1, 3)
        hidden = "l1" if divergence == "l1" else "mse"
        knobs = {"pad_rows": pad_rows, "relation_divergence": divergence, "hidden_divergence": hidden}
        found = moved(student, teacher, LayerWeights(NAMES, 2, 3, separate=True), NAMES, **knobs)
        assert list(found.terms) == list(found.flows) == list(found.distances) == NAMES

        def one(name: str, i: int, j: int) -> Tensor:
            x, y = getattr(student, name)[i], getattr(teacher, name)[j]
            if name == "hidden":
                return hidden_distance(x, y, MASK, power=hidden, pad_rows=pad_rows)
            if name != "attention":
                x, y = relation(x, x), relation(y, y)
            if divergence == "kl":
                return relation_cross_entropy(x, y, MASK, pad_rows=pad_rows)
            return relation_distance(x, y, MASK, power=divergence, pad_rows=pad_rows)

        for name in NAMES:
            flow, leaves = found.flows[name], list(getattr(student, name).values())
            pairs = [(i, j) for i in (1, 2) for j in (1, 2, 3)]
            expected = torch.stack([float(flow[i - 1, j - 1]) * one(name, i, j) for i, j in pairs]).sum(0)
            torch.testing.assert_close(found.terms[name], expected)
            for i, j in pairs:
                assert found.distances[name][i - 1, j - 1] == pytest.approx(float(one(name, i, j).detach().mean()))
            wanted = torch.autograd.grad(expected.sum(), leaves, allow_unused=True)
            gradients = torch.autograd.grad(found.terms[name].sum(), leaves, allow_unused=True)
            for got, want in zip(gradients, wanted, strict=True):
                assert (got is None) == (want is None)  # only hidden state 0 has none
                if got is not None:
                    torch.testing.assert_close(got, want)

    def test_only_pairs_with_a_flow_keep_a_graph(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = []

        def spy(*tensors: Any, **knobs: Any) -> Tensor:
            kept.append(torch.is_grad_enabled())
            return hidden_distance(*tensors, **knobs)

        monkeypatch.setattr(layers, "hidden_distance", spy)
        weights = LayerWeights(["hidden"], 3, 4, separate=True)
        found = moved(views(0, 3), views(1, 4), weights, ["hidden"])
        assert kept.count(False) == 3 * 4
        assert kept.count(True) == (found.flows["hidden"] > 0).sum() <= 3 + 4 - 1

    @pytest.mark.parametrize("divergence", ["kl", "mse", "l1"])
    def test_padding_does_not_matter(self, divergence: str) -> None:
        student, teacher = views(0, 2), views(1, 3)

        def padded(value: float) -> Any:
            def pad(name: str, x: Tensor) -> Tensor:
                return torch.nn.functional.pad(x, (0, 2, 0, 2) if name == "attention" else (0, 0, 0, 2), value=value)

            return pad

        weights = LayerWeights(NAMES, 2, 3, separate=True)
        short = moved(student, teacher, weights, NAMES, relation_divergence=divergence)
        long = moved(
            map_views(student, padded(3.0)),
            map_views(teacher, padded(-2.0)),
            weights,
            NAMES,
            relation_divergence=divergence,
            mask=torch.nn.functional.pad(MASK, (0, 2)),
        )
        for name in NAMES:
            torch.testing.assert_close(long.terms[name], short.terms[name])
            np.testing.assert_allclose(long.distances[name], short.distances[name], rtol=1e-9)

    def test_two_processes_agree_on_the_flow_of_the_whole_batch(self) -> None:
        student, teacher = views(0, 2), views(1, 3)
        whole = moved(student, teacher, LayerWeights(NAMES, 2, 3, separate=True), NAMES)
        sums: dict[int, list[Tensor]] = {0: [], 1: []}
        parts = (slice(0, 1), slice(1, 4))  # of unequal size
        rows = [[map_views(side, lambda _, x, at=at: x[at]) for side in (student, teacher)] for at in parts]

        def run(process: int, reduce: Any) -> Transported:
            weights = LayerWeights(NAMES, 2, 3, separate=True)
            return moved(*rows[process], weights, NAMES, mask=MASK[parts[process]], reduce=reduce)

        for process in (0, 1):

            def keep(values: Tensor, process: int = process) -> Tensor:
                sums[process].append(values)
                return values

            run(process, keep)
        assert [len(values) for values in sums.values()] == [5, 5] and sums[0][0].shape == (2 * 3 + 1,)
        for process, at in enumerate(parts):
            both = iter([a + b for a, b in zip(sums[0], sums[1], strict=True)])
            found = run(process, lambda values, both=both: next(both))
            for name in NAMES:
                np.testing.assert_allclose(found.distances[name], whole.distances[name], rtol=1e-9)
                np.testing.assert_allclose(found.flows[name], whole.flows[name], atol=1e-12)
                torch.testing.assert_close(found.terms[name], whole.terms[name][at])

    def test_one_student_layer(self) -> None:
        student, teacher = views(0, 1), views(1, 3)
        found = moved(student, teacher, LayerWeights(["value"], 1, 3, separate=True), ["value"])
        np.testing.assert_allclose(found.flows["value"], [[1 / 3, 1 / 3, 1 / 3]])
        mean = layer_terms(
            student,
            teacher,
            relations=["value"],
            pairs=[(1, 1), (1, 2), (1, 3)],
            mask=MASK,
            pad_rows="exclude",
            relation_divergence="mse",
        )
        torch.testing.assert_close(found.terms["value"], mean["value"] / 3)

    def test_unequal_weights_steer_the_flow(self) -> None:
        student, teacher = views(0, 2), views(1, 2)
        found = moved(student, teacher, loaded(np.array([0.9, 0.1]), np.array([0.3, 0.7])), ["hidden"])
        np.testing.assert_allclose(found.flows["hidden"].sum(1), [0.9, 0.1])
        np.testing.assert_allclose(found.flows["hidden"].sum(0), [0.3, 0.7])

    def test_weights_are_the_callers_to_update(self) -> None:
        student, teacher = views(0, 2), views(1, 3)
        weights = LayerWeights(["hidden"], 2, 3, separate=True)
        before = weights.state_dict()
        moved(student, teacher, weights, ["hidden"])
        assert all(torch.equal(before[name], tensor) for name, tensor in weights.state_dict().items())

    def test_relation_heads_let_head_counts_differ(self) -> None:
        student, teacher = views(0, 2, heads=2, size=3), views(1, 3, heads=4, size=6)
        weights = LayerWeights(["query"], 2, 3, separate=True)
        with pytest.raises(ModelError, match="relations differ"):
            moved(student, teacher, weights, ["query"])
        found = moved(student, teacher, weights, ["query"], relation_heads=3)
        x, y = split_heads(student.query[1], 3), split_heads(teacher.query[2], 3)
        expected = relation_distance(relation(x, x), relation(y, y), MASK, power="mse").mean()
        assert found.distances["query"][0, 1] == pytest.approx(float(expected.detach()))

    def test_rows_without_tokens_are_finite(self) -> None:
        student, teacher = views(0, 2), views(1, 3)
        mask = MASK.clone()
        mask[1] = 0
        for divergence in ("kl", "mse"):
            found = moved(
                student,
                teacher,
                LayerWeights(NAMES, 2, 3, separate=True),
                NAMES,
                mask=mask,
                relation_divergence=divergence,
            )
            for name, term in found.terms.items():
                leaves = [x for layer, x in getattr(student, name).items() if layer]
                assert term[1] == 0 and term.isfinite().all()
                assert all(x.isfinite().all() for x in torch.autograd.grad(term.sum(), leaves))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        student, teacher = (map_views(views(seed, 2), lambda _, x: x.to(dtype)) for seed in (0, 1))
        weights = LayerWeights(["attention", "hidden"], 2, 2, separate=True)
        narrow = moved(student, teacher, weights, ["attention", "hidden"])
        wide = moved(
            *(map_views(side, lambda _, x: x.float()) for side in (student, teacher)), weights, ["attention", "hidden"]
        )
        for name, term in narrow.terms.items():
            assert term.dtype == torch.float32 and torch.equal(term, wide.terms[name])

    def test_a_state_that_is_not_finite_makes_the_loss_so(self) -> None:
        student, teacher = views(0, 2), views(1, 3)
        with torch.no_grad():
            student.hidden[1][0, 0, 0] = torch.nan
        weights = LayerWeights(["hidden"], 2, 3, separate=True)
        found = moved(student, teacher, weights, ["hidden"])
        assert found.terms["hidden"][0].isnan() and found.terms["hidden"][1:].isfinite().all()
        weights.update(found.flows, found.distances)
        np.testing.assert_allclose(weights.weights("hidden")[0], 0.5)

    @pytest.mark.parametrize("name", ["embedding", "patient"])
    def test_what_is_no_relation_of_layers_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"no transport of '{name}'"):
            moved(views(0, 2), views(1, 3), LayerWeights([name], 2, 3, separate=True), [name])
