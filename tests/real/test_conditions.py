"""Few examples, noise and imbalance on RTE; a corpus streamed from the local Hub, no more of it than is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.real
PROJECT = Path(__file__).resolve().parents[2]
CORPUS = "wikimedia/wikipedia"  # written here, in the layout of the real one
CONFIG = "20231101.en"
SHARDS, DOCUMENTS = 4, 2000

SCRIPT = """
import json, sys
from pathlib import Path
from kdlab.context import Context
from kdlab.errors import KdlabError
from kdlab.stages import prepare as stages

for name, (stage, settings) in json.loads(sys.argv[1]).items():
    ctx = Context(out=Path(name), stage=stage)
    ctx.out.mkdir()
    try:
        getattr(stages, stage)(ctx, **settings)
    except KdlabError as error:
        ctx.facts["error"] = f"{type(error).__name__}: {error}"
    print("FACTS", json.dumps({"name": name, **ctx.facts}))
"""

RTE = {
    "source": {"hub": "nyu-mll/glue", "config": "rte"},
    "splits": {"train": "train", "dev": "validation"},
    "text": ["sentence1", "sentence2"],
    "label": "label",
    "labels": ["entailment", "not_entailment"],
    "kind": "classification",
    "heldout": 0.1,
    "few": None,
    "imbalance": None,
    "noise": None,
    "dev_limit": None,
    "rows": None,
    "seed": 1,
}
NOISE = {"rate": 0.3, "seed": 0}
FEW = {"examples": 1000, "balanced": True}


def corpus(limit: int | None, **changes: Any) -> dict[str, Any]:
    task = yaml.safe_load((PROJECT / "conf" / "task" / "corpus" / "wikipedia.yaml").read_text(encoding="utf-8"))
    assert task["source"] == {"hub": CORPUS, "config": CONFIG}
    passages = {"seed": 0, **task["passages"], "limit": limit, **changes}
    return {"source": task["source"], "split": "train", "text": task["text"], "passages": passages, "rows": None}


GIVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "clean": ("prepare", RTE),
    "noisy": ("prepare", RTE | {"noise": NOISE}),
    "noisy_again": ("prepare", RTE | {"noise": NOISE, "seed": 9}),
    "few": ("prepare", RTE | {"few": FEW}),
    "few_other": ("prepare", RTE | {"few": FEW, "seed": 2}),
    "few_noisy": ("prepare", RTE | {"few": FEW, "noise": NOISE}),
    "tail": ("prepare", RTE | {"imbalance": {"ratio": 10.0, "seed": 0}}),
    "pairs": ("prepare_texts", corpus(50)),
    "pairs_again": ("prepare_texts", corpus(50)),
    "all_pairs": ("prepare_texts", corpus(None, keep=1.0)),
    "rows": ("prepare_texts", corpus(7, unit="row")),
    "no_column": ("prepare_texts", corpus(7) | {"text": ["txt"]}),
    "no_split": ("prepare_texts", corpus(7) | {"split": "dev"}),
    "no_config": ("prepare_texts", corpus(7) | {"source": {"hub": CORPUS, "config": "20231101.de"}}),
    "no_repository": ("prepare_texts", corpus(7) | {"source": {"hub": "wikimedia/wikipedie", "config": CONFIG}}),
    "no_text": ("prepare_texts", corpus(7) | {"text": ["links"]}),
}


def write_corpus(folder: Path) -> None:
    """Each document has three long sentences and two short ones, so it makes one pair."""
    (folder / CONFIG).mkdir(parents=True)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {CONFIG}\n  data_files:\n  - split: train\n    path: {CONFIG}/*\n---\n"
    )
    long = "sentence of document {} in shard {} has as many as twelve words."
    document = f"Title\n\nThe first {long} It is short. The second {long} Dr. Who. The third {long}"
    for shard in range(SHARDS):
        texts = [document.format(*(number, shard) * 3) for number in range(DOCUMENTS)]
        table = pa.table({"id": list(map(str, range(DOCUMENTS))), "text": texts, "links": [["a"]] * DOCUMENTS})
        pq.write_table(table, folder / CONFIG / f"train-{shard:05d}-of-{SHARDS:05d}.parquet", row_group_size=500)


@pytest.fixture(scope="module")
def work(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that GIVEN asks for, made in one process against a Hub with RTE and the corpus; log.json beside it."""
    base = tmp_path_factory.mktemp("conditions")
    root, work = base / "root", base / "work"
    write_corpus(root / "datasets" / CORPUS)
    (root / "datasets" / "nyu-mll").symlink_to(shared / "hub" / "datasets" / "nyu-mll")
    work.mkdir()
    hub = [
        sys.executable,
        shared / "hub" / "hub_mirror.py",
        "exec",
        "--trap",
        "--root",
        root,
        "--hf-home",
        base / "home",
    ]
    command = [*hub, "--log", work / "log.json", "--", sys.executable, "-c", SCRIPT, json.dumps(GIVEN)]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("FACTS ") for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    (work / "facts.json").write_text(json.dumps({entry.pop("name"): entry for entry in map(json.loads, lines)}))
    return work


