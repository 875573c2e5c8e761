"""Full and read-only disks, folders of others, memory that runs out, no locks to be had; and what prune keeps."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdlab import artifacts, compose, sweep
from kdlab.artifacts import MANIFEST, Store, write_json
from kdlab.engine import loop
from kdlab.errors import StoreError, TrainingError, disk_errors
from kdlab.graph import Graph, Stage
from kdlab.integrity import kept_lines, sealed, unsealed
from kdlab.rundir import used_artifacts
from kdlab.translators.memory import Entry, Memory, memory_path
from lab import TINY, Lab, permissions_hold, run_folder, script

RUN = f"method=ft {TINY}"


@pytest.fixture(scope="module")
def disk() -> ModuleType:
    return script("disk")


@pytest.fixture(scope="module")
def whole(disk: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that met no fault."""
    place: Path = tmp_path_factory.mktemp("whole")
    assert disk.train(place, RUN.split()) == (0, "")
    return place


@contextmanager
def mounted(disk: ModuleType, place: Path) -> Iterator[Path]:
    try:
        with disk.disk(place) as found:
            yield found
    except disk.NoMount as error:
        pytest.skip(f"no file system can be mounted here: {error}")


# disks


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        ("bytes", [f"size={size}k" for size in range(4, 3000, 160)]),
        ("files", [f"size=1g,nr_inodes={count}" for count in range(2, 300, 14)]),
    ],
)
def test_a_disk_that_is_full_again_and_again(
    disk: ModuleType, whole: Path, tmp_path: Path, kind: str, limits: list[str]
) -> None:
    with mounted(disk, tmp_path / kind) as place:
        found = disk.filled(place, [*RUN.split(), "hardware.checkpoint_seconds=0"], iter(limits), disk.state(whole))
        assert found.wrong == [] and found.attempts >= 4
        assert Store(place / "artifacts").unfinished() == []


def test_a_disk_that_became_read_only(disk: ModuleType, whole: Path, tmp_path: Path) -> None:
    with mounted(disk, tmp_path / "disk") as place:
        disk.resize(place, "size=1g")
        shutil.copytree(whole, place, dirs_exist_ok=True)
        before = disk.state(place)
        disk.resize(place, "ro")
        for more in ([], ["method.student.lr=0.002"]):
            code, said = disk.train(place, [*RUN.split(), *more])
            assert code == 2 and said.count("error: ") == 1
            assert "Read-only file system" in said and "point `store=` and `outputs=` at a place" in said
        disk.resize(place, "rw")
        assert disk.train(place, RUN.split()) == (0, "") and disk.state(place) == before


LOCKED, CLOSED = 0o555, 0o000  # may be read, and nothing


def folders(whole: Path) -> list[Path]:
    """Those of a finished run and its store."""
    return [whole, *(path for path in whole.rglob("*") if path.is_dir())]


def files(whole: Path) -> list[Path]:
    """Those of its run folder and of one artifact."""
    (student,) = (whole / "artifacts").glob("finetune-*")
    return [path for folder in (run_folder(whole), student) for path in folder.iterdir() if path.is_file()]


@pytest.mark.parametrize("mode", [LOCKED, CLOSED])
@pytest.mark.parametrize(
    ("more", "places"),
    [("", folders), ("", files), pytest.param("method.student.lr=0.002", folders, marks=pytest.mark.slow)],
    ids=["folders", "files", "folders-new"],
)
def test_what_permissions_forbid(
    disk: ModuleType, whole: Path, tmp_path: Path, mode: int, more: str, places: Callable[[Path], list[Path]]
) -> None:
    """Each folder and file in turn: the command needs it not, or says so; and nothing is spoilt."""
    before, refused = disk.state(whole), 0
    for number, place in enumerate(places(whole)):
        here = tmp_path / f"{number}"
        shutil.copytree(whole, here)
        forbidden = here / place.relative_to(whole)
        was = forbidden.stat().st_mode
        forbidden.chmod(mode)
        try:
            with permissions_hold():
                code, said = disk.train(here, [*RUN.split(), *more.split()])
        finally:
            forbidden.chmod(was)
        if code != 0:
            refused += 1
            assert code == 2 and said.count("error: ") == 1, (forbidden, said)
            assert "Permission denied" in said and "  fix: " in said and "readable" in said, (forbidden, said)
        assert Store(here / "artifacts").verify() == [], forbidden
        if not more:
            assert disk.train(here, RUN.split()) == (0, "") and disk.state(here) == before, forbidden
        shutil.rmtree(here)
    assert refused >= (places is folders)


# memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_memory_that_runs_out_is_said(tmp_path: Path, error: Exception) -> None:
    failed = pytest.raises(TrainingError, match="stage 'x' failed: memory ran out")
    with failed as caught, disk_errors("stage 'x'", tmp_path):
        raise error
    assert "hardware.micro_batch" in str(caught.value.fix) and "last checkpoint" in str(caught.value.fix)


