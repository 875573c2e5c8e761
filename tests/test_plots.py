"""The plots of the overfitting study, from numbers made up here: what they show, and that they are always the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from kdlab.report import plots

AXIS = [-1.0, -0.5, 0.0, 0.5, 1.0]


def run(steepness: float, *, teacher: bool = True, mapped: bool = True, artifact: str = "t") -> dict[str, Any]:
    """What `report.study.numbers` gives of a run; the loss rises by steepness * (a^2 + b^2)."""

    def curve(stage: str, factor: float, artifact: str, scored: bool) -> dict[str, Any]:
        losses = {"train": [1.0, 0.5 * factor], "dev": [1.0, 0.75 * factor]}
        point = {"train": {"accuracy": 0.5 * factor}, "dev": {"accuracy": 0.25 * factor}} if scored else {}
        return {"stage": stage, "artifact": artifact, "epochs": [0, 2], "losses": losses, "scores": [point, point]}

    loss = 0.3 + steepness * np.add.outer(np.square(AXIS), np.square(AXIS))
    surface = {"axis": AXIS, "loss": loss.tolist(), "center": 0.3, "rows": 64, "tolerance": 0.1}
    surface |= {"mean_rise": 0.4 * steepness, "flat_area": 0.2 / steepness}
    surface["profile"] = {"distance": [0.0, 0.5, 1.0], "rise": [0.0, steepness / 4, steepness]}
    level = [{"mean": 0.9 - 0.1 * number, "deviation": 0.02 * number} for number in range(3)]
    found: dict[str, Any] = {"metric": "accuracy", "majority": 0.4, "surface": surface}
    found["noise"] = {"scales": [0.0, 0.1, 0.2], "score": level, "loss": level}
    found["gap"] = [curve("layers", steepness, "l", False), curve("logits", steepness, "s", True)]
    if teacher:
        found["gap"].insert(0, curve("teacher", 1.0, artifact, True))
        values = {
            "attention": [0.1, 0.2],
            "hidden": [None, None],
            "cka": [0.3, 0.4],
            "similarity": np.eye(3, 5).tolist(),
        }
        far = {**values, "attention": [0.2 * steepness, 0.4 * steepness]}
        splits = {"train": values, "dev": far}
        pairs = {"pairs": [[1, 2], [2, 4]], "mapped": [[2, 4]] if mapped else []}
        found["distance"] = {**pairs, "students": {"layers": splits, "student": splits}}
    return found


GROUPS = {"kd": [run(1.0, mapped=False)], "cr_ild": [run(2.0), run(4.0)], "ft": [run(8.0, teacher=False)]}
ALL = (plots.gap, plots.surface, plots.noise, plots.distance, plots.similarity)


def texts(figure: Figure) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return found + [text.get_text() for legend in legends for text in legend.get_texts()]


def title(figure: Figure) -> str:
    assert figure._suptitle is not None  # type: ignore[attr-defined]
    return str(figure._suptitle.get_text())  # type: ignore[attr-defined]


def line(figure: Figure, panel: int, number: int) -> list[float]:
    return [float(value) for value in figure.axes[panel].lines[number].get_ydata()]


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_equal_numbers_give_equal_files_of_a_readable_size(draw: Any, tmp_path: Path) -> None:
    files = [plots.save(draw(GROUPS), tmp_path / name) for name in ("first", "second")]
    assert [path.name for path in files[0]] == ["first.png", "first.svg"]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 5000
    svg = files[0][1].read_text(encoding="utf-8")
    assert "<dc:date>" not in svg and str(tmp_path) not in svg
    width, height = draw(GROUPS).get_size_inches()
    assert 3 < width < 18 and 2 < height < 12


def test_drawing_leaves_no_state_behind() -> None:
    code = (
        "import sys; from kdlab.report import plots; assert 'matplotlib' not in sys.modules;"
        "sys.path.insert(0, sys.argv[1]); import test_plots, matplotlib;"
        "now = lambda: {name: matplotlib.rcParams[name] for name in plots.STYLE}; before = now();"
        "plots.noise(test_plots.GROUPS); assert now() == before != plots.STYLE;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gap_draws_train_dashed_dev_solid_and_tells_the_difference() -> None:
    figure = plots.gap(GROUPS)
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["stage layers", "stage logits", "stage teacher"]  # the teacher, which they share, is last
    logits = figure.axes[1]
    assert [one.get_linestyle() for one in logits.lines] == ["--", "-"] * 3
    assert line(figure, 1, 0) == [1.0, 0.5] and line(figure, 1, 1) == [1.0, 0.75]
    assert line(figure, 1, 2) == [1.0, 1.5]  # the mean of the two seeds
    assert len(logits.collections) == 2  # bands of train and of dev, for the group of two seeds only
    shown = [text.get_text() for text in logits.texts]
    assert shown == ["+0.250", "+0.750 ± 0.354", "+2.000"]
    assert len(figure.axes[2].lines) == 2 and figure.axes[2].texts[0].get_text() == "+0.250"
    assert set(texts(figure)) >= {"kd", "cr_ild", "ft", "teacher", "train", "dev"}
    assert not figure.axes[3].axison and figure.axes[4].get_ylabel() == "accuracy × 100"  # layers have no scores
    assert figure.axes[4].texts[0].get_text() == "−25.0"


def test_two_teachers_are_two_lines() -> None:
    figure = plots.gap({"a": [run(1.0)], "b": [run(1.0, artifact="other")]})
    assert len(figure.axes[2].lines) == 4 and "teacher" not in texts(figure)


def test_without_scores_there_is_one_row() -> None:
    one = run(1.0)
    one["gap"] = one["gap"][1:2]
    figure = plots.gap({"kd": [one]})
    assert len(figure.axes) == 1 and title(figure).startswith("kd: train and dev")


def test_surfaces_share_one_scale_and_mark_the_student() -> None:
    figure = plots.surface(GROUPS)
    panels, profile = figure.axes[:3], figure.axes[3]
    levels = [panel.collections[0].levels.tolist() for panel in panels]
    assert levels[0] == levels[1] == levels[2] == [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    for panel in panels:
        star = panel.lines[-1]
        assert star.get_marker() == "*" and [*star.get_xdata(), *star.get_ydata()] == [0, 0]
    assert panels[0].get_title() == "kd\nmean rise 0.400, flat area 20 %"
    assert panels[1].get_title() == "cr_ild\nmean rise 1.200 ± 0.566, flat area 8 ± 4 %"
    assert line(figure, 3, 1) == [0.0, 0.75, 3.0]  # cr_ild: of steepness 2 and 4
    assert profile.lines[-1].get_ydata()[0] == 0.1 and "64 training rows" in title(figure)
    assert {"kd", "cr_ild", "ft"} <= set(texts(figure))


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [
        (0.0, 0.9, [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]),
        (-0.03, 20.0, [-0.05, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]),
        (0.0, 0.05, [0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05]),
    ],
)
def test_levels(low: float, high: float, levels: list[float]) -> None:
    assert plots._levels(low, high, 0.1) == levels


def test_a_surface_below_the_student_is_grey() -> None:
    one = run(1.0)
    one["surface"]["loss"][0][0] = 0.25
    assert title(plots.surface({"kd": [one]})).endswith("grey: below the student's loss")
    assert plots._bands([-0.1, 0.0, 0.5, 1.0])(0)[:3] == (201 / 255,) * 3


def test_noise_has_bands_and_the_majority_class() -> None:
    figure = plots.noise(GROUPS)
    assert line(figure, 0, 0) == [90.0, 80.0, 70.0] and line(figure, 1, 0) == [0.9, 0.8, 0.7]
    low, high = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].min(), 90.0
    assert low == pytest.approx(66.0) and high == line(figure, 0, 0)[0]  # 70 less one deviation over draws
    assert line(figure, 0, -1) == [40.0, 40.0] and "majority class" in texts(figure)
    assert figure.axes[1].get_ylabel() == "hard-label loss on dev (nats)"
    colours = [figure.axes[0].lines[number].get_color() for number in range(3)]
    markers = [figure.axes[0].lines[number].get_marker() for number in range(3)]
    assert len(set(colours)) == len(set(markers)) == 3


def test_distance_joins_train_to_dev() -> None:
    figure = plots.distance(GROUPS)
    assert [axes.get_xlabel() for axes in figure.axes] == [plots.MEASURES["attention"], plots.MEASURES["cka"]]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["kd\nafter layers", "kd\nfinished", "cr_ild\nafter layers", "cr_ild\nfinished"]  # ft has none
    bars = [list(one.get_xdata()) for one in figure.axes[0].lines if len(one.get_xdata()) == 2]
    assert bars[0] == [0.1, 0.2] and bars[1] == [0.2, 0.4]  # kd, pairs 1-2 and 2-4: train, dev
    assert bars[4] == [pytest.approx(0.1), pytest.approx(0.6)]  # cr_ild: the mean of 0.4 and 0.8 on dev
    assert {"student 1 – teacher 2", "student 2 – teacher 4", "train", "dev"} <= set(texts(figure))


def test_similarity_writes_every_cell_and_frames_the_layer_map() -> None:
    figure = plots.similarity(GROUPS)
    kd, cr_ild = figure.axes[:2]
    assert [kd.get_title(), cr_ild.get_title()] == ["kd", "cr_ild"]
    assert len(kd.texts) == 15 and [text.get_text() for text in kd.texts[:2]] == ["1.00", ".00"]
    assert len(kd.patches) == 0
    (frame,) = cr_ild.patches
    assert frame.get_xy() == (3.5, 1.5)  # teacher layer 4, student layer 2


def test_texts_at_the_ends_are_moved_apart() -> None:
    assert plots._apart([0.5, 0.1], 0.1) == [(0.1, 1), (0.5, 0)]
    moved = dict((number, place) for place, number in plots._apart([0.50, 0.52, 0.51], 0.1))
    assert moved[0] == pytest.approx(0.41, abs=1e-3) and moved[1] == pytest.approx(0.61, abs=1e-3)


def test_more_groups_than_colours_still_differ() -> None:
    looks = [(look["color"], look["marker"]) for look in map(plots._look, range(24))]
    assert len(set(looks)) == 24
