"""Create the dashboard that compares the runs of a family in Weights & Biases, as a saved workspace or a report.

    python scripts/wandb_workspace.py --family distillation --entity ME --project kdlab --sweep NAME

Scores by method and task with their deviation over seeds, learning curves by stage and loss term, score against latency
and parameters, scores by language, a table of the runs. If outputs/sweeps/NAME is there (or --runs PATH ...), the
panels are of what its runs have logged, else of what the family's presets log. Without an API key, or with --dry-run,
nothing is sent and what would be created is printed as JSON. Needs wandb-workspaces: pip install 'kdlab[dashboards]'.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdlab.engine.metrics_log import MetricsLog
from kdlab.engine.tracking import key_configured, logged, redact, summarised
from kdlab.errors import ConfigError, KdlabError
from kdlab.report.sync import summary_of
from kdlab.runs import Record, collect

FAMILIES = ("distillation", "reasoning", "crosslingual")
METHOD, TASK, MODEL, SEED = "method.name", "task.name", "model.name", "seed"  # keys of the configuration
STAGES = ("teacher", "student", "layers", "logits", "joint")
TERMS: dict[str, dict[str, tuple[str, ...]]] = {  # of the usual stages, for runs that are not at hand
    "distillation": {
        "teacher": ("label",),
        "student": ("label",),
        "layers": ("attention", "hidden", "consistency_attention", "consistency_hidden"),
        "logits": ("logit",),
    },
    "reasoning": {"student": ("completion",)},
    "crosslingual": {"student": ("label_source", "label_target", "contrast", "mixed_source", "mixed_target")},
}
SELECTED = r"scores/[\w.-]+/\w+/selected"
MODES = ("original", "translated", "back_translated", "both")  # of asking a student of several languages
COSTS = {
    "student/latency_ms": "latency, ms",
    "student/parameters": "parameters",
    "student/flops_per_example": "FLOPs per example",
    "student/answers/tokens_per_second": "tokens per second",
    "seconds": "seconds of the run",
}
OF_FAMILY = {
    "distillation": ("student/latency_ms", "student/parameters", "student/flops_per_example", "seconds"),
    "reasoning": ("student/latency_ms", "student/parameters", "student/answers/tokens_per_second", "seconds"),
    "crosslingual": ("student/latency_ms", "student/parameters", "student/flops_per_example", "seconds"),
}


@dataclass(frozen=True)
class Keys:
    """What runs log: points of training, and their summary."""

    points: frozenset[str]
    summary: frozenset[str]


@dataclass(frozen=True)
class Panel:
    """One panel: kind is bars, line, scatter, parallel or differences."""

    kind: str
    title: str
    keys: tuple[str, ...] = ()  # of points for line, else of the summary
    by: str | None = METHOD  # key of the configuration whose values are drawn apart; None: as the table of runs groups
    log: bool = False  # of a scatter plot's first key


@dataclass(frozen=True)
class Section:
    name: str
    panels: list[Panel] = field(default_factory=list)


# keys --------------------------------------------------------------------------------------------------------------


def keys_of(records: Sequence[Record]) -> Keys:
    """All that these runs have logged."""
    points: set[str] = set()
    summary: set[str] = set()
    for record in records:
        for point in MetricsLog.read(record.folder / "metrics.jsonl"):
            points |= {"global_step", *logged(point)}
        if record.result is not None:
            summary |= summarised(summary_of(record.result)).keys()
    return Keys(frozenset(points), frozenset(summary))


def usual_keys(family: str, metric: str, languages: Sequence[str]) -> Keys:
    """What a family's presets log on a task with this metric."""
    points, summary = {"global_step"}, {"score", "score_of", *OF_FAMILY[family]}
    for stage, terms in TERMS[family].items():
        points |= {f"{stage}/loss", *(f"{stage}/weighted/{term}" for term in terms)}
        if family == "distillation":
            points |= {f"{stage}/curve/{rows}/loss" for rows in ("train", "dev")}
            points |= {f"{stage}/eval/{split}/{metric}" for split in ("heldout", "dev") if stage != "layers"}
    if family == "distillation":
        summary |= {f"scores/{split}/{metric}/selected" for split in ("heldout", "dev")}
    if family == "reasoning":
        told = ("accuracy", "contains_answer", "correct_format", "complete")
        summary |= {f"scores/test/{name}/selected" for name in told}
    if family == "crosslingual":
        points |= {"student/curve/train/loss", f"student/eval/dev/{metric}"}
        points |= {f"student/eval/dev.{language}/{metric}" for language in languages}
        summary |= {f"scores/test/{metric}/selected", f"scores/dev/{metric}/selected"}
        asked = ("original", "translated", "both")
        summary |= {f"scores/test/{mode}/{language}/{metric}" for mode in asked for language in languages}
        summary |= {f"means/test/{mode}/without_source/{metric}" for mode in asked}
    return Keys(frozenset(points), frozenset(summary))


