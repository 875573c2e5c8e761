"""Exports: folders that plain transformers, onnxruntime and the Hub take, and nothing else on the disk is touched.

The Hub is a server of this test that keeps what it is sent: creation, preupload and commit as huggingface_hub asks.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from cot import WORDS
from kdlab.errors import KdlabError
from kdlab.export import FORMATS, network
from kdlab.models.architectures import ARCHITECTURES
from kdlab.runs import Record
from lab import TINY, Done, Lab, once, read
from test_contract import prepared
from test_taps import tiny

FIT = "method.student.epochs=2 method.student.lr=1e-2 method.answer.max_tokens=24"
CASES = {
    "stock": f"method=ft {TINY}",
    "official": f"method=ft {TINY} model.student.head=official",
    "several": "method=musc task=demo/sentiment_xx model=tiny_multilingual translator=rules task.languages=[en,es] "
    "task.few.examples=32 task.dev_limit=24 task.test_limit=16 tracking=none hardware.threads=1 curves=0 "
    "method.student.epochs=1",
    "writer": f"method=ft_answer {WORDS} {FIT}",
    "adapted": f"method=ft_answer {WORDS} {FIT} method.student.lora.rank=2",
}
Runs = Callable[[str], tuple[Path, Done]]
BLOCKED = "import sys; sys.modules['kdlab'] = None\n"  # any import of kdlab now fails


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return once(lab, lambda name: CASES[name], tmp_path_factory)


@pytest.fixture(scope="module")
def exported(runs: Runs, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The plain folder of each case, written once."""
    root = tmp_path_factory.mktemp("exports")

    def export(name: str) -> Path:
        to = root / name
        if not to.exists():
            done = lab.command(f"export '{runs(name)[0]}' --to {to}")
            assert done.code == 0, done.err
        return to

    return export


def python(code: str, *words: str | Path, cwd: Path) -> str:
    """What a new process without kdlab prints."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *words], cwd=cwd, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippets(folder: Path) -> list[str]:
    """The Python of a model card."""
    return re.findall("```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def front_matter(folder: Path) -> Any:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def predictions(lab: Lab, run: Path, split: str) -> list[dict[str, Any]]:
    folder = lab.store / read(run / "result.json")["artifacts"]["evaluate_student"]
    return [json.loads(line) for line in (folder / f"predictions-{split}.jsonl").read_text().splitlines()]


def texts(lab: Lab, run: Path, split: str = "dev", table: str = "dev") -> list[list[str]]:
    """[first texts, second texts], or the former alone, in the order of the predictions."""
    rows = prepared(lab, read(run / "result.json"), table)
    place = {number: index for index, number in enumerate(rows["id"].to_pylist())}
    order = [place[entry["id"]] for entry in predictions(lab, run, split)]
    columns = [rows[name].take(order).to_pylist() for name in ("text_a", "text_b")]
    return [column for column in columns if column[0] is not None]


# plain folders


@pytest.mark.parametrize("name", CASES)
def test_a_plain_folder_is_whole_and_shares_nothing(
    name: str, runs: Runs, exported: Callable[[str], Path], lab: Lab
) -> None:
    run, folder = runs(name)[0], exported(name)
    files = {file.name: file for file in folder.iterdir()}
    writes = name in ("writer", "adapted")
    assert set(files) == {
        *("README.md", "config.json", "export.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *(["generation_config.json"] if writes else []),
    }
    assert all(file.stat().st_nlink == 1 and file.stat().st_mode & 0o200 for file in files.values())
    for file in run.joinpath("student").iterdir():
        assert file.name == "README.md" or files[file.name].read_bytes() == file.read_bytes()
    told = read(files["export.json"])
    assert told["check"] == {"same_as_saved": True} and told["exported_as"] == "hf"
    assert set(told["files"]) == set(files) - {"export.json"}
    assert told["run"]["name"] == run.name and told["artifact"] in os.listdir(lab.store)
    texts = [file.read_text(encoding="utf-8") for file in files.values() if file.suffix in (".md", ".json")]
    assert not any(str(lab.root) in text or str(Path.cwd()) in text or str(run.parent) in text for text in texts)
    matter = front_matter(folder)
    assert matter["library_name"] == "transformers" and matter["model-index"][0]["results"]
    assert f'folder = "{name}"  # the folder that holds this file' in files["README.md"].read_text(encoding="utf-8")


def test_without_kdlab_readers_give_the_logits_that_their_runs_wrote_down(
    runs: Runs, exported: Callable[[str], Path], lab: Lab
) -> None:
    """The code is that of the cards, with the lines for the official head."""
    ask = """
