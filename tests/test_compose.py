"""Command lines become checked runs; wrong ones are refused at once, in words that help."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from kdlab import catalog, checks, compose
from kdlab.config import Distillation, Run
from kdlab.errors import ConfigError, DataError
from lab import parts, presets

ARCHIVE = "reasoning/"  # tasks that the authors' folder may give
SEVERAL = presets("task", "crosslingual")  # tasks in several languages
LOCAL = [name for name in SEVERAL if any(part.get("source", {}).get("path") for part in parts("task", name))]


def problems(line: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose.jobs(shlex.split(line))
    return caught.value.problems


def run(line: str = "") -> Run:
    found = compose.jobs(shlex.split(line)).jobs
    assert len(found) == 1
    return found[0].run


def method(line: str = "") -> Distillation:
    chosen = run(line).method
    assert isinstance(chosen, Distillation)
    return chosen


# command line, words that the only problem must hold
MALFORMED = [
    # form
    ("seed", "seed: is not of the form KEY=VALUE"),
    ("cr_ild", "did you mean method=cr_ild?"),
    ("method:kd", "did you mean method=kd?"),
    ("=3", "=3: is not of the form KEY=VALUE"),
    ("method..lr=3", "is not of the form KEY=VALUE"),
    ("method.layers.relations=[hidden", "can't be read; a list is written [a,b]"),
    ("'name=a b)c'", "'key=\"a value\"'"),
    # flags
    ("--seed=3", "unknown flag; did you mean seed=3?"),
    ("--config-dri x", "--config-dri: unknown flag; did you mean --config-dir?"),
    ("--cfg jobs", "invalid choice: 'jobs'"),
    ("--config-dir no/such/folder", "no such folder"),
    # groups and options
    ("mehtod=kd", "mehtod=kd: unknown key; did you mean method?; keys: task, model, rationales, translator, hardware"),
    ("method=cr_ldi", "unknown option; did you mean cr_ild?; allowed: bert_emd, bert_emd_official, cr_ild,"),
    ("task=rte", "did you mean glue/rte?"),
    ("task/glue=rte", "did you mean task=glue/rte?"),
    ("task=fast", "did you mean debug=fast?"),
    ("debug=fats", "did you mean fast?; allowed: fast, off, overfit"),
    ("method=[kd,ft]", "one option only; for a sweep: -m method=kd,ft"),
    ("method=null", "a run needs its method"),
    ("~method", "a run needs its method"),
    ("+method=kd", "write method=kd"),
    ("model@model.teacher=distilbert", "write model=OPTION"),
    ("schema=run", "schemas are chosen by the yaml files"),
    ("hydra/launcher=submitit_slrum", "unknown option"),
    ("hydra/launcher=ray", "needs a plugin: pip install hydra-ray-launcher"),
    ("hydra/sweeper=optuna", "kdlab expands sweeps itself"),
    ("hydra.run.dri=x", "no such setting of hydra"),
    # keys
    ("method.layers.epoch=3", "did you mean method.layers.epochs?; keys of method.layers: epochs, lr"),
    ("lr=1e-4", "did you mean method.teacher.lr or"),
    ("method.temperature=3", "did you mean method.logits.temperature or method.joint.temperature?"),
    ("hardware.thread=1", "did you mean hardware.threads?"),
    ("task.source.hub.x=1", "task.source.hub takes a value and has no keys below it"),
    ("+stray=1", "+stray=1: unknown key"),
    ("++stray=1", "++stray=1: unknown key"),
    ("+method.layers.foo=1", "keys of method.layers: epochs"),
    ("'method.layers={lr: 1e-4, epoch: 3}'", "did you mean method.layers.epochs?"),
    ("~seed", "can't be taken away"),
    ("task.evaluations.mm.splt=x", "did you mean task.evaluations.mm.split?"),
    ("task.evaluations.mm.config=x", "task.evaluations.mm.split: must be given"),
    # types
    ("seed=abc", "seed=abc: takes a whole number, not abc"),
    ("seed=1.5", "takes a whole number, not 1.5"),
    ("seed=null", "takes a whole number, not null"),
    ("seed=", "takes a whole number, not nothing"),
    ("method.layers.lr=fast", "method.layers.lr=fast: takes a number, not fast"),
    ("'method.layers={lr: fast}'", "method.layers.lr takes a number, not fast"),
    ("method.layers=3", "is a section, not a value; its keys: epochs"),
    ("method.layers.drop_last=maybe", "takes true or false"),
    ("task.text=sentence", "takes a list of words, written [a,b]"),
    ("method.layers.relations=attention", "takes a list of attention, hidden, embedding, patient, query, key, value"),
    # references
    ("'seed=${nothing}'", "there is no key 'nothing' to refer to"),
    ("'seed=${seed}'", "leads back to itself"),
    ("'seed=${task.name}'", "refers to 'glue/rte', but takes a whole number"),
    # sweeps
    ("seed=1,2", "several values make a sweep: add -m; a list is written seed=[1,2]"),
    ("-m 'seed=interval(1,2)'", "list the values: seed=1,2,3"),
    ("-m hydra.run.dir=a,b", "can't be swept"),
    ("-m seed=1,x", "seed=x: takes a whole number"),
    # values
    ("precision=fp8", "precision=fp8: allowed: fp32, bf16, fp16"),
    ("select_on=tset", "allowed: heldout, dev, last, test; did you mean test?"),
    ("select_on=test", "is for the families reasoning and crosslingual, whose papers' code selects so; take heldout"),
    ("method.layers.relations=[atention]", "did you mean attention?"),
    ("method.layers.relations=[hidden,hidden]", "'hidden' is there twice"),
    ("method.layers.relations=[]", "at least one of"),
    ("seed=-1", "must be between 0 and 4294967295"),
    ("method.logits.epochs=-1", "must be 0 or more"),
    ("method.layers.lr=0", "must be more than 0"),
    ("method.layers.lr=nan", "must be more than 0"),
    ("method.layers.lr=inf", "must be more than 0"),
    ("method.teacher.batch_size=0", "must be 1 or more"),
    ("method.teacher.warmup=1.5", "between 0 and 1"),
    ("method.logits.temperature=0", "must be more than 0"),
    ("method.logits.alpha=2", "between 0 and 1"),
    ("method.layers.mixup=-1", "must be 0 (off) or more"),
    ("task.heldout=1", "less than 1"),
    ("task.max_length=3", "must be 4 or more"),
    ("debug.steps=0", "must be 1 or more"),
    ("name=a/b", "names a folder"),
    ("hardware.threads=100000", "must be 0 (as torch chooses) to 1024"),
    ("store=", "store=: names a folder"),
    ("outputs=' '", "outputs=: names a folder"),
    # combinations
    ("task.kind=reasoning", "of the family distillation, which needs an encoder task"),
    ("model.kind=decoder", "is a decoder"),
    ("task.source.path=x task.source.hub=a/b", "hub and path are given; exactly one of"),
    ("task.labels=null", "name the classes"),
    ("task.labels=[a,a]", "a class is named twice"),
    ("task.text=[a,b,c]", "one or two columns"),
    ("task.text=[label]", "the text would hold the answer"),
    ("task.metric=pearson", "does not fit a classification task; allowed: accuracy"),
    ("task=glue/stsb task.metric=mcc", "does not fit a regression task; allowed: pearson_spearman"),
    ("task=glue/mnli task.metric=f1", "take macro_f1"),
    ("task.evaluations.dev.split=x", "task.evaluations.dev: take another name"),
    ("model.teacher.init=cut", "only a student is cut"),
    ("model.student.num_layers=null", "give one of model.student.num_layers and model.student.layers"),
    ("model.student.layers=[0,1]", "not both"),
    ("model.student.num_layers=null model.student.layers=[3,1]", "must rise"),
    ("model.student.id=x", "has no effect with init=cut"),
    ("model=distilbert model.student.num_layers=3", "is for model.student.init=cut only"),
    ("model=distilbert model.student.id=null", "model.student.id=null"),
    ("model.tokenizer=words", "model.teacher.init=pretrained knows only its own tokenizer"),
    ("model=tiny model.tokenizer=pretrained", "no model has an id"),
    ("method.layers.mixup=0", "needs mixed inputs"),
    ("method.stages=[logits]", "allowed: [student], [teacher], [teacher,logits]"),
    ("task.heldout=0", "keeps no training rows"),
    ("precision=fp16 hardware=cpu", "a processor can't train in it"),
    ("fresh=[layer]", "did you mean layers?"),
    ("method=ft fresh=[teacher]", "no such stage here; allowed: prepare, tokenise, student"),
    (
        "method=kd method.stages=[teacher] fresh=[vet]",
        "no such stage here; allowed: prepare, tokenise, teacher, evaluate_student, measure_student",
    ),
    # no effect
    (
        "method=ft method.layers.lr=1e-4",
        "method.layers.lr has no effect for method=ft (it has no stage 'layers')",
    ),
    ("method=ft method.weak_teacher=warn", "method.weak_teacher has no effect"),
    ("method=kd method.stages=[teacher] seed=7", "seed has no effect for method.stages=[teacher]"),
    ("method=ft model=distilbert model.teacher.id=x", "model.teacher.id has no effect for method=ft"),
    ("method=ft model.teacher.head=official", "model.teacher.head has no effect"),
    ("method=kd task.epochs.layers=2", "task.epochs.layers has no effect for method=kd"),
    (
        "method.layers.epochs=2 task.epochs.layers=3",
        "task.epochs.layers has no effect for method.layers.epochs=2",
    ),
    ("method.layers.consistency.decay=0.9", "has no effect for method.layers.consistency.target=student"),
    ("method.layers.consistency={weight:0,ramp:constant}", "ramp has no effect"),
    ("method.logits.alpha=1 method.logits.temperature=3", "method.logits.temperature has no effect"),
    ("method.logits.regression_scale=tau2", "(a classification task)"),
    ("task.heldout=0.2 select_on=dev", "task.heldout has no effect for select_on=dev"),
    ("method.logits.patience=3 select_on=last", "patience has no effect for select_on=last"),
    ("-m method=ft,kd method.layers.epochs=2", "method.layers.epochs has no effect"),
    (
        "method=bert_emd method.layers.pairs=[1-2]",
        "method.layers.pairs has no effect for method.layers.layer_map=trans",
    ),
    (
        "method=bert_emd method.layers.transport.update_weights=false method.layers.transport.reset_each_epoch=true",
        "reset_each_epoch has no effect for method.layers.transport.update_weights=false (they never move)",
    ),
    (
        "method=bert_emd method.layers.relations=[hidden] method.layers.transport.separate=false",
        "separate has no effect for method.layers.relations=[hidden] (there is one relation to transport)",
    ),
    ("method=l_ild method.layers.transport.separate=false", "has no effect for method.layers.layer_map=last"),
    ("method=l_ild method.layers.relation_heads=4", "(it is for query, key, value)"),
    ("method=l_ild method.layers.normalise=false", "(it is for patient)"),
    ("method=minilm method.layers.hidden_divergence=l1", "(it is for hidden, embedding, patient)"),
    ("method=minilm method.layers.projection=always", "(it is for hidden, embedding, patient)"),
    ("method=lti method.joint.relation_divergence=mse", "(it is for attention, query, key, value)"),
    (
        "method=lti method.joint.pad_rows=include",
        "method.joint.pad_rows has no effect for method.joint.relations=[patient]",
    ),
    ("method=kd method.logits.mixed.target=clean", "has no effect for method.logits.mixed.mixup=0"),
    ("method=mixcons method.logits.alpha=0.2", "method.logits.alpha has no effect for method.logits.clean=0"),
    ("method=lti method.joint.alpha=1 method.joint.temperature=3", "method.joint.temperature has no effect"),
    (
        "method=cr_ild method.joint.alpha=1",
        "method.joint.alpha has no effect for method=cr_ild (it has no stage 'joint')",
    ),
    ("task.few.balanced=true", "task.few.balanced has no effect for task.few.examples=null"),
    ("task.noise.seed=3", "task.noise.seed has no effect for task.noise.rate=0"),
    ("task.imbalance.seed=3", "task.imbalance.seed has no effect for task.imbalance.ratio=1"),
    ("method=ft task.noise.rate=0.3 task.noise.teacher=clean", "task.noise.teacher has no effect for method=ft"),
    ("task.passages.limit=3", "task.passages.limit has no effect for task.kind=classification"),
    ("task@supplement=glue/cola supplement.noise.rate=0.1", "supplement.noise.rate has no effect for a supplement"),
    ("task@supplement=corpus/wikipedia supplement.few.examples=9", "for fewer rows set supplement.passages.limit"),
    ("method=kd task@supplement=glue/cola supplement.few.examples=9", "it has no stage 'layers'"),
    # conditions, maps, mixtures
    ("task.noise.rate=1", "task.noise.rate=1.0: is a share of the labels"),
    ("task.imbalance.ratio=0.5", "must be 1 (off) or more: the most frequent class over the rarest"),
    ("task=glue/mnli task.few.examples=2", "task.few.examples=2: the task has 3 classes; give that many or more"),
    ("task=glue/stsb task.few.examples=9 task.few.balanced=true", "a regression task has no classes to balance"),
    ("task=glue/stsb task.imbalance.ratio=2", "task.imbalance.ratio=2.0: a regression task has no classes"),
    ("supplement.few.examples=9", "there is no supplement; choose one with task@supplement=OPTION"),
    ("task@suplement=glue/cola", "did you mean task@supplement?"),
    ("+task@supplement=glue/cola", "task@supplement is always there; write task@supplement=glue/cola"),
    ("task@supplement=glue/colla", "unknown option; did you mean glue/cola?"),
    ("method=kd method.logits.clean=0", "no input is left; give method.logits.mixed.mixup=1.0 too"),
    ("method=mixkd method.logits.mixed.logit=0 method.logits.mixed.label=0", "leave the mixed inputs no weight"),
    (
        "method=mixcons method.logits.mixed.logit=0 method.logits.mixed.label=1",
        "set method.logits.mixed.target=mixed too",
    ),
    ("method=joint method.joint.logit_weight=0", "must be more than 0: nothing else trains the classifier"),
    ("method=joint method.joint.teacher=pretrained", "method.joint.teacher=pretrained: unknown key"),
    ("method=minilm method.layers.relation_mask=none", "set method.layers.pad_rows=include"),
    ("method=bert_emd method.layers.relations=[embedding]", "[embedding] are not transported; add attention or hidden"),
    ("method=bert_emd method.layers.relations=[hidden,patient]", "patient is one vector of given layers"),
    ("method=cr_ild method.layers.layer_map=transport", "consistency needs given layers; set its weight to 0"),
    ("method=joint method.stages=[teacher,layers,joint]", "method.stages=[teacher,layers,joint]: allowed: [student]"),
    ("method=joint fresh=[logits]", "fresh=[logits]: no such stage here"),
    ("curves=-1", "curves=-1: must be 0 (none) or more"),
]


@pytest.mark.parametrize(("line", "words"), MALFORMED, ids=[line for line, _ in MALFORMED])
def test_a_malformed_command_line_is_refused(line: str, words: str) -> None:
    found = problems(line)
    assert len(found) == 1, found
    assert words in found[0]
    assert "\n" not in found[0]
    for chatter in ("Traceback", "full_key", "object_type", "ConfigCompositionException", "HYDRA_FULL_ERROR"):
        assert chatter not in found[0]


def test_all_problems_of_all_jobs_come_at_once_and_once() -> None:
    found = problems(
        "-m method=kd,kf,cr_ild task=glue/rte,glue/cola seed=1,two mehtod=kd method.logits.lr=fast "
        "method.layers.epoch=3 +stray=1 precision=fp8 model=tniy"
    )
    starts = [
        "method=kf: unknown option",
        "seed=two: takes a whole number",
        "mehtod=kd: unknown key",
        "method.logits.lr=fast: takes a number",
        "method.layers.epoch=3: unknown key",
        "+stray=1: unknown key",
        "model=tniy: unknown option; did you mean tiny?",
    ]
    for start in starts:
        assert len([text for text in found if text.startswith(start)]) == 1, start
    assert len(found) == len(starts)  # the wrong precision is looked at once the groups are right
    both = problems("seed=two precision=fp8 method.layers.lr=0")
    assert [text.split(":")[0] for text in both] == ["seed=two", "precision=fp8", "method.layers.lr=0.0"]


def test_the_defaults() -> None:
    chosen = run()
    assert (chosen.method.name, chosen.task.name, chosen.model.name) == (
        "cr_ild",
        "glue/rte",
        "bert_base_to_6",
    )
    assert (chosen.seed, chosen.precision, chosen.select_on, chosen.debug.name) == (
        42,
        "fp32",
        "heldout",
        "off",
    )
    assert isinstance(chosen.method, Distillation)
    assert type(chosen.method.stages) is list and json.dumps(asdict(chosen))


def test_the_command_line_wins_over_presets() -> None:
    chosen = run("method=kd model=minilm_6_to_3 task=glue/cola method.logits.lr=1e-3")
    assert (chosen.model.name, chosen.task.name) == ("minilm_6_to_3", "glue/cola")
    assert isinstance(chosen.method, Distillation) and chosen.method.logits.lr == 1e-3
    assert run("model=tiny task=demo/nli method=cr_ild").model.name == "tiny"
    assert run("experiment=crild/seeds task=glue/mrpc method=kd").task.name == "glue/mrpc"


def test_an_experiment_wins_over_the_method() -> None:
    chosen = method("method=cr_ild experiment=cpu/short")
    assert (chosen.teacher.epochs, chosen.layers.epochs, chosen.logits.epochs) == (4, 2, 2)
    assert run("experiment=crild/seeds").select_on == "dev"
    assert run("experiment=null").seed == run("~experiment").seed == 42


def test_epochs_follow_the_task() -> None:
    assert method("task=glue/rte").layers.epochs == 20
    assert method("task=glue/mnli").layers.epochs == 5
    assert method("task.epochs.layers=3").layers.epochs == 3


def test_methods_of_a_sweep_share_one_teacher() -> None:
    teachers = [method(f"method={name}").teacher for name in ("kd", "cr_ild")]
    assert teachers[0] == teachers[1]


def test_cr_ild_is_the_papers() -> None:
    chosen = method("method=cr_ild")
    assert chosen.stages == ["teacher", "layers", "logits"]
    assert (chosen.teacher.lr, chosen.teacher.batch_size) == (2e-5, 16)
    assert (chosen.layers.lr, chosen.layers.batch_size, chosen.layers.mixup) == (3e-5, 32, 1.0)
    assert (chosen.logits.lr, chosen.logits.batch_size, chosen.logits.temperature) == (3e-5, 16, 2.0)
    assert chosen.layers.relations == ["attention", "hidden"]
    assert (chosen.layers.consistency.weight, chosen.layers.consistency.ramp) == (0.1, "linear")


def test_cr_ild_official_is_the_scripts() -> None:
    chosen = run("method=cr_ild_official task=glue/cola")
    assert (chosen.task.max_length, chosen.task.pad_to_max, chosen.select_on) == (128, True, "dev")
    assert (chosen.model.teacher.head, chosen.model.student.head) == ("official", "official")
    assert isinstance(chosen.method, Distillation)
    layers = chosen.method.layers
    assert (layers.relations, layers.relation_mask) == (["query", "key", "value"], "none")
    assert (layers.pad_rows, layers.projection, layers.optimizer) == ("include", "always", "bert_adam")
    assert len(checks.warnings(chosen)) == 2  # attention and hidden: configured, but no relation has them


def test_presets_that_contribute_warn_of_nothing() -> None:
    for name in ("ft", "kd", "cr_ild"):
        assert checks.warnings(run(f"method={name}")) == []
    assert len(checks.warnings(run("method=kd method.logits.alpha=1"))) == 1
    assert checks.warnings(run("method=mixkd")) == []  # hard labels of clean inputs, and the mixture's soft ones


@pytest.mark.parametrize("line", ["method=mixkd hardware.micro_batch=1", "method=cr_ild method.layers.batch_size=1"])
def test_a_row_that_is_mixed_with_itself_is_warned_of(line: str) -> None:
    (found,) = checks.warnings(run(line))
    assert "a row is mixed with itself" in found


def test_a_supplement_without_a_layer_stage_is_warned_of() -> None:
    """Not refused: in a sweep of methods some have the stage."""
    (found,) = checks.warnings(run("method=kd task@supplement=glue/cola"))
    assert "has no effect for method=kd" in found


def rows_of_options(**options: list[str]) -> list[list[str]]:
    """Command lines in which each option of each group stands once."""
    columns = [[f"{group}={option}" for option in found] for group, found in options.items()]
    return [[word for word in row if word] for row in zip_longest(*columns)]


def check_composed(words: list[str], *names: str) -> None:
    """All options are there, named after their files, with each of these methods."""
    if any(word.startswith("experiment=") for word in words):  # one by one: it may bring a sweep of its own
        found = [job for name in names for job in compose.jobs([f"method={name}", *words]).jobs]
    else:  # a job of a sweep is what it is alone: below
        found = compose.jobs(["-m", f"method={','.join(names)}", *words]).jobs
    assert [job.run.method.name for job in found] == list(names)
    groups = ("task", "model", "rationales", "translator", "hardware", "tracking", "debug")
    for job in found:
        for word in words:
            group, _, option = word.partition("=")
            if group in groups:
                assert getattr(job.run, group).name == option


def own_options(family: str) -> dict[str, list[str]]:
    """Of the experiments those for any method; the papers' ones (test_experiments.py) have their own."""
    found = {group: presets(group, family) for group in ("task", "model", "experiment")}
    found["experiment"] = [name for name in found["experiment"] if name.startswith(("demo/", "cpu/"))]
    return found


