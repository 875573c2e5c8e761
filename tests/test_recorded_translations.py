"""Translations that exist already: where they are found, how they are read, what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import DataError
from kdlab.translators.recorded import Recorded, Row, read


def file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


def jsonl(path: Path, *rows: Any) -> Path:
    return file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def pair(source: str, target: str | None, *languages: str) -> dict[str, str | None]:
    return {"source": source, "target": target, **dict(zip(("source_language", "target_language"), languages))}  # noqa: B905


def xtreme(path: Path, *rows: str) -> Path:
    """rows: fields parted by |"""
    return file(path, "".join(row.replace("|", "\t") + "\n" for row in rows))


# layouts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", '{"source": "one, \\"1\\"", "target": "uno"}\n\n{"target": null, "source": "two", "more": 2}\n'),
        ("t.csv", 'id,source,target\n1,"one, ""1""",uno\n2,two,\n'),
        ("t.tsv", 'target\tsource\r\nuno\t"one, ""1"""\r\n\ttwo\r\n'),
        ("t.tsv", '\ufefftarget\tsource\nuno\tone, "1"\n\ttwo\n'),
    ],
)
def test_layouts_with_names(name: str, content: str, tmp_path: Path) -> None:
    path = file(tmp_path / name, content)
    found = Recorded(path)(['one, "1"', "two", "three"], "en", "es")
    assert found == ["uno", None, None]


def test_xtreme_has_five_columns_in_both_directions(tmp_path: Path) -> None:
    train = xtreme(tmp_path / "translate-train" / "en-es-translated.tsv", "a dog|a cat|un perro|un gato|1")
    test = xtreme(tmp_path / "translate-test" / "test-es-en-translated.tsv", "un pez|un oso|a fish|a bear|neutral")
    assert read(train) == ([Row("a dog", "un perro"), Row("a cat", "un gato")], 0)
    translate = Recorded(tmp_path)
    assert translate(["a cat", "a dog", "un pez"], "en", "es") == ["un gato", "un perro", None]
    assert translate(["un oso", "un pez", "a dog"], "es", "en") == ["a bear", "a fish", None]
    assert translate.counts["es", "en"].files == [test] and translate.counts["en", "es"].texts == 2


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("en-es-translated.tsv", "en", "es"),
        ("train-es.tsv", "en", "es"),
        ("test-es-en-translated.tsv", "es", "en"),
        ("test-es.tsv", "es", "en"),
    ],
)
def test_other_names_of_xtremes_files(name: str, source: str, target: str, tmp_path: Path) -> None:
    xtreme(tmp_path / name, "one|two|three|four|0")
    translate = Recorded(tmp_path)
    assert translate(["one", "two"], source, target) == ["three", "four"]
    with pytest.raises(DataError, match=f"no translations from {target} to {source}"):
        translate(["one"], target, source)
    with pytest.raises(DataError, match=f"no translations from {source} to de"):
        translate(["one"], source, "de")


def test_the_official_names_go_first(tmp_path: Path) -> None:
    xtreme(tmp_path / "translate-test" / "test-es-en-translated.tsv", "uno|dos|one|two|0")
    file(tmp_path / "test-es.tsv", "uno\tdos\t0\n")  # XTREME's own test file, which has no translations
    assert Recorded(tmp_path)(["uno"], "es", "en") == ["one"]


def test_broken_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [f"text {number}|and {number}|texto {number}|y {number}|0" for number in range(20)]
    path = xtreme(tmp_path / "train-es.tsv", *rows, "broken|line", "x|1|2")
    translate = Recorded(tmp_path)
    assert translate(["text 19", "broken"], "en", "es") == ["texto 19", None]
    assert (translate.counts["en", "es"].skipped, translate.counts["en", "es"].texts) == (2, 40)
    xtreme(path, *rows[:3], "broken|line")
    with pytest.raises(DataError, match="1 of 4 lines have not the 5 columns of XTREME's files"):
        Recorded(tmp_path)(["x"], "en", "es")


def test_files_by_pair(tmp_path: Path) -> None:
    jsonl(tmp_path / "en-es.jsonl", pair("dog", "perro"))
    file(tmp_path / "en-es.tsv", "source\ttarget\ncat\tgato\n")
    file(tmp_path / "es-en.csv", "source,target\nperro,dog\n")
    translate = Recorded(tmp_path)
    assert translate(["dog", "cat"], "en", "es") == ["perro", "gato"]
    assert translate(["perro"], "es", "en") == ["dog"]
    assert translate(["cat"], "en", "es") == ["gato"]


def test_languages_in_the_path(tmp_path: Path) -> None:
    jsonl(tmp_path / "to-es" / "from-en.jsonl", pair("dog", "perro"))
    xtreme(tmp_path / "to-de" / "en-de-translated.tsv", "dog|cat|Hund|Katze|1")
    assert Recorded(tmp_path, "to-{target}/from-{source}.jsonl")(["dog"], "en", "es") == ["perro"]
    assert Recorded(tmp_path, "to-{target}")(["cat"], "en", "de") == ["Katze"]
    with pytest.raises(DataError, match="from en to fr: no such file or folder") as caught:
        Recorded(tmp_path, "to-{target}/from-{source}.jsonl")(["dog"], "en", "fr")
    assert caught.value.where == str(tmp_path / "to-fr" / "from-en.jsonl")


