"""`kdlab fetch`: gets all that runs need of the Hub, and says what to copy to a machine without network."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from kdlab.errors import HubError, StoreError
from kdlab.showing import redact
from kdlab.verbs.plan import pins, refuse_bad_plans, warn_of

if TYPE_CHECKING:
    from kdlab.compose import Job
    from kdlab.graph import Graph, Stage
    from kdlab.hub import File, Part

SPARE = 1.05  # room for what is unpacked and noted beside the files


def main(words: list[str]) -> int:
    from kdlab import compose, hub, supplies

    if compose.hydra_passthrough(words):
        return 0
    composition = compose.jobs(words)
    warn_of(composition)
    if hub.offline():
        raise HubError(
            "nothing can be fetched offline",
            where="HF_HUB_OFFLINE is set",
            fix="unset HF_HUB_OFFLINE, or give the command where there is a network",
        )
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    graphs = refuse_bad_plans(composition, strictly=True)
    for job in composition.jobs:
        pins().require(job.run, graphs[job.name])
    stages = list({stage.fingerprint: stage for graph in graphs.values() for stage in graph}.values())
    found = {part: hub.files(part, ask=supplies.data_files) for part in supplies.parts(stages)}
    refuse_too_little_room(found)
    for part, splits in found.items():
        get(part, splits)
    streamed = list(prepared(composition.jobs, graphs))
    for graph in graphs.values():
        pins().remember(graph)
    tell(found, streamed, words, composition.jobs, stages)
    return 0


def get(part: Part, splits: Mapping[str, Sequence[File]]) -> None:
    """Fetch a part's files; those that are there already are compared with the Hub's checksums."""
    from kdlab import hub, supplies

    fetched: list[File] = []

    def note(part: Part, file: File) -> None:
        fetched.append(file)
        print(supplies.line_of(part, file), flush=True)

    files = list(chain.from_iterable(splits.values()))
    hub.obtain(part, splits, tell=note, check=True)
    kept = len(files) - len(fetched)
    if kept:
        print(f"have  {part}: {kept} of {len(files)} files, {shown(f for f in files if f not in fetched)}", flush=True)


def prepared(jobs: Sequence[Job], graphs: Mapping[str, Graph]) -> Iterator[tuple[Stage, Path]]:
    """The stages that take the first rows of a data set and do not read it whole, run into the store; and where."""
    from rich.console import Console

    from kdlab import runner, supplies
    from kdlab.artifacts import Store
    from kdlab.engine.progress import Display
    from kdlab.execution import silent
    from kdlab.graph import Graph

    seen: set[str] = set()
    for job in jobs:
        for stage in filter(supplies.streams, graphs[job.name]):
            if stage.fingerprint in seen:
                continue
            seen.add(stage.fingerprint)
            store = Store(job.run.store)
            with Display(console=Console(highlight=False)) as screen:
                graph = Graph.of({stage.label: stage})
                runner.run(graph, store, hardware=job.run.hardware, fresh=[], screen=screen, **silent())
            yield stage, store.root / stage.artifact


def all_files(found: Mapping[Part, Mapping[str, Sequence[File]]]) -> dict[Path, File]:
    """Each file once, by its place in the cache."""
    return {
        part.snapshot / file.name: file for part, splits in found.items() for some in splits.values() for file in some
    }


def refuse_too_little_room(found: Mapping[Part, Mapping[str, Sequence[File]]]) -> None:
    from rich.filesize import decimal

    from kdlab import hub

    wanted = {place: file.size or 0 for place, file in all_files(found).items()}
    wanted = {place: size for place, size in wanted.items() if not place.is_file()}
    folder = hub.cache_folder().absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if sum(wanted.values()) * SPARE > free:
        raise StoreError(
            f"{decimal(sum(wanted.values()))} are to be fetched, and {decimal(free)} are free",
            where=str(folder),
            fix="free some space, or set HF_HOME to a folder on another disk",
        )


def tell(
    found: Mapping[Part, Mapping[str, Sequence[File]]],
    streamed: Sequence[tuple[Stage, Path]],
    words: Sequence[str],
    jobs: Sequence[Job],
    stages: Sequence[Stage],
) -> None:
    """What there is now, what to copy, what to call there, and what can't be fetched ahead."""
    from kdlab import hub

    whole = all_files(found)
    print(f"\nall is there: {len(whole)} files, {shown(whole.values())}, in {hub.cache_folder()}")
    folders = list(dict.fromkeys(hub.repository(part.kind, part.name) for part in found))
    places = sorted({place for stage in stages for place in stage.places.values()})
    if folders or streamed or places:
        print("copy to the machine without network:")
    for folder in folders:
        print(f"  {folder}    into HF_HOME/hub")
    for _, place in streamed:
        print(f"  {place}    into {place.parent}, or what store= names")
    for local in places:
        print(f"  {local}    to the same path, or give its new one")
    print("and there:")
    print(f"  HF_HOME=FOLDER HF_HUB_OFFLINE=1 {shlex.join(['kdlab', 'train', *redact(list(words))])}")
    for line in dict.fromkeys(beyond(jobs, stages)):
        print(f"not fetched: {line}")


def beyond(jobs: Sequence[Job], stages: Iterable[Stage]) -> Iterator[str]:
    """What runs use of the network, or of other software, that can't be fetched ahead."""
    from kdlab.report.result import endpoint_of

    for stage in stages:
        if (endpoint := endpoint_of(stage.values)) is not None:
            yield f"answers of {endpoint}, which the stage '{stage.label}' asks"
        if stage.values.get("translator", {}).get("kind") == "apertium":
            yield "apertium and its pairs of languages, packages of the system: `kdlab doctor` there names them"
    modes = {job.run.tracking.mode for job in jobs}
    if "online" in modes or ("auto" in modes and os.environ.get("WANDB_API_KEY")):
        yield "Weights & Biases: without network runs are tracked offline; `kdlab sync` sends them afterwards"


def shown(files: Iterable[File]) -> str:
    from rich.filesize import decimal

    return decimal(sum(file.size or 0 for file in files))
