"""Imports go downwards, heavy libraries load late, and nothing in the package runs code that it was sent."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import kdlab

ROOT = Path(kdlab.__file__).parent
CONF = ROOT.parent / "conf"
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): file
    for file in sorted(ROOT.rglob("*.py"))
}
# What every part may use; they know nothing of the rest.
SETTLED = {"errors", "showing", "config", "context", "integrity", "interruption"}
WORKERS = (
    "data",
    "models",
    "objectives",
    "engine",
    "rationales",
    "translators",
)  # what the stages put together; none knows another

# What a part may import besides itself and SETTLED. A part is a folder, or a module at the top.
ALLOWED = {
    "showing": set(),
    "integrity": set(),
    "interruption": set(),
    "errors": {"showing"},
    "config": set(),
    "context": {"config"},
    "graph": {"errors"},
    "artifacts": {"errors"},
    "provenance": set(),
    "checks": {"config", "checks_reasoning", "checks_crosslingual"},
    "checks_crosslingual": {"config"},
    "checks_reasoning": {"config"},
    "catalog": set(),
    "objectives": set(),
    "models": {"hub"},
    "data": {"hub"},
    "engine": set(),
    "rationales": set(),
    "translators": set(),
    "hub": {"artifacts"},
    "pins": {"artifacts", "graph", "hub"},
    "supplies": {"artifacts", "data", "graph", "hub", "pins", "runner"},
    "stages": {*WORKERS, "artifacts"},
    "methods": {
        "graph",
        "pins",
        "models",
        "objectives",
        "data",
        "rationales",
        "translators",
    },  # of the last five what is light
    "runner": {"graph", "artifacts", "provenance", "engine"},  # engine: late, and only in distributed jobs
    "rundir": {"artifacts", "graph"},
    "runs": {"artifacts", "errors"},
    "study": {"artifacts", "checks", "graph", "runs"},
    "report": {"artifacts", "graph", "provenance", "runner", "engine", "study", "data", "rationales", "runs", "checks"},
    "evaluation": {
        "artifacts",
        "graph",
        "methods",
        "models",
        "pins",
        "provenance",
        "report",
        "runner",
        "runs",
        "supplies",
    },
    "prediction": {"data", "engine", "methods", "runs", "stages"},
    "execution": {"artifacts", "engine", "graph", "report", "rundir", "runner"},
    "workers": {"errors"},
    "sweep": {"artifacts", "report", "rundir", "workers"},
    "compose": {"catalog", "checks"},
    "completion": {"catalog", "compose"},
    "tune": {"artifacts", "checks", "compose", "report"},
    "export": {"artifacts", "hub", "models", "provenance", "report", "runs", "stages"},
    "doctor": {"artifacts", "engine", "translators"},
}
DOORS = {"cli", "verbs", "__main__", ""}  # the command line may use everything
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "wandb",
    "sklearn",
    "scipy",
    "pyarrow",
    "tokenizers",
    "matplotlib",
    "openai",
    "tenacity",
    "peft",
    "optuna",
    "statsmodels",
}
HYDRA = {"compose", "completion"}  # modules that may import Hydra and OmegaConf


def imports(file: Path, *, late: bool = True) -> Iterator[str]:
    """Names of the modules that a file imports; late: also inside functions. Type-only imports don't count."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if not late and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(file.read_text(encoding="utf-8")))


def part(module: str) -> str:
    return module.split(".")[0]


def own_imports(file: Path, *, late: bool = True) -> set[str]:
    """The modules of kdlab that a file imports, without the package's name."""
    found = set()
    for name in imports(file, late=late):
        if name.split(".")[0] == "kdlab":
            inner = name.removeprefix("kdlab").lstrip(".")
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found - {""}


