"""What README and docs/ say is so: commands compose, links and files are there, tables have the true defaults."""

from __future__ import annotations

import ast
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kdlab import catalog, cli, compose, config
from kdlab.report.expected import text as spelled
from lab import composed, families, parts

ROOT = Path(cli.__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
FAMILY = {
    "distillation": config.Distillation,
    "reasoning": config.Reasoning,
    "crosslingual": config.Crosslingual,
}
EXAMPLES = ("written", "glossary", "born_again", "balanced", "data/")  # of docs/extending.md, which makes them
STANDS_FOR = {  # names in capitals in the paths of the tables of switches
    "STAGE": ("teacher", "student", "layers", "logits", "joint"),
    "LAYERS": ("layers", "joint"),
    "SIDE": ("teacher", "student"),
}


def written(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# commands ----------------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]


def commands(page: Path) -> Iterator[Command]:
    """The `kdlab ...` lines of code blocks, without what stands behind them, and those between backticks."""
    body = written(page)
    blocks = re.findall(r"^```\w*\n(.*?)^```", body, flags=re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", body, flags=re.M | re.S)
    lines = [re.split(r"\s{2,}", line)[0] for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += [re.sub(r"\s*\n\s*", " ", code) for code in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        if re.match(r"kdlab [a-z]", line) and "..." not in line and not re.search(r"\b(VERB|GROUP)\b", line):
            yield Command(named(page), tuple(shlex.split(line)[1:]))


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
COMPOSED = list(
    {one.words: one for one in reversed(COMMANDS) if one.words[0] in ("train", "plan") and len(one.words) > 1}.values()
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `my` of the examples, with every file that the pages show."""
    root = tmp_path_factory.mktemp("docs")
    for page in PAGES:
        for name, content in re.findall(
            r"`(my/[\w/]+\.yaml)`[^`]*```yaml\n(.*?)^```", written(page), flags=re.M | re.S
        ):
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    return root


def in_short(words: list[str]) -> list[str]:
    """A sweep with all its methods, which share words, and the first of everything else."""
    if not {"-m", "--multirun"} & set(words):
        return words
    found = {word.partition("=")[0]: word for word in words}
    if "experiment" in found and "--config-dir" not in found:
        for part in parts("experiment", found["experiment"].partition("=")[2]):
            swept = part.get("hydra", {}).get("sweeper", {}).get("params", {})
            found = {key: f"{key}={value}" for key, value in swept.items()} | found
    for key, word in found.items():
        options = re.split(r",(?![^\[{(]*[\]})])", word.partition("=")[2])
        if key in ("task", "model"):
            assert set(options) <= {name for name, _ in catalog.entries(key)}, word
        if key != "method" and len(options) > 1:
            found[key] = f"{key}={options[0]}"
    return list(found.values())


@pytest.mark.parametrize("command", COMPOSED, ids=lambda one: f"{one.page}: {' '.join(one.words)}"[:90])
def test_a_command_composes(command: Command, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = list(command.words[1:])
    if any(example in word for word in words for example in EXAMPLES):
        pytest.skip("of an example that is not part of kdlab")
    if {"--cfg", "--help"} & set(words):
        return
    monkeypatch.chdir(own)
    assert compose.jobs(in_short(words)).jobs


def test_there_are_commands_on_every_page() -> None:
    """Else the pattern above has missed them."""
    pages = {one.page for one in COMMANDS if one.words[0] in ("train", "plan")}
    assert {"README.md", "docs/first-run.md", "docs/sweeps.md", "docs/extending.md"} <= pages
    assert {f"docs/{family}.md" for family in FAMILY} <= pages and len(COMPOSED) > 40


@cache
def help_of(verb: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    return out.getvalue()


@pytest.mark.parametrize("verb", sorted({one.words[0] for one in COMMANDS} - {"train", "plan"}))
def test_a_verb_has_its_options(verb: str) -> None:
    assert verb in cli.VERBS
    flags = {
        word.partition("=")[0] for one in COMMANDS if one.words[0] == verb for word in one.words if word[:2] == "--"
    }
    if flags:
        assert not [flag for flag in sorted(flags) if flag not in help_of(verb)]


# links and files ---------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", written(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", written(page), flags=re.M | re.S)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_are_there(page: Path) -> None:
    code = re.findall(r"`((?:kdlab|conf|tests|scripts|benchmarks|docs)/[\w./*-]*)`", written(page))
    for name in code:
        if not any(example in name for example in EXAMPLES) and "NAME" not in name:
            assert list(ROOT.glob(name.rstrip("/"))), name


def test_pages_know_of_each_other() -> None:
    index = written(DOCS / "index.md")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_pictures_are_small() -> None:
    pictures = [file for file in (DOCS / "gallery").iterdir() if file.is_file()]
    assert pictures and {file.suffix for file in pictures} <= {".svg", ".png"}
    assert max(file.stat().st_size for file in pictures) < 150_000
    assert sum(file.stat().st_size for file in pictures) < 1_000_000
    shown = written(DOCS / "gallery.md")
    assert all(f"(gallery/{file.name})" in shown for file in pictures)


# what there is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["method", "task", "model"])
def test_the_page_of_its_family_names_every_option(group: str) -> None:
    """A task in several languages has its home there, though layer distillation takes it too."""
    pages = {family: written(DOCS / f"{family}.md") for family in FAMILY}
    for name, _ in catalog.entries(group):
        own = families(group, name)
        homes = {"crosslingual"} if group == "task" and "crosslingual" in own else own
        told = [family for family, page in pages.items() if f"`{name}`" in page or f"{group}/{name}.yaml" in page]
        assert set(told) & homes, f"{group}={name} is on no page of {sorted(homes)}"


# tables of switches ------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    page: str
    path: str
    default: str
    values: str


def rows(page: Path) -> Iterator[Row]:
    """Of the tables headed `| switch | default | values | ... |`."""
    inside = False
    for line in written(page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[:3] == ["switch", "default", "values"]:
            inside = True
        elif inside and set(line) - set("|-: "):
            yield Row(named(page), cells[0].strip("`"), cells[1].strip("`"), cells[2])


def meant(path: str, kind: type[Any]) -> list[str]:
    """The paths that one with a name in capitals stands for, of those that the family has."""
    found = [path]
    for name, ones in STANDS_FOR.items():
        if name in path:
            found = [path.replace(name, one) for one in ones]
    return [one for one in found if kind is config.Distillation or ".layers" not in one]


def field_of(path: str, method: type[Any]) -> Field[Any]:
    """The field of a dotted path below `Run`; `supplement` is a task, and may be null."""
    node: Any = method if path.startswith("method.") else config.Run
    names = path.split(".")[1:] if path.startswith("method.") else path.split(".")
    for number, name in enumerate(names):
        found = next(item for item in fields(node) if item.name == name)
        if number == len(names) - 1:
            return found
        sections = {"supplement": config.Task, "task": config.Task, "model": config.Model}
        value = sections.get(name) or default_of(found)
        node = value if isinstance(value, type) else type(value)
    raise AssertionError(path)


def default_of(item: Field[Any]) -> Any:
    return item.default if item.default is not MISSING else item.default_factory()  # type: ignore[operator]


TABLES = [(row, FAMILY[page.stem]) for page in PAGES if page.stem in FAMILY for row in rows(page)]


@pytest.mark.parametrize(("row", "method"), TABLES, ids=[f"{row.page}: {row.path}" for row, _ in TABLES])
def test_a_switch_has_its_default_and_its_values(row: Row, method: type[Any]) -> None:
    for path in meant(row.path, method):
        item = field_of(path, method)
        value = default_of(item)
        assert row.default == (spelled(value) if value != {} else "{}"), path
        allowed = item.metadata.get("choices")
        if allowed:
            assert set(re.findall(r"`([^`]+)`", row.values)) == set(allowed), path
        else:
            assert "`" not in row.values, path


@pytest.mark.parametrize("family", FAMILY)
def test_every_switch_of_a_family_is_in_its_tables(family: str) -> None:
    method = FAMILY[family]
    told = {path for row, kind in TABLES if kind is method for path in meant(row.path, method)}
    assert {path for path in leaves(method, "method") if path not in ("method.name", "method.family")} <= told


def leaves(kind: type[Any], path: str) -> Iterator[str]:
    for item in fields(kind):
        value = None if item.default is config.REQUIRED else default_of(item)
        if is_dataclass(value) and not isinstance(value, type):
            yield from leaves(type(value), f"{path}.{item.name}")
        else:
            yield f"{path}.{item.name}"


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("distillation", "method=cr_ild task=glue/rte"),
        ("reasoning", "method=ft_cot"),
        ("crosslingual", "method=musc task=multilingual/tweet_sentiment"),
    ],
)
def test_what_all_presets_start_from(family: str, line: str) -> None:
    run = composed(line)
    found = re.findall(
        r"^\| `(\w+)` \| `task\.epochs\.(\w+)` \| `([^`]+)` \| `(\d+)` \|$", written(DOCS / f"{family}.md"), re.M
    )
    assert found
    for stage, epochs, lr, batch_size in found:
        fit = getattr(run.method, stage)
        assert (fit.epochs, fit.lr, fit.batch_size) == (getattr(run.task.epochs, epochs), float(lr), int(batch_size))


# code in the pages -------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    return [code for page in PAGES for code in re.findall(r"^```python\n(.*?)^```", written(page), flags=re.M | re.S)]


@pytest.mark.parametrize("code", modules(), ids=range(len(modules())))
def test_code_uses_what_is_there(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdlab"):
            there = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(there, name.name) or name.name == "BornAgain", f"{node.module}.{name.name}"
