"""Embedded task "demo/nli": who did what to whom, told twice.

A premise states two facts about four people, a hypothesis one. It follows (entailment), its opposite follows
(contradiction), or neither (neutral: the two roles are swapped, or one role is filled from the other fact). Neutral
hypotheses use words of the premise only, so the words alone say almost nothing about the label: a model must bind
each verb to its subject and object, in the active voice and in the passive.
"""

from __future__ import annotations

from random import Random

from kdlab.errors import DataError

SIZES = {"train": 6000, "validation": 1000, "test": 1000}
LABELS = ("entailment", "neutral", "contradiction")

_SEED = 20
_NAMES = ("Anna", "Ben", "Carl", "Dora", "Emil", "Fred", "Gina", "Hugo")
_OPPOSITES = (("helped", "hindered"), ("praised", "mocked"))
_PASSIVE = 0.2  # share of hypotheses in the passive voice
_SAME_VERB = 0.2  # share of premises whose two facts have one verb
_SECOND = 0.75  # share of hypotheses about the premise's second fact: order that a bag of words can't see
_RECOMBINED = 0.25  # share of neutral hypotheses that mix the two facts; the others swap the roles of one


def rows(split: str) -> list[dict[str, str]]:
    """Return one split as rows with `premise`, `hypothesis` and `label`.

    The same rows on every machine; no (premise, hypothesis) pair occurs twice, within a split or across splits.
    The labels are balanced. Raises DataError for an unknown split.
    """
    if split not in SIZES:
        raise DataError(
            f"the embedded task nli has no split {split!r}",
            where="task.splits",
            fix=f"choose one of {', '.join(SIZES)}",
        )
    rng = Random(_SEED)
    seen: set[tuple[str, str]] = set()
    made: list[dict[str, str]] = []
    for name, size in SIZES.items():
        made = []
        while len(made) < size:
            label = LABELS[len(made) % len(LABELS)]
            texts = _pair(rng, label)
            if texts not in seen:
                seen.add(texts)
                made.append({"premise": texts[0], "hypothesis": texts[1], "label": label})
        if name == split:
            break
    rng.shuffle(made)
    return made


def _pair(rng: Random, label: str) -> tuple[str, str]:
    first, second, third, fourth = rng.sample(_NAMES, 4)
    verbs = rng.choice(_OPPOSITES)
    verb = rng.randrange(2)
    other_verb = verb if rng.random() < _SAME_VERB else 1 - verb
    facts = [(first, verb, second), (third, other_verb, fourth)]
    premise = " and ".join(f"{subject} {verbs[word]} {obj}" for subject, word, obj in facts)

    if rng.random() < _SECOND:
        facts.reverse()
    (subject, word, obj), (other_subject, _, other_object) = facts
    if label == "contradiction":
        word = 1 - word
    elif label == "neutral":
        word = rng.randrange(2)
        if rng.random() >= _RECOMBINED:
            subject, obj = obj, subject
        elif rng.random() < 0.5:
            subject = other_subject
        else:
            obj = other_object
    if rng.random() < _PASSIVE:
        return premise, f"{obj} was {verbs[word]} by {subject}"
    return premise, f"{subject} {verbs[word]} {obj}"
