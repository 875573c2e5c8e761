"""What every method preset promises, on a tiny model and a few rows: the same tests for all of them."""

from __future__ import annotations

import csv
import json
import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fake_apertium import install
from kdlab import compose
from kdlab.catalog import entries
from kdlab.config import Distillation, LayerFit, Run
from kdlab.engine import loop
from lab import CONF, TINY, Lab, once, points, presets, read, run_folder

MOVING = ("console.log", "status.json")  # files of a run that a second look changes
METHODS = presets("method", "distillation")  # of the other families: test_reasoning_runs.py, test_crosslingual_*.py
EXPERIMENTS = [name for name, _ in entries("experiment") if name.startswith(("demo/", "cpu/"))]
# of the papers': test_experiments.py
IN_VAIN = {"cr_ild_official": {"consistency_attention", "consistency_hidden"}}  # its terms that contribute nothing
VARIANTS = {  # switches of the presets, and conditions, under the same contract
    "cr_ild_ema": "method=cr_ild method.layers.consistency.target=ema",
    "bert_emd_shared": "method=bert_emd method.layers.transport.reset_each_epoch=true method.layers.pad_rows=include "
    "method.layers.relation_mask=none method.layers.transport.separate=false",
    "joint_cr_ild": "method=joint method.joint.mixup=1.0 method.joint.consistency.weight=0.1 "
    "method.joint.consistency.ramp=constant method.joint.alpha=0.5",
    "narrow": "method=minilm_v2 model=tiny_narrow method.layers.relations=[query,key,value,hidden,embedding,patient] "
    "method.layers.layer_map=pairs method.layers.pairs=[1-3,2-4]",
    "supplement": "method=l_ild task@supplement=demo/nli supplement.few.examples=40 method.layers.teacher=pretrained",
    "conditions": "method=pkd task.few.examples=48 task.few.balanced=true task.few.teacher=own task.noise.rate=0.3 "
    "task.imbalance.ratio=2 task.noise.teacher=clean",
}
REST = {"bert_emd_official", "bert_emd_shared", "cr_ild_official", "pkd_official"}  # near another one: slow
INTERRUPTED = {"conditions", "cr_ild", "joint", "kd", "narrow"}  # the rest: slow


def cases(*slow: str) -> list[Any]:
    """All of them; those of one preset run on one worker, which has trained it."""
    marks = {name: [pytest.mark.slow] if name in slow else [] for name in [*METHODS, *VARIANTS]}
    return [pytest.param(name, marks=[pytest.mark.xdist_group(name), *some]) for name, some in marks.items()]


CASES = cases(*REST)
KEYS = {
    "run": {"name", "method", "task", "model", "seed", "precision", "select_on"},
    "student": {"scores", "selection", "head", "path", "parameters", "bytes", "flops_per_example", "latency_ms"},
    "selection": {"on", "step", "last_step", "score"},
    "versions": {"kdlab", "python", "torch", "transformers", "datasets", "accelerate"},
    "git": {"commit", "dirty"},
}
TOP = {
    *(
        "run",
        "metric",
        "split",
        "scores",
        "student",
        "teacher",
        "majority",
        "rows",
        "seeds",
        "artifacts",
        "warnings",
        "files",
    ),
    *("conditions", "versions", "git", "made_by", "seconds", "seconds_of_stages", "sources"),
}


def words(name: str) -> str:
    """The command of a preset or a variant, on a tiny model."""
    given = shlex.split(VARIANTS.get(name, f"method={name}"))
    keys = {word.partition("=")[0] for word in given}
    return shlex.join([*given, *(word for word in shlex.split(TINY) if word.partition("=")[0] not in keys)])


