"""Whole runs of the family of MUSC from the command line: every preset on a few rows, with a very small student."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from kdlab.data.metrics import score
from kdlab.engine import checkpoint
from lab import Done, Lab, once, points, presets, read, run_folder
from test_contract import score_with_transformers_alone

WORDS = (
    "task=demo/sentiment_xx model=tiny_multilingual translator=rules task.languages=[en,es,fr] task.few.examples=96 "
    "task.dev_limit=24 task.test_limit=40 tracking=none hardware.threads=1 curves=16 method.student.epochs=2 "
    "method.student.lr=2e-3"
)
METHODS = presets("method", "crosslingual")
VARIANTS = {
    "back": "method=translate_train method.texts=back_translated method.views=[original,translated,back_translated]",
    "own": "method=musc method.texts=original",  # unpaired, with both
    "one": "method=translate_train method.languages=[es] method.student.alpha=0",
    "unasked": "method=zero_shot_xlt method.views=[original]",
    "noisy": "method=supcon method.student.contrast.head=linear task.noise.rate=0.2 task.few.balanced=true "
    "select_on=heldout",
}
CASES = [*METHODS, *VARIANTS]
Runs = Callable[[str], tuple[Path, Done]]


def words(name: str) -> str:
    return f"{VARIANTS.get(name, f'method={name}')} {WORDS}"


@pytest.fixture(scope="session")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each case, run once: its folder and what the command printed."""
    return once(lab, words, tmp_path_factory)


pytestmark = pytest.mark.xdist_group("crosslingual")  # they share what they train


def predictions(lab: Lab, result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    file = lab.store / result["artifacts"]["evaluate_student"] / f"predictions-{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(lab: Lab, result: dict[str, Any], stage: str, name: str) -> pa.Table:
    with pa.memory_map(str(lab.store / result["artifacts"][stage] / f"{name}.arrow")) as source:
        return pa.ipc.open_file(source).read_all()


@pytest.mark.parametrize("name", CASES)
def test_a_run_tells_every_language_in_every_mode(name: str, runs: Runs) -> None:
    folder, _ = runs(name)
    result = read(folder / "result.json")
    modes = {"unasked": {"original"}, "back": {"original", "translated", "both", "back_translated"}}
    wanted = modes.get(name, {"original", "translated", "both"})
    for split in ("dev", "test"):
        assert set(result["languages"][split]) == wanted
        for languages in result["languages"][split].values():
            assert set(languages) == {"en", "es", "fr"}
            assert languages["en"] == result["languages"][split]["original"]["en"]  # one pass of the source language
    own = result["means"]["test"][result["inference"]["mode"]]["all"]["macro_f1"]
    assert result["scores"]["test"]["macro_f1"]["selected"] == pytest.approx(own, abs=1e-12)
    assert result["split"] == "test" and result["metric"] == "macro_f1"


def test_means_are_those_of_the_languages(runs: Runs) -> None:
    result = read(runs("musc")[0] / "result.json")
    for mode, languages in result["languages"]["test"].items():
        values = {language: scores["accuracy"] for language, scores in languages.items()}
        means = result["means"]["test"][mode]
        assert means["all"]["accuracy"] == pytest.approx(sum(values.values()) / 3)
        assert means["without_source"]["accuracy"] == pytest.approx((values["es"] + values["fr"]) / 2)


def test_the_student_alone_gives_the_original_mode_and_with_translations_both(runs: Runs, lab: Lab) -> None:
    folder, _ = runs("musc")
    result = read(folder / "result.json")
    told = predictions(lab, result, "test.es")
    rows = table(lab, result, "prepare_sets", "test.es.original")
    assert [line["id"] for line in told] == rows["id"].to_pylist()
    original = score_with_transformers_alone(folder / "student", rows, 32)
    assert np.allclose(original, [line["logits"]["original"] for line in told], atol=1e-4)
    translations = table(lab, result, "translate_sets", "test.es.en")
    translated = score_with_transformers_alone(folder / "student", translations, 32)
    place = {row: number for number, row in enumerate(translations["id"].to_pylist())}
    both = []
    for line, logits in zip(told, original, strict=True):
        other = translated[place[line["id"]]] if line["id"] in place else logits
        parts = [np.exp(one - one.max()) / np.exp(one - one.max()).sum() for one in (logits, other)]
        both.append((parts[0] + parts[1]) / 2)
    found = np.array(both).argmax(-1)
    names = read(lab.store / result["artifacts"]["prepare"] / "facts.json")["labels"]
    assert [names[answer] for answer in found] == [line["prediction"]["both"] for line in told]
    accuracy = score("accuracy", found, rows["label"].to_numpy())
    assert accuracy == pytest.approx(result["languages"]["test"]["both"]["es"]["accuracy"])


def test_rows_without_a_translation_are_answered_from_their_text_and_counted(runs: Runs, lab: Lab) -> None:
    result = read(runs("musc")[0] / "result.json")
    missing = 0
    for language in ("es", "fr"):
        known = set(table(lab, result, "translate_sets", f"test.{language}.en")["id"].to_pylist())
        told = predictions(lab, result, f"test.{language}")
        without = [line for line in told if line["id"] not in known]
        assert all(line["logits"]["translated"] == line["logits"]["original"] for line in without)
        assert result["inference"]["fallbacks"]["test"][language].get("translated", 0) == len(without)
        missing += len(without)
    counted = result["translations"]
    assert missing == sum(counted[f"test.{language}.en"]["missing"] for language in ("es", "fr"))


def test_presets_that_only_ask_differently_train_once(runs: Runs) -> None:
    for first, second in (("zero_shot_xlt", "translate_test"), ("translate_train", "translate_all")):
        one, other = (read(runs(name)[0] / "result.json") for name in (first, second))
        assert one["artifacts"]["student"] == other["artifacts"]["student"]
        assert one["languages"] == other["languages"]
        assert one["inference"]["mode"] != other["inference"]["mode"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("zero_shot_xlt", {"label"}),
        ("translate_train", {"label_source", "label_target"}),
        ("one", {"label_target"}),
        ("supcon", {"label_source", "label_target", "contrast"}),
        ("mixup", {"label_source", "label_target", "mixed_source", "mixed_target"}),
        (
            "musc",
            {
                *("label_source", "label_target", "mixed_source", "mixed_target"),
                *("contrast", "contrast_mixed_source", "contrast_mixed_target"),
            },
        ),
        ("own", {"label", "mixed", "contrast_mixed"}),
    ],
)
def test_every_term_is_logged_under_its_name(name: str, parts: set[str], runs: Runs) -> None:
    found = [point for point in points(runs(name)[0]) if "loss" in point]
    assert {key.removeprefix("parts/") for point in found for key in point if key.startswith("parts/")} == parts
    last = found[-1]
    assert last["loss"] == pytest.approx(sum(last[f"weighted/{part}"] for part in parts), rel=1e-5)


