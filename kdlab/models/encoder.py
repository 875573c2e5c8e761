"""Load and save encoders with a classification head: stock classes of transformers, weights as plain data."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from kdlab.errors import HubError, KdlabError, ModelError
from kdlab.models.architectures import Architecture, architecture
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
    attention: "eager" or "sdpa" (mpnet and deberta-v2 have only eager and get that).
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
        base = _fetch_config(source, spec.get("revision"))
    parts = architecture(base.model_type)
    _check_keys(base, parts, changes)
    if not changes:
        return base
    changes = {base.attribute_map.get(key, key): value for key, value in changes.items()}
    raw = base.to_dict() if source else {}
    for cause, effect in _DERIVED.items():
        if cause in changes:
            raw.pop(effect, None)
    try:
        return type(base).from_dict(raw | changes)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ModelError(f"the model's config can't be used: {_first_line(error)}", where="model.config") from error


def _fetch_config(source: str, revision: str | None) -> PreTrainedConfig:
    local = Path(source).is_dir()
    if local and not Path(source, "config.json").is_file():
        raise ModelError("this folder has no config.json", where=source, fix="name a folder saved by transformers")
    place = source if revision is None else f"{source} at {revision}"
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source, trust_remote_code=False, **({"revision": revision} if revision else {})
        )
        return config
    except OSError as error:
        if local:
            raise ModelError(f"config.json can't be read: {_first_line(error)}", where=source) from error
        raise _hub_error(place, error) from error
    except (StrictDataclassError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model's config can't be used: {_first_line(error)}",
            where=place,
            fix="use a stock model; kdlab never runs code from a model's repository",
        ) from error


def _check_keys(base: PreTrainedConfig, parts: Architecture, changes: Mapping[str, Any]) -> None:
    known = {*base.to_dict(), *base.attribute_map, *parts.extras, "num_labels"}
    for key in changes:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see the model's config.json for its keys"
            raise ModelError(f"{base.model_type} has no setting {key!r}", where="model.config", fix=hint)
    if changes.get("model_type", base.model_type) != base.model_type:
        raise ModelError(
            f"model_type can't be changed from {base.model_type} to {changes['model_type']}",
            where="model.config",
            fix="choose another id, or none",
        )


def _new(config: PreTrainedConfig, attention: str, seed: int) -> PreTrainedModel:
    try:
        with seeded(seed):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                config,
                attn_implementation=_kernel(config, attention),
                dtype=torch.float32,
                trust_remote_code=False,
            )
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"no model can be built from the config: {_first_line(error)}", where="model.config"
        ) from error
    model.train(False)
    return model


def _load_weights(
    source: str, config: PreTrainedConfig, attention: str, revision: str | None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        with _without_report():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                attn_implementation=_kernel(config, attention),
                dtype=torch.float32,
                trust_remote_code=False,
                weights_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **({"revision": revision} if revision else {}),
            )
    except OSError as error:
        if "does not appear to have a file" in str(error) or "no file named" in str(error):
            raise ModelError(
                "the model has no weights",
                where=source,
                fix="it needs model.safetensors or pytorch_model.bin",
            ) from error
        if Path(source).is_dir():
            raise ModelError(
                f"the weights can't be read: {_first_line(error)}", where=source, fix="fetch the model again"
            ) from error
        raise _hub_error(source, error) from error
    except UnpicklingError as error:
        raise ModelError(
            "the weights file holds more than plain tensors and is not opened",
            where=source,
            fix="use a checkpoint with model.safetensors",
        ) from error
    except (SafetensorError, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"the weights can't be read: {_first_line(error)}", where=source, fix="fetch the model again"
        ) from error
    except (TypeError, LookupError, AttributeError) as error:
        said = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(
            f"no model can be built from config.json: {said}", where=source, fix="correct it, or fetch the model again"
        ) from error
    model.train(False)
    return model, info


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from printing its own table of weights: `_check_fit` judges them."""
    level = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


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
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"the weights hold NaN or infinity, first in {name}",
                where=source,
                fix="use another checkpoint",
            )


def _kernel(config: PreTrainedConfig, attention: str) -> str:
    return attention if architecture(config.model_type).sdpa else "eager"


def _hub_error(place: str, error: Exception) -> KdlabError:
    return HubError(
        f"the model is not there or can't be fetched: {_first_line(error)}",
        where=place,
        fix="check the id and the revision; for a private model, log in; offline, only cached models work",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