def outside_imports(file: Path, *, late: bool = True) -> set[str]:
    return {name.split(".")[0] for name in imports(file, late=late)} - {"kdlab", "__future__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    here = part(module)
    if here in DOORS:
        return
    assert here in ALLOWED, "a new part of the package: say here what it may import"
    used = {part(name) for name in own_imports(MODULES[module])} - {here}
    allowed = set(ALLOWED[here]) if here in SETTLED else ALLOWED[here] | SETTLED
    assert used <= allowed, f"{module} imports {sorted(used - allowed)}"


def test_the_allowances_are_needed() -> None:
    for here, allowed in ALLOWED.items():
        used = {part(name) for module in MODULES if part(module) == here for name in own_imports(MODULES[module])}
        assert allowed <= used | SETTLED, f"{here} no longer imports {sorted(allowed - used)}"


def test_graph_and_artifacts_know_nothing_but_errors() -> None:
    standard = set(sys.stdlib_module_names)
    for module in ("graph", "artifacts"):
        assert own_imports(MODULES[module]) <= {"errors", "integrity"}
        assert outside_imports(MODULES[module], late=False) <= standard
        assert outside_imports(MODULES[module]) - standard <= {"filelock"}


@pytest.mark.parametrize("worker", WORKERS)
def test_the_workers_do_not_know_each_other(worker: str) -> None:
    for module, file in MODULES.items():
        if part(module) == worker:
            assert not {part(name) for name in own_imports(file)} & (set(WORKERS) - {worker}), module


def test_objectives_are_pure_numerics_only() -> None:
    standard = set(sys.stdlib_module_names)
    for module, file in MODULES.items():
        if part(module) == "objectives":
            assert outside_imports(file) - standard <= {"torch", "numpy", "ot"}, module
            assert own_imports(file) <= {"errors"} | {name for name in MODULES if part(name) == "objectives"}


def test_methods_use_only_what_needs_no_torch() -> None:
    for module, file in MODULES.items():
        if part(module) == "methods":
            for name in own_imports(file):
                assert not outside_imports(MODULES[name]) & HEAVY, f"{module} imports {name}"


def test_only_composition_knows_hydra() -> None:
    for module, file in MODULES.items():
        if module not in HYDRA:
            assert not outside_imports(file) & {"hydra", "omegaconf"}, module


@pytest.mark.parametrize(
    "module",
    [
        *("cli", "config", "graph", "artifacts", "catalog", "checks", "compose", "completion", "methods", "pins"),
        *("hub", "supplies", "runner", "rundir", "provenance", "tune", "export", "export.folder", "export.hub"),
        *("report.graph", "report.store", "report.summary", "report.result", "report.card", "report.samples"),
        *("evaluation", "prediction", "data.rows", "data.glue", "report.evaluation", "report.leaderboard"),
        *("study", "report.study", "report.plots", "report.diff", "report.charts", "report.page"),
        *("report.compare", "report.statistics", "report.tables"),
    ],
)
def test_nothing_heavy_loads_with(module: str) -> None:
    code = f"import sys, kdlab.{module}; print(*[name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *sorted(HEAVY)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_plan_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from kdlab.cli import main; names = sys.argv[1:];"
        "code = main(['plan', 'task=demo/nli', 'model=tiny']); assert code == 0;"
        "code = main(['list', 'methods']); assert code == 0;"
        "print('loaded', *[name for name in names if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted(HEAVY)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "loaded"
    assert list(tmp_path.iterdir()) == []


# what must not be there


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_code_from_a_file(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    loaders = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = {name for name in imports(MODULES[module]) if name.split(".")[0] in loaders}
    assert found <= {"pickle.UnpicklingError"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert name not in ("eval", "exec", "os.system"), f"{module}:{node.lineno}"
        assert keywords.get("trust_remote_code", "False") == "False", f"{module}:{node.lineno}"
        assert keywords.get("shell", "False") == "False", f"{module}:{node.lineno}"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"{module}:{node.lineno}"
        assert name != "torch.save", f"{module}:{node.lineno}: tensors are saved as safetensors"
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", f"{module}:{node.lineno}"


def test_no_drawer_for_leftovers() -> None:
    parts = {word for module in MODULES for word in module.split(".")}
    assert not parts & {"utils", "util", "common", "helpers", "misc"}


def test_there_is_one_training_loop() -> None:
    stepping = {
        module
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr == "step" and not node.args
    }
    assert stepping == {"engine.loop"}


YAML = sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize("file", YAML, ids=lambda file: file.relative_to(CONF).as_posix())
def test_every_configuration_file(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "_target_" not in text
    assert isinstance(yaml.safe_load(text), dict)
    if file.relative_to(CONF).parts[0] == "hydra":
        return
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    assert re.match(r"# \S.{9,}", lines[0]), "the first line says what the file is"


def test_every_experiment_only_overrides() -> None:
    for file in (CONF / "experiment").rglob("*.yaml"):
        text, _, _ = file.read_text(encoding="utf-8").partition("\nexpected:\n")  # the papers' numbers may be many
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert text.startswith("# @package _global_") and len(lines) <= 35, file