def test_the_projection_is_not_part_of_the_student(runs: Runs, lab: Lab) -> None:
    names = {method: set(load_file(runs(method)[0] / "student" / "model.safetensors")) for method in ("musc", "mixup")}
    assert names["musc"] == names["mixup"]


def test_the_same_command_again_runs_nothing_and_says_the_same(runs: Runs, lab: Lab, tmp_path: Path) -> None:
    folder, _ = runs("musc")
    again = lab.run(words("musc"), outputs=tmp_path)
    assert again.code == 0 and again.stages("run") == []
    first, second = read(folder / "result.json"), read(run_folder(tmp_path) / "result.json")
    assert first["languages"] == second["languages"] and first["artifacts"] == second["artifacts"]


def test_selection_on_the_test_set_is_labelled(lab: Lab, tmp_path: Path) -> None:
    done = lab.run(f"method=musc_official {WORDS} method.student.eval_steps=2", outputs=tmp_path)
    assert done.code == 0, done.err
    result = read(run_folder(tmp_path) / "result.json")
    assert result["student"]["selection"]["on"] == "test"
    assert "test set" in result["student"]["selection"]["note"]
    assert result["inference"]["ensemble"] == "logits"
    assert "test set" in (run_folder(tmp_path) / "student" / "README.md").read_text(encoding="utf-8")
    history = read(lab.store / result["artifacts"]["student"] / "history.json")
    scores = [one["scores"]["test"]["macro_f1"] for one in history["evaluations"]]
    assert history["best_score"] == max(scores)


def test_a_method_of_distillation_is_scored_in_every_language(lab: Lab, tmp_path: Path) -> None:
    line = (
        "method=ft task=demo/sentiment_xx model=tiny task.languages=[en,es,fr] task.few.examples=96 debug=fast "
        "tracking=none hardware.threads=1"
    )
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 0, done.err
    scores = read(run_folder(tmp_path) / "result.json")["scores"]
    assert {"dev", "test", "es", "fr"} <= set(scores)


def test_a_language_without_test_labels_is_told_and_in_no_mean(lab: Lab, tmp_path: Path) -> None:
    rows = {"good": "yes", "bad": "no", "fine": "yes", "poor": "no"}
    for language in ("en", "es", "fr"):
        folder = tmp_path / "data" / language
        folder.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            lines = [
                f"{language} {split} {word} {number},{'' if (language, split) == ('es', 'test') else label}"
                for number in range(12)
                for word, label in rows.items()
            ]
            (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    line = (
        f"method=zero_shot_xlt method.views=[original] task=sample/languages task.languages=[en,es,fr] "
        f"task.source.path={tmp_path / 'data'} task.max_length=32 model=tiny_multilingual tracking=none debug=fast"
    )
    done = lab.run(line, outputs=tmp_path / "outputs")
    assert done.code == 0, done.err
    result = read(run_folder(tmp_path / "outputs") / "result.json")
    assert set(result["languages"]["test"]["original"]) == {"en", "fr"}
    assert "the rows of test.es have no labels" in done.out
    assert any("test.es have no labels" in warning["text"] for warning in result["warnings"])


@pytest.mark.slow  # of another family: test_kill
def test_kill_9_in_training_leaves_no_trace(runs: Runs, lab: Lab, tmp_path: Path) -> None:
    """A run that is killed between two checkpoints and given again ends with the weights of an unbroken one."""
    folder, _ = runs("musc")
    command = [sys.executable, "-m", "kdlab", "train", *words("musc").split(), "hardware.checkpoint_seconds=0"]
    command += [f"store={tmp_path / 'store'}", f"outputs={tmp_path / 'outputs'}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90

    def trained() -> bool:
        building = (tmp_path / "store" / "building").glob("finetune_pairs-*/work")
        return any(checkpoint.checkpoints(work) for work in building)

    while not trained():
        assert child.poll() is None and time.monotonic() < deadline, "no checkpoint was seen"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list((tmp_path / "store").glob("finetune_pairs-*")), "it was too late: the stage was done"
    again = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    assert "continues at step" in again.stdout
    ours = load_file(run_folder(tmp_path / "outputs") / "student" / "model.safetensors")
    theirs = load_file(folder / "student" / "model.safetensors")
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
