"""What a run in several languages tells its user: result.json, tables, the model card, and `kdlab analyze`."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

from kdlab import cli, config, study
from kdlab.artifacts import FORMAT, Artifact, Store, write_json
from kdlab.errors import ConfigError
from kdlab.graph import Graph, Stage, Work
from kdlab.report import plots
from kdlab.report.card import model_card
from kdlab.report.graph import plan_table
from kdlab.report.languages import language_table, tables
from kdlab.report.result import build
from kdlab.report.study import matrices
from kdlab.report.summary import score_table, summary_table
from kdlab.report.sync import summary_of
from kdlab.study import Settings

LANGUAGES = ["en", "es", "fr"]
ACCURACY = {  # on test, by mode and language; means: 0.6, 0.5 without en; 0.7, 0.65; 0.72, 0.68
    "original": {"en": 0.8, "es": 0.6, "fr": 0.4},
    "translated": {"en": 0.8, "es": 0.7, "fr": 0.6},
    "both": {"en": 0.8, "es": 0.74, "fr": 0.62},
}
COUNTS = {"rows": 100, "units": 150, "fresh": 90, "remembered": 60, "missing": 0, "empty": 0, "unchanged": 2, "cut": 0}


def crosslingual(**changes: Any) -> config.Run:
    run = config.Run(
        method=config.Crosslingual(name="musc"),
        model=config.Model(
            name="mbert", student=config.Encoder(id="google-bert/bert-base-multilingual-cased", revision="3f076f")
        ),
        task=config.Task(
            name="multilingual/tweets",
            source=config.Source(hub="someone/tweets", data_dir="{language}", revision="abc123"),
            text=["text"],
            labels=["bad", "good"],
            languages=list(LANGUAGES),
            language_names={"en": "english", "es": "spanish"},
            splits=config.Splits(dev="validation", test="test"),
            metrics=["macro_f1"],
        ),
        translator=config.Translator(name="apertium", kind="apertium", pivots={"fr": "es"}),
        hardware=config.Hardware(name="cpu"),
        tracking=config.Tracking(name="none", mode="none"),
        name="first",
        select_on="dev",
    )
    for path, value in changes.items():
        *parts, last = path.split("__")
        node: Any = run
        for part in parts:
            node = getattr(node, part)
        setattr(node, last, value)
    return run


def scores(accuracy: dict[str, dict[str, float]]) -> dict[str, Any]:
    """scores.json and means.json of one split; macro F1 is a tenth less."""
    by_language = {
        mode: {name: {"accuracy": value, "macro_f1": value - 0.1} for name, value in sorted(own.items(), reverse=True)}
        for mode, own in accuracy.items()
    }

    def mean(values: dict[str, dict[str, float]], names: list[str]) -> dict[str, float]:
        return {
            metric: round(sum(values[name][metric] for name in names) / len(names), 6)
            for metric in ("accuracy", "macro_f1")
        }

    means = {
        mode: {"all": mean(own, LANGUAGES), "without_source": mean(own, LANGUAGES[1:])}
        for mode, own in by_language.items()
    }
    return {"scores": by_language, "means": means}


class Made:
    """The artifacts of a run: en is translated into es and fr for training, test and dev rows into en."""

    def __init__(self, root: Path, accuracy: dict[str, dict[str, float]] | None = None) -> None:
        self.root = root
        self.targets: dict[str, Artifact] = {}
        found = scores(accuracy or ACCURACY)
        own = {
            "rows": {"train.en.original": 100, "train.en.es": 99} | {f"dev.{name}.original": 20 for name in LANGUAGES},
            "majority": {
                "train.en.original": {"accuracy": 0.5, "macro_f1": 0.3},
                **{f"dev.{name}.original": {"accuracy": 0.5, "macro_f1": 0.3} for name in LANGUAGES},
            },
            "conditions": {"en": {"few": None}},
        }
        shares = {"en": 0.4, "es": 0.5, "fr": 0.6}
        sets = {
            "rows": {f"test.{name}.original": 50 for name in LANGUAGES},
            "majority": {f"test.{name}.original": {"accuracy": shares[name], "macro_f1": 0.3} for name in LANGUAGES},
        }
        self.add("data", {"facts.json": own}, values={"source": {"hub": "someone/tweets"}})
        self.add("sets", {"facts.json": sets})
        route = {"modes": ["eng-spa"], "content": "c0ffee", "protocol": 1}
        there = {"train.en.es": COUNTS, "train.en.fr": {**COUNTS, "missing": 3, "unchanged": 0}}
        self.add(
            "translated_train",
            {"facts.json": {"jobs": there}},
            values={"translator": {"kind": "apertium", "unit": "text", "routes": {"en-es": route}}},
            facts={"warnings": ["train.en.fr: 3 of 100 rows have no translation"]},
        )
        back = {"test.es.en": {**COUNTS, "rows": 50}}
        modes = {"modes": ["fra-spa", "spa-eng"], "content": "decaf", "protocol": 1}
        self.add(
            "translated_sets",
            {"facts.json": {"jobs": back}},
            values={"translator": {"kind": "apertium", "unit": "text", "routes": {"fr-en": modes}}},
        )
        self.selected({"languages": LANGUAGES, "view": "original", "ensemble": "probabilities", "share": 0.5})
        dev = scores({mode: {name: 0.5 for name in LANGUAGES} for mode in ACCURACY})
        fallbacks = {
            "dev": {name: {} for name in LANGUAGES},
            "test": {"es": {"translated": 0}, "en": {}, "fr": {"translated": 4}},
        }
        self.add(
            "student_scores",
            {
                "scores.json": {"dev": dev["scores"], "test": found["scores"]},
                "means.json": {"dev": dev["means"], "test": found["means"]},
                "fallbacks.json": fallbacks,
            },
            warnings=["4 of 50 rows of test.fr have no translated text: their original text answers"],
        )
        figures = {"parameters": 177_000_000, "bytes": 711_000_000, "latency_ms": 40.0, "flops_per_example": 2.0e10}
        self.add("student_figures", {"figures.json": figures})

    def selected(self, select: dict[str, Any] | None, split: str = "dev") -> None:
        values = {"texts": "translated", "languages": ["es", "fr"], "select": select}
        files = {"history.json": history(split), "model/config.json": {}}
        self.add("student", files, values=values, facts={"selected_by": select["languages"]} if select else {})

    def add(
        self,
        name: str,
        files: dict[str, Any],
        *,
        values: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        for file, content in files.items():
            path = self.root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
        made = {"versions": {"kdlab": "0.1+abc"}, "seconds": 2.0}
        manifest = {"values": values or {}, "facts": facts or {}, "warnings": warnings or [], "made": made}
        self.targets[name] = Artifact(self.root / name, manifest)

    def result(self, run: config.Run | None = None, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
        targets = {name: artifact for name, artifact in self.targets.items() if name not in without}
        found = build(run or crosslingual(), targets, targets, 12.3456)
        json.dumps(found, allow_nan=False)
        return found


def history(split: str) -> dict[str, Any]:
    """Two evaluations, and the curves of train and of each language's dev rows."""
    values = [{"accuracy": 0.55, "macro_f1": 0.45}, {"accuracy": 0.5, "macro_f1": 0.4}]
    evaluations = [
        {"step": step, "scores": {split: value, f"{split}.es": value}}
        for step, value in zip((5, 10), values, strict=True)
    ]

    def point(step: int, losses: list[float]) -> dict[str, Any]:
        names = ["train", *(f"dev.{name}" for name in LANGUAGES)]
        return {
            "step": step,
            "epoch": step / 5,
            "losses": dict(zip(names, losses, strict=True)),
            "scores": {name: {"accuracy": 1 - loss} for name, loss in zip(names, losses, strict=True)},
        }

    curves = [point(0, [0.7, 0.7, 0.7, 0.7]), point(5, [0.4, 0.4, 0.5, 0.6]), point(10, [0.2, 0.3, 0.5, 0.7])]
    return {
        "evaluations": evaluations,
        "curves": curves,
        "selected_step": 5,
        "last_step": 10,
        "best_score": 0.55,
    }


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def printed(table: Table, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(table)
    return out.getvalue().splitlines()


def by_first(lines: list[str]) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in lines if line.split()}