def test_other_names_of_languages(tmp_path: Path) -> None:
    jsonl(tmp_path / "all.jsonl", pair("dog", "狗", "en", "zh-CN"), pair("dog", "perro", "en", "es"))
    assert Recorded(tmp_path / "all.jsonl", codes={"zh": "zh-CN"})(["dog"], "en", "zh") == ["狗"]
    xtreme(tmp_path / "en-zh-CN-translated.tsv", "cat|dog|猫|狗|1")
    assert Recorded(tmp_path, codes={"zh": "zh-CN"})(["cat"], "en", "zh") == ["猫"]


# rows


def test_a_file_with_several_pairs(tmp_path: Path) -> None:
    rows = [pair("dog", "perro", "en", "es"), pair("dog", "chien", "en", "fr"), pair("perro", "dog", "es", "en")]
    translate = Recorded(jsonl(tmp_path / "all.jsonl", *rows))
    assert [translate(["dog"], "en", one)[0] for one in ("es", "fr", "es")] == ["perro", "chien", "perro"]
    assert translate(["perro"], "es", "en") == ["dog"]
    with pytest.raises(DataError, match="no translation from en to de"):
        translate(["dog"], "en", "de")


def test_a_file_that_tells_no_languages_is_for_one_pair(tmp_path: Path) -> None:
    translate = Recorded(jsonl(tmp_path / "all.jsonl", pair("dog", "perro")))
    assert translate(["dog"], "en", "es") == ["perro"]
    with pytest.raises(DataError, match="One file is to translate en-es and en-fr, and does not tell its languages"):
        translate(["dog"], "en", "fr")


def test_the_first_translation_is_taken_and_others_are_counted(tmp_path: Path) -> None:
    rows = [pair("dog", "perro"), pair("dog", "can"), pair(" dog ", "perro "), pair("cat", None), pair("cat", "gato")]
    translate = Recorded(jsonl(tmp_path / "all.jsonl", *rows))
    assert translate(["dog", "cat"], "en", "es") == ["perro", "gato"]
    assert translate.counts["en", "es"].conflicts == 1


def test_a_text_is_found_by_its_words(tmp_path: Path) -> None:
    path = file(tmp_path / "en-es.tsv", 'source\ttarget\n"He said ""no""."\tDijo no.\nA  "b"\tc\n')
    texts = ['He said "no".', '"He said ""no""."', 'He  said\n"no". ', 'A "b"', "he said no."]
    assert Recorded(path)(texts, "en", "es") == ["Dijo no.", "Dijo no.", "Dijo no.", "c", None]


def test_line_separators_inside_a_text_end_no_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "all.jsonl", pair("one\u2028two\x85", "uno\u2028dos"))
    assert Recorded(path)(["one two"], "en", "es") == ["uno\u2028dos"]


# what can be wrong


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", '{"source": "a", "target": "b"}\n{"source"\n', "line 2 is no JSON"),
        ("t.jsonl", '["a", "b"]\n', "line 1 is no object with source and target"),
        ("t.jsonl", '{"source": "a"}\n', "line 1 is no object with source and target"),
        ("t.jsonl", '{"source": "a", "target": 3}\n', "target and the languages of line 1 are not text or null"),
        ("t.csv", "text,target\na,b\n", "its header names no source and target, but 'text', 'target'"),
        ("t.csv", "source,target\na,b,c\n", "row 2 has 3 fields, and the header 2"),
        ("t.csv", 'source,target\na,"b\n', "its quotes are wrong"),
        ("t.csv", "", "its header names no source and target, but nothing"),
        ("t.tsv", "source\ttranslation\na\tb\n", "its header names no source and target, but 'source', 'translation'"),
        ("t.tsv", "a\tb\n", "it has no header with source and target"),
        ("t.txt", "a\tb\n", "its name ends in '.txt', not in .jsonl, .csv, .tsv"),
    ],
)
def test_a_file_in_no_layout(name: str, content: str, said: str, tmp_path: Path) -> None:
    path = file(tmp_path / name, content)
    with pytest.raises(DataError, match=said) as caught:
        Recorded(path)(["a"], "en", "es")
    assert caught.value.where == str(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(b"source\ttarget\na\xff\tb\n")
    with pytest.raises(DataError, match="byte 15 is no UTF-8"):
        Recorded(path)(["a"], "en", "es")


def test_a_file_without_a_translation(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", pair("a", None), pair("b", ""))
    with pytest.raises(DataError, match="no translation from en to es"):
        Recorded(path)(["a"], "en", "es")


def test_nothing_there_is_said_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        Recorded(tmp_path / "absent")(["a"], "en", "es")
    file(tmp_path / "translate-train" / "en-fr-translated.tsv", "")
    with pytest.raises(DataError) as caught:
        Recorded(tmp_path)(["a"], "en", "es")
    said = str(caught.value)
    assert "looked for: en-es.jsonl, en-es.csv, en-es.tsv, translate-train/en-es-translated.tsv" in said
    assert "there are:  translate-train/en-fr-translated.tsv" in said