@pytest.fixture(scope="session")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each preset and variant, run once: its folder and what the command printed."""
    return once(lab, words, tmp_path_factory)


def composed(name: str) -> Run:
    (job,) = compose.jobs(shlex.split(words(name))).jobs
    return job.run


def configured(name: str) -> Distillation:
    method = composed(name).method
    assert isinstance(method, Distillation)
    return method


def expected_parts(method: Distillation) -> dict[str, set[str]]:
    """The loss terms that a configuration asks for, by stage."""
    parts = {"teacher": {"label"}, "student": {"label"}, "layers": layer_parts(method.layers)}
    logits, joint = method.logits, method.joint
    parts["logits"] = {name for name, share in (("logit", 1 - logits.alpha), ("label", logits.alpha)) if share}
    if not logits.clean:
        parts["logits"] = set()
    if logits.mixed.mixup:
        parts["logits"] |= {f"mixed_{name}" for name in ("logit", "label") if getattr(logits.mixed, name)}
    parts["joint"] = layer_parts(joint) | {"logit"} | ({"label"} if joint.alpha else set())
    return {stage: parts[stage] for stage in method.stages}


def layer_parts(fit: LayerFit) -> set[str]:
    held = {f"consistency_{name}" for name in fit.consistency.terms} if fit.consistency.weight else set()
    return set(fit.relations) | held


def score_with_transformers_alone(folder: Path, rows: pa.Table, max_length: int) -> np.ndarray:
    """Logits [N, C] of the published student, without any code of kdlab."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    firsts, seconds = rows["text_a"].to_pylist(), rows["text_b"].to_pylist()
    texts = (firsts,) if seconds[0] is None else (firsts, seconds)
    batch = tokenizer(*texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.numpy()


def prepared(lab: Lab, result: dict[str, Any], split: str) -> pa.Table:
    file = lab.store / result["artifacts"]["prepare"] / f"{split}.arrow"
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


# every preset


def test_all_presets_are_tested() -> None:
    others = [*presets("method", "reasoning"), *presets("method", "crosslingual")]
    assert sorted([*METHODS, *others]) == [name for name, _ in entries("methods")]
    assert sorted(file.stem for file in (CONF / "method").glob("*.yaml")) == sorted([*METHODS, *others])
    assert len(METHODS) == 17


@pytest.mark.parametrize("method", CASES)
def test_a_preset_runs_and_tells_all_about_it(method: str, runs: Any, lab: Lab) -> None:
    folder, done = runs(method)
    stages = configured(method).stages
    assert [label for label in done.stages("run") + done.stages("hit") if label in stages] != []
    result = read(folder / "result.json")
    assert set(result) == TOP
    for name, keys in KEYS.items():
        section = result["student"]["selection"] if name == "selection" else result[name]
        assert keys <= set(section), name
    assert (result["run"]["method"], result["run"]["task"]) == (configured(method).name, "demo/nli")
    assert (result["teacher"] is None) == ("teacher" not in stages)
    if result["teacher"] is not None:
        assert KEYS["student"] - {"path"} <= set(result["teacher"])
        assert result["teacher"]["parameters"] > result["student"]["parameters"] > 0
        assert result["seeds"] == {"run": 42, "teacher": 42}
    assert result["metric"] == "accuracy" and result["scores"] == result["student"]["scores"]
    dev = result["scores"]["dev"]["accuracy"]
    assert set(dev) == {"selected", "last", "best"} and 0 <= dev["selected"] <= dev["best"] <= 1
    assert set(result["artifacts"]) == set(result["seconds_of_stages"]) >= {"prepare", "tokenise", *stages}
    assert all((lab.store / name / "manifest.json").exists() for name in result["artifacts"].values())
    assert result["majority"]["dev"]["accuracy"] > 0
    assert result["rows"]["train"] == (
        31 if method == "conditions" else 64
    )  # 16 + 11 + 8 rows of three classes, four held out
    assert (folder / "console.log").stat().st_size > 0
    assert {file.name for file in folder.iterdir()} == {
        *("run.json", "graph.json", "status.json", "metrics.jsonl", "console.log", "result.json", "student")
    }


@pytest.mark.parametrize("method", CASES)
def test_every_configured_term_is_logged_and_counts(method: str, runs: Any) -> None:
    folder, done = runs(method)
    found = points(folder)
    assert [point["global_step"] for point in found] == sorted(point["global_step"] for point in found)
    in_vain = IN_VAIN.get(method, set())
    for stage, names in expected_parts(configured(method)).items():
        own = [point for point in found if point["stage"] == stage and "loss" in point]
        assert own and own[-1]["step"] == own[-1]["steps"]
        assert all(np.isfinite(point["loss"]) for point in own)
        for name in names - in_vain:
            assert any(point.get(f"parts/{name}", 0) != 0 for point in own), f"{stage}: {name}"
            assert any(point.get(f"weighted/{name}", 0) != 0 for point in own), f"{stage}: {name}"
        for point in own:
            total = sum(value for key, value in point.items() if key.startswith("weighted/"))
            assert point["loss"] == pytest.approx(total, rel=1e-5)
    told = " ".join(warning["text"] for warning in read(folder / "result.json")["warnings"])
    for name in in_vain:
        assert name in told
        assert name.removeprefix("consistency_") in done.err
    if not in_vain:
        assert "nothing" not in told and "contributes" not in done.err


@pytest.mark.parametrize("method", CASES)
def test_given_again_everything_is_a_hit(method: str, runs: Any, lab: Lab) -> None:
    folder, _ = runs(method)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name not in MOVING}
    done = lab.run(words(method), outputs=folder.parent.parent)
    assert done.code == 0 and done.stages("run") == [] and done.stages("done") == []
    assert set(done.stages("hit")) == set(read(folder / "result.json")["artifacts"])
    assert "other code" not in done.out
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name not in MOVING}
    assert after == before


