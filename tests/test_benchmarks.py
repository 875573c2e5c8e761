"""What the benchmarks rest on: baselines that compute what kdlab computes, clocks, and tables. Nothing is timed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from benchmarks import lengths, machine, plain, training
from benchmarks.__main__ import printed, table, write
from benchmarks.machine import Settings
from kdlab.engine.optimizer import BertAdam, parameter_groups
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tapped
from kdlab.stages.pair_steps import PairStep
from kdlab.stages.steps import LabelStep, LayerStep, LogitStep

LAM = 0.7
PLACED: dict[str, Any] = {"precision": "fp32", "place": torch.device("cpu")}


def bert(layers: int, *, seed: int) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={0: "a", 1: "b", 2: "c"},
    )
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def batch(rows: int = 5, width: int = 9) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    count = torch.randint(2, width - 1, (rows, 1), generator=rng)  # every row has padding
    mask = (torch.arange(width) < count).long()
    ids = torch.randint(1, 50, (rows, width), generator=rng) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (rows,), generator=rng)}


class Models:
    """The same weights as the baselines and as kdlab see them."""

    def __init__(self) -> None:
        self.teacher, self.student = bert(4, seed=1), bert(2, seed=2)
        self.plain_teacher, self.plain_student = plain.Reader(self.teacher), plain.Reader(self.student, student=True)
        self.tapped_teacher = Tapped(self.teacher).eval().requires_grad_(False)
        assert self.plain_student.fit_dense is not None
        self.tapped_student = Tapped(self.student, projection=self.plain_student.fit_dense)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        self.plain_student.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in self.plain_student.named_parameters() if p.grad is not None}

    def agree(self, baseline: type[plain.Distillation], ours: Callable[[], Tensor]) -> None:
        theirs = baseline(self.plain_student, self.plain_teacher, "fp32").loss(batch(), LAM)
        mine = ours()
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(self.gradients(mine), self.gradients(theirs))


def layer_step(models: Models, method: str) -> LayerStep:
    objective = training.layer_objective(method, pad_rows="include", relation_mask="own")[1]
    return LayerStep(models.tapped_teacher, objective, layers=(2, 4), **PLACED)


def test_cr_ild_is_what_kdlab_computes_with_the_official_settings() -> None:
    models = Models()
    step = layer_step(models, "cr_ild")

    def ours() -> Tensor:
        loss = step.loss(models.tapped_student, batch(), LAM, step.weight(None))  # type: ignore[arg-type]
        assert set(loss.parts) == {"attention", "hidden", "consistency_attention", "consistency_hidden"}
        return loss.total / loss.count

    models.agree(plain.CrIld, ours)


def test_tinybert_is_what_kdlab_computes_with_the_official_settings() -> None:
    models = Models()
    step = layer_step(models, "u_ild")

    def ours() -> Tensor:
        loss = step.loss(models.tapped_student, batch(), None, 0.0)
        return loss.total / loss.count

    models.agree(plain.TinyBert, ours)


def test_kd_and_fine_tuning_are_what_kdlab_computes() -> None:
    models = Models()
    kd = LogitStep(models.tapped_teacher, training.preset("kd", "logits")[1], kind="classification", **PLACED)

    def soft() -> Tensor:
        loss, _ = kd.loss(models.tapped_student, batch(), None)
        return loss.total / loss.count

    def hard() -> Tensor:
        loss, _ = LabelStep("classification").clean(models.tapped_student, batch())
        return loss.total / loss.count

    models.agree(plain.LogitKd, soft)
    models.agree(plain.FineTuning, hard)


def test_musc_is_what_kdlab_computes() -> None:
    model, ratios = bert(2, seed=4), (0.3, 0.8)
    head = ProjectionHead(16, 6, "mlp", 0)
    source, target = batch(), batch()
    target["input_ids"] = source["input_ids"].flip(1)
    target["attention_mask"] = source["attention_mask"].flip(1)
    theirs = plain.Musc(plain.Reader(model), head.layers, "fp32").loss(source, target, ratios)

    step = PairStep(training.preset("musc", "student")[1], paired=True)
    both = {name: torch.cat([source[name], target[name]]) for name in ("input_ids", "attention_mask")}
    mixes = dict(zip(("source_mix", "target_mix"), ratios, strict=True))
    seen = step.run(Tapped(model, contrast=head), both, mixes)
    terms = step.terms(seen, source["labels"], mixes, real=True)
    assert set(terms) == set(step.weights) and len(terms) == 7
    ours = torch.stack([step.weights[name] * values.mean() for name, values in terms.items()]).sum()
    torch.testing.assert_close(ours, theirs)


def test_bert_adam_is_kdlabs() -> None:
    def trained(build: Callable[[nn.Module], torch.optim.Optimizer]) -> dict[str, Tensor]:
        model = bert(1, seed=5)
        optimizer = build(model)
        draw = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in model.parameters():  # of a norm about 1, so that some are clipped
                parameter.grad = torch.randn(parameter.shape, generator=draw) / parameter.numel() ** 0.5
            optimizer.step()
        return model.state_dict()

    ours = trained(lambda model: BertAdam(parameter_groups(model, 0.01), 1e-2, weight_decay=0.01))
    theirs = trained(lambda model: plain.Distillation(plain.Reader(model), None, "fp32", lr=1e-2).optimizer)
    torch.testing.assert_close(ours, theirs)


def test_a_plain_step_trains() -> None:
    models = Models()
    step = plain.CrIld(models.plain_student, models.plain_teacher, "bf16", lr=1e-2)
    losses = [float(step(batch())) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in models.teacher.parameters())


# clocks and counters


def test_contenders_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    contenders = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    found = machine.interleave(contenders, Settings(1, 3, 60.0, ("fp32",)))
    assert calls == ["a", "b"] * 4
    assert found.keys() == {"a", "b"} and min(found.values()) > 0

    calls.clear()
    machine.interleave(contenders, Settings(1, 3, 0.0, ("fp32",)))
    assert calls == ["a", "b"] * 2  # the warm-up, and one round before time is over


def test_medians_are_of_each_step() -> None:
    rounds = iter([[1.0, 10.0], [3.0, 20.0], [2.0, 90.0]])
    found = machine.interleave_steps({"a": lambda: next(rounds)}, Settings(1, 3, 60.0, ("fp32",)))
    assert found == {"a": [2.0, 20.0]}


def test_peak_and_operations() -> None:
    assert all(machine.peak(precision, side=64) > 0 for precision in ("fp32", "bf16"))
    assert machine.flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def test_memory_is_of_the_call_alone() -> None:
    assert 50e6 < machine.peak_memory(bytearray, 60_000_000) < 90e6


# tables


def test_rows_with_the_same_columns_are_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows: list[machine.Row] = [
        {"table": "steps", "job": "kd", "seconds": 0.12345},
        {"table": "steps", "job": "cr_ild", "seconds": 1234.5},
        {"table": "memory", "job": "musc", "bytes": 12},
    ]
    assert list(printed(rows)) == rows
    assert capsys.readouterr().out == (
        "\nsteps\njob     seconds\nkd        0.123\ncr_ild     1234\n\nmemory\njob   bytes\nmusc     12\n"
    )
    assert table([{"a": 1.0}]) == "a\n1"
    write(tmp_path / "deep" / "found.json", {"threads": 1}, {"training": rows})
    assert json.loads((tmp_path / "deep" / "found.json").read_text()) == {
        "machine": {"threads": 1},
        "parts": {"training": rows},
    }


def test_verdicts() -> None:
    assert training.verdict(1.1, 2.0) == "within 20 %"
    assert training.verdict(0.7, 0.9) == "within 20 % when scaled"
    assert training.verdict(0.5, 0.6) == "quicker than the official code"
    assert training.verdict(1.5, 1.4) == "slower than the official code"
    row: machine.Row = {
        "job": "kd",
        "task": "RTE",
        "contender": "plain, 128 tokens",
        "s_a_step": 2.0,
        "peak_gflops": 165.0,
    }
    (found,) = training.against_official([row, {**row, "contender": "kdlab"}])
    assert found["scaled_s"] == 2.0 and found["verdict"] == "within 20 %"


# data and contenders


def test_lengths_are_those_of_the_data_sets() -> None:
    assert len(lengths.RTE) == 2490 and lengths.RTE.max() == 128 and round(lengths.RTE.mean(), 1) == 66.6
    assert len(lengths.COLA) == 8551 and lengths.COLA.max() <= 64 and round(lengths.COLA.mean(), 1) == 11.3
    assert lengths.XNLI.shape == (498, 2) and lengths.XNLI.max() <= 128
    assert lengths.XNLI.mean(0).round(1).tolist() == [41.8, 45.6]


def test_rows_have_the_lengths_and_batches_stand_for_all() -> None:
    rows = training.encoded(lengths.RTE, tokens=40, labels=2)
    assert sorted(rows.lengths) == sorted(lengths.RTE) and rows.highest_token < 40
    pairs = training.encoded_pairs(lengths.XNLI, tokens=40, labels=3)
    assert pairs.lengths.max() == lengths.XNLI.max()
    epoch = training.epoch_of(rows)
    some = training.representative(rows, epoch, 3)
    assert all(len(numbers) == training.BATCH for numbers in some)
    widths = [np.mean([rows.lengths[numbers].max() for numbers in batches]) for batches in (epoch, some)]
    assert abs(widths[1] / widths[0] - 1) < 0.05


def test_each_step_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = training.encoded(np.full(96, 4), tokens=30, labels=2)
    chosen = training.epoch_of(rows)
    student = training.ours(1, tokens=30)
    before = [parameter.clone() for parameter in student.parameters()]
    loop = training.fitted(student, LabelStep("classification"), rows, training.preset("ft", "student")[0], "fp32")
    baseline = plain.FineTuning(plain.Reader(training.stock(1, tokens=30)), None, "fp32")
    for stepper in (loop, training.padded(baseline, rows, 6)):
        assert len(stepper(chosen)) == 3 and min(stepper(chosen[:1])) > 0
    assert len(training.warmed(loop, chosen)()) == 3
    torch.testing.assert_close(list(student.parameters()), before)  # each call trains a copy


def test_each_step_of_pairs_has_its_time() -> None:
    rows = training.encoded_pairs(np.full((64, 2), 4), tokens=30, labels=3)
    step = PairStep(training.preset("musc", "student")[1], paired=True)
    student = training.ours(1, labels=3, tokens=30)
    student.contrast = ProjectionHead(training.WIDTH, 8, "mlp", 0)
    loop = training.fitted(student, step, rows, training.preset("musc", "student")[0], "fp32")
    assert len(loop(training.epoch_of(rows))) == 2


def test_the_trainer_takes_rows_in_our_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    longest = training.longest

    def watched(features: Any) -> dict[str, Tensor]:
        seen.append([feature["input_ids"][0] for feature in features])
        return longest(features)

    stock = training.stock
    monkeypatch.setattr(training, "longest", watched)
    monkeypatch.setattr(training, "stock", lambda layers, **options: stock(1, tokens=999, **options))
    rows = training.encoded(np.arange(1, 97), tokens=999, labels=2)
    chosen = training.epoch_of(rows)[::-1]
    assert len(training.trained_by_trainer(rows, "eager", "fp32")(chosen)) == 2
    firsts = [rows.collate(numbers, pad_token_id=0, width=96)["input_ids"][:, 0].tolist() for numbers in chosen]
    assert seen[:3] == firsts
