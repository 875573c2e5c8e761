"""Where things stand in the drawings of the page: scales, lines, points and boxes in the units of an SVG.

Only numbers are made here; the markup is in `templates/charts.html`, the colours are in `templates/page.css`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Curve = tuple[Array, Array]  # steps and values of one run

WIDTH, HEIGHT = 320, 204  # of a panel; text in it is 11 units high
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 8, 32  # margins
CHARACTER = 6.1  # mean width of a letter at that size
RATIO = 30  # a panel of positive values that are so far apart has a logarithmic scale
MARKS = 5  # markers on a long line
COLOURS, DASHES, MARKERS = 8, 5, 8  # kinds that the style sheet and the markers of the page have


class Look(NamedTuple):
    """What a series is drawn with in all panels: no two of the first forty are alike, with or without colour."""

    number: int
    colour: int
    dash: int
    marker: int


def look(number: int) -> Look:
    turn, place = divmod(number, COLOURS)
    return Look(number, place, (place + turn) % DASHES, (place + 3 * turn) % MARKERS)


SHARED = Look(-1, -1, 0, 0)  # of what all series have in common


class Tick(NamedTuple):
    place: float
    text: str


@dataclass(frozen=True)
class Scale:
    """From values to units: `low` is at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    show: Callable[[float], str] = "{:g}".format

    @classmethod
    def around(
        cls,
        values: Sequence[float] | Array,
        start: float,
        end: float,
        *,
        log: bool | None = None,
        margin: float = 0.04,
        show: Callable[[float], str] = "{:g}".format,
    ) -> Scale:
        """One that holds all values, with a margin on both sides; log None: as the values ask for."""
        low, high = float(np.min(values)), float(np.max(values))
        if log is None:
            log = low > 0 and high / low > RATIO
        if log:
            low, high = math.log10(low), math.log10(high)
        room = margin * (high - low) if high > low else abs(high) * 0.05 or 0.5
        low, high = low - room, high + room
        return cls(10**low if log else low, 10**high if log else high, start, end, log, show)

    def __call__(self, values: Any) -> Any:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        inner = np.log10(values) if self.log else np.asarray(values, dtype=float)
        return self.start + (inner - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[Tick]:
        """Round values within the scale: so many, or some more or fewer."""
        values = _decades(self.low, self.high) if self.log else []
        values = values if len(values) > 1 else _steps(self.low, self.high, about)
        return [Tick(round(float(self(value)), 1), self.show(value)) for value in values]


def _steps(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    span = math.log10(high / low)
    digits = (1, 2, 5) if span < 1.7 else (1, 3) if span < 3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for digit in digits if low <= (value := float(f"{digit}e{power}")) <= high]


# curves ------------------------------------------------------------------------------------------------------------


class Track(NamedTuple):
    """A line to draw: the mean over runs that differ in their seed only."""

    label: str
    look: Look
    series: Sequence[int]  # numbers of the series that it is of; () of all
    runs: Sequence[Curve]
    thin: bool = False  # drawn as a counterpart of the series' other line in the panel


class Line(NamedTuple):
    look: Look
    series: Sequence[int]
    thin: bool
    title: str
    path: str  # in tenths of a unit
    band: str  # from the lowest to the highest run, likewise; "" of one run
    marks: list[tuple[float, float]]


class Panel(NamedTuple):
    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    log: bool
    lines: list[Line]


def panel(title: str, tracks: Sequence[Track], *, most: int, factor: float = 1.0) -> Panel | None:
    """Values by step, each line of at most `most` points; None if there is nothing to draw. factor: on all values."""
    drawn = [(track, found) for track in tracks if (found := combined(track.runs, most)) is not None]
    if not drawn:
        return None
    drawn = [(track, (x, factor * mean, factor * low, factor * high)) for track, (x, mean, low, high) in drawn]
    x = Scale.around([0, *(found[0][-1] for _, found in drawn)], LEFT, WIDTH - RIGHT, log=False, margin=0, show=short)
    ends = np.concatenate([np.concatenate([found[2], found[3]]) for _, found in drawn])
    y = Scale.around(ends, HEIGHT - BOTTOM, TOP, show=short)
    lines = []
    for track, (steps, mean, low, high) in drawn:
        places = np.unique(np.linspace(0, len(steps) - 1, MARKS if len(steps) > 12 else len(steps)).astype(int))
        across, down = x(steps), y(mean)
        several = f", mean of {len(track.runs)} seeds" if len(track.runs) > 1 else ""
        lines.append(
            Line(
                track.look,
                track.series,
                track.thin,
                f"{track.label}: {mean[-1]:.4g} at step {round(steps[-1])}{several}",
                path(across, down),
                path(np.concatenate([across, across[::-1]]), np.concatenate([y(high), y(low)[::-1]])) + "z"
                if len(track.runs) > 1
                else "",
                [(round(float(across[one]), 1), round(float(down[one]), 1)) for one in places],
            )
        )
    return Panel(title, x.ticks(4), y.ticks(5), y.log, lines)


def combined(runs: Sequence[Curve], most: int) -> tuple[Array, Array, Array, Array] | None:
    """(steps, mean, lowest, highest) over runs, as far as all of them go; None where they have nothing in common.

    Of more than `most` steps, or of runs with unlike steps, neighbours are averaged.
    """
    runs = [(steps[known], values[known]) for steps, values in runs if (known := np.isfinite(values)).any()]
    if not runs:
        return None
    first = runs[0][0]
    alike = all(len(steps) == len(first) and (steps == first).all() for steps, _ in runs)
    if alike and len(first) <= most:
        table = np.array([values for _, values in runs])
        return first, table.mean(axis=0), table.min(axis=0), table.max(axis=0)
    low, high = min(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs)
    bins = max(1, min(most, *(len(steps) for steps, _ in runs)))
    sums = np.zeros((3, len(runs), bins))  # points, their steps, their values
    for number, (steps, values) in enumerate(runs):
        within = steps <= high
        places = np.minimum(((steps[within] - low) / max(high - low, 1) * bins).astype(int), bins - 1)
        for row, weights in enumerate((np.ones(len(places)), steps[within], values[within])):
            sums[row, number] = np.bincount(places, weights, minlength=bins)
    sums = sums[:, :, (sums[0] > 0).all(axis=0)]
    if not sums.size:
        return None
    table = sums[2] / sums[0]
    return (sums[1] / sums[0]).mean(axis=0), table.mean(axis=0), table.min(axis=0), table.max(axis=0)


def path(x: Array, y: Array) -> str:
    """A line through points, in whole tenths of a unit and relative: a third of the bytes."""
    places = np.rint(10 * np.column_stack([x, y])).astype(int)
    steps = np.diff(places, axis=0)
    moves = " ".join(f"{across} {down}" for across, down in steps.tolist()).replace(" -", "-")
    return f"M{places[0][0]} {places[0][1]}l{moves or '0 0'}"


def short(value: float) -> str:
    """A tick: 15000 is 15k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}".replace("-", "−")


# points ------------------------------------------------------------------------------------------------------------


class Dot(NamedTuple):
    """What is to be placed in a scatter plot."""

    label: str
    look: Look
    x: float
    y: float
    deviation: float | None
    title: str
    hollow: bool = False


class Spot(NamedTuple):
    dot: Dot
    x: float
    y: float
    low: float
    high: float
    label: tuple[float, float, str] | None  # place and anchor of the text; None: there was no room


class Scatter(NamedTuple):
    x_title: str
    title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    spots: list[Spot]
    front: str  # the dots that no other one is both better and smaller than; "" of one


def scatter(dots: Sequence[Dot], x_title: str, title: str) -> Scatter:
    """y: the more the better; x: the less the better."""
    xs = [dot.x for dot in dots]
    log = min(xs) > 0 and max(xs) / min(xs) > 5
    x = Scale.around(xs, LEFT + 8, WIDTH - RIGHT - 8, log=log, margin=0.08, show=short)
    ends = [dot.y + sign * (dot.deviation or 0) for dot in dots for sign in (-1, 1)]
    y = Scale.around(ends, HEIGHT - BOTTOM, TOP, log=False, margin=0.1)
    places = [(float(x(dot.x)), float(y(dot.y))) for dot in dots]
    labels = _labels([dot.label for dot in dots], places)
    spots = [
        Spot(
            dot,
            round(across, 1),
            round(down, 1),
            round(float(y(dot.y - (dot.deviation or 0))), 1),
            round(float(y(dot.y + (dot.deviation or 0))), 1),
            label,
        )
        for dot, (across, down), label in zip(dots, places, labels, strict=True)
    ]
    return Scatter(x_title, title, x.ticks(4), y.ticks(5), spots, _front(dots, places))


def _front(dots: Sequence[Dot], places: Sequence[tuple[float, float]]) -> str:
    best = -math.inf
    corners: list[tuple[float, float]] = []
    for dot, (across, down) in sorted(zip(dots, places, strict=True), key=lambda one: (one[0].x, -one[0].y)):
        if dot.y > best:
            best = dot.y
            corners += [(across, corners[-1][1])] if corners else []
            corners.append((across, down))
    return path(*np.array(corners).T) if len(corners) > 1 else ""


def _labels(
    texts: Sequence[str], places: Sequence[tuple[float, float]]
) -> list[tuple[float, float, str] | None]:  # fmt: skip
    """A free place beside each dot, else None."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    found: list[tuple[float, float, str] | None] = []
    for text, (x, y) in zip(texts, places, strict=True):
        width = CHARACTER * len(text)
        tries = [(x + 8, y + 4, "start"), (x - 8, y + 4, "end"), (x, y - 9, "middle"), (x, y + 17, "middle")]
        tries += [(x + 7, y - 6, "start"), (x - 7, y - 6, "end"), (x + 7, y + 14, "start"), (x - 7, y + 14, "end")]
        for across, down, anchor in tries:
            left = across - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, down - 9, left + width, down + 2)
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM + 4
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append((round(across, 1), round(down, 1), anchor))
                break
        else:
            found.append(None)
    return found


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# a score in a cell of a table ---------------------------------------------------------------------------------------


