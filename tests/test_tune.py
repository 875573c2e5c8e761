"""`kdlab tune`: spaces, which score is maximised, and a study that survives kills and failures."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'kdlab[tune]'")

from kdlab import cli, compose, runs, tune
from kdlab.compose import Job, Space
from kdlab.errors import ConfigError, KdlabError, StoreError
from lab import TINY, Lab

BASE = "task=demo/nli model=tiny"
LR = "'method.logits.lr=log(1e-5,1e-3)'"


def spaces(words: str) -> dict[str, Space]:
    return {space.key: space for space in compose.search(shlex.split(f"{BASE} {words}")).spaces}


def prepared(words: str, outputs: Path | None = None, **wish: Any) -> tune.Plan:
    place = [] if outputs is None else [f"outputs={outputs}"]
    return tune.prepare([*shlex.split(words), *place], tune.Wish(**wish))


def problems(words: str, **wish: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepared(words, **wish)
    return caught.value.problems


# spaces


def test_every_way_to_write_a_space() -> None:
    found = spaces(
        "method=kd,cr_ild 'method.logits.lr=log(1e-5,1e-3)' 'method.logits.alpha=interval(0,1)' "
        "'method.logits.temperature=range(1,4)' 'method.logits.batch_size=choice(8,32)' "
        "'method.logits.epochs=interval(1,4)' 'method.layers.epochs=int(log(2,64))' "
        "'method.logits.warmup=range(0.5,0,-0.25)'"
    )
    assert (found["method"].kind, found["method"].options) == ("choice", ("kd", "cr_ild"))
    rate = found["method.logits.lr"]
    assert (rate.kind, rate.low, rate.high, rate.log) == ("float", 1e-5, 1e-3, True)
    assert rate.ends() == ("method.logits.lr=1e-05", "method.logits.lr=0.001")
    assert (found["method.logits.alpha"].kind, found["method.logits.alpha"].log) == ("float", False)
    assert (found["method.logits.temperature"].kind, found["method.logits.temperature"].options) == (
        "range",
        ("1", "2", "3"),
    )
    assert found["method.logits.batch_size"].options == ("8", "32")
    assert (found["method.logits.epochs"].kind, found["method.logits.epochs"].ends()[1]) == (
        "int",
        "method.logits.epochs=4",
    )
    assert (found["method.layers.epochs"].kind, found["method.layers.epochs"].log) == ("int", True)
    assert (found["method.logits.warmup"].options, found["method.logits.warmup"].step) == (("0.25", "0.5"), 0.25)


def test_log_is_short_for_a_tagged_interval() -> None:
    short = spaces(f"method=kd {LR}")["method.logits.lr"]
    long = spaces("method=kd 'method.logits.lr=tag(log, interval(1e-5,1e-3))'")["method.logits.lr"]
    assert (short.low, short.high, short.log, short.kind) == (long.low, long.high, long.log, long.kind)


def test_all_problems_of_all_words_come_at_once() -> None:
    found = problems(
        f"{BASE} method=kd,crild method.logits.lrr=interval(0,1) method.logits.lr=log(0,1) "
        "method.logits.temperature=interval(3,1) method.logits.epochs=interval(1.5,2) "
        "method.logits.batch_size=range(3,3) method.teacher.lr=interval(0,1)",
        trials=0,
        split="test",
        seeds="1,x",
        minutes=-1.0,
    )
    starts = [
        "method.logits.lr=log(0,1): on a logarithmic scale",
        "method.logits.temperature=interval(3,1): an interval goes",
        "method.logits.epochs=interval(1.5,2): method.logits.epochs takes whole numbers",
        "method.logits.batch_size=range(3,3): no value",
        "method.logits.lrr=0.0: unknown key; did you mean method.logits.lr?",
        "method.teacher.lr=0.0: must be more than 0",
        "method=crild: unknown option; did you mean cr_ild?",
        "--seeds 1,x",
        "--trials 0",
        "--minutes -1",
        "--split test: a search must not see the test set",
    ]
    assert [next((start for start in starts if one.startswith(start)), one) for one in found] == starts


def test_a_misspelt_flag_is_told_with_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", "--trails=3", *shlex.split(f"{BASE} method=crild {LR}")]) == 2
    said = capsys.readouterr().err
    assert "2 problems" in said and "did you mean --trials?" in said and "did you mean cr_ild?" in said


def test_a_key_that_no_method_uses_is_a_problem_and_one_that_some_use_is_not() -> None:
    (found,) = problems(f"{BASE} method=kd method.layers.lr='log(1e-5,1e-3)'")
    assert "no effect" in found
    plan = prepared(f"{BASE} method=kd,cr_ild method.layers.lr='log(1e-5,1e-3)'")
    kd = plan.search.job({"method": "method=kd", "method.layers.lr": "method.layers.lr=0.0005"}, seed=3)
    assert kd.overrides == ["task=demo/nli", "model=tiny", "method=kd", "seed=3"]
    both = plan.search.job({"method": "method=cr_ild", "method.layers.lr": "method.layers.lr=0.0005"}, seed=3)
    assert "method.layers.lr=0.0005" in both.overrides


@pytest.mark.parametrize(
    ("words", "wish", "part"),
    [
        (f"{BASE} method=kd seed=1,2", {}, "--seeds 1,2"),
        (f"{BASE} method=kd select_on=dev,heldout", {}, "decides which rows"),
        ("task=demo/nli,glue/rte model=tiny method=kd", {}, "search once for each task"),
        (f"{BASE} method=kd 'task.heldout=interval(0.1,0.2)'", {}, "search once for each task"),
        (f"{BASE} method=kd hardware.threads=1,2", {}, "can't change a score"),
        (f"{BASE} method=kd", {}, "nothing to search"),
        (f"{BASE} method=kd -m {LR}", {}, "--multirun"),
        (f"{BASE} method=kd hydra/launcher=basic {LR}", {}, "several shells"),
        (f"{BASE} method=kd hardware.processes=2 {LR}", {}, "several shells"),
        (f"{BASE} method=kd {LR}", {"pruner": "median"}, "two or more"),
        (f"{BASE} method=kd {LR}", {"sampler": "grid"}, "takes choices and ranges"),
        (f"{BASE} method=kd {LR}", {"metric": "f1"}, "this task has accuracy"),
        (f"{BASE} method=kd {LR} seed=4", {"seeds": "1,2"}, "give one of the two"),
        (f"{BASE} method=kd {LR} name=x", {"name": "y"}, "give one of the two"),
        (f"{BASE} method=kd {LR}", {"name": "../y"}, "names a folder"),
        (f"{BASE} method=kd {LR}", {"seeds": "1,1"}, "each once"),
        (f"{BASE} method=kd {LR} select_on=dev", {"split": "heldout"}, "set select_on=heldout"),
        (f"{BASE} method=kd {LR}", {"split": "train"}, "take heldout dev"),
    ],
)
def test_what_can_not_be_searched(words: str, wish: dict[str, Any], part: str) -> None:
    assert any(part in one for one in problems(words, **wish)), problems(words, **wish)


def test_a_sweep_says_where_an_interval_belongs() -> None:
    with pytest.raises(ConfigError, match="kdlab tune"):
        compose.jobs(shlex.split(f"-m {BASE} method=kd {LR}"))


# which score


def test_held_out_rows_are_preferred_and_dev_is_told_to_be_optimistic() -> None:
    plan = prepared(f"{BASE} method=kd {LR}")
    assert (plan.split, plan.optimistic, plan.seeds, plan.trials) == ("heldout", False, (42,), 20)
    for dev in (prepared(f"{BASE} method=kd {LR} select_on=dev"), prepared(f"{BASE} method=kd {LR}", split="dev")):
        assert (dev.split, dev.optimistic) == ("dev", True)
        assert "optimistic" in dev.aim


def test_a_test_set_is_never_searched_on() -> None:
    cot = "experiment=demo/cot task=demo/coin_flip method.student.lr='log(1e-5,1e-3)'"
    (found,) = problems(cot)
    assert "select_on=heldout" in found
    found = problems(f"{cot} select_on=test")[0]
    assert "must not see the test set" in found
    assert prepared(f"{cot} select_on=heldout").split == "heldout"
    musc = prepared("experiment=demo/musc method=musc method.student.lr='log(1e-5,1e-3)' select_on=dev")
    assert (musc.split, musc.reported, musc.optimistic) == ("dev", "test", False)


def test_where_a_score_stands() -> None:
    told: dict[str, Any] = {
        "metric": "accuracy",
        "scores": {"dev": {"accuracy": {"selected": 0.5, "best": 0.9}}},
        "means": {"heldout": {"original": {"all": {"accuracy": 0.625}}}},
        "student": {"selection": {"on": "heldout", "score": 0.75}},
    }
    assert tune.score(told, "accuracy", "dev") == (0.5, "scores.dev.accuracy.selected")
    assert tune.score(told, "accuracy", "heldout") == (0.625, "means.heldout.original.all.accuracy")
    del told["means"]
    assert tune.score(told, "accuracy", "heldout") == (0.75, "student.selection.score")
    with pytest.raises(KdlabError, match="no complete on heldout"):
        tune.score(told, "complete", "heldout")
    told["student"]["selection"]["score"] = float("nan")
    with pytest.raises(KdlabError, match="not a number"):
        tune.score(told, "accuracy", "heldout")


# the study, on made-up scores

Runner = Callable[[Job], Mapping[str, Any]]


def result(value: float) -> dict[str, Any]:
    return {"metric": "accuracy", "scores": {"heldout": {"accuracy": {"selected": value}}}, "student": {}}


def scored(function: Callable[[dict[str, str]], float], jobs: list[Job]) -> Runner:
    """A stand-in for training: the score is a function of the job's words."""

    def run(job: Job) -> dict[str, Any]:
        jobs.append(job)
        return result(function(dict(word.split("=", 1) for word in job.overrides)))

    return run


