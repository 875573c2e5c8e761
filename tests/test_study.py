"""The overfitting study: what is measured of a student, which runs can be asked, and what `kdlab analyze` leaves."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from kdlab import cli, study
from kdlab.config import Hardware
from kdlab.context import Context
from kdlab.errors import ConfigError, KdlabError, StoreError, TrainingError
from kdlab.graph import Graph, Stage
from kdlab.models.taps import Views
from kdlab.report.study import averaged, figures, remarks
from kdlab.stages import analyse
from kdlab.stages.encoder import TaskData
from lab import TINY, Done, Lab, read, run_folder

FEW = "--rows 16 --points 3 --draws 2 --threads 1"


@pytest.fixture(scope="module")
def run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of cr_ild."""
    outputs = tmp_path_factory.mktemp("study")
    assert lab.run(f"method=cr_ild {TINY}", outputs=outputs).code == 0
    return run_folder(outputs)


@pytest.fixture(scope="module")
def subject(run: Path) -> study.Subject:
    return study.Subject.open(run)


def place(lab: Lab, stage: Stage | None) -> Path:
    assert stage is not None
    return lab.store / stage.artifact


def context(folder: Path, **placement: Any) -> Context:
    return Context(out=folder, stage="analysis", hardware=Hardware(name="test", threads=1, **placement))


def artifacts(lab: Lab, subject: study.Subject) -> dict[str, Path]:
    return {"model": place(lab, subject.student), "data": place(lab, subject.data)}


# the loss surface


def test_each_filter_of_a_direction_gets_the_norm_of_the_weights_own() -> None:
    direction = torch.tensor([[3.0, 4.0], [1.0, 2.0], [0.0, 0.0]])
    weight = torch.tensor([[0.0, 10.0], [0.0, 0.0], [1.0, 1.0]])
    assert analyse.filter_normalised(direction, weight).tolist() == [[6.0, 8.0], [0.0, 0.0], [0.0, 0.0]]
    kernels = analyse.filter_normalised(torch.ones(2, 2, 2), torch.stack([torch.ones(2, 2), 3 * torch.ones(2, 2)]))
    assert kernels.flatten(1).tolist() == [[1.0] * 4, [3.0] * 4]


def test_a_direction_leaves_biases_norms_and_absent_tokens_alone(lab: Lab, subject: study.Subject) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(place(lab, subject.student) / "model")
    batch = {"input_ids": torch.tensor([[2, 5, 7, 0]])}
    found = analyse.filter_direction(model, [batch], 0, 0)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    assert found.keys() == {name for name, value in weights.items() if value.dim() == 2}
    assert not [name for name in found if "LayerNorm" in name or name.endswith("bias")]
    tokens = found.pop("bert.embeddings.word_embeddings.weight")
    assert set(tokens.norm(dim=1).nonzero().flatten().tolist()) <= {0, 2, 5, 7}
    assert tokens[5].norm() == pytest.approx(
        float(weights["bert.embeddings.word_embeddings.weight"][5].norm()), rel=1e-5
    )
    for name, direction in found.items():
        torch.testing.assert_close(direction.norm(dim=1), weights[name].norm(dim=1), msg=name)
    again, other = (analyse.filter_direction(model, [batch], 0, number) for number in (0, 1))
    assert torch.equal(again["classifier.weight"], found["classifier.weight"])
    assert not torch.equal(other["classifier.weight"], found["classifier.weight"])


def test_flatness_of_a_known_surface() -> None:
    axis = np.array([-1.0, 0.0, 1.0])
    losses = 0.7 + 0.2 * (axis[:, None] ** 2 + axis[None, :] ** 2)  # between the points: 0.7 + 0.2 (|a| + |b|)
    found = analyse.flatness(losses, axis)
    assert found["center"] == 0.7
    assert found["mean_rise"] == pytest.approx(0.2)  # of the four points at distance 1; the corners are farther away
    assert found["flat_area"] == pytest.approx(0.125, abs=0.01)  # |a| + |b| < 0.5: a square of area 0.5 in one of 4
    assert found["profile"]["distance"][0] == 0 and found["profile"]["distance"][-1] == 1
    assert found["profile"]["rise"][10] == pytest.approx(0.2 * 0.5 * 4 / math.pi, rel=1e-3)  # mean of |cos| + |sin|