@pytest.fixture(scope="module")
def facts(work: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((work / "facts.json").read_text())
    return found


def table(work: Path, name: str, split: str = "train") -> pa.Table:
    return pa.ipc.open_file(work / name / f"{split}.arrow").read_all()


def test_noise(work: Path, facts: dict[str, dict[str, Any]]) -> None:
    assert (work / "clean" / "dev.arrow").read_bytes() == (work / "noisy" / "dev.arrow").read_bytes()
    changed = facts["noisy"]["conditions"]["noise"]["changed"]
    assert abs(sum(changed.values()) - 2490 * 0.3) < 3 * (2490 * 0.3 * 0.7) ** 0.5 and changed["heldout"] > 0
    for split in ("train", "heldout"):
        clean, noisy = table(work, "clean", split), table(work, "noisy", split)
        assert noisy.drop_columns(["label", "clean_label"]).equals(clean.drop_columns(["label"]))
        assert noisy["clean_label"].equals(clean["label"])
        files = [work / name / f"{split}.arrow" for name in ("noisy", "noisy_again")]
        assert files[0].read_bytes() == files[1].read_bytes(), "noise has its own seed"
    assert facts["noisy"]["majority"]["dev"] == facts["clean"]["majority"]["dev"]


def test_few(work: Path, facts: dict[str, dict[str, Any]]) -> None:
    assert facts["few"]["rows"] == {"train": 900, "heldout": 100, "dev": 277}
    assert Counter(table(work, "few")["label"].to_pylist()) == {0: 450, 1: 450}
    ids = {name: set(table(work, name)["id"].to_pylist()) for name in ("few", "few_other", "few_noisy")}
    assert ids["few"] == ids["few_noisy"] != ids["few_other"]
    whole = table(work, "noisy").select(["id", "label"]).to_pylist() + table(work, "noisy", "heldout").to_pylist()
    labels = {row["id"]: row["label"] for row in whole}
    assert table(work, "few_noisy")["label"].to_pylist() == [labels[row] for row in sorted(ids["few"])]


def test_imbalance(facts: dict[str, dict[str, Any]]) -> None:
    found = facts["tail"]["conditions"]["imbalance"]
    assert found["before"] == {"entailment": 1249, "not_entailment": 1241}
    assert found["after"] == {"entailment": 1249, "not_entailment": 124}


def test_pairs(work: Path, facts: dict[str, dict[str, Any]]) -> None:
    """The 50 pairs are of the first 50 documents that are used: some 70 of 2,000 in the first of four files."""
    pairs = table(work, "pairs")
    assert pairs.num_rows == 50 and pairs["label"].null_count == 50
    for first, second in zip(pairs["text_a"].to_pylist(), pairs["text_b"].to_pylist(), strict=True):
        assert first.startswith("The first sentence") and first.endswith("words.")
        assert second == first.replace("first", "second")
    counts = facts["pairs"]["passages"]
    assert counts["used"] == 50 and 55 < counts["documents"] < 95
    assert (work / "pairs" / "train.arrow").read_bytes() == (work / "pairs_again" / "train.arrow").read_bytes()
    assert facts["all_pairs"]["rows"] == {"train": SHARDS * DOCUMENTS}
    assert table(work, "rows")["text_a"].to_pylist()[6].startswith("Title\n\nThe first sentence of document 6 ")


def test_with_a_limit_only_the_first_file_is_fetched(work: Path) -> None:
    """All but the one without a limit, which loads all files whole."""
    log = [json.loads(line) for line in (work / "log.json").read_text().splitlines()]
    fetched = [entry for entry in log if entry["method"] == "GET" and entry["path"].endswith(".parquet")]
    ours = [entry for entry in fetched if f"/{CORPUS}/" in entry["path"]]
    parts = [entry for entry in ours if "range" in entry]
    assert parts and all("train-00000-of" in entry["path"] for entry in parts)
    whole = [entry["path"] for entry in ours if "range" not in entry]
    assert len(set(whole)) == len(whole) == SHARDS


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("no_column", ["DataError", "no column 'txt'", "Did you mean 'text'"]),
        ("no_split", ["DataError", "no split 'dev'", "['train']"]),
        ("no_config", ["DataError", "no configuration '20231101.de'", "20231101.en"]),
        ("no_repository", ["HubError", "no such data set wikimedia/wikipedie"]),
        ("no_text", ["DataError", "'links' holds no text but list", "row 0"]),
    ],
)
def test_clear_messages(facts: dict[str, dict[str, Any]], name: str, parts: list[str]) -> None:
    message = facts[name]["error"]
    assert all(part in message for part in parts) and len(message.splitlines()) <= 3, message
