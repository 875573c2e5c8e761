"""What `kdlab list` shows comes from the yaml files themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdlab import catalog


@pytest.mark.parametrize(
    ("group", "some"),
    [
        ("methods", {"ft", "kd", "cr_ild", "cr_ild_official"}),
        ("tasks", {"demo/nli", "glue/rte", "glue/stsb"}),
        ("models", {"tiny", "minilm_6_to_3", "bert_base_to_6"}),
        ("rationales", {"rules", "recorded", "openai", "local"}),
        ("translators", {"rules", "recorded", "apertium", "hf", "m2m100", "nllb", "marian"}),
        ("hardware", {"auto", "cpu", "gpu", "multi_gpu"}),
        ("experiments", {"cpu/short", "crild/glue_truncated"}),
    ],
)
def test_every_entry_has_a_description(group: str, some: set[str]) -> None:
    entries = dict(catalog.entries(group))
    assert some <= set(entries)
    assert list(entries) == sorted(entries)
    for name, text in entries.items():
        assert text and "@package" not in text, name


def test_shared_parts_are_no_choice() -> None:
    assert not [name for name, _ in catalog.entries("methods") if "base" in name.split("/")]


def test_hydras_own_group_names_work_too() -> None:
    assert catalog.entries("method") == catalog.entries("methods")
    assert ("off", "The run as it is configured") in catalog.entries("debug")


def test_a_folder_of_the_user_adds_entries(tmp_path: Path) -> None:
    (tmp_path / "task" / "mine").mkdir(parents=True)
    (tmp_path / "task" / "mine" / "reviews.yaml").write_text("# @package task\n#\n# My reviews\nname: x\n", "utf-8")
    (tmp_path / "task" / "bare.yaml").write_text("name: x\n", "utf-8")
    (tmp_path / "task" / "latin.yaml").write_bytes(b"# caf\xe9\nname: x\n")
    entries = dict(catalog.entries("tasks", tmp_path))
    assert entries["latin"] == "caf\ufffd"
    assert entries["mine/reviews"] == "My reviews"
    assert entries["bare"] == ""
    assert "glue/rte" in entries
    assert catalog.entries("models", tmp_path) == catalog.entries("models")


def test_a_group_without_files_is_empty() -> None:
    assert catalog.entries("nothing") == []


def test_hydra_is_not_imported() -> None:
    code = "import sys; from kdlab import catalog; catalog.entries('tasks'); print('hydra' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
