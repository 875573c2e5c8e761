"""Send finished or interrupted runs to wandb from their folders: what `kdlab sync` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdlab.artifacts import read_json
from kdlab.config import Tracking
from kdlab.engine.metrics_log import MetricsLog
from kdlab.engine.tracking import Tracker, key_configured
from kdlab.errors import KdlabError, TrackingError

IDENTITY = ("run_id", "name", "group", "job_type", "tags", "config")
SUMMARY = ("scores", "means", "teacher", "student", "majority", "chance", "cost", "translations", "seconds")
# of result.json
GIVE_UP = 3  # runs in a row that could not be sent: the server is out of reach


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of one run."""

    folder: Path
    place: str | None = None  # its address, or "offline: <folder>"; None: it was not sent
    problem: str | None = None


def sync(run_dirs: Iterable[Path], *, settings: Tracking) -> Iterator[Sent]:
    """Replay each folder's metrics.jsonl and result.json as one wandb run with the run's own id.

    Points that the server has already are not sent twice, nor is what a run wrote offline: it is the same run. One that
    did not get to its end is marked as failed. Mode "offline" writes an offline run into the folder; "auto" and
    "online" need an API key, or TrackingError. A folder that can't be sent stops no other, but after GIVE_UP in a row
    the rest is not tried.
    """
    if settings.mode == "none":
        raise TrackingError(
            "tracking is switched off", where="tracking.mode=none", fix="tracking.mode=online or offline"
        )
    if settings.mode != "offline" and not key_configured():
        raise TrackingError(
            "no wandb API key is configured",
            where="WANDB_API_KEY, netrc",
            fix="`wandb login`, or set WANDB_API_KEY",
        )
    mode = "offline" if settings.mode == "offline" else "online"
    return _sent(run_dirs, replace(settings, mode=mode))


def _sent(run_dirs: Iterable[Path], settings: Tracking) -> Iterator[Sent]:
    failures = 0
    for folder in run_dirs:
        if failures >= GIVE_UP:
            yield Sent(folder=folder, problem=f"not tried: {GIVE_UP} in a row could not be sent")
            continue
        try:
            place = _replay(folder, settings)
        except (KdlabError, OSError) as problem:
            failures += 1
            yield Sent(folder=folder, problem=str(problem))
        else:
            failures = 0
            yield Sent(folder=folder, place=place)


def _replay(folder: Path, settings: Tracking) -> str:
    """Send one run; returns where it is to be seen."""
    identity, summary = _identity(folder), _summary(folder)
    points = _by_step(MetricsLog.read(folder / "metrics.jsonl"))
    with Tracker(settings, **identity, folder=folder, fall_back=False) as tracker:
        for step in sorted(points):
            for point in points[step].values():
                tracker.log(point)
        place = tracker.url or f"offline: {folder / 'wandb'}"
        tracker.finish(summary or {}, whole=summary is not None)
    return place


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a result for wandb's summary; of several languages also "scores/test/both/es/accuracy".

    `score` is the one that methods are compared by, under the same key for every task; `score_of` says what it is.
    """
    found = {key: result[key] for key in SUMMARY if result.get(key)}
    metric, split = result.get("metric"), result.get("split")
    score = result.get("scores", {}).get(split, {}).get(metric, {}).get("selected")
    if score is not None:
        found |= {"score": score, "score_of": f"{metric} on {split}"}
    languages = result.get("languages", {})
    if languages:
        splits = dict.fromkeys([*result["scores"], *languages])
        found["scores"] = {split: {**result["scores"].get(split, {}), **languages.get(split, {})} for split in splits}
    return found


def _identity(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        identity = read_json(path)
        return {key: identity[key] for key in IDENTITY}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        reason = f"no {problem} in it" if isinstance(problem, KeyError) else str(problem)
        raise TrackingError(
            "not the folder of a run",
            where=f"{path}: {reason}",
            fix="give the folder that holds run.json and metrics.jsonl, such as outputs/<name>/<job>",
        ) from problem


def _by_step(points: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, dict[str, Any]]]:
    """Points by step and stage, each value once: where a step was logged twice, the later value holds."""
    steps: dict[int, dict[str, dict[str, Any]]] = {}
    step = 0
    for point in points:
        step = int(point.get("global_step") or step)
        stages = steps.setdefault(step, {})
        stages.setdefault(str(point.get("stage", "")), {}).update({**point, "global_step": step})
    return steps


def _summary(folder: Path) -> dict[str, Any] | None:
    """The numbers of the result; None: an interrupted run has none yet."""
    try:
        result = read_json(folder / "result.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise TrackingError(
            "the result can't be read",
            where=f"{folder / 'result.json'}: {problem}",
            fix="give the run's command again",
        ) from problem
    return summary_of(result)
