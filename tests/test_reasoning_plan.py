"""The graph of each method of the family of Fine-tune-CoT: its stages, what changes them, and what a plan says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cot import DATA, WORDS
from kdlab import methods
from kdlab.artifacts import Store, checksum, write_json
from kdlab.data.prompts import EMBEDDED
from kdlab.errors import ConfigError, DataError
from kdlab.graph import Graph, Stage
from kdlab.pins import Pins
from lab import Lab, composed

BASE = f"method=ft_cot {WORDS}"
ASKED = "rationales=openai rationales.model=gpt-4o-mini"
REMOTE = "model=openai_babbage"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 100,
}


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def planned(line: str) -> Graph:
    return methods.plan(composed(line), Pins())


def stage(line: str, label: str) -> Stage:
    return {found.label: found for found in planned(line)}[label]


def fingerprints(line: str) -> dict[str, str]:
    return {found.label: found.fingerprint for found in planned(line)}


def model(folder: Path, **changes: Any) -> Path:
    """A model of which only the configuration can be looked at."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def prompted(folder: Path) -> str:
    return f"model=gpt2 model.student.id={folder}"


# the shape

TRAINED = {
    "ft_answer": {
        "questions": [],
        "encode": ["questions"],
        "student": ["encode"],
        "answers": ["questions", "student"],
        "student_scores": ["answers", "questions"],
        "measure_student": ["student"],
    },
    "ft_cot": {
        "questions": [],
        "rationales": ["questions"],
        "curate": ["questions", "rationales"],
        "teacher_scores": ["curate", "questions", "rationales"],
        "encode": ["curate"],
        "student": ["encode"],
        "answers": ["questions", "student"],
        "student_scores": ["answers", "curate", "questions", "rationales"],
        "measure_student": ["student"],
    },
}
TRAINED["ft_cot_diverse"] = TRAINED["ft_cot"]
PROMPTED = {
    "questions": [],
    "answers": ["questions"],
    "student_scores": ["answers", "questions"],
    "measure_student": [],
}


def shape(graph: Graph) -> dict[str, list[str]]:
    return {found.label: sorted(need.label for need in found.needs()) for found in graph}


@pytest.mark.parametrize("method", TRAINED)
def test_the_stages_of_a_student_that_is_trained(method: str) -> None:
    graph = planned(f"method={method}")
    assert shape(graph) == TRAINED[method]
    assert [found.label for found in graph if found.parallel] == ["student"]
    assert [found.label for found in graph if found.of_machine] == ["measure_student"]
    assert all(found.pinned for found in graph)


@pytest.mark.parametrize("method", ["zs", "zs_cot", "fs_cot"])
def test_the_stages_of_a_student_that_is_prompted(method: str, tmp_path: Path) -> None:
    graph = planned(f"method={method} {prompted(model(tmp_path / 'm'))}")
    assert shape(graph) == PROMPTED
    answers = {found.label: found for found in graph}["answers"]
    assert answers.values["style"]["template"] == method and answers.places["model"] == str(tmp_path / "m")
    assert ("exemplars" in answers.values) == (method == "fs_cot")


def test_selection_by_answers_needs_the_questions() -> None:
    for select_on, share in (("heldout", 0.1), ("test", 0.0)):
        graph = planned(f"method=ft_cot select_on={select_on}")
        assert shape(graph)["student"] == ["encode", "questions"]
        found = {one.label: one for one in graph}
        assert found["questions"].values["heldout"] == share
        assert found["student"].values["answering"]["max_tokens"] == 1024
    assert stage("method=ft_cot", "questions").values["heldout"] == 0.0
    assert stage("method=ft_cot", "student").values["answering"] is None
    short = stage("method=ft_cot select_on=test method.answer.max_tokens_while_training=32", "student")
    assert short.values["answering"]["max_tokens"] == 32


def test_a_student_behind_an_endpoint() -> None:
    graph = planned(f"method=ft_cot {REMOTE} model.epochs=3 model.api=chat")
    found = {one.label: one for one in graph}
    assert shape(graph)["student"] == ["curate"] and "encode" not in found and "measure_student" not in found
    assert found["student"].values | {"style": None} == {
        "endpoint": "https://api.openai.com/v1",
        "model": "babbage-002",
        "api": "chat",
        "epochs": 3,
        "style": None,
    }
    assert found["student"].values["style"]["stop"] == "END"
    assert found["answers"].values["model"] is None and found["answers"].values["api"] == "chat"
    alone = planned(f"method=zs {REMOTE}")
    assert shape(alone) == {name: needs for name, needs in PROMPTED.items() if name != "measure_student"}
    assert {one.label: one for one in alone}["answers"].values["model"] == "babbage-002"
    assert {one.label: one for one in alone}["answers"].values["style"]["stop"] is None


