"""The whole command on real data and a real model, by a local Hub; the student is judged without kdlab."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lab import presets
from local_hub import HubRun

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

KDLAB = (sys.executable, "-m", "kdlab")
TRAIN = (*KDLAB, "train", "task=glue/rte", "debug=fast", "tracking=none")


@pytest.fixture(scope="module")
def run(hub_run: HubRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("rte")
    done = hub_run(*TRAIN, "method=cr_ild", "model=minilm_6_to_3", cwd=folder)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "outputs" / "runs").iterdir()
    return found


def test_student_reloaded_by_transformers_alone_has_the_score_of_the_result(run: Path, shared: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    artifact = run.parents[1] / "artifacts" / result["artifacts"]["evaluate_student"]
    predicted = [json.loads(line) for line in (artifact / "predictions-dev.jsonl").read_text().splitlines()]
    (file,) = (shared / "hub" / "datasets" / "nyu-mll" / "glue" / "rte").glob("validation-*.parquet")
    rows = pq.read_table(file).to_pylist()
    chosen = [rows[entry["id"]] for entry in predicted]

    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    model = AutoModelForSequenceClassification.from_pretrained(run / "student").eval()
    right = 0
    for row in chosen:
        inputs = tokenizer(row["sentence1"], row["sentence2"], truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            right += int(model(**inputs).logits.argmax()) == row["label"]
    assert len(chosen) == 64
    assert right / len(chosen) == result["scores"]["dev"]["accuracy"]["selected"]
    assert model.config.num_hidden_layers == 3
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_second_call_runs_nothing(run: Path, hub_run: HubRun) -> None:
    again = hub_run(*TRAIN, "method=cr_ild", "model=minilm_6_to_3", cwd=run.parents[2])
    assert again.returncode == 0, again.stderr
    assert "hit   layers" in again.stdout
    assert "\nrun " not in f"\n{again.stdout}"


def test_plan_knows_tokens_once_the_data_is_prepared(run: Path, hub_run: HubRun) -> None:
    shown = hub_run(*KDLAB, "plan", *TRAIN[4:], "method=kd", "model=minilm_6_to_3", cwd=run.parents[2])
    assert shown.returncode == 0, shown.stderr
    (line,) = (line for line in shown.stdout.splitlines() if line.strip().startswith("logits"))
    assert "run" in line and "~" not in line.split("run", 1)[1].rsplit(" ", 3)[0]


def test_store_is_whole(run: Path, hub_run: HubRun) -> None:
    found = hub_run(*KDLAB, "store", "verify", cwd=run.parents[2])
    assert found.returncode == 0
    assert "0 damaged files" in found.stdout


def test_a_model_that_the_hub_has_not(hub_run: HubRun, tmp_path: Path) -> None:
    refused = hub_run(*KDLAB, "train", "method=cr_ild", "task=glue/rte", "tracking=none", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the Hub has no such model google-bert/bert-base-uncased" in refused.stderr
    assert "fix:" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_layers_from_another_task_then_logits_on_this_one(run: Path, hub_run: HubRun) -> None:
    """MNLI for the layer stage: of it, nothing but training rows is read (the local Hub has no others)."""
    supplement = ("task@supplement=glue/mnli", "supplement.few.examples=200")
    folder = run.parents[2]
    done = hub_run(*TRAIN, "method=l_ild", "model=minilm_6_to_3", *supplement, cwd=folder)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "outputs" / "runs").glob("l_ild-*")
    result = json.loads((found / "result.json").read_text())
    assert "hit   teacher" in done.stdout
    facts = json.loads(
        (folder / "outputs" / "artifacts" / result["artifacts"]["prepare_supplement"] / "facts.json").read_text()
    )
    assert facts["conditions"]["few"]["examples"] == 200
    graph = {stage["label"]: stage for stage in json.loads((found / "graph.json").read_text())}
    assert graph["layers"]["inputs"]["supplement"] == result["artifacts"]["tokenise_supplement"]
    assert graph["layers"]["inputs"]["data"] == graph["logits"]["inputs"]["data"] == result["artifacts"]["tokenise"]


def test_every_preset_on_regression(run: Path, hub_run: HubRun) -> None:
    """One sweep of all that distil on STS-B, with one teacher per head."""
    methods = presets("method", "distillation")
    folder = run.parents[2]
    words = (*KDLAB, "train", "-m", f"method={','.join(methods)}", "task=glue/stsb", "model=minilm_6_to_3")
    done = hub_run(*words, "debug=fast", "debug.rows=32", "tracking=none", "name=presets", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{len(methods)} of {len(methods)} jobs finished" in done.stdout
    results = [
        json.loads(file.read_text()) for file in (folder / "outputs" / "sweeps" / "presets").glob("*/result.json")
    ]
    assert sorted(result["run"]["method"] for result in results) == methods
    assert len({result["artifacts"]["teacher"] for result in results if "teacher" in result["artifacts"]}) == 2
    wanted = {"pearson_spearman", "pearson", "spearman"}
    assert all(set(result["scores"]["dev"]) == wanted for result in results)
