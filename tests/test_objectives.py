"""The objectives against values worked out by hand, and the promises that the stages rely on."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdlab.errors import ConfigError, ModelError
from kdlab.objectives.layer_map import layer_pairs
from kdlab.objectives.layers import (
    consistency_terms,
    hidden_distance,
    layer_terms,
    patient_distance,
    relation,
    relation_cross_entropy,
    relation_distance,
    split_heads,
)
from kdlab.objectives.logits import (
    hard_label,
    mixed_label,
    mixed_soft,
    scaled_mse,
    soft_cross_entropy,
    soft_label,
)
from kdlab.objectives.mixup import folded_beta

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def near(result: Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(result, torch.as_tensor(expected, dtype=result.dtype), rtol=tolerance, atol=tolerance)


class TestLogits:
    def test_soft_cross_entropy_by_hand(self) -> None:
        # teacher (3/4, 1/4), student (4/5, 1/5): -(3/4 ln 4/5 + 1/4 ln 1/5) = 0.1673577 + 0.4023595
        # teacher (1/2, 1/2), student (1/2, 1/2): ln 2
        student = torch.tensor([[LN4, 0.0], [0.3, 0.3]])
        teacher = torch.tensor([[LN3, 0.0], [-1.0, -1.0]])
        near(soft_cross_entropy(student, teacher, temperature=1.0), [0.5697171, 0.6931472])

    def test_temperature_divides_both_logits_and_multiplies_by_its_square(self) -> None:
        # logits twice as large at temperature 2 are the distributions above: 2^2 * 0.5697171
        student, teacher = torch.tensor([[2 * LN4, 0.0]]), torch.tensor([[2 * LN3, 0.0]])
        near(soft_cross_entropy(student, teacher, temperature=2.0), [2.2788686])

    def test_soft_cross_entropy_gradient_by_hand(self) -> None:
        # d/ds = temperature * (softmax(s / t) - softmax(teacher / t)) = 2 * (0.8 - 0.75, 0.2 - 0.25)
        student = torch.tensor([[2 * LN4, 0.0]], requires_grad=True)
        soft_cross_entropy(student, torch.tensor([[2 * LN3, 0.0]]), temperature=2.0).sum().backward()
        assert student.grad is not None
        near(student.grad, [[0.1, -0.1]])

    def test_scaled_mse_by_hand(self) -> None:
        # (3/2 - 1/2)^2 = 1 and (0/2 - 5/2)^2 = 6.25; times 2^2: 4 and 25
        student, teacher = torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [5.0]])
        near(scaled_mse(student, teacher, temperature=2.0), [1.0, 6.25])
        near(scaled_mse(student, teacher, temperature=2.0, scale="tau2"), [4.0, 25.0])

    def test_hard_label_by_hand(self) -> None:
        # softmax (3/4, 1/4): label 0 costs ln 4/3 = 0.2876821, label 1 costs ln 4 = 1.3862944
        student = torch.tensor([[LN3, 0.0], [LN3, 0.0]])
        near(hard_label(student, torch.tensor([0, 1]), kind="classification"), [0.2876821, 1.3862944])
        # (2.5 - 1)^2 = 2.25 and (-1 - 1)^2 = 4
        outputs, targets = torch.tensor([[2.5], [-1.0]]), torch.tensor([1.0, 1.0], dtype=torch.float64)
        near(hard_label(outputs, targets, kind="regression"), [2.25, 4.0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        student, teacher = noise(4, 3, dtype=dtype), noise(4, 3, seed=1, dtype=dtype)
        labels = torch.tensor([0, 1, 2, 1])
        wide = student.float(), teacher.float()
        soft = soft_cross_entropy(student, teacher, temperature=3.0)
        near(soft, soft_cross_entropy(*wide, temperature=3.0))
        hard = hard_label(student, labels, kind="classification")
        near(hard, hard_label(wide[0], labels, kind="classification"))
        narrow = scaled_mse(student[:, :1], teacher[:, :1], temperature=3.0)
        assert narrow.dtype == torch.float32
        near(narrow, scaled_mse(wide[0][:, :1], wide[1][:, :1], temperature=3.0))

    def test_gradients(self) -> None:
        student = noise(3, 4, dtype=torch.float64).requires_grad_()
        teacher = noise(3, 4, seed=1, dtype=torch.float64)
        labels = torch.tensor([0, 3, 1])
        assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, teacher, temperature=2.0), student)
        assert torch.autograd.gradcheck(lambda s: hard_label(s, labels, kind="classification"), student)
        output = noise(3, 1, dtype=torch.float64).requires_grad_()
        target = noise(3, 1, seed=1, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda s: scaled_mse(s, target, temperature=2.0), output)

    def test_extreme_logits_stay_finite(self) -> None:
        student = torch.tensor([[1e4, -1e4]], requires_grad=True)
        loss = soft_cross_entropy(student, torch.tensor([[-1e4, 1e4]]), temperature=1.0)
        loss.sum().backward()
        near(loss, [2e4])
        assert student.grad is not None and student.grad.isfinite().all()

    def test_the_soft_label_is_of_the_kind(self) -> None:
        student, teacher = torch.tensor([[2 * LN4, 0.0]]), torch.tensor([[2 * LN3, 0.0]])
        near(soft_label(student, teacher, kind="classification", temperature=2.0), [2.2788686])
        student, teacher = torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [5.0]])
        near(soft_label(student, teacher, kind="regression", temperature=2.0), [1.0, 6.25])
        near(soft_label(student, teacher, kind="regression", temperature=2.0, scale="tau2"), [4.0, 25.0])

    def test_mixed_label_by_hand(self) -> None:
        # softmax (3/4, 1/4): its own label 0 costs 0.2876821, its partner's label 1 costs 1.3862944;
        # the second row is uniform and pays ln 2 for either
        student = torch.tensor([[LN3, 0.0], [0.3, 0.3]])
        near(
            mixed_label(student, torch.tensor([0, 1]), lam=0.6, kind="classification"),
            [0.6 * 0.2876821 + 0.4 * 1.3862944, LN2],
        )
        # own targets: (2 - 1)^2 = 1, (0 - 3)^2 = 9; partners': (2 - 3)^2 = 1, (0 - 1)^2 = 1
        outputs, targets = torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, 3.0])
        near(mixed_label(outputs, targets, lam=0.75, kind="regression"), [1.0, 7.0])

    def test_mixed_soft_by_hand(self) -> None:
        # student (4/5, 1/5); own teacher (3/4, 1/4): 0.5697171; the partner's (1/4, 3/4):
        # -(1/4 ln 4/5 + 3/4 ln 1/5) = 1.2628643; the second row's student is uniform
        student, teacher = torch.tensor([[LN4, 0.0], [0.3, 0.3]]), torch.tensor([[LN3, 0.0], [0.0, LN3]])
        near(
            mixed_soft(student, teacher, lam=0.6, kind="classification", temperature=1.0),
            [0.6 * 0.5697171 + 0.4 * 1.2628643, LN2],
        )
        # own: (3 - 1)^2 = 4, (0 - 5)^2 = 25; partners': (3 - 5)^2 = 4, (0 - 1)^2 = 1; all over 2^2
        student, teacher = torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [5.0]])
        near(mixed_soft(student, teacher, lam=0.75, kind="regression", temperature=2.0), [1.0, 4.75])
        near(mixed_soft(student, teacher, lam=0.75, kind="regression", temperature=2.0, scale="tau2"), [4.0, 19.0])

    def test_the_soft_labels_of_a_mix_are_those_of_the_mixed_distribution(self) -> None:
        # cross entropy is linear in its target
        student, teacher = noise(4, 3, dtype=torch.float64).requires_grad_(), noise(4, 3, seed=1, dtype=torch.float64)
        loss = mixed_soft(student, teacher, lam=0.7, kind="classification", temperature=2.0)
        shares = (teacher / 2).softmax(-1)
        target = (0.7 * shares + 0.3 * shares.flip(0)).log() * 2
        near(loss, soft_cross_entropy(student, target, temperature=2.0).detach(), 1e-12)
        assert torch.autograd.gradcheck(
            lambda s: mixed_soft(s, teacher, lam=0.7, kind="classification", temperature=2.0), student
        )

    def test_unknown_words_are_refused(self) -> None:
        x = torch.zeros(1, 1)
        with pytest.raises(ValueError, match="tau2"):
            scaled_mse(x, x, temperature=1.0, scale="tau")
        with pytest.raises(ValueError, match="regression"):
            hard_label(x, x, kind="ranking")
        with pytest.raises(ValueError, match="regression"):
            soft_label(x, x, kind="ranking", temperature=1.0)


def test_relation_by_hand() -> None:
    # d = 4, so each dot product is halved: x0.y0 = 1+2+3+4 = 10, x0.y1 = 4, x1.y0 = 1, x1.y1 = 0
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 0.0]]]])
    y = torch.tensor([[[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]]])
    near(relation(x, y), [[[[5.0, 2.0], [0.5, 0.0]]]])


class TestSplitHeads:
    # two heads, two rows of size 2: the whole vectors are (1, 2, 3, 4) and (5, 6, 7, 8)
    X = torch.tensor([[[[1.0, 2.0], [5.0, 6.0]], [[3.0, 4.0], [7.0, 8.0]]]])

    def test_by_hand(self) -> None:
        near(split_heads(self.X, 1), [[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]]])
        near(split_heads(self.X, 2), self.X)
        near(split_heads(self.X, 4), [[[[1.0], [5.0]], [[2.0], [6.0]], [[3.0], [7.0]], [[4.0], [8.0]]]])

    def test_relations_of_different_heads_and_widths_become_alike(self) -> None:
        student, teacher = noise(2, 3, 5, 4), noise(2, 8, 5, 6, seed=1)  # widths 12 and 48
        for heads in (1, 2, 4, 12):
            split = [split_heads(x, heads) for x in (student, teacher)]
            assert {relation(x, x).shape for x in split} == {(2, heads, 5, 5)}

    def test_a_number_that_does_not_divide_the_width_is_refused(self) -> None:
        with pytest.raises(ModelError, match="a width of 4 can't be split into 3 relation heads") as refusal:
            split_heads(self.X, 3)
        assert "relation_heads" in str(refusal.value.fix)


class TestRelationCrossEntropy:
    # One head, two keys. Row 0: teacher (3/4, 1/4), student (4/5, 1/5): 0.5697171. Row 1: both uniform: ln 2.
    STUDENT = torch.tensor([[[[LN4, 0.0], [1.0, 1.0]]]])
    TEACHER = torch.tensor([[[[LN3, 0.0], [2.0, 2.0]]]])

    @pytest.mark.parametrize("pad_rows", ["exclude", "include"])
    def test_by_hand_without_mask(self, pad_rows: str) -> None:
        expected = [(0.5697171 + LN2) / 2]
        near(relation_cross_entropy(self.STUDENT, self.TEACHER, None, pad_rows=pad_rows), expected)
        ones = torch.ones(1, 2, dtype=torch.long)
        near(relation_cross_entropy(self.STUDENT, self.TEACHER, ones, pad_rows=pad_rows), expected)

    def test_by_hand_with_padding(self) -> None:
        # A third position is padding: as key it gets no weight on either side, so rows 0 and 1 stay as they
        # are. As a query row it is left out ("exclude"), or averaged in ("include"): its own row is
        # teacher (1/2, 1/2), student (4/5, 1/5): -(ln 4/5 + ln 1/5) / 2 = 0.9162907.
        student = torch.full((1, 1, 3, 3), 7.0)
        teacher = torch.full((1, 1, 3, 3), -3.0)
        student[..., :2, :2], teacher[..., :2, :2] = self.STUDENT, self.TEACHER
        student[0, 0, 2, :2] = torch.tensor([LN4, 0.0])
        mask = torch.tensor([[1, 1, 0]])
        exclude = relation_cross_entropy(student, teacher, mask, pad_rows="exclude")
        include = relation_cross_entropy(student, teacher, mask, pad_rows="include")
        near(exclude, [(0.5697171 + LN2) / 2])
        near(include, [(0.5697171 + LN2 + 0.9162907) / 3])

    def test_heads_are_averaged(self) -> None:
        student = torch.cat([self.STUDENT, torch.zeros(1, 1, 2, 2)], dim=1)
        teacher = torch.cat([self.TEACHER, torch.zeros(1, 1, 2, 2)], dim=1)
        near(relation_cross_entropy(student, teacher, None), [(0.5697171 + LN2 + 2 * LN2) / 4])

    def test_masked_is_the_subset(self) -> None:
        student, teacher = noise(2, 3, 6, 6), noise(2, 3, 6, 6, seed=1)
        mask = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
        whole = relation_cross_entropy(student, teacher, mask)
        for b in range(2):
            keep = mask[b].nonzero().squeeze(1)
            part = [x[b : b + 1][:, :, keep][..., keep] for x in (student, teacher)]
            near(whole[b : b + 1], relation_cross_entropy(part[0], part[1], None))

    def test_padding_changes_only_the_include_form(self) -> None:
        student, teacher = noise(2, 2, 5, 5), noise(2, 2, 5, 5, seed=1)
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        long_student, long_teacher = (torch.nn.functional.pad(x, (0, 3, 0, 3), value=4.0) for x in (student, teacher))
        long_mask = torch.nn.functional.pad(mask, (0, 3))
        near(
            relation_cross_entropy(long_student, long_teacher, long_mask),
            relation_cross_entropy(student, teacher, mask),
        )
        short = relation_cross_entropy(student, teacher, mask, pad_rows="include")
        long = relation_cross_entropy(long_student, long_teacher, long_mask, pad_rows="include")
        assert not torch.allclose(long, short)

    def test_bool_and_integer_masks_agree(self) -> None:
        student, teacher = noise(2, 2, 4, 4), noise(2, 2, 4, 4, seed=1)
        mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
        expected = relation_cross_entropy(student, teacher, mask)
        assert torch.equal(relation_cross_entropy(student, teacher, mask.bool()), expected)

    @pytest.mark.parametrize("pad_rows", ["exclude", "include"])
    def test_an_empty_mask_has_a_finite_gradient(self, pad_rows: str) -> None:
        student = noise(2, 2, 4, 4).requires_grad_()
        mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0]])
        loss = relation_cross_entropy(student, noise(2, 2, 4, 4, seed=1), mask, pad_rows=pad_rows)
        loss.sum().backward()
        assert student.grad is not None and student.grad.isfinite().all() and loss.isfinite().all()
        if pad_rows == "exclude":
            assert loss[0] == 0 and not student.grad[0].any() and student.grad[1].any()

    @pytest.mark.parametrize("pad_rows", ["exclude", "include"])
    def test_gradients(self, pad_rows: str) -> None:
        student = noise(2, 2, 3, 3, dtype=torch.float64).requires_grad_()
        teacher = noise(2, 2, 3, 3, seed=1, dtype=torch.float64)
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        for m in (mask, None):

            def loss(s: Tensor, m: Tensor | None = m) -> Tensor:
                return relation_cross_entropy(s, teacher, m, pad_rows=pad_rows)

            assert loss(student).dtype == torch.float64
            assert torch.autograd.gradcheck(loss, student)

    @pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])])
    def test_half_precision_is_computed_in_float32(self, mask: Tensor | None) -> None:
        student, teacher = (noise(2, 2, 4, 4, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
        narrow = relation_cross_entropy(student, teacher, mask)
        assert narrow.dtype == torch.float32
        near(narrow, relation_cross_entropy(student.float(), teacher.float(), mask))

    def test_different_numbers_of_heads_are_refused(self) -> None:
        student, teacher = torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)
        with pytest.raises(ModelError, match=r"\[1, 1, 4, 4\] and \[1, 2, 4, 4\]") as refusal:
            relation_cross_entropy(student, teacher, None)
        assert "relation_heads" in str(refusal.value.fix)
        with pytest.raises(ModelError, match="relations differ"):
            relation_distance(student, teacher, None, power="mse")

    def test_unknown_pad_rows_is_refused(self) -> None:
        with pytest.raises(ValueError, match="pad_rows"):
            relation_cross_entropy(self.STUDENT, self.TEACHER, None, pad_rows="all")


class TestRelationDistance:
    # Differences 1, 2 and 3; then -100 counts as 0 and differs from 5 by 5, while -99 would stay.
    STUDENT = torch.tensor([[[[1.0, 2.0], [3.0, -100.0]]]])
    TEACHER = torch.tensor([[[[0.0, 0.0], [0.0, 5.0]]]])

    @pytest.mark.parametrize(("power", "total"), [("mse", 39.0), ("l1", 11.0)])
    def test_by_hand(self, power: str, total: float) -> None:
        near(relation_distance(self.STUDENT, self.TEACHER, None, power=power), [total / 4])
        ones = torch.ones(1, 2, dtype=torch.long)
        for pad_rows in ("exclude", "include"):
            near(relation_distance(self.STUDENT, self.TEACHER, ones, power=power, pad_rows=pad_rows), [total / 4])
        above = self.STUDENT.clone()
        above[0, 0, 1, 1] = -99.0
        extra = {"mse": 104.0**2 - 25.0, "l1": 104.0 - 5.0}[power]
        near(relation_distance(above, self.TEACHER, None, power=power), [(total + extra) / 4])

    @pytest.mark.parametrize(("power", "total", "padded"), [("mse", 39.0, 200.0), ("l1", 11.0, 20.0)])
    def test_by_hand_with_padding(self, power: str, total: float, padded: float) -> None:
        # A third position is padding: as key it counts 0 on both sides; its query row differs by 10 at two keys.
        student, teacher = torch.full((1, 1, 3, 3), 7.0), torch.full((1, 1, 3, 3), -3.0)
        student[..., :2, :2], teacher[..., :2, :2] = self.STUDENT, self.TEACHER
        mask = torch.tensor([[1, 1, 0]])
        near(relation_distance(student, teacher, mask, power=power), [total / 4])
        near(relation_distance(student, teacher, mask, power=power, pad_rows="include"), [(total + padded) / 9])

    def test_heads_are_averaged(self) -> None:
        student, teacher = (torch.cat([x, torch.zeros_like(x)], dim=1) for x in (self.STUDENT, self.TEACHER))
        near(relation_distance(student, teacher, None, power="mse"), [39 / 8])

    @pytest.mark.parametrize("power", ["mse", "l1"])
    def test_masked_is_the_subset_and_padding_does_not_matter(self, power: str) -> None:
        student, teacher = noise(2, 3, 6, 6), noise(2, 3, 6, 6, seed=1)
        mask = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
        whole = relation_distance(student, teacher, mask, power=power)
        for b in range(2):
            keep = mask[b].nonzero().squeeze(1)
            part = [x[b : b + 1][:, :, keep][..., keep] for x in (student, teacher)]
            near(whole[b : b + 1], relation_distance(part[0], part[1], None, power=power))
        long = [torch.nn.functional.pad(x, (0, 3, 0, 3), value=value) for x, value in ((student, 4.0), (teacher, -4.0))]
        long_mask = torch.nn.functional.pad(mask, (0, 3))
        near(relation_distance(long[0], long[1], long_mask, power=power), whole)
        assert torch.equal(relation_distance(student, teacher, mask.bool(), power=power), whole)

    @pytest.mark.parametrize("power", ["mse", "l1"])
    @pytest.mark.parametrize("pad_rows", ["exclude", "include"])
    def test_an_empty_mask_has_a_finite_gradient(self, power: str, pad_rows: str) -> None:
        student = noise(2, 2, 4, 4).requires_grad_()
        mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0]])
        loss = relation_distance(student, noise(2, 2, 4, 4, seed=1), mask, power=power, pad_rows=pad_rows)
        loss.sum().backward()
        assert student.grad is not None and student.grad.isfinite().all()
        assert loss[0] == 0 and not student.grad[0].any() and student.grad[1].any()

    @pytest.mark.parametrize("power", ["mse", "l1"])
    @pytest.mark.parametrize("pad_rows", ["exclude", "include"])
    def test_gradients(self, power: str, pad_rows: str) -> None:
        student = noise(2, 2, 3, 3, dtype=torch.float64).requires_grad_()
        teacher, mask = noise(2, 2, 3, 3, seed=1, dtype=torch.float64), torch.tensor([[1, 1, 0], [1, 1, 1]])
        assert torch.autograd.gradcheck(
            lambda s: relation_distance(s, teacher, mask, power=power, pad_rows=pad_rows), student
        )

    def test_a_score_that_counts_as_0_has_no_gradient(self) -> None:
        student = self.STUDENT.clone().requires_grad_()
        relation_distance(student, self.TEACHER, None, power="mse").sum().backward()
        assert student.grad is not None
        near(student.grad, [[[[0.5, 1.0], [1.5, 0.0]]]])  # 2 * difference / 4

    def test_half_precision_is_computed_in_float32(self) -> None:
        student, teacher = (noise(2, 2, 4, 4, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
        narrow = relation_distance(student, teacher, mask, power="mse")
        assert narrow.dtype == torch.float32
        near(narrow, relation_distance(student.float(), teacher.float(), mask, power="mse"))

    def test_unknown_words_are_refused(self) -> None:
        with pytest.raises(ValueError, match="power"):
            relation_distance(self.STUDENT, self.TEACHER, None, power="kl")
        with pytest.raises(ValueError, match="pad_rows"):
            relation_distance(self.STUDENT, self.TEACHER, None, power="mse", pad_rows="all")


class TestHiddenDistance:
    # Row means of the squares: (1 + 9) / 2 = 5, (4 + 0) / 2 = 2, (100 + 100) / 2 = 100; of the sizes: 2, 1, 10.
    STUDENT = torch.tensor([[[1.0, 3.0], [2.0, 0.0], [10.0, 10.0]]])
    TEACHER = torch.zeros(1, 3, 2)

    @pytest.mark.parametrize(("power", "valid", "all_rows"), [("mse", 3.5, 107 / 3), ("l1", 1.5, 13 / 3)])
    def test_by_hand(self, power: str, valid: float, all_rows: float) -> None:
        mask = torch.tensor([[1, 1, 0]])
        near(hidden_distance(self.STUDENT, self.TEACHER, mask, power=power), [valid])
        near(hidden_distance(self.STUDENT, self.TEACHER, mask, power=power, pad_rows="include"), [all_rows])
        near(hidden_distance(self.STUDENT, self.TEACHER, None, power=power), [all_rows])

    @pytest.mark.parametrize("power", ["mse", "l1"])
    def test_masked_is_the_subset_and_padding_does_not_matter(self, power: str) -> None:
        student, teacher = noise(2, 5, 4), noise(2, 5, 4, seed=1)
        mask = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1]])
        whole = hidden_distance(student, teacher, mask, power=power)
        near(whole[:1], hidden_distance(student[:1, [0, 2]], teacher[:1, [0, 2]], None, power=power))
        padded = [torch.nn.functional.pad(x, (0, 0, 0, 2), value=9.0) for x in (student, -teacher)]
        long_mask = torch.nn.functional.pad(mask, (0, 2))
        near(hidden_distance(padded[0], -padded[1], long_mask, power=power), whole)

    def test_an_empty_mask_has_a_finite_gradient(self) -> None:
        student = noise(2, 3, 4).requires_grad_()
        mask = torch.tensor([[0, 0, 0], [1, 1, 0]])
        loss = hidden_distance(student, noise(2, 3, 4, seed=1), mask, power="mse")
        loss.sum().backward()
        assert student.grad is not None and loss[0] == 0 and not student.grad[0].any()
        assert student.grad.isfinite().all() and student.grad[1].any()

    @pytest.mark.parametrize("power", ["mse", "l1"])
    def test_gradients(self, power: str) -> None:
        student = noise(2, 3, 4, dtype=torch.float64).requires_grad_()
        teacher, mask = noise(2, 3, 4, seed=1, dtype=torch.float64), torch.tensor([[1, 1, 0], [1, 1, 1]])
        assert torch.autograd.gradcheck(lambda s: hidden_distance(s, teacher, mask, power=power), student)

    def test_half_precision_is_computed_in_float32(self) -> None:
        student, teacher = noise(2, 3, 4, dtype=torch.bfloat16), noise(2, 3, 4, seed=1, dtype=torch.bfloat16)
        narrow = hidden_distance(student, teacher, None, power="mse")
        assert narrow.dtype == torch.float32
        near(narrow, hidden_distance(student.float(), teacher.float(), None, power="mse"))

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ModelError) as refusal:
            hidden_distance(torch.zeros(1, 3, 4), torch.zeros(1, 3, 8), None, power="mse")
        assert "project" in str(refusal.value)
        with pytest.raises(ValueError, match="power"):
            hidden_distance(self.STUDENT, self.TEACHER, None, power="kl")


class TestPatientDistance:
    # one example, two layers: (3, 4) and (0, 2) of the student, (4, 3) and (5, 0) of the teacher
    STUDENT = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    TEACHER = torch.tensor([[[4.0, 3.0], [5.0, 0.0]]])

    def test_by_hand(self) -> None:
        # (1 + 1 + 25 + 4) / 4 and (1 + 1 + 5 + 2) / 4
        near(patient_distance(self.STUDENT, self.TEACHER, power="mse", normalise=False), [31 / 4])
        near(patient_distance(self.STUDENT, self.TEACHER, power="l1", normalise=False), [9 / 4])

    def test_normalised_by_hand(self) -> None:
        # (0.6, 0.8) - (0.8, 0.6) and (0, 1) - (1, 0)
        near(patient_distance(self.STUDENT, self.TEACHER, power="mse", normalise=True), [(0.04 + 0.04 + 1 + 1) / 4])
        near(patient_distance(self.STUDENT, self.TEACHER, power="l1", normalise=True), [(0.2 + 0.2 + 1 + 1) / 4])

    def test_normalised_does_not_depend_on_length(self) -> None:
        student, teacher = noise(3, 2, 4), noise(3, 2, 4, seed=1)
        plain = patient_distance(student, teacher, power="mse", normalise=True)
        near(patient_distance(7 * student, teacher / 5, power="mse", normalise=True), plain)

    @pytest.mark.parametrize("power", ["mse", "l1"])
    @pytest.mark.parametrize("normalise", [True, False])
    def test_gradients(self, power: str, normalise: bool) -> None:
        student, teacher = (noise(2, 3, 4, seed=seed, dtype=torch.float64) for seed in (0, 1))
        student.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s: patient_distance(s, teacher, power=power, normalise=normalise), student
        )

    def test_vectors_of_length_0_have_a_finite_gradient(self) -> None:
        student = torch.zeros(1, 1, 4, requires_grad=True)
        loss = patient_distance(student, noise(1, 1, 4), power="mse", normalise=True)
        loss.sum().backward()
        near(loss, [0.25])
        assert student.grad is not None and student.grad.isfinite().all()

    def test_half_precision_is_computed_in_float32(self) -> None:
        student, teacher = noise(2, 3, 4, dtype=torch.float16), noise(2, 3, 4, seed=1, dtype=torch.float16)
        narrow = patient_distance(student, teacher, power="mse", normalise=True)
        assert narrow.dtype == torch.float32
        near(narrow, patient_distance(student.float(), teacher.float(), power="mse", normalise=True))

    def test_different_widths_are_refused(self) -> None:
        with pytest.raises(ModelError) as refusal:
            patient_distance(torch.zeros(1, 2, 4), torch.zeros(1, 2, 8), power="mse", normalise=True)
        assert "project" in str(refusal.value)


class TestLayerPairs:
    @pytest.mark.parametrize(
        ("layer_map", "student", "teacher", "expected"),
        [
            ("last", 6, 12, [(6, 12)]),
            ("last", 4, 6, [(4, 6)]),
            ("uniform", 3, 6, [(1, 2), (2, 4), (3, 6)]),
            ("uniform", 2, 2, [(1, 1), (2, 2)]),
            ("skip", 3, 6, [(1, 2), (2, 4)]),
            ("top", 3, 6, [(1, 4), (2, 5)]),
            ("top", 3, 3, [(1, 1), (2, 2)]),
            ("last_to_all", 3, 6, [(1, 6), (2, 6), (3, 6)]),
            ("transport", 2, 3, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]),
        ],
    )
    def test_pairs(self, layer_map: str, student: int, teacher: int, expected: list[tuple[int, int]]) -> None:
        assert layer_pairs(layer_map, student, teacher) == expected

    def test_given_pairs_keep_their_order(self) -> None:
        assert layer_pairs("pairs", 3, 6, pairs=["3-1", " 1-6 ", "3-2"]) == [(3, 1), (1, 6), (3, 2)]

    @pytest.mark.parametrize("layer_map", ["uniform", "skip"])
    @pytest.mark.parametrize(("student", "teacher"), [(4, 6), (6, 4)])
    def test_an_even_map_needs_a_multiple(self, layer_map: str, student: int, teacher: int) -> None:
        with pytest.raises(ConfigError, match=f"{layer_map} .* multiple .* {teacher} for {student}.* layer_map=last"):
            layer_pairs(layer_map, student, teacher)

    @pytest.mark.parametrize("layer_map", ["skip", "top"])
    def test_a_map_without_the_last_layer_needs_two(self, layer_map: str) -> None:
        with pytest.raises(ConfigError, match=f"{layer_map} .* two or more"):
            layer_pairs(layer_map, 1, 4)

    def test_top_needs_a_teacher_as_deep(self) -> None:
        with pytest.raises(ConfigError, match="teacher of 4 layers or more"):
            layer_pairs("top", 4, 3)

    @pytest.mark.parametrize(
        ("pair", "problem"),
        [
            ("2", "'2' is not of the form"),
            ("a-2", "'a-2' is not of the form"),
            ("1--2", "'1--2' is not of the form"),
            ("1-2-3", "'1-2-3' is not of the form"),
            ("1:2", "'1:2' is not of the form STUDENT-TEACHER"),
            ("0-1", "0-1 is not there: the student has layers 1 to 2, its teacher 1 to 4"),
            ("3-1", "3-1 is not there"),
            ("1-0", "1-0 is not there"),
            ("1-5", "1-5 is not there"),
            ("1-1", "1-1 is there twice"),
        ],
    )
    def test_pairs_that_are_not_there(self, pair: str, problem: str) -> None:
        with pytest.raises(ConfigError) as refusal:
            layer_pairs("pairs", 2, 4, pairs=["1-1", pair, "2-4"])
        assert len(refusal.value.problems) == 1 and problem in refusal.value.problems[0]

    def test_all_problems_of_the_pairs_are_told_at_once(self) -> None:
        with pytest.raises(ConfigError) as refusal:
            layer_pairs("pairs", 2, 4, pairs=["x", "3-1", "1-9"])
        assert len(refusal.value.problems) == 3

    def test_no_pairs_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="needs the pairs"):
            layer_pairs("pairs", 2, 4)

    def test_unknown_map_is_refused(self) -> None:
        with pytest.raises(ValueError, match="layer_map 'first'"):
            layer_pairs("first", 2, 4)


class TestMixup:
    def test_folded_beta_is_the_larger_share_of_the_draw(self) -> None:
        ratios = [folded_beta(np.random.default_rng(seed), 1.0) for seed in range(20)]
        draws = [float(np.random.default_rng(seed).beta(1.0, 1.0)) for seed in range(20)]
        assert ratios == [max(draw, 1 - draw) for draw in draws]
        assert all(0.5 <= ratio <= 1 for ratio in ratios) and min(draws) < 0.5 < max(draws)


def views(seed: int, batch: int = 3, length: int = 4, layers: int = 2, heads: int = 2) -> SimpleNamespace:
    """Tensors of all names; every one of them needs a gradient."""

    def each(shape: tuple[int, ...], offset: int) -> dict[int, Tensor]:
        first = 0 if len(shape) == 3 else 1
        return {
            layer: noise(*shape, seed=1000 * seed + 10 * offset + layer).requires_grad_()
            for layer in range(first, layers + 1)
        }

    small = (batch, heads, length, 4)
    return SimpleNamespace(
        hidden=each((batch, length, 8), 0),
        attention=each((batch, heads, length, length), 1),
        query=each(small, 2),
        key=each(small, 3),
        value=each(small, 4),
    )


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


class TestLayerTerms:
    def test_each_part_is_the_sum_over_its_pairs(self) -> None:
        student, teacher = views(1), views(2, layers=4)
        pairs = [(1, 2), (2, 4)]
        names = ["value", "attention", "hidden", "embedding", "patient", "query", "key"]
        parts = layer_terms(student, teacher, relations=names, pairs=pairs, mask=MASK, pad_rows="exclude")
        assert list(parts) == names
        near(
            parts["attention"],
            relation_cross_entropy(student.attention[1], teacher.attention[2], MASK)
            + relation_cross_entropy(student.attention[2], teacher.attention[4], MASK),
        )
        near(
            parts["hidden"],
            hidden_distance(student.hidden[1], teacher.hidden[2], MASK, power="mse")
            + hidden_distance(student.hidden[2], teacher.hidden[4], MASK, power="mse"),
        )
        near(parts["embedding"], hidden_distance(student.hidden[0], teacher.hidden[0], MASK, power="mse"))
        for name in ("query", "key", "value"):
            expected = torch.zeros(3)
            for i in (1, 2):
                x, y = getattr(student, name)[i], getattr(teacher, name)[2 * i]
                expected = expected + relation_cross_entropy(relation(x, x), relation(y, y), MASK)
            near(parts[name], expected)

    def test_patient_is_one_mean_over_the_matched_layers(self) -> None:
        # [CLS] of both layers as in TestPatientDistance, other rows never looked at
        student, teacher = views(1), views(2)
        for k in (0, 1):
            for side, vectors in ((student, TestPatientDistance.STUDENT), (teacher, TestPatientDistance.TEACHER)):
                side.hidden[k + 1] = noise(1, 3, 2, seed=k)
                side.hidden[k + 1][:, 0] = vectors[:, k]
        for normalise, expected in ((True, 2.08 / 4), (False, 31 / 4)):
            parts = layer_terms(
                student,
                teacher,
                relations=["patient"],
                pairs=[(1, 1), (2, 2)],
                mask=None,
                pad_rows="exclude",
                normalise=normalise,
            )
            near(parts["patient"], [expected])

    def test_divergences(self) -> None:
        student, teacher = views(1), views(2)

        def terms(relation_divergence: str, hidden_divergence: str) -> dict[str, Tensor]:
            return layer_terms(
                student,
                teacher,
                relations=["attention", "value", "hidden", "embedding", "patient"],
                pairs=[(2, 2)],
                mask=MASK,
                pad_rows="include",
                relation_divergence=relation_divergence,
                hidden_divergence=hidden_divergence,
                normalise=False,
            )

        for power, other in (("mse", "l1"), ("l1", "mse")):
            parts = terms(power, other)
            x, y = student.value[2], teacher.value[2]
            expected = relation_distance(
                student.attention[2], teacher.attention[2], MASK, power=power, pad_rows="include"
            )
            near(parts["attention"], expected)
            expected = relation_distance(relation(x, x), relation(y, y), MASK, power=power, pad_rows="include")
            near(parts["value"], expected)
            for name, layer in (("hidden", 2), ("embedding", 0)):
                x, y = student.hidden[layer], teacher.hidden[layer]
                near(parts[name], hidden_distance(x, y, MASK, power=other, pad_rows="include"))
            x, y = student.hidden[2][:, :1], teacher.hidden[2][:, :1]
            near(parts["patient"], patient_distance(x, y, power=other, normalise=False))
        with pytest.raises(ValueError, match="power"):
            terms("mse", "kl")

    def test_minilm_by_hand(self) -> None:
        """Self-attention distributions and value relations of the last layers."""
        # Attention as in TestRelationCrossEntropy. Values, head size 1: x x^T is ((ln 3, 0), (0, 0)) of the student and
        # ((ln 4, 0), (0, 0)) of the teacher, so row 0 is (3/4, 1/4) and (4/5, 1/5): 4/5 ln 4/3 + 1/5 ln 4 = 0.5074046.
        student = SimpleNamespace(
            attention={1: TestRelationCrossEntropy.STUDENT}, value={1: torch.tensor([[[[math.sqrt(LN3)], [0.0]]]])}
        )
        teacher = SimpleNamespace(
            attention={2: TestRelationCrossEntropy.TEACHER}, value={2: torch.tensor([[[[math.sqrt(LN4)], [0.0]]]])}
        )
        parts = layer_terms(
            student,
            teacher,
            relations=["attention", "value"],
            pairs=layer_pairs("last", 1, 2),
            mask=None,
            pad_rows="exclude",
        )
        near(parts["attention"], [(0.5697171 + LN2) / 2])
        near(parts["value"], [(0.5074046 + LN2) / 2])

    def test_relation_heads_by_hand(self) -> None:
        """MiniLMv2, where the student has two heads of size 1 and the teacher one of size 4."""
        # Split into two heads: (a), (0) of the student, with a a = ln 3, and (t, t), (0, 0) of the teacher, with
        # (t t + t t) / sqrt(2) = ln 4. The first heads' rows are those of `test_minilm_by_hand`, 0 rows are uniform.
        a, t = math.sqrt(LN3), math.sqrt(LN4 / math.sqrt(2))
        student = SimpleNamespace(key={1: torch.tensor([[[[a], [0.0]], [[0.0], [0.0]]]])})
        teacher = SimpleNamespace(key={1: torch.tensor([[[[t, t, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]])})

        def key(heads: int) -> Tensor:
            return layer_terms(
                student,
                teacher,
                relations=["key"],
                pairs=[(1, 1)],
                mask=None,
                pad_rows="exclude",
                relation_heads=heads,
            )["key"]

        near(key(2), [(0.5074046 + 3 * LN2) / 4])
        # One head: a a / sqrt(2) and 2 t t / sqrt(4) = ln 4 / sqrt(2)
        p, q = 1 / (1 + math.exp(-LN4 / math.sqrt(2))), 1 / (1 + math.exp(-LN3 / math.sqrt(2)))
        near(key(1), [(-p * math.log(q) - (1 - p) * math.log(1 - q) + LN2) / 2])
        with pytest.raises(ModelError, match="relations differ"):
            key(0)
        with pytest.raises(ModelError, match="a width of 2 can't be split into 4 relation heads"):
            key(4)

    def test_only_what_is_asked_for_is_read(self) -> None:
        whole, other = views(1), views(2)
        for name, layers in (("hidden", (2,)), ("embedding", (0,)), ("patient", (2,))):
            student, teacher = (SimpleNamespace(hidden={i: x.hidden[i] for i in layers}) for x in (whole, other))
            parts = layer_terms(student, teacher, relations=[name], pairs=[(2, 2)], mask=None, pad_rows="include")
            assert list(parts) == [name] and parts[name].shape == (3,)

    def test_every_part_has_a_gradient_where_it_looks(self) -> None:
        student, teacher = views(1), views(2)
        names = ["attention", "hidden", "embedding", "query", "key", "value"]
        parts = layer_terms(student, teacher, relations=names, pairs=[(2, 1)], mask=MASK, pad_rows="exclude")
        sum(part.sum() for part in parts.values()).backward()  # type: ignore[union-attr]
        for name in ("attention", "query", "key", "value"):
            of = getattr(student, name)
            assert of[2].grad.any() and of[1].grad is None
        assert student.hidden[0].grad.any() and student.hidden[2].grad.any() and student.hidden[1].grad is None


class TestConsistencyTerms:
    @staticmethod
    def terms(
        mixed: SimpleNamespace,
        clean: SimpleNamespace,
        lam: float,
        mask: Tensor | None = MASK,
        pairs: tuple[tuple[int, int], ...] = ((2, 4),),
        **knobs: Any,
    ) -> dict[str, Tensor]:
        return consistency_terms(
            mixed, clean, on=["attention", "hidden"], pairs=pairs, lam=lam, mask=mask, pad_rows="exclude", **knobs
        )

    @pytest.mark.parametrize(("relation_divergence", "hidden_divergence"), [("kl", "mse"), ("mse", "l1"), ("l1", "l1")])
    def test_the_student_layer_of_a_pair_is_used_on_both_sides(
        self, relation_divergence: str, hidden_divergence: str
    ) -> None:
        def attention(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            if relation_divergence == "kl":
                return relation_cross_entropy(x, y, mask)
            return relation_distance(x, y, mask, power=relation_divergence)

        def hidden(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return hidden_distance(x, y, mask, power=hidden_divergence)

        mixed, clean = views(1), views(2)
        parts = self.terms(
            mixed, clean, lam=0.7, relation_divergence=relation_divergence, hidden_divergence=hidden_divergence
        )
        assert list(parts) == ["consistency_attention", "consistency_hidden"]
        losses: list[tuple[str, Callable[..., Tensor]]] = [("attention", attention), ("hidden", hidden)]
        for name, loss in losses:
            x, y = getattr(mixed, name)[2], getattr(clean, name)[2]
            expected = 0.7 * loss(x, y, MASK) + 0.3 * loss(x, y.flip(0), MASK.flip(0))
            near(parts[f"consistency_{name}"], expected)

    def test_a_student_layer_counts_once_however_often_it_is_matched(self) -> None:
        mixed, clean = views(1), views(2)
        once = self.terms(mixed, clean, lam=0.7, pairs=((1, 4), (2, 4)))
        often = self.terms(mixed, clean, lam=0.7, pairs=((1, 1), (1, 4), (2, 1), (2, 4)))
        single = [self.terms(mixed, clean, lam=0.7, pairs=((i, 4),)) for i in (1, 2)]
        for name, part in once.items():
            near(part, single[0][name] + single[1][name])
            near(often[name], part)

    def test_relation_heads(self) -> None:
        mixed, clean = views(1), views(2)
        parts = consistency_terms(
            mixed, clean, on=["value"], pairs=[(2, 4)], lam=1.0, mask=MASK, pad_rows="exclude", relation_heads=1
        )
        x, y = split_heads(mixed.value[2], 1), split_heads(clean.value[2], 1)
        near(parts["consistency_value"], relation_cross_entropy(relation(x, x), relation(y, y), MASK))

    def test_clean_views_get_no_gradient(self) -> None:
        mixed, clean = views(1), views(2)
        sum(part.sum() for part in self.terms(mixed, clean, lam=0.6).values()).backward()  # type: ignore[union-attr]
        assert mixed.attention[2].grad is not None and mixed.hidden[2].grad is not None
        assert clean.attention[2].grad is None and clean.hidden[2].grad is None

    def test_without_mixing_it_compares_a_row_with_itself(self) -> None:
        mixed = views(1)
        near(self.terms(mixed, mixed, lam=1.0)["consistency_hidden"], [0.0, 0.0, 0.0])

    def test_without_mask(self) -> None:
        mixed, clean = views(1), views(2)
        ones = torch.ones(3, 4, dtype=torch.long)
        for name, part in self.terms(mixed, clean, lam=0.6, mask=None).items():
            near(part, self.terms(mixed, clean, lam=0.6, mask=ones)[name])