def test_the_api_is_settled_in_the_plan() -> None:
    def writer(line: str) -> str:
        return str(stage(f"{BASE} {line}", "rationales").values["writer"]["api"])

    assert writer(ASKED) == "chat"
    assert writer(f"{ASKED} rationales.api=completions") == "completions"
    assert writer("rationales=openai rationales.model=davinci-002") == "completions"
    assert writer(f"{ASKED} rationales.base_url=http://127.0.0.1:1/v1") == "completions"
    found = {one.label: one for one in planned(f"method=ft_cot {DATA} {REMOTE} model.api=auto")}
    assert (found["student"].values["api"], found["answers"].values["api"]) == ("completions", "completions")
    line = f"method=ft_cot {DATA} {REMOTE} model.api=auto model.student.id=gpt-4o-mini-2024-07-18"
    found = {one.label: one for one in planned(line)}
    assert (found["student"].values["api"], found["answers"].values["api"]) == ("chat", "chat")


def refused(line: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        planned(line)
    return caught.value.problems


BOTH = "model.price.input and model.price.output"
MORE = "(US dollars per million tokens), or limit budget.tokens instead"
UNPRICED: list[tuple[str, list[tuple[str, str]]]] = [
    # command line, what costs an unknown price and the keys that give it
    (
        f"{BASE} rationales=openai rationales.model=mine",
        [("answers of mine cost", "rationales.price.input and rationales.price.output")],
    ),
    (f"method=zs {DATA} {REMOTE} model.base_url=http://127.0.0.1:1/v1", [("answers of babbage-002 cost", BOTH)]),
    (
        f"method=ft_cot {DATA} {REMOTE} model.price.input=1 model.price.output=1",
        [("training babbage-002 costs", "model.price.training")],
    ),
    (f"method=ft_cot {DATA} {REMOTE} model.price.training=1", [("answers of ft:babbage-002 cost", BOTH)]),
    (
        f"method=ft_cot {DATA} {REMOTE} {ASKED}",  # whose rationales would have been paid for before
        [("answers of ft:babbage-002 cost", BOTH), ("training babbage-002 costs", "model.price.training")],
    ),
]


@pytest.mark.parametrize(("line", "missing"), UNPRICED, ids=[line for line, _ in UNPRICED])
def test_a_budget_in_dollars_needs_all_prices_before_anything_is_sent(
    line: str, missing: list[tuple[str, str]]
) -> None:
    assert refused(f"{line} budget.usd=2") == [
        f"budget.usd=2: nothing is known of what {what}; set {keys} {MORE}" for what, keys in missing
    ]
    planned(line)
    planned(f"{line} budget.tokens=1000")


def test_prices_that_are_known_are_no_problem() -> None:
    planned(f"{BASE} {ASKED} budget.usd=2")
    planned(f"method=ft_cot {DATA} {ASKED} {REMOTE} {PRICED} budget.usd=2")
    planned(f"method=zs {DATA} {REMOTE} model.student.id=davinci-002 budget.usd=2")


def test_half_a_price_is_refused_before_anything_is_sent() -> None:
    (found,) = refused(f"method=ft_cot {DATA} {ASKED} {REMOTE} model.price.input=1")
    assert found.startswith("model.price.output: the other one is given")


@pytest.mark.parametrize(
    "line", ["method=ft_cot", "method=ft_answer", f"method=ft_cot {REMOTE}", f"method=zs {REMOTE}"]
)
def test_each_stage_takes_what_it_is_given(line: str) -> None:
    """Of a stage function every argument has a value or a default, and there is no other."""
    import importlib
    import inspect

    for found in planned(line):
        module, _, name = found.function.partition(":")
        known = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters.values())[1:]
        given = {*found.values, *found.inputs}
        assert given <= {one.name for one in known}, name
        assert {one.name for one in known if one.default is one.empty} <= given, name


def test_an_encoder_decoder_is_known_by_its_config(tmp_path: Path) -> None:
    folder = model(tmp_path / "t5", model_type="t5", is_encoder_decoder=True)
    line = f"method=ft_cot {prompted(folder)}"
    assert stage(line, "encode").values["style"]["model_type"] == "encoder_decoder"
    assert stage("method=ft_cot", "encode").values["style"]["model_type"] == "decoder"