# result.json


def test_the_score_is_the_mean_over_all_languages_in_the_own_inference(made: Made) -> None:
    found = made.result()
    assert (found["run"]["family"], found["metric"], found["split"]) == ("crosslingual", "accuracy", "test")
    assert found["scores"]["test"] == {"accuracy": {"selected": 0.72}, "macro_f1": {"selected": 0.62}}
    assert made.result(crosslingual(method__inference="original"))["scores"]["test"]["accuracy"] == {"selected": 0.6}
    assert found["means"]["test"]["both"]["without_source"] == {"accuracy": 0.68, "macro_f1": 0.58}
    assert found["task_languages"] == LANGUAGES and found["source_language"] == "en"
    assert found["languages"]["test"]["translated"]["fr"] == {"accuracy": 0.6, "macro_f1": 0.5}
    inference = found["inference"]
    assert (inference["mode"], inference["ensemble"], inference["share"]) == ("both", "probabilities", 0.5)
    assert inference["fallbacks"]["test"] == {"en": {}, "es": {"translated": 0}, "fr": {"translated": 4}}
    assert found["training"] == {"texts": "translated", "languages": ["es", "fr"]}
    assert found["student"]["parameters"] == 177_000_000 and found["student"]["path"] == "student"
    assert found["seeds"] == {"run": 42} and found["seconds"] == 12.346 and found["teacher"] is None


