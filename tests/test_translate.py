"""The stage that translates tables: every kind of translator, what is kept, what is counted, what stops it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cot import Told, context
from fake_apertium import FakeApertium, install
from kdlab.artifacts import write_json
from kdlab.context import Requests
from kdlab.errors import DataError, KdlabError
from kdlab.stages.prepare import read_table, write_table
from kdlab.stages.translate import translate
from kdlab.translators import apertium
from kdlab.translators import memory as translation_memory
from lab import read

EN_ES = {"read": "train.en.original", "write": "train.en.es", "source": "en", "target": "es"}
EN_FR = {"read": "train.en.original", "write": "train.en.fr", "source": "en", "target": "fr"}
ES_EN = {"read": "test.es.original", "write": "test.es.en", "source": "es", "target": "en"}


def prepared(root: Path, **tables: Sequence[str | tuple[str | None, str | None] | None]) -> Path:
    """What `prepare_languages` leaves, with "__" for dots; rows are texts, or pairs of them, with ids from 10 on."""
    ctx = context(root, f"prepare-{len(list(root.glob('building/*')))}")
    for name, rows in tables.items():
        pairs = [row if isinstance(row, tuple) else (row, None) for row in rows]
        numbers = list(range(len(rows)))
        table = {
            "id": pa.array([10 + number for number in numbers], pa.int64()),
            "text_a": pa.array([first for first, _ in pairs], pa.string()),
            "text_b": pa.array([second for _, second in pairs], pa.string()),
            "label": pa.array([number % 2 for number in numbers], pa.int64()),
            "clean_label": pa.array(numbers, pa.int64()),
        }
        write_table(ctx, name.replace("__", "."), pa.table(table))
    write_json(ctx.out / "facts.json", {"labels": ["no", "yes"]})
    return ctx.out


def translated(
    root: Path,
    data: Path,
    translator: Mapping[str, Any],
    *jobs: Mapping[str, str],
    sets: Path | None = None,
    max_missing: float = 0.1,
    stage: str = "translate_train",
) -> Told:
    ctx = context(root, stage)
    ctx.requests = Requests(max_missing=max_missing)
    translate(ctx, translator={"unit": "text", **translator}, jobs=jobs, data=data, sets=sets)
    return ctx


def texts(ctx: Told, name: str, column: str = "text_a") -> list[str | None]:
    found: list[str | None] = read_table(ctx.out, name)[column].to_pylist()
    return found


def recorded(folder: Path, **pairs: str) -> dict[str, Any]:
    """A file of recorded translations, en-es."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "en-es.jsonl"
    file.write_text("".join(json.dumps({"source": one, "target": two}) + "\n" for one, two in pairs.items()))
    return {"kind": "recorded", "content": "0" * 64, "path": str(folder), "pattern": None}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApertium:
    return install(monkeypatch, tmp_path / "usr", "eng-spa", "spa-eng", "es-fr")


def by_apertium(*pairs: tuple[str, str]) -> dict[str, Any]:
    routes = {pair: apertium.identity(apertium.route(*pair, {"fr": "es"})) for pair in pairs}
    return {"kind": "apertium", "routes": {"-".join(pair): known for pair, known in routes.items()}}


# tables


def test_rows_keep_their_ids_labels_and_columns(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=[("a dog", "it barks"), ("a cat", "it purrs")])
    ctx = translated(tmp_path, data, by_apertium(("en", "es")), EN_ES)
    before, after = read_table(data, "train.en.original"), read_table(ctx.out, "train.en.es")
    assert after.schema == before.schema
    assert after.drop(["text_a", "text_b"]).equals(before.drop(["text_a", "text_b"]))
    assert (texts(ctx, "train.en.es"), texts(ctx, "train.en.es", "text_b")) == (
        ["ao dogo", "ao cato"],
        ["ito barkso", "ito purrso"],
    )


