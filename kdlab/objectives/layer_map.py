"""Which student layer learns from which teacher layer. Imports no torch, so that a plan can use it."""

from __future__ import annotations

from kdlab.errors import ConfigError


def layer_pairs(layer_map: str, student_layers: int, teacher_layers: int, *, embeddings: bool) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), numbered as hidden states: 0 the embedding output, n the last.

    "last" pairs the last layers only. "uniform" pairs student layer i with teacher layer i * T / S, and with
    `embeddings` also the embedding outputs. The attention of layer i is the attention inside layer i, so
    attention has no layer 0: ask for its pairs with `embeddings=False`.

    Raises:
        ConfigError: "uniform" where the teacher's layers are not a multiple of the student's.

    Source: CR-ILD training_functions.py, `--attention_l2l` and `--hidden_l2l` ("uniform").
    """
    if layer_map == "last":
        return [(student_layers, teacher_layers)]
    if layer_map != "uniform":
        raise ValueError(f"layer_map is 'last' or 'uniform', not {layer_map!r}")
    if teacher_layers % student_layers:
        raise ConfigError(
            [
                f"layer_map=uniform needs a teacher whose layers are a multiple of the student's, not"
                f" {teacher_layers} for {student_layers}: change the student's layers or use layer_map=last"
            ]
        )
    stride = teacher_layers // student_layers
    return [(i, i * stride) for i in range(0 if embeddings else 1, student_layers + 1)]
