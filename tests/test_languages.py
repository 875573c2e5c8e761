"""Each language's rows of a task: as `prepare` makes them, under the names of views, and never another language's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kdlab import compose
from kdlab.context import Context
from kdlab.data import corruption
from kdlab.data.languages import BACK, View
from kdlab.errors import DataError
from kdlab.methods.data import language_sources
from kdlab.pins import Pins
from kdlab.stages.languages import prepare_language_sets, prepare_languages
from kdlab.stages.prepare import prepare, prepare_sets

Prepared = tuple[dict[str, pa.Table], dict[str, Any], Path]
Call = Callable[..., Prepared]
FEW = {"examples": 80, "balanced": True}
NOISE = {"rate": 0.4, "seed": 3}


def published(ctx: Context) -> Prepared:
    assert json.loads((ctx.out / "facts.json").read_text(encoding="utf-8")) == ctx.facts
    tables = {file.stem: pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in ctx.out.glob("*.arrow")}
    return tables, ctx.facts, ctx.out


def entries(*codes: str, **splits: str | None) -> dict[str, dict[str, Any]]:
    """What `kdlab.methods.data.language_sources` gives, for a folder a language."""
    return {
        code: {
            "config": None,
            "data_dir": None,
            "splits": {name: split and f"{code}/{split}" for name, split in splits.items()},
        }
        for code in codes
    }


@pytest.fixture
def call(tmp_path: Path, folder: Path) -> Call:
    count = iter(range(100))

    def run(*trained: str, **changes: Any) -> Prepared:
        settings: dict[str, Any] = {
            "source": {"path": str(folder)},
            "languages": entries("en", "es", "de", train="train", dev="validation"),
            "trained": list(trained),
            "text": ["text"],
            "label": "label",
            "labels": None,
            "label_names": {},
            "kind": "classification",
            "heldout": 0.0,
            "dev_limit": None,
            "rows": None,
            "seed": 1,
        }
        ctx = Context(out=tmp_path / f"out{next(count)}", stage="prepare")
        ctx.out.mkdir()
        prepare_languages(ctx, **(settings | changes))
        return published(ctx)

    return run


@pytest.fixture
def sets(tmp_path: Path, folder: Path) -> Call:
    count = iter(range(100))

    def run(data: Path, **changes: Any) -> Prepared:
        settings: dict[str, Any] = {
            "source": {"path": str(folder)},
            "languages": entries("en", "es", "de", test="test"),
            "text": ["text"],
            "label": "label",
            "label_names": {},
            "kind": "classification",
            "test_limit": None,
            "rows": None,
        }
        ctx = Context(out=tmp_path / f"sets{next(count)}", stage="prepare_sets")
        ctx.out.mkdir()
        prepare_language_sets(ctx, data=data, **(settings | changes))
        return published(ctx)

    return run


def write(path: Path, language: str, start: int, count: int) -> None:
    """Row i has the text "LANGUAGE row i", and of every four labels three are "a"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{language} row {number},{'baaa'[number % 4]}" for number in range(start, start + count)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three languages, parallel; German has no train, as XNLI's others before they are translated."""
    data = tmp_path / "data"
    for language in ("en", "es", "de"):
        if language != "de":
            write(data / language / "train.csv", language, 0, 200)
        write(data / language / "validation.csv", language, 1000, 40)
        write(data / language / "test.csv", language, 2000, 60)
    return data


def texts(table: pa.Table) -> set[str]:
    return {text.split()[0] for text in table["text_a"].to_pylist()}


def test_names_of_tables() -> None:
    view = View("test", "es", "en")
    assert str(view) == "test.es.en" and View.of("test.es.en") == view
    assert str(View("train", "en")) == "train.en.original" and View("dev", "es", BACK).form == "back"
    with pytest.raises(ValueError, match="unpack"):
        View.of("train")


def test_one_language_is_trained_all_are_scored(call: Call) -> None:
    tables, facts, _ = call("en")
    rows = {"train.en.original": 200, "dev.en.original": 40, "dev.es.original": 40, "dev.de.original": 40}
    assert facts["rows"] == rows == {name: table.num_rows for name, table in tables.items()}
    assert list(facts["rows"]) == list(rows), "in the order of the task's languages"
    for name, table in tables.items():
        assert texts(table) == {View.of(name).language}
        assert table.schema.names == ["id", "text_a", "text_b", "label"]
    assert facts["labels"] == ["a", "b"] and facts["languages"] == ["en", "es", "de"] and facts["warnings"] == []
    assert facts["shared_with_train"] == {name: 0 for name in rows if not name.startswith("train")}
    assert set(facts["unlabelled"].values()) == set(facts["empty_texts"].values()) == {0}
    assert facts["noisy"] == dict.fromkeys(rows, 0)
    assert facts["conditions"] == {"en": {"few": None, "imbalance": None, "noise": None}}
    assert facts["majority"]["dev.de.original"]["accuracy"] == 0.75
    assert set(facts["majority"]) == {name for name in rows if not name.startswith("train")}


