"""Malformed input, from the command line to its message: every row of these tables is one command.

Each ends with exit code 2 and one message of what is wrong, where, and what to do; nothing is trained, and nothing is
published but what verifies. Rows that say `code=0` are unusual files that must be read.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import writers
from cot import SMALL as SMALLEST
from cot import WORDS as COIN
from cot import completion
from endpoint_server import serving
from kdlab.artifacts import Store
from kdlab.data.demo import coin_flip
from kdlab.stages.tokenise import _words
from lab import Done, Lab, permissions_hold
from toy import encoder

pytestmark = pytest.mark.xdist_group("bad_input")

SMALL = "model=tiny debug=fast tracking=none hardware.threads=1"
OWN = f"method=ft {SMALL} curves=0 debug.steps=1 task=demo/nli task.splits.test=null task.text=[text]"
OWN += " task.labels=[no,yes]"
TRAINED = ("finetune", "distill_layers", "distill_logits", "distill_joint", "finetune_generator", "finetune_pairs")


@dataclass(frozen=True)
class Case:
    """make: writes files into a folder and gives the words of the command, which must say each of `says`."""

    name: str
    make: Callable[[Path], str]
    says: tuple[str, ...]
    verb: str = "train"
    code: int = 2


def ids(case: Case) -> str:
    return case.name


def check(case: Case, lab: Lab, root: Path, more: str = "") -> Done:
    """Run a row of a table in a store of its own."""
    words = case.make(root)
    store = root / "store"
    done = lab.command(f"{case.verb} {words} {more} store={store} outputs={root / 'out'}".replace("  ", " "))
    refuse_or_pass(case, done)
    if store.is_dir():
        problems = Store(store).verify()
        assert not problems, problems
        made = [path.name.rpartition("-")[0] for path in store.iterdir()]
        assert case.code == 0 or not set(made) & set(TRAINED), made
    return done


def refuse_or_pass(case: Case, done: Done) -> None:
    told = f"exit {done.code}\n{done.out}\n{done.err}"
    assert done.code == case.code, told
    assert "Traceback" not in told and "kdlab itself failed" not in told, told
    if case.code == 2:
        assert done.err.count("error:") == 1, told
        assert len(done.err) < 3000, f"{len(done.err)} characters: {done.err[:3000]}"
    for words in case.says:
        assert words in done.err + (done.out if case.code == 0 else ""), told


def line(name: str, words: str, *says: str, verb: str = "train") -> Case:
    """A row that needs no file."""
    return Case(name, lambda _: words, says, verb)


def conf(
    name: str, text: str | bytes, words: str, *says: str, file: str = "task/mine.yaml", verb: str = "plan"
) -> Case:
    """A row with a yaml file of one's own."""

    def make(root: Path) -> str:
        place = root / "conf" / file
        place.parent.mkdir(parents=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"--config-dir {root / 'conf'} {words}"

    return Case(name, make, says, verb)


HEAD = "defaults:\n  - /task/demo/nli@_here_\n  - _self_\n"
MINE = f"method=kd {SMALL} task=mine"
KD = f"method=kd task=demo/nli {SMALL}"

CONFIGS = [
    # words
    line("no key", f"{KD} =3", "=3: is not of the form KEY=VALUE"),
    line("unknown key", f"{KD} method.logits.epoch=3", "did you mean method.logits.epochs?"),
    line("unknown verb", "", "no verb", verb="trian"),
    line("half a list", f"{KD} task.text=[premise", "can't be read"),
    line("a deep section", f"{KD} model.student.config={'{a: ' * 300}1{'}' * 300}", "model.student.config"),
    line("a long word", f"{KD} seed={'9' * 5000}", "seed=999"),
    line("an option of a folder", f"{KD} task=../demo/nli", "unknown option"),
    line("no option", f"{KD} task=", "task"),
    line("a group left out", "task=demo/nli method=null", "a run needs its method"),
    # types
    line("a word for a number", f"{KD} seed=abc", "seed=abc: takes a whole number"),
    line("a list for a number", f"{KD} method.logits.lr=[1e-3,1e-4]", "takes a number, not [0.001,0.0001]"),
    line("a number for a list", f"{KD} task.text=3", "takes a list of words"),
    line("a number for a section", f"{KD} method.logits=3", "is a section, not a value"),
    line("a fraction of an epoch", f"{KD} method.logits.epochs=1.5", "takes a whole number, not 1.5"),
    line("an empty text", f"{KD} task.label=''", "task.label"),
    line("an empty column", f"{KD} task.text=['']", "task.text"),
    line("no columns", f"{KD} task.text=[]", "task.text=[]: one or two columns"),
    # ranges
    line("a negative seed", f"{KD} seed=-1", "must be between 0 and 4294967295"),
    line("a huge seed", f"{KD} seed=99999999999999999999", "must be between 0 and 4294967295"),
    line("nan", f"{KD} method.logits.lr=nan", "method.logits.lr=nan: must be more than 0"),
    line("inf", f"{KD} method.logits.temperature=inf", "must be more than 0"),
    line("a number beyond all", f"{KD} method.logits.lr=1e999", "must be more than 0"),
    line("negative epochs", f"{KD} method.logits.epochs=-1", "must be 0 or more"),
    line("negative threads", f"{KD} hardware.threads=-1", "must be 0 (as torch chooses) to 1024"),
    line("a whole for a share", f"{KD} task.noise.rate=1", "is a share of the labels"),
    line("a length that no model has", f"{KD} task.max_length=1000000000", "task.max_length=1000000000", "64"),
    # contradictions
    line("two sources", f"{KD} task.source.path=x task.source.hub=a/b", "exactly one of"),
    line("fp16 on a processor", f"{KD} precision=fp16 hardware=cpu", "a processor can't train in it"),
    line("nothing to select on", f"{KD} select_on=heldout task.heldout=0", "keeps no training rows"),
    line("a metric of another kind", f"{KD} task.metric=pearson", "does not fit a classification task"),
    line("a class twice", f"{KD} task.labels=[yes,yes,no]", "a class is named twice"),
    line(
        "a task of another family",
        "method=kd task=demo/coin_flip model=tiny tracking=none",
        "which needs an encoder task",
    ),
    line("the text is the label", f"{KD} task.text=[label]", "the text would hold the answer"),
    # names
    line("a path for a name", f"{KD} name=../../etc/cron.d/x", "names a folder"),
    line("a set with a slash", f"{KD} +task.evaluations.a/b.split=test", "a/b"),
    conf("a set with dots", f"{HEAD}evaluations: {{'../x': {{split: test}}}}\n", MINE, "../x"),
    conf("a NUL in a path", f'{HEAD}source: {{demo: null, path: "a\\0b"}}\n', MINE, "task.source.path"),
    # layer maps
    line("layers that do not divide", f"method=tinybert {KD[10:]} model.student.num_layers=3", "multiple"),
    line(
        "a pair of no numbers",
        f"method=tinybert {KD[10:]} method.layers.layer_map=pairs method.layers.pairs=[a-b]",
        "'a-b' is not of the form STUDENT-TEACHER",
    ),
    line(
        "a pair that is not there",
        f"method=tinybert {KD[10:]} method.layers.layer_map=pairs method.layers.pairs=[0-1,1-99999999999999999999]",
        "0-1 is not there",
        "'1-99999999999999999999' is not of the form",
    ),
    line(
        "a pair twice",
        f"method=tinybert {KD[10:]} method.layers.layer_map=pairs method.layers.pairs=[1-2,1-2]",
        "1-2 is there twice",
    ),
    line("a layer that is not there", f"{KD} model.student.num_layers=null model.student.layers=[1,9]", "9"),
    line("more layers than there are", f"{KD} model.student.num_layers=9", "a student can't be deeper"),
    # models of a configuration alone
    line("no kind of model", f"{KD} model.teacher.config.model_type=nonsense", "'nonsense' is not supported"),
    line("width and heads", f"{KD} model.teacher.config.hidden_size=65", "65"),
    line(
        "no heads", f"{KD} model.teacher.config.num_attention_heads=0", "num_attention_heads=0, which must be 1 or more"
    ),
    line("a negative width", f"{KD} model.teacher.config.hidden_size=-64", "hidden_size=-64, which must be 1 or more"),
    line("a word for a width", f"{KD} model.teacher.config.hidden_size=wide", "hidden_size"),
    line(
        "a width beyond memory", f"{KD} model.teacher.config.hidden_size=4000000000", "does not fit into this machine"
    ),
    line("a setting that is none", f"{KD} model.teacher.config.hiden_size=64", "no setting 'hiden_size'"),
    line(
        "nan for a model",
        f"{KD} model.teacher.config.layer_norm_eps=nan",
        "layer_norm_eps=nan: must be a finite number",
    ),
    line(
        "inf for a model",
        f"{KD} model.teacher.config.initializer_range=inf",
        "initializer_range=inf: must be a finite number",
    ),
    # references
    line("a reference to nothing", f"{KD} 'seed=${{nothing}}'", "no key 'nothing' to refer to"),
    line("a reference to itself", f"{KD} 'seed=${{seed}}'", "leads back to itself"),
    conf(
        "two that refer to each other",
        f"{HEAD}rows: ${{task.dev_limit}}\ndev_limit: ${{task.rows}}\n",
        MINE,
        "leads back to itself",
    ),
    conf("a reference that can't be read", f"{HEAD}max_length: ${{\n", MINE, "task/mine.yaml"),
    conf("a resolver that is none", f"{HEAD}max_length: ${{shell:id}}\n", MINE, "task.max_length"),
    # files
    conf("no YAML", "text: [a\nlabel: }\n", MINE, "task/mine.yaml: is not YAML"),
    conf("YAML in UTF-16", HEAD.encode("utf-16"), MINE, "task/mine.yaml"),
    conf("YAML in Latin-1", f"{HEAD}label: caf\xe9\n".encode("latin-1"), MINE, "task/mine.yaml"),
    conf("a NUL in YAML", f"{HEAD}label: a\0b\n", MINE, "task/mine.yaml"),
    conf("a list for a file", "- a\n- b\n", MINE, "task/mine.yaml"),
    conf(
        "YAML that runs code", f"{HEAD}label: !!python/object/apply:os.system ['touch RAN']\n", MINE, "task/mine.yaml"
    ),
    conf("an unknown key in a file", f"{HEAD}lable: a\n", MINE, "did you mean task.label?"),
    conf("a wrong type in a file", f"{HEAD}max_length: long\n", MINE, "takes a whole number, not long"),
    conf(
        "a file that takes itself",
        "defaults:\n  - /task/mine@_here_\n  - _self_\n",
        MINE,
        "task/mine.yaml: its defaults lead back to itself",
    ),
    conf(
        "a default that is not there",
        "defaults:\n  - /task/nothing@_here_\n  - _self_\n",
        MINE,
        "there is no task 'nothing'",
    ),
    conf("defaults that are no list", "defaults: kd\n", MINE, "task/mine.yaml"),
    conf(
        "an override of nothing",
        "defaults:\n  - override /nothing: x\n  - _self_\n",
        MINE,
        "which there is not; groups:",
    ),
    conf(
        "a key that must be given",
        "defaults:\n  - /schema@_here_: task\n  - _self_\nname: mine\n",
        MINE,
        "task.text: must be given",
    ),
    conf(
        "an experiment without its package",
        "seed: 3\n",
        "experiment=mine",
        "must start with the line '# @package",
        file="experiment/mine.yaml",
    ),
    line("a folder that is not there", f"--config-dir /no/such/folder {KD}", "no such folder"),
    line("a file for a folder", f"--config-dir {__file__} {KD}", "no such folder"),
    # searches
    line(
        "an interval upside down", f"{KD} method.logits.lr=interval(2,1)", "from a number to a larger one", verb="tune"
    ),
    line("a logarithm of nothing", f"{KD} method.logits.lr=log(0,1)", "both ends are above 0", verb="tune"),
]


@pytest.mark.parametrize("case", CONFIGS, ids=ids)
def test_configurations(case: Case, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if case.verb == "tune":
        refuse_or_pass(case, lab.command(f"tune {case.make(tmp_path)} store={tmp_path / 's'} outputs={tmp_path / 'o'}"))
    elif case.verb == "trian":
        assert lab.command("trian").code == 2
    else:
        check(case, lab, tmp_path)
    assert not (tmp_path / "RAN").exists()


# Rows of a task


def texts(
    count: int = 40, label: Callable[[int], Any] = lambda number: ("no", "yes")[number % 2]
) -> list[dict[str, Any]]:
    return [{"text": f"word{number % 7} is number{number}", "label": label(number)} for number in range(count)]


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


def jsonl_of(rows: Sequence[Any]) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


GOOD = csv_of(texts())
LINES = jsonl_of(texts())


def data(name: str, file: str, content: str | bytes, *says: str, words: str = "", code: int = 2) -> Case:
    """A row with one file of training rows."""

    def make(root: Path) -> str:
        (root / file).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return f"{OWN} task.source.path={root / file} {words}"

    return Case(name, make, says, code=code)


def made(name: str, make: Callable[[Path], Path], *says: str, words: str = "", code: int = 2) -> Case:
    """A row whose file a function makes."""
    return Case(name, lambda root: f"{OWN} task.source.path={make(root)} {words}", says, code=code)


def parquet(**columns: Any) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        pq.write_table(pa.table(columns), root / "train.parquet")
        return root / "train.parquet"

    return make


def cut_parquet(root: Path) -> Path:
    file = parquet(text=["a"] * 50, label=["no", "yes"] * 25)(root)
    file.write_bytes(file.read_bytes()[:-20])
    return file


def garbled_names(root: Path) -> Path:
    """The bytes of a column's name are no UTF-8."""
    file = parquet(text=["a", "b"], label=["no", "yes"], **{"caf\xe9": [1, 2]})(root)
    file.write_bytes(file.read_bytes().replace("caf\xe9".encode(), b"caf\xc3("))
    return file


def garbled(root: Path) -> Path:
    """A column of texts whose bytes are none."""
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(struct.pack("<3i", 0, 1, 2)), pa.py_buffer(b"\xff\xfe")]
    )
    return parquet(text=texts, label=["no", "yes"])(root)


