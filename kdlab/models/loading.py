"""Read configs and weights of stock models as plain data, and say what is wrong with them."""

from __future__ import annotations

import difflib
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

from kdlab.errors import HubError, KdlabError, ModelError


def fetch_config(source: str, revision: str | None) -> PreTrainedConfig:
    """The config of a model on the Hub or in a folder. Raises HubError or ModelError."""
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
            raise ModelError(f"config.json can't be read: {first_line(error)}", where=source) from error
        raise hub_error(place, error) from error
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
    """Turn what goes wrong while weights are read into ModelError or HubError.

    transformers' own table of weights that are missing or left over is not printed: the caller judges them.
    """
    level = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    except OSError as error:
        if "does not appear to have a file" in str(error) or "no file named" in str(error):
            raise ModelError(
                "the model has no weights",
                where=source,
                fix="it needs model.safetensors or pytorch_model.bin",
            ) from error
        if Path(source).is_dir():
            raise ModelError(
                f"the weights can't be read: {first_line(error)}", where=source, fix="fetch the model again"
            ) from error
        raise hub_error(source, error) from error
    except UnpicklingError as error:
        raise ModelError(
            "the weights file holds more than plain tensors and is not opened",
            where=source,
            fix="use a checkpoint with model.safetensors",
        ) from error
    except (SafetensorError, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"the weights can't be read: {first_line(error)}", where=source, fix="fetch the model again"
        ) from error
    except (TypeError, LookupError, AttributeError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(
            f"no model can be built from config.json: {said}", where=source, fix="correct it, or fetch the model again"
        ) from error
    finally:
        logging.set_verbosity(level)


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Refuse weights that are not finite."""
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"the weights hold NaN or infinity, first in {name}",
                where=source,
                fix="use another checkpoint",
            )


def hub_error(place: str, error: Exception) -> KdlabError:
    return HubError(
        f"the model is not there or can't be fetched: {first_line(error)}",
        where=place,
        fix="check the id and the revision; for a private model, log in; offline, only cached models work",
    )


def first_line(error: Exception) -> str:
    """The first line with something on it of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
