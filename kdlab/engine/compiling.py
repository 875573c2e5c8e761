"""torch.compile for the layers of a model that trains on a GPU.

Layer by layer: they are alike, so one compilation serves all, and what reads inside a layer (`kdlab.models.taps`) can
leave that one as it is. On a processor it is refused: 6 layers of width 384 took 70 to 150 s to compile and were then 1
to 5 % quicker. On a GPU untested: there was none; tests trace with a backend that needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

OPTIONS: dict[str, dict[str, Any]] = {
    "on": {},
    "cuda_graphs": {"mode": "reduce-overhead"},  # a graph for each width of batch
}


def compile_layers(model: nn.Module, how: str, **options: Any) -> int:
    """Compile every Transformer layer of `model` in place, when it first runs. Returns how many.

    how: `config.Hardware.compile`. options: of torch.compile, in place of those that belong to `how`.
    """
    if how == "off":
        return 0
    layers = list(transformer_layers(model))
    for layer in layers:
        layer.compile(**(options or OPTIONS[how]))
    return len(layers)


def transformer_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost lists of modules of one kind."""
    for child in model.children():
        kinds = {type(element) for element in child} if isinstance(child, nn.ModuleList) else set()
        if len(kinds) == 1:
            yield from child  # type: ignore[misc]
        else:
            yield from transformer_layers(child)