def split(dev: str | bytes, file: str = "validation.csv") -> Callable[[Path], Path]:
    """A folder with good training rows, and these to be scored."""

    def make(root: Path) -> Path:
        folder = root / "data"
        folder.mkdir()
        (folder / "train.csv").write_text(GOOD)
        (folder / file).write_bytes(dev if isinstance(dev, bytes) else dev.encode())
        return folder

    return make


def in_place_of_a_file(root: Path) -> Path:
    (root / "data" / "train.csv").mkdir(parents=True)
    return root / "data"


def loop(root: Path) -> Path:
    (root / "a.csv").symlink_to(root / "b.csv")
    (root / "b.csv").symlink_to(root / "a.csv")
    return root / "a.csv"


def pipe(root: Path) -> Path:
    os.mkfifo(root / "train.csv")
    return root / "train.csv"


def pipe_in_a_folder(root: Path) -> Path:
    (root / "data").mkdir()
    pipe(root / "data")
    return root / "data"


NUMBERS = "task.kind=regression task.labels=null task.metric=pearson"
EVEN = [number % 2 for number in range(40)]
WORDS = [f"word{number}" for number in range(40)]

DATA = [
    data("a mark of the byte order", "a.csv", b"\xef\xbb\xbf" + GOOD.encode(), code=0),
    data("lines of Windows", "a.csv", GOOD.replace("\n", "\r\n"), code=0),
    data("a mark and lines of Windows", "a.jsonl", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode(), code=0),
    data("a cell of a megabyte", "a.csv", GOOD + f"{'long ' * 200_000},no\n", code=0),
    data("UTF-16", "a.csv", GOOD.encode("utf-16"), "The file is UTF-16", "a.csv"),
    data("Latin-1", "a.csv", (GOOD + "caf\xe9,no\n").encode("latin-1"), "0xe9 is no UTF-8", "line 42", "iconv"),
    data("a NUL", "a.csv", GOOD + "a\0b,no\n", "NUL byte", "line 42"),
    data("a ragged row", "a.csv", GOOD + "a,b,no\n", "The row has 3 fields, the header has 2", "line 42"),
    data("an open quote", "a.csv", GOOD + '"a,no\n', "quotes", "line 42"),
    data("a quote inside", "a.csv", GOOD + '"a"b",no\n', "quotes", "line 42"),
    data("no column of labels", "a.csv", "text,lable\na,no\nb,yes\n", "Did you mean 'lable'?", "task.label"),
    data("no column of texts", "a.csv", "txt,label\na,no\nb,yes\n", "Did you mean 'txt'?", "task.text"),
    data("a column twice", "a.csv", "text,label,text\na,no,b\nc,yes,d\n", "'text' twice"),
    data("an unknown label", "a.csv", GOOD + "a,noo\n", "The label 'noo' is none of", "line 42", "Did you mean 'no'?"),
    data("one class", "a.csv", csv_of(texts(label=lambda _: "no")), "Every training row has the same label, 'no'"),
    data("a row without its label", "a.csv", GOOD + "a,\n", "1 of 41 rows have no label", "line 42"),
    data("an empty file", "a.csv", "", "The file is empty"),
    data("a header only", "a.csv", "text,label\n", "has no rows"),
    data("blank lines only", "a.csv", "\n\n\n", "no header and no rows"),
    data("texts that are all empty", "a.csv", "text,label\n" + ",no\n,yes\n" * 20, "empty"),
    data("two rows", "a.csv", csv_of(texts(2)), "rows"),
    data("a label for each row", "a.csv", csv_of(texts(label=lambda n: f"l{n}")), "is none of"),
    data(
        "a score that is nan",
        "a.csv",
        csv_of(texts(label=lambda n: "nan" if n == 3 else n)),
        "not finite",
        "line 5",
        words=NUMBERS,
    ),
    data(
        "a score that is inf",
        "a.csv",
        csv_of(texts(label=lambda n: "inf" if n == 3 else n)),
        "not finite",
        words=NUMBERS,
    ),
    data(
        "a word for a score",
        "a.csv",
        csv_of(texts(label=lambda n: "good" if n == 3 else n)),
        "'good' is no number",
        words=NUMBERS,
    ),
    data("a comma for a point", "a.tsv", "text\tlabel\na\t1\nb\t2,5\n", "'2,5' is no number", words=NUMBERS),
    data("labels as floats", "a.csv", csv_of(texts(label=lambda n: float(n % 2))), "The label '0.0' is none of"),
    data("labels of mixed types", "a.jsonl", jsonl_of(texts(label=lambda n: ("no", 1)[n % 2])), code=0),
    data("a broken line", "a.jsonl", LINES + '{"text": "a", "lab\n', "The line is no JSON", "line 41"),
    data("a line that is a list", "a.jsonl", LINES + "[1, 2]\n", "no JSON object", "line 41"),
    data("a line that is NaN", "a.jsonl", LINES + "NaN\n", "no JSON object", "line 41"),
    data("a label that is NaN", "a.jsonl", LINES + '{"text": "a", "label": NaN}\n', "have no label", "line 41"),
    data(
        "a text that is null",
        "a.jsonl",
        LINES + '{"text": null, "label": "no"}\n',
        "'text' is missing or null",
        "line 41",
    ),
    data("a text that is a list", "a.jsonl", LINES + '{"text": ["a"], "label": "no"}\n', "no text or number but list"),
    data("a line too deep", "a.jsonl", LINES + "[" * 100_000 + "]" * 100_000 + "\n", "The line is no JSON", "line 41"),
    data(
        "a number of 5,000 digits",
        "a.jsonl",
        LINES + '{"text": "a", "label": %s}\n' % ("9" * 5000),
        "The line is no JSON",
        "line 41",
    ),
    data(
        "half a surrogate pair", "a.jsonl", LINES + '{"text": "\\ud800", "label": "no"}\n', "surrogate pair", "line 41"
    ),
    data("a suffix that is none", "a.xlsx", "PK", "Files that end in '.xlsx' can't be read"),
    data("a packed file", "a.csv.gz", gzip.compress(GOOD.encode()), "Files that end in '.gz' can't be read"),
    data("a packed file by another name", "a.csv", gzip.compress(GOOD.encode())[:-9], "NUL byte"),
    data("XML that is cut", "a.review", "<items><item><text>a</text>", "The file is no XML"),
    data(
        "XML that grows",
        "a.review",
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True))
        + "]><items><item><text>&i;</text><label>no</label></item></items>",
        "The file is no XML",
    ),
    data(
        "XML that names a file",
        "a.review",
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><items><item>'
        "<text>&a;</text><label>no</label></item></items>",
        "The file is no XML",
    ),
    data("documents without labels", "a.txt", "a\nb\n", "task.label"),
    data("no Parquet", "a.parquet", GOOD, "no readable Parquet"),
    made("Parquet that is cut", cut_parquet, "no readable Parquet"),
    made("Parquet with lists", parquet(text=[["a"]] * 40, label=EVEN), "'text' holds no text but list"),
    made("Parquet with bytes", parquet(text=[b"\xff\xfe"] * 40, label=EVEN), "'text'"),
    made(
        "Parquet with labels that are lists", parquet(text=WORDS, label=[[0]] * 40), "'label' holds no labels but list"
    ),
    made("Parquet with labels that are dates", parquet(text=WORDS, label=pa.array(EVEN, pa.timestamp("s"))), "label"),
    made("Parquet with texts that are no UTF-8", garbled, "no readable Parquet"),
    made("Parquet with a name that is no text", garbled_names, "no readable Parquet"),
    made("Parquet without rows", parquet(text=pa.array([], pa.string()), label=pa.array([], pa.string())), "no rows"),
    made("Parquet with nulls", parquet(text=pa.nulls(40), label=EVEN), "text"),
    made("no file", lambda root: root / "absent.csv", "there is no file or folder", "absent.csv"),
    made("a folder without files", lambda root: root, "no file for the split 'train'"),
    made("a folder for a file", in_place_of_a_file, "no file for the split 'train'"),
    made("a link to itself", loop, "there is no file or folder"),
    made("a pipe", pipe, "A pipe or a device is no file of rows", "train.csv"),
    made("a pipe in a folder", pipe_in_a_folder, "no file for the split 'train'"),
    made("a device", lambda _: Path("/dev/zero"), "/dev/zero"),
    made("dev in Latin-1", split("text,label\ncaf\xe9,no\n".encode("latin-1")), "0xe9 is no UTF-8", "validation.csv"),
    made("dev without labels", split("text,label\na,\nb,\n"), "2 of 2 rows have no label", "validation.csv"),
    made("dev with other labels", split("text,label\na,no\nb,maybe\n"), "'maybe' is none of", "validation.csv, line 3"),
    made("dev without a column", split("text\na\nb\n"), "no column 'label'", "validation.csv"),
    made("dev that is empty", split(""), "The file is empty", "validation.csv"),
    made("dev that is train", split(GOOD), "rows of dev are rows of train"),
    made("no dev", split(GOOD, "valid.csv"), "no file for the split 'validation'", "valid.csv"),
    made("dev twice", split(GOOD, "train.tsv"), "is there 2 times"),
    made(
        "a test outside",
        split("text,label\nx,no\ny,yes\n"),
        "outside of the data's folder",
        words="task.splits.test=../../etc/passwd",
    ),
]


