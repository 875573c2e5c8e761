"""Read inner tensors of an encoder, and mix its inputs, without changing the model.

`Tapped` puts hooks on exactly the modules a loss asks for, only while `forward` runs; every other module, and
the attention kernel, keeps its fast path. All computation is inside `forward`, and all tensors a loss needs
are returned by it, so `DistributedDataParallel(Tapped(...))` sees the whole graph.

Layers are counted as transformers counts hidden states: 0 is the embedding output, 1..n are the layers'
outputs; the attention, queries, keys and values "of layer i" are those inside layer i (1-based).

Shapes: B batch, L length, D hidden size, h heads, d head size, C classes, P projection for contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdlab.errors import ModelError
from kdlab.models.architectures import architecture, available
from kdlab.models.dropout import quick_dropout
from kdlab.models.packing import may_be_packed, packed_linears
from kdlab.models.projection import ProjectionHead

__all__ = ["Tap", "Tapped", "Views", "available"]

_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Tap:
    """One tensor to read: "hidden" (layer 0..n), "attention", "query", "key" or "value" (layer 1..n)."""

    name: str
    layer: int


class Views(NamedTuple):
    """What one forward pass shows. The dicts hold the layers that were asked for."""

    logits: Tensor  # [B,C]
    hidden: dict[int, Tensor]  # [B,L,D], or the projection's width
    attention: dict[int, Tensor]  # [B,h,L,L] scores before softmax: with scale and position bias, no mask
    query: dict[int, Tensor]  # [B,h,L,d] outputs of the projection (modernbert: before rotation)
    key: dict[int, Tensor]
    value: dict[int, Tensor]
    mask: Tensor  # [B,L] the mask that the encoder saw
    projected: Tensor | None = None  # [B,P] of unit length, where the model has a head for contrast


class Tapped(nn.Module):
    """A classifier whose inner tensors can be read and whose inputs can be mixed.

    model: a stock ...ForSequenceClassification of one of the eight architectures.
    projection: linear map applied to every tapped hidden state (CR-ILD's `fit_dense`, modeling.py:1131-1134).
    contrast: head on the last hidden state at position 0, before any pooler (MUSC nets.py:82, 238-258). It is trained
      with the model and no part of it.
    head: "official" (bert only) puts a ReLU before the classifier, without dropout (modeling.py:1129).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        projection: nn.Linear | None = None,
        contrast: ProjectionHead | None = None,
        head: str = "stock",
    ) -> None:
        super().__init__()
        self.kind: str = model.config.model_type
        self.parts = architecture(self.kind)
        if head == "official" and self.kind != "bert":
            raise ModelError(
                f"the official head exists for bert only, this model is a {self.kind}",
                where="model.<teacher|student>.head",
                fix="use head: stock",
            )
        self.model = model
        self.projection = projection
        self.contrast = contrast
        self.head = head
        self.num_layers: int = model.config.num_hidden_layers
        self.num_heads: int = model.config.num_attention_heads
        self.packs = False

    def freeze(self) -> Tapped:
        """Make it a model that is only asked: no dropout, no gradients, packed weights where those are quicker.

        Its linear weights are then held twice, unless they are too many (`packing.LIMIT`).
        """
        self.eval().requires_grad_(False)
        self.packs = may_be_packed(self)
        return self

    def forward(
        self,
        batch: Mapping[str, Tensor],
        *,
        taps: Sequence[Tap] = (),
        lam: float | Sequence[float | None] | None = None,
    ) -> Views:
        """Run the model on `batch` and return the tensors named by `taps`.

        batch: input_ids, attention_mask [B,L] and perhaps token_type_ids (left out where the model has no use
        for them); further keys are ignored.
        lam: mix the complete embedding output E (after normalisation, dropout and projection to D) with that
        of the reversed batch, lam * E + (1 - lam) * E.flip(0); the encoder then sees the union of the two
        masks (CR-ILD, modeling.py:1137-1157; MUSC nets.py:48-74), the embedding block still works with each row's
        own mask. A sequence cuts the batch into so many equal parts, one after the other: each is mixed within
        itself by its own ratio, or stays clean where that is None.
        Raises ModelError for a tensor the architecture does not show or a layer that is not there.
        """
        self._check(taps)
        ratios = list(lam) if isinstance(lam, Sequence) else [lam]
        mixed = any(ratio is not None for ratio in ratios)
        own = batch["attention_mask"]
        mask = _by_part(own, ratios, lambda part, _: torch.maximum(part, part.flip(0))) if mixed else own
        raw: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as hooks:
            hooks.enter_context(quick_dropout(self, own.device))
            if self.packs:
                hooks.enter_context(packed_linears(own))
            if mixed:
                self._mix(hooks, ratios, own)
            if self.head == "official":
                module = self.model.get_submodule("dropout")
                hooks.callback(module.register_forward_hook(lambda _, args, __: torch.relu(args[0])).remove)
            for tap in taps if self.contrast is None else [*taps, Tap("hidden", self.num_layers)]:
                self._read(hooks, tap, raw)
            inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
            if self._takes_segments() and "token_type_ids" in batch:
                inputs["token_type_ids"] = batch["token_type_ids"]
            logits: Tensor = self.model(**inputs, return_dict=True).logits

        projected = None if self.contrast is None else self.contrast(raw["hidden", self.num_layers][:, 0])
        views = Views(logits, {}, {}, {}, {}, {}, mask, projected)
        for tap in taps:
            if tap.name == "hidden":
                state = raw["hidden", tap.layer]
                views.hidden[tap.layer] = state if self.projection is None else self.projection(state)
            elif tap.name == "attention":
                views.attention[tap.layer] = self._scores(raw, tap.layer)
            else:
                getattr(views, tap.name)[tap.layer] = self._heads(raw, tap.name, tap.layer)
        return views

    def _check(self, taps: Sequence[Tap]) -> None:
        shown = available(self.kind)
        for tap in taps:
            if tap.name not in shown:
                raise ModelError(
                    f"{self.kind} does not show {tap.name!r}", fix=f"choose among {', '.join(sorted(shown))}"
                )
            first = 0 if tap.name == "hidden" else 1
            if not first <= tap.layer <= self.num_layers:
                raise ModelError(
                    f"there is no {tap.name} of layer {tap.layer}",
                    fix=f"this model has {tap.name} of layers {first} to {self.num_layers}",
                )

    def _takes_segments(self) -> bool:
        return self.parts.segments and self.model.config.type_vocab_size > 1

    def _embeddings(self) -> nn.Module:
        """The module that puts out the complete embedding output."""
        base = self.model.base_model
        name = next(name for name in self.parts.embeddings if hasattr(base, name))
        return base.get_submodule(name)

    def _hidden_module(self, layer: int) -> nn.Module:
        """The module that puts out hidden state `layer`."""
        base, parts = self.model.base_model, self.parts
        if layer == 0:
            return self._embeddings()
        if layer == self.num_layers and parts.after_last:
            return base.get_submodule(parts.after_last)
        if layer == 1 and parts.after_first:
            owner, _, name = parts.after_first.rpartition(".")
            if getattr(base.get_submodule(owner), name) is not None:
                return base.get_submodule(parts.after_first)
        return self._layer(layer)

    def _layer(self, layer: int) -> nn.Module:
        return self.model.base_model.get_submodule(f"{self.parts.layers}.{layer - 1}")

    def _mix(self, hooks: ExitStack, ratios: Sequence[float | None], own: Tensor) -> None:
        def mix(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return _by_part(output, ratios, lambda part, ratio: ratio * part + (1 - ratio) * part.flip(0))

        hooks.callback(self._embeddings().register_forward_hook(mix).remove)
        if self.parts.own_mask:
            name = self.parts.own_mask

            def see_own(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return args, {**kwargs, name: own}

            hooks.callback(self._embeddings().register_forward_pre_hook(see_own, with_kwargs=True).remove)

    def _read(self, hooks: ExitStack, tap: Tap, raw: dict[tuple[str, int], Tensor]) -> None:
        """Attach what `tap` needs; `raw` then receives the outputs by module path and layer."""
        parts, layer = self.parts, tap.layer
        if layer:  # a compiled layer would not run hooks that came later: this one is not compiled
            self._layer(layer)._compiled_call_impl = None
        if tap.name == "hidden":
            module = self._hidden_module(layer)
            hooks.callback(module.register_forward_hook(_keep(raw, ("hidden", layer))).remove)
            return
        for path in {getattr(parts, name) for name in _needs(tap.name)}:
            module = self._layer(layer).get_submodule(path)
            hooks.callback(module.register_forward_hook(_keep(raw, (path, layer))).remove)
        if tap.name == "attention" and parts.bias_of:

            def keep_bias(_module: nn.Module, args: Any) -> None:
                raw["bias", layer] = args[2]

            module = self._layer(layer).get_submodule(parts.bias_of)
            hooks.callback(module.register_forward_pre_hook(keep_bias).remove)

    def _heads(self, raw: Mapping[tuple[str, int], Tensor], name: str, layer: int) -> Tensor:
        """Split the output of a projection into heads: [B,h,L,d]."""
        states = raw[getattr(self.parts, name), layer]
        if self.parts.fused:
            states = states.chunk(3, dim=-1)[_PROJECTIONS.index(name)]
        return states.view(*states.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _scores(self, raw: Mapping[tuple[str, int], Tensor], layer: int) -> Tensor:
        query, key = self._heads(raw, "query", layer), self._heads(raw, "key", layer)
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        return scores if self.parts.bias_of is None else scores + raw["bias", layer]


def _by_part(values: Tensor, ratios: Sequence[float | None], mixed: Callable[[Tensor, float], Tensor]) -> Tensor:
    """`values` [B, ...] with each of its equal parts mixed by its ratio; None leaves a part as it is."""
    assert len(values) % len(ratios) == 0, f"{len(values)} rows in {len(ratios)} parts"
    pairs = zip(values.chunk(len(ratios)), ratios, strict=True)
    parts = [part if ratio is None else mixed(part, ratio) for part, ratio in pairs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _needs(name: str) -> tuple[str, ...]:
    return ("query", "key") if name == "attention" else (name,)


def _keep(raw: dict[tuple[str, int], Tensor], where: tuple[str, int]) -> Callable[..., None]:
    """A hook that keeps a module's first output of this forward pass.

    Only the first: deberta-v2 with shared projections runs them again, on its position embeddings.
    """

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        raw.setdefault(where, output[0] if isinstance(output, tuple) else output)

    return hook
