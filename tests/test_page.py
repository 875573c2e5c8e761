"""The page of a comparison as a file: what stands in it, that all of it is escaped, and that it asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import comparisons
from kdlab.report import charts
from kdlab.report.charts import Scale
from kdlab.report.page import render
from kdlab.runs import Record

VOID = {"meta", "link", "input", "br"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{ 7*7 }}\u202e\x1b[31m\ud800"


class Element:
    def __init__(self, tag: str, traits: dict[str, str], parent: Element | None) -> None:
        self.tag, self.traits, self.parent = tag, traits, parent
        self.children: list[Element | str] = []

    def walk(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.walk()

    def all(self, tag: str, **traits: str) -> list[Element]:
        wanted = {name.rstrip("_"): value for name, value in traits.items()}
        return [
            one
            for one in self.walk()
            if one.tag == tag and all(value in one.traits.get(name, "").split() for name, value in wanted.items())
        ]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(one if isinstance(one, str) else one.text for one in self.children)).strip()

    def rows(self) -> list[list[str]]:
        return [[cell.text for cell in row.walk() if cell.tag in ("td", "th")] for row in self.all("tr")]


class Page(HTMLParser):
    """The tree of a page; fails on a tag that is not closed, or not opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.here = Element("", {}, None)
        self.feed(text)
        self.close()
        assert self.here is self.root, f"not closed: {self.here.tag}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"twice in {self.get_starttag_text()}"
        one = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(one)
        if tag not in VOID:
            self.here = one

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.here.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.here))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.here.tag == tag, f"{self.here.tag} is closed by {tag}"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.children.append(data)

    def section(self, name: str) -> Element:
        (found,) = [one for one in self.root.all("section") if one.traits.get("aria-labelledby") == name]
        return found

    def sections(self) -> list[str]:
        return [one.traits["aria-labelledby"] for one in self.root.all("section")]


