"""`kdlab plan -m`: a sweep as one graph, what is shared counted once, what is finished already."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from lab import TINY, Lab, composed

ROOT = Path(__file__).parents[1]
LINE = f"{TINY} method=ft,kd,cr_ild seed={{}}".replace("debug=fast", "task.rows=200")


def row(out: str, label: str) -> list[str]:
    """The cells of the only line that begins so; they stand apart by two spaces or more."""
    (line,) = [line for line in out.splitlines() if line.strip().startswith(f"{label}  ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.fixture(scope="module")
def six(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    store = tmp_path_factory.mktemp("plan") / "absent"
    done = lab.command(f"plan -m {LINE.format('1,2,3,4,5,6')} store={store}")
    assert done.code == 0, done.err
    assert not store.exists()
    return done.out


def steps(stage: str) -> int:
    run = composed(LINE.format(1).replace("ft,kd,cr_ild", "cr_ild"))
    fit = getattr(run.method, stage)
    return int(fit.epochs * math.ceil(round(200 * (1 - run.task.heldout)) / fit.batch_size))


def test_what_jobs_share_is_told_with_their_number(six: str) -> None:
    assert six.startswith("18 jobs; what they share is listed once")
    assert row(six, "prepare")[1:3] == ["run", "18 jobs"]
    assert row(six, "teacher")[1:4] == ["run", "12 jobs", str(steps("teacher"))]  # of kd and cr_ild
    assert row(six, "vet")[1:3] == ["run", "12 jobs"]


def test_stages_alike_are_added_up(six: str) -> None:
    assert row(six, "logits x 12")[1:4] == ["run", "1 job", str(12 * steps("logits"))]
    assert row(six, "layers x 6")[1:4] == ["run", "1 job", str(6 * steps("layers"))]
    assert row(six, "evaluate_student x 18")[1:3] == ["run", "1 job"]


def test_the_sums_say_what_sharing_saves(six: str) -> None:
    student = steps("logits")  # fine-tuning alone takes as many
    once = steps("teacher") + 6 * student + 12 * steps("logits") + 6 * steps("layers")
    apart = once + 11 * steps("teacher")

    def told(value: int) -> str:
        return f"~{value}" if value < 10_000 else f"~{value / 1000:.1f} k"

    found = {label: row(six, label) for label in ("to run", "without sharing")}
    # 5 of the data, 5 of the teacher; logits, evaluation, figures of 12; 6 layers; student, evaluation, figures of 6
    assert found["to run"][1] == "69 of 69"
    # ft: 4 of the data, 3 of its own; kd: 5 more of the teacher; cr_ild: its layers, too
    assert found["without sharing"][1] == str(6 * 7 + 6 * 12 + 6 * 13)
    assert found["to run"][2] == told(once) and found["without sharing"][2] == told(apart)


def test_every_stage_on_demand(lab: Lab, tmp_path: Path) -> None:
    done = lab.command(f"plan --stages -m {LINE.format('1,2,3,4,5,6')} store={tmp_path}")
    labels = [line.split()[0] for line in done.out.splitlines() if "  run  " in line]
    assert labels.count("logits") == 12 and labels.count("layers") == 6 and labels.count("teacher") == 1
    assert " x " not in done.out


def test_what_is_finished_is_told(lab: Lab, tmp_path: Path) -> None:
    line = f"-m {TINY} method=ft,kd method.weak_teacher=warn seed="
    own = f"store={tmp_path / 'artifacts'} outputs={tmp_path}"  # nothing that other tests have finished
    assert lab.command(f"train {line}1 {own}").code == 0
    done = lab.command(f"plan {line}1,2,3 {own}")
    assert done.out.startswith("6 jobs, 2 of them finished; ")
    assert row(done.out, "evaluate_student x 6")[1:3] == ["2/6 cached", "1 job"]
    assert row(done.out, "teacher")[1] == "cached"
    assert row(done.out, "finished already")[1].startswith("1")
    whole = lab.command(f"plan {line}1 {own}")
    assert whole.out.startswith("2 jobs, 2 of them finished; ") and row(whole.out, "to run")[1].startswith("0 of ")
    assert "without sharing" not in whole.out


def test_a_large_sweep_loads_nothing_heavy() -> None:
    words = "plan -m task=demo/nli model=tiny method=ft,kd,pkd,tinybert,minilm_v2,bert_emd,l_ild,cr_ild seed=1,2,3"
    code = (
        f"import sys; from kdlab.cli import main; code = main({words.split()!r});"
        "print(code, [name for name in ('torch', 'transformers', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("24 jobs") and done.stdout.splitlines()[-1] == "0 []"