def test_counts_of_the_data_and_of_the_translations(made: Made) -> None:
    found = made.result()
    assert found["translations"].keys() == {"train.en.es", "train.en.fr", "test.es.en"}
    assert found["translations"]["train.en.fr"]["missing"] == 3
    assert found["translator"]["name"] == "apertium"
    assert found["translator"]["routes"].keys() == {"en-es", "fr-en"}  # of all stages that translated
    assert found["sources"]["translated_sets"]["kind"] == "apertium"
    assert found["rows"]["test.fr.original"] == 50 and found["rows"]["train.en.original"] == 100
    assert found["majority"]["test"] == {"accuracy": pytest.approx(0.5), "macro_f1": pytest.approx(0.3)}
    assert found["majority_of_languages"]["test"]["fr"]["accuracy"] == 0.6
    assert found["conditions"] == {"en": {"few": None}}
    assert {"stage": "translated_train", "text": "train.en.fr: 3 of 100 rows have no translation"} in found["warnings"]


@pytest.mark.parametrize(
    ("inference", "select", "dev"),
    [
        ("original", {"languages": LANGUAGES, "view": "original"}, {"last": 0.5, "best": 0.55}),
        ("both", {"languages": LANGUAGES, "view": "original"}, {}),  # asked otherwise
        ("both", {"languages": LANGUAGES, "view": "both"}, {"last": 0.5, "best": 0.55}),
        ("original", {"languages": ["en"], "view": "original"}, {}),  # a mean over other languages
        ("original", None, {"last": 0.5, "best": 0.55}),  # select_on=last: followed on the original texts of all
    ],
)
def test_scores_of_training_are_told_where_they_are_of_the_same_kind(
    made: Made, inference: str, select: Any, dev: dict[str, float]
) -> None:
    made.selected(select)
    found = made.result(crosslingual(method__inference=inference, select_on="dev" if select else "last"))
    assert found["scores"]["dev"]["accuracy"] == {"selected": 0.5, **dev}
    assert found["scores"]["test"]["accuracy"].keys() == {"selected"}


def test_selection_on_the_test_set_is_labelled_everywhere(made: Made) -> None:
    made.selected({"languages": LANGUAGES, "view": "original"}, split="test")
    run = crosslingual(select_on="test", method__inference="original")
    found = made.result(run)
    note = "chosen on the test set, as the official code does: optimistic"
    assert found["student"]["selection"]["note"] == note
    assert found["scores"]["test"]["accuracy"] == {"selected": 0.6, "last": 0.5, "best": 0.55}
    for table in (summary_table(found), score_table(found)):
        assert note in " ".join(" ".join(printed(table)).split())
    card = model_card(found, asdict(run))
    assert "Checkpoints are chosen on the test set, as the official code does: its scores are optimistic." in card
    assert f"**Note:** {note}." in card
    assert "note" not in made.result()["student"]["selection"]


def test_a_run_without_test_and_without_a_translator(made: Made) -> None:
    one_view = {"dev": {"original": {name: {"accuracy": 0.5, "macro_f1": 0.4} for name in LANGUAGES}}}
    means = {"dev": {"original": {"all": {"accuracy": 0.5, "macro_f1": 0.4}}}}
    files = {"scores.json": one_view, "means.json": means, "fallbacks.json": {"dev": {name: {} for name in LANGUAGES}}}
    made.add("student_scores", files)
    run = crosslingual(method__inference="original", method__views=["original"], method__texts="original")
    found = made.result(run, without=("sets", "translated_train", "translated_sets"))
    assert (found["split"], found["translator"], found["translations"]) == ("dev", None, {})
    text = "\n".join(printed(language_table(found)))
    assert "translated" not in text and "without" not in text
    assert "translations" not in "\n".join(printed(summary_table(found)))
    card = model_card(found, asdict(run))
    assert "## Translations" not in card and "translator" not in card


