"""`kdlab plan` shows what a run would do, does nothing, and refuses what can't work before any weights are touched."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from kdlab import methods
from kdlab.config import Distillation
from kdlab.errors import ConfigError
from kdlab.graph import Graph
from kdlab.models.architectures import longest_input
from kdlab.pins import Pins
from lab import PAIR, TINY, Lab, composed

DEMO = f"task=demo/nli {PAIR}"
LABELS = ["entailment", "neutral", "contradiction"]
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}


def planned(line: str) -> Graph:
    return methods.plan(composed(line), Pins())


def problems(line: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        planned(line)
    return caught.value.problems


def folder(path: Path, **config: Any) -> Path:
    """A model of which only the configuration can be looked at."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**BERT, **config}))
    return path


def pair(tmp_path: Path, student: dict[str, Any], teacher: dict[str, Any] | None = None) -> str:
    """Words for a local teacher and a local student."""
    paths = folder(tmp_path / "teacher", **(teacher or {})), folder(tmp_path / "student", **student)
    return f"task=demo/nli model=distilbert model.teacher.id={paths[0]} model.student.id={paths[1]}"


def row(out: str, label: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [label]]
    return line.split()


# what is shown


def test_a_plan_names_every_stage_and_runs_none(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = lab.command(f"plan {DEMO}")
    assert done.code == 0 and list(tmp_path.iterdir()) == []
    run = composed(DEMO)
    assert isinstance(run.method, Distillation) and run.task.rows
    rows = round(run.task.rows * (1 - run.task.heldout))
    for label, needed_by in (("teacher", "evaluate_teacher"), ("layers", "logits"), ("logits", "evaluate_student")):
        fit = getattr(run.method, label)
        steps = fit.epochs * math.ceil(rows / fit.batch_size)
        assert row(done.out, label)[1:3] == ["run", needed_by]
        assert str(steps) in row(done.out, label)
        assert "~" in row(done.out, label)  # tokens are not known before the data is there
    for label in ("prepare", "tokenise", "evaluate_teacher", "vet", "measure_teacher", "evaluate_student"):
        assert row(done.out, label)[1] == "run"
    state, needed_by, amount, unit = row(done.out, "teacher_logits")[1:]  # no steps, no tokens, no model to keep
    assert (state, needed_by) == ("run", "logits") and float(amount) > 0 and unit in ("s", "min")
    assert row(done.out, "vet")[2] == "layers" and row(done.out, "evaluate_student")[2] == "result"
    assert "to run" in done.out and "13 of 13" in done.out


def test_a_plan_after_the_run_is_all_cached(lab: Lab, tmp_path: Path) -> None:
    line = f"method=kd {TINY}"
    assert lab.run(line, outputs=tmp_path).code == 0
    before = sorted(tmp_path.rglob("*"))
    done = lab.run(line, outputs=tmp_path, verb="plan")
    assert "0 of 12" in done.out and " run " not in done.out.replace("to run", "")
    teacher = row(done.out, "teacher")
    assert teacher[1] == "cached" and "4" in teacher and "~" not in teacher
    fresh = lab.run(f"{line} fresh=[logits]", outputs=tmp_path, verb="plan")
    states = {label: row(fresh.out, label)[1] for label in ("teacher", "vet", "logits", "evaluate_student")}
    assert states == {"teacher": "cached", "vet": "cached", "logits": "run", "evaluate_student": "run"}
    assert "3 of 12" in fresh.out
    changed = lab.run(f"{line} method.logits.temperature=3", outputs=tmp_path, verb="plan")
    assert row(changed.out, "teacher")[1] == "cached" and row(changed.out, "logits")[1] == "run"
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_stage_is_shown_as_one_to_resume(lab: Lab, tmp_path: Path) -> None:
    (stage,) = [stage for stage in planned(f"method=kd {TINY}") if stage.label == "teacher"]
    (tmp_path / "artifacts" / "building" / stage.artifact / "work" / "step-2").mkdir(parents=True)
    done = lab.command(f"plan method=kd {TINY} store={tmp_path / 'artifacts'}")
    assert row(done.out, "teacher")[1] == "resume" and row(done.out, "logits")[1] == "run"


def test_a_sweep_lists_what_its_jobs_share_once(lab: Lab, tmp_path: Path) -> None:
    done = lab.command(f"plan -m method=ft,kd,cr_ild seed=1,2 {DEMO} store={tmp_path}")
    assert done.code == 0 and done.out.startswith("6 jobs")
    labels = [line.split()[0] for line in done.out.splitlines() if " run " in line and "to run" not in line]
    assert labels.count("prepare") == labels.count("tokenise") == labels.count("teacher") == labels.count("vet") == 1
    assert labels.count("student") == 2 and labels.count("layers") == 2 and labels.count("logits") == 4


MAPS = {
    "method=cr_ild": ["layers: layer map last: student <- teacher", " 2 <-  4  attention, hidden"],
    "method=tinybert": [
        "layers: layer map uniform: student <- teacher",
        " 2 <-  4  attention, hidden",
        " 1 <-  2  attention, hidden",
        " 0 <-  0  embedding",
    ],
    "method=pkd": ["joint: layer map skip: student <- teacher", " 1 <-  2  patient"],
    "method=pkd method.joint.layer_map=top": ["joint: layer map top: student <- teacher", " 1 <-  3  patient"],
    "method=lti": ["joint: layer map last_to_all: student <- teacher", " 2 <-  4  patient", " 1 <-  4  patient"],
    "method=bert_emd": [
        "layers: layer map transport: student <- teacher",
        "1..2 <- 1..4, as the transport decides: attention, hidden",
        " 0 <-  0  embedding",
    ],
    "method=l_ild method.layers.layer_map=pairs method.layers.pairs=[1-1,2-3]": [
        "layers: layer map pairs: student <- teacher",
        " 2 <-  3  attention, hidden",
        " 1 <-  1  attention, hidden",
    ],
}


@pytest.mark.parametrize("line", MAPS)
def test_the_layer_map_is_drawn(line: str, lab: Lab) -> None:
    done = lab.command(f"plan {DEMO} {line}")
    assert done.code == 0, done.err
    first, *rest = MAPS[line]
    shown = done.out.splitlines()
    place = shown.index(first)
    assert shown[place + 1 : place + 1 + len(rest)] == [f"  {text}" for text in rest]
    assert shown[place + 1 + len(rest)].startswith("~")


def test_a_sweep_says_once_what_its_jobs_say_alike(lab: Lab) -> None:
    line = "task.few.examples=100 task.few.teacher=own task.noise.rate=0.3 seed=1,2"
    done = lab.command(f"plan -m {DEMO} method=u_ild,l_ild {line}")
    assert done.code == 0, done.err
    assert done.out.count("prepare (of 2): few: 100 examples; teacher on its own 100 (seed 42)") == 1
    assert "  noise: 30 % of training labels changed (seed 0); teacher on noisy labels" in done.out
    assert "layers (of 2): layer map uniform" in done.out and "layers (of 2): layer map last" in done.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "method=minilm_v2 method.layers.relation_heads=7",
            "method.layers.relation_heads=7: does not divide 64, the w",
        ),
        ("method=l_ild method.layers.layer_map=pairs method.layers.pairs=[1-5]", "its teacher 1 to 4"),
        ("method=l_ild method.layers.layer_map=pairs method.layers.pairs=[1:5]", "not of the form STUDENT-TEACHER"),
        ("method=l_ild method.layers.layer_map=pairs", "layer_map=pairs needs the pairs"),
        ("method=pkd model.student.config.num_hidden_layers=1", "leaves out the last layer, so the student needs two"),
        ("method=joint model.student.config.num_attention_heads=2", "method.joint.relations: attention is compared"),
        (
            "method=minilm_v2 method.layers.relation_heads=0 model.student.config.num_attention_heads=2",
            "relation_heads, a",
        ),
    ],
)
def test_what_does_not_fit_the_two_models(line: str, says: str) -> None:
    assert any(says in problem for problem in problems(f"{DEMO} {line}"))


