"""What a run shows while it works: one live bar for each stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

LINE_SECONDS = 10.0  # between plain lines, at least
LINE_SHARE = 0.05  # of the steps between plain lines, unless SLOW_SECONDS have passed
SLOW_SECONDS = 60.0


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: "1.5 s", "3 min 5 s", "2 h 10 min", "4 d 3 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    place = next(place for place, (size, _) in enumerate(units) if whole >= size)
    (large, name), (small, part) = units[place], units[place + 1]
    rest = whole % large // small
    return f"{whole // large} {name} {rest} {part}" if rest else f"{whole // large} {name}"


class Display:
    """Shows stages and their points on standard output; `quiet` (every process but the first) shows nothing.

    A context manager: leaving it takes down a live bar, also when a stage fails.
    Points of training have `step`, `steps`, `loss`, and perhaps `epoch`, `parts/<name>`, `lr`,
    `tokens_per_second` and `seconds_left`; points of evaluation have `eval/<split>/<metric>`,
    of which the first of each split is shown.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(highlight=False, quiet=quiet)
        self._quiet, self._clock = quiet, clock
        self._label = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._line_at = 0.0
        self._line_share = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_bar()

    def stage_started(self, label: str, why: str = "") -> None:
        self._drop_bar()
        self._label, self._line_at, self._line_share = label, self._clock(), 0.0
        self._say(f"run   {label}", why)

    def stage_hit(self, label: str, age: float, note: str = "") -> None:
        """age: seconds since the artifact was made."""
        self._say(f"hit   {label}", ", ".join(part for part in (f"made {duration(age)} ago", note) if part))

    def stage_waiting(self, label: str) -> None:
        self._say(f"wait  {label}", "another process is making it")

    def stage_done(self, label: str, seconds: float) -> None:
        self._drop_bar()
        self._say(f"done  {label}", duration(seconds))

    def note(self, text: str) -> None:
        self._say(text)

    def table(self, table: Table) -> None:
        self._drop_bar()
        if not self._quiet:
            self._console.print(table)

    def update(self, point: Mapping[str, Any]) -> None:
        """Show a live point of the stage that runs."""
        if self._quiet:
            return
        scores: dict[str, Any] = {}
        for key, value in point.items():
            group, _, name = key.partition("/")
            if group == "eval" and not any(shown.split("/")[0] == name.split("/")[0] for shown in scores):
                scores[name] = value
        if scores:
            self._say(f"      {self._label}{_progress_of(point)}", _named(scores))
        if "loss" not in point or "step" not in point:
            return
        if self._console.is_terminal:
            self._show_bar(point)
        else:
            self._show_line(point)

    def _show_bar(self, point: Mapping[str, Any]) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
                console=self._console,
                transient=True,
                refresh_per_second=4,
                expand=True,
            )
            self._task = self._bar.add_task(self._label, total=point.get("steps"), figures="")
            self._bar.start()
        assert self._task is not None
        self._bar.update(
            self._task,
            completed=int(point["step"]),
            total=point.get("steps"),
            figures=_figures(point, brief=True),
        )

    def _show_line(self, point: Mapping[str, Any]) -> None:
        passed = self._clock() - self._line_at
        share = point["step"] / point["steps"] if point.get("steps") else 1.0
        if passed < LINE_SECONDS or (share - self._line_share < LINE_SHARE - 1e-9 and passed < SLOW_SECONDS):
            return
        self._line_at, self._line_share = self._clock(), share
        self._say(f"      {self._label}{_progress_of(point)}", _figures(point, brief=False))

    def _drop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _say(self, text: str, more: str = "") -> None:
        if not self._quiet:
            line = f"{text}: {more}" if more else text
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _progress_of(point: Mapping[str, Any]) -> str:
    if "step" not in point:
        return ""
    return f" {point['step']}/{point['steps']}" if point.get("steps") else f" step {point['step']}"


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, int | float))


def _figures(point: Mapping[str, Any], *, brief: bool) -> str:
    """The point's figures, the most wanted first: a narrow terminal cuts the last ones."""
    parts = [f"loss {point['loss']:.4g}"]
    if point.get("seconds_left") is not None:
        parts.append(f"{duration(point['seconds_left'])} left")
    if point.get("tokens_per_second") is not None:
        parts.append(f"{point['tokens_per_second']:,.0f} tokens/s")
    named = {key.removeprefix("parts/"): value for key, value in point.items() if key.startswith("parts/")}
    if named:
        parts.append(_named(named))
    if not brief and point.get("epoch") is not None:
        parts.append(f"epoch {point['epoch']:.4g}")
    if not brief and point.get("lr") is not None:
        parts.append(f"lr {point['lr']:.2e}")
    return ", ".join(parts)
