"""Send finished or interrupted runs to wandb from their folders: what `kdlab sync` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdlab.config import Tracking
from kdlab.engine.metrics_log import MetricsLog
from kdlab.engine.tracking import Tracker, key_configured
from kdlab.errors import TrackingError

IDENTITY = ("run_id", "name", "group", "job_type", "tags", "config")
SUMMARY = ("scores", "means", "teacher", "student", "majority", "chance", "cost", "translations", "seconds")
# of result.json


def sync(run_dirs: Sequence[Path], *, settings: Tracking) -> list[str]:
    """Replay each folder's metrics.jsonl and result.json as one wandb run with the run's own id.

    Points that the server has already are not sent twice. Mode "offline" writes an offline run into the
    folder; "auto" and "online" need an API key. Every folder is looked at before anything is sent.
    Returns where each run is to be seen: its address, or "offline: <folder>". Raises TrackingError.
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
    identities = [_identity(folder) for folder in run_dirs]
    steps = [_by_step(MetricsLog.read(folder / "metrics.jsonl")) for folder in run_dirs]
    mode = "offline" if settings.mode == "offline" else "online"
    sent = []
    for folder, identity, points in zip(run_dirs, identities, steps, strict=True):
        with Tracker(replace(settings, mode=mode), **identity, folder=folder, fall_back=False) as tracker:
            for step in sorted(points):
                for point in points[step].values():
                    tracker.log(point)
            place = tracker.url or f"offline: {folder / 'wandb'}"
            tracker.finish(_summary(folder))
        sent.append(place)
    return sent


def summary_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a result for wandb's summary; of several languages also "scores/test/both/es/accuracy"."""
    found = {key: result[key] for key in SUMMARY if result.get(key)}
    languages = result.get("languages", {})
    if languages:
        splits = dict.fromkeys([*result["scores"], *languages])
        found["scores"] = {split: {**result["scores"].get(split, {}), **languages.get(split, {})} for split in splits}
    return found


def _identity(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
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


def _summary(folder: Path) -> dict[str, Any]:
    """The numbers of the result; an interrupted run has none yet."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise TrackingError(
            "the result can't be read",
            where=f"{folder / 'result.json'}: {problem}",
            fix="give the run's command again",
        ) from problem
    return summary_of(result)