def test_several_trained_languages_with_heldout_rows(call: Call) -> None:
    tables, facts, _ = call("en", "es", heldout=0.1)
    assert facts["rows"] == {
        **{f"train.{code}.original": 180 for code in ("en", "es")},
        **{f"heldout.{code}.original": 20 for code in ("en", "es")},
        **{f"dev.{code}.original": 40 for code in ("en", "es", "de")},
    }
    for split in ("train", "heldout"):
        first, second = (tables[f"{split}.{code}.original"] for code in ("en", "es"))
        assert first["id"].equals(second["id"]), "parallel languages keep the same rows"
        assert texts(first) == {"en"} and texts(second) == {"es"}
    assert Counter(tables["heldout.es.original"]["label"].to_pylist()) == {0: 15, 1: 5}
    assert set(facts["conditions"]) == {"en", "es"}


def test_a_language_is_prepared_as_prepare_does(call: Call, folder: Path, tmp_path: Path) -> None:
    settings = {"few": FEW, "imbalance": {"ratio": 2.0, "seed": 5}, "noise": NOISE, "heldout": 0.2, "dev_limit": 20}
    tables, facts, _ = call("es", **settings)
    alone = Context(out=tmp_path / "alone", stage="prepare")
    alone.out.mkdir()
    one = {"text": ["text"], "label": "label", "labels": None, "kind": "classification", "rows": None, "seed": 1}
    splits = {"train": "train", "dev": "validation"}
    prepare(alone, source={"path": str(folder / "es")}, splits=splits, **one, **settings)
    plain, known, _ = published(alone)
    for split in ("train", "heldout", "dev"):
        name = f"{split}.es.original"
        assert tables[name].equals(plain[split])
        for fact in ("rows", "noisy", "unlabelled", "empty_texts"):
            assert facts[fact][name] == known[fact][split]
        assert facts["majority"].get(name) == known["majority"].get(split)
    assert facts["conditions"]["es"] == known["conditions"]


def test_conditions_are_each_trained_languages_own(call: Call) -> None:
    tables, facts, _ = call("en", "es", few=FEW, noise=NOISE)
    done = facts["conditions"]
    assert done["en"]["few"] == {**FEW, "seed": 1, "before": {"a": 150, "b": 50}, "after": {"a": 40, "b": 40}}
    first, second = (tables[f"train.{code}.original"] for code in ("en", "es"))
    assert first.num_rows == second.num_rows == 80
    assert first.select(["id", "label", "clean_label"]).equals(second.select(["id", "label", "clean_label"]))
    labels = [1 if number % 4 == 0 else 0 for number in range(200)]
    noisy, _ = corruption.noise(pa.array(labels).to_numpy(), rate=0.4, classes=2, seed=3)
    assert first["label"].to_pylist() == [int(noisy[row]) for row in first["id"].to_pylist()]
    changed = sum(int(noisy[row]) != labels[row] for row in first["id"].to_pylist())
    assert changed and done["es"]["noise"] == {**NOISE, "changed": {"train": changed}}
    assert facts["noisy"]["train.en.original"] == facts["noisy"]["train.es.original"] == changed
    assert "clean_label" not in tables["dev.en.original"].schema.names


def test_without_dev_only_trained_languages_get_one(call: Call) -> None:
    tables, facts, _ = call("en", languages=entries("en", "es", "de", train="train", dev=None))
    assert facts["rows"] == {"train.en.original": 180, "dev.en.original": 20}
    together = tables["train.en.original"]["id"].to_pylist() + tables["dev.en.original"]["id"].to_pylist()
    assert sorted(together) == list(range(200))
    both = call("en", "es", languages=entries("en", "es", "de", train="train", dev=None))[1]
    assert set(both["rows"]) == {f"{split}.{code}.original" for split in ("train", "dev") for code in ("en", "es")}