def closeness(words: dict[str, str]) -> float:
    return 1 - abs(float(words["method.logits.temperature"]) - 3) / 10


TEMPERATURE = f"{BASE} method=kd 'method.logits.temperature=interval(1,8)'"


def searched(plan: tune.Plan, run: Runner) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return tune.run(plan, run, said.append), said


def test_a_search_from_its_first_trial_to_its_command(tmp_path: Path) -> None:
    jobs: list[Job] = []
    plan = prepared(TEMPERATURE, tmp_path, trials=4, seeds="1,2", name="x")
    told, _ = searched(plan, scored(closeness, jobs))
    assert [job.name for job in jobs][:3] == ["trial-0000-seed-1", "trial-0000-seed-2", "trial-0001-seed-1"]
    assert [job.run.seed for job in jobs] == [1, 2] * 4
    drawn = [float(one["values"]["method.logits.temperature"]) for one in told["trials"]]
    assert all(1 <= value <= 8 for value in drawn) and len(set(drawn)) == 4
    assert [one["score"] for one in told["trials"]] == pytest.approx([1 - abs(value - 3) / 10 for value in drawn])
    assert told["best"] == min(range(4), key=lambda number: abs(drawn[number] - 3))
    assert json.loads((plan.folder / "tune.json").read_text()) == told
    assert plan.folder == tmp_path / "sweeps" / "x"
    words = shlex.split(told["command"])
    assert words[:3] == ["kdlab", "train", "-m"] and words[-1] == "seed=3,4,5"
    assert [job.run.seed for job in compose.jobs(words[2:]).jobs] == [3, 4, 5]
    assert not any(word.startswith("name=") for word in words)
    assert told["trials"][0]["from"] == "scores.heldout.accuracy.selected"