def test_tables_of_translations_of_the_sets_have_no_majority(made: Made) -> None:
    made.add("sets", {"facts.json": {"rows": {"dev.es.en": 20}}})  # of a task without test rows
    assert made.result()["majority"].keys() == {"train", "dev"}


# in the terminal


def test_the_summary_says_what_the_score_is_a_mean_of(made: Made) -> None:
    lines = printed(summary_table(made.result()))
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 80 and by_first(lines)["student"][:3] == ["student", "177.0", "M"]
    assert by_first(lines)["student"][-1] == "72.0" and by_first(lines)["majority"][-1] == "50.0"
    assert "selected: mean over 3 languages, inference=both" in text
    assert "translations by apertium: 250 rows of 3 tables (450 units, 180 of them remembered); 3 rows" in text
    assert text.endswith("3 rows without translation; 4 texts unchanged")


def test_languages_beside_modes(made: Made) -> None:
    lines = printed(language_table(made.result()))
    rows = by_first(lines)
    assert max(map(len, lines)) <= 80 and lines[0].strip() == "accuracy on test by language, x 100"
    assert rows["en"] == ["en", "(source)", "50", "40.0", "80.0", "80.0", "80.0"]
    assert rows["es"] == ["es", "50", "50.0", "60.0", "70.0", "74.0"]
    assert rows["fr"] == ["fr", "50", "60.0", "40.0", "60.0", "62.0", "4"]
    names = [line.split()[0] for line in lines if line.split()]
    assert names.index("en") < names.index("es") < names.index("fr")  # as in the task; scores.json has another order
    means = [line.split() for line in lines if line.strip().startswith("mean")]
    assert means == [["mean", "50.0", "60.0", "70.0", "72.0"], ["mean", "without", "en", "50.0", "65.0", "68.0"]]
    header = next(line for line in lines if "original" in line)
    above = lines[lines.index(header) - 1]
    assert above.rindex("both") + 4 == header.rindex("(score)") + 7  # the mark is under its mode
    text = " ".join(" ".join(lines).split())
    assert "without translation: rows that are answered from their original text" in text
    assert "both: 0.5 x probabilities of the original + 0.5 x those of the translation" in text


def test_all_modes_and_many_languages_fit_80_columns(made: Made) -> None:
    found = made.result()
    found["languages"]["test"]["back_translated"] = found["languages"]["test"]["original"]
    found["means"]["test"]["back_translated"] = found["means"]["test"]["original"]
    found["inference"]["fallbacks"]["test"]["fr"] = {"translated": 1234, "back_translated": 1300}
    lines = printed(language_table(found))
    assert max(map(len, lines)) <= 80 and any("1234 + 1300" in line for line in lines)
    assert not any("…" in line for line in lines)


def test_the_table_and_the_summary_for_wandb(made: Made) -> None:
    found = made.result()
    name, columns, rows = tables(found)
    assert (name, columns) == ("languages", ["set", "metric", "language", "original", "translated", "both"])
    assert ["test", "accuracy", "fr", 0.4, 0.6, 0.62] in rows and ["test", "macro_f1", "es", 0.5, 0.6, 0.64] in [
        [*row[:3], *(round(value, 6) for value in row[3:])] for row in rows
    ]
    assert ["test", "accuracy", "mean without en", 0.5, 0.65, 0.68] in rows
    told = summary_of(found)
    assert told["scores"]["test"]["both"]["es"]["accuracy"] == 0.74
    assert told["scores"]["test"]["accuracy"] == {"selected": 0.72}
    assert told["means"]["test"]["original"]["all"]["accuracy"] == 0.6
    assert told["translations"]["train.en.fr"]["missing"] == 3 and "languages" not in told
    assert found["scores"]["test"].keys() == {"accuracy", "macro_f1"}  # the result itself is as it was


# the model card


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    matter: dict[str, Any] = yaml.safe_load(head)
    return matter