def test_an_encoder_is_refused_before_any_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(f"method=ft_cot {prompted(model(tmp_path / 'bert', model_type='bert'))}")
    (problem,) = caught.value.problems
    assert problem.startswith("model.student: ") and "bert" in problem


def test_a_random_student_needs_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match=r"a student without an id has none; take model\.tokenizer=pieces"):
        planned("method=ft_cot model.tokenizer=pretrained")


# what changes what

ALL = list(TRAINED["ft_cot"])
STUDENT = ["student", "answers", "student_scores", "measure_student"]
AFTER_CURATE = ["encode", *STUDENT]
AFTER_RATIONALES = ["curate", "teacher_scores", *AFTER_CURATE]
CHANGES: list[tuple[str, str, list[str]]] = [
    # base, changes, labels of the stages that change
    (BASE, "seed=7", STUDENT),
    (BASE, "seed=7 task.few.examples=9", ALL),  # the few are drawn with the run's seed
    (BASE, "seed=7 task.few.examples=9 task.few.seed=1", ALL),
    (BASE, "method.student.lr=1e-4", STUDENT),
    (BASE, "method.student.lora.rank=4", STUDENT),
    (BASE, "precision=bf16", STUDENT),
    (BASE, "task.epochs.student=3", STUDENT),
    (BASE, "debug.steps=2", STUDENT),
    (BASE, "method.student.max_target=64", AFTER_CURATE),
    (BASE, "model.vocabulary=400", AFTER_CURATE),
    (BASE, "method.prompt.template=ft_cot_natural", AFTER_CURATE),
    (BASE, "method.prompt.delimiters=paper_gpt3", AFTER_CURATE),
    (BASE, "method.answer.max_tokens=9", ["answers", "student_scores"]),
    (BASE, "method.answer.unmasked_left_pad=true", ["answers", "student_scores"]),
    (BASE, "method.answer.parser=strict", ["student_scores"]),
    (BASE, "method.samples=4", ["rationales", *AFTER_RATIONALES]),
    (BASE, "rationales.error_rate=0.2", ["rationales", *AFTER_RATIONALES]),
    (BASE, "rationales.seed=1", ["rationales", *AFTER_RATIONALES]),
    (BASE, "rationales.questions=[train]", ["rationales", *AFTER_RATIONALES]),
    (BASE, "method.curation.min_words=3", AFTER_RATIONALES),
    (BASE, "method.curation.complete=true", AFTER_RATIONALES),
    (BASE, "method.curation.per_question=1", AFTER_RATIONALES),
    (BASE, "method.curation.on_constant=stop", AFTER_RATIONALES),
    (BASE, "task.generate.steps=3", ALL),
    (BASE, "task.partition.limit=9", ALL),
    (BASE, "debug.rows=9", ALL),
    (f"{BASE} {ASKED} method.temperature=0.5", "method.temperature=0.7", ["rationales", *AFTER_RATIONALES]),
    (f"{BASE} {ASKED}", "rationales.model=gpt-4o", ["rationales", *AFTER_RATIONALES]),
    (f"{BASE} {ASKED}", "rationales.api=completions", ["rationales", *AFTER_RATIONALES]),
    (f"{BASE} {ASKED}", "rationales.api=chat", []),  # as auto finds
    (f"{BASE} {ASKED}", "rationales.max_tokens=64", ["rationales", *AFTER_RATIONALES]),
    (f"{BASE} {ASKED}", "rationales.stop=[]", ["rationales", *AFTER_RATIONALES]),
    (f"{BASE} {ASKED}", "rationales.prompt=fs_cot", ["rationales", *AFTER_RATIONALES]),
    (f"{BASE} {ASKED}", "rationales.base_url=http://127.0.0.1:1/v1", ["rationales", *AFTER_RATIONALES]),
    # what can't change a number
    (f"{BASE} {ASKED}", "rationales.concurrency=1 rationales.timeout=9 rationales.attempts=2", []),
    (f"{BASE} {ASKED}", "rationales.price.input=1 rationales.price.output=2 budget.usd=1 budget.tokens=9", []),
    (BASE, "hardware.eval_batch=3 hardware.micro_batch=2 hardware.checkpoint_seconds=0", []),
    (BASE, "tracking=wandb name=mine task.rows=5", []),
    (BASE, "method.student.batch_size=8", []),  # as it is by default
    (BASE, "hardware.threads=2", ["measure_student"]),
]