def common() -> dict[str, list[str]]:
    return {group: [name for name, _ in catalog.entries(group)] for group in ("hardware", "tracking", "debug")}


def needs(words: list[str]) -> list[str]:
    """What the options among these words leave to be given."""
    return [word for option in words for word in MUST_BE_GIVEN.get(option, [])]


MUST_BE_GIVEN = {
    **{f"task={name}": ["task.source.path=folder"] for name in LOCAL},
    "translator=hf": ["translator.model=owner/name"],
    "translator=recorded": ["translator.path=folder"],
}


def lines_of_distillation() -> list[list[str]]:
    own = own_options("distillation")
    own["task"] = [task for task in own["task"] if not task.startswith("corpus/")]
    return [[*words, *needs(words)] for words in rows_of_options(**own, **common())]


def lines_of_several_languages() -> list[list[str]]:
    own = own_options("crosslingual")
    own["translator"] = [translator for translator, _ in catalog.entries("translator") if translator != "rules"]
    lines = []
    for words in rows_of_options(**own, **common()):
        if "task=demo/sentiment_xx" in words:
            words = [word for word in words if not word.startswith("translator=")] + ["translator=rules"]
        lines.append([*words, *needs(words)])
    return lines


@pytest.mark.parametrize("words", lines_of_distillation(), ids=" ".join)
def test_every_yaml_composes(words: list[str]) -> None:
    check_composed(words, "ft", "kd", "cr_ild")