@pytest.mark.parametrize("method", CASES)
def test_the_student_is_a_plain_transformers_model(method: str, runs: Any, lab: Lab) -> None:
    folder, _ = runs(method)
    result = read(folder / "result.json")
    rows = prepared(lab, result, "dev")
    logits = score_with_transformers_alone(folder / "student", rows, 32)
    assert logits.shape == (64, 3) and np.isfinite(logits).all()
    config = read(folder / "student" / "config.json")
    assert [config["id2label"][key] for key in sorted(config["id2label"])] == ["entailment", "neutral", "contradiction"]
    assert (folder / "student" / "README.md").read_text(encoding="utf-8").startswith("---")
    assert result["student"]["head"] == configured_head(method)
    if result["student"]["head"] == "stock":
        accuracy = float((logits.argmax(-1) == np.array(rows["label"].to_pylist())).mean())
        assert accuracy == pytest.approx(result["scores"]["dev"]["accuracy"]["selected"], abs=1e-9)
    artifact = lab.store / result["artifacts"][configured(method).stages[-1]] / "model" / "model.safetensors"
    assert (folder / "student" / "model.safetensors").read_bytes() == artifact.read_bytes()


def configured_head(method: str) -> str:
    return composed(method).model.student.head


class Interrupted(KeyboardInterrupt):
    """The process was stopped."""


@pytest.fixture(scope="session")
def other_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A second store, so that every stage is made again."""
    return Lab(tmp_path_factory.mktemp("other"))


@pytest.mark.parametrize("method", cases(*({*METHODS, *VARIANTS} - INTERRUPTED)))
def test_interrupted_in_each_stage_it_ends_with_the_same_bits(
    method: str, runs: Any, lab: Lab, other_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each student's stage is stopped behind the checkpoint of its second step, and the command given again."""
    whole, _ = runs(method)
    artifacts = read(whole / "result.json")["artifacts"]
    stages = [stage for stage in configured(method).stages if stage != "teacher"]
    stopped: list[str] = []
    save = loop.checkpoint.save

    def watched(work: Path, step: int, **named: Any) -> None:
        save(work, step, **named)
        place = work.parent.name
        if step == 2 and place not in stopped and any(place.startswith(artifacts[stage]) for stage in stages):
            stopped.append(place)
            raise Interrupted

    monkeypatch.setattr(loop.checkpoint, "save", watched)
    line = f"{words(method)} hardware.checkpoint_seconds=0"
    for _ in stages:
        assert other_lab.run(line, outputs=tmp_path).code == 130
    done = other_lab.run(line, outputs=tmp_path)
    assert done.code == 0 and "continues at step 2 of 4" in done.out, done.err
    assert len(stopped) == len(stages)
    for stage in stages:
        for name in ("model/model.safetensors", "history.json", "metrics.jsonl", "projection.safetensors"):
            ours, theirs = other_lab.store / artifacts[stage] / name, lab.store / artifacts[stage] / name
            assert ours.exists() == theirs.exists(), name
            assert not ours.exists() or ours.read_bytes() == theirs.read_bytes(), f"{stage}: {name}"
    assert read(run_folder(tmp_path) / "result.json")["scores"] == read(whole / "result.json")["scores"]


