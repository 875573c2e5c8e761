"""The embedded multilingual task: deterministic, balanced, without leaks, and its labels follow from its texts."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import yaml

import kdlab
from kdlab.data.demo import sentiment_xx
from kdlab.data.demo.sentiment_xx import LABELS, LANGUAGES, SIZES, grammar, rows
from kdlab.errors import DataError

CONF = Path(kdlab.__file__).parent.parent / "conf"
each_language = pytest.mark.parametrize("language", LANGUAGES)


def texts(split: str, language: str) -> list[str]:
    return [row["text"] for row in rows(split, language)]


def words(text: str) -> list[str]:
    return text.replace(" , ", " ").split()


@each_language
def test_sizes_columns_and_balance(language: str) -> None:
    for split, size in SIZES.items():
        made = rows(split, language)
        assert len(made) == size
        assert all(list(row) == ["text", "label"] for row in made)
        counts = Counter(row["label"] for row in made)
        assert set(counts) == set(LABELS) and max(counts.values()) - min(counts.values()) <= 1


@each_language
def test_no_text_occurs_twice_in_a_language(language: str) -> None:
    every = [text.casefold() for split in SIZES for text in texts(split, language)]
    assert len(set(every)) == len(every) == sum(SIZES.values())


@each_language
def test_reviews_are_short_and_plain(language: str) -> None:
    for split in SIZES:
        for text in texts(split, language):
            assert 6 <= len(words(text)) <= 14
            assert re.fullmatch(r"[\w'-]+( (, )?[\w'-]+)*", text) and text.count(",") <= 1, text


DIGESTS = {
    "en": "ca91e05bd6d25ff134c3dbd2cbee2117e427abc00896276fdb3d6a7524263485",
    "es": "ec6da05ab155bccf48163452dc852048f87ea50cfe0b8a7b70fa5784b9ce942a",
    "fr": "cf743d410318d7d33a2da0f0f0a843ac5f4c0798bee2022aa6909e29851b3fe7",
    "de": "e3403b229dc50e905166e61c9b4ce4a9af759fec4624ae509bdfc24d585a4dff",
}


@each_language
def test_same_bytes_on_every_machine(language: str) -> None:
    text = json.dumps([rows(split, language) for split in SIZES])
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[language]


def test_rows_are_the_callers_own() -> None:
    rows("test", "en")[0]["label"] = "changed"
    assert rows("test", "en")[0]["label"] in LABELS


def test_unknown_split_and_language() -> None:
    with pytest.raises(DataError, match="no split 'dev'") as unknown:
        rows("dev", "en")
    assert unknown.value.fix == "choose one of train, validation, test"
    with pytest.raises(DataError, match="no language 'it'") as unknown:
        rows("train", "it")
    assert unknown.value.where == "task.languages" and "en, es, fr, de" in str(unknown.value)


# labels, worked out from the texts

FEELINGS = {  # what verbs say, by language and polarity
    "en": {
        "positive": {"loved", "love", "enjoyed", "enjoy", "liked", "like", "over"},
        "negative": {"hated", "down", "ruined", "complained"},
    },
    "es": {
        "positive": {"encantó", "gustó", "disfruté"},
        "negative": {"detestamos", "odié", "defraudó", "arruinó"},
    },
    "fr": {"positive": {"adoré", "aimé", "plu", "conquis"}, "negative": {"détesté", "déçus", "gâché", "agacés"}},
    "de": {
        "positive": {"gefallen", "geliebt", "begeistert", "mochte"},
        "negative": {"gehasst", "enttäuscht", "verdorben", "geärgert"},
    },
}


def says(language: str, polarity: str) -> set[str]:
    """The words and idioms of a polarity."""
    known = grammar(language)
    adjectives = {
        form for group in known["adjectives"][polarity].values() for adjective in group for form in adjective.split("/")
    }
    return adjectives | set(known["idioms"][polarity]) | FEELINGS[language][polarity]


def has(clause: str, phrases: set[str]) -> bool:
    return any(f" {phrase} " in f" {clause} " for phrase in phrases)


def value(clause: str, language: str) -> str:
    """Positive or negative by its words, turned over by a negation; neutral if it says neither, or both."""
    good, bad = (has(clause, says(language, polarity)) for polarity in ("positive", "negative"))
    if good == bad:
        return "neutral"
    return "positive" if good != has(clause, set(grammar(language)["negations"])) else "negative"


def clauses(text: str, language: str) -> tuple[str, str | None]:
    """The clause that decides, and the other."""
    first, comma, second = text.partition(" , ")
    if not comma:
        return text, None
    although = tuple(f"{word} " for word in grammar(language)["although"])
    if first.startswith(although):
        return second, first
    if second.startswith(although):
        return first, second
    assert second.startswith(tuple(f"{word} " for word in grammar(language)["but"])), text
    return second, first


@each_language
@pytest.mark.parametrize("split", SIZES)
def test_labels_follow_from_the_texts(split: str, language: str) -> None:
    for row in rows(split, language):
        decides, other = clauses(row["text"], language)
        assert value(decides, language) == row["label"], row
        assert other is None or value(other, language) != row["label"], row


@pytest.mark.parametrize(
    ("language", "text", "label"),
    [
        ("en", "the coffee was good , but the waiter was very rude", "negative"),
        ("en", "the coffee was good , although the waiter was very rude", "positive"),
        ("en", "even though the cake was not bland , the waiter was not kind", "negative"),
        ("en", "the film was a dream , yet we ordered the soup at two", "neutral"),
        ("es", "aunque el camarero era grosero , no era nada soso el pastel", "positive"),
        ("fr", "le lit n'était ni bon ni mauvais , alors que la soupe nous a plu", "neutral"),
        ("de", "das Zimmer war toll , auch wenn der Kellner nicht nett war", "positive"),
    ],
)
def test_the_rule_on_texts_written_by_hand(language: str, text: str, label: str) -> None:
    assert value(clauses(text, language)[0], language) == label


@each_language
def test_the_label_needs_more_than_one_word(language: str) -> None:
    made = rows("train", language)
    both = [row for row in made if clauses(row["text"], language)[1]]
    assert 0.25 < len(both) / len(made) < 0.5
    last = sum(clauses(row["text"], language)[0] == row["text"].partition(" , ")[2] for row in both)
    assert 0.5 < last / len(both) < 0.8  # the second clause decides after "but", and behind a clause with "although"
    negated = {label: 0 for label in LABELS}
    for row in made:
        decides, _ = clauses(row["text"], language)
        negated[row["label"]] += has(decides, set(grammar(language)["negations"]))
    assert all(0.1 < count / (len(made) / 3) < 0.5 for count in negated.values()), negated


@each_language
def test_verbs_of_german_move_and_those_of_others_stay(language: str) -> None:
    every = " | ".join(texts("train", language))
    assert "[" not in every and "{" not in every
    if language == "de":
        assert re.search(r"obwohl das \w+ (\w+ )?\w+ war , ", every)  # the verb ends the clause
        assert re.search(r" , (war|wirkte|schien|fand) ", every)  # and begins the one after it
        assert re.search(r"ehrlich gesagt (war|hat|wirkte|fand|haben) ", every)


def test_adjectives_agree() -> None:
    spanish, french = (" | ".join(texts("train", language)) for language in ("es", "fr"))
    assert re.search(r"la \w+ era (muy )?buena\b", spanish) and not re.search(r"la \w+ era (muy )?bueno\b", spanish)
    assert re.search(r"le \w+ était (très )?bon\b", french) and not re.search(r"la \w+ était (très )?bon\b", french)
    assert not re.search(r"\bil était [\w ]+ la |\belle était [\w ]+ le ", french)


def test_the_languages_share_few_words() -> None:
    vocabularies = {
        language: {word.casefold() for text in texts("train", language) for word in words(text)}
        for language in LANGUAGES
    }
    for one, other in combinations(LANGUAGES, 2):
        assert len(vocabularies[one]) > 170
        shared = vocabularies[one] & vocabularies[other]
        assert len(shared) <= 12, (one, other, shared)
        for polarity in ("positive", "negative"):
            assert not says(one, polarity) & says(other, polarity)


def test_the_task_file_names_what_there_is() -> None:
    task = yaml.safe_load((CONF / "task" / "demo" / "sentiment_xx.yaml").read_text(encoding="utf-8"))
    assert (tuple(task["languages"]), tuple(task["labels"])) == (LANGUAGES, LABELS)
    assert set(task["splits"].values()) == set(SIZES) and task["rows"] == SIZES["train"]
    assert task["source"]["demo"] == sentiment_xx.__name__.rpartition(".")[2]
    assert task["max_length"] >= 14 + 1 + 2  # words, a comma, [CLS] and [SEP]