def test_the_front_matter_tells_languages_and_what_the_student_scores_alone(made: Made) -> None:
    matter = front_matter(model_card(made.result(), asdict(crosslingual())))
    assert matter["language"] == LANGUAGES and matter["pipeline_tag"] == "text-classification"
    assert matter["tags"] == ["kdlab", "cross-lingual-transfer"] and matter["datasets"] == ["someone/tweets"]
    english, _, french = matter["model-index"][0]["results"]
    assert english["dataset"] == {
        "name": "multilingual/tweets, test, en",
        "type": "someone/tweets",
        "config": "english",
        "split": "test",
        "revision": "abc123",
    }
    assert french["dataset"]["config"] == "fr"
    assert french["metrics"] == [  # of the original texts: what the card's folder does by itself
        {"type": "accuracy", "name": "accuracy", "value": 0.4},
        {"type": "f1", "name": "macro F1", "value": pytest.approx(0.3)},
    ]


def test_the_front_matter_is_valid_for_the_hub_client(made: Made) -> None:
    cards = pytest.importorskip("huggingface_hub").ModelCard
    data = cards(model_card(made.result(), asdict(crosslingual()))).data
    assert data.language == LANGUAGES and data.eval_results[0].dataset_config == "english"


def test_languages_of_an_embedded_task_are_not_claimed(made: Made) -> None:
    run = crosslingual(task__source=config.Source(demo="sentiment_xx"))
    assert "language" not in front_matter(model_card(made.result(run), asdict(run)))


def test_the_card_tells_how_the_student_was_trained_and_asked(made: Made) -> None:
    fit = config.PairFit(mixup=1.0, contrast=config.Contrast(weight=0.1))
    run = crosslingual(method__student=fit)
    card = model_card(made.result(run), asdict(run), ["method=musc", "task=multilingual/tweets", "name=x", "seed=3"])
    for text in (
        "`someone/tweets`, a configuration or folder for each language, revision `abc123`; text: `text`.",
        "Languages: en, es, fr; source language: en.",
        "1. The student is fine-tuned on labelled texts in en and their translations into es, fr, in pairs that share "
        "a label: cross entropy; mixed inputs, Beta(1, 1); SupCon with weight 0.1, temperature 0.3.",
        "2. For the run's own score it is asked with both: 0.5 times the probabilities of the text and 0.5 times those "
        "of its translation.",
        "Translated by Apertium, which has rules (en-es by eng-spa; fr-en by fra-spa, spa-eng): 250 rows of 3 tables",
        "Without translation: rows that are answered from their original text.",
        "Checkpoints are chosen on the dev set: scores on it flatter.",
        "### By language, on test",
        "|  | rows | majority | original | translated | both (score) | without translation |",
        "| en (source) | 50 | 40.0 | 80.0 | 80.0 | 80.0 |  |",
        "| fr | 50 | 60.0 | 40.0 | 60.0 | 62.0 | 4 |",
        "| mean without en |  |  | 50.0 | 65.0 | 68.0 |  |",
        "macro F1:",
        "| `method.student.mixup` | `1.0` |",
        "| `translator.pivots` | `{'fr': 'es'}` |",
        "The code above gives the scores under *original*",
        "Those under *translated* need the translator above: it is the translation into en that is read.",
        "```sh\nkdlab train method=musc task=multilingual/tweets seed=3\n```",
        "2210.09588",
        "2004.11362",
        "1710.09412",
    ):
        assert text in card, text


@pytest.mark.parametrize(
    ("fit", "cited"),
    [
        ({}, []),
        ({"mixup": 1.0}, ["1710.09412"]),
        ({"contrast": config.Contrast(weight=0.1)}, ["2004.11362"]),
    ],
)
def test_papers_are_cited_by_what_was_done(made: Made, fit: dict[str, Any], cited: list[str]) -> None:
    run = crosslingual(method__student=config.PairFit(**fit))
    card = model_card(made.result(run), asdict(run))
    assert "2210.09588" in card and [one for one in ("1710.09412", "2004.11362") if one in card] == cited


