"""Cut a student out of a teacher: some of its layers, all of its embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedModel

from kdlab.errors import ModelError
from kdlab.models.architectures import architecture


def cut(model: PreTrainedModel, layers: Sequence[int], *, seed: int = 0) -> PreTrainedModel:
    """A new model of the same class with only these layers (counted from 0, increasing) of `model`.

    Copied: embeddings, the chosen layers, what follows them in the base model, and the pooler (deberta-v2) or
    pre-trained head (modernbert). The classifier is new, drawn from `seed`; the global random state stays as
    it is. modernbert's first layer has no normalisation before its attention: if another layer comes first,
    its own is dropped. Raises ModelError for a layer that is not there.
    """
    parts = architecture(model.config.model_type)
    count, chosen = model.config.num_hidden_layers, list(layers)
    absent = [layer for layer in chosen if not 0 <= layer < count]
    if absent or not chosen:
        what = f"the teacher has no layer {absent[0]}" if absent else "no layer was chosen for the student"
        raise ModelError(what, where="model.student.layers", fix=f"its layers are 0 to {count - 1}")
    if any(later <= earlier for earlier, later in pairwise(chosen)):
        raise ModelError(
            f"the student's layers {chosen} are not in increasing order",
            where="model.student.layers",
            fix="name each layer once, in the teacher's order",
        )

    config = deepcopy(model.config)
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in chosen]
    with seeded(seed):
        student: PreTrainedModel = type(model)(config)

    prefix = f"{model.base_model_prefix}.{parts.layers}."
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            if int(index) in chosen:
                weights[f"{prefix}{chosen.index(int(index))}.{rest}"] = tensor
        elif "classifier" not in name:
            weights[name] = tensor
    missing, left_over = student.load_state_dict(weights, strict=False)
    assert all("classifier" in name for name in missing), missing
    assert all(name.startswith(f"{prefix}0.attn_norm.") for name in left_over), left_over
    nn.Module.to(student, model.device, model.dtype)
    student.train(model.training)
    return student


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw CPU random numbers from `seed` inside the block; afterwards the global state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