def test_the_same_command_runs_nothing_again_and_more_trials_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole, _ = searched(prepared(TEMPERATURE, tmp_path, trials=12, name="whole"), scored(closeness, []))
    first, _ = searched(prepared(TEMPERATURE, tmp_path, trials=6, name="parts"), scored(closeness, []))
    jobs: list[Job] = []
    again, _ = searched(prepared(TEMPERATURE, tmp_path, trials=6, name="parts"), scored(closeness, jobs))
    assert (jobs, again) == ([], first)
    more, _ = searched(prepared(TEMPERATURE, tmp_path, trials=12, name="parts"), scored(closeness, jobs))
    assert len(jobs) == 6
    assert [one["values"] for one in more["trials"]] == [one["values"] for one in whole["trials"]]


def test_the_study_is_lines_of_json(tmp_path: Path) -> None:
    plan = prepared(TEMPERATURE, tmp_path, trials=2)
    searched(plan, scored(closeness, []))
    lines = (plan.folder / "study.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 4 and all(isinstance(json.loads(line), dict) for line in lines)
    assert not [file for file in plan.folder.rglob("*") if file.suffix in (".pkl", ".pickle", ".db")]


def test_no_secret_of_the_environment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "s3cr3t-word")

    def failing(job: Job) -> dict[str, Any]:
        raise KdlabError("refused: s3cr3t-word")

    words = f"{TEMPERATURE} debug.rows=9 task.source.path=/data/s3cr3t-word"
    plan = prepared(words, tmp_path, trials=1, name="x")
    searched(plan, failing)
    for name in ("tune.json", "study.jsonl"):
        text = (plan.folder / name).read_text(encoding="utf-8")
        assert "***" in text and "s3cr3t" not in text