class Strip(NamedTuple):
    """In a box of STRIP units: the mean, its interval, the single seeds, and what it is compared with."""

    mean: float
    interval: tuple[float, float] | None
    seeds: list[float]
    baseline: float | None


STRIP = (104, 16)


def strip(
    mean: float,
    interval: Sequence[float] | None,
    seeds: Sequence[float],
    baseline: float | None,
    scale: Scale,
) -> Strip:
    def at(value: float) -> float:
        return round(float(scale(value)), 1)

    return Strip(
        at(mean),
        None if interval is None else (at(interval[0]), at(interval[1])),
        [at(value) for value in seeds],
        None if baseline is None else at(baseline),
    )


# the graph of a run -------------------------------------------------------------------------------------------------

BOX, GAP, BETWEEN, THIN = (248, 56), 20, 40, 14  # size of a stage, space beside it and between levels, a passing edge


class Box(NamedTuple):
    stage: Mapping[str, Any]
    x: float
    y: float


class Flow(NamedTuple):
    width: float
    height: float
    boxes: list[Box]
    edges: list[tuple[str, bool, str]]  # path, whether it is for the order only, title


def flow(stages: Sequence[Mapping[str, Any]]) -> Flow:
    """The stages of a graph in levels, each below all that it needs; given as `kdlab.graph.Graph.describe` tells them.

    An edge over several levels passes between the boxes; orders in the levels come from the means of neighbours.
    """
    known = {stage["artifact"]: stage for stage in stages}
    needs = {
        name: list(dict.fromkeys(one for one in [*stage["inputs"].values(), *stage["after"]] if one in known))
        for name, stage in known.items()
    }
    level: dict[str, int] = {}
    for name in known:  # as they can run
        level[name] = 1 + max((level.get(one, -1) for one in needs[name]), default=-1)
    for name in reversed(known):  # a source stands right above what needs it
        users = [level[one] for one, own in needs.items() if name in own]
        if not needs[name] and users:
            level[name] = min(users) - 1
    rows: list[list[str]] = [[] for _ in range(1 + max(level.values(), default=0))]
    for name in known:
        rows[level[name]].append(name)
    links: list[tuple[str, str]] = []  # between neighbouring levels
    chains: dict[tuple[str, str], list[str]] = {}
    for name, own in needs.items():
        for need in own:
            chain = [need]
            for depth in range(level[need] + 1, level[name]):
                chain.append(f"{need}\0{name}\0{depth}")
                rows[depth].append(chain[-1])
            chain.append(name)
            chains[need, name] = chain
            links += pairwise(chain)
    _order(rows, links)
    middles, width = _middles(rows, links, known)
    boxes = [
        Box(known[name], round(middles[name] - BOX[0] / 2, 1), round(depth * (BOX[1] + BETWEEN), 1))
        for depth, row in enumerate(rows)
        for name in row
        if name in known
    ]
    edges = []
    for (need, name), chain in chains.items():
        only_order = need not in known[name]["inputs"].values()
        ports = [key for key, value in known[name]["inputs"].items() if value == need]
        title = f"{known[need]['label']} to {known[name]['label']}" + (f" ({', '.join(ports)})" if ports else "")
        edges.append((_bend([middles[one] for one in chain], level[need]), only_order, title))
    height = len(rows) * (BOX[1] + BETWEEN) - BETWEEN
    return Flow(width, max(height, BOX[1]), boxes, edges)


