"""The embedded task: deterministic, balanced, and not solved by counting words."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from kdlab.data.demo import nli
from kdlab.errors import DataError


def word_counts(vectorizer: CountVectorizer, rows: list[dict[str, str]]) -> np.ndarray:
    """Counts of each word in the premise, in the hypothesis, and the product of both (the overlap)."""
    premise = vectorizer.transform([row["premise"] for row in rows]).toarray()
    hypothesis = vectorizer.transform([row["hypothesis"] for row in rows]).toarray()
    overlap = premise * hypothesis
    return np.hstack([premise, hypothesis, overlap, overlap.sum(axis=1, keepdims=True)])


def test_sizes_columns_and_balance() -> None:
    for split, size in nli.SIZES.items():
        rows = nli.rows(split)
        assert len(rows) == size
        assert all(list(row) == ["premise", "hypothesis", "label"] for row in rows)
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == set(nli.LABELS)
        if split != "train":  # there the careless annotator shifts them a little
            assert max(counts.values()) - min(counts.values()) <= 1


def facts(row: dict[str, str]) -> set[str]:
    return set(row["premise"].split(" and "))


def two_facts(split: str) -> list[dict[str, str]]:
    return [row for row in nli.rows(split) if len(facts(row)) == 2]


def test_no_pair_with_two_facts_occurs_twice() -> None:
    pairs = [(row["premise"], row["hypothesis"]) for split in nli.SIZES for row in two_facts(split)]
    assert len(set(pairs)) == len(pairs) > 5000


def test_no_premise_with_two_facts_occurs_in_two_splits() -> None:
    train, dev, test = ({row["premise"] for row in two_facts(split)} for split in nli.SIZES)
    assert not (train & dev or train & test or dev & test)
    assert all(len(facts(row)) == 2 for split in ("validation", "test") for row in nli.rows(split))


def right_label(row: dict[str, str]) -> str:
    """The label by the rule of the task, worked out from the texts."""
    subject, verb, obj = row["hypothesis"].split()
    opposite = f"{subject} {'hindered' if verb == 'helped' else 'helped'} {obj}"
    if row["hypothesis"] in facts(row):
        return "entailment"
    return "contradiction" if opposite in facts(row) else "neutral"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_labels_follow_from_the_texts(split: str) -> None:
    assert all(row["label"] == right_label(row) for row in nli.rows(split))


def test_a_fifth_of_the_training_labels_is_wrong() -> None:
    rows = nli.rows("train")
    wrong = sum(row["label"] != right_label(row) for row in rows) / len(rows)
    assert 0.18 < wrong < 0.22


def test_same_bytes_on_every_machine() -> None:
    text = json.dumps([nli.rows(split) for split in nli.SIZES])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "c32362606d822d6449ffd11695ec6ecafed24a5bd7ea753ce0c4709eb3a92ad6"


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        nli.rows("dev")


def test_words_alone_do_not_give_the_label() -> None:
    train, dev = nli.rows("train"), nli.rows("validation")
    vectorizer = CountVectorizer().fit([f"{row['premise']} {row['hypothesis']}" for row in train])
    model = LogisticRegression(max_iter=100)
    model.fit(word_counts(vectorizer, train), [row["label"] for row in train])
    assert model.score(word_counts(vectorizer, dev), [row["label"] for row in dev]) < 0.45