def test_other_translators_and_ensembles_are_told(made: Made) -> None:
    models = {"facebook/m2m100_418M": {"id": "facebook/m2m100_418M", "revision": "55c2e6"}}
    values = {"translator": {"kind": "hf", "unit": "sentence", "beams": 5, "models": models}}
    for name in ("translated_train", "translated_sets"):
        made.targets[name].manifest["values"] = values
    run = crosslingual(method__ensemble="logits")
    card = model_card(made.result(run), asdict(run))
    assert "Translated by `facebook/m2m100_418M` (revision `55c2e6`), with beams of 5" in card
    assert "the sum of the logits of the text and of its translation" in card
    values["translator"] = {"kind": "hf", "unit": "sentence", "beams": 5, "sha256": "12", "pattern": None}
    assert "Translated by a local model, with beams of 5" in model_card(made.result(run), asdict(run))


def test_nothing_private_is_in_the_card(made: Made) -> None:
    run = crosslingual(
        task__source=config.Source(path="/home/me/tweets"),
        translator__path="/home/me/translations",
        translator__model="/home/me/m2m",
    )
    overrides = [
        "method=musc",
        "task.source.path=tweets",
        "translator.model=/home/me/m2m",
        "model.student.id=google-bert/bert-base-multilingual-cased",
        "store=/home/me/store",
        "hardware.threads=2",
        "method.student.epochs=3",
    ]
    card = model_card(made.result(run), asdict(run), overrides)
    assert "/home/me" not in card
    assert (
        "kdlab train method=musc task.source.path=... translator.model=... "
        "model.student.id=google-bert/bert-base-multilingual-cased method.student.epochs=3\n"
    ) in card


# the plan's estimates


def test_the_plan_counts_pairs_and_languages(tmp_path: Path) -> None:
    data = Stage("kdlab.stages.tokenise:tokenise", "tokenise", values={"max_length": 32})
    values = {"languages": ["es", "fr"], "texts": "translated", "fit": {}}
    work = Work(examples=None, epochs=2, batch_size=10, parameters=1000, cost=12.0, checkpoint=True)
    student = Stage(
        "kdlab.stages.crosslingual:finetune_pairs", "student", values=values, inputs={"data": data}, work=work
    )
    rows = {"train.en.original": 100, "train.en.es": 95, "train.en.fr": 5, "dev.en.original": 50}
    tokens = {"train.en.original": 1000, "train.en.es": 950, "train.en.fr": 50, "dev.en.original": 9999}
    published(Store(tmp_path), data, {}, facts={"rows": rows, "tokens": tokens})
    lines = printed(plan_table(Graph.of({"student": student}), Store(tmp_path), []), 120)
    line = next(line for line in lines if line.split()[:1] == ["student"])
    # 2 epochs of 100 rows, of 2 languages, of a text and its translation, at 10 tokens each
    assert " 20 " in line and " 8000 " in line


def published(store: Store, stage: Stage, files: dict[str, Any], *, facts: dict[str, Any] | None = None) -> None:
    """The artifact of a stage that was not run."""
    folder = store.path(stage.artifact)
    for name, content in {
        "manifest.json": {
            "format": FORMAT,
            "values": dict(stage.values),
            "facts": facts or {},
            "warnings": [],
            "files": {},
            "made": {"seconds": 1.0, "at": "2024-01-01T00:00:00", "continued": False, "versions": {"kdlab": "0"}},
        },
        **files,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content, seal=name == "manifest.json")


# kdlab analyze


def finished(root: Path, texts: str, seed: int, shift: float, *, artifacts: Made, **changes: Any) -> Path:
    """The folder of a finished run, with its student in the store beside it."""
    run = crosslingual(method__texts=texts, seed=seed, method__inference="original", **changes)
    run.store, run.outputs = str(root / "store"), str(root / "outputs")
    data = Stage("kdlab.stages.tokenise:tokenise", "tokenise", values={"max_length": 32})
    values = {"fit": {"epochs": 2}, "texts": texts, "seed": seed, "select": None, "languages": LANGUAGES}
    student = Stage("kdlab.stages.crosslingual:finetune_pairs", "student", values=values, inputs={"data": data})
    scored = Stage(
        "kdlab.stages.crosslingual:evaluate_languages", "evaluate_student", inputs={"model": student, "data": data}
    )
    graph = Graph.of({"student": student, "student_scores": scored})
    published(Store(run.store), student, {"history.json": history("dev")})
    found = artifacts.result(run)
    found["training"]["texts"] = texts
    for of_mode in (found["means"]["test"], found["languages"]["test"]):
        for one in of_mode.values():
            for metrics in one.values():
                metrics["accuracy"] = round(metrics["accuracy"] + shift, 6)
    folder = root / "sweep" / f"{texts}-{seed}-{len(changes)}"
    folder.mkdir(parents=True)
    told = {"run_id": folder.name, "config": asdict(run), "overrides": ["method=musc"]}
    for name, content in (("run", told), ("result", found), ("graph", graph.describe())):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def sweep(made: Made, tmp_path: Path) -> Path:
    """Two seeds of original and of translated training texts."""
    for texts, seed, shift in (
        ("original", 1, 0.0),
        ("original", 2, 0.02),
        ("translated", 1, 0.04),
        ("translated", 2, 0.06),
    ):
        finished(tmp_path, texts, seed, shift, artifacts=made)
    return tmp_path / "sweep"


