"""A byte that changed, in whatever file, is noticed and named; what it belongs to is made anew, and was not used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import toy
from kdlab import artifacts
from kdlab.artifacts import MANIFEST, Store
from kdlab.engine import checkpoint, loop
from kdlab.errors import StoreError
from kdlab.integrity import kept_lines, sealed, unsealed
from kdlab.rationales.completion import Completion
from kdlab.rationales.journal import Journal, damaged_lines
from lab import TINY, Lab, read, run_folder

RUN = f"method=cr_ild {TINY}"


def flip(file: Path, place: int, bit: int = 0) -> None:
    """Change one bit of a file; a write through the system, as any program's."""
    mode = file.stat().st_mode
    file.chmod(0o644)
    with open(file, "r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ (1 << bit)]))
    file.chmod(mode)


def cut(file: Path, size: int) -> None:
    mode = file.stat().st_mode
    file.chmod(0o644)
    os.truncate(file, size)
    file.chmod(mode)


def replaced(file: Path, content: bytes) -> None:
    mode = file.stat().st_mode
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(mode)


def files_of(store: Store) -> list[tuple[str, Path]]:
    """(artifact, file) for every file that is published."""
    return [(found.path.name, file) for found in store.artifacts() for file in artifacts.files_below(found.path)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A store and a finished run of its own, since they are spoilt here."""
    lab = Lab(tmp_path_factory.mktemp("damage"))
    done = lab.run(RUN, outputs=lab.root)
    assert done.code == 0, done.err
    yield lab


def state(lab: Lab) -> dict[str, str]:
    """What must come back: checksums of all but times and figures of the machine; the scores."""
    folder = run_folder(lab.root)
    files = [file for _, file in files_of(Store(lab.store)) if file.name not in (MANIFEST, "figures.json")]
    files += [folder / name for name in ("metrics.jsonl", "graph.json", "run.json")]
    files += [file for file in (folder / "student").iterdir() if file.name != "README.md"]
    found = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return found | {"scores": json.dumps(read(folder / "result.json")["scores"])}


# artifacts


def test_a_changed_byte_or_a_cut_of_any_file_is_found(own: Lab) -> None:
    store, draw = Store(own.store), random.Random(0)
    assert store.verify() == []
    for name, file in files_of(store):
        whole = file.read_bytes()
        told = f"{name}/{file.relative_to(store.path(name)).as_posix()}:"
        for place in {0, len(whole) - 1, draw.randrange(len(whole))}:
            flip(file, place, draw.randrange(8))
            assert [line.startswith(told) for line in store.faults(name)] == [True], (file, place)
            replaced(file, whole)
        for size in {0, draw.randrange(len(whole)), len(whole) - 1}:
            cut(file, size)
            assert [line.startswith(told) for line in store.faults(name)] == [True], (file, size)
            replaced(file, whole)
        assert store.faults(name) == []
    assert store.verify() == []


def test_every_byte_of_a_manifest(own: Lab) -> None:
    store = Store(own.store)
    name = next(found.path.name for found in store.artifacts() if found.path.name.startswith("vet-"))
    text = (store.path(name) / MANIFEST).read_bytes()
    for place in range(len(text)):
        for bit in (0, 5):  # 5: the case of a letter, a space for a NUL
            changed = bytearray(text)
            changed[place] ^= 1 << bit
            try:
                manifest = unsealed(changed.decode(), indent=2)
                assert "format" in manifest and manifest["format"] != 1
                with pytest.raises(ValueError, match="not as it was written"):
                    unsealed(changed.decode(), indent=2, required=True)
            except ValueError:
                continue


@pytest.mark.slow  # that it is found: above; that it is made anew: below, of some
def test_whatever_is_damaged_is_named_and_made_anew_with_the_same_bits(own: Lab) -> None:
    store, draw = Store(own.store), random.Random(1)
    before = state(own)
    names = [found.path.name for found in store.artifacts()]
    files = {name: [file for other, file in files_of(store) if other == name] for name in names}
    for number in range(max(map(len, files.values()))):  # one file of each artifact at a time
        damaged = [(name, own_files[number]) for name, own_files in files.items() if number < len(own_files)]
        for _, file in damaged:
            if draw.random() < 0.5:
                flip(file, draw.randrange(file.stat().st_size), draw.randrange(8))
            else:
                cut(file, draw.randrange(file.stat().st_size))
        done = own.run(RUN, outputs=own.root)
        assert done.code == 0, done.err
        for name, file in damaged:
            assert f"damaged: {name}/{file.relative_to(store.path(name)).as_posix()}: " in done.out.replace(
                f"the manifest of {name} ", ""
            )
        assert len(done.stages("run")) == len(damaged)  # what is made of them is the same, and stays
        assert state(own) == before and store.verify() == []
    again = own.run(RUN, outputs=own.root)
    assert again.stages("run") == [] and "damaged" not in again.out


def test_one_that_nothing_needs_is_made_anew_as_well(own: Lab) -> None:
    """Its points are part of the run's."""
    teacher = next(own.store.glob("finetune-*"))
    before = state(own)
    flip(teacher / "metrics.jsonl", 100)
    planned = own.command(f"plan {RUN} store={own.store} outputs={own.root}")
    assert planned.code == 0
    done = own.run(RUN, outputs=own.root)
    assert done.stages("run") == ["teacher"] and state(own) == before


def test_a_disk_that_changes_a_byte_by_itself_is_noticed_when_it_is_read(
    own: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size, times and inode stay: only who reads every byte can see it."""
    weights = next(own.store.glob("finetune-*")) / "model" / "model.safetensors"
    whole, like = weights.read_bytes(), artifacts._like(weights)
    before = state(own)
    real = artifacts._like
    monkeypatch.setattr(artifacts, "_like", lambda path: like if path == weights else real(path))
    store, name = Store(own.store), weights.parents[1].name
    assert store.faults(name, thorough=True) == []
    flip(weights, len(whole) // 2)
    monkeypatch.setattr(artifacts, "_TAKEN", {})  # as in another process
    assert store.faults(name) == []
    logits = next(own.store.glob("distill_logits-*"))
    layers = next(own.store.glob("distill_layers-*"))
    for gone in (logits / "history.json", layers / "history.json"):  # so that a stage that reads the teacher runs
        cut(gone, 3)
    done = own.run(RUN, outputs=own.root)
    monkeypatch.setattr(artifacts, "_like", real)
    assert done.code == 0, done.err
    assert f"damaged: {name}/model/model.safetensors: changed" in done.out
    assert set(done.stages("run")) == {"teacher", "layers", "logits"} and state(own) == before


def test_a_large_file_is_read_once_and_then_known_by_its_times(own: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read_files = Store(own.store), list[Path]()
    real = artifacts.checksum
    monkeypatch.setattr(artifacts, "checksum", lambda path: read_files.append(path) or real(path))
    name = next(own.store.glob("finetune-*")).name
    assert store.faults(name) == []
    read_files.clear()
    for _ in range(2):
        monkeypatch.setattr(artifacts, "_TAKEN", {})
        assert store.faults(name) == []
        large = [path for path in read_files if path.stat().st_size > artifacts.SMALL]
        assert large == [] and read_files
    (own.store / "verified" / f"{name}.json").unlink()
    monkeypatch.setattr(artifacts, "_TAKEN", {})
    assert store.faults(name) == []
    assert [path.name for path in read_files if path.stat().st_size > artifacts.SMALL] == ["model.safetensors"]
    assert (own.store / "verified" / f"{name}.json").exists()


def test_an_artifact_of_before_has_no_seal_and_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.begin("one-1")
    (folder / "a.txt").write_text("a")
    manifest = store.publish("one-1", {"made": {"at": "2026-01-01T00:00:00+00:00"}}).manifest
    artifacts.write_json(store.path("one-1") / MANIFEST, {**manifest, "format": 1})
    assert store.faults("one-1") == []
    artifacts.write_json(store.path("one-1") / MANIFEST, manifest)
    assert store.faults("one-1") == [
        "one-1/manifest.json: the manifest of one-1 is not whole: it is not as it was written"
    ]


# a run's folder


def test_what_is_damaged_in_a_runs_folder_is_written_anew(own: Lab) -> None:
    folder, draw = run_folder(own.root), random.Random(2)
    assert own.run(RUN, outputs=own.root).code == 0
    names = ["run.json", "result.json", "graph.json", "metrics.jsonl", "student/README.md"]
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        for harm in ("flip", "cut", "remove"):
            file = folder / name
            if harm == "flip":
                flip(file, draw.randrange(len(before[name])), draw.randrange(8))
            elif harm == "cut":
                cut(file, draw.randrange(len(before[name])))
            elif name == "run.json" or name == "result.json":
                continue  # a folder without them is that of a run that has not finished
            else:
                file.unlink()
            done = own.run(RUN, outputs=own.root)
            assert done.code == 0, done.err
            assert f"damaged: {file}: " in done.out and done.stages("run") == []
            if name == "result.json":  # it tells how long the last command took
                assert read(file)["scores"] == json.loads(before[name])["scores"]
                before[name] = file.read_bytes()
            assert {other: (folder / other).read_bytes() for other in names} == before, (name, harm)


def test_a_finished_job_of_a_sweep_is_looked_at(own: Lab, tmp_path: Path) -> None:
    line = f"-m {RUN} seed=5,6 name=two"
    assert own.run(line, outputs=tmp_path).code == 0
    job = next(folder for folder in (tmp_path / "sweeps" / "two").glob("*/") if "seed=6" in folder.name)
    artifact = Store(own.store).path(read(job / "result.json")["artifacts"]["evaluate_student"])
    again = own.run(line, outputs=tmp_path)
    assert again.code == 0 and again.out.count("finished before") == 2
    for file in (job / "metrics.jsonl", artifact / MANIFEST):
        before = file.read_bytes()
        flip(file, 3)
        mended = own.run(line, outputs=tmp_path)
        assert mended.code == 0 and mended.out.count("finished before") == 1, mended.out + mended.err
        assert file.name == MANIFEST or file.read_bytes() == before
        assert Store(own.store).verify() == []


def test_a_result_or_student_that_is_damaged_is_not_shown(own: Lab, tmp_path: Path) -> None:
    folder = run_folder(own.root)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"premise": "a", "hypothesis": "b"}) + "\n")
    assert own.command(f"predict {folder} --input {rows} --threads 1").code == 0
    weights = folder / "student" / "model.safetensors"
    whole = weights.read_bytes()
    flip(weights, len(whole) - 3)
    refused = own.command(f"predict {folder} --input {rows} --threads 1")
    assert refused.code == 2 and "student/model.safetensors is not as it was written" in refused.err
    replaced(weights, whole)
    predictions = own.store / read(folder / "result.json")["artifacts"]["evaluate_student"] / "predictions-dev.jsonl"
    for file in (folder / "result.json", predictions):
        whole = file.read_bytes()
        flip(file, whole.rindex(b"1"))
        told = own.command(f"compare {folder} --out {tmp_path / 'compared'}")
        said = told.err if told.code else (tmp_path / "compared" / "compare.json").read_text()
        assert "it is not as it was written" in said or "an artifact is damaged" in said, (file, told)
        replaced(file, whole)


# work in progress


def test_training_does_not_go_on_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def trained(folder: Path, stop: int = -1) -> tuple[list[str], bytes]:
        """(what was told, the log) of a training that is broken off after so many steps."""
        context = toy.context(folder, seconds=0.0)
        told: list[str] = []
        context.note = told.append
        context.seen = 0  # type: ignore[attr-defined]

        def count() -> None:
            nonlocal stop
            stop -= 1
            if stop == 0:
                raise Stop

        model = toy.Words()
        with suppress(Stop):
            loop.fit(
                model,
                toy.label_step,
                toy.batches(),
                toy.plan(eval_steps=2, select=("dev", "score")),
                context,
                evaluate=lambda: {"dev": {"score": -float(model.table.detach().abs().sum())}},
                after_step=count,
            )
        return told, (folder / "metrics.jsonl").read_bytes()

    _, log = trained(tmp_path / "whole")
    trained(tmp_path / "stopped", 7)
    (folder,) = checkpoint.checkpoints(tmp_path / "stopped" / "work")
    best = list(folder.parent.glob("best-*.safetensors"))
    files = [*sorted(folder.iterdir()), *best, tmp_path / "stopped" / "metrics.jsonl"]
    assert best and len(files) >= 6
    whole = {file: file.read_bytes() for file in files}
    told, found = trained(tmp_path / "stopped")
    assert found == log and told == ["continues at step 6 of 10"]
    for file in files:
        for harm in (lambda file: flip(file, 5), lambda file: cut(file, 6)):
            shutil.rmtree(folder.parent)
            folder.mkdir(parents=True)
            for other, content in whole.items():
                other.write_bytes(content)
            harm(file)
            told, found = trained(tmp_path / "stopped")
            assert found == log, file
            assert [line.startswith(f"damaged: {folder.name}/") for line in told] == [True], (file, told)


def test_lines_that_a_stage_kept_are_taken_up_to_the_damage(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    lines = [sealed({"number": number, "text": "é" * number}) for number in range(3)]
    text = "".join(lines).encode()
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1
        file.write_bytes(changed)
        found, damage = kept_lines(file)
        assert [one["number"] for one in found] == list(range(len(found))) and len(found) < 3
        assert file.read_bytes() == "".join(lines[: len(found)]).encode()
        assert damage is not None or place == len(text) - 1  # without its end the last line is one that was torn
    assert kept_lines(tmp_path / "absent") == ([], None)


def test_a_changed_answer_in_a_journal_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    answer = Completion(text="yes", finish_reason="stop", prompt_tokens=3, completion_tokens=1, model="m")
    with Journal(file) as journal:
        for key in ("a", "b"):
            journal.add(key, {"prompt": "Is it?"}, answer)
    text = file.read_bytes()
    first = text.index(b"\n") + 1
    assert damaged_lines(file) == []
    for place in range(first):
        changed = bytearray(text)
        changed[place] ^= 1
        file.write_bytes(changed)
        try:
            with Journal(file) as journal:
                assert journal.get("a") == answer  # only the name of the checksum is another: as of an older version
        except StoreError as error:
            assert "line 1" in str(error.where) and "paid for" in str(error.fix)
            assert damaged_lines(file)
    file.write_bytes(text.replace(b'"yes"', b'"yet"', 1))
    with pytest.raises(StoreError, match="not as it was written"), Journal(file):
        pass