def test_a_run_without_memory_goes_on_when_there_is_some(
    disk: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUN.split(), "hardware.checkpoint_seconds=0"]
    train_step, steps = loop._Trainer.train_step, itertools.count()

    def short(self: Any, *given: Any) -> None:
        if next(steps) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        train_step(self, *given)

    monkeypatch.setattr(loop._Trainer, "train_step", short)
    code, said = disk.train(tmp_path, words)
    assert code == 2 and said.startswith("error: stage 'student' failed: memory ran out")
    assert disk.train(tmp_path, words) == (0, "") and disk.state(tmp_path) == disk.state(whole)
    assert "continues at step 2" in (run_folder(tmp_path) / "console.log").read_text()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("out of memory"),
        ValueError("label 'GPU ran out of memory' is not in the task"),
        AssertionError("row says: [Errno 13] Permission denied"),
        ConnectionError("NewConnectionError: [Errno 13] Permission denied"),
        OSError("no connection: [Errno 28]"),
    ],
)
def test_words_of_others_are_no_fault_of_the_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), disk_errors("stage 'x'", tmp_path):
        raise error


def test_at_the_outside_only_what_names_a_file_is_one_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), disk_errors("kdlab list", tmp_path, named=True):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # of a terminal that is gone
    with pytest.raises(StoreError), disk_errors("kdlab list", tmp_path, named=True):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "file")


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    words = f"import os; os.chdir({str(tmp_path / 'gone')!r}); os.rmdir('../gone'); from kdlab import cli; "
    words += f"raise SystemExit(cli.main(['store', 'verify', '--store', {str(tmp_path)!r}]))"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_student_that_was_moved_to_another_disk_and_linked(disk: ModuleType, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "here")
    student = run_folder(tmp_path / "here") / "student"
    student.rename(tmp_path / "elsewhere")
    student.symlink_to(tmp_path / "elsewhere")
    assert disk.train(tmp_path / "here", [*RUN.split(), "fresh=[student]"]) == (0, "")
    assert not student.is_symlink() and disk.state(tmp_path / "here") == disk.state(whole)
    assert (tmp_path / "elsewhere" / "model.safetensors").is_file()


