"""A student of RTE on GLUE's hidden test sets, by a local Hub: the files of the leaderboard, judged without kdlab."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from local_hub import HubRun

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

KDLAB = (sys.executable, "-m", "kdlab")
WORDS = ("method=ft", "model=minilm_6_to_3", "task=glue/rte", "debug=fast", "tracking=none", "name=rte")
COMPARED = 40  # rows


@pytest.fixture(scope="module")
def run(hub_run: HubRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("evaluate")
    done = hub_run(*KDLAB, "train", *WORDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "runs" / "rte"


def rows_of(shared: Path, config: str) -> list[dict[str, object]]:
    (file,) = (shared / "hub" / "datasets" / "nyu-mll" / "glue" / config).glob("test-*.parquet")
    found: list[dict[str, object]] = pq.read_table(file).to_pylist()
    return found


def written(file: Path) -> list[list[str]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "index\tprediction"
    return [line.split("\t") for line in lines[1:]]


@pytest.mark.parametrize(("config", "count"), [("rte", 3000), ("wnli", 146)])
def test_files_of_the_leaderboard(run: Path, hub_run: HubRun, shared: Path, config: str, count: int) -> None:
    """WNLI has RTE's classes in the other order, and wants numbers."""
    done = hub_run(
        *KDLAB, "evaluate", run, f"task=glue/{config}", "--split", "test", "--leaderboard", "board", cwd=run.parents[2]
    )
    assert done.returncode == 0, done.stderr
    board = run.parents[2] / "board"
    lines, rows = written(board / f"{config.upper()}.tsv"), rows_of(shared, config)
    assert len(lines) == len(rows) == count
    assert [int(index) for index, _ in lines] == [row["idx"] for row in rows]
    assert {row["label"] for row in rows} == {-1}
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    model = AutoModelForSequenceClassification.from_pretrained(run / "student").eval()
    words = {"rte": {}, "wnli": {"not_entailment": "0", "entailment": "1"}}[config]
    for row, (_, answer) in list(zip(rows, lines, strict=True))[:COMPARED]:
        inputs = tokenizer(row["sentence1"], row["sentence2"], truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            name = model.config.id2label[int(model(**inputs).logits.argmax())]
        assert answer == words.get(name, name)
    with zipfile.ZipFile(board / "submission.zip") as archive:
        assert f"{config.upper()}.tsv" in archive.namelist()
    assert "a submission needs all 11" in done.stdout
    (file,) = (run / "evaluations").glob(f"glue_{config}-test-*/evaluation.json")
    told = json.loads(file.read_text())
    assert told["classes"]["reordered"] is (config == "wnli") and len(told["source"]["revision"]) == 40


def test_tasks_with_other_answers_are_refused(run: Path, hub_run: HubRun) -> None:
    for task, why in (("mnli", "has 3: entailment, neutral, contradiction"), ("stsb", "is a regression task")):
        done = hub_run(*KDLAB, "evaluate", run, f"task=glue/{task}", cwd=run.parents[2])
        assert done.returncode == 2 and why in done.stderr


def test_rows_of_dev_by_predict(run: Path, hub_run: HubRun, shared: Path) -> None:
    (file,) = (shared / "hub" / "datasets" / "nyu-mll" / "glue" / "rte").glob("validation-*.parquet")
    done = hub_run(*KDLAB, "predict", run, "--input", file, "--output", "dev.jsonl", cwd=run.parents[2])
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in (run.parents[2] / "dev.jsonl").read_text().splitlines()]
    assert len(said) == 277
    result = json.loads((run / "result.json").read_text())
    own = run.parents[1] / "artifacts" / result["artifacts"]["evaluate_student"] / "predictions-dev.jsonl"
    for line in map(json.loads, own.read_text().splitlines()):
        assert said[line["id"]]["prediction"] == line["prediction"]