def opened(folders: list[Path]) -> list[Record]:
    return [Record.open(folder) for folder in folders]


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Three methods on two tasks; kd fails once, and runs on one task only."""
    outputs = tmp_path_factory.mktemp("layers") / "outputs"
    folders = []
    for task in ("glue/rte", "glue/cola"):
        for seed, score in ((1, 0.50), (2, 0.54)):
            folders.append(comparisons.run(outputs, "ft", task, seed, score=score))
            settings = {"layers": {"mixup": 1.0}}
            folders.append(comparisons.run(outputs, "cr_ild", task, seed, score=score + 0.1, settings=settings))
    folders.append(comparisons.run(outputs, "kd", "glue/rte", 1, score=0.53))
    folders.append(comparisons.run(outputs, "kd", "glue/rte", 2, failure="TrainingError: the loss is not finite"))
    comparisons.write(
        folders[0].parent / "sweep.json", {"format": 1, "name": "mine", "commands": ["kdlab train -m x=1"]}
    )
    expected = [
        {"axes": {"method": method, "task": task}, "paper": paper, "ours": ours, "group": None, "seeds": 2}
        | {"source": "A paper, table 3", "protocol": "three seeds", "state": state}
        for method, task, paper, ours, state in (
            ("cr_ild", "glue/rte", 0.655, 0.62, "run"),
            ("cr_ild", "glue/cola", 0.3993, None, "not run"),
            ("ft", "glue/rte", None, None, "not found"),
        )
    ]
    comparison, records = comparisons.compared(
        opened(folders),
        baseline="ft",
        expected=expected,
        warnings=["glue/rte: selected on the test set"],
        left_out=["outputs/old: run.json is not whole"],
        marks={"*": "selected on the test set"},
    )
    return Page(render(comparison, records))


def test_the_head_tells_what_was_compared_and_what_is_wrong_with_it(layers: Page) -> None:
    head = layers.root.all("header")[0].text
    assert "MCC on dev" in head and "accuracy on dev" in head and "against ft" in head
    assert "5 groups of seeds 10 runs 9 finished 1 failed" in head
    assert "selected on the test set" in layers.section("warnings").text
    assert layers.sections() == [
        *("warnings", "results", "tasks", "papers", "costs", "curves", "graphs", "settings", "provenance", "runs")
    ]
    assert [one.traits["href"] for one in layers.root.all("nav")[0].all("a")] == [
        f"#{n}" for n in layers.sections()[1:]
    ]


def test_the_groups_are_told_times_a_hundred_with_deviation_and_delta(layers: Page) -> None:
    table = layers.section("results").all("table")[0]
    head, *rows = table.rows()
    assert head == [
        *("method", "task", "metric", "score", "seeds", "95 % CI", "on one scale", "Δ", "p corr.", "verdict"),
        *("teacher", "majority", "parameters", "latency ms", "FLOPs", "training"),
    ]
    by = {(row[0], row[1]): dict(zip(head, row, strict=True)) for row in rows}
    ours = by["cr_ild", "glue/rte"]
    assert ours["score"] == "62.0 ± 2.8"  # 0.60 and 0.64
    assert (ours["Δ"], ours["p corr."], ours["verdict"]) == ("+10.0", "<0.001", "▲ better")
    assert (ours["seeds"], ours["teacher"], ours["majority"]) == ("2", "70.0", "33.0")
    assert (ours["parameters"], ours["latency ms"], ours["FLOPs"]) == ("66.0 M", "1.6", "22.0 G")
    assert by["kd", "glue/rte"]["score"] == "53.0"
    assert "needs about 4 more seeds" in by["kd", "glue/rte"]["verdict"]
    assert by["ft", "glue/rte"]["verdict"] == "baseline"
    assert [cell.text for cell in table.all("strong")] == ["62.0", "62.0"]  # the best of each task
    assert len(table.all("svg", class_="strip")) == 5


def test_methods_stand_beside_tasks(layers: Page) -> None:
    head, *rows = layers.section("tasks").all("table")[0].rows()
    assert head == ["method", "glue/rteaccuracy, dev", "glue/colaMCC, dev", "mean"]
    assert ["ft", "52.0 ± 2.8", "52.0 ± 2.8", "52.0"] in rows
    assert ["kd", "53.0", "not run", "-"] in rows


def test_paper_ours_and_what_is_not_run(layers: Page) -> None:
    section = layers.section("papers")
    assert "Theirs: three seeds." in section.text
    assert "1 run by us, 1 not run, 1 without a number in the paper." in section.text
    assert section.all("table")[0].rows() == [
        ["method", "glue/rte", "glue/cola"],
        ["cr_ild", "paper", "65.5", "39.9"],
        ["ours", "62.0 (−3.5)2 seeds", "not run"],
        ["ft", "paper", "not found", ""],
        ["ours", "-", ""],
    ]


def test_curves_by_stage_and_term_with_the_shared_teacher_once(layers: Page) -> None:
    section = layers.section("curves")
    assert [one.text for one in section.all("summary")] == ["glue/rte", "glue/cola"]
    first = section.all("details")[0]
    assert [one.text for one in first.all("h4")] == ["stage student", "stage teacher", "stage layers"]
    titles = [one.text for one in first.all("figcaption")]
    assert titles[:5] == [
        *("loss", "loss: attention", "loss: hidden", "fixed rows: dev (marked), train"),
        "score: accuracy on dev × 100",
    ]
    panels = dict(zip(titles[5:10], first.all("figure")[5:10], strict=True))
    lines = [one.traits["aria-label"] for one in panels["loss"].all("g", role="img")]
    assert lines == ["cr_ild, kd: 0.09957 at step 200"]  # one teacher of three runs; 2 exp(-3)
    assert "cx" in panels["loss"].all("g", role="img")[0].traits["class"].split()
    (dev, train) = (one.traits["aria-label"] for one in panels["fixed rows: dev (marked), train"].all("g", role="img"))
    assert dev.startswith("cr_ild, kd (train)") != train.startswith("cr_ild, kd (train)")


def test_the_graph_the_settings_and_where_everything_came_from(layers: Page) -> None:
    graphs = layers.section("graphs")
    assert [one.text.split(" (")[0] for one in graphs.all("summary")] == ["ft", "cr_ild, kd"]
    assert "finetune-gluerte" in graphs.text and "shared by 3 runs" in graphs.text  # cr_ild twice and kd
    differing, common = layers.section("settings").all("table")
    assert [row[0] for row in differing.rows()[1:]] == [
        *("method.name", "task.name", "method.stages", "method.layers.mixup"),
    ]
    assert ["precision", "fp32"] in common.rows() and not any(row[0] == "seed" for row in common.rows())
    provenance = layers.section("provenance").text
    commit = "4b29abc054b59de80d8519065789f9545ba8a4dc, with changes that are not committed"
    code = layers.section("provenance").all("table")[0].rows()
    assert code[1:] == [
        ["git commit", commit, "all 9 runs"],
        ["kdlab", "0.1.0", "all 9 runs"],
        ["stages made by", "0.1.0", "all 9 runs"],
    ]
    assert "hub=glue/rte, revision=bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c" in provenance
    assert "kdlab train -m x=1" in provenance


def test_failed_runs_are_told_with_their_error_and_command(layers: Page) -> None:
    runs = layers.section("runs")
    assert "TrainingError: the loss is not finite" in runs.all("pre")[0].text
    assert "kdlab train method=kd task=glue/rte seed=2" in runs.all("ul", class_="failed")[0].text
    assert "outputs/old: run.json is not whole" in runs.text
    assert Counter(row[1] for row in runs.all("table")[0].rows()[1:]) == {"finished": 9, "failed": 1}


def test_every_table_has_a_caption_and_heads_with_a_scope_and_headings_are_in_order(layers: Page) -> None:
    for table in layers.root.all("table"):
        assert table.all("caption") and all(head.traits["scope"] for head in table.all("th"))
    levels = [int(one.tag[1]) for one in layers.root.walk() if re.fullmatch(r"h\d", one.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [one.traits["id"] for one in layers.root.walk() if "id" in one.traits]
    assert len(set(ids)) == len(ids)
    named = {one.traits[name] for one in layers.root.walk() for name in ("aria-labelledby",) if name in one.traits}
    assert named <= set(ids)
    assert layers.root.all("html")[0].traits["lang"] == "en"


def test_languages_and_samples(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    folders = [
        comparisons.run(outputs, "musc", "demo/sentiment_xx", 1, family="crosslingual", score=0.75),
        comparisons.run(outputs, "ft_cot", "demo/arithmetic", 1, family="reasoning", score=0.5),
    ]
    page = Page(render(*comparisons.compared(opened(folders))))
    tables = page.section("languages").all("table")
    assert [one.all("caption")[0].text for one in tables] == [f"Asked by: {mode}" for mode in comparisons.MODES]
    assert tables[0].rows() == [
        ["method", "ensource", "de", "es", "fr", "mean"],
        ["musc", "75.0", "73.0", "71.0", "69.0", "72.0"],
    ]
    shades = [one.traits["style"] for one in tables[0].all("td", class_="warm")]
    assert shades == ["--v:1.000", "--v:0.875", "--v:0.750", "--v:0.625"]  # of 75 down to 59
    assert [len(one.all("td", class_="framed")) for one in tables] == [0, 0, 1]  # the run's own mode: both
    told = page.section("samples").text
    assert told.count("✓ right") == 2 and told.count("✗ wrong") == 2
    assert "Anna has 3 apples. #### 3 → no answer" in told


def test_nothing_that_runs_or_comparisons_say_is_markup(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    settings = {HOSTILE: HOSTILE}
    folders = [
        comparisons.run(outputs, "ft_cot", "t", 1, family="reasoning", sweep="a", settings=settings),
        comparisons.run(outputs, "ft", "t", 2, sweep="b", failure=HOSTILE.encode(errors="replace").decode()),
    ]
    told = json.loads((folders[0] / "run.json").read_text())
    told["config"]["method"]["name"] = HOSTILE
    comparisons.write(folders[0] / "run.json", {**told, "overrides": [HOSTILE]})
    graph = json.loads((folders[0] / "graph.json").read_text())
    comparisons.write(folders[0] / "graph.json", [{**stage, "label": HOSTILE, "function": HOSTILE} for stage in graph])
    line = {"stage": HOSTILE, "step": 1, "loss": 1.0, f"parts/{HOSTILE}": 1.0}
    (folders[0] / "metrics.jsonl").write_text(json.dumps(line))
    result = json.loads((folders[0] / "result.json").read_text())
    comparisons.write(folders[0] / "result.json", {**result, "sources": {HOSTILE: {HOSTILE: HOSTILE}}})
    comparisons.samples(outputs / "artifacts" / "score-distill-ft_cot1" / "samples.jsonl", HOSTILE)
    comparisons.write(folders[0].parent / "sweep.json", {"name": HOSTILE, "commands": [HOSTILE]})
    comparison, records = comparisons.compared(opened(folders), title=HOSTILE, warnings=[HOSTILE], left_out=[HOSTILE])
    for one in comparison["groups"]:
        one |= {"marks": [HOSTILE], "split": HOSTILE, "model": HOSTILE, "interval_of": HOSTILE}
    text = render({**comparison, "marks": {HOSTILE: HOSTILE}}, records)
    text.encode()  # no lone surrogate is left
    page = Page(text)
    assert len(page.root.all("script")) == 1 and not page.root.all("img")
    assert not [name for one in page.root.walk() for name in one.traits if name.startswith("on")]
    assert "\u202e" not in text and "\x1b" not in text
    assert {"samples", "graphs", "curves", "settings"} <= set(page.sections())
    for name in ("samples", "graphs", "curves", "settings", "provenance", "runs", "results", "warnings"):
        assert "<img src=x onerror=alert(2)>" in page.section(name).text, name
    assert "{{ 7*7 }}\\u202e\\x1b[31m\\ud800" in page.root.all("h1")[0].text


def test_the_page_asks_for_nothing_and_runs_its_own_script_only(layers: Page) -> None:
    (policy,) = [
        one.traits["content"] for one in layers.root.all("meta") if "Security" in one.traits.get("http-equiv", "")
    ]
    script = "".join(one for one in layers.root.all("script")[0].children if isinstance(one, str))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    for one in layers.root.walk():
        for name in ("src", "srcset", "action", "data", "poster"):
            assert name not in one.traits, one.tag
        assert one.traits.get("href", "#").startswith(("#", "data:,")), one.traits["href"]
    style = layers.root.all("style")[0].text
    assert "url(" not in style and "@import" not in style and "://" not in script


def test_what_is_half_written_is_left_out_and_said(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    folders = [comparisons.run(outputs, name, "glue/rte", 1) for name in ("ft", "kd", "pkd", "lti")]
    (folders[0] / "metrics.jsonl").write_text('{"stage": "student", "step": 1, "loss": NaN}\n[1]\n{"stage"')
    (folders[1] / "graph.json").write_text("[{")
    (folders[2] / "graph.json").write_text('[{"label": "x"}]')
    (folders[3] / "metrics.jsonl").unlink()
    (folders[3] / "graph.json").unlink()
    comparisons.write(folders[3].parent / "sweep.json", ["not", "an object"])
    page = Page(render(*comparisons.compared(opened(folders))))
    told = page.section("runs").text
    assert "method=ft,task=glue_rte,seed=1: metrics.jsonl can't be read" in told
    assert "method=kd,task=glue_rte,seed=1: graph.json can't be read" in told
    assert "method=pkd,task=glue_rte,seed=1: graph.json can't be read" in told
    lines = [one.traits["aria-label"] for one in page.section("curves").all("g", role="img")]
    assert lines and not any("ft:" in line or "lti:" in line for line in lines)
    assert [one.text.split(" (")[0] for one in page.section("graphs").all("summary")] == ["ft"]


def test_a_comparison_of_nothing_finished(tmp_path: Path) -> None:
    folder = comparisons.run(tmp_path / "outputs", "ft", "glue/rte", 1, finished=False)
    page = Page(render(*comparisons.compared(opened([folder]))))
    assert "No run has finished yet" in page.section("results").text
    assert page.sections() == ["results", "provenance", "runs"]


def test_two_hundred_runs_are_a_small_page_soon(tmp_path: Path) -> None:
    tasks = ("glue/rte", "glue/cola", "glue/mrpc", "glue/sst2", "glue/qnli")
    methods = ("ft", "kd", "pkd", "tinybert", "minilm", "bert_emd", "cr_ild", "joint")
    folders = [
        comparisons.run(tmp_path / "outputs", method, task, seed, points=100, score=0.5 + seed / 100)
        for task in tasks
        for method in methods
        for seed in range(5)
    ]
    comparison, records = comparisons.compared(opened(folders), baseline="ft")
    before = time.process_time()
    text = render(comparison, records)
    assert time.process_time() - before < 5
    assert len(folders) == 200 and len(text) < 2e6


# drawings -----------------------------------------------------------------------------------------------------------


def test_scales_and_their_ticks() -> None:
    scale = Scale.around([0.0, 10.0], 0.0, 100.0, margin=0)
    assert scale(2.5) == 25 and [tick.text for tick in scale.ticks(5)] == ["0", "2", "4", "6", "8", "10"]
    wide = Scale.around([0.1, 100.0], 0.0, 300.0, margin=0)
    assert wide.log and wide(1.0) == pytest.approx(100)
    assert [tick.text for tick in wide.ticks()] == ["0.1", "1", "10", "100"]
    assert Scale.around([3.0, 3.0], 0, 10)(3.0) == 5  # one value stands in the middle


def test_runs_are_combined_as_far_as_all_go() -> None:
    steps = np.array([1.0, 2.0, 3.0])
    same = charts.combined([(steps, np.array([1.0, 2.0, 3.0])), (steps, np.array([3.0, 2.0, np.nan]))], 300)
    assert same is not None
    assert [list(one) for one in same] == [[1, 2], [2, 2], [1, 2], [3, 2]]  # to step 2, where the second one ends
    exact = charts.combined([(steps, np.array([1.0, 2.0, 3.0])), (steps, np.array([3.0, 2.0, 5.0]))], 300)
    assert exact is not None
    assert [list(one) for one in exact] == [[1, 2, 3], [2, 2, 4], [1, 2, 3], [3, 2, 5]]
    long = np.arange(1.0, 1001.0)
    thin = charts.combined([(long, long)], 10)
    assert thin is not None and len(thin[0]) == 10 and list(thin[0]) == list(thin[1])
    assert thin[1][0] == pytest.approx(50.5, abs=1)  # the mean of the first hundred
    assert charts.combined([(steps, np.array([np.nan] * 3))], 10) is None


def test_a_path_is_relative_and_in_tenths() -> None:
    assert charts.path(np.array([1.0, 2.0, 2.5]), np.array([10.0, 9.0, 9.04])) == "M10 100l10-10 5 0"


def test_a_graph_stands_in_levels_and_its_long_edges_pass_between() -> None:
    def stage(name: str, *needs: str, after: tuple[str, ...] = ()) -> dict[str, Any]:
        return {"label": name, "artifact": name, "inputs": {one: one for one in needs}, "after": list(after)}

    flow = charts.flow(
        [stage("a"), stage("b", "a"), stage("c", "b", "a"), stage("side"), stage("d", "c", "side", after=("a",))]
    )
    tops = {box.stage["label"]: box.y for box in flow.boxes}
    step = charts.BOX[1] + charts.BETWEEN
    assert tops == {
        "a": 0,
        "b": step,
        "c": 2 * step,
        "side": 2 * step,
        "d": 3 * step,
    }  # side: right above what needs it
    assert {title: order for _, order, title in flow.edges} == {
        "a to b (a)": False,
        "b to c (b)": False,
        "a to c (a)": False,
        "c to d (c)": False,
        "side to d (side)": False,
        "a to d": True,
    }
    for box in flow.boxes:
        assert box.x >= 0 and box.x + charts.BOX[0] <= flow.width
    for upper in flow.boxes:
        for lower in flow.boxes:
            assert upper is lower or upper.y != lower.y or abs(upper.x - lower.x) >= charts.BOX[0]


def test_the_first_forty_series_look_different() -> None:
    looks = [charts.look(number) for number in range(40)]
    assert len({(one.colour, one.dash) for one in looks}) == 40
    assert len({(one.colour, one.marker) for one in looks}) == 40
    assert len({(one.dash, one.marker) for one in looks[:8]}) == 8  # without colour


def test_labels_of_dots_do_not_cover_each_other() -> None:
    dots = [charts.Dot(f"method {n}", charts.look(n), 1.0 + n / 50, 50 + n / 50, None, "") for n in range(12)]
    plot = charts.scatter(dots, "parameters", "accuracy")
    placed = [(spot.label, spot.dot.label) for spot in plot.spots if spot.label]
    assert len(placed) >= 3
    boxes = []
    for (x, y, anchor), text in placed:
        width = charts.CHARACTER * len(text)
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        boxes.append((left, y - 9, left + width, y + 2))
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_the_front_is_what_nothing_is_better_and_smaller_than() -> None:
    dots = [charts.Dot(str(n), charts.look(n), x, y, None, "") for n, (x, y) in enumerate([(1, 50), (2, 40), (3, 60)])]
    front = charts.scatter(dots, "parameters", "accuracy").front
    assert len(re.findall(r"-?\d+", front)) == 6 and charts.scatter(dots[:2], "", "").front == ""  # a step of 3 points
