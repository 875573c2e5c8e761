"""Objectives and optimiser against numbers recorded from the official CR-ILD code (shared/parity, crild).

Covered: all 315 recorded cases, with their gradients wherever those are recorded.

* elementary 72: DistillKL 18, PKD_Loss 18, Attention_KL 6, _MSE 12, _MAE 9, Hidden_MSE 6, _MAE 3
* emd 25: EMD_Loss over four successive steps 24, refused by the official code 1
* tinybert_trains 132: objects A, H, Q, K, V 111, with P 9, logit_distill 6, joint_train 3, refused 3
* kd_pkd_emdbert 45: kd_trains 12, pkd_trains 24, emdbert_trains over three successive steps 6, refused 3
* optim 6: BertAdam 5; ModelEMA 1 is in test_parity_models.py
* model_mixup 15 and end2end 20 are in test_parity_models.py and test_parity_end2end.py

What the official code refuses or crashes on has no number to compare with; kdlab's own behaviour is tested:

* embedding_emd (1): the embedding output is not transported, `transport_terms` refuses the name; it is a term apart
* l2l-refused (3): consistency where more than the last layer is matched is the sum over the matched layers
* kd_trains/use_mixup (3): soft labels of mixed inputs, from the teacher's mixed or clean logits

What it computes by mistake is reproduced from kdlab's parts: joint_train counts the layer terms 2 - w times (papers.md
D2), object P makes H use P's loss (D12), and with `seperate=False` a relation that is not in use is averaged in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdlab.engine.optimizer import BertAdam, rate, set_rate
from kdlab.objectives.layer_map import layer_pairs
from kdlab.objectives.layers import (
    consistency_terms,
    hidden_distance,
    layer_terms,
    patient_distance,
    relation,
    relation_cross_entropy,
    relation_distance,
)
from kdlab.objectives.logits import hard_label, mixed_soft, scaled_mse, soft_cross_entropy, soft_label
from kdlab.objectives.transport import LayerWeights, Transported, transport_terms

pytestmark = pytest.mark.real

TOLERANCE = 1e-5  # of losses, relative to max(1, expected)
GRADIENT_TOLERANCE = 1e-6  # absolute: the recorded gradients are small

Case = dict[str, Any]


class Bundle:
    """The cases of one recorded file and their tensors."""

    def __init__(self, folder: Path, name: str) -> None:
        self.cases: list[Case] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["cases"]
        self.tensors: dict[str, Tensor] = load_file(folder / f"{name}.safetensors")

    def of(self, wanted: Callable[[Case], bool], count: int) -> list[Case]:
        cases = [case for case in self.cases if wanted(case)]
        assert len(cases) == count, f"{len(cases)} cases, expected {count}"
        return cases

    def leaves(self, prefix: str) -> dict[str, Tensor]:
        """Fresh copies of the inputs below `prefix`, by the rest of their key; they ask for gradients."""
        return {
            key.removeprefix(prefix): tensor.clone().requires_grad_(tensor.is_floating_point())
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }


@pytest.fixture(scope="module")
def load(shared: Path) -> Callable[[str], Bundle]:
    return lambda name: Bundle(shared / "parity" / "open" / "crild", name)


def check_value(case: Case, what: str, value: Tensor, expected: float) -> None:
    assert abs(float(value.detach()) - expected) <= TOLERANCE * max(1.0, abs(expected)), f"{case['id']}: {what}"


def check_loss(case: Case, loss: Tensor) -> None:
    check_value(case, "loss", loss, case["expected"]["loss"])


def check_gradients(case: Case, leaves: Mapping[str, Tensor], bundle: Bundle, prefix: str = "grad.") -> None:
    """Every gradient recorded below `prefix`, and none where the official loss gives none."""
    recorded = {
        name.removeprefix(prefix): bundle.tensors[key]
        for name, key in case.get("expected_tensors", {}).items()
        if name.startswith(prefix)
    }
    if not recorded:
        return
    for name, leaf in leaves.items():
        if name not in recorded:
            assert leaf.grad is None, f"{case['id']}: gradient of {name}"
            continue
        assert leaf.grad is not None, f"{case['id']}: no gradient of {name}"
        difference = (leaf.grad - recorded[name]).abs().max()
        assert difference <= GRADIENT_TOLERANCE, f"{case['id']}: gradient of {name} off by {difference}"
    assert recorded.keys() <= leaves.keys()


def test_logit_losses(load: Callable[[str], Bundle]) -> None:
    bundle = load("elementary")
    for case in bundle.of(lambda case: case["fn"] == "DistillKL", 18):
        params, inputs = case["params"], case["inputs"]
        student = bundle.tensors[inputs["student_logits"]].clone().requires_grad_()
        teacher = bundle.tensors[inputs["teacher_logits"]]
        objective = soft_cross_entropy if params["mode"] == "classification" else scaled_mse
        loss = objective(student, teacher, temperature=params["T"]).mean()
        loss.backward()
        check_loss(case, loss)
        check_gradients(case, {"student_logits": student}, bundle)


ELEMENTARY: dict[str, tuple[int, str, Callable[..., Tensor], dict[str, str]]] = {
    "Attention_KL": (6, "atts", relation_cross_entropy, {}),
    "Attention_MSE": (12, "atts", relation_distance, {"power": "mse"}),
    "Attention_MAE": (9, "atts", relation_distance, {"power": "l1"}),
    "Hidden_MSE": (6, "reps", hidden_distance, {"power": "mse"}),
    "Hidden_MAE": (3, "reps", hidden_distance, {"power": "l1"}),
}


@pytest.mark.parametrize("fn", ELEMENTARY)
def test_attention_and_hidden_losses(load: Callable[[str], Bundle], fn: str) -> None:
    bundle = load("elementary")
    count, kind, objective, values = ELEMENTARY[fn]
    for case in bundle.of(lambda case: case["fn"] == fn, count):
        inputs = case["inputs"]
        student = bundle.tensors[inputs[f"student_{kind}"]].clone().requires_grad_()
        teacher = bundle.tensors[inputs[f"teacher_{kind}"]]
        mask = bundle.tensors[inputs["attention_mask"]] if "attention_mask" in inputs else None
        layers = [objective(s, t, mask, pad_rows="include", **values) for s, t in zip(student, teacher, strict=True)]
        examples = torch.stack(layers).sum(0)  # [B]
        if "index" in case["params"]:  # these rows only, times B / len(index)
            rows = case["params"]["index"]
            examples = examples[rows] * len(examples) / len(rows)
        loss = examples.mean()
        loss.backward()
        check_loss(case, loss)
        check_gradients(case, {f"student_{kind}": student}, bundle)


def test_patient_loss(load: Callable[[str], Bundle]) -> None:
    bundle = load("elementary")
    for case in bundle.of(lambda case: case["fn"] == "PKD_Loss", 18):
        student = bundle.tensors[case["inputs"]["student"]].clone().requires_grad_()
        teacher = bundle.tensors[case["inputs"]["teacher"]]
        one_vector = student.dim() == 2  # [B, D]: officially never normalised; else [B, n, D] or [B, n, L, D]
        ours, theirs = ((x[:, None] if one_vector else x.flatten(1, -2)) for x in (student, teacher))
        normalise = case["params"]["normalize"] and not one_vector
        loss = patient_distance(ours, theirs, power="mse", normalise=normalise).mean()
        loss.backward()
        check_loss(case, loss)
        check_gradients(case, {"student": student}, bundle)


def views(leaves: Mapping[str, Tensor], side: str) -> SimpleNamespace:
    """A recorded forward pass as layer views; the recorded q, k, v count layers from 0."""

    def each(kind: str, first: int) -> dict[int, Tensor]:
        prefix = f"{side}.{kind}."
        return {int(name.removeprefix(prefix)) + first: x for name, x in leaves.items() if name.startswith(prefix)}

    query, key = each("q", 1), each("k", 1)
    attention = {layer: relation(query[layer], key[layer]) for layer in query}
    return SimpleNamespace(hidden=each("h", 0), attention=attention, query=query, key=key, value=each("v", 1))


LETTERS = {"A": "attention", "H": "hidden", "Q": "query", "K": "key", "V": "value", "P": "patient"}


def layer_loss(leaves: Mapping[str, Tensor], mask: Tensor, params: Mapping[str, Any]) -> Tensor:
    """The loss of the official first stage, made of kdlab's terms as the distillation stage makes it."""
    layers = (params["S"], params["T"])
    pairs_of = {
        l2l: layer_pairs("uniform" if params[l2l] else "last", *layers) for l2l in ("attention_l2l", "hidden_l2l")
    }
    student, teacher = views(leaves, "s"), views(leaves, "t")
    terms: dict[str, Tensor] = {}
    for letter in params["distill_object"]:
        name = LETTERS[letter]
        pairs = pairs_of["hidden_l2l" if name in ("hidden", "patient") else "attention_l2l"]
        if name == "hidden" and "P" in params["distill_object"]:
            ours, theirs = (
                torch.stack([side.hidden[pair[k]] for pair in pairs], dim=1).flatten(1, 2)
                for k, side in enumerate((student, teacher))
            )
            terms[name] = patient_distance(ours, theirs, power="mse", normalise=True)
            continue
        relations = [name, "embedding"] if name == "hidden" and params["hidden_l2l"] else [name]
        seen = None if letter in "QKV" else mask  # officially without a mask
        terms |= layer_terms(student, teacher, relations=relations, pairs=pairs, mask=seen, pad_rows="include")
    if params["use_mixup"]:
        asked = {"attention": params["use_ic_att"], "hidden": params["use_ic_rep"]}
        on = [name for name in terms if asked.get(name)]
        clean = views(leaves, "ema" if params["refine_model"] else "s2")
        weight = params["w_ic"] * params["epoch"] / params["num_train_epochs"]
        held = consistency_terms(
            student,
            clean,
            on=on,
            pairs=pairs_of["attention_l2l"],
            lam=params.get("lam", 1.0),
            mask=mask,
            pad_rows="include",
        )
        terms |= {name: weight * part for name, part in held.items()}
    return torch.stack(list(terms.values())).sum(0).mean()


