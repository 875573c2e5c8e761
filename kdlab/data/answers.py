"""From a completion to its answer, and from answers to scores.

Two parsers. `official` is reasoning-teacher's src/evaluation/evaluator.py, quirks included (papers.md 2.2 and F10): any
capital letter of a word may be a choice, "5.0" is no "5" unless `Form.compare` says number, and where the template's
prefix is missing the last candidate of the whole text counts. `strict` reads an answer only where one is announced:

* behind the last "-->" (ft_cot_token), else behind the last "answer is", up to the next one; a completion of zs, zs_cot
  or ft_token, which has no prefix, may also begin with it. A further "Q:" and what follows it is left out.
* It stands on the first line there that has text. Behind the announcement words may come before a number or letter; on
  a line of its own, and in zs and ft_token, it comes first.
* number: one whole number with sign, currency, commas and percent, or what follows the "=" of a sum; no fraction,
  date, list or half of a formula. Numbers are equal within 1e-6.
* choice: "(A)", or "A" by itself, but not the article, and not one of several ("A or B").
* yes_no: the first word. text: the line without quotes, dots and case.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from kdlab.data.prompts import Style, answer_prefix
from kdlab.errors import DataError

KINDS = ("number", "choice", "yes_no", "text")
PARSERS = ("official", "strict")
TOLERANCE = 1e-6  # of numbers; evaluator.py:117


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an answer of a task looks like, and when two are the same."""

    kind: str  # one of KINDS
    choices: str | None = None  # kind=choice: the letters, "ABCDE"
    compare: str = "string"  # kind=number, parser=official: string or number
    lower: bool = True  # kind=yes_no, parser=official: a gold "Yes" is "yes"; not so in the official coin_flip
    cleanse: bool = False  # kind=text, parser=official: gold answers lose what predictions do; the official ones do not

    def __post_init__(self) -> None:
        assert self.kind in KINDS and self.compare in ("string", "number"), (self.kind, self.compare)
        if self.kind == "choice" and not self.choices:
            raise DataError(
                "The answers are choices, and their letters are not given.",
                where="task.choices",
                fix="Give them in one word: task.choices=ABCDE",
            )


@dataclass(frozen=True)
class Parsed:
    """What a completion answers."""

    prediction: str | None  # None: no answer was found
    candidates: tuple[str, ...]  # all that could be meant
    correct_format: bool  # the template's prefix is there, or it has none


@dataclass(frozen=True)
class Judgement:
    """One completion against the gold answer."""

    prediction: str | None
    correct: bool
    contains_answer: bool  # one of the candidates is right
    correct_format: bool
    complete: bool  # ended by itself


def parse(text: str, *, template: str, form: Form, parser: str = "official", natural_comma: bool = False) -> Parsed:
    """The answer in a completion.

    official: the first candidate behind the first prefix of the template, the first of all where the template has
    none, and the last of all where the prefix is missing (evaluator.py:75-100). strict: see the module.
    natural_comma: as in `Style`.
    """
    assert parser in PARSERS, parser
    prefix = answer_prefix(Style(template=template, natural_comma=natural_comma))
    found = prefix is None or prefix in text
    if parser == "strict":
        candidates = _strict(text, template, form)
        return Parsed(candidates[0] if candidates else None, tuple(candidates), found)
    candidates = _official(text.partition(prefix)[2] if prefix is not None and found else text, form)
    if not candidates:
        return Parsed(None, (), found)
    return Parsed(candidates[0 if found else -1], tuple(candidates), found)


def gold(answer: str, form: Form, *, parser: str = "official") -> str:
    """The data set's answer in the shape of predictions.

    official (evaluator.py:102-110): numbers without commas, yes and no in lower case, all else as it is; with
    `Form.cleanse` text without quotes, dots and blanks, unless nothing else is in it: no completion gives that. strict:
    as read from text, where that is possible. Raises DataError for one that is no number and is to be compared as one.
    """
    if parser == "strict":
        read = _read(answer, form, lead_in=False)
        return answer.strip() if read is None else read
    if form.kind == "number":
        answer = answer.replace(",", "")
        if form.compare == "number" and _finite(answer) is None:
            raise DataError(
                f"The answer {answer!r} is no number.",
                where="task.label",
                fix="Set task.answer to what it is, task.after to what stands before it, or task.compare=string.",
            )
    elif form.kind == "yes_no" and form.lower:
        answer = answer.lower()
    elif form.kind == "text" and form.cleanse:
        answer = _plain(answer) or answer
    return answer


