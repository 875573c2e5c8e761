"""The papers' comparisons: their sweeps compose, and each number stands where a job of the sweep is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from kdlab import checks, compose, methods, study
from kdlab.catalog import entries
from kdlab.config import Expected, Run
from kdlab.engine.tracking import Tracker
from kdlab.pins import Pins
from kdlab.report.expected import cells, value
from kdlab.rundir import RunDirectory
from lab import CONF, TINY, Lab, composed, parts, problems, read

PAPERS = [name for name, _ in entries("experiment") if name.split("/")[0] in ("crild", "cot", "musc")]
NUMBERED = [
    name for name in PAPERS if any(part.get("expected", {}).get("scores") for part in parts("experiment", name))
]
MUST_BE_GIVEN = {  # what the commands in the files have in capitals
    "few_shot": ["task.source.path=folder", "method.prompt.exemplars=file"],
    "cot": ["task.source.path=folder", "rationales.path=folder"],
    "xnli": ["translator.path=folder"],
    "pawsx": ["translator.path=folder"],
    "mldoc": ["task.source.path=folder"],
    "cls": ["task.source.path=folder"],
}


def needs(name: str) -> list[str]:
    family, _, own = name.partition("/")
    if family == "cot":
        return MUST_BE_GIVEN["few_shot" if own.startswith("few_shot") else "cot"]
    return next((words for key, words in MUST_BE_GIVEN.items() if key in own), [])


@cache
def sweep(name: str) -> dict[str, list[str]]:
    """The values of each axis of an experiment, as words of the command line."""
    (params,) = [part["hydra"]["sweeper"]["params"] for part in parts("experiment", name) if "hydra" in part]
    parse = OverridesParser.create().parse_override
    found = {}
    for key, values in params.items():
        override = parse(f"{key}={values}")
        swept = override.is_sweep_override()
        found[key] = [f"{key}={one}" for one in override.sweep_string_iterator()] if swept else [f"{key}={values}"]
    return found


def diagonal(name: str) -> Iterator[list[str]]:
    """Jobs of the sweep: the first and the last value of each axis; of one sweep of a family, with each method."""
    axes = sweep(name)
    whole = name in ("crild/glue_truncated", "cot/main_gpt3", "musc/xnli")
    for number in range(len(axes["method"]) if whole else 2):
        method = axes["method"][number if whole else -number]
        yield [method if key == "method" else values[-(number % 2)] for key, values in axes.items()]


def job(name: str, words: list[str]) -> Run:
    """One job of an experiment; without rationales where it needs none, which a sweep may give in vain."""
    alone = not any(word.startswith("method=ft_cot") for word in words)
    given = [word for word in needs(name) if not (alone and word.startswith("rationales."))]
    (found,) = compose.jobs([f"experiment={name}", *given, *words]).jobs
    return found.run


@cache
def first(name: str) -> Run:
    return job(name, [values[0] for values in sweep(name).values()])


def paper(name: str, **axes: Any) -> float | None:
    """The only number of an experiment at this place, as the paper prints it."""
    wanted = {key.replace("__", "."): str(text) for key, text in axes.items()}
    found = [cell["paper"] for cell in cells(asdict(first(name).expected)) if wanted.items() <= cell["axes"].items()]
    (number,) = found
    return None if number is None else round(100 * number, 2)


# the sweeps


@pytest.mark.parametrize("name", PAPERS)
def test_jobs_of_the_sweep_compose(name: str) -> None:
    """Not all of them: of a sweep over groups each job takes a fifth of a second."""
    for words in diagonal(name):
        run = job(name, words)
        assert f"method={run.method.name}" in words
        assert not checks.warnings(run) or run.method.name == "cr_ild_official"  # its terms without effect


def test_a_whole_sweep_composes() -> None:
    found = compose.jobs(["-m", "experiment=crild/components", "task=glue/rte"]).jobs
    assert len(found) == len({job.name for job in found}) == 4 * 3
    layers = [job.run.method.layers for job in found if job.run.seed == 42]  # type: ignore[attr-defined]
    assert [(fit.mixup, fit.consistency.weight, fit.consistency.target) for fit in layers] == [
        (0.0, 0.0, "student"),
        (1.0, 0.0, "student"),
        (1.0, 0.1, "student"),
        (1.0, 0.1, "ema"),
    ]
    given = shlex.join(needs("cot/data_size_d8"))
    found = compose.jobs(shlex.split(f"-m experiment=cot/data_size_d8 {given}")).jobs
    assert [job.run.task.few.examples for job in found] == [8, 8, 32, 32, 128, 128, None, None]
    assert {job.run.rationales.key for job in found} == {"zs_cot_t70_8aug"}


def test_each_experiment_has_its_own_line(lab: Lab) -> None:
    lines = lab.command("list experiments").out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in entries("experiment")]
    told = [line.partition("  ")[2].strip() for line in lines]
    assert len(set(told)) == len(told) and all(20 < len(text) <= 120 for text in told)
    assert not any("base/" in line.split()[0] for line in lines)


@pytest.mark.parametrize("name", PAPERS)
def test_the_command_is_in_the_file(name: str) -> None:
    (command,) = [
        line.removeprefix("# Run: ")
        for line in (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("# Run: ")
    ]
    given = [word.partition("=")[0] for word in needs(name)]
    assert shlex.split(command)[:4] == ["kdlab", "train", "-m", f"experiment={name}"]
    assert [word.partition("=")[0] for word in shlex.split(command)[4:]] == given


# the papers' numbers


def test_experiments_without_numbers_say_why() -> None:
    for name in set(PAPERS) - set(NUMBERED):
        assert "could not be reached" in first(name).expected.note or "was found" in first(name).expected.note
    assert all(name in NUMBERED for name in PAPERS if name.startswith(("cot/main", "cot/div", "cot/data")))
    assert not any(name.startswith("musc/") for name in NUMBERED)


@pytest.mark.parametrize("name", NUMBERED)
def test_each_number_is_reached_by_a_job(name: str) -> None:
    run = first(name)
    expected, axes, alone = asdict(run.expected), sweep(name), asdict(run)
    assert expected["source"] and expected["protocol"]
    found = cells(expected)
    assert len(found) == len({tuple(cell["axes"].values()) for cell in found}) > 0
    for axis in expected["axes"]:
        reached = {word.partition("=")[2] for word in axes[axis]} if axis in axes else {value(alone, axis)}
        assert {cell["axes"][axis] for cell in found} <= reached, axis


@pytest.mark.parametrize("name", NUMBERED)
def test_groups_are_named_by_options_that_exist(name: str) -> None:
    found = cells(asdict(first(name).expected))
    for group in ("method", "task", "model"):
        assert {cell["axes"][group] for cell in found} <= {option for option, _ in entries(group)}


def test_numbers_of_layer_distillation() -> None:
    """papers.md 1.6, which has parse_test_res.ipynb."""
    table = "crild/glue_truncated"
    assert paper(table, task="glue/cola", method="cr_ild_official") == 39.93
    assert paper(table, task="glue/cola", method="pkd_official") == 9.75
    assert paper(table, task="glue/rte", method="bert_emd_official") == 66.79
    assert paper(table, task="glue/rte", method="u_ild") == 56.08
    assert paper(table, task="glue/rte", method="cr_ild_official") is None
    assert len(cells(asdict(first(table).expected))) == 8
    for task, method in (("glue/cola", "u_ild"), ("glue/rte", "pkd_official")):  # the mean of its seeds
        of_seeds = [paper("crild/seeds", task=task, method=method, seed=seed) for seed in (42, 43, 44)]
        assert sum(of_seeds) / 3 == pytest.approx(paper(table, task=task, method=method), abs=0.01)


def test_numbers_of_reasoning() -> None:
    """papers.md 2.3, which has results.ipynb."""
    multiarith, date, coin = "reasoning/multiarith", "reasoning/date_understanding", "reasoning/coin_flip"
    assert paper("cot/main_gpt2", task=multiarith, method="ft_answer", model="gpt2") == 12.22
    assert paper("cot/main_gpt3", task=multiarith, method="ft_cot", model="openai_curie") == 33.33
    assert paper("cot/main_gpt3", task=coin, method="zs_cot", model="openai_ada") == 4.67
    assert paper("cot/main_t5", task="reasoning/strategy_qa", method="ft_cot", model="t5_large") == 56.33
    assert paper("cot/main_flan_t5", task=date, method="ft_cot", model="flan_t5_large") == 84.68
    assert paper("cot/few_shot", task=coin, method="fs_cot", model="gpt2_medium") == 55.33
    assert paper("cot/few_shot_gpt3", task="reasoning/single_eq", model="openai_curie") == 22.37
    assert paper("cot/diverse", task=date, model="flan_t5_large", method__samples=8) == 87.39
    assert paper("cot/diverse_gpt3", task=date, model="openai_curie") == 83.78
    assert paper("cot/diversity", task=multiarith, model="gpt2", method__samples=64) == 17.78
    assert paper("cot/diversity", task="reasoning/svamp", model="gpt2", method__samples=32) is None
    assert paper("cot/diversity_gpt3", task=multiarith, model="openai_curie", method__samples=32) == 55.56
    assert paper("cot/data_size", task=multiarith, method="ft_cot", task__few__examples="null") == 33.33
    assert paper("cot/data_size", task=date, method="ft_answer", task__few__examples=8) is None
    assert paper("cot/data_size_d8", task=date, task__few__examples=128) == 72.97
    assert paper("cot/data_size_initial", task="reasoning/gsm8k", task__few__examples=8) == 0.91
    assert paper("cot/data_by_rationales", task__few__examples=128, method__samples=16) == 34.44
    assert paper("cot/teacher", task=date, rationales__model="text-davinci-003") == 74.77


@pytest.mark.parametrize("model", ["t5_small", "flan_t5_large", "gpt2_medium"])
def test_diverse_reasoning_in_the_table_is_the_figures_last_point(model: str) -> None:
    """F-10 of papers.md: the mean over nine tasks, of which two have D = 64 and seven D = 8."""
    wanted = {"t5_small": 42.26, "flan_t5_large": 51.46, "gpt2_medium": 30.71}
    own = [
        paper("cot/diversity", task=f"reasoning/{task}", model=model, method__samples=64)
        for task in ("multiarith", "svamp")
    ]
    own += [
        cell["paper"] * 100 for cell in cells(asdict(first("cot/diverse").expected)) if cell["axes"]["model"] == model
    ]
    assert len(own) == 9
    assert sum(filter(None, own)) / 9 == pytest.approx(wanted[model], abs=0.006)


# what they are no part of


NUMBERS = Expected(
    source="a table", protocol="one run", axes=["method", "seed"], scores={"ft": {"42": 61.5, "43": None}}
)


def test_numbers_of_a_paper_are_no_part_of_a_run(tmp_path: Path) -> None:
    alone = composed(f"method=ft {TINY}")
    told = replace(alone, expected=NUMBERS)
    graphs = [methods.plan(run, Pins()) for run in (alone, told)]
    assert graphs[0].identity() == graphs[1].identity()
    folder = RunDirectory(tmp_path / "run", told, graphs[1], group=None, overrides=[])
    folder.open()
    held = read(tmp_path / "run" / "run.json")
    assert held["config"]["expected"] == asdict(NUMBERS)
    with Tracker(told.tracking, **folder.identity(), folder=tmp_path) as tracker:
        assert "expected" not in tracker._config and "method" in tracker._config
    assert "expected" in study.INCIDENTAL
    (found,) = compose.jobs(["-m", "method=ft", *shlex.split(TINY), "expected.note=mine"]).jobs
    assert found.run.expected.note == "mine" and "expected" not in found.name


def test_cells_and_places() -> None:
    assert cells(asdict(NUMBERS)) == [
        {"axes": {"method": "ft", "seed": "42"}, "paper": 0.615},
        {"axes": {"method": "ft", "seed": "43"}, "paper": None},
    ]
    assert cells({}) == cells(asdict(Expected())) == []
    config = asdict(composed(f"method=cr_ild {TINY} 'method.layers.relations=[hidden,attention]'"))
    wanted = {
        **{"method": "cr_ild", "task": "demo/nli", "model": "tiny", "seed": "42", "supplement": "null"},
        **{"method.layers.mixup": "1.0", "task.pad_to_max": "false", "task.few.examples": "null"},
        **{"method.layers.relations": "[hidden,attention]", "method.layers": "", "method.nothing": "", "seed.x": ""},
    }
    assert {axis: value(config, axis) for axis in wanted} == wanted


@pytest.mark.parametrize(
    ("expected", "problem"),
    [
        ({"axes": ["metod"], "scores": {}}, "expected.axes=[metod]: 'metod' is no group and no key with a value; did"),
        ({"axes": ["method.layers"]}, "expected.axes=[method.layers]: 'method.layers' is no group and no key with a"),
        ({"axes": ["task", "task"]}, "expected.axes=[task,task]: the same twice"),
        ({"axes": ["task"], "scores": {"a": 1}}, "expected.source: must say where the numbers"),
        ({"source": "x", "scores": {"a": 1}}, "expected.axes=[]: name what the levels"),
        ({"source": "x", "axes": ["task"], "scores": {"a": {"b": 1}}}, "expected.scores.a: has keys below it, but"),
        ({"source": "x", "axes": ["task", "seed"], "scores": {"a": 1}}, "expected.scores.a: keys of 'seed' are wanted"),
        ({"source": "x", "axes": ["task"], "scores": {"a": "39.93"}}, "expected.scores.a=39.93: a number is wanted"),
        (
            {"source": "x", "axes": ["task"], "scores": {"a": True}},
            "expected.scores.a=True: a number is wanted, or null",
        ),
        (
            {"source": "x", "axes": ["task"], "scores": {"a": 3993, "b": 3993}},
            "expected.scores.a=3993: scores are x 100",
        ),
        ({"source": "x", "axes": ["task"], "scores": {"a": float("nan")}}, "expected.scores.a=nan: scores are x 100"),
        (
            {"source": "x", "axes": ["task", "seed"], "scores": {"a": {42: 1}}},
            "expected.scores.a.42: write the key in quo",
        ),
    ],
)
def test_wrong_numbers_are_one_problem(expected: dict[str, Any], problem: str) -> None:
    run = replace(composed(f"method=cr_ild {TINY}"), expected=Expected(**expected))
    (found,) = checks.check(run)
    assert found.startswith(problem)


def test_a_wrong_file_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    text = (
        "# @package _global_\n# mine\nexpected:\n  source: x\n  axes: [method, method.logits.temperature]\n  scores:\n"
    )
    (folder / "good.yaml").write_text(text + '    kd: {"2.0": 61.5}\n')
    (folder / "bare.yaml").write_text(text + "    kd: {2.0: 61.5}\n    ft: {2.0: 1}\n")
    (folder / "deep.yaml").write_text(text + "    kd: 61.5\n")
    line = f"--config-dir {tmp_path} method=kd {TINY}"
    assert cells(asdict(composed(f"{line} experiment=good").expected))[0]["paper"] == 0.615
    for name, problem in (
        ("bare", "expected.scores.kd.2.0: write the key in quotes; keys are compared as text"),
        ("deep", "expected.scores.kd: keys of 'method.logits.temperature' are wanted below it, as expected.axes says"),
    ):
        (found,) = problems(f"{line} experiment={name}")
        assert found.startswith(problem)