def test_facts(fake: FakeApertium, tmp_path: Path) -> None:
    rows = ["a dog", "a  dog", "", "@user", ("a dog", "  "), ("x", None)]
    data = prepared(tmp_path, train__en__original=rows)
    ctx = translated(tmp_path, data, by_apertium(("en", "es")), EN_ES)
    counts = {"rows": 6, "units": 3, "fresh": 3, "remembered": 0, "missing": 0, "empty": 2, "unchanged": 1, "cut": 0}
    counts["shared_with_train"] = 0
    said = ["en-es: texts of train.en.original (6 rows) that came back as they were: 1"]
    assert read(ctx.out / "facts.json") == {"labels": ["no", "yes"], "jobs": {"train.en.es": counts}, "warnings": said}
    assert ctx.facts == {"labels": ["no", "yes"], "jobs": {"train.en.es": counts}}
    assert ctx.warned == said
    assert texts(ctx, "train.en.es") == ["ao dogo", "ao dogo", "", "@user", "ao dogo", "xo"]
    assert texts(ctx, "train.en.es", "text_b") == [None, None, None, None, "  ", None]


def test_a_translated_test_row_that_is_a_training_row_is_told(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["peza", "dog"])
    sets = prepared(tmp_path, test__es__original=["pez", "perro"])
    ctx = translated(tmp_path, data, by_apertium(("es", "en")), ES_EN, sets=sets)
    assert texts(ctx, "test.es.en") == ["peza", "perroa"]
    assert ctx.facts["jobs"]["test.es.en"]["shared_with_train"] == 1
    assert ctx.warned == ["1 of 2 rows of test.es.en have the same texts as a training row in en"]


def test_several_jobs_from_data_and_sets(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["dog"], dev__es__original=["pez"])
    sets = prepared(tmp_path, test__es__original=["perro", "gato"])
    dev = {**ES_EN, "read": "dev.es.original", "write": "dev.es.en"}
    translator = by_apertium(("en", "es"), ("en", "fr"), ("es", "en"))
    ctx = translated(tmp_path, data, translator, EN_ES, EN_FR, dev, ES_EN, sets=sets)
    assert {file.stem: texts(ctx, file.stem) for file in ctx.out.glob("*.arrow")} == {
        "train.en.es": ["dogo"],
        "train.en.fr": ["dogoeau"],
        "dev.es.en": ["peza"],
        "test.es.en": ["perroa", "gatoa"],
    }


def test_a_translation_is_translated_back(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["dog"])
    translator = by_apertium(("en", "es"), ("es", "en"))
    there = translated(tmp_path, data, translator, EN_ES)
    back = {"read": "train.en.es", "write": "train.en.back", "source": "es", "target": "en"}
    ctx = translated(tmp_path, there.out, translator, back, stage="back_train")
    assert texts(ctx, "train.en.back") == ["dogoa"]
    assert read(ctx.out / "facts.json")["labels"] == ["no", "yes"]


def test_a_text_is_one_line_or_its_sentences(fake: FakeApertium, tmp_path: Path) -> None:
    text = "I see Mr. Fox.  He sees\nme too! Good?"
    data = prepared(tmp_path, train__en__original=[text])
    translator = by_apertium(("en", "es"))
    translated(tmp_path, data, translator, EN_ES)
    ctx = translated(tmp_path, data, {**translator, "unit": "sentence"}, EN_ES, stage="by_sentence")
    assert [asked for _, asked in fake.asked] == [
        ["I see Mr. Fox. He sees me too! Good?"],
        ["I see Mr. Fox.", "He sees", "me too!", "Good?"],
    ]
    assert texts(ctx, "train.en.es") == ["Io seeo Mr.o Fox.o Heo seeso meo too!o Good?o"]