def test_presets_share_their_teacher(runs: Any) -> None:
    kd, cr_ild = (read(runs(method)[0] / "result.json")["artifacts"] for method in ("kd", "cr_ild"))
    assert kd["teacher"] == cr_ild["teacher"] and kd["logits"] != cr_ild["logits"]
    assert (
        len({read(runs(method)[0] / "result.json")["artifacts"]["prepare"] for method in ("ft", "kd", "cr_ild")}) == 1
    )


@pytest.mark.parametrize("method", CASES)
def test_the_store_is_sound_after_it(method: str, runs: Any, lab: Lab) -> None:
    made = set(read(runs(method)[0] / "result.json")["artifacts"].values())
    done = lab.command(f"store verify --store {lab.store}")
    assert done.code == 0 and "0 damaged files" in done.out
    left = [folder.name for folder in (lab.store / "building").iterdir()]
    assert not [name for name in made for folder in left if folder.startswith(name)]


def test_the_run_folder_can_go_without_losing_work(runs: Any, lab: Lab, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    done = lab.run(f"method=kd {TINY}", outputs=tmp_path)
    assert done.code == 0 and done.stages("run") == []
    again = run_folder(tmp_path)
    assert again.name == folder.name
    assert (again / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert read(again / "result.json")["scores"] == read(folder / "result.json")["scores"]


# selection


@pytest.mark.parametrize("select_on", ["dev", "last"])
def test_where_the_checkpoint_is_selected(select_on: str, lab: Lab, tmp_path: Path) -> None:
    done = lab.run(f"method=kd {TINY} select_on={select_on} method.logits.eval_steps=1", outputs=tmp_path)
    assert done.code == 0, done.err
    result = read(run_folder(tmp_path) / "result.json")
    assert "heldout" not in result["rows"] and "heldout" not in result["scores"]
    dev, chosen = result["scores"]["dev"]["accuracy"], result["student"]["selection"]
    assert chosen["on"] == select_on and chosen["last_step"] == 4
    if select_on == "last":
        assert chosen["step"] == 4 and dev["selected"] == dev["last"] and chosen["score"] is None
    else:
        assert dev["selected"] == dev["best"] == chosen["score"]
    curve = [
        point for point in points(run_folder(tmp_path)) if point["stage"] == "logits" and "eval/dev/accuracy" in point
    ]
    assert [point["step"] for point in curve] == [1, 2, 3, 4]
    assert max(point["eval/dev/accuracy"] for point in curve) == dev["best"]


# one's own data


WORDS = ("red", "green", "blue", "round", "square", "small", "large")


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 6)))


REGRESSION = """\
# How alike are two descriptions?
defaults:
  - /schema@_here_: task
  - _self_
name: alike
kind: regression
source: {{path: {path}}}
text: [one, two]
label: score
metric: pearson_spearman
metrics: [pearson]
max_length: 24
"""