def _order(rows: list[list[str]], links: Sequence[tuple[str, str]]) -> None:
    """Sort each level by where its neighbours stand, downwards and upwards in turn."""
    for turn in range(6):
        down = turn % 2 == 0
        near: dict[str, list[str]] = {}
        for upper, lower in links:
            near.setdefault(lower if down else upper, []).append(upper if down else lower)
        places = {name: number / max(len(row) - 1, 1) for row in rows for number, name in enumerate(row)}
        for row in rows if down else reversed(rows):
            old = {name: places[name] for name in row}
            keys = {
                name: sum(places[one] for one in near[name]) / len(near[name]) if name in near else old[name]
                for name in row
            }
            row.sort(key=lambda name: keys[name])
            places |= {name: number / max(len(row) - 1, 1) if len(row) > 1 else 0.5 for number, name in enumerate(row)}


def _middles(
    rows: Sequence[Sequence[str]], links: Sequence[tuple[str, str]], known: Mapping[str, Any]
) -> tuple[dict[str, float], float]:
    """The middle of everything in a level, near to the middle of its neighbours; and the width of all."""
    sizes = {name: BOX[0] if name in known else THIN for row in rows for name in row}
    totals = [sum(sizes[name] for name in row) + GAP * (len(row) - 1) for row in rows]
    width = max(totals, default=BOX[0])
    middles: dict[str, float] = {}
    for row, total in zip(rows, totals, strict=True):
        left = (width - total) / 2
        for name in row:
            middles[name] = left + sizes[name] / 2
            left += sizes[name] + GAP
    near: dict[str, list[str]] = {}
    for upper, lower in links:
        near.setdefault(upper, []).append(lower)
        near.setdefault(lower, []).append(upper)
    for _ in range(12):
        for row in rows:
            for number, name in enumerate(row):
                if name not in near:
                    continue
                wish = sum(middles[one] for one in near[name]) / len(near[name])
                low, high = sizes[name] / 2, width - sizes[name] / 2
                if number:
                    low = middles[row[number - 1]] + (sizes[row[number - 1]] + sizes[name]) / 2 + GAP
                if number + 1 < len(row):
                    high = middles[row[number + 1]] - (sizes[row[number + 1]] + sizes[name]) / 2 - GAP
                middles[name] = min(max(wish, low), max(high, low))
    return middles, width


def _bend(middles: Sequence[float], level: int) -> str:
    """From below the upper box to the lower one, upright past the levels between."""
    height, half = BOX[1] + BETWEEN, BETWEEN / 2
    y = level * height + BOX[1]
    parts = [f"M{middles[0]:g} {y:g}"]
    for number, (before, here) in enumerate(pairwise(middles)):
        parts.append(f"C{before:.1f} {y + half:g} {here:.1f} {y + half:g} {here:.1f} {y + BETWEEN:g}")
        y += BETWEEN
        if number + 2 < len(middles):
            y += BOX[1]
            parts.append(f"V{y:g}")
    return "".join(parts)