def test_relation_heads_allow_other_head_counts() -> None:
    assert planned(f"{DEMO} method=minilm_v2 model.student.config.num_attention_heads=2")


def test_what_could_not_be_looked_up_is_unpinned(lab: Lab) -> None:
    done = lab.command("plan method=cr_ild task=glue/rte model=bert_base_to_6")
    assert done.code == 0
    assert row(done.out, "teacher")[1] == row(done.out, "prepare")[1] == "unpinned"
    for name in ("google-bert/bert-base-uncased", "nyu-mll/glue"):
        (line,) = [line for line in done.out.splitlines() if name in line]
        assert line.startswith("unpinned") and "offline, and not in the local cache" in line
    assert "~" in row(done.out, "teacher")


def test_training_something_unpinned_is_refused(lab: Lab, tmp_path: Path) -> None:
    done = lab.run("method=kd task=glue/rte model=bert_base_to_6 tracking=none", outputs=tmp_path)
    assert done.code == 2 and "google-bert/bert-base-uncased" in done.err and "kdlab fetch" in done.err
    assert not list(tmp_path.glob("runs/*/result.json"))


def test_a_second_process_changes_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = planned(f"{DEMO} method=kd")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert planned(f"{DEMO} method=kd").identity() == alone.identity()
    assert planned(f"{DEMO} method=cr_ild").identity() != alone.identity()


