"""What `kdlab analyze` leaves of the overfitting study: analysis.json, plots, and tables for the terminal."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from kdlab import provenance
from kdlab.artifacts import Store, write_json
from kdlab.errors import StoreError, disk_errors
from kdlab.graph import Stage
from kdlab.report.languages import MODES, group_name, languages
from kdlab.report.summary import hundredfold, metric_name, split_of
from kdlab.study import ANALYSES, Settings, Subject, asked, grouped, matrix

Numbers = dict[str, Any]  # of one run
FILES = {"surface": "surface.json", "noise": "noise.json", "distance": "distance.json"}

DEFINITIONS = {
    "gap": "Mean loss of a stage's own objective, without mixed inputs and dropout, on fixed rows of train and of dev; "
    "gap = dev - train, at the last point and at the point nearest to the selected checkpoint. Gaps of one objective "
    "can be compared, losses of two can't. A cross entropy against the teacher holds the teacher's own entropy, which "
    "differs between train and dev: for layers the distance (a KL) tells more. With a supplement, its rows are beside.",
    "labels": "Loss of the finished student with the hard labels (cross entropy in nats, or squared error): train on "
    "the rows of the surface (with their noise, if the task has any), dev on the rows of the noise study.",
    "surface": "L(a, b) = hard-label loss on train rows at weights w + a*u + b*v; u, v Gaussian, every filter (row of "
    "a weight matrix) scaled to the norm of the student's filter, biases and normalisation layers fixed (Li et al. "
    "2018, section 4). loss[i][j] is at a = axis[i], b = axis[j].",
    "mean_rise": "Mean of L(a, b) - L(0, 0) over the grid's points with 0 < sqrt(a^2 + b^2) <= span. Lower is flatter.",
    "flat_area": "Share of the square [-span, span]^2 in which L(a, b) - L(0, 0) < tolerance, L bilinear between the "
    "grid's points. Higher is flatter.",
    "profile": "Mean of L - L(0, 0) on circles around the student, L bilinear between the grid's points.",
    "noise": "Score and hard-label loss on dev with Gaussian noise on every weight, of standard deviation scale * root "
    "mean square of the weight tensor; mean and sample deviation over the draws, scale 0 being the student itself.",
    "attention": "KL(teacher || student) of attention rows in nats: mean over heads, valid query rows, examples.",
    "hidden": "sum |h_S - h_T|^2 / sum |h_T|^2 over valid tokens; h_S through the layer stage's projection, if it left "
    "one (projected).",
    "cka": "1 - linear CKA of token states, features centred over all valid tokens (Kornblith et al. 2019).",
    "ratio": "Distance on dev / distance on train; above 1 the student is nearer to its teacher where it was trained.",
    "languages": "The metric on the set that methods are compared on, by mode of inference and language; means are "
    "unweighted; the source language has one view, which stands in every mode. In the curves, dev is the mean over "
    "languages, and train the original texts of the source language, or of the first one trained on.",
    "matrices": "Of runs that differ in method.texts and seed only: rows by the kind of their training texts, columns "
    "by that of the scored texts (original; translated: in the source language; back_translated: to the source "
    "language and back); the mean over all languages, averaged over seeds. null: no run, or not scored.",
    "deviation": "Sample standard deviation over the runs of a group, which differ in their seed only.",
}


# numbers -----------------------------------------------------------------------------------------------------------


def numbers(subject: Subject, stages: Mapping[str, Stage], settings: Settings, store: Store) -> Numbers:
    """All that was found about one run, from the artifacts of its analyses."""
    config, metric, split = subject.config, subject.metric, split_of(subject.result)
    found: Numbers = {
        "run": subject.name,
        "folder": str(subject.folder),
        "method": config["method"]["name"],
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "seed": subject.seed,
        "metric": metric,
        "selected": subject.result["scores"].get(split, {}).get(metric, {}).get("selected"),
        "majority": subject.result.get("majority", {}).get(split, {}).get(metric),
        "artifacts": {"student": subject.student.artifact, "data": subject.data.artifact}
        | ({} if subject.teacher is None else {"teacher": subject.teacher.artifact})
        | {name: stage.artifact for name, stage in stages.items()},
    }
    if "gap" in settings.analyses:
        found["gap"] = [
            curve
            for stage in subject.trained
            if (curve := followed(stage, store, config["task"]["languages"])) is not None
        ]
    found |= {name: _read(store.path(stage.artifact) / FILES[name]) for name, stage in stages.items()}
    if "languages" in asked(subject, settings):
        found["languages"] = by_language(subject)
    found["notes"] = notes(subject, found, settings)
    found["figures"] = figures(found)
    return found


def by_language(subject: Subject) -> dict[str, Any]:
    """The metric of every mode and language, from the run's result; `matrix` is the same for runs of one matrix."""
    result, metric, split = subject.result, subject.metric, split_of(subject.result)
    scores = {
        mode: {one: values[one][metric] for one in languages(result, split) if one in values}
        for mode, values in result["languages"][split].items()
    }
    means = {
        mode: {group: values[metric] for group, values in groups.items()}
        for mode, groups in result["means"][split].items()
    }
    return {
        "split": split,
        "source_language": result["source_language"],
        "texts": result["training"]["texts"],
        "inference": result["inference"]["mode"],
        "scores": scores,
        "means": means,
        "matrix": matrix(subject),
    }