def analyze(*words: str | Path) -> int:
    return cli.main(["analyze", *map(str, words)])


def test_a_sweep_over_kinds_of_texts_gives_the_matrix(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "out"
    assert analyze(sweep, "--out", out) == 0
    found = json.loads((out / "analysis.json").read_text())
    names = {"gap", "gap_by_language", "languages", "artifacts"}
    assert set(found["plots"]) == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert all((out / name).stat().st_size > 5000 for name in found["plots"])
    (matrix,) = found["matrices"]
    assert (matrix["task"], matrix["label"], matrix["metric"]) == ("multilingual/tweets", "musc", "accuracy")
    assert matrix["rows"] == matrix["columns"] == ["original", "translated", "back_translated"]
    assert matrix["values"] == [
        [pytest.approx(0.61), pytest.approx(0.71), None],  # (0.60 + 0.62) / 2; (0.70 + 0.72) / 2
        [pytest.approx(0.65), pytest.approx(0.75), None],
        [None, None, None],
    ]
    assert matrix["deviations"][0][0] == pytest.approx(0.0141421, abs=1e-6) and matrix["deviations"][2] == [None] * 3
    assert matrix["seeds"] == [[1, 2], [1, 2], []]
    labels = [group["label"] for group in found["groups"]]
    assert labels == ["musc, texts=original", "musc, texts=translated"]
    figures = found["groups"][0]["figures"]
    assert figures["languages.both.fr"]["mean"] == pytest.approx(0.63)
    assert figures["languages.original.without_source"]["mean"] == pytest.approx(0.51)
    text = capsys.readouterr().out
    assert "musc: accuracy on test texts, x 100" in " ".join(text.split())
    assert "61.0 ± 1.4" in text and "mean without en" in text and "surface" not in text


def test_curves_are_told_by_language_and_as_their_mean(sweep: Path, tmp_path: Path) -> None:
    assert analyze(sweep / "original-1-0", "--what", "gap") == 0
    found = json.loads((sweep / "original-1-0" / "analysis" / "analysis.json").read_text())
    (curve,) = found["runs"][0]["gap"]
    assert curve["stage"] == "student" and curve["losses"]["dev.fr"] == [0.7, 0.6, 0.7]
    assert curve["losses"]["dev"] == pytest.approx([0.7, 0.5, 0.5])
    assert curve["selected"]["gap"] == pytest.approx(0.1) and curve["last"]["gap"] == pytest.approx(0.3)
    assert curve["scores"][2]["dev"]["accuracy"] == pytest.approx(0.5)
    assert set(found["plots"]) == {f"{name}.{kind}" for name in ("gap", "gap_by_language") for kind in ("png", "svg")}
    assert found["matrices"] == [] and "languages" not in found["runs"][0]


def test_runs_that_differ_in_more_than_texts_make_no_matrix(made: Made, tmp_path: Path) -> None:
    folders = [
        finished(tmp_path, "original", 1, 0.0, artifacts=made),
        finished(tmp_path, "translated", 1, 0.0, artifacts=made, method__student=config.PairFit(mixup=1.0)),
    ]
    subjects = [study.Subject.open(folder) for folder in folders]
    assert study.matrix(subjects[0]) != study.matrix(subjects[1])
    assert analyze(*folders, "--what", "languages", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["matrices"] == [] and found["plots"] == ["languages.png", "languages.svg"]


def test_the_student_need_not_be_in_the_store_for_scores_alone(sweep: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert analyze(sweep, "--what", "languages", "--store", nowhere, "--out", tmp_path / "out") == 0
    assert analyze(sweep, "--what", "gap", "--store", nowhere, "--out", tmp_path / "out") == 2


def test_analyses_of_layer_distillation_are_refused(
    sweep: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    subject = study.Subject.open(sweep / "original-1-0")
    assert subject.family == "crosslingual" and subject.teacher is None
    assert study.asked(subject, Settings.of("")) == ["gap", "languages"]
    assert study.plan(subject, Settings.of("")) == {}
    with pytest.raises(ConfigError, match="a crosslingual run"):
        study.require(subject, {}, Settings.of("surface"), Store(tmp_path))
    assert analyze(sweep, "--what", "surface,noise") == 2
    assert "gap, languages" in capsys.readouterr().err


def test_a_student_no_better_than_the_majority_is_told(made: Made, tmp_path: Path) -> None:
    folder = finished(tmp_path, "original", 1, 0.0, artifacts=made)
    result = json.loads((folder / "result.json").read_text())
    result["scores"]["test"]["accuracy"]["selected"] = 0.5
    (folder / "result.json").write_text(json.dumps(result))
    assert analyze(folder, "--what", "languages") == 0
    found = json.loads((folder / "analysis" / "analysis.json").read_text())
    assert found["runs"][0]["notes"] == ["the student is no better than the majority class"]


# the plots


def by_language(texts: str, seed: int, shift: float = 0.0) -> dict[str, Any]:
    """What `report.study.numbers` gives of a run."""
    found = scores({mode: {name: value + shift for name, value in own.items()} for mode, own in ACCURACY.items()})
    own = {mode: {name: one["accuracy"] for name, one in values.items()} for mode, values in found["scores"].items()}
    means = {mode: {name: one["accuracy"] for name, one in values.items()} for mode, values in found["means"].items()}
    languages = {"split": "test", "source_language": "en", "texts": texts, "inference": "both", "matrix": "m"}
    curves = history("dev")["curves"]
    losses = {name: [point["losses"][name] for point in curves] for name in curves[0]["losses"]}
    return {
        "metric": "accuracy",
        "seed": seed,
        "languages": {**languages, "scores": own, "means": means},
        "gap": [{"stage": "student", "artifact": "a", "epochs": [0, 1, 2], "losses": losses, "scores": [{}, {}, {}]}],
    }


def texts_in(figure: Figure, panel: int) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def frames(figure: Figure) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """(lower left corner, width and height) of each frame in the first panel."""
    found = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [(one.get_xy(), (one.get_width(), one.get_height())) for one in found]


def test_the_matrix_shows_numbers_and_frames_the_best_training_texts() -> None:
    groups = {
        "musc, texts=original": [by_language("original", 1)],
        "musc, texts=translated": [by_language("translated", 1, 0.05), by_language("translated", 2, 0.07)],
    }
    (one,) = matrices(groups)
    figure = plots.artifacts([one])
    assert texts_in(figure, 0) == ["60.0", "70.0", "–", "66.0\n± 1.4", "76.0\n± 1.4", "–", "–", "–", "–"]
    assert [corner for corner, _ in frames(figure)] == [
        (-0.5, 0.5),
        (0.5, 0.5),
    ]  # translated in both columns; nothing to compare in the third
    assert figure.axes[0].get_title() == "musc"
    assert matrices({"musc": groups["musc, texts=original"]}) == []


def test_the_languages_plot_frames_the_own_inference() -> None:
    figure = plots.languages({"musc": [by_language("translated", 1), by_language("translated", 2, 0.02)]})
    shown = texts_in(figure, 0)
    assert len(shown) == 5 * 3 and shown[-3:] == ["51.0", "66.0", "69.0"]  # without en, the mean of two seeds
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][-2:] == ["mean", "mean without en"]
    assert frames(figure) == [((1.5, -0.5), (1.0, 5.0))]


def test_equal_numbers_are_drawn_too() -> None:
    flat = by_language("original", 1)
    for own in flat["languages"]["scores"].values():
        own.update(dict.fromkeys(own, 0.5))
    for own in flat["languages"]["means"].values():
        own.update(dict.fromkeys(own, 0.5))
    assert set(texts_in(plots.languages({"musc": [flat]}), 0)) == {"50.0"}


def test_curves_have_a_line_for_each_language() -> None:
    figure = plots.gap_by_language({"musc": [by_language("translated", 1)], "xlt": [by_language("original", 1)]})
    assert [len(axes.lines) for axes in figure.axes] == [4, 4]  # no scores here: one row; train and three languages
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["en", "es", "fr", "train", "mean of dev"]
