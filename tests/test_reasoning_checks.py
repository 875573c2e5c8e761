"""What can't run in the family of Fine-tune-CoT, or asks for something in vain: one clear message for each."""

from __future__ import annotations

import shlex

import pytest

from kdlab import checks, compose
from kdlab.config import Reasoning
from lab import composed, problems

ARCHIVE = "task=reasoning/multiarith task.source.path=folder"
GPT2 = "model=gpt2"
REMOTE = "model=openai_babbage"
ASKED = "rationales=openai rationales.model=gpt-4o-mini"


# command line, words that the only problem must hold
WRONG = [
    # what fits together
    ("method=ft_cot task=demo/nli", "task=demo/nli: method=ft_cot needs a reasoning task (kind: reasoning)"),
    ("method=ft_cot model=tiny", "model=tiny: is an encoder; method=ft_cot needs a model that generates"),
    ("method=kd task=demo/coin_flip model=tiny", "of the family distillation, which needs an encoder task"),
    ("method=kd task=demo/nli model=tiny_decoder", "is a decoder; method=kd is of the family distillation"),
    (f"method=kd task=demo/nli {REMOTE}", "is an endpoint; method=kd is of the family distillation"),
    ("method=kd task=demo/nli model=tiny model.tokenizer=pieces", "is for models that generate; take pretrained or"),
    ("method=kd task=demo/nli model=tiny select_on=test", "select_on=test: is for the families reasoning and cross"),
    ("method=ft_cot select_on=dev", "select_on=dev: a reasoning task has no dev; take last, heldout, or test"),
    ("method=ft_cot task@supplement=glue/cola", "is for layer distillation, method=ft_cot has no layers"),
    ("method=cr_ild task=glue/rte task@supplement=demo/coin_flip", "is a reasoning task; texts for an encoder"),
    # stages and templates
    ("method=ft_cot method.stages=[rationales,answer]", "allowed: [answer], [student,answer], [rationales,student,"),
    ("method=ft_cot method.stages=[answer,student]", "method.stages=[answer,student]: allowed:"),
    ("method=ft_cot method.stages=[]", "method.stages=[]: allowed:"),
    ("method=ft_cot method.stages=[student,answr]", "method.stages=answr: allowed: rationales, student, answer"),
    ("method=ft_cot method.prompt.template=zs", "takes one of ft_token, ft_cot_token, ft_cot_natural"),
    (f"method=zs method.prompt.template=ft_token {GPT2}", "takes one of zs, zs_cot, fs_cot"),
    ("method=ft_cot method.prompt.template=ft_token", "has no rationales: take out 'rationales'"),
    ("method=ft_answer method.prompt.template=ft_cot_token", "needs rationales: add the stage 'rationales'"),
    ("method=ft_cot method.prompt.template=ft_cot", "ft_token, ft_cot_token, ft_cot_natural; did you mean fs_cot?"),
    ("method=ft_cot fresh=[teacher]", "fresh=[teacher]: no such stage here; allowed: questions, rationales, curate,"),
    ("method=ft_answer fresh=[rationales]", "allowed: questions, encode, student, answers, student_scores, measure_s"),
    (f"method=ft_answer fresh=[encode] {REMOTE}", "allowed: questions, student, answers, student_scores"),
    # students
    ("method=zs", "model=tiny_decoder: method=zs asks the student as it is, and this one has random weights"),
    ("method=ft_cot model.student.init=cut", "model.student.init=cut: is for encoders"),
    ("method=ft_cot model.tokenizer=words", "model.tokenizer=words: can't write a word that it has not seen"),
    (f"method=ft_cot {GPT2} model.tokenizer=pieces", "knows only its own tokenizer; take pretrained"),
    (f"method=ft_cot {GPT2} model.student.id=null", "model.student.id=null: a pre-trained model needs its name"),
    ("method=ft_cot model.student.head=official", "model.student.head=official: is for encoders"),
    (f"method=ft_answer {REMOTE} select_on=test", "an endpoint's student has one checkpoint; take select_on=last"),
    (f"method=ft_answer {REMOTE} model.student.id=null", "give the endpoint's name of the model"),
    (f"method=ft_answer {REMOTE} model.base_url=host/v1", "model.base_url=host/v1: must start with http://"),
    # teachers
    (f"method=ft_cot {ARCHIVE}", "rationales=rules: writes for the embedded tasks (demo/coin_flip, "),
    ("method=ft_cot rationales=recorded", "rationales.path=null: give the folder of the recorded completions"),
    ("method=ft_cot rationales=openai", "rationales.model=null: rationales=openai needs the name of a model"),
    ("method=ft_cot rationales=local", "rationales.model=null: rationales=local needs the name of a model"),
    (f"method=ft_cot {ASKED} rationales.api=chats", "rationales.api=chats: allowed: auto, completions, chat"),
    (f"method=ft_answer {REMOTE} model.api=chats", "model.api=chats: allowed: auto, completions, chat"),
    ("method=ft_cot rationales=nobody", "unknown option; allowed: local, openai, recorded, rules"),
    (f"method=ft_cot {ASKED} method.samples=4", "at method.temperature=0 all of them are the same text; set method.t"),
    (f"method=ft_cot {ASKED} {ARCHIVE} rationales.prompt=fs_cot", "rationales.exemplars=null: fs_cot needs a file"),
    (f"method=fs_cot {GPT2} {ARCHIVE}", "method.prompt.exemplars=null: fs_cot needs a file of exemplars"),
    ("method=ft_cot rationales.questions=[test]", "train is needed: the student learns from it"),
    (f"method=ft_cot {ASKED} rationales.base_url=127.0.0.1:8000/v1", "must start with http:// or https://"),
    (f"method=ft_cot {ASKED} rationales.base_url=ftp://host/v1", "must start with http:// or https://"),
    ("method=ft_cot method.curation.max_words=5 method.curation.min_words=9", "max_words=5: is less than min_words"),
    # ranges
    ("method=ft_cot method.samples=0", "method.samples=0: must be 1 or more"),
    (f"method=ft_cot {ASKED} method.temperature=-0.1", "method.temperature=-0.1: must be 0 (greedy) or more"),
    ("method=ft_cot rationales.error_rate=1.5", "is a share of the rationales: between 0 and 1"),
    (f"method=ft_cot {ASKED} rationales.concurrency=0", "rationales.concurrency=0: must be 1 or more"),
    (f"method=ft_cot {ASKED} rationales.timeout=0", "must be more than 0 seconds"),
    (f"method=ft_cot {ASKED} rationales.price.input=-1", "is in US dollars per million tokens"),
    (f"method=ft_cot {ASKED} budget.usd=0", "budget.usd=0.0: must be more than 0"),
    (f"method=ft_answer {REMOTE} model.epochs=0", "model.epochs=0: must be 1 or more"),
    (f"method=ft_answer {REMOTE} model.price.output=-2", "is in US dollars per million tokens"),
    ("method=ft_cot model.vocabulary=100", "must be 300 or more"),
    ("method=ft_cot method.student.max_target=1", "must be 2 or more"),
    ("method=ft_cot method.answer.max_tokens=0", "must be 1 or more"),
    ("method=ft_cot method.student.lora.rank=2 method.student.lora.dropout=1", "must be at least 0 and less than 1"),
    ("method=ft_cot task.generate.objects=1", "must be 2 to 26"),
    ("method=ft_cot task=demo/coin_flip task.generate.train=0", "task.generate.train=0: must be 1 or more"),
    # tasks
    ("method=ft_cot task.choices=abc", "two or more capital letters, written ABCDE"),
    (
        "method=ft_cot task.choices=ABC task.generate.objects=5",
        "task.generate.objects=5 needs as many letters; task.ch",
    ),
    ("method=ft_cot task=demo/coin_flip task.choices=AB", "task.choices=AB: is for task.answer=choice"),
    ("method=ft_cot task.partition.rule=first", "give task.partition.train, the number of training questions"),
    ("method=ft_cot task.partition.train=5", "task.partition.train=5: is for task.partition.rule=first"),
    ("method=ft_cot task.noise.rate=0.1", "a teacher's errors are rationales.error_rate"),
    ("method=ft_cot task.imbalance.ratio=2", "a reasoning task has no classes to balance"),
    ("method=ft_answer task=reasoning/coin_flip", "give task.source.path=FOLDER, the folder that holds dataset/"),
    ("method=ft_cot task.text=[]", "the column with the question is needed"),
    ("method=ft_cot select_on=heldout task.heldout=0", "keeps no training rows for it"),
]

