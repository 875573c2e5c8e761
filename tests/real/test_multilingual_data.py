"""Multilingual data sets as the local Hub serves them, read the way a run reads them.

The shipped tasks are for the real Hub; `overlay`, which `--config-dir` takes, holds what is different here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kdlab import compose
from kdlab.methods.data import language_sources
from kdlab.pins import Pins

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
PROJECT = Path(__file__).resolve().parents[2]
OVERLAY = Path(__file__).with_name("overlay")
TASKS = ("tweets_local", "xnli_local", "pawsx_local", "marc_local")
ARABIC = re.compile("[\u0600-\u06ff]")
Facts = dict[str, dict[str, Any]]

SCRIPT = """
import json, sys
from pathlib import Path
from kdlab.context import Context
from kdlab.data.tasks import read_raw
from kdlab.errors import KdlabError
from kdlab.stages.languages import prepare_language_sets, prepare_languages

for name, settings in json.loads(sys.argv[1]).items():
    ctx = Context(out=Path(name), stage="data")
    ctx.out.mkdir()
    try:
        if "split" in settings:
            raw = read_raw(settings["source"], settings["split"], text=["text"], label="label")
            ctx.facts["rows"] = len(raw.columns["text"])
        elif "data" in settings:
            prepare_language_sets(ctx, **{**settings, "data": Path(settings["data"])})
        else:
            prepare_languages(ctx, **settings)
    except KdlabError as error:
        ctx.facts["error"] = f"{type(error).__name__}: {error}"
    print("FACTS", json.dumps({"name": name, **ctx.facts}))
"""


def settings(name: str, *words: str, trained: tuple[str, ...] = ("en",)) -> dict[str, Any]:
    """The arguments of `prepare_languages` for a task. Nothing is looked up: the revision stays the task's own."""
    commit = "task.source.revision=" + "0" * 40
    flags = ["--config-dir", str(OVERLAY), "method=zero_shot_xlt", f"task=multilingual/{name}"]
    run = compose.jobs([*flags, *words]).jobs[0].run
    pinned = compose.jobs([*flags, commit, *words]).jobs[0].run
    read, _ = language_sources(pinned, Pins())
    task = run.task
    languages = {
        code: {**entry, "splits": {split: entry["splits"][split] for split in ("train", "dev")}}
        for code, entry in read["languages"].items()
    }
    return {
        "source": {**read["source"], "revision": task.source.revision},
        "languages": languages,
        "trained": list(trained),
        "text": task.text,
        "label": task.label,
        "labels": task.labels,
        "label_names": task.label_names,
        "kind": task.kind,
        "heldout": 0.0,
        "dev_limit": None,
        "rows": None,
        "seed": 42,
    }


def sets(data: str, values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: values[name] for name in ("source", "text", "label", "label_names", "kind", "rows")}
    languages = {code: {**entry, "splits": {"test": "test"}} for code, entry in values["languages"].items()}
    return {**kept, "data": data, "languages": languages, "test_limit": None}


@pytest.fixture(scope="module")
def work(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multilingual")


@pytest.fixture(scope="module")
def facts(shared: Path, work: Path) -> Facts:
    """What the two stages find in each task, in one process with a fresh HF_HOME."""
    (work / "root").mkdir()
    (work / "root" / "datasets").symlink_to(shared / "hub" / "datasets")
    given = {name: settings(name) for name in TASKS}
    given |= {f"{name}_test": sets(name, given[name]) for name in TASKS}
    given["tweets_own"] = settings("tweets_local", trained=("en", "es", "ar"))
    given["marc_german"] = settings("marc_local", "task.languages=[en,de]")
    given["marc_shipped"] = settings("marc")
    given["tweets_hindi"] = settings("tweet_sentiment")
    given["xnli_arabic_test"] = sets("xnli_local", settings("xnli"))
    tweets = given["tweets_local"]["source"]
    given["folder"] = {"source": {**tweets, "data_dir": "klingon"}, "split": "train"}
    given["inner_folder"] = {"source": {**tweets, "data_dir": "english/nope"}, "split": "train"}
    given["config"] = {"source": {**tweets, "config": "english"}, "split": "train"}
    given["split"] = {"source": {**tweets, "data_dir": "english"}, "split": "dev"}
    given["merged"] = {"source": tweets, "split": "train"}
    same = settings("tweets_local")
    for entry in same["languages"].values():
        entry["data_dir"] = "english"
    given["one_place"] = same
    command = [sys.executable, str(shared / "hub" / "hub_mirror.py"), "exec", "--root", str(work / "root")]
    command += ["--hf-home", str(work / "home"), "--", sys.executable, "-c", SCRIPT, json.dumps(given)]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("FACTS ") for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    return {entry.pop("name"): entry for entry in map(json.loads, lines)}


def table(work: Path, name: str, view: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(work / name / f"{view}.arrow"))).read_all()