def test_a_failing_trial_is_recorded_and_stops_no_other(tmp_path: Path) -> None:
    def half(words: dict[str, str]) -> float:
        if float(words["method.logits.temperature"]) > 4:
            raise KdlabError("the loss is not finite", where="step 3")
        if float(words["method.logits.temperature"]) > 3:
            raise ZeroDivisionError("oh")
        return closeness(words)

    told, said = searched(prepared(TEMPERATURE, tmp_path, trials=8), scored(half, []))
    states = {one["state"] for one in told["trials"]}
    assert states == {"finished", "failed"} and len(told["trials"]) == 8
    texts = [one["error"] for one in told["trials"] if one["state"] == "failed"]
    assert any("the loss is not finite" in text and "step 3" in text for text in texts)
    assert all(one["error"] is None for one in told["trials"] if one["state"] == "finished")
    assert any("failed: the loss is not finite" in line for line in said)


def test_a_trial_whose_process_was_killed_is_taken_up_again(tmp_path: Path) -> None:
    jobs: list[Job] = []

    def killed(words: dict[str, str]) -> float:
        if len(jobs) == 4:  # at the second seed of trial 1
            raise KeyboardInterrupt
        return closeness(words)

    plan = prepared(TEMPERATURE, tmp_path, trials=3, seeds="1,2")
    with pytest.raises(KeyboardInterrupt):
        searched(plan, scored(killed, jobs))
    with open(plan.folder / "study.jsonl", "a", encoding="utf-8") as file:
        file.write('{"op_code": 6, "wor')  # a line that was not written to its end
    later: list[Job] = []
    told, said = searched(plan, scored(closeness, later))
    assert said[0].startswith("trial 1 (taken up again)")
    assert [job.name for job in later] == [f"trial-{number:04d}-seed-{seed}" for number in (1, 2) for seed in (1, 2)]
    assert later[0].overrides == jobs[2].overrides
    assert [one["state"] for one in told["trials"]] == ["finished"] * 3


def test_a_trial_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    plan = prepared(TEMPERATURE, tmp_path, trials=3)
    with tune.Study(plan).take() as held:
        assert held is not None and held.trial.number == 0
        jobs: list[Job] = []
        told, _ = searched(plan, scored(closeness, jobs))
        assert [job.name for job in jobs] == ["trial-0001-seed-42", "trial-0002-seed-42"]
        assert [one["state"] for one in told["trials"]] == ["running", "finished", "finished"]
    told, _ = searched(plan, scored(closeness, []))
    assert [one["state"] for one in told["trials"]] == ["finished"] * 3


def test_the_median_prunes_between_seeds(tmp_path: Path) -> None:
    jobs: list[Job] = []
    plan = prepared(TEMPERATURE, tmp_path, trials=8, seeds="1,2", pruner="median")
    told, said = searched(plan, scored(lambda words: 0.5 if len(jobs) <= 10 else 0.25, jobs))
    assert [one["state"] for one in told["trials"]] == ["finished"] * 5 + ["pruned"] * 3
    assert [job.name for job in jobs][10:] == [f"trial-{number:04d}-seed-1" for number in (5, 6, 7)]
    assert told["trials"][5]["score"] is None and told["trials"][5]["scores"] == {"1": 0.25}
    assert any("pruned after seed 1" in line for line in said)


def test_a_grid_has_each_point_once_and_ends(tmp_path: Path) -> None:
    words = f"{BASE} method=kd,ft 'method.student.lr=range(0.25,1,0.25)'"
    half, _ = searched(prepared(words, tmp_path, sampler="grid", trials=2, name="g"), scored(lambda words: 0.5, []))
    assert len(half["trials"]) == 2
    plan = prepared(words, tmp_path, sampler="grid", name="g")
    assert plan.trials == 6
    told, _ = searched(plan, scored(lambda words: 0.5, []))
    points = [tuple(one["values"].values()) for one in told["trials"]]
    assert len(points) == 6 and {method for method, _ in points} == {"kd", "ft"}
    assert len(set(points)) == 6 and sorted({float(rate) for _, rate in points}) == [0.25, 0.5, 0.75]
    more, _ = searched(prepared(words, tmp_path, sampler="grid", trials=9, name="g"), scored(lambda words: 0.5, []))
    assert len(more["trials"]) == 6