import json
for name, (card, max_length, texts) in json.load(open("asked.json")).items():
    exec(card)
    inputs = tokenizer(*texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    print(json.dumps([model(**inputs).logits.tolist(), model.config.id2label]))
"""
    cases = {"stock": ("dev", "dev"), "official": ("dev", "dev"), "several": ("dev.es", "dev.es.original")}
    asked = {}
    for name, (split, table) in cases.items():
        code = snippets(exported(name))
        assert len(code) == (2 if name == "official" else 1)
        longest = read(runs(name)[0] / "run.json")["config"]["task"]["max_length"]
        asked[name] = ("\n".join(code), longest, texts(lab, runs(name)[0], split, table))
    root = exported("stock").parent
    (root / "asked.json").write_text(json.dumps(asked))
    for (name, (split, _)), line in zip(cases.items(), python(ask, cwd=root).splitlines()[-3:], strict=True):
        logits, id2label = json.loads(line)
        stored = predictions(lab, runs(name)[0], split)
        if name == "several":
            stored = [{key: entry[key]["original"] for key in ("logits", "prediction")} for entry in stored]
        wanted = np.array([entry["logits"] for entry in stored])
        assert np.abs(np.array(logits) - wanted).max() < 1e-5 * np.abs(wanted).max(), name
        assert [id2label[str(np.argmax(line))] for line in logits] == [entry["prediction"] for entry in stored]


def test_the_line_for_the_official_head_is_needed(runs: Runs, exported: Callable[[str], Path], lab: Lab) -> None:
    from test_contract import score_with_transformers_alone

    run = runs("official")[0]
    rows = prepared(lab, read(run / "result.json"), "dev")
    plain = score_with_transformers_alone(exported("official"), rows, 32)
    stored = {entry["id"]: entry["logits"] for entry in predictions(lab, run, "dev")}
    wanted = np.array([stored[number] for number in rows["id"].to_pylist()])
    assert np.abs(plain - wanted).max() > 0.01 * np.abs(wanted).max()
    done = lab.command(f"export '{run}' --to '{run.parent / 'again'}'")
    assert "warning: the official code's head is no part of plain transformers" in done.out


@pytest.mark.slow  # readers: above
def test_without_kdlab_writers_answer_as_in_their_runs(runs: Runs, exported: Callable[[str], Path], lab: Lab) -> None:
    """The code is that of the cards. Adapters are merged: peft is not needed."""
    asked, wanted = {}, {}
    for name in ("writer", "adapted"):
        answers = read(lab.store / read(runs(name)[0] / "result.json")["artifacts"]["answers"] / "answers.json")["data"]
        records = [record for some in answers.values() for record in some]
        (card,) = snippets(exported(name))
        card, given = re.subn(r"prompts = \[.*\]\n", "prompts = given\n", card)
        assert given == 1
        asked[name] = (card, [record["prompt"] for record in records])
        wanted[name] = [record["completion"] for record in records]
    assert wanted["writer"] != wanted["adapted"]
    ask = """
import json
sys.modules["peft"] = None
shown = print
for name, (card, given) in json.load(open("prompts.json")).items():
    print = lambda texts: shown(json.dumps(texts))
    exec(card)
"""
    root = exported("writer").parent
    (root / "prompts.json").write_text(json.dumps(asked))
    written = [json.loads(line) for line in python(ask, cwd=root).splitlines()[-2:]]
    assert written == list(wanted.values())


# where it may be written


@pytest.fixture
def run(runs: Runs) -> Path:
    return runs("stock")[0]


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The run in a folder of its own, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_no_other_file_is_lost(run: Path, tmp_path: Path, lab: Lab) -> None:
    to = tmp_path / "deep" / "export"
    assert lab.command(f"export '{run}' --to {to}").code == 0
    again = lab.command(f"export '{run}' --to {to}")
    assert again.code == 2 and "--to holds an earlier export" in again.err and "--force" in again.err

    (to / "notes.txt").write_text("mine")
    refused = lab.command(f"export '{run}' --to {to} --force")
    assert refused.code == 2 and "notes.txt" in refused.err and (to / "notes.txt").read_text() == "mine"
    (to / "notes.txt").unlink()
    (to / "README.md").write_text("my own card")
    refused = lab.command(f"export '{run}' --to {to} --force")
    assert refused.code == 2 and "README.md" in refused.err and (to / "README.md").read_text() == "my own card"

    written = (to / "export.json").read_text()
    (to / "export.json").write_text(written[:100])
    refused = lab.command(f"export '{run}' --to {to} --force")
    assert refused.code == 2 and "and 2 more" in refused.err

    (to / "export.json").write_text(written)
    (to / "README.md").unlink()
    (to / "config.json").unlink()
    replaced = lab.command(f"export '{run}' --to {to} --force")
    assert replaced.code == 0 and (to / "config.json").is_file() and (to / "README.md").is_file()
    assert [file.name for file in to.parent.iterdir()] == ["export"]


def test_folders_that_are_no_place_for_an_export(
    run: Path, tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(lab.store)
    monkeypatch.chdir(full)
    for to, said in {
        lab.store / "export": "in the store of artifacts",
        tmp_path / "link" / "export": "in the store of artifacts",
        run / "student" / "export": "in the run's own student",
        tmp_path / "file": "is a file",
        tmp_path / "file" / "export": "no folder can be made there: Not a directory",
        tmp_path / ("x" * 300): "File name too long",
        Path("."): "the current folder is in it",
        tmp_path: "the current folder is in it",
        run: "is not empty, and no export: it holds ",
    }.items():
        done = lab.command(f"export '{run}' --to '{to}' --force")
        assert done.code == 2 and said in done.err and "Traceback" not in done.err, (to, done.err)
    monkeypatch.chdir(tmp_path)
    done = lab.command(f"export '{run}' --to full --force")
    assert done.code == 2 and "it holds thesis.tex" in done.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "full", "link"]
    (full / "thesis.tex").unlink()
    assert lab.command(f"export '{run}' --to full").code == 0  # an empty folder is one


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr("kdlab.export.shutil.copyfile", full)
    done = lab.command(f"export '{run}' --to {tmp_path / 'a' / 'b'}")
    assert done.code == 2 and "writing the export failed: No space left on device" in done.err
    assert f"where: {tmp_path / 'a' / 'b'}" in done.err and "point `--to` at another disk" in done.err
    assert list(tmp_path.iterdir()) == []


# what can be exported


def test_runs_without_a_student(copied: Path, tmp_path: Path, lab: Lab) -> None:
    def refused(**told: Any) -> str:
        result = read(copied / "result.json")
        config = read(copied / "run.json")
        result["student"]["path"] = None
        config["config"]["model"] |= told
        (copied / "result.json").write_text(json.dumps(result))
        (copied / "run.json").write_text(json.dumps(config))
        done = lab.command(f"export {copied} --to {tmp_path / 'export'}")
        assert done.code == 2 and not (tmp_path / "export").exists()
        return done.err

    assert "has no student to export: its model was only prompted" in refused(kind="decoder")
    assert "has no student to export: its model is behind an endpoint" in refused(kind="endpoint")
    (copied / "result.json").write_text("{}")
    done = lab.command(f"export {copied} --to {tmp_path / 'export'}")
    assert done.code == 2 and "this result was written by another kdlab" in done.err
    (copied / "result.json").unlink()
    done = lab.command(f"export {copied} --to {tmp_path / 'export'}")
    assert done.code == 2 and "the run has not finished" in done.err
    sweep = lab.command(f"export {copied.parent} --to {tmp_path / 'export'}")
    assert sweep.code == 2 and "this is a sweep of 1 runs" in sweep.err and str(copied) in sweep.err
    none = lab.command(f"export {tmp_path / 'nowhere'} --to {tmp_path / 'export'}")
    assert none.code == 2 and "not the folder of a run" in none.err


def test_a_student_that_was_changed_is_not_exported(copied: Path, tmp_path: Path, lab: Lab) -> None:
    config = copied / "student" / "config.json"
    config.write_text(config.read_text().replace("entailment", "ENTAILMENT"))
    done = lab.command(f"export {copied} --to {tmp_path / 'export'}")
    assert done.code == 2 and "config.json is other" in done.err and not (tmp_path / "export").exists()
    shutil.rmtree(copied / "student")
    assert lab.command(f"export {copied} --to {tmp_path / 'export'}").code == 0  # from the store
    wrong = lab.command(f"export {copied} --to {tmp_path / 'other'} --store {tmp_path / 'none'}")
    assert wrong.code == 2 and "there is no such store" in wrong.err
    (tmp_path / "empty").mkdir()
    gone = lab.command(f"export {copied} --to {tmp_path / 'other'} --store {tmp_path / 'empty'}")
    assert gone.code == 2 and "the student of run run is not there" in gone.err


def test_without_its_store_a_run_is_exported_and_not_checked(copied: Path, tmp_path: Path, lab: Lab) -> None:
    (tmp_path / "empty").mkdir()
    (copied / "student" / ".cache").mkdir()
    done = lab.command(f"export {copied} --to {tmp_path / 'export'} --store {tmp_path / 'empty'}")
    assert done.code == 0 and "check  none" in done.out
    told = read(tmp_path / "export" / "export.json")
    assert told["check"] == {"same_as_saved": False} and told["artifact"] is None
    assert (tmp_path / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--private", "--private: is for --push"),
        ("--opset 18", "--opset: is for --format onnx"),
        ("--push me", "give owner/name"),
        ("--push me/a/b", "give owner/name"),
        ("--push 'me/a b'", "give owner/name"),
    ],
)
def test_words_that_do_not_fit(words: str, said: str, run: Path, tmp_path: Path, lab: Lab) -> None:
    done = lab.command(f"export '{run}' --to {tmp_path / 'export'} {words}")
    assert done.code == 2 and said in done.err and list(tmp_path.iterdir()) == []


# ONNX


def onnx_snippet(folder: Path, old: str, new: str) -> str:
    (code,) = snippets(folder)
    assert code.count(old) >= 1
    return code.replace(old, new)


def test_onnx_of_a_reader_answers_as_the_run_did(
    run: Path, tmp_path: Path, lab: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the code of its card, run on the dev rows without kdlab and torch."""
    to = tmp_path / "export"
    done = lab.command(f"export '{run}' --to {to} --format onnx")
    assert done.code == 0 and done.err == "" and capfd.readouterr().err == ""
    assert "64 rows of dev and 9 made up" in done.out and len(done.out.splitlines()) == 5
    assert {file.name for file in to.iterdir()} == {
        *("README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json")
    }
    told = read(to / "export.json")
    check = told["check"]
    assert check["difference"] <= check["allowed"] == pytest.approx(1e-4 * check["largest"])
    assert check["agreeing"] == check["predictions"] and check["batches"] == [1, 2, 5, 8]
    assert told["onnx"]["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert check["tokens"] == [1, told["onnx"]["longest"]]
    whole = b"".join(file.read_bytes() for file in to.iterdir())
    assert b".py" not in whole and str(Path.cwd()).encode() not in whole and str(lab.root).encode() not in whole
    matter = front_matter(to)
    assert "library_name" not in matter and "onnx" in matter["tags"]

    first, second = texts(lab, run)
    (tmp_path / "texts.json").write_text(json.dumps([first, second]))
    code = onnx_snippet(to, 'first = ["..."]\nsecond = ["..."]', "first, second = json.load(open('texts.json'))")
    printed = python("sys.modules['torch'] = None\n" + code, cwd=tmp_path).splitlines()[-1]
    assert printed == str([entry["prediction"] for entry in predictions(lab, run, "dev")])


@pytest.mark.slow  # of a reader: above
def test_onnx_of_a_writer_writes_as_in_the_run(runs: Runs, tmp_path: Path, lab: Lab) -> None:
    run, to = runs("writer")[0], tmp_path / "export"
    done = lab.command(f"export '{run}' --to {to} --format onnx")
    assert done.code == 0, done.err
    assert "8 rows of prompts and 9 made up" in done.out
    answers = read(lab.store / read(run / "result.json")["artifacts"]["answers"] / "answers.json")["data"]
    (record,) = answers["0"] if "0" in answers else next(iter(answers.values()))
    code = onnx_snippet(to, '"...")', f"{record['question']!r})")
    assert python("sys.modules['torch'] = None\n" + code, cwd=tmp_path).rstrip("\n") == record["completion"]


@pytest.mark.slow
def test_onnx_has_the_official_head_and_the_check_would_notice(
    runs: Runs, tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, to = runs("official")[0], tmp_path / "deep" / "export"
    monkeypatch.setattr(network.nn, "ReLU", torch.nn.Identity)
    refused = lab.command(f"export '{run}' --to {to} --format onnx")
    monkeypatch.undo()
    assert refused.code == 2 and "does not compute what the student does" in refused.err
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(network, "LARGEST", 0)  # as if it had over 2 GB
    done = lab.command(f"export '{run}' --to {to} --format onnx --opset 18")
    assert done.code == 0, done.err
    assert read(to / "export.json")["onnx"] | {"versions": None} == {
        "opset": 18,
        "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "outputs": ["logits"],
        "external_data": True,
        "longest": 64,
        "versions": None,
    }
    assert (to / "model.onnx.data").stat().st_size > (to / "model.onnx").stat().st_size
    onnxruntime.InferenceSession(to / "model.onnx")
    assert "Warning" not in (to / "README.md").read_text()


@pytest.fixture
def alone(tmp_path: Path) -> Record:
    """A run that the store knows nothing of."""
    return Record(tmp_path, {"config": {"store": str(tmp_path / "store")}}, None, None)


def words(**more: str) -> PreTrainedTokenizerFast:
    """A tokenizer that gives segments."""
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2, "[END]": 3}, unk_token="[UNK]"))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_input_names=inputs, **more
    )


