"""The Hub's faults: each ends in one clear message, leaves nothing half, and the same request ends well afterwards."""

from __future__ import annotations

import errno
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import numpy as np
import pytest
from safetensors.numpy import save

from fake_hub import FakeHub, Fault, point_at
from kdlab import hub
from kdlab.config import Encoder, Source
from kdlab.data import tasks
from kdlab.errors import HubError, KdlabError, ModelError, StoreError
from kdlab.hub import Part
from kdlab.pins import Pins

CONFIG = json.dumps({"model_type": "bert", "num_hidden_layers": 2}).encode()
WEIGHTS = save({"weight": np.arange(5000, dtype=np.float32)})
MODEL = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "vocab.txt": b"[PAD]\n[UNK]\na\n"}
ROWS = {
    "README.md": b"---\nlicense: mit\n---\n# Rows\n",
    "data/train.csv": b"text,label\n" + b"one,0\ntwo,1\n" * 40,
    "data/test.csv": b"text,label\nthree,0\nfour,1\n",
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited, without waiting."""
    found: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(
        time, "sleep", lambda seconds: sleep(1) if seconds == 1 and _serving() else found.append(seconds)
    )
    return found


def _serving() -> bool:
    import threading

    return threading.current_thread() is not threading.main_thread()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[FakeHub]:
    fake = FakeHub()
    fake.model("owner/model", dict(MODEL))
    fake.dataset("owner/rows", dict(ROWS))
    with fake.opened():
        point_at(monkeypatch, fake.url, tmp_path / "home")
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
        monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.3)
        yield fake


def part(server: FakeHub, name: str = "owner/model", what: Any = "weights") -> Part:
    return Part("model", name, server.commit(server.repositories["models", name]), what)


def rows(server: FakeHub) -> Part:
    return Part("dataset", "owner/rows", server.commit(server.repositories["datasets", "owner/rows"]), "rows")


def whole(folder: Path, files: dict[str, bytes], *names: str) -> bool:
    return all((folder / name).read_bytes() == files[name] for name in names)


def refused(call: Any) -> KdlabError:
    with pytest.raises(KdlabError) as caught:
        call()
    error = caught.value
    assert error.where and error.fix and "\n" not in error.what and len(str(error)) < 700
    return error


# what passes

PASSING = {
    "busy once": (Fault("model.safetensors", 503, 1, "GET"), 1),
    "busy, listing": (Fault("/api/models", 503, 2, "GET"), 2),
    "bad gateway": (Fault("model.safetensors", 502, 1, "GET"), 1),
    "asked too often": (Fault("/api/models", 429, 1, "GET", {"Retry-After": "7"}), 7),
    "cut in mid-file": (Fault("model.safetensors", "cut", 1, "GET"), None),
    "closed without an answer": (Fault("model.safetensors", "close", 1, "GET"), None),
    "too short once": (Fault("model.safetensors", "short", 1, "GET"), None),
    "spoilt once": (Fault("model.safetensors", "spoilt", 1, "GET"), None),
    "slow once": (Fault("model.safetensors", "slow", 1, "GET"), None),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_is_got_over(server: FakeHub, waits: list[float], name: str) -> None:
    fault, waited = PASSING[name]
    server.faults.append(Fault(**vars(fault)))
    folder = hub.get(part(server))
    assert whole(folder, MODEL, "config.json", "model.safetensors")
    assert server.faults[0].times == 0
    if waited is not None:
        assert waited in waits


# what stays

LASTING = {
    "busy": (Fault("", 503), "the Hub fails (503)", "later"),
    "busy with files": (Fault("model.safetensors", 503, method="GET"), "the Hub fails (503)", "later"),
    "broken": (Fault("", 500), "the Hub fails (500)", "later"),
    "too often": (Fault("/api", 429, headers={"Retry-After": "900"}), "asked too often (429)", "in 900 seconds"),
    "no token": (Fault("", 401), "the Hub", "hf auth login"),
    "refused": (Fault("model.safetensors", 403), "refuses (403)", "HF_TOKEN"),
    "proxy wants a password": (Fault("", 407), "proxy wants a password", "HTTPS_PROXY"),
    "a page": (Fault("", "html"), "what answers is not the Hub", "proxy"),
    "a page for the files": (Fault("/resolve/", "html"), "what answers is not the Hub", "proxy"),
    "a circle": (Fault("", "loop"), "from one address to the next", "HF_ENDPOINT"),
    "a circle of files": (Fault("/resolve/", "loop"), "from one address to the next", "HF_ENDPOINT"),
    "slow": (Fault("", "slow"), "does not answer in time", "same command again"),
    "slow files": (Fault("model.safetensors", "slow", method="GET"), "does not answer in time", "same command again"),
    "cut": (Fault("model.safetensors", "cut", method="GET"), "broke off", "same command again"),
    "closed": (Fault("", "close"), "broke off", "same command again"),
    "short": (Fault("model.safetensors", "short"), "is not what it lists", "same command again"),
    "spoilt": (Fault("model.safetensors", "spoilt", method="GET"), "is not what it lists", "same command again"),
    "a file that is gone": (Fault("model.safetensors", 404), "404", "HF_ENDPOINT"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("slow") else name for name in LASTING]
)
def test_a_fault_that_stays_is_told_and_leaves_nothing_half(server: FakeHub, name: str) -> None:
    fault, what, fix = LASTING[name]
    server.faults.append(Fault(**vars(fault)))
    error = refused(lambda: hub.get(part(server)))
    assert what in error.what and fix in str(error.fix), str(error)
    assert "owner/model" in str(error) and server.url in str(error.where)
    assert hub.absent(part(server)) is not None
    assert not (part(server).snapshot / "model.safetensors").exists()
    server.faults.clear()
    hub.listing.cache_clear()
    assert whole(hub.get(part(server)), MODEL, "config.json", "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LASTING if name not in ("busy with files", "short", "spoilt")])
def test_the_same_with_a_data_set(server: FakeHub, name: str) -> None:
    fault, what, fix = LASTING[name]
    server.faults.append(Fault(**{**vars(fault), "part": fault.part.replace("model.safetensors", "train.csv")}))
    source = {"hub": "owner/rows", "revision": rows(server).commit}
    server.faults[0].part = server.faults[0].part.replace("/api/models", "/api/datasets")
    error = refused(lambda: tasks.read_raw(source, "train", text=["text"], label="label"))
    assert what in error.what and fix in str(error.fix), str(error)
    server.faults.clear()
    hub.listing.cache_clear()
    assert len(tasks.read_raw(source, "train", text=["text"], label="label").columns["text"]) == 80


def test_a_data_set_whose_server_dies_between_files(server: FakeHub) -> None:
    server.faults.append(Fault("test.csv", "close"))
    refused(lambda: hub.get(rows(server), ask=tasks.hub_files))
    assert (rows(server).snapshot / "data" / "train.csv").is_file() and hub.absent(rows(server)) is not None
    server.faults.clear()
    count = len(server.log)
    hub.get(rows(server), ask=tasks.hub_files)
    assert not [one for one in server.log[count:] if one.method == "GET" and "train.csv" in one.path]  # kept


# what the Hub has not


@pytest.mark.parametrize(
    ("name", "revision", "what", "fix"),
    [
        ("owner/absent", "main", "no such model owner/absent, or it is private", "hf auth login"),
        ("owner/model", "v9", "has no revision 'v9'", "branch, tag or commit"),
        ("owner/model", "f" * 40, f"has no revision '{'f' * 40}'", "branch, tag or commit"),
        ("owner/gated", "main", "must be asked for", "accept its terms on that page, then `hf auth login`"),
    ],
)
def test_what_the_hub_has_not_or_does_not_give(server: FakeHub, name: str, revision: str, what: str, fix: str) -> None:
    server.model("owner/gated", MODEL)
    server.gated.add("owner/gated")

    def ask() -> None:
        hub.get(Part("model", name, hub.commit("model", name, revision), "weights"))

    error = refused(ask)
    assert what in error.what and fix in str(error.fix)
    if name == "owner/gated":
        assert error.where == f"{server.url}/owner/gated"


def test_a_model_without_weights(server: FakeHub) -> None:
    server.model("owner/bare", {"config.json": CONFIG, "tf_model.h5": b"x"})
    with pytest.raises(ModelError, match="no weights"):
        hub.get(part(server, "owner/bare"))


# the way there


@pytest.mark.parametrize(
    ("raised", "what"),
    [
        (socket.gaierror(-2, "Name or service not known"), "name can't be resolved"),
        (ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"), "certificate"),
        (ConnectionRefusedError(111, "Connection refused"), "can't be reached"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "can't be reached"),
    ],
)
def test_no_way_to_the_hub(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch, raised: OSError, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = part(server).commit

    def connect(*args: Any, **named: Any) -> Any:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(socket, "create_connection", connect)
        from huggingface_hub.utils import close_session

        close_session()
        error = refused(lambda: hub.get(part(server)))
        assert what in error.what, str(error)
        assert what in str(Pins().model(Encoder(id="owner/model")).note)
        hub.remember("model", "owner/model", "main", commit)
        (part(server).snapshot).mkdir(parents=True)
        (part(server).snapshot / "config.json").write_bytes(CONFIG)
        assert Pins().model(Encoder(id="owner/model")).values["revision"] == commit
        assert f"as it was last seen, at {commit[:12]}" in capsys.readouterr().err
    assert whole(hub.get(part(server)), MODEL, "model.safetensors")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_takes_no_more(server: FakeHub, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(*args: Any, **named: Any) -> Any:
        raise OSError(number, "no")

    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(StoreError) as caught:
            hub.get(part(server))
    assert "HF_HOME" in str(caught.value.fix) and caught.value.where
    assert hub.absent(part(server)) is not None
    assert whole(hub.get(part(server)), MODEL, "model.safetensors")


def test_a_disk_that_takes_no_rows(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "no")

    source = {"hub": "owner/rows", "revision": rows(server).commit}
    with monkeypatch.context() as patched:
        patched.setattr("datasets.arrow_writer.ArrowWriter.finalize", full)
        with pytest.raises(StoreError, match="No space left") as caught:
            tasks.read_raw(source, "train", text=["text"], label="label")
    assert "HF_HOME" in str(caught.value.fix)
    assert len(tasks.read_raw(source, "train", text=["text"], label="label").columns["text"]) == 80


# what lies in the cache


@pytest.mark.parametrize("spoil", ["truncated", "gone", "blob gone"])
def test_a_file_that_was_damaged_in_the_cache_is_not_used(server: FakeHub, spoil: str) -> None:
    file = hub.get(part(server)) / "model.safetensors"
    if spoil == "truncated":
        file.resolve().write_bytes(WEIGHTS[:-1])
    elif spoil == "gone":
        file.unlink()
    else:
        file.resolve().unlink()
    assert "model.safetensors is" in str(hub.absent(part(server)))
    assert whole(hub.get(part(server)), MODEL, "model.safetensors")


def test_a_flipped_bit_is_found_when_it_is_looked_for(server: FakeHub) -> None:
    file = hub.get(part(server)) / "model.safetensors"
    file.resolve().write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    assert hub.absent(part(server)) is None  # of the same length
    hub.obtain(part(server), hub.files(part(server)), check=True)
    assert whole(part(server).snapshot, MODEL, "model.safetensors")


@pytest.mark.parametrize(
    ("names", "use"),
    [
        (["config.json", "model.safetensors"], True),
        (["config.json", "pytorch_model.bin"], True),
        (["model.safetensors"], False),
        (["config.json"], False),
    ],
)
def test_what_another_program_left_is_used_if_it_will_do(server: FakeHub, names: list[str], use: bool) -> None:
    other = part(server)
    other.snapshot.mkdir(parents=True)
    for name in names:
        (other.snapshot / name).write_bytes(MODEL.get(name, b"pickled"))
    assert (hub.absent(other) is None) == use
    if "model.safetensors" in names and use:
        (other.snapshot / "model.safetensors").write_bytes(WEIGHTS[:-100])
        assert hub.absent(other) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parts": {"weights": ["model.safetensors"]}, "files": {}}', "{}"])
def test_a_broken_record_is_made_anew(server: FakeHub, content: str) -> None:
    hub.get(part(server))
    (record,) = hub.repository("model", "owner/model").glob("kdlab/*.json")
    before = record.read_text()
    record.write_text(content)
    assert hub.absent(part(server, what="config")) is None
    hub.obtain(part(server), hub.files(part(server)), check=True)
    assert record.read_text() == before


def test_rows_of_another_commit_are_never_taken_for_those_asked_for(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`datasets` itself takes what it has, of whatever commit, when the Hub does not answer."""
    from datasets import load_dataset

    load_dataset("owner/rows", revision=rows(server).commit)
    new = server.dataset("owner/rows", {**ROWS, "data/train.csv": b"text,label\nfive,0\nsix,1\n"})
    server.faults.append(Fault("", 503))
    source = {"hub": "owner/rows", "revision": new}
    assert "503" in refused(lambda: tasks.read_raw(source, "train", text=["text"], label="label")).what
    server.faults[:] = [Fault("/tree/", 500)]
    assert "500" in refused(lambda: tasks.read_raw(source, "train", text=["text"], label="label")).what
    server.faults.clear()
    point_at(monkeypatch, server.url, tmp_path / "home", offline=True)
    assert "kdlab fetch" in str(refused_lines(lambda: tasks.read_raw(source, "train", text=["text"], label="label")))
    point_at(monkeypatch, server.url, tmp_path / "home")
    assert tasks.read_raw(source, "train", text=["text"], label="label").columns["text"].to_pylist() == ["five", "six"]


def refused_lines(call: Any) -> HubError:
    with pytest.raises(HubError) as caught:
        call()
    return caught.value


def test_a_source_of_the_hub_is_pinned_and_its_pin_is_remembered(server: FakeHub) -> None:
    assert Pins().source(Source(hub="owner/rows")).values["revision"] == rows(server).commit
    assert hub.known_commit("dataset", "owner/rows", "main") is None  # nothing of it is there yet
