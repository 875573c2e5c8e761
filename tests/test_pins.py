"""Local things are pinned to their content, things on the Hub to their commit."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from kdlab import compose, methods, pins
from kdlab.config import Encoder, Source
from kdlab.errors import DataError, HubError, ModelError
from kdlab.graph import UNPINNED, Graph
from kdlab.pins import Pinned, Pins, content_hash

COMMIT, OLDER = "a" * 40, "b" * 40
CONFIG = {"model_type": "bert", "num_hidden_layers": 2}


def model_folder(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def cache(name: str, kind: str = "model", revision: str = "main", commit: str = COMMIT) -> Path:
    """A cached ref, and for a model its config.json."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    if kind == "model":
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


# local


def test_the_hash_of_a_folder_is_that_of_its_names_and_contents(tmp_path: Path) -> None:
    one, two = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    base = content_hash(one)
    assert base == content_hash(two) and len(base) == 64
    (two / ".cache").mkdir()
    (two / ".cache" / "x").write_text("ignored")
    (two / ".gitattributes").write_text("ignored")
    os.utime(two / "config.json", (0, 0))
    assert content_hash(two) == base
    (two / "model.safetensors").write_bytes(b"Weights")
    changed = content_hash(two)
    (two / "model.safetensors").write_bytes(b"weights")
    (two / "config.json").rename(two / "other.json")
    assert len({base, changed, content_hash(two)}) == 3