def official_stage_1(leaves: Mapping[str, Tensor], mask: Tensor, params: Mapping[str, Any]) -> Tensor:
    kd = soft_cross_entropy(leaves["s.logits"], leaves["t.logits"].detach(), temperature=params["temperature"]).mean()
    if params["logit_distill"]:
        return kd
    loss = layer_loss(leaves, mask, params)
    return (2 - params["w_kd"]) * loss + params["w_kd"] * kd if params["joint_train"] else loss


def refused(case: Case) -> bool:
    return "raises" in case["expected"]


def test_layer_distillation_with_mixup_and_consistency(load: Callable[[str], Bundle]) -> None:
    bundle = load("tinybert_trains")
    for case in bundle.of(lambda case: not refused(case), 129):
        leaves = bundle.leaves(case["inputs"]["set"])
        loss = official_stage_1(leaves, leaves.pop("mask"), case["params"])
        loss.backward()
        check_loss(case, loss)
        students = {name: leaf for name, leaf in leaves.items() if name.startswith(("s.", "s2.", "ema."))}
        check_gradients(case, students, bundle)


def test_consistency_of_several_layers_is_their_sum(load: Callable[[str], Bundle]) -> None:
    """The official code refuses it."""
    bundle = load("tinybert_trains")
    for case in bundle.of(refused, 3):
        assert case["params"]["use_ic_att"] and case["params"]["attention_l2l"]
        leaves = bundle.leaves(f"in/{case['id'][0]}/")
        student, clean = views(leaves, "s"), views(leaves, "s2")
        depths = (len(student.query), len(views(leaves, "t").query))

        def terms(
            pairs: list[tuple[int, int]],
            student: SimpleNamespace = student,
            clean: SimpleNamespace = clean,
            mask: Tensor = leaves["mask"],
        ) -> dict[str, Tensor]:
            return consistency_terms(
                student, clean, on=["attention", "hidden"], pairs=pairs, lam=0.7, mask=mask, pad_rows="include"
            )

        pairs = layer_pairs("uniform", *depths)
        assert len(pairs) > 1
        whole, parts = terms(pairs), [terms([pair]) for pair in pairs]
        assert list(whole) == ["consistency_attention", "consistency_hidden"]
        for name, values in whole.items():
            torch.testing.assert_close(values, torch.stack([part[name] for part in parts]).sum(0))
            assert (values > 0).all()