def test_limits_draw_the_same_rows_of_each_language(call: Call) -> None:
    tables, facts, _ = call("en", dev_limit=10)
    drawn = {code: tables[f"dev.{code}.original"]["id"].to_pylist() for code in ("en", "es", "de")}
    assert drawn["en"] == drawn["es"] == drawn["de"] == sorted(drawn["en"]) and len(drawn["en"]) == 10
    assert drawn["en"] != list(range(10)) and facts["rows"]["train.en.original"] == 200
    assert set(call("en", "es", dev_limit=10, rows=5)[1]["rows"].values()) == {5}
    assert call("en", dev_limit=10, seed=2)[0]["dev.es.original"].equals(tables["dev.es.original"])


def test_same_bytes_twice(call: Call) -> None:
    settings = {"few": FEW, "noise": NOISE, "heldout": 0.2, "dev_limit": 20}
    (_, _, first), (_, _, second) = call("en", "es", **settings), call("en", "es", **settings)
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir()) and len(names) == 8
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_classes_come_from_the_trained_language(call: Call, folder: Path) -> None:
    assert call("en", labels=["b", "a"])[1]["labels"] == ["b", "a"]
    (folder / "de" / "validation.csv").write_text("text,label\nde row,a\nde row 2,c\n")
    with pytest.raises(DataError, match=r"Language 'de': The label 'c' is none of \['a', 'b'\]") as caught:
        call("en")
    assert "de/validation.csv, line 3" in str(caught.value)


def test_label_names(call: Call, sets: Call, folder: Path) -> None:
    for file in folder.glob("*/*.csv"):
        file.write_text(file.read_text().replace(",a", ",5.0").replace(",b", ",1.0"))
    named = {"label_names": {"1": "bad", "5": "good"}}
    tables, facts, out = call("en", labels=["bad", "good"], **named)
    assert facts["labels"] == ["bad", "good"]
    assert Counter(tables["dev.de.original"]["label"].to_pylist()) == {1: 30, 0: 10}
    assert Counter(sets(out, **named)[0]["test.es.original"]["label"].to_pylist()) == {1: 45, 0: 15}
    assert call("en", **named)[1]["labels"] == ["bad", "good"]


def test_warnings_name_the_language(call: Call, folder: Path) -> None:
    file = folder / "es" / "validation.csv"
    file.write_text(file.read_text() + "en row 7,a\n ,a\n")
    facts = call("en", "es", labels=["a", "b", "c"], few={"examples": 300, "balanced": False})[1]
    assert facts["warnings"] == [
        "en: no training row has the label 'c'",
        "en: few.examples=300: there are only 200 training rows, all are used",
        "es: no training row has the label 'c'",
        "es: few.examples=300: there are only 200 training rows, all are used",
        "1 of 42 rows of dev.es.original have the same texts as a row of train",
        "1 of 42 rows of dev.es.original have an empty text",
    ]
    assert facts["shared_with_train"]["dev.es.original"] == facts["empty_texts"]["dev.es.original"] == 1


