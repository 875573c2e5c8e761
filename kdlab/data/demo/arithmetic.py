"""Embedded task "demo/arithmetic": word problems that add, take away, multiply and divide, step after step.

Little stories in the manner of MultiArith, of any number of steps. Every division is exact, and every intermediate
result is a whole number from 1 to `LARGEST`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdlab.data.demo.distinct import draw

LARGEST = 60

_STARTS = range(3, 21)
_TERMS = range(2, 10)  # what is added or taken away
_FACTORS = range(2, 5)  # what is multiplied or divided by


@dataclass(frozen=True)
class _Story:
    """One setting; every story has as many figures, things and wordings as the others."""

    who: tuple[str, str, str, str]
    things: tuple[str, str, str]
    start: str
    plus: tuple[str, str]
    minus: tuple[str, str]
    times: tuple[str, str, str]
    divided: tuple[str, str, str]
    ask: str = "How many {things} does {who} have now?"

    @property
    def wordings(self) -> dict[str, tuple[str, ...]]:
        return {"+": self.plus, "-": self.minus, "*": self.times, "/": self.divided}


_STORIES = (
    _Story(
        who=("Ada", "Finn", "Leo", "Mia"),
        things=("apples", "marbles", "stickers"),
        start="{who} has {n} {things}.",
        plus=("{who} finds {n} more.", "A friend gives {who} {n} more."),
        minus=("{who} gives away {n} of them.", "{who} loses {n} of them."),
        times=(
            "{who} trades each of them for {n} new ones.",
            "{who} collects until there are {n} times as many.",
            "A magician turns each of them into {n}.",
        ),
        divided=(
            "{who} splits them into {n} equal heaps and keeps one heap.",
            "{n} friends, {who} among them, share them equally.",
            "{who} keeps one of every {n} and returns the others.",
        ),
    ),
    _Story(
        who=("the red team", "the blue team", "the green team", "the white team"),
        things=("points", "coins", "stars"),
        start="{who} begins a game with {n} {things}.",
        plus=("It wins {n} {things}.", "A good move brings {n} {things}."),
        minus=("It loses {n} {things}.", "A foul costs {n} {things}."),
        times=(
            "A bonus multiplies its {things} by {n}.",
            "A lucky card gives it {n} times as many {things}.",
            "Each of its {things} becomes {n}.",
        ),
        divided=(
            "A penalty divides its {things} by {n}.",
            "It keeps one of every {n} {things}.",
            "{n} teams, this one among them, share the {things} equally.",
        ),
    ),
    _Story(
        who=("the bus", "the tram", "the train", "the ferry"),
        things=("people", "children", "tourists"),
        start="{who} sets out with {n} {things}.",
        plus=("{n} more get on.", "At a stop {n} more come in."),
        minus=("{n} of the {things} get off.", "At a stop {n} of them leave."),
        times=(
            "The number on board grows to {n} times as many.",
            "For each of them there are soon {n} on board.",
            "A crowd makes it {n} times as full.",
        ),
        divided=(
            "They split into {n} equal groups, and one group stays on board.",
            "One of every {n} stays on board.",
            "They are shared equally between {n} vehicles, this one among them.",
        ),
        ask="How many {things} are on {who} now?",
    ),
    _Story(
        who=("the baker", "the cook", "the shop", "the canteen"),
        things=("rolls", "pies", "muffins"),
        start="{who} has {n} {things}.",
        plus=("The oven gives {n} more.", "A helper brings {n} more {things}."),
        minus=("{n} of the {things} are sold.", "Guests eat {n} of them."),
        times=(
            "A big batch makes them {n} times as many.",
            "Each of them is cut into {n} small ones.",
            "{who} orders until there are {n} times as many.",
        ),
        divided=(
            "They go to {n} tables in equal parts, and {who} counts one table.",
            "Only one of every {n} is kept.",
            "{who} fills {n} trays equally and keeps one tray.",
        ),
    ),
    _Story(
        who=("the farm", "the village", "the zoo", "the castle"),
        things=("hens", "goats", "ducks"),
        start="{who} has {n} {things}.",
        plus=("{n} more are born.", "{who} buys {n} more."),
        minus=("{n} of the {things} are sold.", "{n} of them run away."),
        times=(
            "In spring there are {n} times as many.",
            "The {things} grow to {n} times their number.",
            "For each of them there are soon {n}.",
        ),
        divided=(
            "They are shared equally between {n} places, this one among them.",
            "One of every {n} stays, and the others are sold.",
            "Of {n} equal groups, {who} keeps one.",
        ),
    ),
)


def _moves(value: int) -> list[tuple[str, int, int]]:
    """What can be done to `value`: operation, operand, result."""
    moves = [("+", term, value + term) for term in _TERMS]
    moves += [("-", term, value - term) for term in _TERMS]
    moves += [("*", factor, value * factor) for factor in _FACTORS]
    moves += [("/", factor, value // factor) for factor in _FACTORS if value % factor == 0]
    return [move for move in moves if 1 <= move[2] <= LARGEST]


_MOVES = {value: _moves(value) for value in range(1, LARGEST + 1)}


def questions(split: str, generate: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return "train" or "test" as rows with `question`, `answer` (a whole number) and `facts`.

    generate: `train` and `test` questions of `steps` operations each, drawn with `seed`: each story equally often, and
    within a story each course of numbers and wordings equally likely. The same rows on every machine. Raises DataError
    for an unknown split or more questions than there are.
    """
    courses = _courses(generate["steps"])
    story = _STORIES[0]
    size = len(story.who) * len(story.things) * sum(courses[-1][start] for start in _STARTS)
    drawn = draw("arithmetic", split, generate, size=size, groups=len(_STORIES))
    return [_row(_STORIES[group], number, courses) for group, number in drawn]


def _row(story: _Story, number: int, courses: Sequence[Mapping[int, int]]) -> dict[str, Any]:
    number, place = divmod(number, len(story.who))
    who = story.who[place]
    number, place = divmod(number, len(story.things))
    things = story.things[place]
    wordings = story.wordings
    *ahead, whole = courses
    place, number = _find(number, (whole[start] for start in _STARTS))
    start = value = _STARTS[place]
    sentences = [story.start.format(who=who, things=things, n=start)]
    operations: list[list[Any]] = []
    for left in reversed(ahead):
        moves = _MOVES[value]
        place, number = _find(number, (len(wordings[operation]) * left[result] for operation, _, result in moves))
        operation, operand, value = moves[place]
        place, number = divmod(number, left[value])
        sentences.append(wordings[operation][place].format(who=who, things=things, n=operand))
        operations.append([operation, operand])
    sentences.append(story.ask.format(who=who, things=things))
    return {
        "question": " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences),
        "answer": str(value),
        "facts": {"kind": "arithmetic", "who": who, "things": things, "start": start, "operations": operations},
    }


def _find(number: int, sizes: Iterable[int]) -> tuple[int, int]:
    """Which of the ranges of these sizes, one behind another, holds `number`, and which number within it."""
    for place, size in enumerate(sizes):
        if number < size:
            return place, number
        number -= size
    raise AssertionError("a number beyond all ranges")


def _courses(steps: int) -> list[dict[int, int]]:
    """How many courses lead on from each value, wordings counted, with 0 to `steps` steps to go."""
    wordings = _STORIES[0].wordings
    courses = [dict.fromkeys(_MOVES, 1)]
    for _ in range(steps):
        left = courses[-1]
        courses.append(
            {
                value: sum(len(wordings[operation]) * left[result] for operation, _, result in moves)
                for value, moves in _MOVES.items()
            }
        )
    return courses
