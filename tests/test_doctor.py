from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import filelock
import pytest

from fake_apertium import install
from kdlab import doctor
from kdlab.doctor import Check, available_cores, compare, diagnose, show, size
from kdlab.engine import device
from kdlab.engine.device import cpu_flags
from kdlab.translators import apertium


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {"outputs": tmp_path / "outputs", "store": tmp_path / "outputs" / "artifacts"}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.OFFLINE_FLAGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(online: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[http.server.BaseHTTPRequestHandler]]:
    class Answers(http.server.BaseHTTPRequestHandler):
        code = 200

        def do_GET(self) -> None:
            self.send_response(self.code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield Answers
        server.shutdown()


def found(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_everything_is_looked_at_and_nothing_is_left_behind(folders: dict[str, Path], tmp_path: Path) -> None:
    checks = diagnose(run_offline=True, **folders)
    names = [check.name for check in checks]
    assert names[:6] == ["python", "kdlab", "torch", "device", "cpu", "bf16"]
    assert names[-7:] == ["apertium", "hub", "endpoint", "wandb", "outputs", "store", "locks"]
    assert all(check.fix for check in checks if check.state != "ok")
    assert list(tmp_path.iterdir()) == []


def test_only_a_problem_makes_the_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert show([Check("a", "ok", "fine"), Check("b", "warn", "slow [1]", "hurry")]) == 0
    assert "slow [1]" in capsys.readouterr().out
    assert show([Check("c", "problem", "broken", "mend it")]) == 1
    assert "mend it" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "state"), [(200, "ok"), (404, "ok"), (401, "ok"), (503, "warn")])
def test_a_hub_that_answers(hub: type, code: int, state: str) -> None:
    hub.code = code  # type: ignore[attr-defined]
    assert doctor._hub(run_offline=False).state == state


