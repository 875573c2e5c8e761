"""Pin models and data sets to what they are now: a Hub id to its commit, a local path to the hash of its content.

Needs config.json and the commit only; no weights are fetched and torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdlab.artifacts import checksum, files_below
from kdlab.config import Encoder, Run, Source
from kdlab.errors import DataError, HubError, ModelError
from kdlab.graph import UNPINNED, Graph

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Pinned:
    """values: what identifies it; place: where it lies, if it is local; config: a model's config.json, if known."""

    values: dict[str, Any]
    place: str | None = None
    config: dict[str, Any] | None = None
    note: str | None = None  # why it is unpinned


@dataclass
class Pins:
    """Looks each thing up once; a sweep shares one for all its jobs."""

    known: dict[tuple[str, str, str | None], Pinned] = field(default_factory=dict)

    def model(self, encoder: Encoder) -> Pinned:
        """An encoder's weights. A model made from its configuration alone has no id and needs no pin."""
        if encoder.id is None:
            return Pinned({}, config=dict(encoder.config))
        pinned = self._pin("model", encoder.id, encoder.revision)
        if pinned.config is None:
            return pinned
        return Pinned(pinned.values, pinned.place, {**pinned.config, **encoder.config}, pinned.note)

    def named(self, model: str, revision: str | None) -> Pinned:
        """A model that is no part of `model=`: the teacher that writes rationales."""
        return self._pin("model", model, revision)

    def local(self, file: str, *, where: str) -> Pinned:
        """A local file or folder. where: the key that names it."""
        return self._local("dataset", file, where=where)

    def source(self, source: Source, root: str = "task") -> Pinned:
        """root: where the run's configuration has it, "task" or "supplement"."""
        if source.hub is not None:
            pinned = self._pin("dataset", source.hub, source.revision)
            return Pinned({"hub": source.hub, "revision": pinned.values["revision"]}, note=pinned.note)
        if source.path is not None:
            return self._local("dataset", source.path, where=f"{root}.source.path")
        return Pinned({"demo": source.demo})

    def require(self, run: Run, graph: Graph) -> None:
        """Refuse to go on while anything of the run is unpinned; other jobs of a sweep are their own matter."""
        own = {run.model.teacher.id, run.model.student.id, run.task.source.hub, run.rationales.model}
        if run.supplement is not None:
            own.add(run.supplement.source.hub)
        for stage in graph:
            own |= set(stage.values.get("translator", {}).get("models", {}))
        notes = [pinned.note for (_, name, _), pinned in self.known.items() if pinned.note and name in own]
        if notes and not all(stage.pinned for stage in graph):
            raise HubError(
                "; ".join(notes),
                where=endpoint(),
                fix="connect to the Hub once, or give local folders (model.teacher.id=FOLDER, task.source.path=FILE); "
                "`kdlab doctor` tells what is reachable",
            )

    def _pin(self, kind: Kind, name: str, revision: str | None) -> Pinned:
        key = (kind, name, revision)
        if key not in self.known:
            place = Path(name).expanduser()
            local = kind == "model" and place.is_dir()
            if kind == "model" and not local and (place.is_absolute() or place.is_file() or name.startswith(".")):
                raise ModelError(
                    f"{name} is a file, no model folder" if place.is_file() else f"there is no folder {name}",
                    where="model",
                    fix="give a folder with config.json, weights and tokenizer, or owner/name on the Hub",
                )
            self.known[key] = self._local(kind, name) if local else _hub(kind, name, revision)
        return self.known[key]

    def _local(self, kind: Kind, name: str, *, where: str = "task.source.path") -> Pinned:
        path = Path(name).expanduser().absolute()
        key = (kind, str(path), None)
        if key not in self.known:
            if not path.exists():
                raise DataError(
                    f"there is no file or folder {name}",
                    where=where,
                    fix="give the path from the current folder, or an absolute one",
                )
            config = None
            if kind == "model":
                config = _read_config(path / "config.json", name)
            self.known[key] = Pinned({"content": content_hash(path)}, str(path), config)
        return self.known[key]


def content_hash(path: Path) -> str:
    """sha256 over the names and contents of a file or of a folder's files."""
    if path.is_file():
        return checksum(path)
    digest = hashlib.sha256()
    for file in files_below(path):
        name = file.relative_to(path).as_posix()
        if not any(part.startswith(".") for part in Path(name).parts):
            digest.update(f"{name}\0{checksum(file)}\n".encode())
    return digest.hexdigest()


def _hub(kind: Kind, name: str, revision: str | None) -> Pinned:
    commit, why = _commit(kind, name, revision or "main")
    if commit is None:
        what = "model" if kind == "model" else "data set"
        return Pinned({"id": name, "revision": UNPINNED}, note=f"{what} {name}: {why}")
    config = None
    if kind == "model":
        config = _model_config(name, commit)
    return Pinned({"id": name, "revision": commit}, config=config)


def _commit(kind: Kind, name: str, revision: str) -> tuple[str | None, str | None]:
    """The commit that a revision stands for, or None and the reason."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision, None
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils._validators import validate_repo_id

    where = f"{'model' if kind == 'model' else 'data set'} {name}"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(
            f"'{name}' is neither a folder here nor a possible Hub id",
            fix="give owner/name, or an existing folder",
        ) from error
    if HF_HUB_OFFLINE:
        cached = _cached_commit(kind, name, revision)
        return cached, None if cached else "offline, and not in the local cache"
    try:
        api = HfApi()
        info = api.model_info if kind == "model" else api.dataset_info
        return str(info(name, revision=revision, timeout=10).sha), None
    except GatedRepoError as error:
        raise HubError(
            f"access to {where} must be asked for",
            where=f"{endpoint()}/{name}",
            fix="accept its terms on the Hub and set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"the Hub has no such {where}",
            where=endpoint(),
            fix="check the spelling; for a local folder give its path; for a private one set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{where} has no revision '{revision}'", where=endpoint(), fix="give a branch, tag or commit"
        ) from error
    except Exception as error:
        cached = _cached_commit(kind, name, revision)
        return cached, None if cached else f"the Hub can't be reached ({type(error).__name__})"


def _cached_commit(kind: Kind, name: str, revision: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def _model_config(name: str, commit: str) -> dict[str, Any] | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return _read_config(Path(hf_hub_download(name, "config.json", revision=commit)), name)
    except LocalEntryNotFoundError:
        return None
    except EntryNotFoundError as error:
        raise ModelError(f"{name} has no config.json", where=endpoint(), fix="choose a transformers model") from error
    except OSError as error:
        raise HubError(
            f"config.json of {name} could not be fetched: {type(error).__name__}",
            where=endpoint(),
            fix="try again, or run `kdlab doctor`",
        ) from error


def _read_config(file: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{name} has no config.json", where=str(file.parent), fix="give a transformers model folder"
        ) from error
    except ValueError as error:
        raise ModelError(
            f"config.json of {name} is not JSON: {error}", where=str(file), fix="fetch the model again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"config.json of {name} is not a JSON object", where=str(file), fix="fetch the model again")
    return content


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")