def test_logit_and_last_layer_distillation(load: Callable[[str], Bundle]) -> None:
    bundle = load("kd_pkd_emdbert")
    for case in bundle.of(lambda case: case["fn"] == "kd_trains" and not refused(case), 12):
        params, leaves = case["params"], bundle.leaves(case["inputs"]["set"])
        if params["mode"] == "PKD":
            student, teacher = views(leaves, "s"), views(leaves, "t")
            pairs = layer_pairs("last", len(student.query), len(teacher.query))
            terms = layer_terms(
                student,
                teacher,
                relations=["patient"],
                pairs=pairs,
                mask=None,
                pad_rows="include",
                normalise=False,
            )
            loss = terms["patient"].mean()
            leaves = {name: leaf for name, leaf in leaves.items() if name.startswith("s.")}
        else:
            kind = params.get("output_mode", "classification")
            logits, target = leaves["s.logits"], leaves["t.logits"].detach()
            loss = soft_label(logits, target, kind=kind, temperature=params["temperature"]).mean()
        loss.backward()
        check_loss(case, loss)
        check_gradients(case, leaves, bundle)


def test_logit_distillation_of_mixed_inputs(load: Callable[[str], Bundle]) -> None:
    """The official code crashes on it."""
    bundle = load("kd_pkd_emdbert")
    for case in bundle.of(lambda case: case["fn"] == "kd_trains" and refused(case), 3):
        assert case["params"]["use_mixup"]
        leaves = bundle.leaves(f"in/{case['id'][0]}/")
        logits, target = leaves["s.logits"], leaves["t.logits"].detach()
        soft: dict[str, Any] = {"kind": "classification", "temperature": 2.0}
        own = mixed_soft(logits, target, lam=1.0, **soft)
        torch.testing.assert_close(own, soft_label(logits, target, **soft))
        loss = mixed_soft(logits, target, lam=0.7, **soft)
        torch.testing.assert_close(loss, 0.7 * own + 0.3 * soft_label(logits, target.flip(0), **soft))
        loss.sum().backward()
        assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_patient_distillation(load: Callable[[str], Bundle]) -> None:
    bundle = load("kd_pkd_emdbert")
    for case in bundle.of(lambda case: case["fn"] == "pkd_trains", 24):
        params, expected, leaves = case["params"], case["expected"], bundle.leaves(case["inputs"]["set"])
        student, teacher = views(leaves, "s"), views(leaves, "t")
        several = {"PKD": "uniform", "LTI_P": "last_to_all"}[params["mode"]]
        pairs = layer_pairs(several if params["l2l"] else "last", len(student.query), len(teacher.query))
        terms = layer_terms(student, teacher, relations=["patient"], pairs=pairs, mask=None, pad_rows="include")
        logits, target = leaves["s.logits"], leaves["t.logits"].detach()
        parts = {
            "cls_loss": hard_label(logits, leaves["labels"], kind="classification").mean(),
            "kd_loss": soft_cross_entropy(logits, target, temperature=params["temperature"]).mean(),
            "pkd_loss": terms["patient"].mean(),
        }
        for name, part in parts.items():
            check_value(case, name, part, expected[name])
        loss = parts["pkd_loss"]
        if params["logit_distill"]:
            alpha, beta = params["alpha"], params["beta"]
            loss = (1 - alpha) * parts["cls_loss"] + alpha * parts["kd_loss"] + beta * loss
        loss.backward()
        check_loss(case, loss)
        check_gradients(case, {name: leaf for name, leaf in leaves.items() if name.startswith("s.")}, bundle)