# command line, the key and why it has no effect
IN_VAIN = [
    # of who writes the rationales
    ("method=ft_answer rationales.error_rate=0.2", "method=ft_answer (it has no stage 'rationales')"),
    ("method=ft_answer method.samples=2", "method=ft_answer (it has no stage 'rationales')"),
    ("method=ft_answer method.temperature=0.7", "method=ft_answer (it has no stage 'rationales')"),
    (f"method=zs {GPT2} method.curation.complete=true", "method=zs (it has no stage 'rationales')"),
    ("method=ft_answer budget.usd=1", "method=ft_answer (it has no stage 'rationales')"),
    ("method=ft_cot budget.usd=1", "rationales=rules (it costs nothing)"),
    ("method=ft_cot method.temperature=0.7", "rationales=rules (nobody is asked)"),
    ("method=ft_cot rationales.max_tokens=64", "rationales=rules (it is for openai, local)"),
    ("method=ft_cot rationales.concurrency=2", "rationales=rules (it is for openai)"),
    ("method=ft_cot rationales.model=gpt2", "rationales=rules (it is for openai, local, recorded)"),
    (f"method=ft_cot {ASKED} rationales.error_rate=0.2", "rationales=openai (it is for rules)"),
    (f"method=ft_cot {ASKED} rationales.revision=main", "rationales=openai (it is for local)"),
    (f"method=ft_cot {ASKED} rationales.seed=3", "rationales=openai (it is for rules, local)"),
    ("method=ft_cot rationales=local rationales.model=gpt2 rationales.seed=3", "method.temperature=0 (nothing is dr"),
    ("method=ft_cot rationales=recorded rationales.path=x rationales.price.input=1", "rationales=recorded (it is for"),
    (f"method=ft_cot {ASKED} rationales.exemplars=file.json", "rationales.prompt=zs_cot"),
    # of the student
    (f"method=zs {GPT2} method.student.lr=1e-4", "method=zs (it trains no student)"),
    (f"method=zs {GPT2} seed=3", "method=zs (it trains no student)"),
    (f"method=zs {GPT2} seed=3 task.few.examples=5 task.few.seed=1", "method=zs (it trains no student)"),
    (f"method=zs {GPT2} precision=bf16", "method=zs (it trains no student)"),
    (f"method=zs {GPT2} select_on=last", "method=zs (it trains no student)"),
    (f"method=zs {GPT2} debug.steps=3", "method=zs (it trains no student)"),
    (f"method=zs {GPT2} task.epochs.student=3", "method=zs (it has no stage of that name to train)"),
    ("method=ft_cot task.epochs.teacher=3", "method=ft_cot (it has no stage of that name to train)"),
    ("method=ft_cot task.epochs.student=3 method.student.epochs=2", "method.student.epochs=2, which replaces it"),
    ("method=ft_cot method.student.lora.alpha=32", "method.student.lora.rank=0 (all weights are trained)"),
    ("method=ft_cot method.student.patience=3", "select_on=last (no score can stop a stage early)"),
    ("method=ft_cot method.student.eval_steps=3", "select_on=last (no answers are given while training)"),
    ("method=ft_cot method.answer.max_tokens_while_training=9", "select_on=last (no answers are given while train"),
    ("method=ft_cot task.heldout=0.2", "select_on=last"),
    ("method=ft_cot model.teacher.id=gpt2", "method=ft_cot (its teacher is chosen by rationales=)"),
    ("method=ft_cot model.base_url=http://127.0.0.1/v1", "model=tiny_decoder (it is for model.kind=endpoint)"),
    ("method=ft_cot model.price.input=1", "model=tiny_decoder (it is for model.kind=endpoint)"),
    (f"method=ft_cot {GPT2} model.vocabulary=400", "model=gpt2 (it is for model.tokenizer=pieces)"),
    (f"method=ft_answer {REMOTE} method.student.lr=1e-4", "model.kind=endpoint (the endpoint trains as it likes)"),
    (f"method=ft_answer {REMOTE} method.student.epochs=3", "model.epochs is what it is asked for"),
    (f"method=ft_answer {REMOTE} seed=3", "model.kind=endpoint (the endpoint trains as it likes)"),
    (f"method=zs {REMOTE} model.epochs=3", "method=zs (it trains no student)"),
    (f"method=zs {REMOTE} method.answer.unmasked_left_pad=true", "a prompt of one request has no padding"),
    # of prompts
    ("method=ft_cot method.prompt.natural_comma=true", "method.prompt.template=ft_cot_token"),
    ("method=ft_cot method.prompt.too_long=right", "method.prompt.template=ft_cot_token"),
    ("method=ft_cot method.prompt.exemplars=file.json", "method.prompt.template=ft_cot_token"),
    (f"method=zs {GPT2} method.prompt.delimiters=paper_gpt3", "method.prompt.template=zs (it has no delimiters)"),
    # of the task
    ("method=ft_cot task.max_length=64", "a reasoning task"),
    ("method=ft_cot curves=9", "a reasoning task"),
    ("method=ft_cot task.splits.dev=dev", "a reasoning task"),
    ("method=ft_cot task.few.seed=9", "task.few.examples=null (all rows are used)"),
    (f"method=ft_answer {ARCHIVE} task.generate.train=9", "task=reasoning/multiarith (it is not embedded)"),
    ("method=ft_cot task=demo/coin_flip task.generate.objects=5", "task=demo/coin_flip (it has no objects)"),
    (f"method=ft_answer {ARCHIVE} task.suffix=?", "task.source.key=multiarith (a folder of reasoning-teacher has the"),
    # keys of this family in a run of the other one
    ("method=kd task=demo/nli model=tiny rationales.error_rate=0.1", "method=kd (its teacher writes no rationales)"),
    ("method=kd task=demo/nli model=tiny task.partition.limit=9", "task=demo/nli (it is for reasoning tasks)"),
    ("method=kd task=demo/nli model=tiny task.suffix=?", "task=demo/nli (it is for reasoning tasks)"),
    ("method=kd task=demo/nli model=tiny model.vocabulary=400", "model=tiny (it is for models that generate)"),
    ("method=kd task=demo/nli model=tiny model.epochs=4", "model=tiny (it is for models that generate)"),
]


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_command_line_is_refused(line: str, words: str) -> None:
    found = problems(line)
    assert len(found) == 1, found
    assert words in found[0]