def can_be_right(answer: str, form: Form, *, parser: str = "official") -> bool:
    """Whether a completion can give this gold answer at all: "maybe" is neither yes nor no, "#### 72" no number."""
    try:
        wanted = gold(answer, form, parser=parser)
    except DataError:
        return False
    given = _official(answer, form) if parser == "official" else [_read(answer, form, lead_in=False)]
    return any(_same(candidate, wanted, form, parser) for candidate in given)


def judge(
    text: str,
    answer: str,
    *,
    template: str,
    form: Form,
    parser: str = "official",
    finish_reason: str | None = None,
    natural_comma: bool = False,
) -> Judgement:
    """One completion against the gold answer, as the data set has it.

    finish_reason: "stop" is complete, anything else is not. None: nobody wrote down how the completion ended, as in
    recorded transcripts; it counts as not complete, as in the official code, so that their share of complete ones is
    0 and says nothing.
    """
    parsed = parse(text, template=template, form=form, parser=parser, natural_comma=natural_comma)
    wanted = gold(answer, form, parser=parser)
    return Judgement(
        prediction=parsed.prediction,
        correct=_same(parsed.prediction, wanted, form, parser),
        contains_answer=any(_same(candidate, wanted, form, parser) for candidate in parsed.candidates),
        correct_format=parsed.correct_format,
        complete=finish_reason == "stop",
    )


def _same(prediction: str | None, wanted: str, form: Form, parser: str) -> bool:
    if prediction is None:
        return False
    if form.kind == "number" and (parser == "strict" or form.compare == "number"):
        one, other = _finite(prediction), _finite(wanted)
        return one is not None and other is not None and abs(one - other) <= TOLERANCE
    return prediction == wanted


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# Scores


def summary(judgements: Sequence[Judgement]) -> dict[str, float]:
    """Shares in [0, 1] of right, right somewhere, well formed and complete answers (summary.py)."""
    if not judgements:
        raise DataError("There are no answers to score.", where="the test questions")
    count = len(judgements)
    return {
        "accuracy": sum(judgement.correct for judgement in judgements) / count,
        "contains_answer": sum(judgement.contains_answer for judgement in judgements) / count,
        "correct_format": sum(judgement.correct_format for judgement in judgements) / count,
        "complete": sum(judgement.complete for judgement in judgements) / count,
    }