def followed(stage: Stage, store: Store, languages: Sequence[str] = ()) -> dict[str, Any] | None:
    """The curves of a trained stage; None where it was trained without, or before there were any.

    languages: of the task, in its order. Their mean over dev is made here.
    """
    history = _read(store.path(stage.artifact) / "history.json")
    points = history.get("curves")
    if not points:
        return None
    steps = [point["step"] for point in points]
    nearest = min(range(len(steps)), key=lambda number: abs(steps[number] - history["selected_step"]))
    dev = [f"dev.{language}" for language in languages if f"dev.{language}" in points[0]["losses"]]
    splits = [*(name for name in points[0]["losses"] if name not in dev), *dev]
    losses = {split: [point["losses"][split] for point in points] for split in splits}
    scores = [dict(point["scores"]) for point in points]
    if dev:
        losses["dev"] = [statistics.fmean(values) for values in zip(*(losses[name] for name in dev), strict=True)]
        for point in scores:
            point["dev"] = {name: statistics.fmean(point[one][name] for one in dev) for name in point[dev[0]]}

    def at(number: int) -> dict[str, Any]:
        values = {split: curve[number] for split, curve in losses.items()}
        return {"step": steps[number], **values, "gap": values["dev"] - values["train"]}

    return {
        "stage": stage.label,
        "artifact": stage.artifact,
        "steps": steps,
        "epochs": [point["epoch"] for point in points],
        "losses": losses,
        "scores": scores,
        "selected_step": history["selected_step"],
        "selected": at(nearest),
        "last": at(len(points) - 1),
    }


def notes(subject: Subject, found: Numbers, settings: Settings) -> list[str]:
    """What the numbers of this run leave out or do not say, and why."""
    told = []
    if None not in (found["selected"], found["majority"]) and found["selected"] <= found["majority"]:
        little = ": how flat and robust it is says little" if subject.family == "distillation" else ""
        told.append(f"the student is no better than the majority class{little}")
    if "gap" in found:
        absent = {stage.label for stage in subject.trained} - {curve["stage"] for curve in found["gap"]}
        if absent:
            told.append(f"no curves of {', '.join(sorted(absent))}: trained with curves=0, or by an older kdlab")
    if "distance" in asked(subject, settings) and subject.teacher is None:
        told.append("no distance: the run has no teacher")
    if found.get("distance", {}).get("no_attention"):
        told.append(f"no distance of attention: {found['distance']['no_attention']}")
    if "distance" in found and subject.layers is not None and "teacher" not in subject.layers.inputs:
        told.append("the layer stage learned from the teacher before fine-tuning; distances are to the fine-tuned one")
    if "noise" in found and found["noise"]["rows"] < found["noise"]["of"]:
        told.append(f"noise on {found['noise']['rows']} of {found['noise']['of']} dev rows")
    return told


def remarks(found: Iterable[Numbers]) -> list[str]:
    """The notes of all runs, each once, with the runs it is about unless these are all."""
    runs = list(found)
    by_text: dict[str, list[str]] = {}
    for run in runs:
        for text in run["notes"]:
            by_text.setdefault(text, []).append(run["run"])
    told = []
    for text, names in by_text.items():
        more = f" and {len(names) - 1} more of {len(runs)} runs" if len(names) > 1 else ""
        told.append(f"note: {text}" + ("" if len(names) == len(runs) else f" ({names[0]}{more})"))
    return told


