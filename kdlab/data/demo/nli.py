"""Embedded task "demo/nli": who helped whom, and who hindered whom.

A premise states two facts about four people, a hypothesis one. It follows (entailment), its opposite follows
(contradiction), or neither (neutral: the two roles are swapped, or one role is filled from the other fact).
Neutral hypotheses use words of the premise only, so the words alone say little about the label: a model must bind
each verb to its subject and its object. In train, some premises state one fact, twice: easy rows from which a model
made from scratch learns to compare. The annotator of train was careless: a fifth of its labels are wrong. Those of
validation and test are right.
"""

from __future__ import annotations

from itertools import permutations
from random import Random

from kdlab.errors import DataError

SIZES = {"train": 6000, "validation": 1000, "test": 1000}
LABELS = ("entailment", "neutral", "contradiction")

_SEED = 20
_NAMES = ("Anna", "Ben", "Carl", "Dora", "Emil", "Fred", "Gina")
_VERBS = ("helped", "hindered")
_PREMISES = {"train": 0.7, "validation": 0.15, "test": 0.15}  # share of all premises
_SAME_VERB = 0.25  # share of rows where both facts of the premise have one verb
_ONE_FACT = 0.45  # share of the training rows that are no contradiction whose premise states one fact
_CARELESS = 0.2  # share of training labels that are wrong
_RECOMBINED = 0.15  # share of neutral hypotheses that mix the two facts; the others swap the roles of one

_Fact = tuple[str, int, str]  # subject, index of the verb, object


def rows(split: str) -> list[dict[str, str]]:
    """Return one split as rows with `premise`, `hypothesis` and `label`.

    The same rows on every machine, the right labels balanced. Of premises with two facts, no pair of texts occurs
    twice in a split, and none occurs in two splits. Raises DataError for an unknown split.
    """
    if split not in SIZES:
        raise DataError(
            f"the embedded task nli has no split {split!r}",
            where="task.splits",
            fix=f"choose one of {', '.join(SIZES)}",
        )
    rng = Random(f"{_SEED} {split}")
    one_verb, two_verbs = _premises(split)
    seen: set[tuple[str, str]] = set()
    made: list[dict[str, str]] = []
    while len(made) < SIZES[split]:
        label = LABELS[len(made) % len(LABELS)]
        if split == "train" and label != "contradiction" and rng.random() < _ONE_FACT:
            texts = _one_fact(rng, label)
        else:
            facts = one_verb if rng.random() < _SAME_VERB else two_verbs
            texts = _texts(rng, facts, label)
            while texts in seen:  # draw again from the same facts, so that the shares stay as they are
                texts = _texts(rng, facts, label)
            seen.add(texts)
        made.append({"premise": texts[0], "hypothesis": texts[1], "label": label})
    rng.shuffle(made)
    if split == "train":
        for row in made:
            if rng.random() < _CARELESS:
                row["label"] = rng.choice([label for label in LABELS if label != row["label"]])
    return made


def _premises(split: str) -> tuple[list[tuple[_Fact, _Fact]], list[tuple[_Fact, _Fact]]]:
    """Return the split's own premises: those whose facts have one verb, and those with two."""
    found = []
    for same in (True, False):
        every = [
            ((first, verb, second), (third, verb if same else 1 - verb, fourth))
            for first, second, third, fourth in permutations(_NAMES, 4)
            for verb in (0, 1)
        ]
        Random(_SEED).shuffle(every)
        start = 0
        for name, share in _PREMISES.items():
            stop = start + round(share * len(every))
            if name == split:
                found.append(every[start:stop])
            start = stop
    return found[0], found[1]


def _texts(rng: Random, premises: list[tuple[_Fact, _Fact]], label: str) -> tuple[str, str]:
    facts = list(rng.choice(premises))
    premise = " and ".join(_clause(*fact) for fact in facts)
    rng.shuffle(facts)
    (subject, verb, obj), (other_subject, _, other_object) = facts
    if label == "contradiction":
        verb = 1 - verb
    elif label == "neutral":
        verb = rng.randrange(2)
        if rng.random() >= _RECOMBINED:
            subject, obj = obj, subject
        elif rng.random() < 0.5:
            subject = other_subject
        else:
            obj = other_object
    return premise, _clause(subject, verb, obj)


def _one_fact(rng: Random, label: str) -> tuple[str, str]:
    subject, obj = rng.sample(_NAMES, 2)
    verb = rng.randrange(2)
    fact = _clause(subject, verb, obj)
    return f"{fact} and {fact}", fact if label == "entailment" else _clause(obj, verb, subject)


def _clause(subject: str, verb: int, obj: str) -> str:
    return f"{subject} {_VERBS[verb]} {obj}"
