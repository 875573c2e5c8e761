"""`kdlab fetch`, and runs without a network: the same fingerprints and no request, or one list of what is lacking."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from fake_hub import FakeHub, Fault, no_network, point_at
from kdlab import cli, compose, hub, methods, supplies
from kdlab.cli import QUIET
from kdlab.graph import Stage
from kdlab.hub import Part
from kdlab.pins import Pins
from lab import Done, Lab, run_folder

WORDS = [*["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], *"abcdefghij", *(f"##{letter}" for letter in "abcdefghij")]
TASK = """\
# Letters: whether one stands before another
defaults:
  - /schema@_here_: task
  - _self_

name: letters
kind: classification
source: {hub: owner/letters}
splits: {train: train, dev: validation}
text: [text]
label: label
labels: ["no", "yes"]
metric: accuracy
metrics: [accuracy]
max_length: 16
"""
RUN = (
    "method=ft model=minilm_6_to_3 model.student.init=pretrained model.student.id=owner/bert debug=fast tracking=none "
)
RUN += "model.student.num_layers=null hardware.threads=1"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small model, and some that nobody reads."""
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    (folder / "words.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "words.txt")).save_pretrained(folder)
    (folder / "words.txt").unlink()
    further = {"pytorch_model.bin": b"pickled", "onnx/model.onnx": b"x", "README.md": b"# A model", "tf_model.h5": b"x"}
    return {file.name: file.read_bytes() for file in folder.iterdir()} | further


def letters(first: str, count: int) -> bytes:
    rows = [
        (f"{first} {'abcdefghij'[number % 10]} {number % 7 * 'b'}", "yes" if number % 10 < 5 else "no")
        for number in range(count)
    ]
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows).encode()