def test_a_surface_that_falls_is_flat_and_its_rise_negative() -> None:
    axis = np.array([-0.5, 0.0, 0.5])
    found = analyse.flatness(np.where(np.hypot(axis[:, None], axis) > 0, 0.5, 0.6), axis)
    assert found["mean_rise"] == pytest.approx(-0.1) and found["flat_area"] == 1.0


def test_loss_surface_is_that_of_the_shifted_model(lab: Lab, subject: study.Subject, tmp_path: Path) -> None:
    values = {"points": 3, "span": 0.5, "rows": 20, "seed": 1, "pad_to_max": False}
    analyse.loss_surface(context(tmp_path), **artifacts(lab, subject), **values)
    found = read(tmp_path / "surface.json")
    assert found["axis"] == [-0.5, 0.0, 0.5] and found["rows"] == 20

    task = TaskData(place(lab, subject.data))
    split = task.split("train")
    rows = analyse.sample(len(split), 20, 1).tolist()
    batch = task.rows(split, rows)
    model = AutoModelForSequenceClassification.from_pretrained(place(lab, subject.student) / "model").eval()

    def loss() -> float:
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k not in ("labels", "index")}).logits
        return float(nn.functional.cross_entropy(logits, batch["labels"]))

    assert found["center"] == found["loss"][1][1] == pytest.approx(loss(), abs=1e-6)
    first, second = (analyse.filter_direction(model, [batch], 1, number) for number in (0, 1))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in first:
                value += 0.5 * first[name] - 0.5 * second[name]
    assert found["loss"][2][0] == pytest.approx(loss(), abs=1e-5)
    assert abs(found["loss"][2][0] - found["center"]) > 0.01


