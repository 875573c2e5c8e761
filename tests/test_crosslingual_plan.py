"""The graph of each method of the family of MUSC: its stages, what they share, and what changes them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from kdlab import compose, methods
from kdlab.config import Run
from kdlab.errors import DataError, HubError
from kdlab.graph import UNPINNED, Graph, Stage
from kdlab.pins import Pins

WORDS = "task=demo/sentiment_xx model=tiny_multilingual translator=rules tracking=none"
PRESETS = ("zero_shot_xlt", "translate_train", "translate_test", "translate_all", "supcon", "mixup", "musc")
ALWAYS = {"prepare", "tokenise", "prepare_sets", "tokenise_sets", "student", "evaluate_student", "measure_student"}


def composed(line: str) -> Run:
    (job,) = compose.jobs(shlex.split(f"{line} {WORDS}")).jobs
    return job.run


def planned(line: str) -> Graph:
    return methods.plan(composed(line), Pins())


def stage(line: str, label: str) -> Stage:
    return {found.label: found for found in planned(line)}[label]


def fingerprint(line: str, label: str = "student") -> str:
    return stage(line, label).fingerprint


@pytest.mark.parametrize("method", PRESETS)
def test_a_preset_has_the_stages_that_its_texts_and_views_need(method: str) -> None:
    more = set() if method in ("zero_shot_xlt", "translate_test") else {"translate_train"}
    assert {found.label for found in planned(f"method={method}")} == ALWAYS | more | {"translate_sets"}


def test_without_translated_views_nothing_is_translated() -> None:
    graph = planned("method=zero_shot_xlt method.views=[original]")
    assert {found.label for found in graph} == ALWAYS


def test_back_translation_goes_there_and_back() -> None:
    line = "method=translate_train method.texts=back_translated method.views=[original,translated,back_translated]"
    graph = {found.label: found for found in planned(line)}
    assert set(graph) == ALWAYS | {"translate_train", "back_train", "translate_sets", "back_sets"}
    there, back = graph["translate_train"].values["jobs"], graph["back_train"].values["jobs"]
    assert there[0] == {"read": "train.es.original", "write": "train.es.en", "source": "es", "target": "en"}
    assert back[0] == {"read": "train.es.en", "write": "train.es.back", "source": "en", "target": "es"}
    assert "train.en.original" not in {job["read"] for job in there}  # the source language's rows stay as they are
    assert graph["prepare"].values["trained"] == ["en", "es", "fr", "de"]
    assert graph["tokenise"].inputs["back"] is graph["back_train"]


def test_pairs_need_only_the_source_languages_training_rows() -> None:
    graph = {found.label: found for found in planned("method=musc")}
    assert graph["prepare"].values["trained"] == ["en"]
    assert graph["student"].values["languages"] == ["es", "fr", "de"]
    jobs = [(job["read"], job["write"]) for job in graph["translate_train"].values["jobs"]]
    assert jobs == [("train.en.original", f"train.en.{language}") for language in ("es", "fr", "de")]
    jobs = [(job["read"], job["write"]) for job in graph["translate_sets"].values["jobs"]]
    assert ("test.fr.original", "test.fr.en") in jobs and ("dev.de.original", "dev.de.en") in jobs
    assert all("en.original" not in read for read, _ in jobs)


def test_what_only_asks_differently_shares_its_training() -> None:
    assert fingerprint("method=zero_shot_xlt") == fingerprint("method=translate_test")
    assert fingerprint("method=translate_train") == fingerprint("method=translate_all")
    assert (
        len({fingerprint(f"method={name}") for name in ("zero_shot_xlt", "translate_all", "supcon", "mixup", "musc")})
        == 5
    )


@pytest.mark.parametrize(
    "words",
    [
        "method.views=[original,translated,back_translated]",
        "method.ensemble=logits",
        "method.share=0.3",
        "method.inference=original",
        "task.test_limit=10",
        "translator.max_missing=0.5",
    ],
)
def test_how_a_student_is_asked_does_not_change_its_training(words: str) -> None:
    assert fingerprint(f"method=musc {words}") == fingerprint("method=musc")


@pytest.mark.parametrize(
    "words",
    [
        "seed=7",
        "method.languages=[es,fr]",
        "method.student.contrast.weight=0.2",
        "method.student.contrast.temperature=0.5",
        "method.student.mixup=0.5",
        "method.student.alpha=0.4",
        "method.student.mixed_source=0.5",
        "method.student.normalise_terms=true",
        "method.select.languages=source",
        "method.select.view=both",
        "select_on=last",
        "translator.unit=sentence",
        "hardware.micro_batch=16 method.student.contrast.weight=0",
    ],
)
def test_what_changes_the_student(words: str) -> None:
    assert fingerprint(f"method=musc {words}") != fingerprint("method=musc")


def test_what_is_off_is_at_its_default() -> None:
    off = stage("method=translate_train", "student").values["objective"]
    assert off["contrast"]["weight"] == 0.0 and off["mixup"] == 0.0 and off["mixed_source"] == 1.0
    assert "lr" not in off and "epochs" not in off


def test_selection_by_a_translated_view_reads_the_translated_sets() -> None:
    assert set(stage("method=musc", "student").inputs) == {"data"}
    assert set(stage("method=musc method.select.view=both", "student").inputs) == {"data", "sets"}
    assert set(stage("method=musc select_on=test", "student").inputs) == {"data", "sets"}
    assert stage("method=musc select_on=last", "student").values["select"] is None
    held = stage("method=musc select_on=heldout", "student").values["select"]
    assert held["view"] == "original" and stage("method=musc select_on=heldout", "prepare").values["heldout"] == 0.1


def test_the_rows_of_a_forward_pass_count_where_examples_meet() -> None:
    assert stage("method=musc", "student").values["forward_rows"] == composed("method=musc").method.student.batch_size  # type: ignore[attr-defined]
    assert stage("method=translate_all", "student").values["forward_rows"] is None


def test_recorded_translations_are_pinned_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "method=musc task.languages=[en,es] translator=recorded 'translator.path=\"{source}-{target}.jsonl\"'"
    for name in ("en-es", "es-en"):
        (tmp_path / f"{name}.jsonl").write_text('{"source": "a", "target": "b"}\n')

    def stages() -> dict[str, Stage]:
        (job,) = compose.jobs(shlex.split(WORDS.replace("translator=rules", "") + " " + words)).jobs
        return {found.label: found for found in methods.plan(job.run, Pins())}

    first = stages()
    values = first["translate_train"].values["translator"]
    assert values["pattern"] == "{source}-{target}.jsonl" and set(values["files"]) == {"en-es"}
    assert len(values["files"]["en-es"]["content"]) == 64
    assert first["translate_train"].places["translator"] == str(tmp_path)
    assert str(tmp_path) not in str(values)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "more.txt").write_text("a file that is no translation")
    assert stages()["translate_train"].fingerprint == first["translate_train"].fingerprint
    (tmp_path / "es-en.jsonl").write_text('{"source": "a", "target": "c"}\n')
    assert stages()["translate_train"].fingerprint == first["translate_train"].fingerprint
    assert stages()["translate_sets"].fingerprint != first["translate_sets"].fingerprint


def test_models_on_the_hub_and_in_a_folder_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def values(model: str) -> dict[str, Any]:
        words = ["method=translate_train", "task.languages=[en,es]", "translator=hf", f'translator.model="{model}"']
        (job,) = compose.jobs([*shlex.split(WORDS.replace("translator=rules", "")), *words]).jobs
        graph = {found.label: found for found in methods.plan(job.run, Pins())}
        return dict(graph["translate_train"].values["translator"])

    pair = values("Helsinki-NLP/opus-mt-{source}-{target}")
    assert pair["models"] == {"Helsinki-NLP/opus-mt-en-es": {"id": "Helsinki-NLP/opus-mt-en-es", "revision": UNPINNED}}
    assert values("facebook/m2m100_418M")["models"]["facebook/m2m100_418M"]["id"] == "facebook/m2m100_418M"
    (job,) = compose.jobs(shlex.split(f"{WORDS.replace('translator=rules', '')} method=musc translator=m2m100")).jobs
    pins = Pins()
    with pytest.raises(HubError, match=r"model facebook/m2m100_418M: offline, and not in the local cache"):
        pins.require(job.run, methods.plan(job.run, pins))
    for name in ("en-es", "es-en"):
        (tmp_path / "mine" / f"opus-{name}").mkdir(parents=True)
        (tmp_path / "mine" / f"opus-{name}" / "config.json").write_text('{"model_type": "marian"}')
    local = values("mine/opus-{source}-{target}")
    assert local["pattern"] == "opus-{source}-{target}" and set(local["models"]) == {"opus-en-es"}
    assert set(local["models"]["opus-en-es"]) == {"content"} and str(tmp_path) not in str(local)
    assert values("mine/opus-en-es")["pattern"] is None


def test_a_missing_folder_of_translations_is_told(tmp_path: Path) -> None:
    words = f"method=musc translator=recorded translator.path={tmp_path}/nothing"
    (job,) = compose.jobs(shlex.split(WORDS.replace("translator=rules", "") + " " + words)).jobs
    with pytest.raises(DataError, match="there is no file or folder") as caught:
        methods.plan(job.run, Pins())
    assert caught.value.where == "translator.path"


def test_a_method_of_distillation_trains_on_the_source_language_and_is_scored_on_all() -> None:
    line = "method=ft task=demo/sentiment_xx model=tiny tracking=none"
    (job,) = compose.jobs(shlex.split(line)).jobs
    graph = {found.label: found for found in methods.plan(job.run, Pins())}
    assert graph["prepare"].values["source"]["language"] == "en"
    assert set(graph["prepare_sets"].values["evaluations"]) == {"es", "fr", "de"}
    assert graph["prepare_sets"].values["evaluations"]["fr"]["language"] == "fr"


def test_recorded_translations_are_not_asked_for_dev_unless_it_chooses_by_them(tmp_path: Path) -> None:
    words = f"translator=recorded translator.path={tmp_path}"
    asked = {
        "method=musc": {"test"},
        "method=musc method.select.view=both": {"dev", "test"},
        "method=musc method.select.view=both select_on=test": {"test"},
    }
    for line, splits in asked.items():
        (job,) = compose.jobs(shlex.split(f"{WORDS.replace('translator=rules', '')} {words} {line}")).jobs
        graph = {found.label: found for found in methods.plan(job.run, Pins())}
        assert {job["read"].partition(".")[0] for job in graph["translate_sets"].values["jobs"]} == splits


def test_everything_is_translated_before_anything_is_trained() -> None:
    graph = {found.label: found for found in planned("method=zero_shot_xlt")}
    assert graph["translate_sets"] in graph["student"].after


def test_plan_tells_whose_scores_choose_the_checkpoint() -> None:
    assert "checkpoint by the mean dev score of en, es, fr, de" in stage("method=musc", "student").notes
    held = stage("method=musc select_on=heldout", "student").notes
    assert "checkpoint by the mean heldout score of en" in held