@pytest.fixture
def server(tmp_path: Path, bert: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    fake.model("owner/bert", bert)
    files = {"data/train.jsonl": letters("a", 200), "data/validation.jsonl": letters("c", 60)}
    fake.dataset("owner/letters", {**files, "README.md": b"# Letters", "extra/notes.pdf": b"%PDF"})
    with fake.opened():
        point_at(monkeypatch, fake.url, tmp_path / "home")
        yield fake


@pytest.fixture
def own(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def command(own: Lab, verb: str, more: str = "") -> Done:
    return own.command(f"{verb} {own.task('letters', TASK)} {RUN} {more} store={own.store} outputs={own.root / 'out'}")


def fingerprints(own: Lab) -> dict[str, str]:
    (job,) = compose.jobs(f"{own.task('letters', TASK)} {RUN}".split()).jobs
    return {stage.label: stage.fingerprint for stage in methods.plan(job.run, Pins())}


def fetched(server: FakeHub) -> set[str]:
    return {
        one.path.partition("/resolve/")[2].partition("/")[2]
        for one in server.log
        if one.method == "GET" and "/resolve/" in one.path
    }


def test_all_is_fetched_once_and_the_run_makes_no_request(
    server: FakeHub, own: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = command(own, "fetch")
    assert done.code == 0, done.err
    assert fetched(server) == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "data/train.jsonl", "data/validation.jsonl"),
    }
    assert "get   model owner/bert (weights): model.safetensors" in done.out
    assert re.search(r"all is there: 7 files, [\d.]+ kB", done.out), done.out
    for name in ("models--owner--bert", "datasets--owner--letters"):
        assert f"{tmp_path / 'home' / 'hub' / name}    into HF_HOME/hub" in done.out
    assert "HF_HUB_OFFLINE=1 kdlab train --config-dir" in done.out

    # again: nothing is fetched twice, all is compared
    count = len(server.log)
    again = command(own, "fetch")
    assert again.code == 0 and "get   " not in again.out and again.out.count("have  ") == 3
    assert not [one for one in server.log[count:] if one.method == "GET" and "/resolve/" in one.path]
    online = fingerprints(own)

    # elsewhere, without a network
    shutil.copytree(tmp_path / "home" / "hub", tmp_path / "there" / "hub", symlinks=True)
    point_at(monkeypatch, server.url, tmp_path / "there", offline=True)
    count = len(server.log)
    with no_network(monkeypatch) as asked:
        assert fingerprints(own) == online
        assert command(own, "plan").code == 0
        trained = command(own, "train")
        assert trained.code == 0, trained.err
        exported = own.command(f"export {run_folder(own.root / 'out')} --to {tmp_path / 'exported'}")
        assert exported.code == 0, exported.err
        evaluated = own.command(f"evaluate {run_folder(own.root / 'out')}")
        assert evaluated.code == 0, evaluated.err
        assert command(own, "train").stages("run") == []
    assert asked == [] and len(server.log) == count


def test_a_run_fetches_what_a_run_needs_and_then_needs_no_network(
    server: FakeHub, own: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.faults.append(Fault("model.safetensors", 503, method="GET"))
    with mock.patch.object(hub, "WAITS", ()):
        failed = command(own, "train")
    assert failed.code == 2 and "the Hub fails (503)" in failed.err and "Traceback" not in failed.err
    assert failed.stages("run") == []  # before the first stage
    server.faults.clear()
    done = command(own, "train")
    assert done.code == 0, done.err
    assert "model.safetensors" in fetched(server) and "pytorch_model.bin" not in fetched(server)
    point_at(monkeypatch, server.url, tmp_path / "home", offline=True)
    with no_network(monkeypatch) as asked:
        offline = command(own, "train", "fresh=[prepare]")
        assert offline.code == 0 and "prepare" in offline.stages("run"), offline.err
        assert command(own, "train", "seed=7").code == 0
    assert asked == []


def test_offline_with_an_empty_cache_all_that_is_lacking_is_said_at_once(
    server: FakeHub, own: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    point_at(monkeypatch, server.url, tmp_path / "home", offline=True)
    with no_network(monkeypatch) as asked:
        done = command(own, "train")
        swept = command(own, "train -m", "seed=1,2")
        assert "not in the local cache" in command(own, "plan").out
        assert "nothing can be fetched offline" in command(own, "fetch").err
    assert asked == [] and server.log == []
    for one in (done, swept):
        assert one.code == 2 and one.stages("run") == []
        assert "model owner/bert: offline, and not in the local cache" in one.err
        assert "data set owner/letters: offline, and not in the local cache" in one.err
        assert "`kdlab fetch " in one.err and "task=letters" in one.err
    assert "kdlab fetch -m" in swept.err and swept.err.count("owner/bert") == 2  # once in the list, once in the words


def test_offline_with_half_a_cache(server: FakeHub, own: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert command(own, "fetch").code == 0
    (weights,) = (tmp_path / "home").rglob("model.safetensors")
    weights.resolve().write_bytes(b"half")
    (rows,) = (tmp_path / "home").rglob("train.jsonl")
    rows.unlink()
    point_at(monkeypatch, server.url, tmp_path / "home", offline=True)
    done = command(own, "train")
    assert done.code == 2 and done.stages("run") == []
    assert "model owner/bert (weights): model.safetensors is damaged in the cache: 4 bytes, it should be" in done.err
    assert "data set owner/letters: data/train.jsonl is not in the cache" in done.err
    one = command(own, "train -m", "model.student.id=owner/bert,owner/other")
    assert one.code == 2 and "model owner/other: offline" in one.err and "data/train.jsonl" in one.err
    point_at(monkeypatch, server.url, tmp_path / "home")
    assert command(own, "fetch").code == 0
    point_at(monkeypatch, server.url, tmp_path / "home", offline=True)
    assert command(own, "train").code == 0


def test_too_little_room_is_said_before_anything_is_fetched(server: FakeHub, own: Lab) -> None:
    with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=1000)):
        done = command(own, "fetch")
    assert done.code == 2 and "are free" in done.err and "HF_HOME" in done.err
    assert "model.safetensors" not in fetched(server)


def test_nothing_but_what_is_needed_is_asked_for(server: FakeHub, own: Lab) -> None:
    """No telemetry: every request is for one of the two repositories, and says no more than library and version."""
    assert command(own, "train").code == 0
    for one in server.log:
        assert re.match(r"(/api)?(/datasets|/models)?/owner/(bert|letters)(/|$)", one.path), one
        assert one.method in ("GET", "HEAD", "POST")
        assert re.fullmatch(r"([\w-]+/[\w.+-]+(; )?)+", one.agent), one.agent  # no session, no user
    count = len(server.log)
    assert command(own, "train", "fresh=[prepare]").stages("run")[0] == "prepare"  # what is read is in the cache
    assert {one.path for one in server.log[count:]} == {
        *("/api/models/owner/bert/revision/main", "/api/datasets/owner/letters/revision/main")
    }
    assert {"HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "WANDB_ERROR_REPORTING"} <= set(QUIET)


def test_what_libraries_are_told_is_a_default_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    assert cli.main(["--version"]) == 0
    assert os.environ["DO_NOT_TRACK"] == "0"
    assert {name: os.environ[name] for name in QUIET} == {**QUIET, "DO_NOT_TRACK": "0"}


# which parts there are


def parts(words: str) -> list[str]:
    known = Pins()
    (job,) = compose.jobs(words.split()).jobs
    with mock.patch("kdlab.pins._commit", lambda kind, name, revision: ("c" * 40, None)):
        graph = methods.plan(job.run, known)
    return sorted(str(part) for part in supplies.parts(graph))


def test_parts_of_each_family() -> None:
    minilm = "model sentence-transformers/all-MiniLM-L6-v2"
    glue = "data set nyu-mll/glue"
    assert parts("task=glue/mnli method=cr_ild model=minilm_6_to_3") == [
        *(f"{glue}, mnli",),
        *(f"{minilm} (tokenizer)", f"{minilm} (weights)"),
    ]
    assert parts("task=glue/rte method=kd model=tiny task.max_length=64") == [f"{glue}, rte"]
    gpt2 = "model openai-community/gpt2"
    assert parts("method=ft_cot task=reasoning/gsm8k model=gpt2 rationales=local rationales.model=owner/teacher") == [
        "data set openai/gsm8k, main",
        *(f"{gpt2} (tokenizer)", f"{gpt2} (weights)"),
        *("model owner/teacher (tokenizer)", "model owner/teacher (weights)"),
    ]
    found = parts("method=musc task=multilingual/xnli model=mbert translator=m2m100 task.languages=[en,de]")
    assert found == [
        *("data set facebook/xnli, de", "data set facebook/xnli, en"),
        *("model facebook/m2m100_418M (tokenizer)", "model facebook/m2m100_418M (weights)"),
        *(f"model google-bert/bert-base-multilingual-cased ({what})" for what in ("tokenizer", "weights")),
    ]


def test_the_head_of_a_corpus_is_no_part_but_a_stage() -> None:
    words = "task=glue/rte method=cr_ild model=minilm_6_to_3 task@supplement=corpus/wikipedia"
    assert not [part for part in parts(words) if "wikipedia" in part]
    source = {"hub": "owner/corpus", "revision": "c" * 40, "config": None}
    whole = {"source": source, "passages": {"limit": None}, "rows": None}
    assert not supplies.streams(Stage("f", "corpus", values=whole))
    assert supplies.streams(Stage("f", "corpus", values={**whole, "rows": 10}))
    assert supplies.lacking([Stage("f", "corpus", values={**whole, "rows": 10})]) == [
        "data set owner/corpus: the rows that 'corpus' takes are not in the store"
    ]


@pytest.mark.slow  # the rest of what is fetched: above
def test_the_head_of_a_corpus_is_fetched_as_the_stage_that_takes_it(
    server: FakeHub, own: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "task@supplement=corpus/text supplement.source.path=null supplement.source.hub=owner/letters method=l_ild "
    words += (
        "supplement.passages.unit=row supplement.passages.limit=20 model.teacher.id=owner/bert model.student.init=cut"
    )
    words += " model.student.id=null model.student.num_layers=1"
    point_at(monkeypatch, server.url, tmp_path / "home", offline=True)
    lacking = command(own, "plan", words)
    assert lacking.code == 2 or "unpinned" in lacking.out
    point_at(monkeypatch, server.url, tmp_path / "home")
    done = command(own, "fetch", words)
    assert done.code == 0, done.err
    (made,) = own.store.glob("prepare_texts-*")
    assert f"{made}    into {own.store}, or what store= names" in done.out
    point_at(monkeypatch, server.url, tmp_path / "home", offline=True)
    with no_network(monkeypatch) as asked:
        planned = command(own, "plan", words)
        assert planned.code == 0 and "not in the cache" not in planned.out, planned.out
        shutil.rmtree(made)
        (tmp_path / "home/hub/datasets--owner--letters/kdlab").rename(tmp_path / "gone")
        assert "the rows that 'prepare_supplement' takes are not in the store" in command(own, "plan", words).out
    assert asked == []


def test_shards_are_read_from_the_index(server: FakeHub) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    shards = {name: name.encode() for name in index["weight_map"].values()}
    commit = server.model(
        "owner/large",
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            **shards,
            "pytorch_model.bin": b"x",
        },
    )
    part = Part("model", "owner/large", commit, "weights")
    hub.get(part)
    assert fetched(server) == {"config.json", "model.safetensors.index.json", *shards}
    (part.snapshot / "model-00002-of-00002.safetensors").unlink()
    assert hub.absent(part) is not None


def test_what_can_not_be_fetched_is_named(
    own: Lab, server: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    words = (
        "method=ft_cot task=demo/coin_flip model=tiny_decoder rationales=openai rationales.model=gpt-x tracking=wandb"
    )
    done = own.command(f"fetch {words} rationales.base_url=http://127.0.0.1:9/v1 store={own.store}")
    assert done.code == 0, done.err
    assert "not fetched: answers of " in done.out and "'rationales' asks" in done.out
    assert "not fetched: Weights & Biases" in done.out and server.log == []