def test_majority_is_of_all_training_rows_together(call: Call, folder: Path) -> None:
    """150 a and 50 b in English; 100 a and 300 b in Spanish; so 250 a and 350 b."""
    lines = [f"es row {number},{'a' if number < 100 else 'b'}" for number in range(400)]
    (folder / "es" / "train.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    assert call("en")[1]["majority"]["dev.de.original"]["accuracy"] == 0.75
    assert call("en", "es")[1]["majority"]["dev.de.original"]["accuracy"] == 0.25


# Test sets


def test_sets(call: Call, sets: Call) -> None:
    _, _, data = call("en", heldout=0.1)
    tables, facts, _ = sets(data)
    assert facts["rows"] == {f"test.{code}.original": 60 for code in ("en", "es", "de")}
    assert all(texts(table) == {View.of(name).language} for name, table in tables.items())
    assert facts["labels"] == ["a", "b"] and facts["languages"] == ["en", "es", "de"]
    assert facts["majority"]["test.es.original"]["accuracy"] == 0.75
    assert set(facts["shared_with_train"].values()) == {0}


def test_limits_of_sets(call: Call, sets: Call) -> None:
    _, _, data = call("en")
    tables, _, _ = sets(data, test_limit=10)
    ids = [table["id"].to_pylist() for table in tables.values()]
    assert len(ids[0]) == 10 and ids[0] == ids[1] == ids[2]
    assert set(sets(data, test_limit=10, rows=4)[1]["rows"].values()) == {4}


def test_sets_without_labels_or_with_training_texts(call: Call, sets: Call, folder: Path) -> None:
    _, _, data = call("en", heldout=0.5)
    (folder / "de" / "test.csv").write_text("text\nde row 1\nde row 2\n")
    (folder / "es" / "test.csv").write_text("text,label\nen row 0,a\nen row 1,a\nes row 1,a\n")
    _, facts, _ = sets(data)
    assert facts["unlabelled"] == {"test.en.original": 0, "test.es.original": 0, "test.de.original": 2}
    assert facts["shared_with_train"]["test.es.original"] == 2, "training and held-out rows of English"
    assert "test.de.original" not in facts["majority"]


# What can be wrong


def test_a_language_that_the_source_lacks(call: Call, sets: Call) -> None:
    languages = entries("en", "fr", train="train", dev="validation")
    for trained in (["en"], ["en", "fr"]):
        with pytest.raises(DataError) as caught:
            call(*trained, languages=languages)
        message = str(caught.value)
        assert "Language 'fr': There is no folder" in message and "There are: de, en, es." in message
        assert "where: " in message and "data/fr" in message and "Leave fr out of task.languages" in message
        assert len(message.splitlines()) == 3
    _, _, data = call("en")
    with pytest.raises(DataError, match="Language 'fr': There is no folder"):
        sets(data, languages=entries("en", "fr", test="test"))
    with pytest.raises(DataError, match=r"Language 'de': The folder has no file for the split 'de/train'"):
        call("de")


def test_other_errors_name_the_language_and_keep_their_advice(call: Call, folder: Path) -> None:
    (folder / "es" / "train.csv").write_text("text,label\nx,a\ny,\n")
    with pytest.raises(DataError) as caught:
        call("en", "es")
    message = str(caught.value)
    assert "Language 'es': 1 of 2 rows have no label" in message and "es/train.csv, line 3" in message
    assert "task.languages" not in message and "Remove these rows" in message


def test_languages_that_are_read_from_one_place(call: Call, sets: Call) -> None:
    alike = entries("en", "es", train="train", dev="validation")
    alike["es"]["splits"]["dev"] = "en/validation"
    with pytest.raises(DataError, match="The dev rows of en and es are the same texts") as caught:
        call("en", languages=alike)
    assert "{language}" in str(caught.value)
    alike["es"]["splits"]["dev"] = "en/train"
    with pytest.raises(DataError, match="Language 'es': All 200 rows of dev are training rows of en"):
        call("en", languages=alike)
    _, _, data = call("en")
    alike = entries("en", "es", test="test")
    alike["es"]["splits"]["test"] = "en/test"
    with pytest.raises(DataError, match="The test rows of en and es are the same texts"):
        sets(data, languages=alike)


def test_an_embedded_task(call: Call, sets: Call) -> None:
    demo = {"source": {"demo": "sentiment_xx"}, "labels": ["negative", "neutral", "positive"]}
    languages = {
        code: {"config": None, "data_dir": None, "splits": {"train": "train", "dev": "validation", "test": "test"}}
        for code in ("en", "es")
    }
    _, facts, data = call("en", languages=languages, **demo)
    assert set(facts["rows"]) == {"train.en.original", "dev.en.original", "dev.es.original"}
    tables, _, _ = sets(data, languages=languages, source=demo["source"])
    assert set(tables) == {"test.en.original", "test.es.original"}
    with pytest.raises(DataError, match="Language 'tlh': The embedded task sentiment_xx has no language"):
        call("en", languages={**languages, "tlh": languages["en"]}, **demo)


# Task files


def composed(words: str, *flags: str) -> tuple[Any, dict[str, Any]]:
    """A task as `kdlab.methods.crosslingual` hands it to the stages."""
    (job,) = compose.jobs([*flags, "method=zero_shot_xlt", *words.split()]).jobs
    read, place = language_sources(job.run, Pins())
    source = {**read["source"], "path": place} if place else read["source"]
    return job.run.task, {"source": source, "languages": read["languages"]}


def only(read: dict[str, Any], *splits: str) -> dict[str, Any]:
    """With these splits of each language."""
    languages = {
        code: {**entry, "splits": {name: entry["splits"][name] for name in splits}}
        for code, entry in read["languages"].items()
    }
    return {**read, "languages": languages}


def arguments(task: Any) -> dict[str, Any]:
    return {name: getattr(task, name) for name in ("text", "label", "label_names", "kind")}


MULTILINGUAL = {  # of Oh, Ko and Yun 2022, appendix and scripts: languages, epochs, classes, splits
    "xnli": ("en ar bg de el es fr hi ru sw th tr ur vi zh", 2, 3, ("train", "validation", "test")),
    "pawsx": ("en de es fr ja ko zh", 4, 2, ("train", "validation", "test")),
    "marc": ("en de es fr ja zh", 4, 5, ("train", "validation", "test")),
    "mldoc": ("en de es fr it ja ru zh", 10, 4, ("german.train.1000", "german.dev", "german.test")),
    "cls": ("en de fr ja", 10, 2, ("de/books/train", None, "de/books/test")),
    "cls_dvd": ("en de fr ja", 10, 2, ("de/dvd/train", None, "de/dvd/test")),
    "cls_music": ("en de fr ja", 10, 2, ("de/music/train", None, "de/music/test")),
}


@pytest.mark.parametrize("name", MULTILINGUAL)
def test_settings_of_the_paper(name: str, tmp_path: Path) -> None:
    languages, epochs, classes, splits = MULTILINGUAL[name]
    words = f"task=multilingual/{name}"
    if name.startswith(("cls", "mldoc")):
        words += f" task.source.path={tmp_path}"
    else:
        words += f" task.source.revision={'0' * 40}"
    task, read = composed(words)
    assert task.name == f"multilingual/{name}" and task.languages == languages.split() == list(read["languages"])
    assert (task.epochs.student, len(task.labels), task.max_length, task.metric) == (epochs, classes, 128, "accuracy")
    german = read["languages"]["de"]
    assert tuple(german["splits"].values()) == splits
    assert german["config"] == (None if "path" in read["source"] else "de") and german["data_dir"] is None
    assert task.source_language == "en" and task.rows


def test_folders_of_tweets() -> None:
    _, read = composed(f"task=multilingual/tweet_sentiment task.source.revision={'0' * 40}")
    german = read["languages"]["de"]
    assert german == {
        "config": None,
        "data_dir": "german",
        "splits": {"train": "train", "dev": "validation", "test": "test"},
    }


def test_mldoc_in_its_own_layout(call: Call, sets: Call, tmp_path: Path) -> None:
    """What generate_documents.py of MLDoc writes: {language}.train.N, .dev and .test, a topic, a tab and a text."""
    topics = ("CCAT", "ECAT", "GCAT", "MCAT")
    docs = tmp_path / "mldoc"
    docs.mkdir()
    for language in ("english", "german"):
        for number, name in enumerate(("train.1000", "train.10000", "dev", "test"), start=1):
            lines = [
                f'{topics[row % 4]}\t"{language}" {name}, row {row}  LONDON, 1996-08-20' for row in range(8 * number)
            ]
            (docs / f"{language}.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = f"task=multilingual/mldoc task.languages=[en,de] task.source.path={docs}"
    task, read = composed(words)
    tables, facts, data = call("en", labels=task.labels, **only(read, "train", "dev"), **arguments(task))
    assert facts["rows"] == {"train.en.original": 8, "dev.en.original": 24, "dev.de.original": 24}
    assert tables["dev.de.original"]["text_a"][1].as_py() == '"german" dev, row 1  LONDON, 1996-08-20'
    assert tables["train.en.original"]["label"].to_pylist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert sets(data, **only(read, "test"), **arguments(task))[1]["rows"]["test.de.original"] == 32
    task, read = composed(words + ' task.splits.train="{language}.train.10000"')
    more = call("en", labels=task.labels, **only(read, "train", "dev"), **arguments(task))[1]
    assert more["rows"]["train.en.original"] == 16


def test_cls_in_its_own_layout(call: Call, sets: Call, tmp_path: Path) -> None:
    """The release cls-acl10-unprocessed: {language}/{domain}/{train,test}.review."""
    for language in ("en", "de", "jp"):
        for domain in ("books", "dvd"):
            folder = tmp_path / "cls" / language / domain
            folder.mkdir(parents=True)
            for split, count in (("train", 40), ("test", 8)):
                items = [
                    f"<item><category>{domain}</category><rating>{(1, 5, 2, 4)[row % 4]}.0</rating>"
                    f"<text>{language} {domain} {split} &lt;{row}&gt;\n</text><title>t</title></item>"
                    for row in range(count)
                ]
                body = "\n\n".join(items)
                (folder / f"{split}.review").write_text(f"<items>\n{body}\n\n</items>\n", encoding="utf-8")
    for name, domain in (("cls", "books"), ("cls_dvd", "dvd")):
        words = f"task=multilingual/{name} task.languages=[en,de,ja] task.source.path={tmp_path / 'cls'}"
        task, read = composed(words)
        tables, facts, data = call("en", labels=task.labels, **only(read, "train", "dev"), **arguments(task))
        assert facts["rows"] == {"train.en.original": 36, "dev.en.original": 4}
        assert Counter(tables["dev.en.original"]["label"].to_pylist()) == {0: 2, 1: 2}
        tables, _, _ = sets(data, **only(read, "test"), **arguments(task))
        japanese = tables["test.ja.original"]
        assert japanese["text_a"][0].as_py().strip() == f"jp {domain} test <0>"
        assert japanese["label"].to_pylist() == [0, 1, 0, 1, 0, 1, 0, 1]


def test_a_task_of_ones_own(call: Call, sets: Call, folder: Path) -> None:
    """sample/languages, which a user copies: folders en and es, German put in from the command line."""
    task, read = composed(f"task=sample/languages task.source.path={folder} task.languages=[en,es,de]")
    tables, facts, data = call("en", labels=task.labels, **only(read, "train", "dev"), **arguments(task))
    assert set(facts["rows"]) == {"train.en.original", *(f"dev.{code}.original" for code in ("en", "es", "de"))}
    assert facts["labels"] == ["a", "b"] and texts(tables["dev.de.original"]) == {"de"}
    assert set(sets(data, **only(read, "test"), **arguments(task))[0]) == {
        f"test.{code}.original" for code in ("en", "es", "de")
    }


OWN = """
defaults:
  - /schema@_here_: task
  - _self_

name: mine
source: {{path: {path}, columns: [label, text]}}
text: [text]
kind: classification
labels: [bad, good]
label_names: {{"1": bad, "2": bad, "4": good, "5": good}}
splits: {{train: "train.{{language}}", dev: null, test: "test.{{language}}"}}
languages: [en, pt]
source_language: pt
language_names: {{pt: portuguese}}
"""


def test_other_layouts_that_the_sample_speaks_of(call: Call, sets: Call, tmp_path: Path) -> None:
    """Files side by side without a header, no dev, stars in place of classes, another source language."""
    data = tmp_path / "mine"
    data.mkdir()
    for name in ("train.portuguese", "test.portuguese", "test.en"):
        rows = [f"{(1, 5, 2, 4)[row % 4]}\t{name} {row}" for row in range(20)]
        (data / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "mine.yaml").write_text(OWN.format(path=data))
    task, read = composed("task=mine", "--config-dir", str(tmp_path / "conf"))
    tables, facts, out = call("pt", labels=task.labels, **only(read, "train", "dev"), **arguments(task))
    assert facts["rows"] == {"train.pt.original": 18, "dev.pt.original": 2}
    assert Counter(tables["train.pt.original"]["label"].to_pylist()) == {0: 9, 1: 9}
    tables, _, _ = sets(out, **only(read, "test"), **arguments(task))
    assert tables["test.en.original"]["text_a"][0].as_py() == "test.en 0"


def test_one_language_with_the_others_as_further_sets(tmp_path: Path) -> None:
    """What methods of one language make of such a task: each other language is an evaluation set."""
    contexts = [Context(out=tmp_path / name, stage=name) for name in ("data", "sets")]
    for ctx in contexts:
        ctx.out.mkdir()
    names = {"negative": "bad", "neutral": "so-so", "positive": "good"}
    source = {"demo": "sentiment_xx", "language": "en", "label_names": names}
    one: dict[str, Any] = {"source": source, "text": ["text"], "label": "label", "kind": "classification", "rows": 30}
    splits = {"train": "train", "dev": "validation"}
    prepare(contexts[0], splits=splits, labels=["bad", "so-so", "good"], heldout=0.0, dev_limit=None, seed=1, **one)
    further = {"es": {"split": "test", "config": None, "language": "es"}}
    prepare_sets(contexts[1], data=contexts[0].out, splits={"test": "test"}, evaluations=further, **one)
    tables, facts, _ = published(contexts[1])
    assert facts["rows"] == {"test": 30, "es": 30} and facts["labels"] == ["bad", "so-so", "good"]
    assert facts["unlabelled"] == {"test": 0, "es": 0}
    assert not set(tables["test"]["text_a"].to_pylist()) & set(tables["es"]["text_a"].to_pylist())