def test_regression_from_a_csv_of_ones_own(lab: Lab, tmp_path: Path) -> None:
    rng = random.Random(1)
    file = tmp_path / "alike.csv"
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["one", "two", "score"])
        for _ in range(120):
            one, two = sentence(rng), sentence(rng)
            writer.writerow([one, two, len(set(one.split()) & set(two.split()))])
    chosen = lab.task("alike", REGRESSION.format(path=file))
    words = f"method=cr_ild {chosen} model=tiny debug=fast tracking=none hardware.threads=1"
    done = lab.run(words, outputs=tmp_path)
    assert done.code == 0, done.err
    folder = run_folder(tmp_path)
    result = read(folder / "result.json")
    assert set(result["scores"]["dev"]) == {"pearson_spearman", "pearson"}
    config = read(folder / "student" / "config.json")
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    rows = prepared(lab, result, "dev")
    logits = score_with_transformers_alone(folder / "student", rows, 24)
    pearson = float(np.corrcoef(logits[:, 0], np.array(rows["label"].to_pylist()))[0, 1])
    assert pearson == pytest.approx(result["scores"]["dev"]["pearson"]["selected"], abs=1e-5)
    parts = {key for point in points(folder) if point["stage"] == "logits" for key in point if key.startswith("parts/")}
    assert parts == {"parts/logit"}
    assert lab.run(words, outputs=tmp_path).stages("run") == []
    with open(file, "a", encoding="utf-8") as out:
        out.write("red,red,1\n")
    changed = lab.run(words, outputs=tmp_path, verb="plan")
    assert changed.code == 0 and " cached " not in changed.out


SINGLE = """\
# Does a description name a colour first?
defaults:
  - /schema@_here_: task
  - _self_
name: first
source: {{path: {path}}}
text: [text]
label: answer
labels: ["no", "yes"]
splits: {{dev: dev}}
metric: f1
metrics: [accuracy, mcc]
max_length: 16
"""


def test_single_sentences_from_jsonl_files_of_ones_own(lab: Lab, tmp_path: Path) -> None:
    rng = random.Random(2)
    (tmp_path / "rows").mkdir()
    for split, count in (("train", 90), ("dev", 30)):
        with open(tmp_path / "rows" / f"{split}.jsonl", "w", encoding="utf-8") as out:
            for _ in range(count):
                text = sentence(rng) + f" {split}"
                out.write(json.dumps({"text": text, "answer": "yes" if text.split()[0] in WORDS[:3] else "no"}) + "\n")
    chosen = lab.task("first", SINGLE.format(path=tmp_path / "rows"))
    words = f"method=ft {chosen} model=tiny debug=fast tracking=none hardware.threads=1"
    done = lab.run(words, outputs=tmp_path)
    assert done.code == 0, done.err
    folder = run_folder(tmp_path)
    result = read(folder / "result.json")
    assert result["rows"]["dev"] == 30 and set(result["scores"]["dev"]) == {"f1", "accuracy", "mcc"}
    rows = prepared(lab, result, "dev")
    assert rows["text_b"].null_count == 30
    logits = score_with_transformers_alone(folder / "student", rows, 16)
    accuracy = float((logits.argmax(-1) == np.array(rows["label"].to_pylist())).mean())
    assert accuracy == pytest.approx(result["scores"]["dev"]["accuracy"]["selected"], abs=1e-9)


# experiments


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Words for an empty copy of reasoning-teacher's folder, of which a plan looks at the names alone."""
    folder = tmp_path_factory.mktemp("authors")
    for task in [name.partition("/")[2] for name in presets("task", "reasoning")]:
        for file in (f"dataset/{task}.json", f"completion_data/B_text-davinci-002__C_zs_cot/D_{task}.json"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("{}")
    return f"task.source.path={folder} rationales.path={folder}"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_plans(
    experiment: str, authors: str, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "apertium"  # a plan looks up what of Apertium is installed
    install(monkeypatch, place, "en-es", "es-en", "es-fr", "fr-es")
    own = authors if experiment == "cpu/cot" else ""
    done = lab.run(f"-m experiment={experiment} {own}", outputs=tmp_path, verb="plan")
    assert done.code == 0, done.err
    assert "to run" in done.out
    assert list(tmp_path.iterdir()) == [place]


def test_a_run_that_was_moved_keeps_its_student(runs: Any, tmp_path: Path) -> None:
    folder, _ = runs("ft")
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder / "student", moved)
    assert AutoModelForSequenceClassification.from_pretrained(moved).num_labels == 3