def one_layer(name: str) -> dict[str, Any]:
    if name == "modernbert":
        return {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    return {"n_layers" if name == "distilbert" else "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "name",
    [name if name == "bert" else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES],
)
def test_onnx_of_every_architecture(name: str, alone: Record, tmp_path: Path) -> None:
    """With padding, segments where the model has them, and rows as long as it reads; roberta gives a number."""
    number = {"num_labels": 1, "problem_type": "regression"} if name == "roberta" else {}
    model = tiny(name, **one_layer(name), **number)
    source, out = tmp_path / "model", tmp_path / "out"
    model.save_pretrained(source)
    words().save_pretrained(source)
    out.mkdir()
    told = network.write(source, out, record=alone, store=tmp_path, opset=None, note=lambda text: None)
    check = told["check"]
    assert check["difference"] <= 1e-5 * check["largest"] and check["rows_of"] is None and check["made_up"] == 9
    assert check["agreeing"] == check["predictions"] == (None if number else 9)
    segments = name in ("bert", "xlm-roberta", "electra")
    assert ("token_type_ids" in told["onnx"]["inputs"]) == segments
    bounds = {"roberta": 31, "xlm-roberta": 31, "mpnet": 30, "deberta-v2": None, "modernbert": None}
    assert told["onnx"]["longest"] == (bound := bounds.get(name, 32)) and check["tokens"] == [1, bound or 512]


def test_what_onnx_can_not_hold(alone: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(opset: int | None = None) -> str:
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        with pytest.raises(KdlabError) as caught:
            network.write(tmp_path / "model", out, record=alone, store=tmp_path, opset=opset, note=lambda text: None)
        return str(caught.value)

    sizes = {"vocab_size": 30, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING["t5"](**sizes)).save_pretrained(tmp_path / "model")
    assert "t5 is an encoder-decoder" in refused() and "--format hf" in refused()
    shutil.rmtree(tmp_path / "model")
    tiny("bert", num_hidden_layers=1).save_pretrained(tmp_path / "model")
    words().save_pretrained(tmp_path / "model")
    assert "torch.onnx can't write opset 13 of this model: it gave 18" in refused(13)
    with monkeypatch.context() as patched:
        patched.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
        assert "torch.onnx can't export a bert: ZeroDivisionError" in refused()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'kdlab[onnx]'" in refused()


def test_a_writer_is_checked_row_by_row_without_padding(alone: Record, tmp_path: Path) -> None:
    """gpt2 counts positions from the first token, padding or not."""
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "eos_token_id": 3}
    config = CONFIG_MAPPING["gpt2"](**sizes, bos_token_id=3, initializer_range=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    words(eos_token="[END]").save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    told = network.write(tmp_path / "model", out, record=alone, store=tmp_path, opset=None, note=lambda text: None)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    ids = np.array([[5, 6, 7, 8]])
    (whole,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    padded = np.array([[0, 0, 5, 6, 7, 8]])
    mask = np.array([[0, 0, 1, 1, 1, 1]])
    (left,) = session.run(["logits"], {"input_ids": padded, "attention_mask": mask})
    assert np.abs(left[:, 2:] - whole).max() < 1e-5 * np.abs(whole).max()
    assert told["check"]["tokens"] == [1, 32] and told["check"]["predictions"] > 9


# the Hub

TOKEN = "hf_secretsecretsecretsecretsecretsec"


class Hub:
    """What it was sent. status: of the answer to a creation; there: repositories, and whether they are private."""

    def __init__(self, *, status: int = 200, there: dict[str, bool] | None = None) -> None:
        self.status, self.there = status, dict(there or {})
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.tokens.add(self.headers["Authorization"])
                name = self.path.removeprefix("/api/models/")
                private = hub.there.get(name)
                self.answer(404 if private is None else 200, {"id": name, "private": private})

            def do_POST(self) -> None:
                hub.tokens.add(self.headers["Authorization"])
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(*hub.post(self.path.partition("?")[0], body))

            def answer(self, status: int, content: Any) -> None:
                sent = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
            if self.status != 200:
                return self.status, {"error": f"no: {TOKEN}"}
            if name in self.there:
                return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}
            self.there[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        assert "/commit/" in path, path
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return 200, {"commitOid": "0" * 40, "commitUrl": f"{self.address}/me/x/commit/0", "success": True}


@pytest.fixture
def hub() -> Iterator[Callable[..., Hub]]:
    started: list[Hub] = []

    def start(**how: Any) -> Hub:
        started.append(Hub(**how))
        threading.Thread(target=started[-1].server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


def pushed(run: Path, to: Path, *words: str, address: str, **env: str | None) -> Done:
    """`kdlab export` in a process of its own: the Hub's address is read when its library is imported."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in offline}
    given = {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, **env}
    command = [sys.executable, "-m", "kdlab", "export", run, "--to", to, "--push", "me/mine", *words]
    done = subprocess.run(
        command,
        env=kept | {name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert (to / "export.json").is_file() and "wrote  " in done.stdout
    assert all(TOKEN.encode() not in file.read_bytes() for file in to.iterdir())
    return Done(done.returncode, done.stdout, done.stderr)


def test_what_is_pushed_is_the_folder(run: Path, tmp_path: Path, hub: Callable[..., Hub]) -> None:
    server = hub()
    done = pushed(run, tmp_path / "export", "--private", address=server.address)
    assert done.code == 0, done.err
    assert f"pushed {server.address}/me/mine" in done.out
    assert server.files == {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()}
    assert server.there == {"me/mine": True} and server.tokens == {f"Bearer {TOKEN}"}
    assert b'folder = "me/mine"  # on the Hub' in server.files["README.md"]


def test_a_name_that_is_taken(run: Path, tmp_path: Path, hub: Callable[..., Hub]) -> None:
    server = hub(there={"me/mine": False})
    done = pushed(run, tmp_path / "export", address=server.address)
    assert done.code == 2 and "the Hub has a repository me/mine already; nothing is lost" in done.err
    done = pushed(run, tmp_path / "export", "--force", "--private", address=server.address)
    assert done.code == 2 and "me/mine is there already and is public" in done.err and not server.files
    done = pushed(run, tmp_path / "export", "--force", address=server.address)
    assert done.code == 0 and "model.safetensors" in server.files


@pytest.mark.parametrize(
    ("status", "env", "said"),
    [
        (401, {}, "the Hub does not know this token"),
        (403, {}, "this token may not write to me"),
        (400, {}, "the Hub refused with 400: no: ***"),
        (200, {"HF_TOKEN": None}, "there is no token for the Hub"),
        (200, {"HF_HUB_OFFLINE": "1"}, "the Hub is switched off"),
        (200, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub can't be reached"),
    ],
)
def test_what_is_in_the_way_of_a_push(
    status: int, env: dict[str, str | None], said: str, run: Path, tmp_path: Path, hub: Callable[..., Hub]
) -> None:
    done = pushed(run, tmp_path / "export", address=hub(status=status).address, **env)
    assert done.code == 2 and said in done.err and "the export is in" in done.err and "fix:" in done.err


def test_every_format_is_shown_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    from kdlab.verbs.export import main

    with pytest.raises(SystemExit):
        main(["--help"])
    assert "{" + ",".join(FORMATS) + "}" in capsys.readouterr().out