# locks


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_LOCKABLE", set())


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, None])
def test_a_file_system_without_locks_is_refused(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """number: what it says to a lock; None: it gives it to everybody."""

    def flock(file: Any, how: int) -> None:
        if number is not None and how != fcntl.LOCK_UN:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    done = lab.command(f"train {RUN} store={tmp_path / 'store'} outputs={tmp_path}")
    assert done.code == 2 and done.err.count("error: ") == 1
    assert "locks don't work on the file system" in done.err and "local disk" in done.err
    assert (os.strerror(number) if number else "two can hold the same one") in done.err
    assert [path.name for path in (tmp_path / "store").rglob("*")] == ["locks", ".probe"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("untried")
def test_locks_that_others_hold_are_locks_that_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked("one-1"):
        probe = os.open(tmp_path / "locks" / ".probe", os.O_RDWR)
        fcntl.flock(probe, fcntl.LOCK_EX)
        artifacts._LOCKABLE.clear()
        with store.locked("two-2"):
            pass
        os.close(probe)


# pruning


def stage(name: str) -> Stage:
    return Stage(f"kdlab.stages.none:{name}", name, values={"name": name})


def put(store: Store, name: str) -> None:
    folder = store.begin(name)
    (folder / "a.txt").write_text(name)
    store.publish(name, {"made": {"at": "2026-01-01T00:00:00+00:00"}})


def interrupted(store: Store, name: str) -> None:
    (store.begin(name) / "work" / "checkpoint-1").mkdir()


NAMES = tuple("abcdefgh")
SETS = st.frozensets(st.sampled_from(NAMES))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Stages of which each needs some before it."""
    made: dict[str, Stage] = {}
    for name in NAMES:
        needs = {f"n{one}": made[one] for one in sorted(draw(SETS)) if one in made}
        made[name] = Stage(f"kdlab.stages.none:{name}", name, values={"name": name}, inputs=needs)
    targets = draw(st.sets(st.sampled_from(NAMES), min_size=1))
    return Graph.of({name: made[name] for name in sorted(targets)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(
    kept=st.lists(graphs(), max_size=3),
    swept=st.lists(graphs(), max_size=2),
    gone=graphs(),
    working=SETS,
    held=SETS,
    began=graphs(),
    begins=st.booleans(),
    runs=st.booleans(),
)
def test_prune_never_removes_what_a_run_needs(
    kept: list[Graph],
    swept: list[Graph],
    gone: Graph,
    working: frozenset[str],
    held: frozenset[str],
    began: Graph,
    begins: bool,
    runs: bool,
) -> None:
    """kept: of runs below outputs; swept: of jobs that have not begun; gone: of a run whose folder was deleted.

    working: of `gone`'s stages, those that are interrupted. held: those that another process builds at this moment.
    began: of a run that starts and ends while the store is pruned. runs: whether one is in progress then.
    """
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as locks:
        outputs, store = Path(scratch), Store(Path(scratch) / "artifacts")
        for number, graph in enumerate(kept):
            (outputs / "runs" / f"{number}").mkdir(parents=True)
            write_json(outputs / "runs" / f"{number}" / "graph.json", graph.describe())
        (outputs / "sweeps" / "s").mkdir(parents=True)
        jobs = [{"name": "x", "artifacts": [one.artifact for one in graph]} for graph in swept]
        write_json(outputs / "sweeps" / "s" / "sweep.json", {"jobs": jobs})
        stages = {one.artifact: one for graph in (*kept, *swept, gone, began) for one in graph}
        for name, one in stages.items():
            (interrupted if one.label in working else put)(store, name)
        for name, one in stages.items():
            if one.label in held:
                locks.enter_context(store.locked(name))
        needed = {one.artifact for graph in (*kept, *swept) for one in graph}
        assert used_artifacts(outputs) == needed

        def meanwhile() -> set[str]:
            if begins:
                (outputs / "runs" / "new").mkdir(parents=True)
                write_json(outputs / "runs" / "new" / "graph.json", began.describe())
            if runs:
                locks.enter_context(store.locked("run-1"))
            return used_artifacts(outputs)

        def there() -> set[str]:
            found = {path.parent.name for path in store.root.glob(f"*/{MANIFEST}")}
            return found | {path.parents[1].name for path in store.root.glob("building/*/work/checkpoint-1")}

        assert there() == set(stages)
        told = {name for name, _ in store.prune(needed, remove=False)}
        assert there() == set(stages) and not (outputs / "runs" / "new").exists()
        busy = {name for name, one in stages.items() if one.label in held}
        assert told == set(stages) - needed - busy
        if runs and told:
            with pytest.raises(StoreError, match="a run has begun"):
                store.prune(needed, remove=True, meanwhile=meanwhile)
            assert there() == set(stages)
        else:
            also = {one.artifact for one in began} if begins and told else set[str]()
            assert {name for name, _ in store.prune(needed, remove=True, meanwhile=meanwhile)} == told - also
            assert there() == needed | busy | (also & set(stages))
        assert store.verify() == [] and not (store.root / "pruned").exists()


def test_prune_puts_all_back_if_it_can_not_tell(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, "one-1")
    interrupted(store, "two-2")

    def unsure() -> set[str]:
        raise StoreError("can't be told")

    with pytest.raises(StoreError, match="can't be told"):
        store.prune(set(), remove=True, meanwhile=unsure)
    assert store.find("one-1") is not None and (store.building("two-2") / "work" / "checkpoint-1").is_dir()
    assert [name for name, _ in store.prune(set(), remove=True)] == ["one-1", "two-2"]


def test_prune_trusts_no_graph_that_is_damaged(whole: Path, tmp_path: Path) -> None:
    """Whichever byte changed: it refuses, or keeps all the same."""
    outputs, draw = tmp_path / "outputs", random.Random(0)
    shutil.copytree(whole / "runs", outputs / "runs")
    file = run_folder(outputs) / "graph.json"
    text = file.read_bytes()
    used = used_artifacts(outputs)
    assert len(used) == 7
    refused = 0
    names = [
        place for name in used for place in range(text.index(name.encode()), text.index(name.encode()) + len(name))
    ]
    for place in [*names, *draw.sample(range(len(text)), 300)]:
        changed = bytearray(text)
        changed[place] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        try:
            assert used <= used_artifacts(outputs), place
        except StoreError as error:
            assert error.where == str(file) and "again" in str(error.fix)
            refused += 1
    assert refused > 100
    file.write_bytes(text[: len(text) // 2])
    with pytest.raises(StoreError, match="can't be told"):
        used_artifacts(outputs)


def test_prune_keeps_what_the_jobs_of_a_sweep_need_that_have_not_begun(tmp_path: Path) -> None:
    jobs = compose.jobs(f"-m {TINY} seed=1,2 outputs={tmp_path} store={tmp_path / 'artifacts'}".split()).jobs
    graphs = {job.name: Graph.of({"x": stage(f"of_{number}")}) for number, job in enumerate(jobs)}
    sweep.announce(tmp_path / "sweeps" / "s", jobs, [], graphs)
    assert used_artifacts(tmp_path) == {stage("of_0").artifact, stage("of_1").artifact}


def test_prune_looks_below_several_folders(lab: Lab, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "a")
    (tmp_path / "b").mkdir()
    store = tmp_path / "a" / "artifacts"
    words = f"store prune --store {store} --outputs {tmp_path / 'b'}"
    assert lab.command(words).out.count("unused") == 7
    assert lab.command(f"{words} {tmp_path / 'a'} --yes").out.startswith("0 artifacts")
    refused = lab.command(f"{words} {tmp_path / 'c'} --yes")
    assert refused.code == 2 and f"there is no folder {tmp_path / 'c'}" in refused.err


def test_verify_looks_at_journals(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "journals").mkdir()
    (tmp_path / "journals" / "m.jsonl").write_text('{"key": 1}\n{torn')
    done = lab.command(f"store verify --store {tmp_path}")
    assert done.code == 2 and "damaged: journals/m.jsonl: line 1: this line has no key" in done.out
    assert "1 damaged files" in done.out and "paid for, again" in done.out


def test_verify_looks_at_translations(lab: Lab, tmp_path: Path) -> None:
    file = memory_path(tmp_path / "translations", "test", {})
    with Memory(file, {}) as memory:
        memory.add({"a dog": Entry("un perro")}, "en", "es")
    assert lab.command(f"store verify --store {tmp_path}").code == 0
    file.write_bytes(file.read_bytes().replace(b"un perro", b"un gatto"))
    done = lab.command(f"store verify --store {tmp_path}")
    assert done.code == 2 and f"translations/{file.name}: 1 rows were not as they were written" in done.out
    assert "1 damaged files" in done.out and "translated again" in done.out
    assert lab.command(f"store verify --store {tmp_path}").code == 0


@pytest.mark.parametrize("place", ["", "journals", "translations", "train-0123456789abcdef"])
def test_verify_says_what_it_may_not_look_at(lab: Lab, tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place).chmod(0o000)
    with permissions_hold():
        done = lab.command(f"store verify --store {tmp_path}")
    (tmp_path / place).chmod(0o755)
    assert done.code == 2 and "Permission denied" in done.out + done.err


# what a hostile reader found


def test_a_checkpoint_may_hold_an_overflowed_norm() -> None:
    """fp16 overflows now and then, and its scaler goes on."""
    text = sealed({"sums": {"grad_norm": float("inf")}}, indent=2, finite=False)
    assert unsealed(text, indent=2, required=True) == {"sums": {"grad_norm": float("inf")}}
    with pytest.raises(ValueError):
        sealed({"sums": float("inf")})


def test_lines_of_an_older_version_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n' + sealed({"a": 3}) + '{"a": 4}\n')
    found, damage = kept_lines(file)
    assert [line["a"] for line in found] == [1, 2, 3] and damage is not None and "line 4" in damage
    spoilt = sealed({"a": 1}).replace('"sha256"', '"sha257"')
    file.write_text(spoilt)
    assert kept_lines(file)[0] == []


def test_prune_removes_nothing_that_is_not_kdlabs(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "not kdlab"}')
    assert Store(tmp_path).prune((), remove=True) == []
    assert (tmp_path / "site" / "manifest.json").exists()


def test_what_can_not_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system has its moments: hours of training are not thrown away for one."""
    store, name = Store(tmp_path), "toy-0123456789abcdef"
    (store.begin(name) / "rows.txt").write_text("rows")
    store.publish(name, {"values": {}, "facts": {}, "warnings": [], "made": {"seconds": 1.0}})
    monkeypatch.setattr(artifacts, "_TAKEN", {})
    monkeypatch.setattr(artifacts, "checksum", lambda path: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    with pytest.raises(StoreError, match="can't be read: Stale file handle"):
        store.faults(name)


def test_a_kill_just_after_the_last_rename_leaves_nothing(disk: ModuleType, whole: Path, tmp_path: Path) -> None:
    """What was still to be removed then is removed by the next command, but not while somebody is at it."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    store = Store(tmp_path / "artifacts")
    (name,) = [path.name for path in store.root.glob("finetune-*")]
    for word in ("done", "replaced"):
        (store.root / "building" / f"{name}.{word}-7").mkdir()
        (store.root / "building" / f"{name}.{word}-7" / "model.safetensors").touch()
    with store.locked(name):
        assert disk.train(tmp_path, RUN.split()) == (0, "") and len(store.unfinished()) == 2
    assert disk.train(tmp_path, RUN.split()) == (0, "") and store.unfinished() == []
    assert disk.state(tmp_path) == disk.state(whole)


def test_checkpoints_outlive_a_kill_just_before_the_last_rename(tmp_path: Path) -> None:
    store, name = Store(tmp_path), "toy-0123456789abcdef"
    folder = store.begin(name)
    (folder / "work" / "checkpoint-7").mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "work").rename(folder.parent / f"{name}.done-12")
    assert (store.begin(name) / "work" / "checkpoint-7").is_dir()