@pytest.mark.slow
@pytest.mark.parametrize("words", lines_of_distillation(), ids=" ".join)
def test_every_yaml_composes_with_every_method(words: list[str]) -> None:
    check_composed(words, *presets("method", "distillation"))


@pytest.mark.parametrize("words", lines_of_several_languages(), ids=" ".join)
def test_every_yaml_of_several_languages_composes_with_every_method(words: list[str]) -> None:
    check_composed(words, *presets("method", "crosslingual"))


@pytest.mark.parametrize("model", ["mbert", "xlmr_base", "e5_small"])
def test_a_student_without_a_teacher_is_fine_tuned(model: str) -> None:
    check_composed([f"model={model}", "task=multilingual/tweet_sentiment"], "ft")


@pytest.mark.parametrize("name", presets("method", "reasoning"))
def test_every_yaml_of_reasoning_composes_with_every_method(name: str) -> None:
    own = own_options("reasoning")
    more = {"fs_cot": ["method.prompt.exemplars=file"], "zs": [], "zs_cot": [], "ft_answer": []}
    if name in ("zs", "zs_cot", "fs_cot"):  # the default, tiny_decoder, knows nothing
        own["model"] = ["gpt2"] * len(own["task"])
    for words in rows_of_options(**own, **common()):
        given = more.get(name, ["rationales=recorded", "rationales.path=folder"])
        folder = ["task.source.path=folder"] if any(word.startswith(f"task={ARCHIVE}") for word in words) else []
        check_composed([*words, *given, *folder], name)