@pytest.mark.parametrize(("line", "words"), IN_VAIN, ids=[line for line, _ in IN_VAIN])
def test_a_key_without_effect_is_refused(line: str, words: str) -> None:
    found = problems(line)
    assert len(found) == 1, found
    given = [word.partition("=")[0] for word in shlex.split(line)]
    assert found[0].partition(" has no effect for ")[0] in given
    assert words in found[0].partition(" has no effect for ")[2]


def test_the_table_is_long_enough() -> None:
    assert len(WRONG) + len(IN_VAIN) >= 35


# command lines on which keys that are refused elsewhere do have an effect
FINE = [
    f"method=ft_cot {ASKED} budget.usd=1 rationales.concurrency=2 rationales.base_url=http://127.0.0.1:8000/v1",
    f"method=ft_cot {ASKED} rationales.prompt=fs_cot method.temperature=0.7",
    f"method=ft_cot {ASKED} {ARCHIVE} rationales.prompt=fs_cot rationales.exemplars=file.json",
    "method=ft_cot rationales=local rationales.model=gpt2 rationales.seed=3 method.temperature=0.7",
    "method=ft_cot rationales=local rationales.model=gpt2 rationales.revision=main rationales.max_tokens=64",
    "method=ft_cot rationales=recorded rationales.path=x rationales.key=zs_cot_t70_8aug rationales.model=davinci",
    "method=ft_cot_diverse method.samples=4 method.curation.per_question=2 rationales.seed=3 rationales.error_rate=0",
    "method=ft_cot select_on=heldout task.heldout=0.2 method.student.patience=2 method.student.eval_steps=5",
    "method=ft_cot select_on=test method.answer.max_tokens_while_training=32",
    "method=ft_cot method.student.lora.rank=4 method.student.lora.alpha=8 model.vocabulary=400",
    "method=ft_cot method.prompt.template=ft_cot_natural method.prompt.natural_comma=true",
    "method=ft_answer method.prompt.delimiters=paper_gpt3 task.epochs.student=3 task.generate.objects=3",
    f"method=ft_answer {ARCHIVE} task.few.examples=9 task.few.seed=1 task.compare=number",
    f"method=zs {GPT2} seed=3 task.few.examples=9",
    f"method=fs_cot {GPT2} method.prompt.too_long=right task=demo/coin_flip",
    f"method=zs_cot {REMOTE} budget.usd=1 rationales.timeout=9 model.price.input=1 model.price.output=1",
    f"method=ft_cot {ASKED} {REMOTE} rationales.api=auto model.api=auto",
    f"method=ft_cot {REMOTE} model.epochs=3 budget.tokens=1000 model.api=chat",
    f"method=ft_cot {ASKED} {REMOTE} rationales.attempts=2",
    "method=ft_cot task.choices=null task.generate.objects=5",
    "method=ft_cot task.partition.rule=first task.partition.train=5 task.partition.limit=3",
]


