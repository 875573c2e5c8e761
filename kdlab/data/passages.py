"""The rows of a corpus without labels: its texts as they are, or two consecutive sentences of a document.

Pairs follow CR-ILD, generate_wiki_data.py at 97ec677: part of the documents, sentences of more than 10 words, two by
two, each sentence in one pair only. Departures: both sentences of a pair come from the same document (there, one left
over is paired with the first of the next document); which documents are used is drawn with a seed; a line's end also
ends a sentence; sentences are found by the rule below, which needs no download (there, NLTK's Punkt).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from kdlab.data import tasks
from kdlab.errors import DataError

_END = re.compile(r"""[.!?…؟।]+["'”’»)\]]*\s+""")  # what may end a sentence within a line
_INITIALS = re.compile(r"[^\W\d]\.|(?:[^\W\d]{1,2}\.){2,}")  # J.  U.S.  e.g.  Ph.D.
_OPENING = "\"'“‘«([¿¡"
_ABBREVIATION = re.compile(
    "mr|mrs|ms|dr|prof|st|rev|hon|gen|col|maj|capt|cmdr|lt|sgt|gov|sen|rep|pres|jr|sr|vs|cf|al|approx|ca|etc|viz|est"
    "|inc|ltd|co|corp|dept|univ|assoc|bros"
)
_BEFORE_NUMBER = re.compile(  # abbreviations only there
    "nos?|vols?|pp?|figs?|eqs?|secs?|ch|art|eds?|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)


def sentences(document: str) -> list[str]:
    """The sentences of a text, for languages with blanks between words.

    One ends where its line ends, and after . ! ? or … (with closing quotes and brackets) before a blank, unless a
    lower-case letter follows, or the full stop is that of an abbreviation or of an initial. Where a stop can be both
    (etc., U.S.), it ends no sentence.
    """
    found = []
    for line in document.splitlines():
        start = 0
        for end in _END.finditer(line):
            following = line[end.end() : end.end() + 8].lstrip(_OPENING)
            if _ends(line[start : end.start() + 1], following[:1]):
                found.append(line[start : end.end()].strip())
                start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends(text: str, following: str) -> bool:
    """Whether the sign at the end of `text` ends a sentence; following: the next letter, past opening quotes."""
    if not following or following.islower():
        return False
    if not text.endswith("."):
        return True
    word = text.rsplit(maxsplit=1)[-1].lstrip(_OPENING).lower()
    if _BEFORE_NUMBER.fullmatch(word[:-1]):
        return not following.isdigit()
    return not _ABBREVIATION.fullmatch(word[:-1]) and not _INITIALS.fullmatch(word)


def pairs(document: str, *, min_words: int) -> list[tuple[str, str]]:
    """The sentences of `min_words` words or more, two by two; one left over at the end is not used."""
    long = [sentence for sentence in sentences(document) if len(sentence.split()) >= min_words]
    return list(zip(long[0::2], long[1::2], strict=False))


def sentence_pairs(
    documents: Iterable[str], *, min_words: int, keep: float, limit: int | None, seed: int
) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """(the first `limit` pairs, or all; how many documents were read and used). Each is used with the chance `keep`.

    No more documents are taken than are needed.
    """
    rng = np.random.default_rng(seed)
    found: list[tuple[str, ...]] = []
    counts = {"documents": 0, "used": 0}
    for document in documents:
        counts["documents"] += 1
        if rng.random() < keep:
            counts["used"] += 1
            found += pairs(document, min_words=min_words)
        if limit is not None and len(found) >= limit:
            break
    return found[:limit], counts


def read_passages(
    source: Mapping[str, Any], split: str, *, text: Sequence[str], passages: Mapping[str, Any]
) -> tuple[pa.Table, dict[str, int]]:
    """(rows in canonical columns with null labels; how many documents they are from).

    passages: the fields of `config.Passages`. With a limit, a data set on the Hub is streamed, so that little more of
    it is fetched than is needed; without one it is loaded whole, into the cache of `datasets`.

    Raises DataError for texts that can't be read or give no row, HubError where the Hub can't give them.
    """
    limit, place = passages["limit"], str(source.get("hub") or source.get("path") or source.get("demo"))
    rows = tasks.read_texts(source, split, text=text, stream=limit is not None)
    if passages["unit"] == "row":
        found: list[tuple[str, ...]] = list(islice(rows, limit))
        counts = {"documents": len(found), "used": len(found)}
    elif len(text) > 1:
        raise DataError(
            f"Pairs of sentences are made of one column of documents, and there are {len(text)}: {', '.join(text)}.",
            where=place,
            fix="Name one column in text, or set passages.unit=row to take the columns as the pair.",
        )
    else:
        documents = (document for (document,) in rows)
        kept = {name: passages[name] for name in ("min_words", "keep", "limit", "seed")}
        found, counts = sentence_pairs(documents, **kept)
    if not found and passages["unit"] == "pair":
        raise DataError(
            f"None of the {counts['used']} documents used (of {counts['documents']} read) has two sentences of"
            f" {passages['min_words']} words or more.",
            where=f"{place}, split {split}",
            fix="Lower passages.min_words, raise passages.keep, or set passages.unit=row.",
        )
    if not found:
        raise DataError(f"The split {split!r} has no rows.", where=place)
    return tasks.table(*(pa.array(column, pa.string()) for column in zip(*found, strict=True))), counts