@pytest.mark.parametrize("name", [name for name, _ in catalog.entries("rationales")])
def test_every_teacher_composes(name: str) -> None:
    needs = {"rules": [], "recorded": ["rationales.path=folder"]}.get(name, ["rationales.model=gpt2"])
    check_composed([f"rationales={name}", "task=demo/coin_flip", *needs], "ft_cot")


@pytest.mark.parametrize("name", [name for name in presets("task", "distillation") if name not in SEVERAL])
def test_every_task_is_a_supplement(name: str) -> None:
    own = ["supplement.source.path=texts.txt"] if name == "corpus/text" else []
    (job,) = compose.jobs(["method=cr_ild", "task=glue/rte", f"task@supplement={name}", *own]).jobs
    assert job.run.supplement is not None and job.run.supplement.name == name
    assert job.run.task.name == "glue/rte"
    if job.run.supplement.kind == "text":
        with pytest.raises(ConfigError, match="has no labels; it can only be a supplement"):
            compose.jobs([f"task={name}", "task.source.path=texts.txt"] if own else [f"task={name}"])


def test_a_sweep_becomes_jobs() -> None:
    found = compose.jobs(["-m", "method=ft,kd", "task=glue/rte,glue/cola", "seed=1,2", "name=mine"])
    assert found.multirun and len(found.jobs) == 8
    assert found.jobs[0].overrides == ["method=ft", "task=glue/rte", "seed=1", "name=mine"]
    assert found.jobs[0].name == "method=ft,seed=1,task=glue_rte"
    assert len({job.name for job in found.jobs}) == 8
    assert [job.run.seed for job in found.jobs[:2]] == [1, 2]
    assert not compose.jobs(["seed=3"]).multirun