@pytest.mark.parametrize("line", FINE)
def test_what_has_an_effect_is_accepted(line: str) -> None:
    run = composed(line)
    assert isinstance(run.method, Reasoning) and checks.warnings(run) == []


@pytest.mark.parametrize("where", ["rationales.base_url", "model.base_url"])
@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "https://host/v1?key=secret"])
def test_an_address_with_a_secret_is_refused_and_not_shown(where: str, url: str) -> None:
    base = f"method=ft_cot {ASKED}" if where.startswith("rationales") else f"method=ft_answer {REMOTE}"
    (found,) = problems(shlex.join([*shlex.split(base), f'{where}="{url}"']))
    assert where in found and "OPENAI_API_KEY" in found and "secret" not in found


SECRETS = ["https://me:secret@host/v1", "https://host/v1?key=secret", "me:secret@host/v1"]


@pytest.mark.parametrize("url", SECRETS)
def test_the_address_of_the_environment_is_checked_where_it_is_used(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    for line in (f"method=ft_cot {ASKED}", f"method=ft_answer {REMOTE}"):
        (found,) = problems(line)
        assert found.startswith("OPENAI_BASE_URL: holds") and "secret" not in found
    own = "base_url=http://127.0.0.1:8000/v1"
    for line in ("method=ft_cot", f"method=ft_answer {REMOTE} model.{own}", f"method=ft_cot {ASKED} rationales.{own}"):
        composed(line)
    (found,) = problems(f"method=ft_cot {ASKED} {REMOTE} model.{own}")
    assert found.startswith("OPENAI_BASE_URL: holds")


def test_an_address_of_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("host/v1", "http://host:port/v1", "http://[::1/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert problems(f"method=ft_cot {ASKED}") == [
            f"OPENAI_BASE_URL={url}: must start with http:// or https:// (for example http://127.0.0.1:8000/v1)"
        ]
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    composed(f"method=ft_cot {ASKED}")


def test_what_one_job_of_a_sweep_uses_is_no_problem() -> None:
    line = "-m method=ft_answer,ft_cot rationales.error_rate=0.2 method.curation.complete=true"
    assert len(compose.jobs(shlex.split(line)).jobs) == 2
    line = f"-m {GPT2} method=zs,ft_answer seed=1,2 precision=bf16"
    assert len(compose.jobs(shlex.split(line)).jobs) == 4


def test_an_empty_section_is_no_problem() -> None:
    assert (
        composed("method=ft_cot 'task.generate={}'").task.generate.steps
        == composed("method=ft_cot").task.generate.steps
    )


def test_every_wrong_thing_is_said_at_once() -> None:
    found = problems("method=ft_cot select_on=dev model.tokenizer=words rationales.error_rate=2 fresh=[teacher]")
    assert [text.partition(":")[0] for text in found] == [
        "rationales.error_rate=2.0",
        "select_on=dev",
        "fresh=[teacher]",
        "model.tokenizer=words",
    ]