def figures(found: Numbers) -> dict[str, float]:
    """The numbers that are averaged over seeds, flat and by name."""
    flat: dict[str, float] = {}
    for curve in found.get("gap", ()):
        for point in ("selected", "last"):
            flat |= {f"gap.{curve['stage']}.{point}.{name}": curve[point][name] for name in ("train", "dev", "gap")}
    if "surface" in found:
        flat |= {f"surface.{name}": found["surface"][name] for name in ("mean_rise", "flat_area")}
        flat["labels.train"] = found["surface"]["center"]
    if "noise" in found:
        for name in ("score", "loss"):
            for scale, level in zip(found["noise"]["scales"], found["noise"][name], strict=True):
                flat[f"noise.{name}.{scale:g}"] = level["mean"]
        flat["labels.dev"] = flat["noise.loss.0"]
    if {"labels.train", "labels.dev"} <= flat.keys():
        flat["labels.gap"] = flat["labels.dev"] - flat["labels.train"]
    for mode, groups in found.get("languages", {}).get("means", {}).items():
        flat |= {f"languages.{mode}.{group}": value for group, value in groups.items()}
        flat |= {f"languages.{mode}.{one}": value for one, value in found["languages"]["scores"][mode].items()}
    for which, splits in found.get("distance", {}).get("students", {}).items():
        for number, (i, j) in enumerate(found["distance"]["pairs"]):
            for measure in ("attention", "hidden", "cka"):
                train, dev = (splits[split][measure][number] for split in ("train", "dev"))
                if train is None or dev is None:
                    continue
                where = f"distance.{which}.{i}-{j}.{measure}"
                flat |= {f"{where}.train": train, f"{where}.dev": dev}
                if train > 1e-9:
                    flat[f"{where}.ratio"] = dev / train
    return flat


def averaged(runs: Sequence[Numbers]) -> dict[str, dict[str, float]]:
    """Mean and sample deviation over runs, of the figures that all of them have."""
    names = [name for name in runs[0]["figures"] if all(name in run["figures"] for run in runs)]
    found = {}
    for name in names:
        values = [run["figures"][name] for run in runs]
        found[name] = {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        }
    return found


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# files -------------------------------------------------------------------------------------------------------------

Places = dict[tuple[str, str], dict[str, list[Numbers]]]  # (task, model) -> group -> runs


def placed(subjects: Sequence[Subject], found: Mapping[Path, Numbers]) -> Places:
    """Runs by task and model, since only those of one can be compared, and there by what they differ in but seeds."""
    places: dict[tuple[str, str], list[Subject]] = {}
    for subject in subjects:
        places.setdefault((subject.config["task"]["name"], subject.config["model"]["name"]), []).append(subject)
    return {
        place: {label: [found[one.folder] for one in group] for label, group in grouped(inner).items()}
        for place, inner in places.items()
    }