@pytest.mark.parametrize(
    ("name", "languages", "train", "dev", "test"),
    [
        ("tweets_local", "en ar de es fr", 1839, 324, 870),
        ("xnli_local", "en de es fr sw zh", 9999, 2490, 5010),
        ("pawsx_local", "en de es fr", 2000, 2000, 2000),
        ("marc_local", "en es fr ja zh", 6326, 6139, 5000),
    ],
)
def test_rows(facts: Facts, name: str, languages: str, train: int, dev: int, test: int) -> None:
    codes = languages.split()
    assert facts[name]["rows"] == {"train.en.original": train} | {f"dev.{code}.original": dev for code in codes}
    assert facts[f"{name}_test"]["rows"] == {f"test.{code}.original": test for code in codes}
    assert facts[name]["languages"] == facts[f"{name}_test"]["languages"] == codes
    for found in (facts[name], facts[f"{name}_test"]):
        assert set(found["unlabelled"].values()) == {0}


@pytest.mark.parametrize(
    ("name", "view", "counts"),
    [
        ("tweets_local", "train.en.original", [613, 613, 613]),
        ("tweets_local", "dev.ar.original", [108, 108, 108]),
        ("tweets_local_test", "test.fr.original", [290, 290, 290]),
        ("xnli_local", "dev.sw.original", [830, 830, 830]),
        ("xnli_local_test", "test.zh.original", [1670, 1670, 1670]),
        ("pawsx_local_test", "test.en.original", [1093, 907]),
        ("pawsx_local_test", "test.de.original", [1105, 895]),
        ("pawsx_local_test", "test.es.original", [1093, 907]),
        ("pawsx_local_test", "test.fr.original", [1097, 903]),
        ("marc_local", "train.en.original", [1270, 1262, 1262, 1266, 1266]),
        ("marc_local", "dev.ja.original", [1223, 1221, 1226, 1237, 1232]),
        ("marc_local_test", "test.es.original", [1000] * 5),
    ],
)
def test_classes(facts: Facts, work: Path, name: str, view: str, counts: list[int]) -> None:
    assert "error" not in facts[name]
    found = Counter(table(work, name, view)["label"].to_pylist())
    assert [found[number] for number in range(len(counts))] == counts and sum(counts) == found.total()


def test_names_of_classes(facts: Facts) -> None:
    assert facts["tweets_local"]["labels"] == ["negative", "neutral", "positive"]
    assert facts["xnli_local"]["labels"] == ["contradiction", "entailment", "neutral"]
    assert facts["pawsx_local"]["labels"] == ["0", "1"]
    assert facts["marc_local"]["labels"] == ["1", "2", "3", "4", "5"]


def test_majorities(facts: Facts) -> None:
    assert facts["xnli_local_test"]["majority"]["test.sw.original"]["accuracy"] == pytest.approx(1 / 3)
    assert facts["marc_local_test"]["majority"]["test.zh.original"]["accuracy"] == 0.2
    assert facts["pawsx_local_test"]["majority"]["test.de.original"]["accuracy"] == 0.5525
    tweets = facts["tweets_local_test"]["majority"]["test.ar.original"]
    assert tweets["accuracy"] == pytest.approx(1 / 3) and tweets["macro_f1"] == pytest.approx(1 / 6)