def test_the_token_is_named_but_not_shown(hub: type, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no token" in doctor._hub(run_offline=False).detail
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    check = doctor._hub(run_offline=False)
    assert "a token is configured" in check.detail
    assert "verysecret" not in repr(check)


def test_a_hub_that_is_not_there(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    check = doctor._hub(run_offline=False)
    assert check.state == "warn"
    assert "http://127.0.0.1:9" in check.detail
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert doctor._hub(run_offline=False).state == "problem"


def test_offline_flags_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check = doctor._hub(run_offline=False)
    assert (check.state, "HF_HUB_OFFLINE" in check.detail) == ("warn", True)


@pytest.mark.parametrize(
    ("load", "threads", "state"),
    [(0.1, 2, "ok"), (1.2, 2, "warn"), (1.2, 1, "ok"), (9.0, 1, "ok"), (9.0, 2, "warn")],
)
def test_a_busy_neighbour_costs_threads(monkeypatch: pytest.MonkeyPatch, load: float, threads: int, state: str) -> None:
    monkeypatch.setattr(doctor, "available_cores", lambda: 2)
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    check = doctor._threads(threads)
    assert check.state == state
    if state == "warn":
        assert check.fix is not None
        assert "hardware.threads=1" in check.fix


def test_cores_are_counted() -> None:
    assert available_cores() >= 1


def test_cpu_flags_are_whole_words(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16\nflags\t\t: other\n")
    assert cpu_flags(file) == {"fpu", "avx512_bf16"}
    file.write_text("Features\t: fp asimd bf16\n")
    assert "bf16" in cpu_flags(file)
    assert cpu_flags(tmp_path / "absent") == frozenset()


@pytest.mark.parametrize(
    ("flags", "native"),
    [({"fpu", "avx2"}, False), ({"fpu", "amx_bf16"}, True), ({"asimd", "bf16"}, True), (set(), None)],
)
def test_a_processor_that_computes_in_bf16(
    flags: set[str], native: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda _: frozenset(flags))
    assert device.native_bf16() is native
    (check,) = [check for check in doctor._torch() if check.name == "bf16"]
    assert ("very slow" in check.detail) == (not native)


def test_versions_are_compared_with_the_ranges() -> None:
    have = metadata.version("rich")
    fits, old, absent = compare(["rich>=1", "rich<1", "no-such-package>=2", "also-absent; extra == 'dev'"])
    assert fits == ("rich", have, ">=1", True)
    assert old == ("rich", have, "<1", False)
    assert absent == ("no-such-package", None, ">=2", False)


def test_a_library_out_of_range_is_a_problem_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["rich<1", "filelock>=1"])
    fine, wrong = doctor._libraries()
    assert fine.detail.startswith("filelock")
    assert (wrong.state, wrong.fix) == ("problem", "pip install 'rich<1'")


def test_the_libraries_of_endpoints_and_lora_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    names = ("openai", "tenacity", "peft")
    wanted = [
        line.strip(' ",') for line in text.splitlines() if line.startswith(tuple(f'    "{name}' for name in names))
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: wanted)
    (check,) = doctor._libraries()
    assert sorted(check.detail.split(", ")) == sorted(f"{name} {metadata.version(name)}" for name in names)


def test_the_key_of_endpoints_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    none = doctor._endpoint()
    assert (none.state, none.detail) == (
        "ok",
        "OPENAI_API_KEY is not set; OPENAI_BASE_URL is not set: OpenAI's own address",
    )
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://me:verysecret@Host:81/v1?key=verysecret#verysecret")
    assert doctor._endpoint() == Check(
        "endpoint", "ok", "OPENAI_API_KEY is set; OPENAI_BASE_URL points to https://host:81/v1"
    )


@pytest.mark.parametrize(
    "url", ["me:verysecret@host/v1", "http://me:verysecret@host:verysecret/v1", "http://[verysecret/"]
)
def test_an_address_that_is_none_is_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    check = doctor._endpoint()
    assert check.state == "ok" and check.detail.endswith(f"OPENAI_BASE_URL {doctor.NO_ADDRESS}")
    assert "verysecret" not in repr(check)


def test_torch_that_can_not_be_imported_is_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = doctor._torch()
    assert (check.name, check.state) == ("torch", "problem")


def test_apertium_is_shown_with_its_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, tmp_path, "eng-spa", "spa-eng", "es-pt_BR")
    missing = sorted(set(apertium.PACKAGES.values()) - {"apertium-eng-spa"})
    check = doctor._apertium()
    assert (check.state, check.detail) == (
        "ok",
        f"both ways en-es; further pairs: apt-get install {' '.join(missing)}",
    )
    for mode in ("es-fr", "fr-es", "ro-es", "eng-cat", "cat-fra"):
        fake.add(mode)
    assert doctor._apertium().detail.startswith(
        "both ways en-es es-fr; ca to fr; en to ca; ro to es; by translator.pivots from en also fr (ca, es); further"
    )


def test_without_apertium_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path)
    assert doctor._apertium().detail.startswith("installed, but no pair of languages is: apt-get install apertium-cat-")
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor._apertium()
    assert check.state == "ok"
    assert check.detail.startswith("not installed, which only translator=apertium needs: apt-get install apertium ")


def test_a_folder_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "outputs"
    file.write_text("")
    for check in (doctor._outputs(file), doctor._store(file / "artifacts"), doctor._locks(file)):
        assert check.state == "problem"
        assert "FOLDER" in str(check.fix)


def test_the_store_is_measured(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store = folders["store"]
    (store / "teacher-1").mkdir(parents=True)
    (store / "teacher-1" / "model.safetensors").write_bytes(b"0" * 2500)
    assert " 2 kB used" in doctor._store(store).detail
    monkeypatch.setattr(doctor, "FEW_BYTES", 10**18)
    assert doctor._store(store).state == "warn"
    monkeypatch.setattr(doctor, "TOO_FEW_BYTES", 10**18)
    assert doctor._store(store).state == "problem"


def test_locks_that_lock_nothing_are_a_problem(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle(filelock.BaseFileLock):
        def _acquire(self) -> None:
            self._context.lock_file_fd = 0

        def _release(self) -> None:
            self._context.lock_file_fd = None

    assert doctor._locks(folders["store"]).state == "ok"
    monkeypatch.setattr(filelock, "FileLock", Idle)
    assert doctor._locks(folders["store"]).state == "problem"


def test_wandb_is_shown_with_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert doctor._wandb(doctor.Tracking(name="wandb")).detail == "offline: no key is configured"
    assert doctor._wandb(doctor.Tracking(name="wandb", mode="online")).state == "warn"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    check = doctor._wandb(doctor.Tracking(name="wandb"))
    assert check.detail == "online: a key is configured"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (92e6, "92 MB"), (2e12, "2.0 TB")])
def test_sizes_are_readable(count: float, text: str) -> None:
    assert size(count) == text