# what is refused


def test_a_student_deeper_than_its_teacher() -> None:
    found = problems(f"{DEMO} method=kd model.student.config.num_hidden_layers=6")
    assert found == ["model.student has 6 layers, its teacher 4: a student can't be deeper"]
    alone = " ".join(word for word in map(shlex.quote, shlex.split(DEMO)) if "model.teacher." not in word)
    assert planned(f"{alone} method=ft model.student.config.num_hidden_layers=6")


def test_a_student_cut_where_the_teacher_has_no_layers(tmp_path: Path) -> None:
    base = f"task=demo/nli model=minilm_6_to_3 model.teacher.id={folder(tmp_path / 'teacher')} method=kd"
    assert planned(base)
    found = problems(f"{base} model.student.num_layers=6")
    assert len(found) == 1 and "can't keep 4, 5" in found[0] and "can't be deeper" in found[0]
    assert "can't keep 7" in problems(f"{base} model.student.num_layers=null 'model.student.layers=[0,7]'")[0]


def test_heads_must_match_where_heads_are_compared() -> None:
    line = f"{DEMO} method=cr_ild model.student.config.num_attention_heads=2"
    found = problems(line)
    assert len(found) == 1 and "the student has 2 heads and its teacher 4" in found[0]
    assert "method.layers.relation_heads, or hidden" in found[0]
    hidden = "method.layers.relations=[hidden] 'method.layers.consistency.terms=[hidden]'"
    assert planned(f"{line} {hidden}") and planned(line.replace("cr_ild", "kd"))


@pytest.mark.parametrize("kind", ["deberta-v2", "modernbert"])
def test_attention_that_cannot_be_had(tmp_path: Path, kind: str) -> None:
    line = f"{pair(tmp_path, {'model_type': kind}, {'model_type': kind})} method=cr_ild"
    found = problems(line)
    assert len(found) == 2
    for side, problem in zip(("teacher", "student"), found, strict=True):
        assert f"attention can't be had from {kind} (model.{side}); it gives hidden, key, query, value" in problem
    other = "'method.layers.relations=[query,key,value,hidden]' 'method.layers.consistency.terms=[hidden]'"
    assert planned(f"{line} {other}")


def test_a_layer_map_that_does_not_divide() -> None:
    line = f"{DEMO} method=cr_ild model.student.config.num_hidden_layers=3"
    assert planned(line)
    (found,) = problems(f"{line} method.layers.layer_map=uniform")
    assert found.startswith("method.layers: layer_map=uniform needs")


def test_vocabularies_must_be_the_same(tmp_path: Path) -> None:
    (found,) = problems(f"{pair(tmp_path, {'vocab_size': 200, 'num_hidden_layers': 2})} method=kd")
    assert "a vocabulary of 200, its teacher one of 100" in found


