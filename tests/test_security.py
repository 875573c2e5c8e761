"""What kdlab lets in and out: no code from a configuration, no path out of its folders, no secret in what it writes."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from endpoint_server import serving
from kdlab.errors import KdlabError, bug
from kdlab.showing import visible
from lab import TINY, Lab

SECRETS = {
    "WANDB_API_KEY": "secret-of-wandb-0123456789abcdef0123456789",
    "HF_TOKEN": "hf_SecretOfTheHub0123456789",
    "OPENAI_API_KEY": "sk-SecretOfTheEndpoint0123456789",
    "AWS_SECRET_ACCESS_KEY": "SecretOfTheCloud0123456789",
}


# Code


CALL = "os.getcwd"
NAMED = "kdlab imports nothing that a configuration names"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"+hydra.callbacks.mine._target_={CALL}", NAMED),
        (f"'+hydra.callbacks.mine={{_target_: {CALL}}}'", "kdlab runs no callbacks"),
        (f"hydra.launcher._target_={CALL}", NAMED),
        (f"hydra/launcher=joblib 'hydra.launcher={{_target_: {CALL}}}'", NAMED),
        ("hydra/launcher=mine", NAMED),
        (f"+_target_={CALL}", "_target_"),
        (f"+method._target_={CALL}", "_target_"),
        (f"+model.student.config._target_={CALL}", "_target_"),
    ],
)
def test_nothing_that_a_configuration_names_is_imported(words: str, said: str, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"_target_: {CALL}\n", encoding="utf-8")
    done = lab.run(f"-m method=ft seed=1,2 {TINY} --config-dir {tmp_path / 'conf'} {words}", outputs=tmp_path)
    assert done.code == 2 and said in done.err, done.err
    assert not list(tmp_path.glob("sweeps/*/*/result.json"))


# Paths


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "..", ".", "a/b", "a\\\\b", "~", "'a b'", "-m", "'a\x07b'"])
def test_a_name_leads_nowhere_else(name: str, lab: Lab, tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.iterdir())
    for flags in ("", "-m seed=1,2 "):
        done = lab.run(f"{flags}method=ft {TINY} name={name}", outputs=tmp_path / "outputs")
        assert done.code == 2 and "name=" in done.err and "\x07" not in done.err, done.err
    assert sorted(tmp_path.parent.iterdir()) == before and not list(tmp_path.rglob("run.json"))


# What a run does, as Python's own audit events tell it


class Watch:
    """Events of the interpreter while it is on: writes, unpickling, processes, connections."""

    def __init__(self) -> None:
        self.on = False
        self.events: list[tuple[str, tuple[Any, ...]]] = []
        sys.addaudithook(self.see)

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event in ("open", "pickle.find_class", "os.system", "subprocess.Popen", "socket.connect"):
            self.events.append((event, args))

    def of(self, event: str) -> list[tuple[Any, ...]]:
        return [args for name, args in self.events if name == event]

    def written(self) -> set[Path]:
        flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        opened = [args for args in self.of("open") if isinstance(args[0], str | bytes)]
        names = (
            os.fsdecode(path) for path, mode, flag in opened if (flag or 0) & flags or set(mode or "") & set("wax+")
        )
        return {Path(name).absolute() for name in names}


_WATCH = Watch()


@pytest.fixture
def watch() -> Iterator[Watch]:
    _WATCH.events.clear()
    _WATCH.on = True
    yield _WATCH
    _WATCH.on = False


FAMILIES = {
    "distillation": f"method=kd {TINY} tracking=wandb tracking.mode=offline",
    "reasoning": (
        "method=ft_cot task=demo/coin_flip model=tiny_decoder rationales=openai rationales.model=m debug=fast "
        "hardware.threads=1 method.curation.correct=false tracking=wandb tracking.mode=offline"
    ),
    "crosslingual": (
        "method=musc task=demo/sentiment_xx model=tiny_multilingual translator=rules task.languages=[en,es] debug=fast "
        "hardware.threads=1 tracking=none"
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_unpickles_nothing_starts_no_shell_and_writes_into_its_folders_only(
    family: str, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    own = Lab(tmp_path)
    with serving(key=SECRETS["OPENAI_API_KEY"]) as server:
        line = f"{FAMILIES[family]} tracking.tags=[{SECRETS['HF_TOKEN']}]"
        line += f" rationales.base_url={server.url}" if family == "reasoning" else ""
        done = own.run(line, outputs=tmp_path / "outputs")
    watch.on = False
    assert done.code == 0, done.out + done.err
    assert watch.of("pickle.find_class") == [] and watch.of("os.system") == []
    for executable, args, *_ in watch.of("subprocess.Popen"):
        assert Path(os.fsdecode(executable)).name not in ("sh", "bash", "dash"), args
        assert not any(value in str(args) for value in SECRETS.values())
    assert len(watch.written()) > 20
    of_session = Path(os.environ["HF_HOME"]).parent
    roots = (tmp_path, of_session, Path("/dev"), tmp_path.parent / ".lock")  # the last one is pytest's
    strange = {path for path in watch.written() if not any(path.is_relative_to(root) for root in roots)}
    strange = {path for path in strange if "wandb-media" not in path.parent.name}  # made when wandb was imported
    assert strange == set()

    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    told = [done.out, done.err, str(folder)]
    for words in (
        f"compare {folder} --out {tmp_path}/comparison --store {own.store}",
        f"export {folder} --to {tmp_path}/exported --store {own.store}",
        "store ls",
    ):
        words += f" --store {own.store}" if words == "store ls" else ""
        after = own.command(words)
        assert after.code == 0, words + after.err
        told += [after.out, after.err]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 30 and [file for file in files if file.suffix == ".html"]
    for value in SECRETS.values():
        assert [file for file in files if value.encode() in file.read_bytes()] == []
        assert not any(value in text for text in told)
    read = b"".join(file.read_bytes() for file in files if file.name == "run.json")
    assert b"***" in read, "the tag, blacked out"


def test_an_error_shows_no_secret_and_nothing_that_a_terminal_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    text = f"key {SECRETS['HF_TOKEN']}\x1b]0;title\x07 \u202e"
    for shown in (str(KdlabError(text, where=text, fix=text)), bug(ValueError(text))):
        assert "key ***\\x1b]0;title\\x07 \\u202e" in shown
        assert SECRETS["HF_TOKEN"] not in shown and visible(shown) == shown


def test_a_secret_that_a_configuration_asks_for_is_not_told(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    done = lab.run(f"method=ft {TINY} 'method.student.lr=${{oc.env:HF_TOKEN}}'", outputs=tmp_path)
    shown = lab.run(f"method=ft {TINY} 'name=${{oc.env:HF_TOKEN}}' --cfg job --resolve", outputs=tmp_path)
    assert done.code == 2 and "method.student.lr" in done.err
    for value in SECRETS.values():
        assert value not in done.out + done.err + shown.out + shown.err


def test_the_watch_sees_what_it_looks_for(watch: Watch, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Path("a")))
    (tmp_path / "file").write_text("")
    os.system("true")
    assert watch.of("pickle.find_class") and watch.of("os.system") and tmp_path / "file" in watch.written()
