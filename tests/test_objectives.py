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
    hidden_mse,
    layer_terms,
    relation,
    relation_cross_entropy,
)
from kdlab.objectives.logits import hard_label, scaled_mse, soft_cross_entropy
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

    def test_unknown_words_are_refused(self) -> None:
        x = torch.zeros(1, 1)
        with pytest.raises(ValueError, match="tau2"):
            scaled_mse(x, x, temperature=1.0, scale="tau")
        with pytest.raises(ValueError, match="regression"):
            hard_label(x, x, kind="ranking")


def test_relation_by_hand() -> None:
    # d = 4, so each dot product is halved: x0.y0 = 1+2+3+4 = 10, x0.y1 = 4, x1.y0 = 1, x1.y1 = 0
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 0.0]]]])
    y = torch.tensor([[[[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]]])
    near(relation(x, y), [[[[5.0, 2.0], [0.5, 0.0]]]])


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
        with pytest.raises(ModelError, match=r"\[1, 1, 4, 4\] and \[1, 2, 4, 4\]"):
            relation_cross_entropy(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), None)

    def test_unknown_pad_rows_is_refused(self) -> None:
        with pytest.raises(ValueError, match="pad_rows"):
            relation_cross_entropy(self.STUDENT, self.TEACHER, None, pad_rows="all")


class TestHiddenMse:
    # Row means of the squared differences: (1 + 9) / 2 = 5, (4 + 0) / 2 = 2, (100 + 100) / 2 = 100.
    STUDENT = torch.tensor([[[1.0, 3.0], [2.0, 0.0], [10.0, 10.0]]])
    TEACHER = torch.zeros(1, 3, 2)

    def test_by_hand(self) -> None:
        mask = torch.tensor([[1, 1, 0]])
        near(hidden_mse(self.STUDENT, self.TEACHER, mask), [3.5])
        near(hidden_mse(self.STUDENT, self.TEACHER, mask, pad_rows="include"), [107 / 3])
        near(hidden_mse(self.STUDENT, self.TEACHER, None), [107 / 3])

    def test_masked_is_the_subset_and_padding_does_not_matter(self) -> None:
        student, teacher = noise(2, 5, 4), noise(2, 5, 4, seed=1)
        mask = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 1, 1, 1]])
        whole = hidden_mse(student, teacher, mask)
        near(whole[:1], hidden_mse(student[:1, [0, 2]], teacher[:1, [0, 2]], None))
        padded = [torch.nn.functional.pad(x, (0, 0, 0, 2), value=9.0) for x in (student, -teacher)]
        near(hidden_mse(padded[0], -padded[1], torch.nn.functional.pad(mask, (0, 2))), whole)

    def test_an_empty_mask_has_a_finite_gradient(self) -> None:
        student = noise(2, 3, 4).requires_grad_()
        loss = hidden_mse(student, noise(2, 3, 4, seed=1), torch.tensor([[0, 0, 0], [1, 1, 0]]))
        loss.sum().backward()
        assert student.grad is not None and loss[0] == 0 and not student.grad[0].any()
        assert student.grad.isfinite().all() and student.grad[1].any()

    def test_gradients(self) -> None:
        student = noise(2, 3, 4, dtype=torch.float64).requires_grad_()
        teacher, mask = noise(2, 3, 4, seed=1, dtype=torch.float64), torch.tensor([[1, 1, 0], [1, 1, 1]])
        assert torch.autograd.gradcheck(lambda s: hidden_mse(s, teacher, mask), student)

    def test_half_precision_is_computed_in_float32(self) -> None:
        student, teacher = noise(2, 3, 4, dtype=torch.bfloat16), noise(2, 3, 4, seed=1, dtype=torch.bfloat16)
        near(hidden_mse(student, teacher, None), hidden_mse(student.float(), teacher.float(), None))

    def test_different_widths_are_refused(self) -> None:
        with pytest.raises(ModelError, match="project"):
            hidden_mse(torch.zeros(1, 3, 4), torch.zeros(1, 3, 8), None)