OFFICIAL = {"attention": "att", "hidden": "rep"}


def transported(
    student: SimpleNamespace, teacher: SimpleNamespace, relations: list[str], weights: LayerWeights
) -> Transported:
    return transport_terms(
        student,
        teacher,
        relations=relations,
        weights=weights,
        mask=None,
        pad_rows="include",
        relation_divergence="mse",
        hidden_divergence="mse",
        reduce=lambda sums: sums,
    )


def test_transport_over_successive_steps(load: Callable[[str], Bundle]) -> None:
    bundle = load("emd")
    for case in bundle.of(lambda case: not refused(case), 24):
        params = case["params"]
        used = {"attention": params["use_att"], "hidden": params["use_rep"]}
        relations = [name for name in OFFICIAL if used[name]]
        # Officially the weights of both relations exist, and are averaged, whatever is in use.
        weights = LayerWeights(list(OFFICIAL), params["S"], params["T"], separate=params["seperate"])
        steps = list(zip(case["inputs"]["steps"], case["expected"]["steps"], strict=True))
        assert len(steps) == 4
        for k, (inputs, expected) in enumerate(steps):
            leaves = {name: bundle.tensors[key].clone().requires_grad_() for name, key in inputs.items()}
            student, teacher = (
                SimpleNamespace(
                    attention=dict(enumerate(leaves[f"att_{side}"], start=1)),
                    hidden=dict(enumerate(leaves[f"rep_{side}"])),
                )
                for side in "st"
            )
            moved = transported(student, teacher, relations, weights)
            if params["update_weight"]:
                weights.update(moved.flows, moved.distances)
            for name, short in OFFICIAL.items():
                loss = moved.terms[name].mean() if name in relations else torch.zeros(())
                check_value(case, f"{short} of step {k}", loss, expected[f"{short}_loss"])
                for side, found in zip(("student", "teacher"), weights.weights(name), strict=True):
                    np.testing.assert_allclose(found, expected[f"{short}_{side}_weight"], atol=1e-6, err_msg=case["id"])
                if name in relations:
                    np.testing.assert_allclose(moved.distances[name], expected[f"{short}_distance"], rtol=1e-5)
                    np.testing.assert_allclose(moved.flows[name], expected[f"{short}_flow"], atol=1e-6)
            torch.stack([term.mean() for term in moved.terms.values()]).sum().backward()
            students = {name: leaf for name, leaf in leaves.items() if name.endswith("_s")}
            check_gradients(case, students, bundle, prefix=f"step{k}.grad.")


