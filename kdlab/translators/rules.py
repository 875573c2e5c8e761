"""A word-for-word translator: no model, no network, and every artifact of machine translation that is easy to see.

It knows the languages of lexicon.json, a dictionary by English headwords, and goes through English between two others.

* Each word becomes its first sense: from English, the first word of the headword's list; to English, the first
  headword that lists the word. So translations are poorer in words than native text, and now and then wrong
  ("great" is "grande", "rico" is "rich").
* The order of words stays, and so do words that the dictionary does not have. Idioms are taken word by word.
* Punctuation stands alone, and nothing agrees: from English every word has its dictionary form ("el comida era bueno").
* Of the texts with a negation, one in eight loses the first and one in eight says it twice.
* One text in a hundred has no translation, and no text has one of which no word is known.

Which texts those are depends on the text alone (its CRC-32), so a text is always translated in the same way.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from kdlab.errors import DataError

VERSION = 1  # of the rules: raise it when the same lexicon gives other translations
LEXICON = Path(__file__).with_name("lexicon.json")
HUB = "en"

_REFUSED = 100  # one in so many texts has no translation
_GARBLED = 8  # one in so many texts with a negation loses it, one says it twice
_TOKEN = re.compile(r"[\w'-]+|[^\w\s]")


class _Lexicon(NamedTuple):
    words: dict[tuple[str, str], dict[str, str]]  # (source, target): word in lower case -> translation, "" for none
    negations: dict[str, set[str]]  # by language; its keys are the languages
    contractions: dict[str, dict[str, str]]  # by language: what they stand for

    @property
    def languages(self) -> list[str]:
        return list(self.negations)


def translate(texts: Sequence[str], source: str, target: str) -> list[str | None]:
    """Return the translations in order, None where there is none.

    source, target: codes of languages of the lexicon. Raises DataError for others, and if they are the same.
    """
    lexicon = _lexicon(LEXICON)
    for language in (source, target):
        if language not in lexicon.languages:
            raise DataError(
                f"the translator rules does not know the language {language!r}",
                where="translator=rules",
                fix=f"choose among {', '.join(lexicon.languages)}, or another translator",
            )
    if source == target:
        raise DataError(f"there is nothing to translate from {source!r} into itself", where="translator=rules")
    stops = [source, target] if HUB in (source, target) else [source, HUB, target]
    translations: list[str | None] = list(texts)
    for start, end in pairwise(stops):
        translations = [None if text is None else _hop(text, start, end, lexicon) for text in translations]
    return translations


def identity() -> str:
    """What translations depend on: the version of the rules and a hash of the lexicon."""
    digest = hashlib.sha256(LEXICON.read_bytes()).hexdigest()
    return f"rules {VERSION} {digest[:16]}"


@cache
def _lexicon(file: Path) -> _Lexicon:
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    words: dict[tuple[str, str], dict[str, str]] = {}
    for language in read["negations"]:
        if language == HUB:
            continue
        there, back = words.setdefault((HUB, language), {}), words.setdefault((language, HUB), {})
        back.update(dict.fromkeys(read["silent"].get(language, []), ""))
        for headword, entry in read["entries"].items():
            senses = entry[language].split(", ")
            there[headword.casefold()] = senses[0]
            for sense in senses:
                back.setdefault(sense.casefold(), headword)
    negations = {language: set(found) for language, found in read["negations"].items()}
    return _Lexicon(words, negations, {language: read["contractions"].get(language, {}) for language in negations})


def _hop(text: str, source: str, target: str, lexicon: _Lexicon) -> str | None:
    """Translate from or into English."""
    words, negations = lexicon.words[source, target], lexicon.negations[source]
    found = _TOKEN.findall(text.replace("’", "'"))
    tokens = [token for whole in found for token in _parts(whole, words, lexicon.contractions[source])]
    number = zlib.crc32(text.encode("utf-8"))
    if number % _REFUSED == 0 or not any(token.casefold() in words for token in tokens):
        return None
    negated = [place for place, token in enumerate(tokens) if token.casefold() in negations]
    fate = number // _REFUSED % _GARBLED
    if negated and fate == 0:
        del tokens[negated[0]]
    elif negated and fate == 1:
        tokens.insert(negated[0], tokens[negated[0]])
    return " ".join(filter(None, (words.get(token.casefold(), token) for token in tokens)))


def _parts(token: str, words: Mapping[str, str], contractions: Mapping[str, str]) -> list[str]:
    """The words that a token is made of: "didn't" is "did not", and "l'hôtel" is "l'" and "hôtel"."""
    if token.casefold() in contractions:
        return contractions[token.casefold()].split()
    head, apostrophe, tail = token.partition("'")
    if tail and token.casefold() not in words and f"{head}'".casefold() in words:
        return [head + apostrophe, tail]
    return [token]