@pytest.mark.parametrize("case", DATA, ids=ids)
def test_rows_of_a_task(case: Case, lab: Lab, tmp_path: Path) -> None:
    check(case, lab, tmp_path)


def test_rows_that_may_not_be_read(lab: Lab, tmp_path: Path) -> None:
    def refused(root: Path) -> Path:
        file = root / "a.csv"
        file.write_text(GOOD)
        file.chmod(0o000)
        return file

    with permissions_hold():
        check(
            made("no permission", refused, "a.csv can't be read: Permission denied", "make it readable"), lab, tmp_path
        )


# Models


def save_model(folder: Path, *, vocabulary: int = 30, layers: int = 2, **changes: Any) -> Path:
    """A small BERT and its tokenizer, as plain transformers save them."""
    tokenizer = _words([pa.table({"text_a": WORDS, "text_b": pa.nulls(len(WORDS), pa.string())})])
    model = encoder(layers=layers).model
    model.resize_token_embeddings(max(vocabulary, 1))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit(folder, **changes)
    return folder


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    """Change keys of a JSON file; a value of `...` takes the key away."""
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


WORD_TABLE = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


class Payload:
    """What runs when its pickle is opened."""

    def __reduce__(self) -> Any:
        return os.system, ("touch RAN",)


def pickled(folder: Path, content: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def bare_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))