def test_weights_come_back_bit_by_bit_whatever_happens() -> None:
    model = nn.Linear(3, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), analyse.weights_restored(model) as kept:
        analyse.shift(model, kept, [(0.1, {"weight": torch.ones(2, 3)})])
        assert torch.equal(model.weight, before["weight"] + 0.1)
        assert torch.equal(model.bias, before["bias"])
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_an_interrupted_analysis_goes_on_where_it_stopped(
    lab: Lab, subject: study.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"points": 3, "span": 0.5, "rows": 8, "seed": 0, "pad_to_max": False}
    analyse.loss_surface(context(tmp_path / "whole"), **artifacts(lab, subject), **values)
    original, calls = analyse.shift, []

    def stopping(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        original(*given)

    monkeypatch.setattr(analyse, "shift", stopping)
    with pytest.raises(KeyboardInterrupt):
        analyse.loss_surface(context(tmp_path / "broken"), **artifacts(lab, subject), **values)
    with open(tmp_path / "broken" / "work" / "measured.jsonl", "a", encoding="utf-8") as file:
        file.write('{"loss": 0.1')  # torn
    calls.clear()
    monkeypatch.setattr(analyse, "shift", lambda *given: (calls.append(given), original(*given)))
    analyse.loss_surface(context(tmp_path / "broken"), **artifacts(lab, subject), **values)
    assert len(calls) == 5 + 1  # of nine points four were there; and the weights are put back
    assert read(tmp_path / "broken" / "surface.json") == read(tmp_path / "whole" / "surface.json")


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is nan"):
        analyse.measured(context(tmp_path), [1, 2], lambda case: {"loss": math.nan if case == 2 else 1.0})


# noise on the weights


def test_noise_has_the_size_of_the_weights_and_is_the_same_at_every_scale() -> None:
    weights = {"large": 3.0 * torch.randn(200, 300), "none": torch.zeros(4), "bias": torch.full((20_000,), 0.5)}
    found = analyse.noise(weights, 0, 1)
    assert float(found["large"].std() / weights["large"].square().mean().sqrt()) == pytest.approx(1.0, rel=0.02)
    assert float(found["bias"].std()) == pytest.approx(0.5, rel=0.02)
    assert not found["none"].any()
    assert torch.equal(analyse.noise(weights, 0, 1)["large"], found["large"])
    assert not torch.equal(analyse.noise(weights, 0, 2)["large"], found["large"])
    assert not torch.equal(analyse.noise(weights, 1, 1)["large"], found["large"])


def test_score_without_noise_is_the_selected_one(lab: Lab, subject: study.Subject, tmp_path: Path) -> None:
    values = {"scales": [0.1, 2.0], "draws": 3, "seed": 0, "metric": "accuracy", "pad_to_max": False}
    analyse.weight_noise(context(tmp_path), **artifacts(lab, subject), rows=1000, **values)
    found = read(tmp_path / "noise.json")
    selected = subject.result["scores"]["dev"]["accuracy"]["selected"]
    assert found["rows"] == found["of"] == 64 and found["scales"] == [0.0, 0.1, 2.0]
    assert found["score"][0] == {"mean": selected, "deviation": 0.0, "draws": [selected]}
    for level in found["loss"][1:]:
        assert len(level["draws"]) == 3
        assert level["mean"] == pytest.approx(np.mean(level["draws"]))
        assert level["deviation"] == pytest.approx(np.std(level["draws"], ddof=1)) and level["deviation"] > 0
    assert found["loss"][2]["mean"] > found["loss"][1]["mean"]


# the distance to the teacher


def test_attention_kl_by_hand() -> None:
    teacher = torch.log(torch.tensor([[0.5, 0.5, 1.0], [0.9, 0.1, 1.0], [0.3, 0.3, 0.4]]))[None, None]
    student = torch.log(torch.tensor([[0.75, 0.25, 9.0], [0.9, 0.1, 5.0], [0.1, 0.1, 0.8]]))[None, None]
    padded = torch.tensor([[1, 1, 0]])  # the third key is padding, and so is the third row
    row = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert analyse.attention_kl(student, teacher, padded).item() == pytest.approx(row / 2, abs=1e-7)
    assert analyse.attention_kl(teacher, teacher, torch.ones(1, 3)).item() == 0.0
    heads = torch.cat([student, teacher], dim=1)
    assert analyse.attention_kl(heads, teacher.expand(-1, 2, -1, -1), padded).item() == pytest.approx(row / 4, abs=1e-7)


def direct_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """By Gram matrices of examples: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    k, m = x @ x.T, y @ y.T
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


def test_linear_cka_over_batches_is_that_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 5.0 + torch.randn(90, 6, generator=generator)
    turned, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    other = torch.randn(90, 4, generator=generator) + x[:, :4]
    ours, theirs = [x, torch.ones(90, 6)], [3.0 * x @ turned - 7.0, other]
    whole, parts = analyse.Agreement(), analyse.Agreement()
    whole.add(ours, theirs)
    for start, stop in ((0, 10), (10, 11), (11, 90)):
        parts.add([states[start:stop] for states in ours], [states[start:stop] for states in theirs])
    expected = [[1.0, direct_cka(x, other)], [0.0, 0.0]]  # rotated, scaled and moved: alike; constant: like nothing
    assert 0.1 < expected[0][1] < 0.9
    np.testing.assert_allclose(whole.similarity(), expected, atol=1e-5)
    np.testing.assert_allclose(parts.similarity(), expected, atol=1e-5)


def views(hidden: dict[int, torch.Tensor], attention: dict[int, torch.Tensor], mask: torch.Tensor) -> Views:
    return Views(torch.zeros(len(mask), 2), hidden, attention, {}, {}, {}, mask)


def test_distances_of_known_states() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    states = torch.randn(2, 4, 3, generator=generator)
    scores = torch.randn(2, 2, 4, 4, generator=generator)
    doubled = 2 * states
    doubled[1, 2:] = 1e6  # padding must not count
    student = views({0: states, 1: doubled}, {1: scores}, mask)
    teacher = views({0: states, 1: states}, {1: scores}, mask)
    sums = analyse.Distances([(1, 1)], linear=None, attention=True)
    sums.add(student, teacher)
    sums.add(student, teacher)
    found = sums.result()
    assert found["attention"] == [0.0]
    assert found["hidden"] == [pytest.approx(1.0, abs=1e-6)]  # |2h - h|^2 / |h|^2
    assert found["cka"] == [pytest.approx(0.0, abs=1e-5)]
    assert np.shape(found["similarity"]) == (2, 2)

    half = nn.Linear(3, 3)
    with torch.no_grad():
        half.weight.copy_(torch.eye(3) / 2)
        half.bias.zero_()
        projected = analyse.Distances([(1, 1)], linear=half, attention=False)
        projected.add(student, teacher)
    assert projected.result()["hidden"] == [pytest.approx(0.0, abs=1e-6)]
    assert projected.result()["attention"] == [None]

    narrow = views({0: states[..., :2], 1: states[..., :2]}, {1: scores}, mask)
    apart = analyse.Distances([(1, 1)], linear=None, attention=True)
    apart.add(narrow, teacher)
    assert apart.result()["hidden"] == [None] and apart.result()["cka"][0] < 1


@pytest.mark.parametrize(
    ("layer_map", "pairs", "depths", "mapped", "compared"),
    [
        ("last", [], (2, 4), [(2, 4)], [(1, 2), (2, 4)]),
        (None, [], (3, 6), [], [(1, 2), (2, 4), (3, 6)]),
        (None, [], (2, 3), [], [(2, 3)]),  # the depths do not divide
        ("pairs", ["1-1"], (2, 4), [(1, 1)], [(1, 1), (1, 2), (2, 4)]),
    ],
)
def test_compared_pairs(layer_map: Any, pairs: Any, depths: tuple[int, int], mapped: Any, compared: Any) -> None:
    assert analyse.compared_pairs(layer_map, pairs, *depths) == (mapped, compared)


def test_a_model_is_at_no_distance_from_itself(lab: Lab, subject: study.Subject, tmp_path: Path) -> None:
    teacher = place(lab, subject.teacher)
    values = {"layer_map": "last", "pairs": [], "rows": 12, "seed": 0, "pad_to_max": False}
    analyse.layer_distance(
        context(tmp_path, eval_batch=5), model=teacher, teacher=teacher, data=place(lab, subject.data), **values
    )
    found = read(tmp_path / "distance.json")
    assert list(found["students"]) == ["student"] and found["rows"] == 12 and found["no_attention"] == ""
    assert found["pairs"] == [[1, 1], [2, 2], [3, 3], [4, 4]] and found["mapped"] == [[4, 4]]
    for split in ("train", "dev"):
        one = found["students"]["student"][split]
        assert one["attention"] == [0.0] * 4 and one["hidden"] == [0.0] * 4
        np.testing.assert_allclose(one["cka"], 0.0, atol=1e-5)
        assert np.shape(one["similarity"]) == (5, 5)


# a graph from its description


def test_a_described_graph_is_loaded_with_the_same_identities(run: Path) -> None:
    described = read(run / "graph.json")
    graph = Graph.load(described)
    assert [stage.fingerprint for stage in graph] == [entry["fingerprint"] for entry in described]
    student = next(stage for stage in graph if stage.label == "logits")
    assert student.inputs["teacher_logits"].inputs["teacher"].label == "teacher" and student.after[0].label == "vet"
    assert set(graph.targets) >= {"evaluate_student", "measure_student"} and "logits" not in graph.targets
    ours, theirs = ({entry["artifact"]: entry for entry in one} for one in (graph.describe(), described))
    assert ours == theirs


def test_a_description_that_was_changed_is_refused(run: Path) -> None:
    changed = read(run / "graph.json")
    stage = next(entry for entry in changed if entry["label"] == "logits")
    stage["values"]["seed"] += 1
    with pytest.raises(KdlabError, match=f"stage 'logits' says it is {stage['artifact']}, but what it holds makes"):
        Graph.load(changed)
    with pytest.raises(KdlabError, match="stage 1 of a graph is not described in full: KeyError 'version'"):
        Graph.load([{name: value for name, value in changed[0].items() if name != "version"}])
    with pytest.raises(KdlabError, match="stage 1 of a graph"):
        Graph.load(changed[::-1])  # a stage before what it needs


# which runs


def test_what_a_subject_knows(subject: study.Subject) -> None:
    assert (subject.student.label, subject.data.label) == ("logits", "tokenise")
    assert subject.teacher is not None and subject.teacher.label == "teacher"
    assert subject.layers is not None and subject.layers.name == "distill_layers"
    assert [stage.label for stage in subject.trained] == ["teacher", "layers", "logits"]
    assert study.own_map(subject) == {"layer_map": "last", "pairs": []}
    planned = study.plan(subject, study.Settings(analyses=("gap", "noise", "distance"), rows=9), prefix="x/")
    assert {name: stage.label for name, stage in planned.items()} == {"noise": "x/noise", "distance": "x/distance"}
    assert planned["noise"].values["rows"] == 9
    assert planned["distance"].inputs["layers"] is subject.layers


def test_all_that_is_wrong_with_the_settings_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        study.Settings.of("gap,surfce,noise", rows=1, points=4, span=0.0, draws=0, seed=-1)
    text = str(caught.value)
    assert "--what surfce: choose among gap, surface, noise, distance, languages; did you mean surface?" in text
    assert len(caught.value.problems) == 6
    assert study.Settings.of("noise, gap").analyses == ("gap", "noise")
    assert study.Settings.of("").analyses == study.ANALYSES


def altered(subject: study.Subject, folder: str, **changes: Any) -> study.Subject:
    """The same run with other values in its configuration: seed=2, method__layers__mixup=0.0."""
    told = json.loads(json.dumps(subject.record.told))
    for path, value in changes.items():
        *way, last = path.split("__")
        node = told["config"]
        for name in way:
            node = node[name]
        node[last] = value
    record = replace(subject.record, folder=Path(folder), told=told)
    return study.Subject(record, subject.graph, subject.student, subject.data, subject.teacher)


def test_runs_that_differ_in_their_seed_are_one_group(subject: study.Subject) -> None:
    plain = [altered(subject, str(seed), seed=seed, name=f"n{seed}", outputs=f"o{seed}") for seed in (1, 2)]
    other = altered(subject, "kd", method__name="kd")
    groups = study.grouped([*plain, other])
    assert {label: [one.seed for one in group] for label, group in groups.items()} == {"cr_ild": [1, 2], "kd": [42]}


def test_groups_of_one_method_are_told_apart_by_what_differs(subject: study.Subject) -> None:
    changed = altered(subject, "b", method__layers__mixup=0.0)
    assert list(study.grouped([subject, changed])) == ["cr_ild, layers.mixup=1.0", "cr_ild, layers.mixup=0.0"]
    task = altered(subject, "c", task__name="glue/rte")
    assert list(study.grouped([subject, task])) == ["cr_ild, demo/nli", "cr_ild, glue/rte"]


def test_what_can_not_be_opened(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run\.json"):
        study.Subject.open(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.json", "graph.json"):
        shutil.copy(run / name, copy)
    with pytest.raises(StoreError, match="has not finished"):
        study.Subject.open(copy)
    (copy / "result.json").write_text("{")
    with pytest.raises(StoreError, match="can't be read"):
        study.Subject.open(copy)
    shutil.copy(run / "result.json", copy)
    (copy / "graph.json").write_text(
        (run / "graph.json").read_text().replace('"temperature": 2.0', '"temperature": 3.0')
    )
    with pytest.raises(StoreError, match="it was changed, or written by another version"):
        study.Subject.open(copy)


def test_unfinished_jobs_and_runs_given_twice_are_left_out(run: Path, tmp_path: Path) -> None:
    unfinished, again = tmp_path / "unfinished", tmp_path / "again"
    unfinished.mkdir()
    shutil.copytree(run, again)
    subjects, left_out = study.open_all([[run, unfinished], [run], [again]])
    assert [one.folder for one in subjects] == [run]
    assert left_out == [f"{unfinished}: it has not finished", f"{again}: the same run as {run}"]
    with pytest.raises(StoreError, match="none of these runs has finished"):
        study.open_all([[unfinished, unfinished]])


# numbers


def test_figures_and_their_mean_over_seeds() -> None:
    def one(name: str, factor: float) -> dict[str, Any]:
        point = {"step": 4, "train": factor, "dev": 3 * factor, "gap": 2 * factor}
        splits = {"train": {"attention": [0.5], "hidden": [None], "cka": [0.0]}}
        splits["dev"] = {"attention": [0.75], "hidden": [None], "cka": [0.1]}
        found: dict[str, Any] = {
            "run": name,
            "gap": [{"stage": "logits", "selected": point, "last": point}],
            "surface": {"mean_rise": 0.3, "flat_area": 0.5, "center": 0.4},
            "noise": {
                "scales": [0.0, 0.1],
                "score": [{"mean": 0.9}, {"mean": 0.8}],
                "loss": [{"mean": 1.0}, {"mean": 2}],
            },
            "distance": {"pairs": [[2, 4]], "students": {"student": splits}},
            "notes": ["of all", *(["of one"] if name == "b" else [])],
        }
        return {**found, "figures": figures(found)}

    runs = [one("a", 1.0), one("b", 2.0)]
    found = averaged(runs)
    assert found["gap.logits.selected.gap"] == {"mean": 3.0, "deviation": pytest.approx(math.sqrt(2))}
    assert found["labels.gap"]["mean"] == pytest.approx(0.6)  # dev 1.0 without noise, train 0.4 in the middle
    assert found["noise.score.0.1"] == {"mean": 0.8, "deviation": 0.0}
    assert found["distance.student.2-4.attention.ratio"]["mean"] == pytest.approx(1.5)
    assert "distance.student.2-4.hidden.train" not in found  # widths differ
    assert "distance.student.2-4.cka.ratio" not in found  # nothing to divide by
    assert remarks(runs) == ["note: of all", "note: of one (b)"]


# the command


@pytest.fixture(scope="module")
def analysed(lab: Lab, run: Path) -> Done:
    done = lab.command(f"analyze {run} {FEW}")
    assert done.code == 0, done.err
    return done


def test_a_run_is_analysed_into_its_own_folder(analysed: Done, run: Path, subject: study.Subject) -> None:
    assert analysed.stages("run") == ["surface", "noise", "distance"] and analysed.stages("hit") == []
    folder = run / "analysis"
    names = {"gap", "surface", "noise", "distance", "similarity"}
    plots = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == plots | {"analysis.json", "graph.json"}
    found = read(folder / "analysis.json")
    assert set(found["plots"]) == plots
    settings = found["settings"]
    assert (settings["rows"], settings["points"], settings["draws"], settings["span"]) == (16, 3, 2, 1.0)
    (one,) = found["runs"]
    assert (one["method"], one["task"], one["seed"], one["metric"]) == ("cr_ild", "demo/nli", 42, "accuracy")
    assert one["selected"] == subject.result["scores"]["dev"]["accuracy"]["selected"]
    assert one["artifacts"]["student"] == subject.student.artifact
    assert one["artifacts"]["surface"].startswith("loss_surface-")
    assert [curve["stage"] for curve in one["gap"]] == ["teacher", "layers", "logits"]
    assert list(one["distance"]["students"]) == ["layers", "student"]
    weak = "the student is no better than the majority class: how flat and robust it is says little"
    assert (weak in one["notes"]) == (one["selected"] <= one["majority"])
    assert [note for note in one["notes"] if note != weak] == ["noise on 16 of 64 dev rows"]
    assert found["definitions"].keys() >= {"gap", "mean_rise", "flat_area", "noise", "attention", "hidden", "cka"}
    assert found["groups"][0]["label"] == "cr_ild" and found["groups"][0]["seeds"] == [42]
    assert found["versions"].keys() >= {"kdlab", "torch", "matplotlib"}
    described = Graph.load(read(folder / "graph.json"))
    assert {stage.label for stage in described} >= {"surface", "noise", "distance", "logits", "teacher"}


def test_gap_numbers_are_those_of_the_history(analysed: Done, run: Path, subject: study.Subject, lab: Lab) -> None:
    (one,) = read(run / "analysis" / "analysis.json")["runs"]
    curve = next(curve for curve in one["gap"] if curve["stage"] == "logits")
    history = read(place(lab, subject.student) / "history.json")
    assert curve["steps"] == [point["step"] for point in history["curves"]]
    assert curve["losses"]["dev"] == [point["losses"]["dev"] for point in history["curves"]]
    last = history["curves"][-1]["losses"]
    assert curve["last"]["gap"] == pytest.approx(last["dev"] - last["train"])
    assert curve["selected_step"] == history["selected_step"]


def test_tables_tell_loss_flatness_noise_and_distance(analysed: Done) -> None:
    lines = analysed.out.splitlines()
    assert any(line.split()[:2] == ["cr_ild", "1"] and "stage layers" in line for line in lines)
    assert any("hard labels" in line for line in lines)
    assert any(line.startswith("demo/nli, tiny: loss surface; accuracy x 100 under weight noise") for line in lines)
    assert sum("after layers" in line for line in lines) == sum("finished" in line for line in lines) == 2
    assert "note: noise on 16 of 64 dev rows" in lines


def test_analysing_again_runs_nothing_and_draws_the_same(analysed: Done, lab: Lab, run: Path, tmp_path: Path) -> None:
    again = lab.command(f"analyze {run} {FEW} --what noise,distance --out {tmp_path / 'again'}")
    assert again.stages("run") == [] and again.stages("hit") == ["noise", "distance"]
    drawn = sorted((tmp_path / "again").glob("*.*g"))
    assert [path.name for path in drawn if path.suffix == ".png"] == ["distance.png", "noise.png", "similarity.png"]
    for path in drawn:
        assert path.read_bytes() == (run / "analysis" / path.name).read_bytes(), path.name


def test_several_runs_are_analysed_together_without_those_parts_they_have_not(
    analysed: Done, lab: Lab, run: Path
) -> None:
    outputs = run.parents[1]
    # a student of its own: one of the same values may be there, with curves
    assert lab.run(f"method=ft curves=0 seed=77 {TINY}", outputs=outputs).code == 0
    done = lab.command(f"analyze {run.parent} {FEW} --what gap,noise,distance")
    assert done.code == 0, done.err
    found = read(outputs / "analysis" / "runs" / "analysis.json")
    assert [group["label"] for group in found["groups"]] == ["cr_ild", "ft"]
    by_method = {one["method"]: one for one in found["runs"]}
    assert "distance" not in by_method["ft"] and by_method["ft"]["gap"] == []
    told = by_method["ft"]["notes"]
    assert told[-2:] == ["no distance: the run has no teacher", "noise on 16 of 64 dev rows"]
    assert any(note.startswith("no curves of student: ") for note in told)
    assert f"note: no distance: the run has no teacher ({by_method['ft']['run']})" in done.out.splitlines()


def test_what_was_pruned_is_asked_for(analysed: Done, lab: Lab, run: Path, subject: study.Subject) -> None:
    artifact, away = place(lab, subject.student), lab.store / "away"
    artifact.rename(away)
    try:
        refused = lab.command(f"analyze {run} --rows 17 --what surface")
        assert refused.code == 2
        assert f"what run {run.name} has made is no longer there: {artifact.name}" in refused.err
        assert "make it again with `kdlab train method=cr_ild task=demo/nli model=tiny" in refused.err
        assert not any(lab.store.glob("building/loss_surface-*"))
        done = lab.command(f"analyze {run} {FEW} --what noise")  # made before: nothing is missing for it
        assert done.code == 0 and done.stages("hit") == ["noise"]
    finally:
        away.rename(artifact)
    other = lab.command(f"analyze {run} --store {lab.root / 'elsewhere'}")
    assert other.code == 2 and "--store FOLDER" in other.err


def test_help_tells_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["analyze", "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert all(f"--{name}" in told for name in ("what", "rows", "points", "span", "draws", "out", "seed", "threads"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere", "error: not the folder of a run: it has no run.json"),
        ("{run} --what curves", "--what curves: choose among gap, surface, noise, distance"),
        ("{run} --points 8 --draws 0", "error: 2 problems in the configuration:"),
    ],
)
def test_bad_words_get_one_message(lab: Lab, run: Path, words: str, said: str) -> None:
    done = lab.command(f"analyze {words.format(run=run)}")
    assert done.code == 2 and done.out == ""
    assert said in done.err and "Traceback" not in done.err
