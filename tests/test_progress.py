"""The display: plain lines without a terminal, a bar on one, nothing where quiet."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kdlab.engine.progress import Display, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def display(*, terminal: bool = False, quiet: bool = False) -> tuple[Display, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    return Display(quiet=quiet, console=console, clock=clock), out, clock


def point(step: int, steps: int = 100) -> dict[str, float]:
    return {
        "step": step,
        "steps": steps,
        "epoch": 1.5,
        "loss": 0.69314,
        "parts/attention": 0.25,
        "lr": 3e-5,
        "tokens_per_second": 12345.6,
        "seconds_left": 185.0,
    }


def test_plain_lines_are_rare_and_complete() -> None:
    shown, out, clock = display()
    with shown:
        shown.stage_started("teacher", "not in the store")
        for step in range(1, 101):
            clock.now += 3.0
            shown.update(point(step))
        shown.stage_done("teacher", 300.0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "run   teacher: not in the store"
    assert lines[-1] == "done  teacher: 5 min"
    figures = "loss 0.6931, 3 min 5 s left, 12,346 tokens/s, attention 0.25, epoch 1.5, lr 3.00e-05"
    assert lines[1] == f"      teacher 5/100: {figures}"
    assert len(lines) - 2 == 20  # every 5 %, which here is more than 10 s


def test_slow_steps_show_a_line_a_minute_and_fast_ones_one_in_ten_seconds() -> None:
    slow, out, clock = display()
    slow.stage_started("layers")
    for step in range(1, 11):
        clock.now += 30.0
        slow.update(point(step, steps=100_000))
    assert len(out.getvalue().splitlines()) == 1 + 5
    fast, out, clock = display()
    fast.stage_started("layers")
    for step in range(1, 101):
        clock.now += 0.25
        fast.update(point(step))
    assert len(out.getvalue().splitlines()) == 1 + 2


def test_evaluations_hits_and_notes_are_always_shown() -> None:
    shown, out, _ = display()
    shown.stage_hit("teacher", 7230.0, "made by another version of the code")
    shown.stage_hit("data", 5.0)
    shown.stage_waiting("layers")
    shown.stage_started("logits")
    shown.update({"step": 8, "steps": 10, "eval/dev/accuracy": 0.625, "eval/heldout/accuracy": 0.5})
    shown.note("[red]a note[/red]")
    assert out.getvalue().splitlines() == [
        "hit   teacher: made 2 h ago, made by another version of the code",
        "hit   data: made 5.0 s ago",
        "wait  layers: another process is making it",
        "run   logits",
        "      logits 8/10: dev/accuracy 0.625, heldout/accuracy 0.5",
        "[red]a note[/red]",
    ]


def test_a_terminal_gets_one_bar_that_is_taken_down_on_failure() -> None:
    shown, out, _ = display(terminal=True)
    with pytest.raises(RuntimeError), shown:
        shown.stage_started("teacher")
        shown.update(point(1))
        shown.update(point(2))
        bar = shown._bar
        assert bar is not None
        assert bar.tasks[0].completed == 2
        raise RuntimeError
    assert not bar.live.is_started
    assert "loss 0.6931" in out.getvalue()


def test_quiet_shows_nothing() -> None:
    shown, out, clock = display(quiet=True)
    with shown:
        shown.stage_started("teacher")
        clock.now += 100
        shown.update(point(50))
        shown.stage_done("teacher", 1.0)
        shown.note("x")
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7900, "2 h 11 min"),
        (97200, "1 d 3 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
