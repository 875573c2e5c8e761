"""The plots of `kdlab analyze`: each function takes numbers and gives a figure. Only they load matplotlib.

`groups` maps a label to the runs that differ in their seed only, each as `report.study.numbers` gives it. A group of
several runs is drawn as its mean with a band of one standard deviation. Groups keep their colour and marker in all
plots; the colours are those of Okabe and Ito, and what they tell is told by markers or line styles too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdlab.report.summary import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = Mapping[str, Sequence[Mapping[str, Any]]]
Array = np.ndarray[Any, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
BAND = 0.12  # opacity
PALE = "YlGnBu"  # light is low: black lines and numbers stay readable on most of it
MEASURES = {
    "attention": "attention: KL to the teacher (nats)",
    "hidden": "hidden states: |S − T|² / |T|²",
    "cka": "token states: 1 − linear CKA",
}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "figure.titlesize": 11,
    "legend.fontsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "svg.hashsalt": "kdlab",  # names in an SVG follow from its content: the same numbers give the same file
    "savefig.dpi": 160,
}


@contextmanager
def styled() -> Iterator[None]:
    """What is drawn inside looks the same whatever a user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg; without a date, so that equal numbers give equal files."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    with styled():
        figure.savefig(files[0], metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
    return files


# train/dev gap -----------------------------------------------------------------------------------------------------


def gap(groups: Groups) -> Figure:
    """Loss on train (dashed) and on dev (solid) while each stage was trained; below, the scores where there are any."""
    metric = next(run["metric"] for runs in groups.values() for run in runs)
    lines = _gap_lines(groups)
    stages = list(lines)
    scored = [name for name in stages if any(any(curve["scores"]) for _, _, curves in lines[name] for curve in curves)]
    rows = 2 if scored else 1
    with styled():
        figure = _figure(4.3 * len(stages) + 0.4, 3.0 * rows + 1.1)
        axes = figure.subplots(rows, len(stages), squeeze=False)
        for column, name in enumerate(stages):
            _gap_panel(axes[0][column], lines[name], lambda curve, split: curve["losses"].get(split), 1.0)
            axes[0][column].set_title(f"stage {name}")
            axes[0][column].set_ylabel("loss of the stage's objective" if column == 0 else "")
            if rows == 2 and name not in scored:
                axes[1][column].set_axis_off()
            elif rows == 2:
                _gap_panel(axes[1][column], lines[name], lambda curve, split: _score(curve, split, metric), 100.0)
                axes[1][column].set_ylabel(f"{metric_name(metric)} × 100")
            axes[-1 if name in scored or rows == 1 else 0][column].set_xlabel("epoch")
        looks = {label: look for own in lines.values() for label, look, _ in own}
        order = [*(label for label in groups if label in looks), *(label for label in looks if label not in groups)]
        _legend(figure, {label: looks[label] for label in order}, {"train": {"linestyle": "--"}, "dev": {}})
        figure.suptitle(_title(groups, "train and dev while each stage was trained\nat the right end: dev − train"))
        return figure


Line = tuple[str, dict[str, Any], list[Mapping[str, Any]]]  # label, colour and marker, the curves of its runs


def _gap_lines(groups: Groups) -> dict[str, list[Line]]:
    """By stage, the teacher last: one line for each group, or for each teacher."""
    found: dict[str, list[Line]] = {}
    seen: set[str] = set()
    for number, (label, runs) in enumerate(groups.items()):
        by_stage: dict[str, list[Mapping[str, Any]]] = {}
        for curve in (curve for run in runs for curve in run.get("gap", ())):
            if curve["stage"] != "teacher" or curve["artifact"] not in seen:
                by_stage.setdefault(curve["stage"], []).append(curve)
                seen.add(curve["artifact"])
        for stage, curves in by_stage.items():
            found.setdefault(stage, []).append((label, _look(number), curves))
    if len(teachers := found.get("teacher", [])) == 1:
        found["teacher"] = [("teacher", {"color": "#444444", "marker": "."}, teachers[0][2])]
    return {name: found[name] for name in sorted(found, key=lambda name: name == "teacher")}


def _score(curve: Mapping[str, Any], split: str, metric: str) -> list[float] | None:
    values = [scores.get(split, {}).get(metric) for scores in curve["scores"]]
    return None if not values or None in values else values


def _gap_panel(
    axes: Axes, lines: Sequence[Line], pick: Callable[[Mapping[str, Any], str], list[float] | None], factor: float
) -> None:
    ends: list[tuple[float, str, str]] = []
    lowest, highest = math.inf, -math.inf
    for _, look, curves in lines:
        last: dict[str, list[float]] = {}
        for split, style in (("train", "--"), ("dev", "-")):
            values = [(curve["epochs"], found) for curve in curves if (found := pick(curve, split)) is not None]
            if not values:
                continue
            length = min(len(found) for _, found in values)
            epochs = np.mean([epochs[:length] for epochs, _ in values], axis=0)
            table = factor * np.array([found[:length] for _, found in values])
            _banded(axes, epochs, table, {**look, "linestyle": style, "markevery": max(1, length // 8)})
            last[split] = list(factor * np.array([found[-1] for _, found in values]))
            lowest, highest = min(lowest, float(table.min())), max(highest, float(table.max()))
        if len(last) == 2 and len(last["train"]) == len(last["dev"]):
            gaps = np.subtract(last["dev"], last["train"])
            ends.append((float(np.mean(last["dev"])), look["color"], _signed(gaps, 1 if factor > 1 else 3)))
    if lowest > 0 and highest / lowest > 30:
        axes.set_yscale("log")
    axes.margins(x=0.03)
    _end_labels(axes, ends)


def _signed(values: Array, digits: int) -> str:
    text = f"{np.mean(values):+.{digits}f}".replace("-", "−")
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def _end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Texts beside the ends of lines, moved apart so that none covers another."""
    if not ends:
        return
    axes.get_ylim()  # settles the limits
    to_share = axes.transScale + axes.transLimits
    shares = [float(to_share.transform((0.0, y))[1]) for y, _, _ in ends]
    for place, number in _apart(shares, 0.075):
        _, colour, text = ends[number]
        axes.annotate(
            text, (1.0, place), xycoords="axes fraction", xytext=(4, 0), textcoords="offset points", va="center",
            color=colour, fontsize=8,
        )  # fmt: skip


def _apart(places: Sequence[float], least: float) -> list[tuple[float, int]]:
    """(new place, number) of each place: in the same order, at least so far apart, moved as little as possible."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    moved = [places[number] for number in order]
    for _ in range(200):
        for left in range(len(moved) - 1):
            lack = least - (moved[left + 1] - moved[left])
            if lack > 1e-9:
                moved[left] -= lack / 2
                moved[left + 1] += lack / 2
    return list(zip(moved, order, strict=True))


# loss surface ------------------------------------------------------------------------------------------------------


def surface(groups: Groups) -> Figure:
    """The rise of the training loss around each student (the mean over seeds), on one scale; and along the distance."""
    from matplotlib import patheffects
    from matplotlib.colors import BoundaryNorm

    found = {label: [run["surface"] for run in runs if "surface" in run] for label, runs in groups.items()}
    found = {label: ones for label, ones in found.items() if ones}
    rises = {label: np.mean([_rise(one) for one in ones], axis=0) for label, ones in found.items()}
    some = next(iter(found.values()))[0]
    low, high = min(float(one.min()) for one in rises.values()), max(float(one.max()) for one in rises.values())
    levels = _levels(low, high, some["tolerance"])
    columns = min(4, len(rises) + 1)
    rows = -(-(len(rises) + 1) // columns)
    with styled():
        figure = _figure(3.4 * columns + 1.2, 3.4 * rows + 0.8)
        figure.get_layout_engine().set(w_pad=0.08)  # type: ignore[union-attr, call-arg]
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        colours, norm = _bands(levels), BoundaryNorm(levels, len(levels) - 1)
        for number, (label, rise) in enumerate(rises.items()):
            axes, axis = panels[number], np.array(found[label][0]["axis"])
            fine, smooth = _smoothed(axis, rise)
            smooth = np.clip(smooth, levels[0], levels[-1])
            filled = axes.contourf(fine, fine, smooth.T, levels=levels, cmap=colours, norm=norm)
            widths = [1.8 if math.isclose(level, some["tolerance"]) else 0.6 for level in levels[1:-1]]
            lines = axes.contour(fine, fine, smooth.T, levels=levels[1:-1], colors="black", linewidths=widths)
            told = [level for level in levels[1:-1] if level >= some["tolerance"]]  # those within lie too close
            for text in axes.clabel(lines, told, fmt="%g", fontsize=7, inline=True):
                text.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="white")])
            axes.plot(
                *np.meshgrid(axis, axis), linestyle="none", marker=".", markersize=1.2, color="#555555", alpha=0.6
            )
            axes.plot(0, 0, marker="*", markersize=11, color="#D55E00", markeredgecolor="white", zorder=5)
            axes.set(aspect="equal", title=f"{label}\n{_flatness_title(found[label])}")
            axes.set_xlabel("first direction (filter norms)")
            axes.set_ylabel("second direction" if number % columns == 0 else "")
            ticks = [float(axis[-1]) * share for share in (-1, -0.5, 0, 0.5, 1)]
            axes.set(xticks=ticks, yticks=ticks)
            axes.grid(False)
        bar = figure.colorbar(filled, ax=panels[: len(rises)], ticks=levels, format="%g", aspect=28 * rows, pad=0.02)
        bar.set_label(f"rise of the training loss ({_unit(groups)})")
        _profile_panel(panels[len(rises)], found)
        for axes in panels[len(rises) + 1 :]:
            axes.set_axis_off()
        figure.suptitle(
            f"Loss surface around the student (star) on {some['rows']} training rows\n"
            "measured at the dots; the bold line bounds the flat area"
            + ("; grey: below the student's loss" if low < 0 else "")
        )
        return figure


def _bands(levels: Sequence[float]) -> Any:
    """A colour for each band between two levels: from light to dark above 0, grey below."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    above = len(levels) - 1 - (levels[0] < 0)
    shades = matplotlib.colormaps[PALE](np.linspace(0.02, 0.95, above)).tolist()
    return ListedColormap([*(["#C9C9C9"] if levels[0] < 0 else []), *shades])


def _smoothed(axis: Array, values: Array) -> tuple[Array, Array]:
    """(a finer axis, the values on it): a cubic surface through the points, for the eye only."""
    from scipy.interpolate import RectBivariateSpline

    fine = np.linspace(axis[0], axis[-1], 12 * (len(axis) - 1) + 1)
    degree = min(3, len(axis) - 1)
    return fine, RectBivariateSpline(axis, axis, values, kx=degree, ky=degree)(fine, fine)


def _rise(one: Mapping[str, Any]) -> Array:
    rise: Array = np.array(one["loss"]) - one["center"]
    return rise


def _levels(lowest: float, highest: float, tolerance: float) -> list[float]:
    """Boundaries 1, 2, 5, 10, ... up to the highest rise and down to 1/100 of it, the tolerance, 0, what lies below."""
    top = max(highest, 1e-6)
    steps = [float(f"{digit}e{power}") for power in range(-8, 9) for digit in (1, 2, 5)]
    inner = {step for step in steps if top / 100 <= step < top} | ({tolerance} if tolerance < top else set())
    below = [] if lowest >= 0 else [-next(step for step in steps if step >= -lowest)]
    return [*below, 0.0, *sorted(inner), next(step for step in steps if step >= top)]


def _flatness_title(ones: Sequence[Mapping[str, Any]]) -> str:
    rise = _with_deviation([one["mean_rise"] for one in ones], 3)
    area = _with_deviation([100 * one["flat_area"] for one in ones], 0)
    return f"mean rise {rise}, flat area {area} %"


def _profile_panel(axes: Axes, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for number, (label, ones) in enumerate(found.items()):
        distance = np.array(ones[0]["profile"]["distance"])
        table = np.array([one["profile"]["rise"] for one in ones])
        _banded(axes, distance, table, {**_look(number), "markevery": 4, "label": label})
    axes.axhline(next(iter(found.values()))[0]["tolerance"], color="#666666", linewidth=0.9, linestyle=":")
    axes.set(title="mean rise on a circle\n(dotted: the edge of the flat area)", xlabel="distance from the student")
    axes.set_ylabel("rise of the training loss")
    axes.set_box_aspect(1)
    axes.margins(x=0.02)
    if len(found) > 1:
        axes.legend(loc="upper left", handlelength=1.6)


def _unit(groups: Groups) -> str:
    regression = any(
        "pearson" in run["metric"] or "spearman" in run["metric"] for runs in groups.values() for run in runs
    )
    return "squared label units" if regression else "nats"


# noise on the weights ----------------------------------------------------------------------------------------------


def noise(groups: Groups) -> Figure:
    """Score and loss on dev under growing noise on all weights."""
    runs = [run for runs in groups.values() for run in runs]
    metric = runs[0]["metric"]
    with styled():
        figure = _figure(8.6, 3.9 if len(groups) < 5 else 4.3)
        figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
        left, right = figure.subplots(1, 2)
        for number, ones in enumerate(groups.values()):
            found = [run["noise"] for run in ones if "noise" in run]
            if not found:
                continue
            for axes, key, factor in ((left, "score", 100.0), (right, "loss", 1.0)):
                alone = len(found) == 1
                # of one run, the spread over its draws; of several, over their means
                levels = found[0][key]
                table = [[level["mean"] for level in one[key]] for one in found]
                band = [level["deviation"] for level in levels] if alone else None
                _banded(axes, found[0]["scales"], factor * np.array(table), _look(number), band=band, factor=factor)
        floors = {run["majority"] for run in runs if run.get("majority") is not None}
        if len(floors) == 1:
            floor = 100 * floors.pop()
            left.axhline(floor, color="#666666", linewidth=0.9, linestyle=":")
            left.annotate(
                "majority class", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                xytext=(0, 2), textcoords="offset points", fontsize=7.5, color="#555555",
            )  # fmt: skip
        left.set_ylabel(f"{metric_name(metric)} on dev × 100")
        right.set_ylabel(f"hard-label loss on dev ({_unit(groups)})")
        for axes in (left, right):
            axes.set_xlabel("standard deviation of the noise / RMS of the weights")
        several = any(len(ones) > 1 for ones in groups.values())
        over = "seeds" if several else "draws"
        figure.suptitle(_title(groups, f"Gaussian noise on every weight; bands: one deviation over {over}"))
        if len(groups) > 1:
            _legend(figure, {label: _look(number) for number, label in enumerate(groups)}, {})
        return figure


# distance to the teacher -------------------------------------------------------------------------------------------


def distance(groups: Groups) -> Figure:
    """Each pair of layers as a bar from its distance on train (filled) to that on dev (open)."""
    rows = _distance_rows(groups)
    pairs = sorted({pair for _, ones, _ in rows for one in ones for pair in map(tuple, one["pairs"])})
    shown = [name for name in MEASURES if any(_values(ones, which, "dev", name, pair)
             for _, ones, which in rows for pair in pairs)]  # fmt: skip
    slot = 0.8 / len(pairs)
    with styled():
        figure = _figure(3.3 * len(shown) + 2.0, max(0.17 * len(pairs), 0.3) * len(rows) + 1.6)
        panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, measure in zip(panels, shown, strict=True):
            for number, (_, ones, which) in enumerate(rows):
                for place, pair in enumerate(pairs):
                    ends = [_values(ones, which, split, measure, pair) for split in ("train", "dev")]
                    if not (ends[0] and ends[1]):
                        continue
                    y = -number + 0.4 - slot * (place + 0.5)
                    look = _look(place)
                    means = [float(np.mean(values)) for values in ends]
                    axes.plot(means, [y, y], color=look["color"], linewidth=1.4)
                    for mean, values, face in zip(means, ends, (look["color"], "white"), strict=True):
                        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                        axes.errorbar(
                            mean, y, xerr=deviation, marker=look["marker"], color=look["color"],
                            markerfacecolor=face, elinewidth=0.7, capsize=1.5, zorder=3,
                        )  # fmt: skip
            for line in range(1, len(rows)):
                axes.axhline(-line + 0.5, color="#D0D0D0", linewidth=0.6)
            axes.set_xlabel(MEASURES[measure])
            axes.set_xlim(left=0)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks([-number for number in range(len(rows))], [label for label, _, _ in rows])
        panels[0].set_ylim(-len(rows) + 0.5, 0.5)
        looks = {f"student {i} – teacher {j}": _look(place) for place, (i, j) in enumerate(pairs)}
        ends_shown = {
            "train": {"linestyle": "none", "marker": "o", "markerfacecolor": "#444444"},
            "dev": {"linestyle": "none", "marker": "o", "markerfacecolor": "white"},
        }
        _legend(figure, looks, ends_shown)
        figure.suptitle(_title(groups, "distance of the student's layers to the teacher's, on train and on dev"))
        return figure


def _distance_rows(groups: Groups) -> list[tuple[str, list[Mapping[str, Any]], str]]:
    """(label, the runs' distances, which student): what the layer stage left, and the finished student."""
    told = {"layers": "after layers", "student": "finished"}
    rows = []
    for label, runs in groups.items():
        ones = [run["distance"] for run in runs if "distance" in run]
        rows += [
            (f"{label}\n{told[which]}" if len(groups) > 1 else told[which], ones, which)
            for which in told
            if ones and all(which in one["students"] for one in ones)
        ]
    return rows


def _values(
    ones: Sequence[Mapping[str, Any]], which: str, split: str, measure: str, pair: tuple[int, ...]
) -> list[float]:
    """The measure of a pair of layers in each run that has it."""
    found = []
    for one in ones:
        pairs = [tuple(own) for own in one["pairs"]]
        value = one["students"][which][split][measure][pairs.index(pair)] if pair in pairs else None
        found += [] if value is None else [value]
    return found


def similarity(groups: Groups) -> Figure:
    """Linear CKA of every student layer with every teacher layer on dev, the finished student; the mean over seeds."""
    found = {
        label: [run["distance"] for run in runs if "distance" in run]
        for label, runs in groups.items()
        if any("distance" in run for run in runs)
    }
    tables = {
        label: np.mean([one["students"]["student"]["dev"]["similarity"] for one in ones], axis=0)
        for label, ones in found.items()
    }
    height, width = next(iter(tables.values())).shape
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    cell = 0.42
    with styled():
        figure = _figure((cell * width + 0.75) * columns + 1.1, (cell * height + 0.95) * rows + 0.6)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, (label, table) in zip(panels, tables.items(), strict=False):
            image = axes.imshow(table, cmap=PALE, vmin=0, vmax=1, origin="lower")
            for (i, j), value in np.ndenumerate(table):
                colour = "white" if value > 0.6 else "black"
                axes.text(j, i, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7.5, color=colour)
            for i, j in found[label][0]["mapped"]:
                axes.add_patch(_frame(j, i))
            axes.set(title=label, xticks=range(width), yticks=range(height))
            axes.set(xlabel="teacher layer", ylabel="student layer" if axes in panels[::columns] else "")
            axes.grid(False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        for axes in panels[len(tables) :]:
            axes.set_axis_off()
        bar = figure.colorbar(image, ax=panels, aspect=12 * rows, pad=0.02)
        bar.set_label("linear CKA on dev")
        framed = any(ones[0]["mapped"] for ones in found.values())
        note = "; framed: the run's layer map" if framed else ""
        figure.suptitle(f"Likeness of the layers (0: embeddings){note}")
        return figure


def _frame(x: float, y: float, *, height: float = 1.0) -> Any:
    """Around the cells whose middle is at (x, y)."""
    from matplotlib.patches import Rectangle

    corner = (x - 0.5, y - height / 2)
    return Rectangle(corner, 1, height, fill=False, edgecolor="#D55E00", linewidth=2, zorder=4, clip_on=False)


# several languages -------------------------------------------------------------------------------------------------

MODES = {  # of inference, and kinds of texts
    "original": "original",
    "translated": "translated",
    "both": "both",
    "back_translated": "back-\ntranslated",
}


def gap_by_language(groups: Groups) -> Figure:
    """Loss on train (dashed) and on the dev rows of each language while the student was trained; below, the scores."""
    metric = next(run["metric"] for runs in groups.values() for run in runs)
    found = {label: [curve for run in runs for curve in run.get("gap", ())] for label, runs in groups.items()}
    found = {label: curves for label, curves in found.items() if curves}
    samples = dict.fromkeys(name for curves in found.values() for curve in curves for name in curve["losses"])
    languages = [name for name in samples if name.startswith("dev.")]
    looks = {name: {**_look(number), "linewidth": 1.1} for number, name in enumerate(languages)}
    looks |= {"train": {"color": "#444444", "linestyle": "--"}, "dev": {"color": "#444444", "linewidth": 2.6}}
    scored = any(any(curve["scores"]) for curves in found.values() for curve in curves)
    columns, per_group = min(4, len(found)), 2 if scored else 1
    rows = per_group * -(-len(found) // columns)
    picks: list[tuple[Callable[[Mapping[str, Any], str], list[float] | None], float, str]] = [
        (lambda curve, name: curve["losses"].get(name), 1.0, "loss of the objective"),
        (lambda curve, name: _score(curve, name, metric), 100.0, f"{metric_name(metric)} × 100"),
    ]
    with styled():
        figure = _figure(3.8 * columns + 0.4, 2.7 * rows + 1.1)
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for number, (label, curves) in enumerate(found.items()):
            turn, column = divmod(number, columns)
            for row, (pick, factor, name) in enumerate(picks[:per_group]):
                axes = panels[per_group * turn + row][column]
                axes.set_axis_on()
                for sample, look in looks.items():
                    values = [(curve["epochs"], own) for curve in curves if (own := pick(curve, sample)) is not None]
                    if not values:
                        continue
                    length = min(len(own) for _, own in values)
                    epochs = np.mean([epochs[:length] for epochs, _ in values], axis=0)
                    mean = factor * np.mean([own[:length] for _, own in values], axis=0)
                    axes.plot(epochs, mean, **{**look, "markevery": max(1, length // 8)})
                axes.set_ylabel(name if column == 0 else "")
                axes.margins(x=0.03)
            panels[per_group * turn][column].set_title(label)
            panels[per_group * turn + per_group - 1][column].set_xlabel("epoch")
        named = {name.removeprefix("dev."): look for name, look in looks.items() if name in languages}
        _legend(figure, named, {"train": looks["train"], "mean of dev": looks["dev"]})
        several = any(len(curves) > 1 for curves in found.values())
        figure.suptitle(
            "Train, and dev by language,\nwhile the student was trained" + (" (mean over seeds)" if several else "")
        )
        return figure


def languages(groups: Groups) -> Figure:
    """The metric of each language and of their means in each mode of inference; the run's own mode is framed."""
    found = {label: [run["languages"] for run in runs if "languages" in run] for label, runs in groups.items()}
    found = {label: ones for label, ones in found.items() if ones}
    some = next(iter(found.values()))[0]
    metric = next(run["metric"] for runs in groups.values() for run in runs)
    names = list(dict.fromkeys(name for ones in found.values() for of in ones[0]["scores"].values() for name in of))
    modes = [mode for mode in MODES if any(mode in ones[0]["scores"] for ones in found.values())]
    means = {"all": "mean", "without_source": f"mean without {some['source_language']}"}
    tables = {
        label: np.array(
            [
                *([_seed_mean(ones, "scores", mode, name) for mode in modes] for name in names),
                *([_seed_mean(ones, "means", mode, group) for mode in modes] for group in means),
            ]
        )
        for label, ones in found.items()
    }
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    height = len(names) + len(means)
    with styled():
        figure = _figure((0.78 * len(modes) + 0.35) * columns + 2.6, (0.27 * height + 0.75) * rows + 0.7)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        image: Any = None
        for axes, (label, table) in zip(panels, tables.items(), strict=False):
            image = _heat(axes, table, list(tables.values()), digits=1)
            axes.axhline(len(names) - 0.5, color="white", linewidth=4)
            axes.set_title(label)
            axes.set_xticks(range(len(modes)), [MODES[mode] for mode in modes])
            axes.set_yticks(range(height), [*names, *means.values()])
            if (own := found[label][0]["inference"]) in modes:
                axes.add_patch(_frame(modes.index(own), -0.5 + height / 2, height=height))
        for axes in panels[len(tables) :]:
            axes.set_axis_off()
        bar = figure.colorbar(image, ax=panels, aspect=14 * rows, pad=0.02)
        bar.set_label(f"{metric_name(metric)} × 100")
        figure.suptitle(f"{metric_name(metric)} × 100 on {some['split']}; framed: the run's own inference")
        return figure


def _seed_mean(ones: Sequence[Mapping[str, Any]], kind: str, mode: str, name: str) -> float:
    """Of one cell over the runs that have it, times 100; NaN if none has."""
    values = [one[kind][mode][name] for one in ones if name in one[kind].get(mode, {})]
    return 100 * float(np.mean(values)) if values else math.nan


def artifacts(matrices: Sequence[Mapping[str, Any]]) -> Figure:
    """Kind of training texts by kind of scored texts; framed is the best row of each column.

    matrices: as `report.study.matrices` gives them.
    """
    short = {"original": "OR", "translated": "MT", "back_translated": "BT"}
    tables = [np.array(one["values"], dtype=float) * 100 for one in matrices]
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    metrics = dict.fromkeys(metric_name(one["metric"]) for one in matrices)
    with styled():
        figure = _figure(3.3 * columns + 1.5, 2.9 * rows + 0.8)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        image: Any = None
        for number, (axes, one, table) in enumerate(zip(panels, matrices, tables, strict=False)):
            image = _heat(axes, table, tables, digits=1, deviations=one["deviations"])
            for column in range(table.shape[1]):
                if np.isfinite(table[:, column]).sum() > 1:
                    axes.add_patch(_frame(column, int(np.nanargmax(table[:, column]))))
            axes.set_title(one["label"])
            axes.set_xticks(range(table.shape[1]), [f"{MODES[kind]}\n({short[kind]})" for kind in one["columns"]])
            axes.set_yticks(range(table.shape[0]), [f"{MODES[kind]} ({short[kind]})" for kind in one["rows"]])
            axes.set_xlabel("texts of the test")
            axes.set_ylabel("texts of training" if number % columns == 0 else "")
        for axes in panels[len(tables) :]:
            axes.set_axis_off()
        bar = figure.colorbar(image, ax=panels, aspect=14 * rows, pad=0.02)
        bar.set_label(f"{', '.join(metrics)} × 100")
        some = matrices[0]
        figure.suptitle(
            f"{', '.join(metrics)} × 100 on {some['split']}, mean over {len(some['languages'])} languages\n"
            "framed: the best training texts for each kind of test texts"
        )
        return figure


def _heat(
    axes: Axes,
    table: Array,
    tables: Sequence[Array],
    *,
    digits: int,
    deviations: Sequence[Sequence[float | None]] | None = None,
) -> Any:
    """The table as colours, on one scale with `tables`, with its numbers; what is not known is grey.

    deviations: fractions, of a table of hundreds.
    """
    import matplotlib

    everything = np.concatenate([one.ravel() for one in tables])
    low, high = float(np.nanmin(everything)), float(np.nanmax(everything))
    colours = matplotlib.colormaps[PALE].with_extremes(bad="#EEEEEE")
    span = max(high - low, 1e-6)
    image = axes.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=low, vmax=low + span, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        known = math.isfinite(value)
        text = f"{value:.{digits}f}" if known else "–"
        deviation = deviations[i][j] if deviations is not None else None
        text += f"\n± {100 * deviation:.{digits}f}" if deviation is not None else ""
        dark = known and (value - low) / span > 0.55
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


# what all of them share --------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    """In inches; drawn without a window and without the state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(groups: Groups, text: str) -> str:
    """What is seen; of which run, if there is only one label."""
    return f"{next(iter(groups))}: {text}" if len(groups) == 1 else text[0].upper() + text[1:]


def _look(number: int) -> dict[str, Any]:
    """Colour and marker of the group of this number; beyond eight, known colours with other markers."""
    turn, place = divmod(number, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[(place + turn) % len(MARKERS)]}


def _banded(
    axes: Axes,
    x: Any,
    table: Array,
    look: Mapping[str, Any],
    *,
    band: Sequence[float] | None = None,
    factor: float = 1.0,
) -> None:
    """The mean of the rows of `table` as a line, with one deviation of them, or `band`, around it."""
    mean = table.mean(axis=0)
    axes.plot(x, mean, **look)
    spread = factor * np.array(band) if band is not None else table.std(axis=0, ddof=1) if len(table) > 1 else None
    if spread is not None:
        axes.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=BAND, linewidth=0)


def _with_deviation(values: Sequence[float], digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def _legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Below the panels: every label, then what the line styles or markers mean."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    handles += [Line2D([], [], label=name, **{"color": "#444444", **style}) for name, style in styles.items()]
    columns = max(
        1, int(figure.get_size_inches()[0] * 13 / (max(len(str(handle.get_label())) for handle in handles) + 6))
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), handlelength=2.2)