# panels ------------------------------------------------------------------------------------------------------------


def sections(family: str, keys: Keys) -> list[Section]:
    """The dashboard: nothing in it has a key that is not among the given ones."""
    found = [
        Section("Scores", list(_scores(keys))),
        Section("Score against cost", list(_costs(family, keys))),
        Section("Languages", list(_languages(keys))),
        *(Section(f"Learning curves: {stage}", list(_curves(stage, keys))) for stage in STAGES),
        Section("Runs", list(_runs(keys))),
    ]
    return [section for section in found if section.panels]


def _scores(keys: Keys) -> Iterator[Panel]:
    if "score" in keys.summary:
        yield Panel("bars", "Score by method (mean, deviation over seeds)", ("score",))
        yield Panel("bars", "Score by task, model and method", ("score",), by=None)
        yield Panel("bars", "Score by task", ("score",), by=TASK)
    for key in _matching(keys.summary, SELECTED):
        _, split, metric, _ = key.split("/")
        yield Panel("bars", f"{metric} on {split}", (key,))


def _costs(family: str, keys: Keys) -> Iterator[Panel]:
    for key in OF_FAMILY[family]:
        if {key, "score"} <= keys.summary:
            yield Panel("scatter", f"Score against {COSTS[key]}", (key, "score"), by=None, log=True)


def _languages(keys: Keys) -> Iterator[Panel]:
    found: dict[tuple[str, str, str], list[str]] = {}
    metrics = f"({_metrics(keys)})"
    for key in _matching(keys.summary, rf"scores/(dev|test)/({'|'.join(MODES)})/[\w-]+/{metrics}"):
        _, split, mode, _, metric = key.split("/")
        found.setdefault((split, mode, metric), []).append(key)
    for (split, mode, metric), several in found.items():
        if split == "test" or not any(other == "test" for other, _, _ in found):
            yield Panel("bars", f"{metric} on {split} by language, asked: {mode}", tuple(several))
    for key in _matching(keys.summary, rf"means/test/\w+/without_source/{metrics}"):
        _, _, mode, _, metric = key.split("/")
        yield Panel("bars", f"Mean {metric} without the source language, asked: {mode}", (key,))
    for key in _matching(keys.points, rf"student/eval/dev\.[\w-]+/{metrics}"):
        _, _, table, metric = key.split("/")
        yield Panel("line", f"{metric} on {table} while training", (key,))


def _curves(stage: str, keys: Keys) -> Iterator[Panel]:
    name = re.escape(stage)
    for key in _matching(keys.points, rf"{name}/loss"):
        yield Panel("line", "Loss", (key,))
    curves = tuple(_matching(keys.points, rf"{name}/curve/(train|dev)/loss"))
    if curves:
        yield Panel("line", "Loss on the same rows of train and dev", curves)
    for key in _matching(keys.points, rf"{name}/weighted/.+"):
        yield Panel("line", f"Loss term: {key.split('/')[-1]} (weighted)", (key,))
    for key in _matching(keys.points, rf"{name}/eval/\w+/({_metrics(keys)})"):
        _, _, split, metric = key.split("/")
        yield Panel("line", f"{metric} on {split}", (key,))


def _runs(keys: Keys) -> Iterator[Panel]:
    if "score" in keys.summary:
        yield Panel("parallel", "Method, task, model and seed against the score", ("score",), by=None)
    yield Panel("differences", "Configurations, differences only", by=None)