def head_bomb(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def beyond(folder: Path) -> None:
    head = json.dumps({QUERY: {"dtype": "F32", "shape": [16, 16], "data_offsets": [0, 2**50]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)


def truncate(folder: Path, file: str, share: float = 0.5) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(len(content) * share)])


def remote_code(folder: Path, file: str = "config.json") -> None:
    (folder / "modeling.py").write_text("open('RAN', 'w')\nclass Mine: pass\n")
    auto = {"AutoConfig": "modeling.Mine", "AutoModelForSequenceClassification": "modeling.Mine"}
    edit(folder, file, auto_map=auto, model_type="mine")


def model(name: str, damage: Callable[[Path], Any], *says: str, method: str = "kd") -> Case:
    """A row with a student in a local folder. method=kd has a good teacher, which is not to be trained in vain."""

    def make(root: Path) -> str:
        student = MODEL.copy(root / "student")
        damage(student)
        pair = f"model.student.id={student}" + (f" model.teacher.id={MODEL.folder}" if method == "kd" else "")
        return f"method={method} {SMALL} model=distilbert {pair} task=demo/nli task.max_length=12"

    return Case(name, make, says)


def loaded(name: str, damage: Callable[[Path], Any], *says: str) -> Case:
    return model(name, damage, *says, method="ft")


class Template:
    """One model for all rows, which copy it."""

    folder: Path

    def copy(self, place: Path) -> Path:
        shutil.copytree(self.folder, place)
        return place


MODEL = Template()

MODELS = [
    model("no folder", lambda f: shutil.rmtree(f), "there is no folder"),
    model("an empty folder", lambda f: (shutil.rmtree(f), f.mkdir()), "has no config.json"),
    model("a config that is no JSON", lambda f: (f / "config.json").write_text("{model_type: bert"), "is not JSON"),
    model("a config in UTF-16", lambda f: (f / "config.json").write_bytes("{}".encode("utf-16")), "is not JSON"),
    model("a config that is a list", lambda f: (f / "config.json").write_text("[1]"), "is not a JSON object"),
    model("a config that is too deep", lambda f: (f / "config.json").write_text("[" * 100_000), "is not JSON"),
    model("a config that is empty", lambda f: (f / "config.json").write_text("{}"), "no model_type"),
    model("a config without a type", lambda f: edit(f, model_type=...), "no model_type"),
    model("an architecture of none", lambda f: edit(f, model_type="nonsense"), "'nonsense' is not supported"),
    model("a type that is a list", lambda f: edit(f, model_type=["bert"]), "which is no word"),
    model("an architecture of another kind", lambda f: edit(f, model_type="gpt2"), "'gpt2' is not supported"),
    model("a width of a word", lambda f: edit(f, hidden_size="wide"), "hidden_size='wide'"),
    model("a width of nothing", lambda f: edit(f, hidden_size=0), "hidden_size=0"),
    model("more layers than the teacher", lambda f: edit(f, num_hidden_layers=3), "a student can't be deeper"),
    model("no heads in a config", lambda f: edit(f, num_attention_heads=0), "num_attention_heads=0"),
    model("a model that is too short", lambda f: edit(f, max_position_embeddings=8), "task.max_length=12", "at most 8"),
    model("code of its own", remote_code, "'mine' is not supported"),
    model("no weights", lambda f: (f / "model.safetensors").unlink(), "the model has no weights"),
    model("weights that are cut", lambda f: truncate(f, "model.safetensors"), "the weights can't be read"),
    model("weights that are empty", lambda f: (f / "model.safetensors").write_bytes(b""), "the weights can't be read"),
    model(
        "weights that are text",
        lambda f: (f / "model.safetensors").write_text("<html>404</html>" * 99),
        "the weights can't be read",
    ),
    model("a head of an exabyte", head_bomb, "the weights can't be read"),
    model("a tensor beyond the file", beyond, "the weights can't be read"),
    model("no tokenizer", lambda f: [file.unlink() for file in f.glob("tokenizer*")], "tokenizer"),
    model("a tokenizer that is cut", lambda f: truncate(f, "tokenizer.json"), "tokenizer"),
    model("a tokenizer that is a list", lambda f: (f / "tokenizer.json").write_text("[]"), "tokenizer"),
    model("a tokenizer without padding", lambda f: edit(f, "tokenizer_config.json", pad_token=...), "pad"),
    model(
        "a tokenizer of other words",
        lambda f: edit(
            f,
            "tokenizer.json",
            model={
                "type": "WordLevel",
                "vocab": {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3},
                "unk_token": "[UNK]",
            },
        ),
        "token",
    ),
    model("more words than embeddings", lambda f: reweigh_words(f, 9), "both must read the same tokens"),
    # what only the loading of all weights can tell
    loaded("an architecture of other weights", lambda f: edit(f, model_type="roberta"), "weights"),
    loaded("a width of other weights", lambda f: edit(f, hidden_size=32), "weights do not fit the model"),
    loaded("fewer layers than weights", lambda f: edit(f, num_hidden_layers=1), "have no place in the model"),
    loaded("an activation of none", lambda f: edit(f, hidden_act="nonsense"), "nonsense"),
    loaded("a weight that is missing", lambda f: reweigh(f, lambda w: w.pop(QUERY)), "1 weights are missing", QUERY),
    loaded(
        "a weight of another shape", lambda f: reweigh(f, lambda w: w.update({QUERY: torch.zeros(8, 16)})), "[8, 16]"
    ),
    loaded(
        "a weight that is NaN", lambda f: reweigh(f, lambda w: w[QUERY].fill_(float("nan"))), "hold NaN or infinity"
    ),
    loaded(
        "a weight that is inf",
        lambda f: reweigh(f, lambda w: w[WORD_TABLE][3].fill_(float("inf"))),
        "hold NaN or infinity",
    ),
    loaded("weights that are a pickle", bare_pickle, "the weights"),
    loaded("weights that run code", lambda f: pickled(f, {"weight": Payload()}), "more than plain tensors"),
    loaded("weights that are a list", lambda f: pickled(f, [1, 2]), "from config.json and these weights"),
]


def reweigh_words(folder: Path, words: int) -> None:
    reweigh(folder, lambda w: w.update({WORD_TABLE: w[WORD_TABLE][:words].clone()}))
    edit(folder, vocab_size=words)


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    MODEL.folder = save_model(tmp_path_factory.mktemp("model") / "good", vocabulary=60)


@pytest.mark.parametrize("case", MODELS, ids=ids)
def test_models(case: Case, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(case, lab, tmp_path)
    assert not list(tmp_path.rglob("RAN"))


UNFIT: dict[str, Callable[[Path], Any]] = {
    "hold NaN or infinity": lambda f: reweigh(f, lambda w: w[QUERY].fill_(float("nan"))),
    "1 weights are missing": lambda f: reweigh(f, lambda w: w.pop(QUERY)),
    "[8, 16]": lambda f: reweigh(f, lambda w: w.update({QUERY: torch.zeros(8, 16)})),
    "more than plain tensors": lambda f: pickled(f, {"weight": Payload()}),
}


@pytest.mark.parametrize("what", UNFIT)
@pytest.mark.parametrize("method", ["kd", "cr_ild", "lti", "joint", "ft", "musc"])
def test_a_student_that_can_not_be_loaded_is_found_before_anything_is_made(
    what: str, method: str, lab: Lab, tmp_path: Path
) -> None:
    folder = MODEL.copy(tmp_path / "student")
    UNFIT[what](folder)
    words = f"train method={method} task=demo/nli model=minilm_6_to_3 model.student.init=pretrained"
    words += f" model.student.id={folder} model.student.num_layers=null"
    if method == "musc":
        words = f"train method=musc task=demo/sentiment_xx translator=rules model=mbert model.student.id={folder}"
    elif method != "ft":
        words += f" model.teacher.id={MODEL.folder}"
    words += " task.max_length=16 debug=fast tracking=none hardware=cpu"
    done = lab.command(f"{words} store={tmp_path / 'store'} outputs={tmp_path / 'outputs'}")
    assert done.code == 2 and what in done.err and done.err.count("error: ") == 1 and str(folder) in done.err
    assert list((tmp_path / "store").glob("*/manifest.json")) == [] and done.stages("done") == []


@pytest.mark.slow  # of one process: above
def test_it_ends_all_processes_of_a_run(tmp_path: Path) -> None:
    folder = MODEL.copy(tmp_path / "student")
    UNFIT["hold NaN or infinity"](folder)
    line = f"train method=ft task=demo/nli model=mbert model.student.id={folder} task.max_length=16 debug=fast "
    line += f"tracking=none hardware=cpu hardware.processes=2 outputs={tmp_path} store={tmp_path / 'artifacts'}"
    done = subprocess.run(
        [sys.executable, "-m", "kdlab", *line.split()],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("error: ") == 1, done
    assert "hold NaN or infinity" in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "artifacts").glob("*/manifest.json")) == []


def test_a_writer_that_can_not_be_loaded_is_found_before_a_teacher_is_paid(lab: Lab, tmp_path: Path) -> None:
    model = writers.writer("gpt2")
    model.transformer.h[1].mlp.c_fc.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "student")
    writers.words().save_pretrained(tmp_path / "student")
    with serving() as teacher:
        words = f"train method=ft_cot task=demo/coin_flip model=gpt2 model.student.id={tmp_path / 'student'} "
        words += "rationales=openai rationales.model=oracle rationales.price.input=1 rationales.price.output=1 "
        words += f"rationales.base_url={teacher.url} debug=fast tracking=none hardware=cpu"
        done = lab.command(f"{words} store={tmp_path / 'store'} outputs={tmp_path / 'outputs'}")
    assert done.code == 2 and "hold NaN or infinity" in done.err and teacher.tries.total() == 0


