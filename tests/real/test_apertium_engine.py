"""Apertium itself, from Debian's packages, on real tweets."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cot import Told, context
from kdlab import doctor
from kdlab.artifacts import write_json
from kdlab.data import tasks
from kdlab.stages.prepare import write_table
from kdlab.stages.translate import translate
from kdlab.translators import apertium
from kdlab.translators.memory import Memory, memory_path

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("apertium") is None, reason="apertium is not installed (apt-get install apertium)"),
]

PIVOTS = {"fr": "es"}
JOB = {"read": "train.en.original", "write": "train.en.es", "source": "en", "target": "es"}


@pytest.fixture(scope="module", autouse=True)
def pairs() -> None:
    """All that these tests translate between."""
    needed = [("en", "es"), ("es", "en"), ("es", "fr"), ("fr", "es")]
    if absent := [pair for pair in needed if pair not in apertium.installed()]:
        pytest.skip(f"{apertium.install([apertium.PACKAGES[pair] for pair in absent])}: its pairs are not installed")


@pytest.fixture(scope="module")
def tweets(shared: Path) -> list[str]:
    folder = shared / "hub" / "datasets" / "cardiffnlp" / "tweet_sentiment_multilingual" / "english"
    found: list[str] = pq.read_table(folder / "train-00000-of-00001.parquet")["text"].to_pylist()
    return found


def test_a_sentence_and_a_pivot() -> None:
    there = ["The service was terrible and the food was cold."]
    (spanish,) = apertium.translate(there, apertium.route("en", "es"))
    (french,) = apertium.translate(there, apertium.route("en", "fr", PIVOTS))
    assert spanish is not None and spanish.startswith("El servicio era terrible y ") and spanish.endswith(".")
    assert french is not None and french.startswith("Le service était terrible et ") and french.endswith(".")
    (english,) = apertium.translate([french], apertium.route("fr", "en", PIVOTS))
    assert english is not None and english.startswith("The service was terrible and")


def test_texts_do_not_reach_into_each_other() -> None:
    texts = ["I like DC comics", "site is down", "I went according", "to the man"]
    alone = [apertium.translate([text], ["eng-spa"])[0] for text in texts]
    assert apertium.translate(texts, ["eng-spa"]) == alone
    assert alone[:2] == ["Me gustan DC cómics", "El sitio es abajo"]


def test_real_tweets_keep_their_number_and_their_ends(tweets: list[str]) -> None:
    found = apertium.translate(tweets, ["eng-spa", "es-fr"])
    assert len(found) == len(tweets) == 1839 and None not in found
    ends = [(text.strip()[-1], str(one)[-1]) for text, one in zip(tweets, found, strict=True)]
    for sign in ".!?":
        asked = [after for before, after in ends if before == sign]
        assert len(asked) > 50 and sum(after == sign for after in asked) >= 0.98 * len(asked), sign


def test_signs_that_mean_something_to_apertium() -> None:
    texts = ["[x] {y} <b>z</b> ^q$ @w /s \\ * #1 ~ & + 🙂", "\x00\x01", "“so” it’s\n\nhere\u2028now"]
    found = apertium.translate(texts, ["eng-spa"])
    assert str(found[0]).startswith("[x] {y} <b>z</b> ^q$ @w /s \\ * #1 ~ & + 🙂")
    assert found[1] is None and found[2] is not None and found[2].startswith('"')


def prepared(root: Path, texts: list[str]) -> Path:
    ctx = context(root, "prepare")
    write_table(ctx, "train.en.original", tasks.table(pa.array(texts)))
    write_json(ctx.out / "facts.json", {"labels": None})
    return ctx.out


def translated(root: Path, data: Path, stage: str) -> Told:
    ctx = context(root, stage)
    translator = {"kind": "apertium", "unit": "text", "routes": {"en-es": apertium.identity(["eng-spa"])}}
    translate(ctx, translator=translator, jobs=[JOB], data=data)
    return ctx


def test_a_second_run_asks_nothing(tweets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tweets = tweets[:600]
    data = prepared(tmp_path, tweets)
    first = translated(tmp_path, data, "first")
    counts = first.facts["jobs"]["train.en.es"]
    different = len({" ".join(text.split()) for text in tweets})
    assert (counts["rows"], counts["fresh"], counts["remembered"]) == (600, different, 0)
    assert counts["missing"] == counts["empty"] == 0 and first.warned == []

    def refuse(*_: object) -> str:
        raise AssertionError("Apertium was asked")

    monkeypatch.setattr(apertium, "_run", refuse)
    second = translated(tmp_path, data, "second")
    counts = second.facts["jobs"]["train.en.es"]
    assert (counts["fresh"], counts["remembered"]) == (0, different)
    name = "train.en.es.arrow"
    assert (second.out / name).read_bytes() == (first.out / name).read_bytes()


KILLED = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import test_apertium_engine as these
    from kdlab.translators import memory

    add = memory.Memory.add
    def told(self, entries, *pair):
        found = add(self, entries, *pair)
        print(len(entries), flush=True)
        return found
    memory.Memory.add = told
    these.translated(Path(sys.argv[1]), Path(sys.argv[1]) / "building" / "prepare", "translate_train")
"""


def test_a_killed_stage_goes_on_where_it_was(tweets: list[str], tmp_path: Path) -> None:
    here, tweets = Path(__file__), tweets[:1000]
    prepared(tmp_path, tweets)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(here.parent)]
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        done = int(process.stdout.readline()) + int(process.stdout.readline())
        process.kill()
    assert process.returncode == -signal.SIGKILL and done == 512
    identity = {"kind": "apertium", **apertium.identity(["eng-spa"])}
    texts = [" ".join(text.split()) for text in tweets]
    with Memory(memory_path(tmp_path / "translations", "apertium-eng-spa", identity), identity) as memory:
        kept = len(memory.find(set(texts), "en", "es"))
    assert done <= kept <= done + 256
    data = tmp_path / "building" / "prepare"
    counts = translated(tmp_path, data, "translate_train").facts["jobs"]["train.en.es"]
    assert (counts["remembered"], counts["fresh"]) == (kept, len(set(texts)) - kept)


def test_the_doctor_names_the_pairs() -> None:
    check = doctor._apertium()
    assert check.state == "ok" and "en-es" in check.detail and "es-fr" in check.detail
    assert "by translator.pivots from en also " in check.detail and "fr (" in check.detail