def bootstrap(correct: Sequence[bool], *, seed: int, draws: int = 10_000, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of an accuracy over questions drawn with replacement.

    The right ones among n questions drawn so are Binomial(n, accuracy): nothing is resampled. Where all are right, or
    all are wrong, that would be a point whatever n is: there it is the Wilson interval.
    """
    if not len(correct):
        raise DataError("There are no answers to score.", where="the test questions")
    count, right = len(correct), sum(map(bool, correct))
    if right in (0, count):
        from scipy.stats import binomtest  # not for `kdlab plan`

        wilson = binomtest(right, count).proportion_ci(level, method="wilson")
        return float(wilson.low), float(wilson.high)
    means = np.random.default_rng(seed).binomial(count, right / count, size=draws) / count
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def constant(predictions: Iterable[str | None]) -> tuple[str | None, float]:
    """The most frequent prediction and its share: near 1, the model gives one answer whatever is asked.

    None, no answer, counts as one more prediction. Ties go to the first; of nothing at all: (None, 0.0).
    """
    counts = Counter(predictions)
    if not counts:
        return None, 0.0
    ((prediction, count),) = counts.most_common(1)
    return prediction, count / counts.total()


# The official parser


def _official(text: str, form: Form) -> list[str]:
    """All candidates of a text, in its order (evaluator.py:112-138)."""
    if form.kind == "number":
        return re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    if form.kind == "choice":
        assert form.choices is not None
        return re.findall(f"[{re.escape(form.choices)}]", text)
    if form.kind == "yes_no":
        return [word for word in re.split(r"[\"'.:,\s]", text.lower()) if word in ("yes", "no")]
    return [_plain(text)]


def _plain(text: str) -> str:
    return re.sub(r"[\"'.\s]", "", text)


# The strict parser

_ANNOUNCED = re.compile(r"\banswer\s+(?:\([^()\n]*\)\s+)?is\b", re.IGNORECASE)
_NUMBER_LIKE = re.compile(r"(?:[-−+]?[$€£]?|[$€£][-−+])\.?\d\S*")
_NUMBER = re.compile(r"([-−+]?)[$€£]?([-−+]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")
_GOES_ON = re.compile(r"\s*(?:[-−–+*/×÷^x]\s*|(?:and|or|to)\s+)?[$€£]?\d")  # a formula, a mixed number, a list
_CLOSING = ".,;:!?%$)]}\"'’”`*_"
_YES_NO = re.compile(r"[\W_]*(yes|no)(?![\w'’]|-\w|\s*(?:and|or|/)\s*(?:yes|no)\b)", re.IGNORECASE)
_NOT_AFTER_AN_ARTICLE = frozenset(["and", "as", "because", "but", "for", "if", "is", "or", "since", "so", "with"])


def _strict(text: str, template: str, form: Form) -> list[str]:
    """What the announcements of an answer are followed by, each up to the next; the one that counts first."""
    text = text.partition("\nQ:")[0]
    arrows = [match.span() for match in re.finditer("-->", text)] if template == "ft_cot_token" else []
    words = [match.span() for match in _ANNOUNCED.finditer(text)]
    starts = sorted(start for start, _ in arrows + words)
    answers = []
    for _, end in [*reversed(arrows), *reversed(words)]:
        place = bisect_left(starts, end)
        until = starts[place] if place < len(starts) else len(text)
        answers.append(_read(text[end:until], form, lead_in=True))
    if template in ("zs", "zs_cot", "ft_token"):
        answers.append(_read(text[: starts[0]] if starts else text, form, lead_in=template == "zs_cot"))
    return [answer for answer in answers if answer is not None]


def _read(text: str, form: Form, *, lead_in: bool) -> str | None:
    """The answer on the first line that has text; lead_in: words may come before it if that is the very first line."""
    line, *others = text.split("\n")
    if not line.strip(" \t\r:"):
        lead_in = False
        line = next((other for other in others if other.strip()), "")
    if form.kind == "number":
        return _read_number(line, lead_in)
    if form.kind == "choice":
        assert form.choices is not None
        return _read_choice(line, form.choices, lead_in)
    if form.kind == "yes_no":
        match = _YES_NO.match(line)
        return None if match is None else match[1].lower()
    return " ".join(line.strip(" \t\r:\"'“”‘’`*.").split()).casefold() or None


def _read_number(line: str, lead_in: bool) -> str | None:
    """A number as plain digits: no sign but minus, no zeros that say nothing."""
    sentence = re.split(r"(?<=\d)[.!?]\s", line)[0]
    formula, _, result = sentence.rpartition("=")
    if not lead_in and re.search(r"[^\W\d_]", formula):
        return None  # of an equation with unknowns
    like = _NUMBER_LIKE.search(result)
    if like is None or _GOES_ON.match(result[like.end() :]):
        return None
    ahead = result[: like.start()]
    if re.search(r"[\w.]$" if lead_in else r"\w", ahead):
        return None
    number = _NUMBER.fullmatch(like[0].rstrip(_CLOSING))
    if number is None:
        return None
    digits = format(Decimal(number[3].replace(",", "")), "f")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    negative = (number[1] or number[2]) in ("-", "−") and digits != "0"
    return f"-{digits}" if negative else digits


def _read_choice(line: str, choices: str, lead_in: bool) -> str | None:
    letters = f"[{re.escape(choices)}]"
    alone = rf"(?<!\w)\((?P<inside>(?i:{letters}))\)|(?<![\w.'’-])(?P<bare>{letters})(?![\w'’-]|\.\w)"
    for match in re.finditer(alone, line):
        ahead, behind = line[: match.start()], line[match.end() :]
        if not lead_in and re.search(r"\w", ahead):
            return None
        word = re.match(r"\s+([^\W\d_]+)", behind)
        if match["bare"] in ("A", "I") and word is not None and word[1] not in _NOT_AFTER_AN_ARTICLE:
            continue
        if re.match(rf"\)?\s*(?:(?:(?:,|/|&|and\b|or\b)\s*)+\(?{letters}(?![\w'’])|\({letters}\))", behind):
            return None  # one of several
        letter: str = match["inside"] or match["bare"]
        return letter if letter in choices else letter.swapcase()
    return None