def test_kinds_of_sweeps() -> None:
    assert [job.run.seed for job in compose.jobs(["-m", "seed=range(1,4)"]).jobs] == [1, 2, 3]
    assert [job.run.seed for job in compose.jobs(["-m", "seed=choice(4,5)"]).jobs] == [4, 5]
    assert len(compose.jobs(["-m", "seed=1,1"]).jobs) == 1
    assert len(compose.jobs(["-m", "method.layers.relations=[hidden],[attention,hidden]"]).jobs) == 2
    assert len(compose.jobs(["-m"]).jobs) == 1


def test_an_experiment_may_bring_its_sweep() -> None:
    one = ["-m", "experiment=crild/few_1k", "task=glue/rte", "method=kd"]
    seeds = [job.run.seed for job in compose.jobs(one).jobs]
    assert seeds == [42, 43, 44]
    assert [job.run.seed for job in compose.jobs([*one, "seed=7"]).jobs] == [7]
    assert run("experiment=crild/few_1k").seed == 42
    assert len(compose.jobs(["-m", "experiment=null", "seed=1,2"]).jobs) == 2


def test_a_key_that_one_job_of_a_sweep_uses_is_no_problem() -> None:
    found = compose.jobs(["-m", "method=ft,cr_ild", "method.layers.epochs=2"]).jobs
    assert len(found) == 2


