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
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_pair_occurs_twice() -> None:
    pairs = [(row["premise"], row["hypothesis"]) for split in nli.SIZES for row in nli.rows(split)]
    assert len(set(pairs)) == len(pairs)


def test_no_premise_occurs_in_two_splits() -> None:
    train, dev, test = ({row["premise"] for row in nli.rows(split)} for split in nli.SIZES)
    assert not (train & dev or train & test or dev & test)


def test_same_bytes_on_every_machine() -> None:
    text = json.dumps([nli.rows(split) for split in nli.SIZES])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "9c131d0eee12c09a5342fbb42119a643d5ed15d77f19485dddfdc2719f13e65b"


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        nli.rows("dev")


def test_words_alone_do_not_give_the_label() -> None:
    train, dev = nli.rows("train"), nli.rows("validation")
    vectorizer = CountVectorizer().fit([f"{row['premise']} {row['hypothesis']}" for row in train])
    model = LogisticRegression(max_iter=100)
    model.fit(word_counts(vectorizer, train), [row["label"] for row in train])
    assert model.score(word_counts(vectorizer, dev), [row["label"] for row in dev]) < 0.45
