from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdlab import catalog
from kdlab.completion import complete, script


def options(group: str) -> list[str]:
    return [f"{group}={name}" for name, _ in catalog.entries(group)]


def test_verbs_come_first() -> None:
    assert complete("kdlab tr") == ["train"]
    assert {"train", "plan", "doctor", "--version"} <= set(complete("kdlab "))


def test_names_after_list_and_store() -> None:
    assert complete("kdlab list m") == ["methods", "models"]
    assert complete("kdlab list t") == ["tasks", "translators"]
    assert complete("kdlab store ") == ["ls", "prune", "verify"]
    assert complete("kdlab store ls ") == []
    assert complete("kdlab nonsense ") == []


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_groups_and_keys(verb: str) -> None:
    found = complete(f"kdlab {verb} ")
    assert {"method=", "method.", "task=", "experiment=", "debug=", "seed=", "precision="} <= set(found)
    assert not [item for item in found if item.startswith(("hydra", "schema"))]
    assert complete(f"kdlab {verb} met") == ["method.", "method="]
    assert complete(f"kdlab {verb} hardware.th") == ["hardware.threads="]


def test_options_of_a_group_include_nested_ones_and_leave_out_shared_parts() -> None:
    assert complete("kdlab train method=") == options("method")
    assert complete("kdlab train task=glue/r") == ["task=glue/rte"]
    assert complete("kdlab train +task=demo/n") == ["+task=demo/nli"]


def test_options_of_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("# My task\nname: mine\n")
    line = f"kdlab train --config-dir {tmp_path} task=mi"
    assert complete(line) == ["task=mine"]
    assert complete(f"kdlab train --config-dir {tmp_path} se") == ["seed=", "select_on="]


def test_the_last_of_a_sweeps_values_is_completed() -> None:
    assert complete("kdlab train -m task=glue/rte,glue/col") == ["task=glue/rte,glue/cola"]


def test_words_that_a_key_may_take() -> None:
    assert complete("kdlab train precision=") == ["precision=bf16", "precision=fp16", "precision=fp32"]
    assert complete("kdlab train hardware.device=c") == ["hardware.device=cpu", "hardware.device=cuda"]
    assert complete("kdlab train task.pad_to_max=") == ["task.pad_to_max=false", "task.pad_to_max=true"]
    assert complete("kdlab train seed=") == ["seed=42"]
    assert complete("kdlab train nonsense=") == []


def test_what_is_on_the_line_counts() -> None:
    assert complete("kdlab train task=glue/cola task.metric=m") == ["task.metric=macro_f1", "task.metric=mcc"]
    assert complete("kdlab train seed=9 seed=") == ["seed=9"]
    assert complete("kdlab train -m seed=1,2 hardware.th") == ["hardware.threads="]


def test_a_broken_word_does_not_hide_the_keys() -> None:
    assert complete("kdlab train method=nonsense see") == ["seed="]
    assert complete("kdlab train se=[ed see") == ["seed="]


def test_flags() -> None:
    assert complete("kdlab train --c") == ["--cfg", "--config-dir"]
    assert complete("kdlab train --cfg j") == ["job"]
    assert complete("kdlab train --config-dir ") == []


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(KeyError):
        script("fish")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("kdlab st", ["store "]),
        ("kdlab train task=glue/r", ["glue/rte "]),
        ("kdlab train meth", ["method.", "method="]),
        ("kdlab train nonsense=", []),
    ],
)
def test_bash_asks_and_offers(tmp_path: Path, line: str, replies: list[str]) -> None:
    known = {reply: None for reply in complete(line)}
    program = tmp_path / "kdlab"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{reply}'\n" for reply in known))
    program.chmod(0o755)
    asked = f"{script('bash')}\nCOMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({line})\n"
    asked += '_kdlab\n[ ${#COMPREPLY[@]} -eq 0 ] || printf "%s\\n" "${COMPREPLY[@]}"'
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", asked], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == replies


def test_torch_is_not_imported() -> None:
    code = "from kdlab.completion import complete; complete('kdlab train s'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "wandb"} & set(done.stdout.split())