def test_a_hidden_folder_above_does_not_hide_the_files(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    folder = model_folder(tmp_path / ".hidden" / "model")
    before = content_hash(folder)
    (folder / "model.safetensors").write_bytes(b"other")
    assert content_hash(folder) != before


def test_a_local_model_is_pinned_to_its_content_wherever_it_lies(tmp_path: Path) -> None:
    one, two = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    pinned = Pins().model(Encoder(id=str(one), config={"hidden_dropout_prob": 0.0}))
    assert pinned.values == {"content": content_hash(one)} and pinned.place == str(one)
    assert pinned.config == {**CONFIG, "hidden_dropout_prob": 0.0}
    assert Pins().model(Encoder(id=str(two))).values == pinned.values


def test_a_local_folder_wins_over_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    model_folder(tmp_path / "owner" / "model")
    assert Pins().model(Encoder(id="owner/model")).place == str(tmp_path / "owner" / "model")


def test_each_thing_is_looked_at_once(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "one")
    known = Pins()
    before = known.model(Encoder(id=str(folder)))
    (folder / "model.safetensors").write_bytes(b"other")
    assert known.model(Encoder(id=str(folder))).values == before.values
    assert Pins().model(Encoder(id=str(folder))).values != before.values


def test_a_model_from_its_configuration_alone_needs_no_pin() -> None:
    assert Pins().model(Encoder(init="random", config=CONFIG)) == Pinned({}, config=CONFIG)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no config.json"), ("{half", "is not JSON"), ("[1]", "not a JSON object")],
)
def test_a_model_folder_with_a_broken_config(tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        Pins().model(Encoder(id=str(folder)))
    assert caught.value.fix


def test_a_local_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder") as caught:
        Pins().source(Source(path=str(tmp_path / "absent.csv")))
    assert caught.value.where == "task.source.path" and caught.value.fix


def test_a_changed_file_changes_the_data_and_all_that_follows(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"

    def fingerprints() -> dict[str, str]:
        words = f"task.source.demo=null task.source.path={file} model=tiny task=demo/nli method=ft"
        (job,) = compose.jobs(words.split()).jobs
        return {stage.label: stage.fingerprint for stage in methods.plan(job.run, Pins())}

    file.write_text("premise,hypothesis,label\na,b,neutral\n")
    before = fingerprints()
    assert fingerprints() == before
    file.rename(tmp_path / "moved.csv")
    file = tmp_path / "moved.csv"
    assert fingerprints() == before  # the place is not in the identity
    file.write_text("premise,hypothesis,label\na,c,neutral\n")
    after = fingerprints()
    assert all(before[label] != after[label] for label in before)


# offline


def test_offline_what_is_not_cached_is_unpinned() -> None:
    pinned = Pins().model(Encoder(id="owner/absent"))
    assert pinned.values == {"id": "owner/absent", "revision": UNPINNED}
    assert pinned.config is None and "offline" in str(pinned.note)
    source = Pins().source(Source(hub="owner/absent"))
    assert source.values == {"hub": "owner/absent", "revision": UNPINNED} and source.note


def test_offline_the_cached_ref_counts() -> None:
    cache("owner/model")
    cache("owner/model", revision="v1", commit=OLDER)
    cache("owner/rows", "dataset")
    pinned = Pins().model(Encoder(id="owner/model"))
    assert pinned.values == {"id": "owner/model", "revision": COMMIT}
    assert pinned.config == CONFIG and pinned.note is None and pinned.place is None
    assert Pins().model(Encoder(id="owner/model", revision="v1")).values["revision"] == OLDER
    assert Pins().model(Encoder(id="owner/model", revision="v2")).values["revision"] == UNPINNED
    assert Pins().source(Source(hub="owner/rows")).values == {"hub": "owner/rows", "revision": COMMIT}


def test_a_whole_commit_needs_no_looking_up() -> None:
    pinned = Pins().model(Encoder(id="owner/absent", revision=OLDER))
    assert pinned.values == {"id": "owner/absent", "revision": OLDER} and pinned.config is None


def test_a_branch_and_the_commit_it_stands_for_are_the_same() -> None:
    cache("owner/model")
    assert Pins().model(Encoder(id="owner/model", revision="main")) == Pins().model(
        Encoder(id="owner/model", revision=COMMIT)
    )


# a Hub


class Hub(BaseHTTPRequestHandler):
    """Knows one model, one data set, and how the real one refuses."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "owner/gated" in path:
            self.refuse(403, "GatedRepo")
        elif "owner/bare" in path and "/resolve/" in path:
            self.refuse(404, "EntryNotFound")
        elif "owner/broken" in path:
            self.refuse(500, "ServerError")
        elif not any(name in path for name in ("owner/model", "owner/rows", "owner/bare")):
            self.refuse(404, "RepoNotFound")
        elif "/revision/" in path and path.rsplit("/", 1)[-1] not in ("main", "v1"):
            self.refuse(404, "RevisionNotFound")
        elif path.startswith("/api/"):
            name = "/".join(path.split("/")[3:5])
            commit = OLDER if path.endswith("/v1") else COMMIT
            self.answer({"id": name, "sha": commit, "siblings": [], "tags": []})
        else:
            self.answer(CONFIG)

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0123456789abcdef0123456789abcdef01234567"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: int, name: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", name)
        self.send_header("X-Error-Message", name)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    asked: list[str] = []
    handler = type("Handler", (Hub,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    point_at(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
    yield asked
    server.shutdown()
    server.server_close()
    thread.join(10)


def point_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Make the library, which reads its environment once, ask this server."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address, raising=False)


def test_a_name_on_the_hub_is_pinned_to_its_commit(hub: list[str]) -> None:
    known = Pins()
    pinned = known.model(Encoder(id="owner/model"))
    assert pinned.values == {"id": "owner/model", "revision": COMMIT} and pinned.config == CONFIG
    assert known.model(Encoder(id="owner/model", revision="v1")).values["revision"] == OLDER
    assert known.source(Source(hub="owner/rows", config="rte")).values == {"hub": "owner/rows", "revision": COMMIT}
    count = len(hub)
    known.model(Encoder(id="owner/model", config={"x": 1}))
    known.source(Source(hub="owner/rows", config="cola"))
    assert len(hub) == count  # a sweep asks once


@pytest.mark.parametrize(
    ("name", "revision", "message", "fix"),
    [
        ("owner/nothing", None, "the Hub has no such model owner/nothing", "spelling"),
        ("owner/model", "v9", "model owner/model has no revision 'v9'", "branch, tag or commit"),
        ("owner/gated", None, "access to model owner/gated must be asked for", "HF_TOKEN"),
        ("no such folder/nor/id", None, "neither a folder here nor a possible Hub id", "owner/name"),
    ],
)
def test_what_the_hub_has_not_is_said_once_and_clearly(
    hub: list[str], name: str, revision: str | None, message: str, fix: str
) -> None:
    with pytest.raises(HubError) as caught:
        Pins().model(Encoder(id=name, revision=revision))
    assert message in caught.value.what and fix in str(caught.value.fix)
    assert "\n" not in caught.value.what


def test_a_data_set_that_the_hub_has_not(hub: list[str]) -> None:
    with pytest.raises(HubError, match="no such data set owner/nothing"):
        Pins().source(Source(hub="owner/nothing"))


def test_a_repository_without_config(hub: list[str]) -> None:
    with pytest.raises(ModelError, match=r"owner/bare has no config\.json"):
        Pins().model(Encoder(id="owner/bare"))


def test_a_hub_that_fails_leaves_the_cached_commit_or_unpinned(hub: list[str]) -> None:
    pinned = Pins().model(Encoder(id="owner/broken"))
    assert pinned.values["revision"] == UNPINNED and "the Hub fails (500)" in str(pinned.note)
    cache("owner/broken")
    assert Pins().model(Encoder(id="owner/broken")).values["revision"] == COMMIT


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:9")
    pinned = Pins().source(Source(hub="owner/rows"))
    assert pinned.values["revision"] == UNPINNED and "can't be reached" in str(pinned.note)


def test_unpinned_stages_have_no_identity_to_find_anything_by() -> None:
    (job,) = compose.jobs(["task=glue/rte", "method=cr_ild"]).jobs
    graph = methods.plan(job.run, Pins())
    assert isinstance(graph, Graph) and not any(stage.pinned for stage in graph)
    assert pins.endpoint() == "https://huggingface.co"


def test_what_can_be_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="there is no folder"):
        Pins().model(Encoder(id=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match="is a file"):
        Pins().model(Encoder(id=str(tmp_path / "file")))
    with pytest.raises(HubError, match="neither a folder here nor a possible Hub id"):
        Pins().model(Encoder(id="a/b/c"))


def test_a_config_with_a_word_for_a_number(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", num_attention_heads="two")
    words = [f"model.teacher.id={folder}", "model.student.num_layers=1", "model=bert_base_to_6", "task=demo/nli"]
    with pytest.raises(ModelError, match="num_attention_heads='two'"):
        methods.plan(compose.jobs(words).jobs[0].run, Pins())


def test_one_job_of_a_sweep_does_not_need_what_another_lacks(tmp_path: Path) -> None:
    known = Pins()
    folder = model_folder(tmp_path / "model", num_hidden_layers=4)
    common = ["model=bert_base_to_6", "model.student.num_layers=2", "task=demo/nli"]
    whole, lacking = (
        compose.jobs([*common, f"model.teacher.id={name}"]).jobs[0].run for name in (str(folder), "owner/absent")
    )
    graphs = [methods.plan(run, known) for run in (whole, lacking)]
    known.require(whole, graphs[0])
    with pytest.raises(HubError, match="owner/absent"):
        known.require(lacking, graphs[1])