def write(places: Places, settings: Settings, out: Path, described: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write the plots, analysis.json and graph.json (what the analyses are made of) into `out`; returns the plots."""
    with disk_errors("writing the analysis", out):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:
            raise StoreError("that place can't hold a folder", where=str(out), fix="give another --out") from error
        before = _read(out / "analysis.json").get("plots", []) if (out / "analysis.json").is_file() else []
        for name in before:  # plots of other settings would look like those of these numbers
            (out / Path(name).name).unlink(missing_ok=True)
        drawn = []
        for place, groups in places.items():
            suffix = "" if len(places) == 1 else "-" + re.sub(r"\W+", "_", "-".join(place))
            drawn += _draw(groups, settings, out, suffix)
        runs = [run for groups in places.values() for own in groups.values() for run in own]
        write_json(
            out / "analysis.json",
            {
                "settings": asdict(settings),
                "definitions": DEFINITIONS,
                "runs": runs,
                "groups": [
                    {
                        "task": task,
                        "model": model,
                        "label": label,
                        "runs": [run["run"] for run in own],
                        "seeds": [run["seed"] for run in own],
                        "figures": averaged(own),
                    }
                    for (task, model), groups in places.items()
                    for label, own in groups.items()
                ],
                "matrices": [
                    {"task": task, "model": model, **one}
                    for (task, model), groups in places.items()
                    for one in matrices(groups)
                ],
                "plots": sorted(path.name for path in drawn),
                "versions": {**provenance.versions(), "matplotlib": metadata.version("matplotlib")},
                "git": provenance.git(),
            },
        )
        write_json(out / "graph.json", list(described))
    return drawn


def _draw(groups: Mapping[str, Sequence[Numbers]], settings: Settings, out: Path, suffix: str) -> list[Path]:
    from kdlab.report import plots

    drawings = {"gap": [("gap", plots.gap)], "surface": [("surface", plots.surface)], "noise": [("noise", plots.noise)]}
    drawings["distance"] = [("distance", plots.distance), ("similarity", plots.similarity)]
    drawings["languages"] = [("languages", plots.languages)]
    drawn = []
    for analysis in (name for name in ANALYSES if name in settings.analyses):
        if any(run.get(analysis) for runs in groups.values() for run in runs):
            for name, draw in drawings[analysis]:
                drawn += plots.save(draw(groups), out / f"{name}{suffix}")
    curves = [curve for runs in groups.values() for run in runs for curve in run.get("gap", ())]
    if any(name.startswith("dev.") for curve in curves for name in curve["losses"]):
        drawn += plots.save(plots.gap_by_language(groups), out / f"gap_by_language{suffix}")
    if found := matrices(groups):
        drawn += plots.save(plots.artifacts(found), out / f"artifacts{suffix}")
    return drawn


TEXTS = ("original", "translated", "back_translated")  # of training, and of what is scored


def matrices(groups: Mapping[str, Sequence[Numbers]]) -> list[dict[str, Any]]:
    """Kind of training texts (rows) by kind of scored texts (columns), of runs that else differ in their seed only.

    At least two kinds of training texts make a matrix. values, deviations: [3][3] fractions, None where there is no
    run; seeds: of each row.
    """
    found: dict[str, dict[str, tuple[str, Sequence[Numbers]]]] = {}
    for label, runs in groups.items():
        if "languages" in runs[0]:
            own = runs[0]["languages"]
            found.setdefault(own["matrix"], {})[own["texts"]] = label, runs
    made = []
    for rows in found.values():
        if len(rows) < 2:
            continue
        label, runs = next(iter(rows.values()))
        cells = [[_cell(rows[kind][1], mode) if kind in rows else [] for mode in TEXTS] for kind in TEXTS]
        made.append(
            {
                "label": ", ".join(part for part in label.split(", ") if not part.startswith("texts=")),
                "metric": runs[0]["metric"],
                "split": runs[0]["languages"]["split"],
                "languages": list(runs[0]["languages"]["scores"]["original"]),
                "rows": list(TEXTS),
                "columns": list(TEXTS),
                "values": [[statistics.fmean(values) if values else None for values in row] for row in cells],
                "deviations": [
                    [statistics.stdev(values) if len(values) > 1 else None for values in row] for row in cells
                ],
                "seeds": [[run["seed"] for run in rows[kind][1]] if kind in rows else [] for kind in TEXTS],
            }
        )
    return made


def _cell(runs: Sequence[Numbers], mode: str) -> list[float]:
    """The mean over languages of each run that was scored in this mode."""
    return [run["languages"]["means"][mode]["all"] for run in runs if mode in run["languages"]["means"]]


# tables ------------------------------------------------------------------------------------------------------------


def tables(places: Places) -> list[Table]:
    """For the terminal, one line for each group: mean ± deviation over seeds."""
    found = []
    for place, groups in places.items():
        title = ", ".join(place)
        rows = {label: averaged(runs) for label, runs in groups.items()}
        seeds = {label: len(runs) for label, runs in groups.items()}
        metric = next(run["metric"] for runs in groups.values() for run in runs)
        found += [
            table
            for table in (
                _loss_table(title, rows, seeds),
                _flatness_table(title, rows, metric),
                _distance_table(title, rows),
                _language_table(title, groups, rows),
                *(_matrix_table(title, one) for one in matrices(groups)),
            )
            if table.row_count
        ]
    return found


Rows = Mapping[str, Mapping[str, Mapping[str, float]]]  # label -> figure -> mean, deviation


def _loss_table(title: str, rows: Rows, seeds: Mapping[str, int]) -> Table:
    table = _table(f"{title}: loss on train and dev", "", "seeds", "loss of", "train", "dev", "gap")
    for label, row in rows.items():
        stages = dict.fromkeys(name.split(".")[1] for name in row if name.startswith("gap."))
        lines = [(f"stage {stage}", f"gap.{stage}.selected") for stage in stages if stage != "teacher"]
        lines += [("hard labels", "labels")] if any(name.startswith("labels.") for name in row) else []
        for number, (what, key) in enumerate(lines):
            values = [_shown(row.get(f"{key}.{name}")) for name in ("train", "dev", "gap")]
            table.add_row(*([label, str(seeds[label])] if number == 0 else ["", ""]), what, *values)
    return table


def _flatness_table(title: str, rows: Rows, metric: str) -> Table:
    scales = list(dict.fromkeys(name[12:] for row in rows.values() for name in row if name.startswith("noise.score.")))
    shaken = f"; {metric_name(metric)} x 100 under weight noise" if scales else ""
    columns = [f"noise\n{scale}" for scale in scales]
    table = _table(f"{title}: loss surface{shaken}", "", "mean\nrise", "flat\narea %", *columns)
    for label, row in rows.items():
        flat = [_shown(row.get("surface.mean_rise")), _shown(row.get("surface.flat_area"), 100)]
        scores = [_shown(row.get(f"noise.score.{scale}"), 100) for scale in scales]
        if any(value != "-" for value in (*flat, *scores)):
            table.add_row(label, *flat, *scores)
    return table


def _distance_table(title: str, rows: Rows) -> Table:
    columns = ("attention\nKL", "hidden\nerror", "1 - CKA")
    table = _table(f"{title}: distance to the teacher, train / dev (ratio)", "", "student", "layers", *columns)
    for label, row in rows.items():
        places = dict.fromkeys(tuple(name.split(".")[1:3]) for name in row if name.startswith("distance."))
        for number, (which, pair) in enumerate(places):
            cells = [_distance_cell(row, f"distance.{which}.{pair}.{name}") for name in ("attention", "hidden", "cka")]
            finished = {"layers": "after layers", "student": "finished"}[which]
            table.add_row(label if number == 0 else "", finished, pair, *cells)
    return table


def _language_table(title: str, groups: Mapping[str, Sequence[Numbers]], rows: Rows) -> Table:
    """Means over languages, with and without the source language, in every mode."""
    told = {label: runs[0]["languages"] for label, runs in groups.items() if "languages" in runs[0]}
    modes = [mode for mode in MODES if any(mode in one["scores"] for one in told.values())]
    some = next(iter(told.values()), {"split": ""})
    shown = [mode.replace("_", "\n") for mode in modes]
    table = _table(f"{title}: means over languages on {some['split']}, x 100", "", "languages", *shown)
    for label, one in told.items():
        for number, group in enumerate(("all", "without_source")):
            values = [_shown(rows[label].get(f"languages.{mode}.{group}"), 100) for mode in modes]
            table.add_row(label if number == 0 else "", group_name(one, group), *values)
    return table


def _matrix_table(title: str, one: Mapping[str, Any]) -> Table:
    columns = [name.replace("_", "\n") for name in one["columns"]]
    about = f"{metric_name(one['metric'])} on {one['split']} texts, x 100"
    table = _table(f"{title}, {one['label']}: {about}", "trained on", *columns)
    for kind, values, deviations in zip(one["rows"], one["values"], one["deviations"], strict=True):
        cells = [
            "-" if mean is None else _shown({"mean": mean, "deviation": deviation or 0.0}, 100)
            for mean, deviation in zip(values, deviations, strict=True)
        ]
        table.add_row(kind, *cells)
    return table


def _distance_cell(row: Mapping[str, Mapping[str, float]], key: str) -> str:
    if f"{key}.train" not in row:
        return "-"
    train, dev = (f"{row[f'{key}.{split}']['mean']:.3g}" for split in ("train", "dev"))
    ratio = row.get(f"{key}.ratio")
    return f"{train} / {dev}" + ("" if ratio is None else f" ({ratio['mean']:.2f})")


def _shown(figure: Mapping[str, float] | None, factor: int = 1) -> str:
    """ "0.653 ± 0.012", or times 100 with one digit; no deviation where there is one seed."""
    if figure is None:
        return "-"
    if factor == 100:
        mean, deviation = hundredfold(figure["mean"]), hundredfold(figure["deviation"])
    else:
        mean, deviation = f"{figure['mean']:.3f}", f"{figure['deviation']:.3f}"
    return f"{mean} ± {deviation}" if figure["deviation"] else mean


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        left = column in ("", "loss of", "student", "layers", "languages", "trained on")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table