def test_transport_of_the_embedding_output_is_refused(load: Callable[[str], Bundle]) -> None:
    """The official code crashes on it."""
    case = load("emd").of(refused, 1)[0]
    assert case["params"] == {"embedding_emd": True}
    nothing, weights = SimpleNamespace(), LayerWeights(["embedding"], 2, 4, separate=True)
    with pytest.raises(ValueError, match="embedding"):
        transported(nothing, nothing, ["embedding"], weights)


def test_transport_with_the_embedding_term(load: Callable[[str], Bundle]) -> None:
    bundle = load("kd_pkd_emdbert")
    for case in bundle.of(lambda case: case["fn"] == "emdbert_trains", 6):
        params, start = case["params"], bundle.leaves(case["inputs"]["set"])
        depths = tuple(sum(name.startswith(f"{side}.q.") for name in start) for side in "st")
        weights = LayerWeights(list(OFFICIAL), *depths, separate=params["seperate"])
        for k, expected in enumerate(case["expected"]["steps"]):
            leaves = {name: leaf.detach().clone() for name, leaf in start.items()}
            for name, leaf in leaves.items():
                if name.startswith("s.") and name[-1].isdigit():
                    leaf *= 1 + k / 4 if int(name[-1]) % 2 == 0 else 1
                    leaf.requires_grad_()
            student, teacher = views(leaves, "s"), views(leaves, "t")
            moved = transported(student, teacher, list(OFFICIAL), weights)
            weights.update(moved.flows, moved.distances)
            terms = moved.terms | layer_terms(
                student, teacher, relations=["embedding"], pairs=[], mask=None, pad_rows="include"
            )
            for name, short in (*OFFICIAL.items(), ("embedding", "emb")):
                check_value(case, f"{short} of step {k}", terms[name].mean(), expected[f"{short}_loss"])
            loss = torch.stack(list(terms.values())).sum(0).mean()
            check_value(case, f"loss of step {k}", loss, expected["loss"])
            np.testing.assert_allclose(weights.weights("attention")[0], expected["att_student_weight"], atol=1e-6)
            np.testing.assert_allclose(weights.weights("hidden")[1], expected["rep_teacher_weight"], atol=1e-6)
            loss.backward()
            check_gradients(case, {n: x for n, x in leaves.items() if x.requires_grad}, bundle, f"step{k}.grad.")


SCHEDULES = {
    "warmup_linear": "linear",
    "warmup_cosine": "cosine",
    "warmup_constant": "constant",
    None: "constant",
}


def test_bert_adam(load: Callable[[str], Bundle]) -> None:
    bundle = load("optim")
    for case in bundle.of(lambda case: case["fn"] == "BertAdam", 5):
        params, inputs, expected = case["params"], case["inputs"], case["expected_tensors"]
        p, q = (nn.Parameter(bundle.tensors[inputs[name]].clone()) for name in ("p", "q"))
        optimizer = BertAdam(
            [
                {"params": [p], "weight_decay": params["weight_decay_p"]},
                {"params": [q], "weight_decay": params["weight_decay_q"]},
            ],
            params["lr"],
            betas=(params["b1"], params["b2"]),
            eps=params["e"],
            max_norm=params["max_grad_norm_per_parameter"],
        )
        steps, warmup = (
            max(params["t_total"], params["steps"]),
            max(params["warmup"], 0),
        )  # officially -1: none
        for step, official_rate in enumerate(case["expected"]["lr_of_step"]):
            factor = rate(SCHEDULES[params["schedule"]], step=step, steps=steps, warmup=warmup)
            assert params["lr"] * factor == pytest.approx(official_rate, rel=1e-12, abs=1e-15), case["id"]
            set_rate(optimizer, params["lr"] * factor)
            for name, parameter in (("p", p), ("q", q)):
                parameter.grad = bundle.tensors[inputs[f"grads_{name}"][step]].clone()
            optimizer.step()
            for name, parameter in (("p", p), ("q", q)):
                difference = (parameter.detach() - bundle.tensors[expected[f"{name}.{step}"]]).abs().max()
                assert difference <= TOLERANCE, f"{case['id']}: {name} off by {difference} after step {step}"
