"""Embedded task "demo/sentiment_xx": is a short review negative, neutral or positive, in four languages?

A review has one clause, or two. A clause is an opinion, or neutral: a fact, something middling, or "neither good nor
bad". A negation turns an opinion over ("not good" is negative, "not bad" positive); intensifiers change nothing, nor
does a negation in a fact. Of two clauses, which never have the same value, one decides: the one after "but", or the
one that does not begin with "although". So the words alone say what the clauses are, and their order which one counts.

The languages are not translations of each other: each has its own nouns, synonyms (the frequent ones first, as in real
text), idioms, word orders and agreement (sentiment_xx.json), and they share few words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from kdlab.errors import DataError

SIZES = {"train": 1500, "validation": 200, "test": 300}  # of each language
LABELS = ("negative", "neutral", "positive")
LANGUAGES = ("en", "es", "fr", "de")

_SEED = 22
_WORDS = range(6, 15)  # length of a review, without commas
_TWO_CLAUSES = 0.3  # share of drawn reviews; short ones are drawn again, so a little more is left
_NEGATED = 0.25  # share of opinions and of facts
_OPENED = 0.35  # share of reviews that begin with an opener, if they can
_INTENSIFIED = 0.5  # share of adjectives
_OPINIONS = {"adjective": 0.65, "feeling": 0.2, "idiom": 0.15}
_NEUTRAL = {"fact": 0.6, "adjective": 0.15, "neither": 0.15, "idiom": 0.1}
_PRONOUNS = {"m": "il", "f": "elle"}  # of French, which may name the noun at the end


def rows(split: str, language: str) -> list[dict[str, str]]:
    """Return one split of one language as rows with `text` and `label`.

    The same rows on every machine, the labels balanced. No text occurs twice in a language, whatever the split.
    Raises DataError for an unknown split or language.
    """
    for name, key, known in ((split, "task.splits", SIZES), (language, "task.languages", LANGUAGES)):
        if name not in known:
            raise DataError(
                f"the embedded task sentiment_xx has no {'split' if known is SIZES else 'language'} {name!r}",
                where=key,
                fix=f"choose one of {', '.join(known)}",
            )
    return [{"text": text, "label": label} for text, label in _splits(language)[split]]


@cache
def grammar(language: str) -> dict[str, Any]:
    """What reviews of a language are put together from.

    nouns: by domain and gender. adjectives: by polarity and domain ("any" fits all), the frequent first, masculine and
    feminine parted by "/". opinions, feelings, facts: forms of a clause, affirmed and negated; their verb is in
    brackets where its place depends on the clause. but, although: what parts two clauses. negations: the words that
    turn an opinion over.
    """
    file = Path(__file__).with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))[language]
    return found


@cache
def _splits(language: str) -> dict[str, list[tuple[str, str]]]:
    rng = Random(f"{_SEED} {language}")
    writer = _Writer(grammar(language), rng)
    seen: set[str] = set()
    made = {}
    for split, size in SIZES.items():
        made[split] = [(writer.new(label, seen), label) for label in islice(cycle(LABELS), size)]
        rng.shuffle(made[split])
    return made


class _Writer:
    """Draws reviews of one language."""

    def __init__(self, words: Mapping[str, Any], rng: Random) -> None:
        self.words, self.rng = words, rng

    def new(self, label: str, seen: set[str]) -> str:
        """A review that is not in `seen`, and is from then on."""
        while (text := self._review(label)) in seen or len(re.findall(r"[^\s,]+", text)) not in _WORDS:
            pass
        seen.add(text)
        return text

    def _review(self, label: str) -> str:
        choice = self.rng.choice
        opener = f"{choice(self.words['openers'])} " if self.rng.random() < _OPENED else ""
        first = "inverted" if opener else "main"
        if self.rng.random() >= _TWO_CLAUSES:
            return opener + self._clause(label, first)
        other = choice([value for value in LABELS if value != label])
        but, although = choice(self.words["but"]), choice(self.words["although"])
        contrast = choice(("but", "although after", "although before"))
        if contrast == "but":
            return f"{opener}{self._clause(other, first)} , {but} {self._clause(label, 'main')}"
        if contrast == "although after":
            return f"{opener}{self._clause(label, first)} , {although} {self._clause(other, 'subordinate')}"
        return f"{although} {self._clause(other, 'subordinate')} , {self._clause(label, 'inverted')}"

    def _clause(self, value: str, place: str) -> str:
        """value: one of LABELS. place: main, inverted (something stands before it) or subordinate."""
        shares = _NEUTRAL if value == "neutral" else _OPINIONS
        kind = self.rng.choices(list(shares), list(shares.values()))[0]
        negated = self.rng.random() < _NEGATED
        domain = self.rng.choice(list(self.words["nouns"]))
        nouns = [(noun, gender) for gender, group in self.words["nouns"][domain].items() for noun in group]
        noun, gender = self.rng.choice(nouns)
        slots = {name: self.rng.choice(group) for name, group in self.words["slots"].items()}
        slots |= {"the": noun, "the_object": re.sub("^der ", "den ", noun), "it": _PRONOUNS.get(gender, "")}
        if kind == "adjective":
            negated &= value != "neutral"
            polarity = _opposite(value) if negated else value
            forms = [template[negated] for template in self.words["opinions"]]
            slots["adj"] = self._adjective(polarity, domain, gender)
            slots["very"] = self._often(self.words["intensifiers"]) if self.rng.random() < _INTENSIFIED else ""
        elif kind == "feeling":
            negated &= value == "negative"
            group = self.words["feelings"]["positive" if negated else value]
            forms = [template[negated] for template in group]
        elif kind == "idiom":
            forms = self.words["idiom"]
            slots["idiom"] = self.rng.choice(self.words["idioms"][value])
        elif kind == "neither":
            forms = self.words["neither"]
            slots |= {name: self._adjective(name, domain, gender) for name in ("positive", "negative")}
        else:
            forms = [template[negated] for name in ("any", domain) for template in self.words["facts"][name]]
        if place != "main":
            forms = [form for form in forms if "[" in form] or forms
        return _arrange(self.rng.choice(forms), place, slots)

    def _adjective(self, polarity: str, domain: str, gender: str) -> str:
        """One that fits the noun: half of them say what can be said of anything."""
        groups = self.words["adjectives"][polarity]
        group = groups["any"] if domain not in groups or self.rng.random() < 0.5 else groups[domain]
        masculine, _, feminine = self._often(group).partition("/")
        return feminine if feminine and gender == "f" else masculine

    def _often(self, words: Sequence[str]) -> str:
        """One of the words, the n-th with a frequency of 1 / n (Zipf)."""
        return self.rng.choices(words, [1 / rank for rank in range(1, len(words) + 1)])[0]


def _opposite(value: str) -> str:
    return "negative" if value == "positive" else "positive"


def _arrange(form: str, place: str, slots: Mapping[str, str]) -> str:
    """Fill the slots of a form. A verb in brackets moves: to the front if inverted, to the end if subordinate."""
    verb = re.search(r"\[(\w+)\]", form)
    if verb:
        rest = form.replace(verb[0], "")
        form = {"main": form, "inverted": f"{verb[1]} {rest}", "subordinate": f"{rest} {verb[1]}"}[place]
    return " ".join(form.replace("[", "").replace("]", "").format(**slots).split())
