"""A real student as ONNX: onnxruntime gives the logits that the run wrote down, row by row and without padding."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from local_hub import HubRun

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

KDLAB = (sys.executable, "-m", "kdlab")
WORDS = ("method=ft", "task=glue/rte", "model=minilm_6_to_3", "debug=fast", "tracking=none", "name=real")


def test_minilm_by_onnxruntime_answers_as_in_the_run(hub_run: HubRun, shared: Path, tmp_path: Path) -> None:
    done = hub_run(*KDLAB, "train", *WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = hub_run(*KDLAB, "export", "outputs/runs/real", "--to", "rte", "--format", "onnx", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    told = json.loads((tmp_path / "rte" / "export.json").read_text())
    assert told["check"]["rows"] == 64 and told["check"]["tokens"][1] == 512
    assert told["check"]["agreeing"] == told["check"]["predictions"]

    result = json.loads((tmp_path / "outputs" / "runs" / "real" / "result.json").read_text())
    artifact = tmp_path / "outputs" / "artifacts" / result["artifacts"]["evaluate_student"]
    predicted = [json.loads(line) for line in (artifact / "predictions-dev.jsonl").read_text().splitlines()]
    (file,) = (shared / "hub" / "datasets" / "nyu-mll" / "glue" / "rte").glob("validation-*.parquet")
    rows = pq.read_table(file).to_pylist()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rte")
    session = onnxruntime.InferenceSession(tmp_path / "rte" / "model.onnx")
    wanted = np.array([entry["logits"] for entry in predicted])
    found = []
    for entry in predicted:
        row = rows[entry["id"]]
        inputs = tokenizer([row["sentence1"]], [row["sentence2"]], truncation=True, max_length=128, return_tensors="np")
        found.append(session.run(["logits"], {one.name: inputs[one.name] for one in session.get_inputs()})[0][0])
    assert len(found) == 64 and np.abs(np.array(found) - wanted).max() < 1e-5 * np.abs(wanted).max()