of_base = cache(fingerprints)


@pytest.mark.parametrize(("base", "changes", "labels"), CHANGES, ids=[changes for _, changes, _ in CHANGES])
def test_what_changes_which_stages(base: str, changes: str, labels: list[str]) -> None:
    keys = {word.partition("=")[0] for word in shlex.split(changes)}
    kept = [word for word in shlex.split(base) if word.partition("=")[0] not in keys]
    before, after = of_base(base), fingerprints(shlex.join([*kept, *shlex.split(changes)]))
    assert set(before) == set(after)
    assert {label for label in before if before[label] != after[label]} == set(labels)


def test_the_seed_of_the_few_may_be_held() -> None:
    line = f"{BASE} task.few.examples=9 task.few.seed=1"
    one, other = fingerprints(f"{line} seed=1"), fingerprints(f"{line} seed=2")
    assert {label for label in one if one[label] != other[label]} == set(STUDENT)


def test_methods_ask_the_same_questions_and_teacher() -> None:
    graphs = {name: fingerprints(f"method={name} {WORDS}") for name in ("ft_answer", "ft_cot", "ft_cot_diverse")}
    assert len({found["questions"] for found in graphs.values()}) == 1
    one = fingerprints(f"method=ft_cot_diverse {WORDS} method.samples=1")
    assert one["rationales"] == graphs["ft_cot"]["rationales"]  # rules know no temperature


def test_a_local_teacher_draws_with_its_own_seed(tmp_path: Path) -> None:
    line = f"{BASE} rationales=local rationales.model={model(tmp_path / 'teacher')}"
    greedy, drawn = fingerprints(line)["rationales"], fingerprints(f"{line} method.temperature=0.7")["rationales"]
    assert greedy != drawn != fingerprints(f"{line} method.temperature=0.7 rationales.seed=1")["rationales"]
    before = fingerprints(line)["rationales"]
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({**LLAMA, "hidden_size": 64}))
    assert fingerprints(line)["rationales"] != before


def test_of_recorded_completions_the_content_counts(tmp_path: Path) -> None:
    file = tmp_path / "one" / "completion_data" / "B_davinci__C_zs_cot" / "D_coin_flip.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    line = f"{BASE} rationales=recorded rationales.model=davinci rationales.path="
    found = stage(f"{line}{tmp_path / 'one'}", "rationales")
    assert found.arguments()["writer"]["path"] == str(file)
    (tmp_path / "other.json").write_text("{}")
    assert stage(f"{line}{tmp_path / 'other.json'}", "rationales").fingerprint == found.fingerprint
    (tmp_path / "other.json").write_text("{ }")
    assert stage(f"{line}{tmp_path / 'other.json'}", "rationales").fingerprint != found.fingerprint
    with pytest.raises(DataError, match=r"There is no folder B_curie__C_zs_cot. There are: B_davinci__C_zs_cot\."):
        planned(f"{BASE} rationales=recorded rationales.model=curie rationales.path={tmp_path / 'one'}")


def test_of_exemplars_the_content_counts(tmp_path: Path) -> None:
    line = f"method=fs_cot {prompted(model(tmp_path / 'm'))} task=demo/coin_flip"
    own = stage(line, "answers")
    assert own.values["exemplars"] == {"key": "coin_flip", "content": checksum(EMBEDDED)}
    assert "exemplars" not in own.places, "they come with the package"
    file = tmp_path / "exemplars.json"
    file.write_text("{}")
    given = stage(f"{line} method.prompt.exemplars={file}", "answers")
    assert given.arguments()["exemplars"]["path"] == str(file) and given.fingerprint != own.fingerprint
    file.write_text("{ }")
    assert stage(f"{line} method.prompt.exemplars={file}", "answers").fingerprint != given.fingerprint
    with pytest.raises(DataError, match="there is no file or folder") as caught:
        planned(f"{line} method.prompt.exemplars={tmp_path / 'none.json'}")
    assert "method.prompt.exemplars" in str(caught.value)