def test_names_are_fit_for_folders_and_unique() -> None:
    found = compose.jobs(["-m", "model.teacher.id=a/b,a_b", "hardware=cpu"]).jobs
    assert len({job.name for job in found}) == 2
    for job in found:
        assert "/" not in job.name and job.name.startswith("model.teacher.id=a_b")
    assert compose.jobs(["hardware=cpu", "tracking=none"]).jobs[0].name == "default"
    long = compose.jobs([f"task.text=[{'a' * 300}]"]).jobs[0].name
    assert len(long) <= compose.LONGEST_NAME


def test_free_sections_take_any_key() -> None:
    chosen = run("model.student.config.hidden_dropout_prob=0.2 task.evaluations.mm.split=validation_mismatched")
    assert chosen.model.student.config == {"hidden_dropout_prob": 0.2}
    assert chosen.task.evaluations["mm"].split == "validation_mismatched"
    assert run("'model.student.config={a: {b: 1}}'").model.student.config == {"a": {"b": 1}}


# A user's own folder

TASK = """\
# Are these reviews kind?
defaults:
  - /schema@_here_: task
  - _self_

name: reviews
source: {path: reviews.csv}
text: [review]
label: kind
metric: accuracy
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return folder


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path, "task/mine/reviews.yaml", TASK)
    found = compose.jobs(["--config-dir", str(tmp_path), "task=mine/reviews", "method=kd"])
    assert found.jobs[0].run.task.source.path == "reviews.csv"
    assert found.config_dir == tmp_path


YAML = [
    ("task/mine.yaml", TASK.replace("[review]", "[review"), "task/mine.yaml: is not YAML: expected"),
    (
        "task/mine.yaml",
        TASK.replace("label:", "lable:"),
        "task/mine.yaml: task.lable=kind: unknown key; did you mean task.label?",
    ),
    (
        "task/mine.yaml",
        TASK + "max_length: long\n",
        "task/mine.yaml: task.max_length=long: takes a whole number",
    ),
    ("task/mine.yaml", TASK + "epochs: 3\n", "task.epochs=3: is a section, not a value"),
    ("task/mine.yaml", TASK.replace("text: [review]\n", ""), "task.text: must be given"),
    (
        "task/mine.yaml",
        TASK.replace("_here_: task", "_here_: tsk"),
        "there is no schema 'tsk'; did you mean task?",
    ),
    ("task/mine.yaml", TASK.replace("  - _self_", "  - /other\n  - _self_"), "task/mine.yaml: there is no"),
    (
        "experiment/mine.yaml",
        "seed: 1\n",
        "experiment/mine.yaml: must start with the line '# @package _global_'",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\nsed: 1\n",
        "experiment/mine.yaml: sed=1: unknown key; did you mean seed?",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\nseed: x\nhydra:\n  sweeper:\n    params:\n      seed: 1,2\n",
        "experiment/mine.yaml: seed=x: takes a whole number",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /modle: tiny\n",
        "overrides a group 'modle', which there is not; did you mean model?",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /model: tniy\n",
        "there is no model 'tniy'; did you mean tiny?",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\nseed: ${task.sed}\n",
        "seed=${task.sed}: there is no key 'task.sed'",
    ),
    (
        "experiment/mine.yaml",
        "# @package _global_\nmethod:\n  layers:\n    consistency:\n      on: [hidden]\n",
        "quote the key",
    ),
]


@pytest.mark.parametrize(("name", "text", "words"), YAML, ids=[words for _, _, words in YAML])
def test_a_broken_yaml_file_is_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    write(tmp_path, name, text)
    group = name.split("/")[0]
    found = problems(f"--config-dir {shlex.quote(str(tmp_path))} {group}=mine")
    assert len(found) == 1, found
    assert words in found[0]


def test_every_wrong_value_of_a_file_is_found_with_those_of_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, "task/mine.yaml", TASK + "lable: x\nmax_length: long\nheldout: some\n")
    found = problems(f"--config-dir {shlex.quote(str(tmp_path))} task=mine seed=x model=tniy")
    assert len(found) == 5, found


# Launching


def test_a_failing_job_stops_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def job(chosen: Run, overrides: list[str]) -> int:
        seen.append(chosen.seed)
        assert f"seed={chosen.seed}" in overrides
        if chosen.seed == 1:
            raise DataError("no rows", fix="add some")
        if chosen.seed == 2:
            raise RuntimeError("a bug")
        return 0

    assert compose.launch(["-m", "seed=1,2,3"], job) == [2, 1, 0]
    assert seen == [1, 2, 3]
    err = capsys.readouterr().err
    assert "no rows\n  fix:   add some" in err and "RuntimeError: a bug" in err


def test_nothing_runs_when_one_job_is_wrong() -> None:
    def job(chosen: Run, overrides: list[str]) -> int:
        raise AssertionError

    with pytest.raises(ConfigError):
        compose.launch(["-m", "seed=1,x"], job)


def test_launching_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose.launch(["-m", "seed=1,2"], lambda chosen, overrides: 0) == [0, 0]
    assert compose.hydra_passthrough(["--cfg", "hydra"])
    assert "output_subdir: null" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


# Questions


def test_help_shows_every_group_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert compose.hydra_passthrough(["--help"])
    page = capsys.readouterr().out
    for group in ("task", "model", "hardware", "tracking", "method", "experiment", "debug"):
        assert f"\n  {group}\n" in page
        for name, text in catalog.entries(group):
            assert name in page and text in page
    assert "* glue/rte" in page and "* bert_base_to_6" in page and "* cr_ild " in page  # what `train` alone takes
    assert "$" not in page and "schema" not in page


def test_cfg_prints_what_composes_again(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert compose.hydra_passthrough(["--cfg", "job", "method=kd", "seed=7"])
    text = capsys.readouterr().out
    assert "epochs: ${task.epochs.logits}" in text
    shown = yaml.safe_load(text)
    assert shown["seed"] == 7 and shown["method"]["name"] == "kd" and "hydra" not in shown
    assert compose.hydra_passthrough(["--cfg", "job", "--resolve", "-p", "method.logits", "task.epochs.logits=9"])
    assert yaml.safe_load(capsys.readouterr().out)["epochs"] == 9


def test_questions_about_wrong_lines_are_refused_too() -> None:
    for line, words in [
        ("--cfg job sed=3", "did you mean seed"),
        ("--cfg job -m seed=1,2", "shows one job"),
        ("--info --resolve", "belongs to --cfg"),
        ("--cfg job -p nothing", "no such section"),
    ]:
        with pytest.raises(ConfigError, match=words):
            compose.hydra_passthrough(shlex.split(line))
    assert not compose.hydra_passthrough(["seed=3"])


def test_hydra_answers_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert compose.hydra_passthrough(["--hydra-help"])
    assert "Hydra" in capsys.readouterr().out


def test_composing_imports_no_heavy_library() -> None:
    code = (
        "import sys; from kdlab import compose; compose.jobs(['method=cr_ild'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'wandb', 'numpy'}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()" and done.stderr == ""


MIXED = [
    "method=ft,cr_ild task=demo/nli,glue/stsb model=tiny,minilm_6_to_3 seed=1,2 precision=fp32,bf16",
    "method=kd,cr_ild_official task=glue/rte method.logits.lr=1e-4,3e-4 task.few.examples=10,null debug=fast,off",
    "method=musc,supcon task=demo/sentiment_xx model=tiny_multilingual translator=rules,m2m100 seed=1,2",
]


@pytest.mark.parametrize("line", MIXED)
def test_a_job_of_a_sweep_is_what_it_is_alone(line: str) -> None:
    # what a sweep reads once is copied for each job: no job may leave something behind in another
    found = compose.jobs(["-m", *line.split()]).jobs
    for job in found[:: max(1, len(found) // 3)]:
        compose._package_sources.cache_clear()
        (alone,) = compose.jobs(job.overrides).jobs
        assert alone.run == job.run and alone.overrides == job.overrides


def test_choices_compose_as_hydra_composes_them() -> None:
    composer = compose._Composer(None)
    for line in ("", "method=cr_ild task=glue/rte model=tiny debug=fast", "experiment=cpu/musc", "method=ft_cot"):
        whole = composer.loader.load_configuration("train", line.split(), RunMode.RUN)
        with open_dict(whole):
            del whole["hydra"]
        for _ in range(2):  # as it was merged, and a copy
            ours = composer.compose_task(tuple(line.split()))
            assert OmegaConf.to_container(ours) == OmegaConf.to_container(whole)
            assert OmegaConf.to_object(ours) == OmegaConf.to_object(whole)
            ours.seed = 77  # of this copy alone
