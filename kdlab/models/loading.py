"""Read configs and weights of stock models as plain data, and say what is wrong with them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from kdlab import hub
from kdlab.errors import ModelError, first_line
from kdlab.hub import Part, What


def fetched(source: str, revision: str | None, what: What) -> str:
    """The folder with a model's files: `source` itself, or where the cache has what is on the Hub.

    Raises HubError or ModelError. What is on the Hub and not in the cache is fetched.
    """
    if Path(source).is_dir():
        return source
    return str(hub.get(Part("model", source, hub.commit("model", source, revision or "main"), what)))


def fetch_config(source: str, revision: str | None) -> PreTrainedConfig:
    """The config of a model on the Hub or in a folder. Raises HubError or ModelError."""
    if Path(source).is_dir() and not Path(source, "config.json").is_file():
        raise ModelError("this folder has no config.json", where=source, fix="name a folder saved by transformers")
    place = source if revision is None else f"{source} at {revision}"
    folder = fetched(source, revision, "config")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return config
    except OSError as error:
        raise ModelError(f"config.json can't be read: {first_line(error)}", where=place) from error
    except (StrictDataclassError, ValueError, KeyError) as error:
        raise ModelError(
            f"the model's config can't be used: {first_line(error)}",
            where=place,
            fix="use a stock model; kdlab never runs code from a model's repository",
        ) from error


def changed(
    base: PreTrainedConfig,
    changes: Mapping[str, Any],
    *,
    whole: bool,
    extras: frozenset[str] = frozenset(),
    derived: Mapping[str, str] | None = None,
) -> PreTrainedConfig:
    """`base` with changes by the user; ModelError for a setting that it does not have.

    whole: keep what `base` says besides; else everything that is not changed is the default of its class. extras: keys
    that work but are no fields of the class. derived: settings that are made anew (values) when another changes (keys).
    """
    _check_keys(base, extras, changes)
    if not changes:
        return base
    changes = {base.attribute_map.get(key, key): value for key, value in changes.items()}
    raw = base.to_dict() if whole else {}
    for cause, effect in (derived or {}).items():
        if base.attribute_map.get(cause, cause) in changes:
            raw.pop(effect, None)
    try:
        return type(base).from_dict(raw | changes)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ModelError(f"the model's config can't be used: {first_line(error)}", where="model.config") from error


def _check_keys(base: PreTrainedConfig, extras: frozenset[str], changes: Mapping[str, Any]) -> None:
    known = {*base.to_dict(), *base.attribute_map, *extras, "num_labels"}
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


@contextmanager
def reading_weights(source: str) -> Iterator[None]:
    """Turn what goes wrong while weights are read into ModelError.

    transformers' own table of weights that are missing or left over is not printed: the caller judges them.
    """
    level = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # torch's, of a file that is refused then
            yield
    except OSError as error:
        if "does not appear to have a file" in str(error) or "no file named" in str(error):
            raise ModelError(
                "the model has no weights",
                where=source,
                fix="it needs model.safetensors or pytorch_model.bin",
            ) from error
        raise ModelError(f"the weights can't be read: {first_line(error)}", where=source, fix=_again(source)) from error
    except UnpicklingError as error:
        raise ModelError(
            "the weights file holds more than plain tensors and is not opened",
            where=source,
            fix="use a checkpoint with model.safetensors",
        ) from error
    except (SafetensorError, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(f"the weights can't be read: {first_line(error)}", where=source, fix=_again(source)) from error
    except (TypeError, LookupError, AttributeError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(
            f"no model can be built from config.json and these weights: {said}",
            where=source,
            fix=f"correct it, or {_again(source)}",
        ) from error
    finally:
        logging.set_verbosity(level)


def _again(source: str) -> str:
    if Path(source).is_dir():
        return "fetch the model again"
    return "compare it with the Hub, and get again what is damaged: `kdlab fetch` with the words of this run"


def unbuildable(error: Exception) -> ModelError:
    """What is wrong with a config from which no model can be made."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return ModelError(
            "the model of this config does not fit into this machine's memory",
            where="model.config",
            fix="check its sizes: hidden_size, num_hidden_layers, intermediate_size, vocab_size",
        )
    return ModelError(
        f"no model can be built from the config: {first_line(error)}",
        where="model.config",
        fix="check what model.teacher.config and model.student.config change",
    )


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Refuse weights that are not finite."""
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"the weights hold NaN or infinity, first in {name}",
                where=source,
                fix="use another checkpoint",
            )
