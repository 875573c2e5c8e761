"""A stage's identity is made of what can change a number, and of nothing else."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import Any

import pytest

from kdlab import checks, compose, methods
from kdlab.graph import UNPINNED, Graph, Stage, Work, canonical
from kdlab.pins import Pins

SETS = {"prepare_sets", "tokenise_sets"}
SCORED = {"evaluate_student", "measure_student"}
TAUGHT = {"layers", "logits"} | SCORED  # all that is made of the student
OF_TEACHER = {"teacher", "evaluate_teacher", "vet", "measure_teacher", "teacher_logits"}
EVERYTHING = {"prepare", "tokenise", *SETS} | OF_TEACHER | TAUGHT


def stage(label: str, name: str | None = None, **rest: object) -> Stage:
    return Stage(f"somewhere:{name or label}", label, **rest)  # type: ignore[arg-type]


def planned(line: str = "") -> Graph:
    (job,) = compose.jobs(["task=demo/nli", "model=tiny", *shlex.split(line)]).jobs
    return methods.plan(job.run, Pins())


def fingerprints(graph: Graph) -> dict[str, str]:
    found = {one.label: one.fingerprint for one in graph}
    assert len(found) == len(graph.stages)
    return found


def changed(line: str, base: str = "") -> set[str]:
    """Labels of the stages whose identity a command line changes."""
    before, after = fingerprints(planned(base)), fingerprints(planned(f"{base} {line}"))
    assert before.keys() == after.keys()
    return {label for label in before if before[label] != after[label]}


# single stages


def test_equal_content_is_equal_identity_whatever_the_order_of_keys() -> None:
    one = stage("a", values={"x": 1, "y": {"b": [1, 2], "a": None}})
    other = stage("a", values={"y": {"a": None, "b": [1, 2]}, "x": 1})
    assert one.fingerprint == other.fingerprint
    assert len(one.fingerprint) == 64 and one.artifact == f"a-{one.fingerprint[:16]}"
    data, teacher = stage("data"), stage("teacher")
    left = stage("s", inputs={"data": data, "teacher": teacher})
    right = stage("s", inputs={"teacher": teacher, "data": data})
    assert left.fingerprint == right.fingerprint


def test_whatever_can_change_a_number_changes_the_identity() -> None:
    data = stage("data", values={"rows": 3})
    base = stage("s", values={"x": 1, "deep": {"lr": 0.1}}, inputs={"data": data})
    others = [
        stage("s", "t", values=base.values, inputs=base.inputs),  # another function
        stage("s", values={**base.values, "x": 2}, inputs=base.inputs),
        stage("s", values={**base.values, "x": 1.5}, inputs=base.inputs),
        stage("s", values={**base.values, "deep": {"lr": 0.2}}, inputs=base.inputs),
        stage("s", values={**base.values, "more": None}, inputs=base.inputs),
        stage("s", values=base.values, inputs={"data": stage("data", values={"rows": 4})}),
        stage("s", values=base.values, inputs={"other": data}),
        stage("s", values=base.values, inputs={"data": data, "other": data}),
        stage("s", values=base.values, inputs=base.inputs, version=2),
    ]
    assert len({base.fingerprint, *(one.fingerprint for one in others)}) == len(others) + 1


def test_places_labels_work_and_order_are_not_in_the_identity() -> None:
    base = stage("s", values={"model": {"content": "abc"}})
    other = Stage(
        "elsewhere:s",
        "another label",
        values={"model": {"content": "abc"}},
        places={"model": "/some/folder"},
        after=(stage("vet"),),
        parallel=True,
        work=Work(examples=3, checkpoint=True),
    )
    assert base.fingerprint == other.fingerprint
    assert other.arguments() == {"model": {"content": "abc", "path": "/some/folder"}}
    assert base.arguments() == {"model": {"content": "abc"}}


def test_a_value_that_is_not_a_number_is_a_bug() -> None:
    with pytest.raises(ValueError):
        canonical({"lr": float("nan")})


def test_the_fingerprint_does_not_depend_on_the_process() -> None:
    code = (
        "from kdlab.graph import Stage;"
        "d = Stage('m:data', 'd', values={'b': {'x', }.__len__(), 'a': ['é', None, 1e-5]});"
        "print(Stage('m:s', 's', values={'z': True}, inputs={'d': d}).fingerprint)"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    data = Stage("m:data", "d", values={"a": ["é", None, 1e-5], "b": 1})
    assert seen == {Stage("m:s", "s", values={"z": True}, inputs={"d": data}).fingerprint + "\n"}


def test_a_stage_is_pinned_if_all_that_goes_into_it_is() -> None:
    loose = stage("teacher", values={"model": {"id": "a/b", "revision": UNPINNED}})
    assert not loose.pinned
    assert not stage("student", inputs={"teacher": loose}).pinned
    assert stage("student", values={"revision": "0" * 40}).pinned


# graphs


def diamond() -> tuple[Graph, dict[str, Stage]]:
    data = stage("data")
    left, right = stage("left", inputs={"data": data}), stage("right", inputs={"data": data})
    guard = stage("guard", inputs={"left": left})
    end = stage("end", inputs={"left": left, "right": right}, after=(guard,))
    return Graph.of({"end": end}), {one.label: one for one in (data, left, right, guard, end)}


def test_every_stage_comes_after_what_it_needs() -> None:
    graph, stages = diamond()
    order = [one.label for one in graph]
    assert sorted(order) == sorted(stages)
    for one in graph:
        for need in one.needs():
            assert order.index(need.label) < order.index(one.label)


def test_needed_by_and_dependents() -> None:
    graph, stages = diamond()
    assert graph.needed_by(stages["data"]) == ["left", "right"]
    assert graph.needed_by(stages["left"]) == ["guard", "end"]
    assert graph.needed_by(stages["guard"]) == ["end"]
    assert graph.needed_by(stages["end"]) == []

    def labels(*names: str) -> set[str]:
        again = graph.dependents(names)
        return {one.label for one in graph if one.fingerprint in again}

    assert labels("right") == {"right", "end"}
    assert labels("left") == {"left", "guard", "end"}
    assert labels("guard") == {"guard", "end"}
    assert labels("data") == set(stages)
    assert labels() == labels("nothing of that name") == set()


def test_equal_stages_are_one() -> None:
    def teacher() -> Stage:
        return stage("teacher", inputs={"data": stage("data")})

    one = stage("student", values={"seed": 1}, inputs={"teacher": teacher()})
    two = stage("student", values={"seed": 2}, inputs={"teacher": teacher()})
    graph = Graph.of({"one": one, "two": two})
    assert [one.label for one in graph] == ["data", "teacher", "student", "student"]
    assert graph.needed_by(teacher()) == ["student", "student"]


def test_the_identity_of_a_run_is_that_of_its_targets() -> None:
    graph, stages = diamond()
    again, _ = diamond()
    assert graph.identity() == again.identity()
    assert graph.identity() != Graph.of({"end": stages["left"]}).identity()
    assert graph.identity() != Graph.of({"other": stages["end"]}).identity()


def test_describe_is_plain_json_with_every_edge() -> None:
    graph, stages = diamond()
    told = {entry["label"]: entry for entry in json.loads(json.dumps(graph.describe()))}
    assert told["end"]["inputs"] == {name: stages[name].artifact for name in ("left", "right")}
    assert told["end"]["after"] == [stages["guard"].artifact]
    assert told["end"]["fingerprint"] == stages["end"].fingerprint


@pytest.mark.parametrize(
    ("work", "steps"),
    [
        (Work(examples=10, batch_size=4, epochs=2), 6),
        (Work(examples=8, batch_size=4, epochs=2), 4),
        (Work(examples=10, batch_size=4, epochs=2, drop_last=True), 4),
        (Work(examples=10, batch_size=4, epochs=2, max_steps=5), 5),
        (Work(examples=4, batch_size=4, max_steps=5), 1),
        (Work(batch_size=4, max_steps=5), None),
    ],
)
def test_steps(work: Work, steps: int | None) -> None:
    assert work.steps() == steps


# planned runs


@pytest.mark.parametrize(
    "line",
    [
        "method=cr_ild",
        "seed=42 precision=fp32 select_on=heldout debug=off",
        "method.layers.lr={method.layers.lr} method.layers.epochs={method.layers.epochs}",
        "method.logits.temperature=2 method.logits.alpha=0.0 method.teacher.lr={method.teacher.lr}",
        "task.epochs.layers={task.epochs.layers} task.max_length={task.max_length} task.heldout={task.heldout}",
        "'method.layers.consistency={{terms: [attention,hidden], ramp: linear, weight: 0.1}}'",
        "method.teacher_seed=42 method.layers.projection=auto",
        "hardware.micro_batch=0",
        "name=my-run store=elsewhere outputs=there fresh=[teacher]",
    ],
)
def test_an_explicit_default_is_the_implicit_one(line: str) -> None:
    (job,) = compose.jobs(["task=demo/nli", "model=tiny"]).jobs
    assert changed(line.format(**vars(job.run))) == set()


@pytest.mark.parametrize(
    ("line", "labels"),
    [
        ("method.logits.temperature=3", TAUGHT - {"layers"}),
        ("method.logits.alpha=0.5", TAUGHT - {"layers"}),
        ("method.logits.epochs=1", TAUGHT - {"layers"}),
        ("method.layers.lr=1e-4", TAUGHT),
        ("method.layers.mixup=0.5", TAUGHT),
        ("method.layers.consistency.weight=0", TAUGHT),
        ("method.layers.relations=[hidden]", TAUGHT),
        ("seed=7", TAUGHT),  # one teacher serves all seeds
        ("model.student.config.hidden_dropout_prob=0.1", TAUGHT),
        ("method.teacher_seed=7", EVERYTHING - {"prepare", "tokenise"} - SETS),
        ("method.teacher.lr=1e-3", EVERYTHING - {"prepare", "tokenise"} - SETS),
        ("precision=bf16", EVERYTHING - {"prepare", "tokenise"} - SETS),
        ("select_on=last", EVERYTHING),  # no rows are held out then
        ("task.max_length=16", EVERYTHING - {"prepare", "prepare_sets"}),
        ("task.few.examples=100", EVERYTHING),
        ("task.few.examples=100 task.few.balanced=true task.few.teacher=own", EVERYTHING),
        ("task.noise.rate=0.2", EVERYTHING),
        ("task.imbalance.ratio=2", EVERYTHING),
        ("method.layers.layer_map=uniform", TAUGHT),
        ("method.layers.relation_divergence=mse", TAUGHT),
        ("method.layers.projection=always", TAUGHT),
        ("curves=8", set()),
        ("task.metrics=[macro_f1]", set()),  # every metric is computed; these are shown
        ("method.weak_teacher=warn", {"vet"}),
        ("tracking=none", set()),
        ("hardware.eval_batch=8 hardware.checkpoint_seconds=1", set()),
        ("hardware=cpu", {"measure_student", "measure_teacher"}),  # latency is of a machine, nothing else is
        ("hardware.threads=1", {"measure_student", "measure_teacher"}),
    ],
)
def test_a_change_rekeys_what_it_can_change(line: str, labels: set[str]) -> None:
    assert changed(line) == labels


def test_evaluation_sets_train_nothing_anew() -> None:
    """glue/mnli and glue/ax differ in them: they share a teacher, and a student."""
    with_test, without = (fingerprints(planned(line)) for line in ("", "task.splits.test=null"))
    assert with_test.keys() - without.keys() == SETS
    assert {label for label in without if with_test[label] != without[label]} == {
        *("evaluate_teacher", "evaluate_student", "vet")
    }


def test_padding_couples_examples_where_it_counts() -> None:
    """Then the width of a pass decides on the numbers, and who is in it is part of the identity."""
    line = "method=l_ild method.layers.pad_rows=include"
    assert changed("hardware.micro_batch=8", line) == TAUGHT
    assert changed("hardware.micro_batch=8", f"{line} task.pad_to_max=true") == set()


def test_a_teacher_is_judged_on_held_out_rows_of_its_own() -> None:
    for line in ("task.few.examples=60 task.few.teacher=own seed=1", "task.noise.rate=0.3 task.noise.teacher=clean"):
        graph = planned(f"method=kd {line}")
        stages = {stage.label: stage for stage in graph}
        assert stages["evaluate_teacher"].inputs["data"] is stages["teacher"].inputs["data"]
        assert stages["evaluate_student"].inputs["data"] is stages["logits"].inputs["data"]
        assert stages["evaluate_teacher"].inputs["data"] is not stages["evaluate_student"].inputs["data"]


def test_a_supplement_is_a_matter_of_the_layer_stage() -> None:
    plain, other, few = (
        fingerprints(planned(line))
        for line in ("", "task@supplement=demo/nli", "task@supplement=demo/nli supplement.few.examples=9")
    )
    assert few.keys() - plain.keys() == {"prepare_supplement", "tokenise_supplement"}
    for changed_one in (other, few):
        assert {label for label in plain if plain[label] != changed_one[label]} == TAUGHT
    assert other["layers"] != few["layers"]
    kd = [fingerprints(planned(f"method=kd {line}")) for line in ("", "task@supplement=demo/nli")]
    assert kd[0] == kd[1]


@pytest.mark.parametrize(
    "line",
    [
        "method=l_ild method.layers.transport.separate=false",
        "method=l_ild method.layers.consistency.decay=0.5",
        "method=kd method.logits.mixed.target=clean",
        "method=kd task.noise.seed=5",
        "method=kd task.imbalance.seed=5",
    ],
)
def test_settings_of_what_is_off_are_no_part_of_the_identity(line: str) -> None:
    """They are refused on the command line; a preset may hold them."""
    method, _, rest = line.rpartition(" ")
    (job,) = compose.jobs(shlex.split(f"task=demo/nli model=tiny {method}")).jobs
    before = fingerprints(methods.plan(job.run, Pins()))
    *path, name = rest.partition("=")[0].split(".")
    value = {"separate": False, "decay": 0.5, "target": "clean", "seed": 5}[name]
    node: Any = job.run
    for part in path:
        node = getattr(node, part)
    assert getattr(node, name) != value
    setattr(node, name, value)
    assert fingerprints(methods.plan(job.run, Pins())) == before


def test_rows_per_forward_pass_are_in_the_identity_only_where_examples_are_mixed() -> None:
    assert changed("hardware.micro_batch=8") == TAUGHT
    assert changed("hardware.micro_batch=8", "method.layers.mixup=0 method.layers.consistency.weight=0") == set()
    assert changed("hardware.micro_batch=8", "method=kd") == set()


def test_a_consistency_term_without_weight_is_the_same_whatever_its_other_settings() -> None:
    both = "method.layers.mixup=0 method.layers.consistency.weight=0"
    (job,) = compose.jobs(shlex.split(f"task=demo/nli model=tiny {both}")).jobs
    before = fingerprints(methods.plan(job.run, Pins()))
    job.run.method.layers.consistency.ramp = "constant"  # type: ignore[attr-defined]
    assert fingerprints(methods.plan(job.run, Pins())) == before


def test_methods_share_their_teacher_and_their_data() -> None:
    graphs = {name: fingerprints(planned(f"method={name}")) for name in ("ft", "kd", "cr_ild")}
    assert graphs["kd"]["teacher"] == graphs["cr_ild"]["teacher"]
    assert graphs["kd"]["teacher_logits"] == graphs["cr_ild"]["teacher_logits"]
    assert len({graph["tokenise"] for graph in graphs.values()}) == 1
    assert graphs["kd"]["logits"] != graphs["cr_ild"]["logits"]
    assert set(graphs["ft"]) == {"prepare", "tokenise", "student"} | SETS | SCORED


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ("method=kd", {"teacher_logits"}),
        ("method=kd method.logits.alpha=0.5", {"teacher_logits"}),
        ("method=cr_ild", {"teacher_logits"}),
        ("method=kd debug.steps=3", {"teacher"}),  # not all rows for a few steps
        ("method=kd debug.steps=3 debug.rows=9", {"teacher_logits"}),
        ("method=mixcons", {"teacher_logits"}),  # mixes the teacher's answers to clean inputs
        ("method=mixkd", {"teacher"}),
        ("method=mixkd method.logits.alpha=0.5", {"teacher", "teacher_logits"}),
        ("method=mixkd method.logits.mixed.logit=0", {"teacher"}),  # of its curves
        ("method=mixkd method.logits.mixed.logit=0 method.logits.alpha=0", {"teacher_logits"}),
    ],
)
def test_the_teacher_runs_in_training_only_for_mixtures(line: str, needs: set[str]) -> None:
    (job,) = compose.jobs(["task=demo/nli", "model=tiny", *line.split()]).jobs
    graph = methods.plan(job.run, Pins())
    stages = {one.label: one for one in graph}
    assert stages["logits"].inputs.keys() & {"teacher", "teacher_logits"} == needs
    assert ("teacher_logits" in stages) == ("teacher_logits" in needs)
    assert sorted(checks.labels(job.run)) == sorted(stages)
    if "teacher_logits" in stages:
        assert [one.label for one in stages["teacher_logits"].after] == ["vet"]