# Rows to be answered by a finished student


def rows(name: str, file: str, content: str | bytes, *says: str, words: str = "", code: int = 2) -> Case:
    def make(root: Path) -> str:
        (root / file).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return f"{FINISHED.folder} --input {root / file} --output {root / 'said.jsonl'} {words}"

    return Case(name, make, says, "predict", code)


def place(name: str, make: Callable[[Path], Path], *says: str) -> Case:
    def words(root: Path) -> str:
        return f"{FINISHED.folder} --input {make(root)} --output {root / 'said.jsonl'}"

    return Case(name, words, says, "predict")


def run_with(name: str, damage: Callable[[Path], Any], *says: str) -> Case:
    """A row with a finished run whose folder has come to harm."""

    def make(root: Path) -> str:
        run = FINISHED.copy(root / "run")
        damage(run)
        (root / "a.csv").write_text(GOOD)
        return f"{run} --input {root / 'a.csv'} --output {root / 'said.jsonl'}"

    return Case(name, make, says, "predict")


def recall(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the configuration in run.json, which then has no seal, as an editor's hand leaves it."""
    told = json.loads((folder / "run.json").read_text())
    change(told["config"])
    edit(folder, "run.json", config=told["config"], sha256=...)


def refer(folder: Path) -> None:
    recall(folder, lambda settings: settings["task"].update(label="${oc.env:HOME}"))


FINISHED = Template()
ASKED = "text\na\nb\n"
ASKED_LINES = '{"id": 1, "text": "a"}\n'

PREDICT = [
    rows("a mark of the byte order", "a.csv", b"\xef\xbb\xbf" + ASKED.encode(), "2 rows", code=0),
    rows("lines of Windows", "a.tsv", ASKED.replace("\n", "\r\n"), "2 rows", code=0),
    rows("an id twice", "a.jsonl", ASKED_LINES * 2, "2 rows", code=0),
    rows("a cell of a megabyte", "a.csv", f"text\n{'long ' * 200_000}\n", "1 rows", code=0),
    rows("UTF-16", "a.csv", ASKED.encode("utf-16"), "NUL byte", "line 1"),
    rows("UTF-16 in JSON", "a.jsonl", ASKED_LINES.encode("utf-16"), "line 1 the byte 0xff is no UTF-8"),
    rows("Latin-1", "a.csv", "text\ncaf\xe9\n".encode("latin-1"), "0xe9 is no UTF-8", "line 2", "iconv"),
    rows("a ragged row", "a.csv", "text,b\na\n", "line 2 has 1 fields, and the header 2"),
    rows("an open quote", "a.csv", 'text\n"a\n', "quotes", "line 2"),
    rows("no column of texts", "a.csv", "txt\na\n", "the input has: txt", "--columns"),
    rows("a column twice", "a.csv", "text,text\na,b\n", "'text' twice"),
    rows("an empty file", "a.csv", "", "no header line"),
    rows("an empty file of lines", "a.jsonl", "", "no row to answer"),
    rows("a header only", "a.csv", "text\n", "no row to answer"),
    rows("a broken line", "a.jsonl", ASKED_LINES + '{"text"\n', "1 of 2 rows can't be answered", "line 2 is no JSON"),
    rows("a broken line, skipped", "a.jsonl", ASKED_LINES + '{"text"\n', "skipped 1", words="--skip-bad", code=0),
    rows("a line that is a list", "a.jsonl", "[1]\n", "line 1 is no JSON object"),
    rows("a line too deep", "a.jsonl", "[" * 100_000 + "\n", "line 1 is no JSON"),
    rows("a number of 5,000 digits", "a.jsonl", '{"text": %s}\n' % ("9" * 5000), "line 1 is no JSON"),
    rows("a text that is null", "a.jsonl", '{"text": null}\n', "line 1 the field 'text' is null"),
    rows("a text that is NaN", "a.jsonl", '{"text": NaN}\n', "line 1 the field 'text' is null"),
    rows("a text that is inf", "a.jsonl", '{"text": 1e999}\n', "1 rows", code=0),
    rows("a text that is a list", "a.jsonl", '{"text": ["a"]}\n', "is no text but list"),
    rows("half a surrogate pair", "a.jsonl", '{"text": "\\ud800"}\n', "half of a surrogate pair"),
    rows("half a surrogate pair for an id", "a.jsonl", '{"text": "a", "id": "\\ud800"}\n', "surrogate"),
    rows("NULs", "a.csv", "text\na\0b\n", "NUL"),
    rows("NULs in lines", "a.jsonl", '{"text": "a\0b"}\n', "line 1 is no JSON"),
    rows("no Parquet", "a.parquet", ASKED, "no readable Parquet"),
    rows("a suffix that is none", "a.dat", ASKED, "can't be told from its name"),
    rows("a packed file", "a.csv.gz", gzip.compress(ASKED.encode()), "can't be told from its name"),
    rows("a packed file by another name", "a.csv", gzip.compress(ASKED.encode()), "NUL byte"),
    place("Parquet that is cut", cut_parquet, "no readable Parquet"),
    place("Parquet with texts that are no UTF-8", garbled, "no readable Parquet"),
    place("Parquet with a name that is no text", garbled_names, "no readable Parquet"),
    place("Parquet with lists", parquet(text=[["a"], ["b"]]), "2 of 2 rows can't be answered", "is no text but list"),
    place("Parquet with bytes", parquet(text=[b"\xff"]), "is no text but bytes"),
    place("no file", lambda root: root / "absent.csv", "does not exist"),
    place("a folder", lambda root: root, "is a folder"),
    place("a link to itself", loop, "does not exist"),
    place("a pipe", pipe, "is a pipe or a device", "standard input"),
    run_with("no run", lambda f: shutil.rmtree(f), "no run.json"),
    run_with("a run of another program", lambda f: (f / "run.json").write_text("{}"), "run.json"),
    run_with("a run that is no JSON", lambda f: (f / "run.json").write_text("{"), "run.json"),
    run_with("a run in UTF-16", lambda f: (f / "run.json").write_bytes("{}".encode("utf-16")), "run.json"),
    run_with("a run that is a list", lambda f: (f / "run.json").write_text("[]"), "run.json"),
    run_with("a run too deep", lambda f: (f / "run.json").write_text("[" * 100_000), "run.json"),
    run_with("a result too deep", lambda f: (f / "result.json").write_text("[" * 100_000), "result.json"),
    run_with("a run that refers to the environment", refer, "it has a reference"),
    run_with(
        "a run of a family of none", lambda f: recall(f, lambda c: c["method"].update(family="x")), "can't be read"
    ),
    run_with("a run without a method", lambda f: recall(f, lambda c: c.pop("method")), "can't be read"),
    run_with(
        "a run with a word for a number",
        lambda f: recall(f, lambda c: c["task"].update(max_length="x")),
        "can't be read",
    ),
    run_with("no result", lambda f: (f / "result.json").unlink(), "has not finished"),
    run_with("no student", lambda f: shutil.rmtree(f / "student"), "student"),
    run_with("a student that is cut", lambda f: truncate(f / "student", "model.safetensors"), "student"),
]


@pytest.fixture(scope="module", autouse=True)
def finished(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("finished")
    (root / "a.csv").write_text(GOOD)
    words = f"{OWN} task.source.path={root / 'a.csv'} name=good store={root / 'store'} outputs={root / 'out'}"
    done = lab.command(f"train {words}")
    assert done.code == 0, done.err
    FINISHED.folder = root / "out" / "runs" / "good"


@pytest.mark.parametrize("case", PREDICT, ids=ids)
def test_rows_to_be_answered(case: Case, lab: Lab, tmp_path: Path) -> None:
    refuse_or_pass(case, lab.command(f"predict {case.make(tmp_path)}"))
    assert (tmp_path / "said.jsonl").exists() == (case.code == 0)


# Questions, recorded rationales, recorded translations

WRITER = f"tracking=none hardware.threads=1 hardware=cpu model=tiny_decoder 'model.student.config={{{SMALLEST}}}'"
QUESTIONS = [{"sample_index": n, "question": f"What is {n} and 1?", "answer": str(n + 1)} for n in range(20)]


def archive(name: str, content: Any, *says: str) -> Case:
    """A row with a file of questions in the authors' layout."""

    def make(root: Path) -> str:
        write_json(root / "addsub.json", content)
        return f"method=ft_answer {WRITER} task=reasoning/addsub task.source.path={root} task.partition.size=null"

    return Case(name, make, says)


def write_json(file: Path, content: Any) -> None:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def changed_question(number: int, **changes: Any) -> dict[str, Any]:
    return {"data": [row | changes if row["sample_index"] == number else row for row in QUESTIONS]}


ARCHIVES = [
    archive("no JSON", "{data: []}", "The file is no JSON"),
    archive("JSON that is cut", json.dumps({"data": QUESTIONS})[:-30], "The file is no JSON"),
    archive("JSON that is too deep", "[" * 100_000, "The file is no JSON"),
    archive("JSON in UTF-16", json.dumps({"data": QUESTIONS}).encode("utf-16"), "The file is no JSON"),
    archive("another layout", {"questions": QUESTIONS}, "not in the layout of reasoning-teacher"),
    archive("rows that are words", {"data": ["a"]}, "not in the layout"),
    archive("no questions", {"data": []}, "no questions"),
    archive("another data set", {"metadata": {"dataset_key": "svamp"}, "data": QUESTIONS}, "holds svamp, not addsub"),
    archive("an index twice", changed_question(3, sample_index=4), "sample_index 4 is there twice"),
    archive("an index of a word", changed_question(3, sample_index="3"), "'3' is no place of a question"),
    archive("an answer that is missing", changed_question(3, answer=None), "The answer is missing", "sample_index 3"),
    archive("an answer that is a word", changed_question(3, answer="four"), "'four' is no number"),
    archive("an answer that is a list", changed_question(3, answer=[4]), "The answer is no text but list"),
    archive("a question that is empty", changed_question(3, question=" "), "The question is empty"),
    archive(
        "a question that is a number",
        changed_question(3, question=float("nan")),
        "The question is empty",
        "sample_index 3",
    ),
]


@pytest.mark.parametrize("case", ARCHIVES, ids=ids)
def test_questions(case: Case, lab: Lab, tmp_path: Path) -> None:
    check(case, lab, tmp_path)


def told(n: int, **changes: Any) -> dict[str, Any]:
    return completion(COINS[n], " yes.") | changes


COINS = [
    {"id": n, "question": row["question"], "answer": row["answer"]}
    for n, row in enumerate(coin_flip.questions("train", {"train": 24, "test": 8, "steps": 2, "seed": 0}))
]
META = {"base_model": "m", "completion_key": "k", "prediction_template": "zs_cot"}


def rationales(name: str, content: Any, *says: str) -> Case:
    """A row with a file of recorded rationales."""

    def make(root: Path) -> str:
        write_json(root / "recorded.json", content)
        return (
            f"method=ft_cot {COIN} rationales=recorded rationales.path={root / 'recorded.json'} "
            "rationales.questions=[train] method.answer.max_tokens=8 method.student.epochs=1"
        )

    return Case(name, make, says)


def records(**changes: Any) -> dict[str, Any]:
    return {"metadata": META, "data": {"0": [told(0, **changes)]}}


RATIONALES = [
    rationales("no JSON", "{data", "it is no JSON"),
    rationales("JSON that is cut", json.dumps(records())[:-5], "it is no JSON"),
    rationales("JSON that is too deep", "[" * 100_000, "it can't be read"),
    rationales("JSON in Latin-1", b'{"metadata": "caf\xe9"}', "no UTF-8"),
    rationales("a list", [], 'no "metadata" and "data"'),
    rationales("no metadata", {"data": {}}, 'no "metadata" and "data"'),
    rationales("data that are a list", {"metadata": META, "data": []}, "no object of lists"),
    rationales("no records", {"metadata": META, "data": {}}, "has a recorded completion"),
    rationales("a template of none", {"metadata": {}, "data": records()["data"]}, "prediction_template is None"),
    rationales("a key of a word", {"metadata": META, "data": {"a": []}}, "'a' of its data is no sample_index"),
    rationales(
        "a key with zeros", {"metadata": META, "data": {"00": [told(0)]}}, "'00' of its data is no sample_index"
    ),
    rationales("a key without end", {"metadata": META, "data": {"9" * 5000: []}}, "no sample_index"),
    rationales("a key twice", '{"metadata": {}, "data": {"0": [], "0": []}}', "the key '0' is there twice"),
    rationales("a record that is a word", {"metadata": META, "data": {"0": ["a"]}}, "record 0 is no object"),
    rationales("a record of another question", records(sample_index=1), "sample_index of question 0, record 0 is 1"),
    rationales("another question's text", records(question="Why?"), "answers another question than the task's"),
    rationales("no completion", records(completion=None), "completion of question 0, record 0 is None, no text"),
    rationales("a completion that is a list", records(completion=["yes"]), "no text"),
    rationales("an index below 0", records(completion_index=-1), "completion_index of question 0, record 0 is -1"),
    rationales("an index of true", records(completion_index=True), "is True, no whole number"),
    rationales("an index of NaN", records(completion_index=float("nan")), "is nan, no whole number"),
    rationales("an index twice", {"metadata": META, "data": {"0": [told(0), told(0)]}}, "is there twice"),
    rationales(
        "indexes of other questions",
        {"metadata": META, "data": {"900": [told(0, sample_index=900)]}},
        "has a recorded completion",
        "sample_index 900",
    ),
]


@pytest.mark.parametrize("case", RATIONALES, ids=ids)
def test_recorded_rationales(case: Case, lab: Lab, tmp_path: Path) -> None:
    check(case, lab, tmp_path)


def translations(name: str, file: str, content: str | bytes, *says: str) -> Case:
    """A row with a file of recorded translations."""

    def make(root: Path) -> str:
        write_json(root / file, content)
        return (
            f"method=translate_train {SMALL.replace('model=tiny', 'model=tiny_multilingual')} task=demo/sentiment_xx "
            f"task.languages=[en,es] task.few.examples=24 task.dev_limit=8 task.test_limit=8 translator=recorded "
            f"translator.path={root / file}"
        )

    return Case(name, make, says)


TRANSLATIONS = [
    translations("another suffix", "a.txt", "a\tb\n", "ends in '.txt'"),
    translations("UTF-16", "a.jsonl", '{"source": "a", "target": "b"}'.encode("utf-16"), "no UTF-8"),
    translations("a broken line", "a.jsonl", '{"source": "a", "target": "b"}\n{"sou\n', "line 2 is no JSON"),
    translations("a line too deep", "a.jsonl", "[" * 100_000, "line 1 is no JSON"),
    translations("a line that is a list", "a.jsonl", "[]\n", "line 1 is no object with source and target"),
    translations("a source that is a number", "a.jsonl", '{"source": 1, "target": "b"}\n', "no object with source"),
    translations("a target that is a list", "a.jsonl", '{"source": "a", "target": ["b"]}\n', "not text or null"),
    translations(
        "half a surrogate pair", "a.jsonl", '{"source": "a", "target": "\\ud800"}\n', "half of a surrogate pair"
    ),
    translations("no header", "a.csv", "a,b\nc,d\n", "its header names no source and target"),
    translations("a ragged row", "a.csv", "source,target\na,b,c\n", "row 2 has 3 fields"),
    translations("an open quote", "a.csv", 'source,target\na,"b\n', "its quotes are wrong"),
    translations("an empty file", "a.csv", "", "its header names no source and target, but nothing"),
    translations("no translation of these texts", "a.jsonl", '{"source": "a", "target": "b"}\n', "translat"),
    translations(
        "other languages",
        "a.jsonl",
        '{"source": "a", "target": "b", "source_language": "de", "target_language": "fr"}\n',
        "no translation from en to es",
    ),
]


@pytest.mark.parametrize("case", TRANSLATIONS, ids=ids)
def test_recorded_translations(case: Case, lab: Lab, tmp_path: Path) -> None:
    check(case, lab, tmp_path)
