"""Pin models and data sets to what they are now: a Hub id to its commit, a local path to the hash of its content.

Needs config.json and the commit only; no weights are fetched and torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdlab import hub
from kdlab.artifacts import files_below
from kdlab.config import Encoder, Run, Source
from kdlab.errors import DataError, HubError, ModelError
from kdlab.graph import UNPINNED, Graph
from kdlab.hub import Kind, Part, endpoint
from kdlab.integrity import checksum


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

    known: dict[tuple[Kind, str, str | None], Pinned] = field(default_factory=dict)
    looked_up: set[tuple[Kind, str, str | None]] = field(default_factory=set)  # those of `known` that the Hub was asked

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

    def lacking(self, run: Run, graph: Graph) -> list[str]:
        """Why things of the run are unpinned, a line each; those of other jobs of a sweep are their own matter."""
        if all(stage.pinned for stage in graph):
            return []
        own = {run.model.teacher.id, run.model.student.id, run.task.source.hub, run.rationales.model}
        if run.supplement is not None:
            own.add(run.supplement.source.hub)
        for stage in graph:
            own |= set(stage.values.get("translator", {}).get("models", {}))
        return [pinned.note for (_, name, _), pinned in self.known.items() if pinned.note and name in own]

    def require(self, run: Run, graph: Graph) -> None:
        """Refuse to go on while anything of the run is unpinned."""
        if notes := self.lacking(run, graph):
            raise HubError(
                "; ".join(notes),
                where=endpoint(),
                fix="connect to the Hub once, or give local folders (model.teacher.id=FOLDER, task.source.path=FILE); "
                "`kdlab doctor` tells what is reachable",
            )

    def remember(self, graph: Graph) -> None:
        """Note in the Hub's cache what branches and tags stood for, so that the graph is the same without a network."""
        used = set(_revisions([stage.values for stage in graph]))
        for kind, name, revision in self.looked_up:
            commit = self.known[kind, name, revision].values["revision"]
            if (name, commit) in used:
                hub.remember(kind, name, revision or "main", commit)

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
            if not local and not hub.offline():
                self.looked_up.add(key)
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
            try:
                content = content_hash(path)
            except OSError as error:
                raise DataError(
                    f"{name} can't be read: {error.strerror or error}",
                    where=str(error.filename or path),
                    fix="make it readable for the user who runs kdlab",
                ) from error
            self.known[key] = Pinned({"content": content}, str(path), config)
        return self.known[key]


def _revisions(value: Any) -> Iterator[tuple[str, str]]:
    """(name, commit) of each thing on the Hub in the values of stages."""
    if isinstance(value, Mapping):
        name = value.get("id") or value.get("hub")
        if isinstance(name, str) and isinstance(value.get("revision"), str):
            yield name, value["revision"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _revisions(one)


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
        return Pinned({"id": name, "revision": UNPINNED}, note=why)
    config = None
    if kind == "model":
        config = _model_config(name, commit)
    return Pinned({"id": name, "revision": commit}, config=config)


def _commit(kind: Kind, name: str, revision: str) -> tuple[str | None, str | None]:
    """The commit that a revision stands for, or None and the reason."""
    if hub.COMMIT.fullmatch(revision):
        return revision, None
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(
            f"'{name}' is neither a folder here nor a possible Hub id",
            fix="give owner/name, or an existing folder",
        ) from error
    cached = hub.known_commit(kind, name, revision)
    if hub.offline():
        what = "model" if kind == "model" else "data set"
        return cached, None if cached else f"{what} {name}: offline, and not in the local cache"
    try:
        return hub.commit(kind, name, revision), None
    except HubError as error:
        if _answered(error):
            raise
        if cached is None:
            return None, str(error.what)
        print(f"warning: {error.what}; it is taken as it was last seen, at {cached[:12]}", file=sys.stderr)
        return cached, None


def _answered(error: HubError) -> bool:
    """Whether it was the Hub that said no, and not the way there that failed."""
    refused = {"GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError"}
    return any(refused & hub.kinds(one) for one in hub.causes(error))


def _model_config(name: str, commit: str) -> dict[str, Any] | None:
    part = Part("model", name, commit, "config")
    file = part.snapshot / hub.CONFIG
    if not file.is_file():
        if hub.offline():
            return None
        try:
            file = hub.get_config(part)
        except HubError as error:
            if any("RemoteEntryNotFoundError" in hub.kinds(one) for one in hub.causes(error)):
                raise ModelError(
                    f"{name} has no config.json", where=endpoint(), fix="choose a transformers model"
                ) from error
            raise
    return _read_config(file, name)


def require_weights(folder: Path) -> None:
    """Refuse a model's folder without weights, or whose safetensors are not whole: said before anything is trained.

    Only their heads are read. What else is wrong with weights is found when they are loaded.
    """
    if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        raise ModelError(
            "the model has no weights", where=str(folder), fix="it needs model.safetensors or pytorch_model.bin"
        )
    for file in sorted(folder.glob("model*.safetensors")):
        if (fault := hub.weights_fault(file)) is not None:
            raise ModelError(f"the weights can't be read: {fault}", where=str(file), fix="fetch the model again")


def _read_config(file: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{name} has no config.json", where=str(file.parent), fix="give a transformers model folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"config.json of {name} is not JSON: {error}", where=str(file), fix="fetch the model again"
        ) from error
    except OSError as error:
        raise ModelError(
            f"config.json of {name} can't be read: {error.strerror or error}", where=str(file), fix="make it readable"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"config.json of {name} is not a JSON object", where=str(file), fix="fetch the model again")
    if not isinstance(content.get("model_type"), str | None):
        raise ModelError(
            f"config.json of {name} has the model_type {content['model_type']!r}, which is no word",
            where=str(file),
            fix="fetch the model again",
        )
    return content
