"""Load and save encoders with a classification head: stock classes of transformers, weights as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import kdlab.models.attention  # noqa: F401  registers the kernel "kdlab"
from kdlab.errors import ModelError
from kdlab.models.architectures import architecture
from kdlab.models.loading import changed, check_finite, fetch_config, fetched, reading_weights, unbuildable
from kdlab.models.surgery import cut, seeded

_DERIVED = {"num_hidden_layers": "layer_types", "hidden_size": "pooler_hidden_size"}  # by the other key


def load_encoder(
    spec: Mapping[str, Any],
    *,
    num_labels: int,
    kind: str,
    labels: Sequence[str] | None,
    attention: str,
    seed: int,
) -> PreTrainedModel:
    """A ...ForSequenceClassification in fp32 and eval mode.

    spec: the keys of `kdlab.config.Encoder`, plus "path", a local folder that takes the place of `id`, and "base_seed",
      from which a teacher without an id was made: its student is cut out of what it was before training.
      init "pretrained": the weights of path or id; "cut": of these, the layers `layers` (from 0) or the first
      `num_layers`; "random": new weights for the config of path or id, or for `config` alone.
    kind: "classification" or "regression"; labels: names of the classes by id.
    attention: "eager", "sdpa" or "kdlab" (mpnet and deberta-v2 have only eager and get that).
    seed: of all new weights, a head of another shape included; the global random state stays as it is.

    Raises HubError if the model or its revision is not there, ModelError if its architecture is not
    supported, or its weights are missing, do not fit, or are not finite.
    """
    init = spec.get("init", "pretrained")
    source: str | None = spec.get("path") or spec.get("id")
    if source is None and init != "random" and spec.get("base_seed") is None:
        raise ModelError(
            f"a model with init: {init} needs an id",
            where="model",
            fix="give a model on the Hub or a local folder",
        )
    config = _read_config(source, spec)
    config.num_labels = num_labels
    names = list(labels) if labels else [f"LABEL_{index}" for index in range(num_labels)]
    assert len(names) == num_labels, (names, num_labels)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "regression" if kind == "regression" else "single_label_classification"
    config.kdlab_head = spec.get("head", "stock")
    if init == "random":
        return _new(config, attention, seed)

    if source is None:
        model = _new(config, attention, spec["base_seed"])
    else:
        with seeded(seed):
            model, info = _load_weights(source, config, attention, spec.get("revision"))
        _check_fit(model, info, source)
    if init == "cut":
        layers = spec.get("layers")
        if layers is None and spec.get("num_layers") is None:
            raise ModelError(
                "a student that is cut from its teacher needs to know which layers",
                where="model.student",
                fix="give num_layers or layers",
            )
        model = cut(model, range(spec["num_layers"]) if layers is None else layers, seed=seed)
    return model


def save_student(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a folder that plain transformers can load: safetensors, config.json, tokenizer.

    `load_encoder` has put the kind of head into the config ("kdlab_head"), so `load_saved` can tell it. A
    model with the official head gives its own logits only under `Tapped(..., head="official")`.
    """
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def load_saved(path: Path, attention: str) -> tuple[PreTrainedModel, str]:
    """A model that `save_student` wrote, in fp32 and eval mode, and its head: "stock" or "official".

    Raises ModelError if anything is missing or does not fit, the head included.
    """
    config = _read_config(str(path), {})
    model, info = _load_weights(str(path), config, attention, None)
    _check_fit(model, info, str(path), whole=True)
    return model, getattr(config, "kdlab_head", "stock")


def _read_config(source: str | None, spec: Mapping[str, Any]) -> PreTrainedConfig:
    changes = dict(spec.get("config") or {})
    base: PreTrainedConfig
    if source is None:
        architecture(changes.get("model_type"))
        base = CONFIG_MAPPING[changes["model_type"]]()
    else:
        base = fetch_config(source, spec.get("revision"))
    parts = architecture(base.model_type)
    return changed(base, changes, whole=source is not None, extras=parts.extras, derived=_DERIVED)


def _new(config: PreTrainedConfig, attention: str, seed: int) -> PreTrainedModel:
    try:
        with seeded(seed):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                config,
                attn_implementation=_kernel(config, attention),
                dtype=torch.float32,
                trust_remote_code=False,
            )
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError, ArithmeticError) as error:
        raise unbuildable(error) from error
    model.train(False)
    return model


def _load_weights(
    source: str, config: PreTrainedConfig, attention: str, revision: str | None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    folder = fetched(source, revision, "weights")
    with reading_weights(source):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            attn_implementation=_kernel(config, attention),
            dtype=torch.float32,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model.train(False)
    return model, info


def _check_fit(model: PreTrainedModel, info: Mapping[str, Any], source: str, *, whole: bool = False) -> None:
    """Refuse weights that leave a part of the base model (whole: of anything) without its value."""
    inner = f"{model.base_model_prefix}."

    def needed(name: str) -> bool:
        return whole or (name.startswith(inner) and not name.startswith(f"{inner}pooler."))

    fix = "check that config.json belongs to these weights, and model.config for changed sizes"
    wrong = sorted(item for item in info["mismatched_keys"] if needed(item[0]))
    if wrong:
        name, found, wanted = wrong[0]
        raise ModelError(
            f"{len(wrong)} weights do not fit the model: {name} is {list(found)}, should be {list(wanted)}",
            where=source,
            fix=fix,
        )
    absent = sorted(filter(needed, info["missing_keys"]))
    if absent:
        raise ModelError(f"{len(absent)} weights are missing, the first is {absent[0]}", where=source, fix=fix)
    layers = f"{architecture(model.config.model_type).layers}."
    surplus = sorted(
        name
        for name in info["unexpected_keys"]
        if name.removeprefix(inner).startswith(layers) and name.endswith((".weight", ".bias"))
    )
    if surplus:
        raise ModelError(
            f"{len(surplus)} weights have no place in the model, the first is {surplus[0]}",
            where=source,
            fix=fix,
        )
    check_finite(model, source)


def _kernel(config: PreTrainedConfig, attention: str) -> str:
    return attention if architecture(config.model_type).sdpa else "eager"
