"""Rationales by rules, for the embedded reasoning tasks: the state is said after every step.

A text is put together from an opening, one of several wordings of a step, a numbering, a layout and a closing, so that
the samples of a question differ. A wrong one goes wrong at one step, reasons rightly from there, and ends in a wrong
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from random import Random
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from kdlab.errors import DataError

TEXTS = 100  # every question of every kind has at least so many right rationales

_NUMBERINGS = ("", "Step {n}: ", "({n}) ")
_LAYOUTS = (" ", "\n")


def write(kind: str, facts: Mapping[str, Any], rng: Random, *, wrong: bool) -> tuple[str, str]:
    """Return a rationale and the answer it ends in.

    facts: of a row of the embedded task `kind`. wrong: exactly one step goes wrong, and so does the answer.
    Raises DataError for a kind without rules.
    """
    if kind not in _WRITERS:
        raise DataError(
            f"there are no rules to write rationales for {kind!r}",
            where="rationales=rules",
            fix=f"choose one of the embedded tasks: {', '.join(f'task=demo/{name}' for name in _WRITERS)}",
        )
    opening, steps, closing, answer = _WRITERS[kind](facts, rng, wrong)
    numbering = rng.choice(_NUMBERINGS)
    numbered = [numbering.format(n=number) + step for number, step in enumerate(steps, 1)]
    return rng.choice(_LAYOUTS).join([opening, *numbered, closing]), answer


def record(row: Mapping[str, Any], completion_index: int, *, seed: int, error_rate: float) -> dict[str, Any]:
    """Return one record in reasoning-teacher's CompletionDataset layout, as if a model had written it in two steps.

    row: `id`, `question`, `answer`, `facts`. error_rate: chance to be wrong. What is written depends on the row, the
    index and the seed alone: more rows or more samples change none. Raises DataError for a row without facts.
    """
    facts = row.get("facts")
    if not facts:
        raise DataError(
            f"question {row['id']} has no facts, which rationales by rules are written from",
            where="rationales=rules",
            fix="choose an embedded task (task=demo/coin_flip), or another writer: rationales=openai|local|recorded",
        )
    rng = Random(f"{seed} {row['id']} {completion_index}")
    rationale, answer = write(facts["kind"], facts, rng, wrong=rng.random() < error_rate)
    prompt = f"Q: {row['question']}\nA: Let's think step by step."
    return {
        "sample_index": row["id"],
        "completion_index": completion_index,
        "question": row["question"],
        "answer": row["answer"],
        "reasoning_prompt": prompt,
        "reasoning_completion": f" {rationale}",
        "reasoning_finish_reason": "stop",
        "prompt": f"{prompt} {rationale}\nTherefore, the answer is",
        "completion": f" {answer}.",
        "finish_reason": "stop",
    }


_Parts = tuple[str, list[str], str, str]  # opening, steps, closing, answer


# Coin flip

_COIN_OPENINGS = (
    "The coin starts heads up.",
    "At first it is heads up.",
    "We begin with heads.",
    "Heads at the start.",
)
_COIN_STEPS = (  # a flip, and none
    ("{name} flips the coin, so it is now {side} up.", "{name} does not flip the coin, so it is still {side} up."),
    ("{name} flips it: {side}.", "{name} does not flip it: {side}."),
    ("{name} flips, which makes it {side}.", "{name} does not flip, which keeps it {side}."),
    ("After {name}, who flips it, it shows {side}.", "After {name}, who does not flip it, it shows {side}."),
)
_COIN_CLOSINGS = (  # heads, and tails
    ("So the coin is still heads up.", "So the coin is no longer heads up."),
    ("It ends heads up, as it began.", "It ends tails up, not as it began."),
    ("Heads at the end, so yes.", "Tails at the end, so no."),
)


def _coin_flip(facts: Mapping[str, Any], rng: Random, wrong: bool) -> _Parts:
    slip = rng.randrange(len(facts["flips"])) if wrong else None
    flips, rests = rng.choice(_COIN_STEPS)
    heads = True
    steps = []
    for step, (name, flip) in enumerate(zip(facts["names"], facts["flips"], strict=True)):
        heads ^= flip ^ (step == slip)
        steps.append((flips if flip else rests).format(name=name, side="heads" if heads else "tails"))
    return rng.choice(_COIN_OPENINGS), steps, rng.choice(_COIN_CLOSINGS)[not heads], "yes" if heads else "no"


# Last letter

_LETTER_OPENINGS = (
    "One word at a time.",
    "Take one word after another.",
    "The words are {words}.",
    "We go through the words.",
)
_LETTER_STEPS = (
    'The last letter of "{word}" is "{letter}", so far {joined}.',
    "{word} ends in {letter}: {joined}.",
    "Take {letter} from the end of {word}, which makes {joined}.",
    "{word} is spelled {spelled} and ends in {letter}, so we have {joined}.",
)
_LETTER_CLOSINGS = ("Joined, the letters are {joined}.", 'So we get "{joined}".', "All together: {joined}.")


def _last_letter(facts: Mapping[str, Any], rng: Random, wrong: bool) -> _Parts:
    words = facts["words"]
    slip = rng.randrange(len(words)) if wrong else None
    wording = rng.choice(_LETTER_STEPS)
    joined = ""
    steps = []
    for step, word in enumerate(words):
        letter = word[-1]
        if step == slip:
            letter = rng.choice([other for other in word if other != letter] or _others(letter))
        joined += letter
        steps.append(wording.format(word=word, letter=letter, joined=joined, spelled="-".join(word)))
    opening = rng.choice(_LETTER_OPENINGS).format(words=", ".join(words))
    return opening, steps, rng.choice(_LETTER_CLOSINGS).format(joined=joined), joined


def _others(letter: str) -> list[str]:
    return [other for other in ascii_lowercase if other != letter]


# Shuffled objects

_SHUFFLE_OPENINGS = ("At the start, {state}.", "In the beginning {state}.", "First of all, {state}.")
_SHUFFLE_STEPS = (  # mine and yours: what the two hold before
    "{one} and {other} swap {mine} and {yours}: {state}.",
    "After {one} and {other} swap {mine} and {yours}, {state}.",
    "{one} gives {mine} to {other} for {yours}, so {state}.",
    "{one} trades {mine} for {yours} with {other}: {state}.",
)
_SHUFFLE_HOLDS = ("{player} has {item}", "{player}: {item}", "{player} holds {item}")
_SHUFFLE_CLOSINGS = (
    "So {player} has {item} ({letter}).",
    "{player} ends up with {item} ({letter}).",
    "The question is about {player}, who has {item} ({letter}).",
)


def _shuffled_objects(facts: Mapping[str, Any], rng: Random, wrong: bool) -> _Parts:
    players, items = facts["players"], facts["items"]
    swaps: list[Sequence[int]] = list(facts["swaps"])  # as they are said
    made = rng.choice(list(_missed_swaps(facts))) if wrong else swaps  # as they are done
    wording, holds = rng.choice(_SHUFFLE_STEPS), rng.choice(_SHUFFLE_HOLDS)
    options = [f"{item} ({letter})" for item, letter in zip(items, ascii_uppercase, strict=False)]

    def state(things: list[str]) -> str:
        return ", ".join(holds.format(player=player, item=thing) for player, thing in zip(players, things, strict=True))

    opening = rng.choice(_SHUFFLE_OPENINGS).format(state=state(options))
    held = list(range(len(players)))
    steps = []
    for (one, other), swap in zip(swaps, made, strict=True):
        pair = {"one": players[one], "other": players[other], "mine": items[held[one]], "yours": items[held[other]]}
        held = _swapped(held, [swap])
        steps.append(wording.format(state=state([items[place] for place in held]), **pair))
    last = held[facts["asked"]]
    named = {"player": players[facts["asked"]], "item": items[last], "letter": ascii_uppercase[last]}
    return opening, steps, rng.choice(_SHUFFLE_CLOSINGS).format(**named), ascii_uppercase[last]


def _missed_swaps(facts: Mapping[str, Any]) -> Iterator[list[Sequence[int]]]:
    """The swaps with one of them not made, or made with other players, such that the answer changes."""
    start = list(range(len(facts["players"])))
    right = _swapped(start, facts["swaps"])[facts["asked"]]
    for step, swap in enumerate(facts["swaps"]):
        for other in [(0, 0), *combinations(start, 2)]:
            made = [*facts["swaps"][:step], other, *facts["swaps"][step + 1 :]]
            if set(other) != set(swap) and _swapped(start, made)[facts["asked"]] != right:
                yield made


def _swapped(held: list[int], swaps: Sequence[Sequence[int]]) -> list[int]:
    held = list(held)
    for one, other in swaps:
        held[one], held[other] = held[other], held[one]
    return held


# Arithmetic

_ARITHMETIC_OPENINGS = (
    "At first {who} has {value} {things}.",
    "We start with {value}.",
    "There are {value} {things} at first.",
)
_ARITHMETIC_STEPS = (
    "{value} {sign} {operand} = {result}.",
    "{value} {word} {operand} is {result}.",
    "{deed} {operand}: {value} {sign} {operand} = {result}.",
    "{value} {word} {operand} makes {result} {things}.",
)
_ARITHMETIC_CLOSINGS = (
    "So {who} has {value} {things}.",
    "In the end there are {value} {things}.",
    "The result is {value}.",
)
_WORDS = {
    "+": ("plus", "Add"),
    "-": ("minus", "Take away"),
    "*": ("times", "Multiply by"),
    "/": ("divided by", "Divide by"),
}


def _arithmetic(facts: Mapping[str, Any], rng: Random, wrong: bool) -> _Parts:
    start, operations = facts["start"], facts["operations"]
    results = rng.choice(list(_slips(start, operations))) if wrong else _results(start, operations)
    wording = rng.choice(_ARITHMETIC_STEPS)
    named = {"who": facts["who"], "things": facts["things"]}
    steps = []
    for value, (sign, operand), result in zip([start, *results], operations, results, strict=False):
        word, deed = _WORDS[sign]
        numbers = {"value": value, "operand": operand, "result": result}
        steps.append(wording.format(sign=sign, word=word, deed=deed, **numbers, **named))
    opening = rng.choice(_ARITHMETIC_OPENINGS).format(value=start, **named)
    closing = rng.choice(_ARITHMETIC_CLOSINGS).format(value=results[-1], **named)
    return opening[0].upper() + opening[1:], steps, closing, str(results[-1])


def _slips(start: int, operations: Sequence[tuple[str, int]]) -> Iterator[list[int]]:
    """The results with one step miscalculated, as far as all later steps can still be done with whole numbers."""
    right = _results(start, operations)
    for step, value in enumerate(right):
        for slip in (-10, -2, -1, 1, 2, 10):
            results = _results(value + slip, operations[step + 1 :])
            if value + slip >= 0 and len(results) == len(right) - step - 1 and all(result >= 0 for result in results):
                yield [*right[:step], value + slip, *results]


def _results(value: int, operations: Sequence[tuple[str, int]]) -> list[int]:
    """What each operation gives, up to the first division that is not exact."""
    results: list[int] = []
    for sign, operand in operations:
        if sign == "/" and value % operand:
            break
        value = {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[sign]
        results.append(value)
    return results


_WRITERS: dict[str, Callable[[Mapping[str, Any], Random, bool], _Parts]] = {
    "coin_flip": _coin_flip,
    "last_letter": _last_letter,
    "shuffled_objects": _shuffled_objects,
    "arithmetic": _arithmetic,
}