class TestLayerPairs:
    def test_last(self) -> None:
        assert layer_pairs("last", 6, 12, embeddings=True) == [(6, 12)]
        assert layer_pairs("last", 4, 6, embeddings=False) == [(4, 6)]

    def test_uniform(self) -> None:
        assert layer_pairs("uniform", 3, 6, embeddings=False) == [(1, 2), (2, 4), (3, 6)]
        assert layer_pairs("uniform", 3, 6, embeddings=True) == [(0, 0), (1, 2), (2, 4), (3, 6)]
        assert layer_pairs("uniform", 2, 2, embeddings=False) == [(1, 1), (2, 2)]

    @pytest.mark.parametrize(("student", "teacher"), [(4, 6), (6, 4)])
    def test_uniform_needs_a_multiple(self, student: int, teacher: int) -> None:
        with pytest.raises(ConfigError, match="multiple"):
            layer_pairs("uniform", student, teacher, embeddings=False)

    def test_unknown_map_is_refused(self) -> None:
        with pytest.raises(ValueError, match="layer_map"):
            layer_pairs("first", 2, 4, embeddings=False)


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
        parts = layer_terms(
            student,
            teacher,
            relations=["attention", "hidden", "query", "key", "value"],
            pairs_attention=[(1, 2), (2, 4)],
            pairs_hidden=[(0, 0), (1, 2), (2, 4)],
            mask=MASK,
            pad_rows="exclude",
        )
        assert list(parts) == ["attention", "hidden", "query", "key", "value"]
        near(
            parts["attention"],
            relation_cross_entropy(student.attention[1], teacher.attention[2], MASK)
            + relation_cross_entropy(student.attention[2], teacher.attention[4], MASK),
        )
        near(
            parts["hidden"],
            sum(hidden_mse(student.hidden[i], teacher.hidden[2 * i], MASK) for i in range(3)),  # type: ignore[arg-type]
        )
        for name in ("query", "key", "value"):
            expected = torch.zeros(3)
            for i in (1, 2):
                x, y = getattr(student, name)[i], getattr(teacher, name)[2 * i]
                expected = expected + relation_cross_entropy(relation(x, x), relation(y, y), MASK)
            near(parts[name], expected)

    def test_only_what_is_asked_for_is_read(self) -> None:
        student, teacher = SimpleNamespace(hidden=views(1).hidden), SimpleNamespace(hidden=views(2).hidden)
        parts = layer_terms(
            student,
            teacher,
            relations=["hidden"],
            pairs_attention=[(2, 2)],
            pairs_hidden=[(2, 2)],
            mask=None,
            pad_rows="include",
        )
        assert list(parts) == ["hidden"] and parts["hidden"].shape == (3,)


class TestConsistencyTerms:
    @staticmethod
    def terms(
        mixed: SimpleNamespace, clean: SimpleNamespace, lam: float, mask: Tensor | None = MASK
    ) -> dict[str, Tensor]:
        return consistency_terms(
            mixed,
            clean,
            on=["attention", "hidden"],
            pairs_attention=[(2, 4)],
            pairs_hidden=[(2, 4)],
            lam=lam,
            mask=mask,
            pad_rows="exclude",
        )

    def test_the_student_layer_of_a_pair_is_used_on_both_sides(self) -> None:
        mixed, clean = views(1), views(2)
        parts = self.terms(mixed, clean, lam=0.7)
        assert list(parts) == ["consistency_attention", "consistency_hidden"]
        losses: list[tuple[str, Callable[..., Tensor]]] = [
            ("attention", relation_cross_entropy),
            ("hidden", hidden_mse),
        ]
        for name, loss in losses:
            x, y = getattr(mixed, name)[2], getattr(clean, name)[2]
            expected = 0.7 * loss(x, y, MASK) + 0.3 * loss(x, y.flip(0), MASK.flip(0))
            near(parts[f"consistency_{name}"], expected)

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