def test_of_a_folder_of_reasoning_teacher_one_file_counts(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    for name in ("coin_flip", "svamp"):
        (tmp_path / "dataset" / f"{name}.json").write_text("{}")
    line = f"method=ft_answer task=reasoning/coin_flip task.source.path={tmp_path}"
    before = fingerprints(line)["questions"]
    (tmp_path / "dataset" / "svamp.json").write_text("{ }")
    assert fingerprints(line)["questions"] == before
    (tmp_path / "dataset" / "coin_flip.json").write_text("{ }")
    assert fingerprints(line)["questions"] != before


def test_no_secret_of_the_environment_enters_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    run = composed(f"{BASE} {ASKED}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://me:secret@host.example/v1?key=secret")  # which checks would refuse
    graph = methods.plan(run, Pins())
    assert "secret" not in json.dumps(graph.describe())
    assert {one.label: one for one in graph}["rationales"].values["writer"]["endpoint"] == "https://host.example/v1"


# what a plan says


def row(out: str, label: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [label]]
    return line.split()


def test_a_plan_says_who_teaches_and_runs_nothing(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = lab.command("plan method=ft_cot_diverse method.samples=4 task=demo/coin_flip task.few.examples=100")
    assert done.code == 0 and list(tmp_path.iterdir()) == []
    assert all(row(done.out, label)[1] == "run" for label in ALL)
    assert "questions: few: 100 questions (seed 42), drawn before the teacher is asked" in done.out
    assert "rationales: teacher: rules, 4 rationales a question" in done.out
    epochs = composed("method=ft_cot task=demo/coin_flip").task.epochs.student
    assert str(4 * 100 // 8 * epochs) in row(done.out, "student")  # at most: some rationales are left out
    assert "USD" not in done.out and "$" not in done.out


def test_a_plan_with_an_endpoint_estimates_its_cost(lab: Lab, tmp_path: Path) -> None:
    line = f"{BASE} {ASKED} rationales.questions=[train,test] store={tmp_path}"
    done = lab.command(f"plan {line} rationales.max_tokens=10")
    assert done.code == 0, done.err
    (told,) = [text for text in done.out.splitlines() if text.startswith("rationales: ") and "requests" in text]
    assert told.startswith(f"rationales: {2 * (24 + 8)} requests, ")
    assert "at most $" in told and "what the journal holds is not paid for again" in told
    assert "rationales: teacher: openai gpt-4o-mini, 1 rationale a question, temperature 0, zs_cot" in done.out
    own = lab.command(f"plan {line} rationales.base_url=http://127.0.0.1:1/v1")
    assert "price unknown (rationales.price.input and .output" in own.out


def manifest(stage: Stage, facts: dict[str, Any]) -> dict[str, Any]:
    made = {
        "at": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "continued": False,
        "git": {},
        "versions": {"kdlab": "0"},
    }
    return {"facts": facts, "values": dict(stage.values), "made": made, "warnings": []}


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[[str], Store]:
    """A store in which the questions of a command line are prepared: 32 with 1280 characters."""

    def make(line: str) -> Store:
        store = Store(tmp_path / "artifacts")
        found = stage(line, "questions")
        write_json(store.begin(found.artifact) / "facts.json", {})
        facts = {"rows": {"train": 24, "test": 8}, "characters": {"train": 960, "test": 320}}
        store.publish(found.artifact, manifest(found, facts))
        return store

    return make


def test_the_estimate_counts_what_is_prepared(prepared: Callable[[str], Store], lab: Lab) -> None:
    line = f"{BASE} {ASKED} method.samples=2 method.temperature=0.7 rationales.max_tokens=10 rationales.questions="
    store = prepared(f"{line}[train]")
    done = lab.command(f"plan {line}[train] store={store.root}")
    assert done.code == 0, done.err
    # 2 steps * 2 samples * 24 questions; texts of 960 / 4 + 24 * 12 tokens twice, and 24 * 10 of the first answers
    assert f"96 requests, ~{2 * (2 * (240 + 288) + 240):,} tokens in, at most 960 out" in done.out
    out = lab.command(f"plan {line}[train,test] store={store.root}").out
    assert "128 requests" in out
    out = lab.command(f"plan {line}[train] rationales.prompt=fs_cot store={store.root}").out
    assert "48 requests" in out and "at most 480 out" in out


def test_what_is_not_known_yet_is_not_guessed(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "coin_flip.json").write_text("{}")
    line = f"plan method=ft_cot {ASKED} task=reasoning/coin_flip task.source.path={tmp_path} store={tmp_path / 'store'}"
    assert f"rationales: {2 * 350} requests, " in lab.command(line).out
    assert (
        "rationales: ~ until the questions are prepared" in lab.command(f"{line} rationales.questions=[train,test]").out
    )


def told(line: str, label: str, lab: Lab) -> str:
    """What a plan says of the cost of a stage."""
    done = lab.command(f"plan {line}")
    assert done.code == 0, done.err
    (found,) = [text for text in done.out.splitlines() if text.startswith(f"{label}: ") and "tokens" in text]
    return found.removeprefix(f"{label}: ")


PRICED = "model.price.training=6 model.price.input=1 model.price.output=2"


def test_the_estimate_of_a_student_behind_an_endpoint(prepared: Callable[[str], Store], lab: Lab) -> None:
    line = f"method=ft_answer {DATA} {REMOTE} {PRICED} method.answer.max_tokens=10"
    line += f" store={prepared(line).root}"
    # 24 rows of 960 characters in all, 12 tokens of template each; OpenAI takes 100 // 24 epochs
    tokens = 960 // 4 + 24 * 12
    assert told(line, "student", lab) == (
        f"fine-tuning on ~24 rows, ~{tokens} tokens an epoch, 4 epochs (about what the endpoint chooses), "
        "~$0.013 ($6 per million tokens, model.price.training)"  # 528 * 4 * 6 / 1e6 = 0.01267
    )
    assert f"~{tokens} tokens an epoch, 7 epochs, ~$0.022" in told(f"{line} model.epochs=7", "student", lab)
    # 8 questions of 320 characters in all, 10 tokens back: 176 / 1e6 + 2 * 80 / 1e6
    assert told(line, "answers", lab) == (
        f"8 requests, ~{320 // 4 + 8 * 12} tokens in, at most 80 out, at most $0.00034 ($1 in, $2 out, model.price); "
        "what the journal holds is not paid for again"
    )


def test_the_estimate_of_training_on_rationales(prepared: Callable[[str], Store], lab: Lab) -> None:
    line = f"method=ft_cot {DATA} {REMOTE} {PRICED} {ASKED} method.samples=3 method.temperature=0.7 model.epochs=1"
    line += " rationales.max_tokens=10 method.curation.per_question=2"
    store = prepared(line)
    # two rationales of 10 tokens for each of 24 questions
    tokens = 2 * (960 // 4 + 24 * 10) + 48 * 12
    assert f"~48 rows, ~{tokens:,} tokens an epoch, 1 epochs, " in told(f"{line} store={store.root}", "student", lab)
    found = stage(line, "curate")
    rows = [{"id": 0, "question": "x" * 10, "rationale": "y" * 29, "answer": "z"}] * 5
    (store.begin(found.artifact) / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    store.publish(found.artifact, manifest(found, {"rows": {"train": 5}}))
    tokens = 5 * 40 // 4 + 5 * 12
    assert f"~5 rows, ~{tokens} tokens an epoch" in told(f"{line} store={store.root}", "student", lab)


def test_an_estimate_above_the_budget_is_said(prepared: Callable[[str], Store], lab: Lab) -> None:
    line = f"method=ft_answer {DATA} {REMOTE} {PRICED} method.answer.max_tokens=10"
    line += f" store={prepared(line).root}"  # ~$0.013 and ~2112 tokens of training, $0.00034 and 256 of answers
    for budget in ("budget.usd=0.01", "budget.tokens=2111"):
        assert told(f"{line} {budget}", "student", lab).endswith(f"; more than {budget}, it will stop there")
        assert "more than" not in told(f"{line} {budget}", "answers", lab)
    for budget in ("budget.usd=0.0003", "budget.tokens=255"):
        assert told(f"{line} {budget}", "answers", lab).endswith(
            f"what the journal holds is not paid for again; more than {budget}, it will stop there"
        )
    assert "more than" not in told(f"{line} budget.usd=0.02 budget.tokens=2112", "student", lab)
    asked = f"{BASE} {ASKED} budget.usd=0.0001 store={line.rpartition('=')[2]}"
    assert told(asked, "rationales", lab).endswith("; more than budget.usd=0.0001, it will stop there")


def test_a_price_that_is_not_known_is_said(lab: Lab, tmp_path: Path) -> None:
    line = f"method=ft_answer {DATA} {REMOTE} store={tmp_path}"
    assert "price unknown (model.price.training, US" in told(line, "student", lab)
    assert "price unknown (model.price.input and .output, US" in told(line, "answers", lab)
    own = told(f"method=zs {DATA} {REMOTE} model.student.id=davinci-002 store={tmp_path}", "answers", lab)
    assert "($2 in, $2 out, prices of " in own
    done = lab.command(f"plan {line} model.price.input=1")
    assert done.code == 2 and "model.price.output: the other one is given" in done.err


def test_rules_cost_nothing_to_plan(lab: Lab) -> None:
    assert "requests" not in lab.command(f"plan {BASE}").out