def fine_tuned(*labels: str) -> dict[str, Any]:
    return {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(number): label for number, label in enumerate(labels)},
    }


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        (LABELS, False),
        (LABELS[::-1], True),
        (["yes", "maybe", "no"], True),
        (["LABEL_0", "LABEL_1", "LABEL_2"], False),
        (["LABEL_0", "LABEL_1"], False),  # the head is made anew
    ],
)
def test_a_fine_tuned_model_must_name_the_labels_of_the_task(tmp_path: Path, labels: list[str], refused: bool) -> None:
    line = f"{pair(tmp_path, {'num_hidden_layers': 2}, fine_tuned(*labels))} method=kd"
    if not refused:
        assert planned(line)
        return
    (found,) = problems(line)
    assert f"was fine-tuned for the labels {', '.join(labels)}" in found and "task.labels" in found


def test_a_base_model_may_have_any_label_map(tmp_path: Path) -> None:
    config = {**fine_tuned("a", "b", "c"), "architectures": ["BertModel"]}
    assert planned(f"{pair(tmp_path, {'num_hidden_layers': 2}, config)} method=kd")


def test_the_official_head_is_for_bert_only(tmp_path: Path) -> None:
    roberta = {"model_type": "roberta", "num_hidden_layers": 2}
    line = f"{pair(tmp_path, roberta, {'model_type': 'roberta'})} method=kd"
    (found,) = problems(f"{line} model.student.head=official")
    assert "model.student.head: 'official' is defined for bert only, this is roberta" in found
    assert planned(f"{DEMO} method=kd model.student.head=official model.teacher.head=official")


def test_an_architecture_that_is_not_supported(tmp_path: Path) -> None:
    found = problems(f"{pair(tmp_path, {'model_type': 'gpt2'}, {'model_type': 'brt'})} method=kd")
    assert len(found) == 2 and "gpt2" in found[1] and "modernbert" in found[1]


def test_texts_longer_than_the_model_reads(tmp_path: Path) -> None:
    found = problems(f"{DEMO} method=kd task.max_length=65")
    assert len(found) == 2
    assert found[0].startswith("task.max_length=65: model.teacher reads at most 64 tokens")
    assert planned(f"{DEMO} method=kd task.max_length=64")


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"model_type": "bert"}, 512),
        ({"model_type": "distilbert", "max_position_embeddings": 64}, 64),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 0}, 65),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 5}, 512),
        ({"model_type": "deberta-v2", "position_biased_input": False}, None),
        ({"model_type": "deberta-v2"}, 512),
        ({"model_type": "modernbert", "max_position_embeddings": 64}, None),
    ],
)
def test_how_much_an_architecture_reads(config: dict[str, Any], longest: int | None) -> None:
    assert longest_input(config) == longest


def test_all_problems_at_once(tmp_path: Path) -> None:
    student = {"model_type": "bert", "num_hidden_layers": 5, "num_attention_heads": 2, "vocab_size": 7}
    found = problems(f"{pair(tmp_path, student, fine_tuned(*LABELS[::-1]))} method=cr_ild task.max_length=600")
    assert len(found) == 6
    for words in ("labels", "can't be deeper", "vocabulary", "heads", "task.max_length=600"):
        assert any(words in problem for problem in found), words


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_sweep_with_a_bad_job_is_refused_before_its_first(lab: Lab, tmp_path: Path, verb: str) -> None:
    layers = "model.student.config.num_hidden_layers=2,6,7"
    done = lab.run(f"-m method=kd {DEMO} tracking=none {layers} seed=1,2", outputs=tmp_path, verb=verb)
    assert done.code == 2 and done.out == "" and done.err.startswith("error: 2 problems")
    assert "model.student has 6 layers" in done.err and "model.student has 7 layers" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_nothing_behind(lab: Lab, tmp_path: Path) -> None:
    line = f"method=kd {DEMO} tracking=none model.student.config.num_hidden_layers=6"
    for verb in ("plan", "train"):
        done = lab.run(line, outputs=tmp_path, verb=verb)
        assert done.code == 2 and "a student can't be deeper" in done.err
    assert list(tmp_path.iterdir()) == []