def test_importances_need_trials_and_find_the_key_that_matters(tmp_path: Path) -> None:
    words = f"{TEMPERATURE} 'method.logits.alpha=interval(0,1)'"
    few, _ = searched(prepared(words, tmp_path, trials=7, sampler="random", name="i"), scored(closeness, []))
    assert few["importances"] is None
    told, _ = searched(prepared(words, tmp_path, trials=12, sampler="random", name="i"), scored(closeness, []))
    assert next(iter(told["importances"])) == "method.logits.temperature"
    assert sum(told["importances"].values()) == pytest.approx(1)


def test_of_equal_trials_the_first_is_the_best_and_nothing_matters(tmp_path: Path) -> None:
    words = f"{TEMPERATURE} 'method.logits.alpha=interval(0,1)'"
    told, _ = searched(prepared(words, tmp_path, trials=8), scored(lambda words: 0.5, []))
    assert (told["best"], told["importances"]) == (0, None)


def test_no_trial_begins_after_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[int] = iter(range(0, 10_000, 50))
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(clock))
    told, said = searched(prepared(TEMPERATURE, tmp_path, minutes=2.0), scored(closeness, []))
    assert len(told["trials"]) == 2 and told["wanted"] == 20  # asked at 50, 100 and 150 seconds
    assert said[-1].startswith("stopped after 2 minutes")


def test_a_folder_with_another_search_is_refused(tmp_path: Path) -> None:
    searched(prepared(TEMPERATURE, tmp_path, trials=1, name="x"), scored(closeness, []))
    with pytest.raises(ConfigError, match="holds another search \\(other seeds\\)"):
        searched(prepared(TEMPERATURE, tmp_path, trials=1, name="x", seeds="5"), scored(closeness, []))


@pytest.mark.parametrize("content", ["rubbish\n{}\n", '{"op_code": 4}\n[]\n', "[1]\n"])
def test_a_study_that_can_not_be_read(tmp_path: Path, content: str) -> None:
    plan = prepared(TEMPERATURE, tmp_path, trials=1, name="x")
    plan.folder.mkdir(parents=True)
    (plan.folder / "study.jsonl").write_text(content)
    with pytest.raises(StoreError, match="can't be read"):
        tune.Study(plan)


def test_the_name_is_the_same_for_the_same_search(tmp_path: Path) -> None:
    plain = prepared(TEMPERATURE, tmp_path)
    assert plain.folder.name.startswith("tune-kd-demo_nli-")
    assert prepared(f"{TEMPERATURE} hardware.threads=1", tmp_path, trials=9).folder == plain.folder
    assert prepared(f"{TEMPERATURE} method.logits.alpha=0.1", tmp_path).folder != plain.folder
    assert prepared(TEMPERATURE, tmp_path, seeds="1").folder != plain.folder


# the command


def test_without_optuna_one_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(["tune", *shlex.split(TEMPERATURE)]) == 2
    said = capsys.readouterr()
    assert "pip install 'kdlab[tune]'" in said.err and "Traceback" not in said.err and said.out == ""


def test_a_whole_search_makes_runs_that_can_be_compared(lab: Lab, tmp_path: Path) -> None:
    words = f"{TINY} method=ft --trials 2 --seeds 1,2 --name s method.student.lr=choice(1e-3,1e-4) --sampler grid"
    done = lab.run(words, outputs=tmp_path, verb="tune")
    assert done.code == 0, done.err
    records, left_out = runs.collect([tmp_path / "sweeps" / "s"])
    assert len(records) == 4 and not left_out
    assert {record.state for record in records} == {"finished"}
    assert {record.told["group"] for record in records} == {"s"}
    told = json.loads((tmp_path / "sweeps" / "s" / "tune.json").read_text())
    listed = json.loads((tmp_path / "sweeps" / "s" / "sweep.json").read_text())
    assert [job["name"] for job in listed["jobs"]] == [name for trial in told["trials"] for name in trial["runs"]]
    assert [command.split()[:2] for command in listed["commands"]] == [["kdlab", "tune"]]
    for trial in told["trials"]:
        held = [
            runs.Record.open(tmp_path / "sweeps" / "s" / name).finished["scores"]["heldout"]["accuracy"]["selected"]
            for name in trial["runs"]
        ]
        assert trial["score"] == pytest.approx(sum(held) / 2)
    assert "2 of 2 trials: 2 finished" in done.out
    ran = done.stages("run").count("tokenise")  # once, unless an earlier test has left it in the store
    assert ran <= 1 and ran + done.stages("hit").count("tokenise") == 4
    again = lab.run(words, outputs=tmp_path, verb="tune")
    assert again.code == 0 and "job " not in again.out and told["command"] in again.out