def test_xnli_is_parallel_and_its_classes_keep_their_meaning(facts: Facts, work: Path) -> None:
    """The Hub has entailment first, the task contradiction: classes go by name."""
    rows = {code: table(work, "xnli_local_test", f"test.{code}.original") for code in ("en", "de", "es", "fr", "zh")}
    for other in rows.values():
        assert other["id"].equals(rows["en"]["id"]) and other["label"].equals(rows["en"]["label"])
    assert (
        rows["en"]["text_a"][0].as_py()
        == "Well, I wasn't even thinking about that, but I was so frustrated, and, I ended up talking to him again."
    )
    assert rows["en"]["text_b"][0].as_py() == "I havent spoken to him again."
    assert rows["en"]["label"][0].as_py() == 0
    assert rows["de"]["text_b"][0].as_py() != rows["en"]["text_b"][0].as_py()


def test_pawsx_has_the_same_pairs_in_each_language(facts: Facts, work: Path) -> None:
    rows = {code: table(work, "pawsx_local_test", f"test.{code}.original") for code in ("en", "de", "es", "fr")}
    english = rows["en"]["label"].to_pylist()
    for code, other in rows.items():
        assert other["id"].equals(rows["en"]["id"])
        changed = [(one, two) for one, two in zip(english, other["label"].to_pylist(), strict=True) if one != two]
        assert len(changed) == {"en": 0, "de": 12, "es": 0, "fr": 4}[code]
        assert set(changed) <= {(1, 0)}, "a pair whose translation is missing is no paraphrase"


def test_languages_are_not_mixed(facts: Facts, work: Path) -> None:
    """Nearly no tweet of one language is in another's table, and Arabic ones are in Arabic letters."""
    texts = {
        code: set(table(work, "tweets_local", f"dev.{code}.original")["text_a"].to_pylist())
        for code in ("en", "ar", "de", "es", "fr")
    }
    for code, own in texts.items():
        for other, theirs in texts.items():
            assert code == other or len(own & theirs) <= 2
    arabic = {code: sum(bool(ARABIC.search(text)) for text in own) for code, own in texts.items()}
    assert arabic == {"en": 0, "ar": len(texts["ar"]), "de": 0, "es": 0, "fr": 1}


def test_several_trained_languages(facts: Facts) -> None:
    found = facts["tweets_own"]["rows"]
    assert {name: count for name, count in found.items() if name.startswith("train")} == {
        f"train.{code}.original": 1839 for code in ("en", "ar", "es")
    }
    assert sum(name.startswith("dev") for name in found) == 5


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "marc_german",
            [
                "DataError",
                "Language 'de'",
                "no configuration 'de'",
                "'en', 'es', 'fr', 'ja', 'zh'",
                "Leave de out of task.languages",
                "mteb/AmazonReviewsClassification/de",
            ],
        ),
        (
            "marc_shipped",
            ["DataError", "Language 'en'", "no split 'validation'", "'heldout_from_train'", "task.splits"],
        ),
        (
            "tweets_hindi",
            [
                "DataError",
                "Language 'hi'",
                "no folder 'hindi'",
                "arabic, english, french, german, spanish",
                "Leave hi out of task.languages",
                "folder hindi",
            ],
        ),
        ("xnli_arabic_test", ["DataError", "Language 'ar'", "no configuration 'ar'", "Leave ar out of task.languages"]),
        (
            "folder",
            ["DataError", "no folder 'klingon'", "arabic, english", "task.source.data_dir", "revision "],
        ),
        ("inner_folder", ["DataError", "no folder 'english/nope'", "english/test, english/train, english/validation"]),
        (
            "config",
            ["DataError", "no configuration 'english'", "['default']", "task.source.data_dir", "refs/convert/parquet"],
        ),
        ("split", ["DataError", "(folder english) has no split 'dev'", "'validation'", "task.splits"]),
        ("one_place", ["DataError", "dev rows of en and ar are the same texts", "{language}", "task.source.data_dir"]),
    ],
)
def test_clear_messages(facts: Facts, name: str, parts: list[str]) -> None:
    message = facts[name]["error"]
    assert all(part in message for part in parts), message
    assert len(message.splitlines()) <= 3, message


def test_without_a_folder_all_languages_would_be_merged(facts: Facts) -> None:
    """What the plan and the stage refuse for a task in several languages: five languages in one split."""
    assert facts["merged"]["rows"] == 5 * 1839
