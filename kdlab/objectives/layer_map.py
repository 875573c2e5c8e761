"""Which student layer learns from which teacher layer. Imports no torch, so that a plan can use it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdlab.errors import ConfigError

Pairs = list[tuple[int, int]]


def layer_pairs(layer_map: str, student_layers: int, teacher_layers: int, *, pairs: Sequence[str] = ()) -> Pairs:
    """Pairs (student layer, teacher layer), numbered as hidden states from 1; the embedding output, 0, is apart.

    With S student and T teacher layers:

    * "last": S learns from T. (CR-ILD; MiniLM)
    * "uniform": i learns from i * T / S. (TinyBERT; CR-ILD training_functions.py, `--attention_l2l`, `--hidden_l2l`)
    * "skip": as uniform, without the last, which the logits teach. (PKD-Skip, Sun et al. 2019, section 3)
    * "top": i learns from T - S + i, without the last. (PKD-Last, the same)
    * "last_to_all": every i learns from T. (CR-ILD, LTI)
    * "pairs": the given ones, each "student-teacher".
    * "transport": every i with every teacher layer; how much of each, the transport decides. (BERT-EMD)

    Raises:
        ConfigError: a map that does not fit these depths, or a pair that is not there.
    """
    ours, theirs = range(1, student_layers + 1), range(1, teacher_layers + 1)
    if layer_map == "last":
        return [(student_layers, teacher_layers)]
    if layer_map in ("uniform", "skip"):
        if teacher_layers % student_layers:
            raise ConfigError(
                [
                    f"layer_map={layer_map} needs a teacher whose layers are a multiple of the student's, not"
                    f" {teacher_layers} for {student_layers}: change the student's layers, or use layer_map=last, or"
                    " layer_map=pairs with the pairs of your choice"
                ]
            )
        stride = teacher_layers // student_layers
        found = [(i, i * stride) for i in ours]
        return found if layer_map == "uniform" else _but_the_last(found, layer_map)
    if layer_map == "top":
        if teacher_layers < student_layers:
            raise ConfigError([f"layer_map=top needs a teacher of {student_layers} layers or more: it has fewer"])
        return _but_the_last([(i, teacher_layers - student_layers + i) for i in ours], layer_map)
    if layer_map == "last_to_all":
        return [(i, teacher_layers) for i in ours]
    if layer_map == "transport":
        return [(i, j) for i in ours for j in theirs]
    if layer_map == "pairs":
        return _given(pairs, student_layers, teacher_layers)
    raise ValueError(f"there is no layer_map {layer_map!r}")


def _but_the_last(pairs: Pairs, layer_map: str) -> Pairs:
    if len(pairs) < 2:
        raise ConfigError([f"layer_map={layer_map} leaves out the last layer, so the student needs two or more"])
    return pairs[:-1]


def _parse(text: object) -> tuple[int, int] | None:
    """(student layer, teacher layer) of "1-2"; None if it is not of that form."""
    found = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", str(text).strip())
    return (int(found[1]), int(found[2])) if found else None


def _given(pairs: Sequence[str], student_layers: int, teacher_layers: int) -> Pairs:
    problems, found = [], []
    for text in pairs:
        pair = _parse(text)
        if pair is None:
            problems.append(f"pairs: '{text}' is not of the form STUDENT-TEACHER, as in 1-2")
        elif not 1 <= pair[0] <= student_layers or not 1 <= pair[1] <= teacher_layers:
            problems.append(
                f"pairs: {text} is not there: the student has layers 1 to {student_layers}, its teacher 1 to"
                f" {teacher_layers}"
            )
        elif pair in found:
            problems.append(f"pairs: {text} is there twice")
        else:
            found.append(pair)
    if not pairs:
        problems.append("layer_map=pairs needs the pairs: pairs=[1-2,2-4]")
    if problems:
        raise ConfigError(problems)
    return found