def _matching(keys: frozenset[str], pattern: str) -> list[str]:
    return sorted(key for key in keys if re.fullmatch(pattern, key))


def _metrics(keys: Keys) -> str:
    """Pattern of the metrics that the tasks ask for; points have all there are."""
    return "|".join(sorted({key.split("/")[2] for key in _matching(keys.summary, SELECTED)})) or r"\w+"


def columns(keys: Keys, family: str) -> list[str]:
    """Of the table of runs, as wandb spells them: a nested key has ".value" behind its first part."""
    shown = ["score", "score_of", *OF_FAMILY[family]]
    of_config = [f"config:{key.replace('.', '.value.', 1)}" for key in (METHOD, TASK, MODEL)]
    return ["run:displayName", "run:state", *of_config, f"config:{SEED}.value"] + [
        f"summary:{key}" for key in shown if key in keys.summary
    ]


# what wandb-workspaces makes of it -----------------------------------------------------------------------------------


def libraries() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is written for an older pydantic
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ImportError as problem:
        raise KdlabError(
            f"a dashboard needs wandb-workspaces: {problem}", fix="pip install 'kdlab[dashboards]'"
        ) from problem
    return workspaces, reports


def drawn(panel: Panel, reports: Any) -> Any:
    """The panel as an object of wandb_workspaces.reports.v2."""
    by = None if panel.by is None else reports.Config(panel.by)
    groups = {} if by is None else {"groupby": by, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    if panel.kind == "bars":
        return reports.BarPlot(title=panel.title, metrics=list(panel.keys), **groups)
    if panel.kind == "line":
        return reports.LinePlot(title=panel.title, x="global_step", y=list(panel.keys), **groups)
    if panel.kind == "scatter":
        cost, score = map(reports.SummaryMetric, panel.keys)
        return reports.ScatterPlot(title=panel.title, x=cost, y=score, log_x=panel.log)
    if panel.kind == "parallel":
        metrics = [*map(reports.Config, (METHOD, TASK, MODEL, SEED)), *map(reports.SummaryMetric, panel.keys)]
        several = [reports.ParallelCoordinatesPlotColumn(metric=metric) for metric in metrics]
        return reports.ParallelCoordinatesPlot(title=panel.title, columns=several)
    return reports.RunComparer(diff_only="split")


def filters(sweep: str | None, tags: Sequence[str], workspaces: Any) -> Any:
    of_sweep = [] if sweep is None else [workspaces.Metric("Group") == sweep]
    both = [*of_sweep, *([workspaces.Tags().isin(list(tags))] if tags else [])]
    return workspaces.And(*both) if both else ""


def workspace(name: str, given: argparse.Namespace, shown: Sequence[Section], keys: Keys) -> Any:
    """A saved view of the project: a wandb_workspaces.workspaces.Workspace."""
    workspaces, reports = libraries()
    return workspaces.Workspace(
        entity=given.entity or "",
        project=given.project,
        name=name,
        sections=[
            workspaces.Section(
                name=section.name, panels=[drawn(panel, reports) for panel in section.panels], is_open=number < 2
            )
            for number, section in enumerate(shown)
        ],
        settings=workspaces.WorkspaceSettings(x_axis="global_step", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=filters(given.sweep, given.tag, workspaces),
            groupby=[workspaces.Config(key) for key in (TASK, MODEL, METHOD)],
            order=[workspaces.Ordering(workspaces.Summary("score"), ascending=False)],
            pinned_columns=columns(keys, given.family),
        ),
    )


def report(name: str, given: argparse.Namespace, shown: Sequence[Section], keys: Keys) -> Any:
    """The same as a report, to be shared: a wandb_workspaces.reports.v2.Report."""
    workspaces, reports = libraries()

    def runset() -> Any:
        return reports.Runset(
            entity=given.entity or "",
            project=given.project,
            filters=filters(given.sweep, given.tag, workspaces),
            groupby=[f"config.{key}" for key in (TASK, MODEL, METHOD)],
            order=[reports.OrderBy(reports.SummaryMetric("score"), ascending=False)],
            pinned_columns=columns(keys, given.family),
        )

    blocks: list[Any] = []
    for section in shown:
        panels = [drawn(panel, reports) for panel in section.panels]
        for number, panel in enumerate(panels):
            panel.layout = reports.Layout(x=number % 3 * 8, y=number // 3 * 6, w=8, h=6)
        blocks += [reports.H2(text=section.name), reports.PanelGrid(runsets=[runset()], panels=panels)]
    return reports.Report(entity=given.entity or "", project=given.project, title=name, blocks=blocks, width="fluid")


def described(name: str, given: argparse.Namespace, shown: Sequence[Section], keys: Keys) -> dict[str, Any]:
    """What is created, as plain values."""
    return {
        "kind": "report" if given.report else "workspace",
        "name": name,
        "entity": given.entity,
        "project": given.project,
        "filters": {"group": given.sweep, "tags": given.tag},
        "groups": [TASK, MODEL, METHOD],
        "columns": columns(keys, given.family),
        "sections": [asdict(section) for section in shown],
    }


# the command -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--family", choices=FAMILIES, help="default: that of the runs")
    parser.add_argument("--entity", help="user or team; default: your own")
    parser.add_argument("--project", default="kdlab")
    parser.add_argument("--sweep", metavar="NAME", help="only the runs of this sweep, which are a group in wandb")
    parser.add_argument("--tag", action="append", default=[], help="only runs with one of these tags: a task, a method")
    parser.add_argument("--runs", nargs="+", metavar="PATH", help="default: outputs/sweeps/NAME, if it is there")
    parser.add_argument("--metric", default="accuracy", help="without runs: of the task; default: accuracy")
    parser.add_argument("--languages", default="en,es,fr,de", help="without runs: of the task; default: en,es,fr,de")
    parser.add_argument("--name", help="of the workspace; default: made from family and sweep")
    parser.add_argument("--report", action="store_true", help="a report in place of a workspace")
    parser.add_argument("--dry-run", action="store_true", help="print what would be created, and send nothing")
    given = parser.parse_args(argv)
    try:
        return create(given)
    except KdlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def create(given: argparse.Namespace) -> int:
    folder = None if given.sweep is None else Path("outputs/sweeps") / given.sweep
    paths = given.runs or ([str(folder)] if folder is not None and folder.is_dir() else [])
    records, left_out = collect(paths) if paths else ([], [])
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    families = {record.family for record in records}
    given.family = given.family or (families.pop() if len(families) == 1 else None)
    if given.family is None:
        absent = f"there is no folder {folder} to tell it from: " if folder is not None else ""
        several = f"the runs are of {', '.join(sorted(families))}: " if families else absent
        raise ConfigError([f"--family: {several}choose one of {', '.join(FAMILIES)}"])
    records = [record for record in records if record.family == given.family]
    if paths and not records:
        raise ConfigError([f"--family {given.family}: none of these runs is of it"])
    keys = keys_of(records) if records else usual_keys(given.family, given.metric, given.languages.split(","))
    shown = sections(given.family, keys)
    sending = key_configured() and not given.dry_run
    if sending and given.entity is None:
        given.entity = own_entity()
    name = given.name or " ".join(filter(None, ["kdlab", given.family, given.sweep]))
    made = (report if given.report else workspace)(name, given, shown, keys)
    if not sending:
        print(json.dumps(described(name, given, shown, keys), indent=2))
        why = "--dry-run" if given.dry_run else "no wandb API key is configured (`wandb login`)"
        print(f"nothing was sent: {why}", file=sys.stderr)
        return 0
    try:
        made.save()
    except Exception as problem:
        raise unreachable(problem) from problem
    print(made.url)
    return 0


def own_entity() -> str:
    import wandb

    try:
        return str(wandb.Api().default_entity)
    except Exception as problem:
        raise unreachable(problem) from problem


def unreachable(problem: Exception) -> KdlabError:
    return KdlabError(
        f"the dashboard could not be created: {redact(' '.join(str(problem).split()))}",
        where=os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"),
        fix="look at --entity and --project (a run must have been sent to it), and at `wandb login`",
    )


if __name__ == "__main__":
    sys.exit(main())