def test_sentences_of_languages_without_blanks(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    rows = [("狗。", "A dog."), ("猫！", "A cat!"), ("A dog.", "狗。"), ("A cat!", "猫！")]
    for name, part in (("zh-en", rows[:2]), ("en-zh", rows[2:])):
        lines = [json.dumps({"source": one, "target": two}) for one, two in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    data = prepared(tmp_path, test__zh__original=["狗。猫！"], train__en__original=["A dog. A cat!"])
    translator = {"kind": "recorded", "path": str(folder), "pattern": None, "unit": "sentence"}
    there = {"read": "test.zh.original", "write": "test.zh.en", "source": "zh", "target": "en"}
    other = {"read": "train.en.original", "write": "train.en.zh", "source": "en", "target": "zh"}
    ctx = translated(tmp_path, data, translator, there, other)
    assert (texts(ctx, "test.zh.en"), texts(ctx, "train.en.zh")) == (["A dog. A cat!"], ["狗。猫！"])


def test_a_table_without_rows(fake: FakeApertium, tmp_path: Path) -> None:
    ctx = translated(tmp_path, prepared(tmp_path, train__en__original=[]), by_apertium(("en", "es")), EN_ES)
    assert texts(ctx, "train.en.es") == [] and fake.asked == []


# what has no translation


def test_rows_without_translation_are_left_out_and_counted(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["dog", "uh uh", ("cat", "uh"), ("fish", "uh no")])
    ctx = translated(tmp_path, data, by_apertium(("en", "es")), EN_ES, max_missing=0.5)
    assert read_table(ctx.out, "train.en.es")["id"].to_pylist() == [10, 13]
    assert texts(ctx, "train.en.es", "text_b") == [None, "noo"]
    counts = read(ctx.out / "facts.json")["jobs"]["train.en.es"]
    assert (counts["rows"], counts["missing"], counts["units"]) == (4, 2, 6)
    assert ctx.warned == ["en-es: 2 of 4 rows of train.en.original have no translation"]


def test_a_text_is_missing_if_one_of_its_sentences_is(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["Good dog.\nuh", "Good cat."])
    ctx = translated(tmp_path, data, {**by_apertium(("en", "es")), "unit": "sentence"}, EN_ES, max_missing=0.5)
    assert texts(ctx, "train.en.es") == ["Goodo cat.o"]


def test_too_many_stop_it(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["dog", "uh", "cat", "uh"])
    with pytest.raises(DataError, match=r"2 of the 4 rows of .* have no translation from en to es") as no:
        translated(tmp_path, data, by_apertium(("en", "es")), EN_ES, max_missing=0.49)
    assert "the first: 'uh'" in str(no.value) and "max_missing" in str(no.value.fix)
    assert not list((tmp_path / "building" / "translate_train").glob("*.arrow"))


def test_nothing_left_stops_it_whatever_may_be_missing(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["uh"])
    with pytest.raises(DataError, match="1 of the 1 rows"):
        translated(tmp_path, data, by_apertium(("en", "es")), EN_ES, max_missing=1.0)


# the memory


def test_nothing_is_asked_twice(fake: FakeApertium, tmp_path: Path) -> None:
    translator = by_apertium(("en", "es"))
    first = translated(tmp_path, prepared(tmp_path, train__en__original=["dog", "cat", "dog"]), translator, EN_ES)
    data = prepared(tmp_path, train__en__original=["cat", "cow", "dog"])
    second = translated(tmp_path, data, translator, EN_ES, stage="again")
    assert [asked for _, asked in fake.asked] == [["dog", "cat"], ["cow"]]
    assert texts(second, "train.en.es") == ["cato", "cowo", "dogo"]
    for ctx, fresh, remembered in ((first, 2, 0), (second, 1, 2)):
        counts = ctx.facts["jobs"]["train.en.es"]
        assert (counts["units"], counts["fresh"], counts["remembered"]) == (fresh + remembered, fresh, remembered)


def test_untranslatable_texts_are_remembered(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["dog", "uh"])
    for stage in ("first", "second"):
        ctx = translated(tmp_path, data, by_apertium(("en", "es")), EN_ES, max_missing=0.5, stage=stage)
        assert ctx.facts["jobs"]["train.en.es"]["missing"] == 1
    assert len(fake.asked) == 1


def test_other_data_is_another_translator(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["dog"])
    translated(tmp_path, data, by_apertium(("en", "es")), EN_ES)
    fake.add("eng-spa").write_text("words of the next version")
    translated(tmp_path, data, by_apertium(("en", "es")), EN_ES, stage="again")
    assert len(fake.asked) == 2
    names = sorted(file.name for file in (tmp_path / "translations").iterdir())
    assert len(names) == 2 and all(name.startswith("apertium-eng-spa-") for name in names)


def test_a_further_language_leaves_what_is_remembered(fake: FakeApertium, tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["dog"])
    translated(tmp_path, data, by_apertium(("en", "es")), EN_ES)
    translated(tmp_path, data, by_apertium(("en", "es"), ("en", "fr")), EN_ES, EN_FR, stage="both")
    assert [mode for mode, _ in fake.asked] == ["eng-spa", "eng-spa", "es-fr"]


def test_what_was_translated_outlives_a_failure(
    fake: FakeApertium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation_memory.Remembered.__init__, "__kwdefaults__", {
        **translation_memory.Remembered.__init__.__kwdefaults__, "block": 2,
    })  # fmt: skip
    data = prepared(tmp_path, train__en__original=list("abcde"))
    ask, calls = apertium.translate, 0

    def failing(*args: Any, **more: Any) -> list[str | None]:
        nonlocal calls
        calls += 1
        fake.order("die" if calls == 2 else "")
        return ask(*args, **more)

    monkeypatch.setattr(apertium, "translate", failing)
    with pytest.raises(KdlabError, match="was ended by SIGKILL"):
        translated(tmp_path, data, by_apertium(("en", "es")), EN_ES)
    ctx = translated(tmp_path, data, by_apertium(("en", "es")), EN_ES)
    assert texts(ctx, "train.en.es") == ["ao", "bo", "co", "do", "eo"]
    assert [asked for _, asked in fake.asked] == [["a", "b"], ["c", "d"], ["c", "d"], ["e"]]
    assert ctx.facts["jobs"]["train.en.es"]["remembered"] == 2


def test_progress_is_told(fake: FakeApertium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlab.stages.translate.SHOWN_EVERY", 0.0)
    data = prepared(tmp_path, train__en__original=["dog", "cat"])
    ctx = translated(tmp_path, data, by_apertium(("en", "es")), EN_ES)
    assert [note.split(":")[0].strip() for note in ctx.notes] == [
        "translate_train train.en.es 0/2",
        "translate_train train.en.es 2/2",
    ]


# other translators


def test_recorded_translations(tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["a dog", "a\ncat ", "a cow"])
    translator = recorded(tmp_path / "old", **{"a dog": "un perro", "a cat": "un gato"})
    ctx = translated(tmp_path, data, translator, EN_ES, max_missing=0.4)
    assert texts(ctx, "train.en.es") == ["un perro", "un gato"]
    assert ctx.warned == ["en-es: 1 of 3 rows of train.en.original have no translation"]
    assert not (tmp_path / "translations").exists()
    with pytest.raises(DataError, match="the first: 'a cow'") as caught:
        translated(tmp_path, data, translator, EN_ES, stage="again")
    assert "translations of this very data" in str(caught.value.fix)


def test_what_is_odd_in_recorded_files_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    lines = [f"text {n}\tand {n}\ttexto {n}\ty {n}\t0" for n in range(20)]
    lines += ["text 1\tand 1\totro 1\ty 1\t0", "broken"]
    (folder / "en-es-translated.tsv").write_text("\n".join(lines))
    data = prepared(tmp_path, train__en__original=[("text 1", "and 2")])
    ctx = translated(tmp_path, data, {"kind": "recorded", "path": str(folder), "pattern": None}, EN_ES)
    assert texts(ctx, "train.en.es") + texts(ctx, "train.en.es", "text_b") == ["texto 1", "y 2"]
    assert ctx.warned == [
        "en-es: texts with several translations in en-es-translated.tsv, the first taken: 1",
        "en-es: broken lines in en-es-translated.tsv, skipped: 1",
    ]


def test_rules(tmp_path: Path) -> None:
    data = prepared(tmp_path, train__en__original=["the food was good", "the room was bad"])
    ctx = translated(tmp_path, data, {"kind": "rules", "identity": "1"}, EN_ES)
    found = texts(ctx, "train.en.es")
    assert len(found) == 2 and all(text and "the" not in text.split() for text in found)
    assert not (tmp_path / "translations").exists()


class Model:
    """A model of two languages: capitals; cuts after two words."""

    kind, languages = "m2m_100", ("en", "es", "fr")

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def generate(self, units: Sequence[str], *, target_code: str, **settings: Any) -> list[tuple[str, bool]]:
        assert settings == {"source_code": "en", "beams": 5, "max_tokens": 2, "batch_size": 4}
        self.asked.append((target_code, list(units)))
        return [(" ".join(unit.split()[:2]).upper(), len(unit.split()) > 2) for unit in units]


SETTINGS = {"codes": {}, "pivots": {}, "beams": 5, "max_tokens": 2, "precision": "fp32", "batch_size": 4}


@pytest.mark.parametrize(
    ("named", "loaded"),
    [
        (
            {"model": "org/m2m", "models": {"org/m2m": {"id": "org/m2m", "revision": "abc"}}},
            {"id": "org/m2m", "revision": "abc"},
        ),
        ({"content": "123", "path": "/there/m2m", "pattern": None}, {"path": "/there/m2m"}),
        ({"models": {"m2m/x": {"content": "1"}}, "path": "/there", "pattern": "m2m/x"}, {"path": "/there/m2m/x"}),
    ],
)
def test_models(named: dict[str, Any], loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdlab.models import translation

    model, calls = Model(), []

    def load(spec: Mapping[str, Any], *, place: Any, precision: str) -> Model:
        calls.append((dict(spec), str(place), precision))
        return model

    monkeypatch.setattr(translation, "load", load)
    data = prepared(tmp_path, train__en__original=["one two three", "one"])
    translator = {"kind": "hf", **named, **SETTINGS}
    for stage in ("first", "second"):
        ctx = translated(tmp_path, data, translator, EN_ES, EN_FR, stage=stage)
        assert texts(ctx, "train.en.es") == texts(ctx, "train.en.fr") == ["ONE TWO", "ONE"]
        assert [counts["cut"] for counts in ctx.facts["jobs"].values()] == [1, 1]
        assert "en-es: 1 of 2 texts of train.en.original were cut to 2 tokens, or their translations" in ctx.warned
    assert calls == [(loaded, "cpu", "fp32")]  # once for both jobs, and not at all where all is remembered
    assert model.asked == [("es", ["one two three", "one"]), ("fr", ["one two three", "one"])]
    assert len(list((tmp_path / "translations").iterdir())) == 2


def test_what_can_change_a_models_translations_has_a_memory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdlab.models import translation

    model = Model()
    monkeypatch.setattr(translation, "load", lambda spec, **_: model)
    data = prepared(tmp_path, train__en__original=["one"])
    one = {"kind": "hf", "model": "m", "models": {"m": {"id": "m", "revision": "1"}}, **SETTINGS}
    others = [
        {**one, "models": {"m": {"id": "m", "revision": "2"}}},
        {**one, "precision": "bf16"},
        {**one, "codes": {"de": "ger"}},  # of another language
        {**one, "unit": "sentence"},
    ]
    for number, translator in enumerate([one, *others]):
        translated(tmp_path, data, translator, EN_ES, stage=str(number))
        assert len(list((tmp_path / "translations").iterdir())) == min(number + 1, 3)
    assert len(model.asked) == 3
