"""From words on the command line to checked, typed runs: with `kdlab.cli`, the only place that imports Hydra.

Hydra stops at its first error, in its own words. Here every word is parsed, composed and applied on its own,
so that all problems of all jobs of a sweep come out at once, each once, with the path, what was given, and
what is allowed. After `jobs` no `DictConfig` exists in the package.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from decimal import Decimal
from functools import cache
from hashlib import sha256
from pathlib import Path
from string import Template
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, cast, get_args, get_origin, get_type_hints

import yaml
from hydra import version
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra._internal.grammar import grammar_functions as grammar
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf, flag_override, open_dict
from omegaconf.errors import OmegaConfBaseException

from kdlab import catalog, checks, config
from kdlab.errors import ConfigError, KdlabError, bug, disk_errors
from kdlab.showing import redact

CONFIG_NAME = "train"
SCHEMAS = {
    "run": config.Run,
    "task": config.Task,
    "model": config.Model,
    "hardware": config.Hardware,
    "tracking": config.Tracking,
    "debug": config.Debug,
    "distillation": config.Distillation,
    "reasoning": config.Reasoning,
    "crosslingual": config.Crosslingual,
    "rationales": config.Rationales,
    "translator": config.Translator,
}
LAUNCHERS = {  # options of hydra/launcher that come with a plugin, and what installs it
    "joblib": "pip install 'kdlab[launchers]'",
    "submitit_local": "pip install 'kdlab[launchers]'",
    "submitit_slurm": "pip install 'kdlab[launchers]'",
    "ray": "pip install hydra-ray-launcher",
    "ray_aws": "pip install hydra-ray-launcher",
    "rq": "pip install hydra-rq-launcher",
}
PASSED_ON = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i")
INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
NOT_IN_NAMES = (*config.PLACEMENT, "hydra")  # keys that can't change a number
LONGEST_NAME = 120
LONGEST_WORD = 200  # characters that a message shows of a word that can't be read
MOST = 1000  # values of a range in a search
BASIC = "basic"  # Hydra's own launcher
UNREADABLE = (HydraException, OmegaConfBaseException, ValueError, RecursionError)  # what a yaml file can raise
KEY = re.compile(r"[~+]*[\w-]+([./][\w-]+)*(@[\w.:-]+)?(=|$)")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a command line."""

    run: config.Run
    overrides: list[str]  # as given, for this job
    name: str  # fit for a folder: "method=kd,seed=1,task=glue_rte"


@dataclass(frozen=True, kw_only=True)
class Composition:
    """What a command line asks for."""

    jobs: list[Job]
    multirun: bool
    config_dir: Path | None


def jobs(argv: Sequence[str]) -> Composition:
    """Compose every job of a command line (without the verb); one ConfigError has the problems of all."""
    given = _parse(argv)
    composer = _Composer(given.config_dir)
    result = composer.expand(given.overrides, multirun=given.multirun)
    if composer.problems:
        raise ConfigError(list(composer.problems))
    return Composition(jobs=result, multirun=given.multirun, config_dir=given.config_dir)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where one key of a search may lie: among options, or among numbers from low to high, both included.

    A range has its numbers as options too, in rising order, a `step` apart.
    """

    key: str
    word: str  # as given
    kind: Literal["choice", "range", "float", "int"]
    options: tuple[str, ...] = ()  # as words of the command line
    low: float = 0.0
    high: float = 0.0
    step: float = 1.0
    log: bool = False

    def spell(self, value: str | float) -> str:
        """The word that sets the key to a value: "method.logits.lr=0.0003"."""
        if self.kind == "range":
            value = min(self.options, key=lambda option: abs(float(option) - float(value)))
        return f"{self.key}={round(float(value)) if self.kind == 'int' else value}"

    def ends(self) -> tuple[str, ...]:
        """Words for what has to be looked at before a search: every option, or both ends."""
        return tuple(self.spell(value) for value in self.options or (self.low, self.high))


class Search:
    """What a command line with search spaces asks for: many runs, of which each is made when its values are known."""

    def __init__(self, composer: _Composer, words: dict[str, str], spaces: list[Space], flags: list[str]) -> None:
        self._composer, self._words = composer, words  # word by key, in order; of a space as it was given
        self.spaces = spaces
        self.flags = flags  # of the command line, for a command that goes on with it
        self.probes: list[Job] = []  # each space's options or ends, the others at their first

    @property
    def fixed(self) -> list[str]:
        """The words that all runs share."""
        keys = {space.key for space in self.spaces}
        return [word for key, word in self._words.items() if key not in keys]

    @property
    def told(self) -> list[str]:
        """Of those, sorted, the ones that can change a number; the seed is told by whoever gives it to `job`."""
        return sorted(word for word in self.fixed if _head(word) not in (*NOT_IN_NAMES, "seed"))

    def job(self, values: Mapping[str, str], *, name: str = "", seed: int | None = None) -> Job:
        """The run with these words in place of the spaces (by key), without those that it has no use for.

        Raises ConfigError if they don't go together.
        """
        words = self._words | dict(values) | ({} if seed is None else {"seed": f"seed={seed}"})
        vain: list[dict[str, str]] = []
        self._composer.problems.clear()
        job = self._composer.job(list(words.values()), vain)
        if job is not None and vain[0]:
            read = {word: self._composer.read(word) for word in words.values()}
            kept = [word for word, one in read.items() if one is None or not vain[0].keys() >= set(_paths(one))]
            job = self._composer.job(kept, [])
        if job is None:
            raise ConfigError(list(self._composer.problems))
        return replace(job, name=name or job.name)


def search(argv: Sequence[str]) -> Search:
    """Read a command line (without the verb) in which some values are search spaces.

    Spaces are written as Hydra writes sweeps: method=kd,cr_ild and choice(1,2,4); range(1,5); interval(0,1), and
    log(1e-5,1e-3) for tag(log, interval(1e-5,1e-3)). An interval of a key that takes whole numbers has only those.
    One ConfigError has the problems of all words, of every option, and of both ends of every interval.
    """
    given = _parse(argv)
    composer = _Composer(given.config_dir)
    for flag in ("multirun", "help", "hydra_help", "cfg", "info", "resolve", "package"):
        if getattr(given, flag):
            composer.problem(f"--{flag.replace('_', '-')}: is not for a search")
    parsed = [one for one in (composer.read(word) for word in given.overrides) if one is not None]
    words = {one.get_key_element(): one.input_line or "" for one in parsed}
    latest = {one.get_key_element(): one for one in parsed}
    found = [composer.space(one) for one in latest.values() if one.is_sweep_override()]
    spaces = [space for space in found if space is not None]
    flags = [] if given.config_dir is None else ["--config-dir", str(given.config_dir)]
    result = Search(composer, words, spaces, flags)
    unread = {one.get_key_element(): "" for one in latest.values() if one.is_sweep_override()}
    first = words | unread | {space.key: space.ends()[0] for space in spaces}
    vain: list[dict[str, str]] = []
    probes = [first, *(first | {space.key: word} for space in spaces for word in space.ends()[1:])]
    made = [composer.job(list(probe.values()), vain) for probe in probes]
    composer.tell_vain(vain)
    if composer.problems:
        ends = {end: space.word for space in spaces if not space.options for end in space.ends()}
        once: dict[tuple[str, str], str] = {}  # what is wrong with a key is wrong at both ends of its interval
        for problem in composer.problems:
            word, _, reason = problem.partition(": ")
            once.setdefault((ends.get(word, word), reason), problem)
        raise ConfigError(list(once.values()))
    result.probes = [job for job in made if job is not None]
    return result


def further(
    recorded: Mapping[str, Any],
    words: Sequence[str],
    *,
    open_to: Sequence[str],
    check: Callable[[config.Run, list[str]], Iterable[str]],
    config_dir: Path | None = None,
) -> config.Run:
    """The configuration of a run that has been, with further words on top; recorded: `config` of its run.json.

    open_to: the keys that may change, each with all below it; of a group, its option replaces all that the run has
    there. check: what is wrong with the result, given the keys that the words set. One ConfigError has all problems.
    """
    composer = _Composer(config_dir)
    cfg = _recorded(recorded)
    schema = _Schema(cfg, tuple(composer.groups))
    overrides = [one for one in map(composer.read, words) if one is not None]
    values: list[Override] = []
    for override in overrides:
        word, path = override.input_line or "", override.key_or_group
        if override.is_sweep_override():
            composer.problem(f"{word}: one value only; a list is written {path}=[{_after(word)}]")
        elif composer.is_group(override) and (wrong := composer.wrong_option(override)):
            composer.problem(wrong)
        elif not any(f"{path}.".startswith(f"{key}.") for key in open_to) and (
            composer.is_group(override) or schema.knows(path)
        ):
            composer.problem(f"{word}: the run is finished, so this would have no effect; open: {', '.join(open_to)}")
        elif composer.is_group(override):
            cfg[path] = composer.compose_task((_spelled(override),))[path]
        else:
            values.append(override)
    for path in _other_sources(values):
        OmegaConf.update(cfg, path, [] if path.endswith(".columns") else None)
    paths = [path for one in values if composer.apply(one, cfg, schema) for path in _paths(one)]
    run = composer.convert(cfg, schema)
    for text in () if run is None else check(run, paths):
        composer.problem(text)
    if run is None or composer.problems:
        raise ConfigError(list(composer.problems))
    return run


def _recorded(values: Mapping[str, Any]) -> DictConfig:
    """A run's configuration as run.json has it, under its schema."""
    try:
        if "${" in json.dumps(values):  # of nobody's making but a text editor's, and could name the environment
            raise ValueError("it has a reference (${...})")
        cfg = cast(DictConfig, OmegaConf.structured(config.Run))
        cfg.method = OmegaConf.structured(SCHEMAS[values["method"]["family"]])
        cfg.merge_with(OmegaConf.create(dict(values)))
    except (*UNREADABLE, TypeError, KeyError) as error:
        raise KdlabError(
            f"the run's configuration can't be read: {_in_short(error)}",
            where="run.json",
            fix="it was written by another version of kdlab, or changed: run it again, under another name",
        ) from error
    return cfg


def launch(
    argv: Sequence[str],
    function: Callable[[config.Run, list[str]], int],
    composition: Composition | None = None,
) -> list[int]:
    """Call function(run, overrides) for every job, here and one after the other; return the exit codes in order.

    A job that fails stops no other: see `guarded`. `composition`: what `jobs` made of the same words, if it is at hand.
    """
    composition = composition or jobs(argv)
    chosen = _launcher_name(_parse(argv))
    if not composition.multirun and chosen != BASIC:
        raise ConfigError([f"hydra/launcher={chosen}: launches the jobs of a sweep; add -m"])
    return [guarded(function, job) for job in composition.jobs]


def guarded(function: Callable[[config.Run, list[str]], int], job: Job) -> int:
    """The job's exit code: of an error, which is shown, 2 if it is a KdlabError, else 1.

    Among processes that torchrun started errors pass: those that no longer agree must not start the next job.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return function(job.run, job.overrides)
    return tolerant(function, job)


def tolerant(function: Callable[[config.Run, list[str]], int], job: Job) -> int:
    """`guarded` for a process whose end is another's business; of those that train together, the first one speaks."""
    try:
        with disk_errors("the run", Path("."), named=True):
            return function(job.run, job.overrides)
    except KdlabError as error:
        if os.environ.get("KDLAB_DEBUG"):
            traceback.print_exc()
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("KDLAB_DEBUG"):
            traceback.print_exc()
        print(f"error: {bug(error)}", file=sys.stderr)
        return 1


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Who takes the jobs of a sweep to where they run: hydra/launcher, and hydra.launcher."""

    name: str
    settings: dict[str, Any]


def launcher(argv: Sequence[str]) -> Launcher:
    """The launcher that a command line chooses."""
    given = _parse(argv)
    name = _launcher_name(given)
    if name == BASIC:
        return Launcher(name=BASIC, settings={})
    with _hydra(given) as (_, cfg):
        settings = OmegaConf.to_container(cfg.hydra.launcher, resolve=False)
    return Launcher(name=name, settings=cast(dict[str, Any], settings))


def launch_elsewhere(
    argv: Sequence[str], call: Callable[[int], int], numbers: Sequence[int], folder: Path
) -> dict[int, int | str]:
    """Have the launcher plugin call call(number) for each number, where it takes it; `call` must be importable there.

    folder: of the sweep, for what the plugin writes (.submitit/). Returns each call's exit code, or in words why there
    is none: the process that was to make the call died, or its machine did.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobStatus
    from hydra.types import HydraContext

    found: dict[int, int | str] = {}
    with _hydra(_parse(argv)) as (loader, cfg):
        with open_dict(cfg):
            cfg.hydra.sweep.dir = str(folder)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        plugin = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=_Call(call, list(numbers)), config=cfg
        )
        try:
            with _patient():
                returns = plugin.launch([[] for _ in numbers], initial_job_idx=0)  # `call` knows what was composed
        except Exception as error:  # of joblib: a process of its pool died, and it has let go of all others
            return dict.fromkeys(numbers, _in_short(error))
    for number, result in zip(numbers, returns, strict=True):
        if isinstance(result, str):
            found[number] = result
        elif result.status == JobStatus.COMPLETED:
            found[number] = int(result.return_value)
        else:
            found[number] = str(result._return_value)
    return found


def hydra_passthrough(argv: Sequence[str]) -> bool:
    """Answer --help, --cfg, --info and --hydra-help, and say whether there was one of them."""
    if not any(word in PASSED_ON or word.startswith(("--cfg=", "--info=")) for word in argv):
        return False
    given = _parse(argv)
    composer = _Composer(given.config_dir)
    if given.help:
        print(_help(composer, given))
        return True
    if given.cfg and given.multirun:
        raise ConfigError(["--cfg: shows one job; leave -m and the sweep out"])
    if given.resolve and not given.cfg:
        raise ConfigError(["--resolve: belongs to --cfg"])
    composer.expand(given.overrides, multirun=False)
    if composer.problems:
        raise ConfigError(list(composer.problems))
    if given.cfg == "job":
        cfg = composer.node(given.overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        node = OmegaConf.select(cfg, given.package) if given.package else cfg
        if node is None:
            raise ConfigError([f"--package {given.package}: no such section"])
        print(redact(OmegaConf.to_yaml(node, resolve=given.resolve)), end="")
    else:
        _ask_hydra(given)
    return True


def register() -> None:
    """Make the dataclasses known to Hydra as schema/<name>."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(group="schema", name=name, node=schema, provider="kdlab")


class _Call:
    """What a launcher plugin calls for each job, wherever it takes it; picklable."""

    def __init__(self, call: Callable[[int], int], numbers: list[int]) -> None:
        self.call, self.numbers = call, numbers

    def __call__(self, _: DictConfig) -> int:
        from hydra.core.hydra_config import HydraConfig

        return self.call(self.numbers[HydraConfig.get().job.num])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([message])


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    given, overrides = parser.parse_known_args(list(argv))
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    problems = []
    for word in overrides:
        if word.startswith("-"):
            name = word.lstrip("-")
            hint = f"; did you mean {name}?" if "=" in name else checks.suggest(word, flags)
            problems.append(f"{word}: unknown flag{hint} (flags: -m, {', '.join(flags)})")
    if given.config_dir is not None and not given.config_dir.is_dir():
        problems.append(f"--config-dir {given.config_dir}: no such folder")
    if problems:
        raise ConfigError(problems)
    given.overrides = overrides
    return given


class _Original:
    """A configuration that is never changed, to make copies of: three times as fast as `deepcopy` of its nodes."""

    def __init__(self, cfg: Container) -> None:
        self.cfg = _copied(cfg, None)

    def copy(self) -> Any:
        return _copied(self.cfg, None)


def _copied(node: Any, parent: Any) -> Any:
    """A node, its metadata and what is below it; values themselves are never changed and need no copy."""
    new = object.__new__(type(node))
    new.__dict__.update(node.__dict__)
    metadata = copy.copy(node._metadata)
    if metadata.flags is not None:
        metadata.flags = dict(metadata.flags)
    if hasattr(metadata, "resolver_cache"):
        metadata.resolver_cache = copy.deepcopy(metadata.resolver_cache)
    new.__dict__.update(_metadata=metadata, _parent=parent, _flags_cache=None)
    content = node.__dict__.get("_content")
    if isinstance(content, dict):
        new.__dict__["_content"] = {key: _copied(inner, new) for key, inner in content.items()}
    elif isinstance(content, list):
        new.__dict__["_content"] = [_copied(inner, new) for inner in content]
    return new


class _Copies(CachingConfigRepository):
    """Files read once, handed out as copies: Hydra's merging changes what it is given."""

    def __init__(self, files: CachingConfigRepository) -> None:
        self.delegate = files
        self.cache = {}
        self.read: dict[str, tuple[ConfigResult, _Original]] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.read:
            loaded = self.delegate.load_config(config_path)
            if loaded is None:
                return None
            self.read[config_path] = loaded, _Original(loaded.config)
        loaded, original = self.read[config_path]
        return replace(loaded, config=original.copy())


@contextmanager
def _no_needless_maps() -> Iterator[None]:
    """While Hydra lists the files of a composition: no table of all choices for lists without a ${...} in them.

    It makes one for every file, which takes three quarters of its time.
    """
    original, empty = defaults_list._create_interpolation_map, OmegaConf.create()

    def create(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
        if any("${" in str(one) for one in defaults):
            return original(overrides, defaults, self_added)
        return empty

    defaults_list._create_interpolation_map = create  # type: ignore[assignment]
    try:
        yield
    finally:
        defaults_list._create_interpolation_map = original


class _Sources:
    """The yaml files, and what has been composed of them."""

    def __init__(self, config_dir: Path | None) -> None:
        version.setbase("1.3")
        setup_globals()
        register()
        search_path = create_config_search_path(catalog.config_root())
        if config_dir is not None:
            anchor = SearchPathQuery(provider="schema")
            search_path.prepend("command-line", f"file://{config_dir.resolve()}", anchor)
        self.loader = ConfigLoaderImpl(search_path)
        self.loader.ensure_main_config_source_available()
        self.repo = CachingConfigRepository(self.loader.repository)
        self.copies = _Copies(self.repo)
        self.composed: dict[tuple[str, ...], _Original] = {}
        self.halves: dict[tuple[Any, ...], _Original] = {}  # what precedes the method, by its files
        main = self.repo.load_config(CONFIG_NAME)
        assert main is not None and main.defaults_list is not None
        groups = [
            item
            for item in main.defaults_list
            if isinstance(item, GroupDefault) and item.group and not item.group.startswith(("/", "hydra/"))
        ]
        self.groups = {
            str(item.group): item.value if isinstance(item.value, str) else None
            for item in groups
            if item.package is None
        }
        self.places = [f"{item.group}@{item.package}" for item in groups if item.package is not None]


@cache
def _package_sources() -> _Sources:
    """The files of the package, which don't change while a process lives."""
    return _Sources(None)


class _Composer:
    """Composes command lines and collects what is wrong with them."""

    def __init__(self, config_dir: Path | None) -> None:
        sources = _package_sources() if config_dir is None else _Sources(config_dir)
        self.loader, self.repo, self.composed = sources.loader, sources.repo, sources.composed
        self.copies = sources.copies
        self.groups = sources.groups  # and the option that train.yaml takes
        self.places = sources.places  # where a group's options may go besides: task@supplement
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.parser.functions.register("log", lambda start, end: grammar.tag("log", grammar.interval(start, end)))
        self.problems: dict[str, None] = {}  # an ordered set
        self.count = 0  # of problems, repeated ones too
        self.parsed: dict[str, Override | None] = {}
        self.bare: dict[tuple[str, ...], _Original] = {}
        self.halves = sources.halves
        self.seeded: dict[tuple[str, ...], bool] = {}  # whether a choice refers to the seed
        self.listed: dict[str, list[str]] = {}  # options of groups
        self.is_folder: dict[str, bool] = {}  # whether a key is that of a group
        self.damaged: dict[tuple[str, ...], _Original] = {}  # choices whose yaml files have problems of their own

    def problem(self, text: str) -> None:
        self.count += 1
        self.problems.setdefault(text)

    # words

    def expand(self, words: Sequence[str], *, multirun: bool) -> list[Job]:
        """All jobs that compose; what doesn't is in `problems`."""
        parsed = [one for one in (self.read(word) for word in words) if one is not None]
        if multirun:
            parsed = [*self.sweep_of_presets(parsed), *parsed]
        axes: dict[str, list[str]] = {}
        for override in parsed:
            axes[override.get_key_element()] = self.values(override, multirun=multirun)
        found: dict[tuple[str, ...], Job] = {}
        vain: list[dict[str, str]] = []
        alike: dict[tuple[str, ...], Job] = {}  # by the words that are not the seed
        for combination in itertools.product(*axes.values()):
            others = tuple(word for word in combination if not word.startswith("seed="))
            job = self.with_seed(alike[others], combination) if others in alike else None
            job = job or self.job(combination, vain)
            if job is not None:
                found.setdefault(combination, job)
                alike.setdefault(others, job)
        self.tell_vain(vain)
        return _distinct(list(found.values()))

    def tell_vain(self, vain: Sequence[Mapping[str, str]]) -> None:
        """The words that no job has a use for; what only some can't use is how a sweep is written."""
        for path, text in (vain[0] if vain else {}).items():
            if all(path in other for other in vain):
                self.problem(text)

    def space(self, override: Override) -> Space | None:
        """What a word lets a search choose from; None, and a problem, if that can't be told."""
        word, key, value = override.input_line or "", override.get_key_element(), override.value()
        log = "log" in getattr(value, "tags", ())
        if override.is_hydra_override():
            self.problem(f"{word}: hydra's own settings can't be searched")
        elif isinstance(value, IntervalSweep):
            low, high = float(value.start or 0), float(value.end or 0)
            whole = isinstance(value.start, int) or self.takes_whole(override.key_or_group)
            kind: Literal["int", "float"] = "int" if whole else "float"
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                self.problem(f"{word}: an interval goes from a number to a larger one")
            elif log and low <= 0:
                self.problem(f"{word}: on a logarithmic scale both ends are above 0")
            elif whole and not (low.is_integer() and high.is_integer()):
                self.problem(f"{word}: {key} takes whole numbers: give whole ends")
            else:
                return Space(key=key, word=word, kind=kind, low=low, high=high, log=log)
        elif log:
            self.problem(f"{word}: a logarithmic scale is for an interval: {key}=log(1e-5,1e-3)")
        else:
            options = self.options_of(override)
            if options is not None and isinstance(value, RangeSweep):
                options.sort(key=float)
                low, step = float(options[0]), abs(float(value.step))
                high = float(Decimal(str(low)) + Decimal(str(step)) * (len(options) - 1))  # a whole number of steps
                return Space(key=key, word=word, kind="range", options=tuple(options), low=low, high=high, step=step)
            if options is not None:
                return Space(key=key, word=word, kind="choice", options=tuple(options))
        return None

    def options_of(self, override: Override) -> list[str] | None:
        """The options of a choice or a range, each once; None, and a problem, if there are none or too many."""
        word, value = override.input_line or "", override.value()
        try:
            span = abs((value.stop or 0) - (value.start or 0)) if isinstance(value, RangeSweep) else 0
            if isinstance(value, RangeSweep) and value.step and span > MOST * abs(value.step):
                self.problem(f"{word}: more than {MOST} values; take interval(START,END)")
                return None
            options = list(dict.fromkeys(override.sweep_string_iterator()))
        except (HydraException, ValueError, ArithmeticError):
            options = []
        if not options:
            self.problem(f"{word}: no value at all")
        return options or None

    def takes_whole(self, path: str) -> bool:
        """Whether a key takes whole numbers, in the family of methods that has it."""
        schema = _Schema(OmegaConf.create(), tuple(self.groups))
        for schema.method in (config.Distillation, config.Reasoning, config.Crosslingual):
            if schema.knows(path):
                return _bare(schema.find(path)[0]) is int
        return False

    def read(self, word: str) -> Override | None:
        """Parse one word; None, and a problem, if it can't be parsed."""
        if word not in self.parsed:
            self.parsed[word] = self.parse(word)
        return self.parsed[word]

    def parse(self, word: str) -> Override | None:
        shown = word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..."
        if not KEY.match(word) or ("=" not in word and not word.startswith("~")):
            self.problem(f"{shown}: is not of the form KEY=VALUE{self.guess(word)}")
            return None
        try:
            return self.parser.parse_override(word)
        except (HydraException, ValueError, RecursionError):  # a number of too many digits, lists in lists in lists
            self.problem(
                f"{shown}: the value can't be read; a list is written [a,b], a section {{key: value}}, "
                "and a text with spaces or special characters in two kinds of quotes: 'key=\"a value\"'"
            )
        return None

    def guess(self, word: str) -> str:
        """For a lone word: the option or the group that it may mean."""
        for group in self.groups:
            if word in self.options(group):
                return f"; did you mean {group}={word}?"
        head, colon, value = word.partition(":")
        if colon and head in self.groups:
            return f"; did you mean {head}={value}?"
        return checks.suggest(word, self.groups)

    def sweep_of_presets(self, parsed: Sequence[Override]) -> list[Override]:
        """hydra.sweeper.params of the chosen experiment, but for keys that the command line gives."""
        plain = tuple(
            _spelled(one)
            for one in parsed
            if not one.is_sweep_override() and self.is_group(one) and not self.wrong_option(one)
        )
        params = OmegaConf.select(self.compose(tuple(filter(None, plain))), "hydra.sweeper.params") or {}
        keys = {one.get_key_element() for one in parsed}
        found = (self.read(f"{key}={value}") for key, value in params.items() if key not in keys)
        return [one for one in found if one is not None]

    def values(self, override: Override, *, multirun: bool) -> list[str]:
        """The words that one word stands for: itself, or the values of its axis."""
        word = override.input_line or ""
        if not override.is_sweep_override():
            return [word]
        key = override.get_key_element()
        if not override.is_discrete_sweep():
            self.problem(f"{word}: is for a search (`kdlab tune`); for a sweep list the values: {key}=1,2,3")
        elif not multirun:
            self.problem(f"{word}: several values make a sweep: add -m; a list is written {key}=[{_after(word)}]")
        elif override.is_hydra_override():
            self.problem(f"{word}: hydra's own settings can't be swept")
        else:
            found = list(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
            if found:
                return found
            self.problem(f"{word}: no value at all")
        return [""]  # leaves the key out, so that the rest can still be looked at

    # one job

    def job(self, combination: Sequence[str], vain: list[dict[str, str]]) -> Job | None:
        """Compose one combination of words; None if something is wrong with it."""
        before = self.count
        words = [word for word in combination if word]
        overrides = [one for one in (self.read(word) for word in words) if one is not None]
        whole, known_method = True, True
        choices = []
        for override in overrides:
            if not self.is_group(override):
                continue
            wrong = self.wrong_option(override)
            if wrong:
                self.problem(wrong)
                whole = False
                known_method = known_method and override.key_or_group != "method"
            else:
                choices.append(_spelled(override))
        chosen = tuple(choice for choice in choices if choice)
        cfg = self.compose_task(chosen)
        whole = whole and chosen not in self.damaged
        schema = _Schema(cfg, tuple(self.groups))
        paths = []
        for path in _other_sources(overrides):
            if schema.knows(path) and cfg[path.split(".")[0]] is not None:
                OmegaConf.update(cfg, path, [] if path.endswith(".columns") else None)
        for override in overrides:
            if self.is_group(override):
                continue
            if override.is_hydra_override():
                self.check_hydra(override, chosen)
            elif not known_method and override.key_or_group.startswith("method."):
                continue  # which keys there are depends on the method
            elif self.apply(override, cfg, schema):
                paths += _paths(override)
        run = self.convert(cfg, schema)
        if run is None:
            return None
        if whole:
            for text in checks.check(run):
                self.problem(text)
            vain.append(checks.idle_paths(run, paths))
        if self.count > before:
            return None
        return Job(run=run, overrides=words, name=_name(words))

    def with_seed(self, job: Job, combination: Sequence[str]) -> Job | None:
        """The job of these words, which differ from another job's in their seed only; None: compose it."""
        words = [word for word in combination if word]
        overrides = [one for one in map(self.read, words) if one is not None]
        (seed,) = [one.value() for one in overrides if one.key_or_group == "seed"] or [None]
        if type(seed) is not int or self.names_seed(overrides):
            return None
        run = replace(job.run, seed=seed)
        if checks.check(run):
            return None
        return Job(run=run, overrides=words, name=_name(words))

    def names_seed(self, overrides: Sequence[Override]) -> bool:
        """Whether the words, or the yaml files that they choose, refer to the seed: ${seed}."""
        choices = tuple(choice for one in overrides if self.is_group(one) and (choice := _spelled(one)))
        if choices not in self.seeded:
            self.compose_task(choices)
        return self.seeded[choices] or any("${" in (one.input_line or "") for one in overrides)

    def node(self, words: Sequence[str]) -> DictConfig:
        """The composed configuration of a command line that has no problem, references not filled in."""
        overrides = [self.parser.parse_override(word) for word in words]
        choices = [_spelled(one) for one in overrides if self.is_group(one)]
        cfg = self.compose(tuple(choice for choice in choices if choice))
        values = [one for one in overrides if not self.is_group(one)]
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg

    # groups

    def is_group(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self.is_folder:
            self.is_folder[key] = self.repo.group_exists(key)
        return not isinstance(override.value(), dict) and self.is_folder[key]

    def options(self, group: str) -> list[str]:
        """All options below a group: rte of task/glue is glue/rte of task."""
        if group not in self.listed:
            self.listed[group] = self.list_options(group)
        return self.listed[group]

    def list_options(self, group: str) -> list[str]:
        found = list(self.repo.get_group_options(group, ObjectType.CONFIG))
        for inner in self.repo.get_group_options(group, ObjectType.GROUP):
            if inner != "base":
                found += [f"{inner}/{name}" for name in self.options(f"{group}/{inner}")]
        return sorted(found)

    def wrong_option(self, override: Override) -> str | None:
        """Why this choice of an option can't be made."""
        group, word, value = override.key_or_group, override.input_line or "", override.value()
        top = group.split("/")[0]
        if override.package is not None and f"{group}@{override.package}" not in self.places:
            hint = checks.suggest(f"{group}@{override.package}", self.places)
            return f"{word}: a group has no place of that name{hint}; write {group}=OPTION"
        if override.package is not None and value is None:
            return None
        if override.is_delete():
            return None if group == "experiment" else f"{word}: a run needs its {group}; choose with {group}=OPTION"
        if group not in self.groups and top in self.groups:
            return f"{word}: did you mean {top}={group[len(top) + 1 :]}/{value}?"
        if group == "schema":
            return f"{word}: schemas are chosen by the yaml files, not on the command line"
        if (override.is_add() or override.is_force_add()) and group in self.groups:
            place = group if override.package is None else f"{group}@{override.package}"
            return f"{word}: {place} is always there; write {place}={value}"
        if value is None and group in self.groups:
            return None if self.groups[group] is None else f"{word}: a run needs its {group}"
        if isinstance(value, list):
            return f"{word}: one option only; for a sweep: -m {group}={','.join(map(str, value))}"
        name = str(value)
        if group == "hydra/launcher" and name in LAUNCHERS and name not in self.options(group):
            return f"{word}: needs a plugin: {LAUNCHERS[name]}"
        if group == "hydra/sweeper" and name != "basic":
            return f"{word}: kdlab expands sweeps itself; allowed: basic"
        allowed = self.options(group)
        if name in allowed:
            return None
        close = checks.suggest(name, allowed) or _same_ending(name, allowed)
        elsewhere = next((other for other in self.groups if other != group and name in self.options(other)), None)
        if elsewhere:
            close = f"; did you mean {elsewhere}={name}?"
        return f"{word}: unknown option{close}; allowed: {', '.join(allowed)}"

    def compose(self, choices: tuple[str, ...]) -> DictConfig:
        """A copy of the configuration of these options; what is wrong in their files is left out, and a problem."""
        found = self.damaged.get(choices) or self.composed.get(choices)
        if found is not None:
            return cast(DictConfig, found.copy())
        before = self.count
        cfg = self.merged(choices)
        (self.damaged if self.count > before else self.composed)[choices] = _Original(cfg)
        return cfg

    def compose_task(self, choices: tuple[str, ...]) -> DictConfig:
        """A copy of the composed configuration without Hydra's own part, for one job to change."""
        if choices in self.bare:
            return cast(DictConfig, self.bare[choices].copy())
        cfg = self.compose(choices)
        with open_dict(cfg):
            cfg.pop("hydra", None)
        self.seeded[choices] = any("seed" in text for _, text in _references(cfg))
        self.bare[choices] = _Original(cfg)
        return cfg

    def merged(self, choices: tuple[str, ...]) -> DictConfig:
        overrides = self.parser.parse_overrides(list(choices))
        try:
            defaults = self.defaults(overrides)
        except (*UNREADABLE, yaml.YAMLError, AssertionError):
            defaults = self.defaults_without_culprits(overrides)
        cfg = self.merge(defaults)
        OmegaConf.set_struct(cfg, True)
        return cfg

    def defaults(self, overrides: list[Override]) -> DefaultsList:
        with _no_needless_maps():
            return create_defaults_list(self.repo, CONFIG_NAME, overrides, prepend_hydra=True, skip_missing=False)

    def defaults_without_culprits(self, overrides: list[Override]) -> DefaultsList:
        kept: list[Override] = []
        for override in overrides:
            try:
                self.defaults([*kept, override])
                kept.append(override)
            except yaml.YAMLError as error:
                self.problem(f"{self.file(override)}: is not YAML: {_yaml_words(error)}")
            except MissingConfigException as error:
                self.problem(f"{self.file(override)}: {_absent_words(error)}")
            except (*UNREADABLE, AssertionError) as error:
                self.problem(f"{self.file(override)}: {self.defaults_words(error)}")
        return self.defaults(kept)

    def defaults_words(self, error: BaseException) -> str:
        """What is wrong with a list of defaults."""
        if isinstance(error, RecursionError):
            return "its defaults lead back to itself, or its values are lists in lists without end"
        text = _in_short(error)
        group = re.search(r"Could not override '([^']+)'", text)
        if group:
            name = group.group(1)
            return (
                f"overrides a group '{name}', which there is not{checks.suggest(name, self.groups)}; "
                f"groups: {', '.join(self.groups)}"
            )
        return text

    def file(self, override: Override) -> str:
        return f"{override.key_or_group}/{override.value()}.yaml"

    def merge(self, defaults: DefaultsList) -> DictConfig:
        """Merge the files in order; one that doesn't fit value by value, so that every wrong one is found."""
        files = defaults.defaults
        middle = next((n for n, one in enumerate(files) if (one.config_path or "").startswith("method/")), 0)
        early = tuple((one.config_path, one.package, one.primary) for one in files[:middle])
        if early not in self.halves:
            before = self.count
            half = self.merge_onto(OmegaConf.create(), files[:middle])
            if self.count > before:
                return self.merge_onto(half, files[middle:])
            self.halves[early] = _Original(half)
        return self.merge_onto(self.halves[early].copy(), files[middle:])

    def merge_onto(self, cfg: DictConfig, files: Sequence[ResultDefault]) -> DictConfig:
        for default in files:
            file = f"{default.config_path}.yaml"
            try:
                loaded = self.loader._load_single_config(default, self.copies).config
            except UNREADABLE as error:
                self.problem(f"{file}: {_in_short(error)}")
                continue
            try:
                with flag_override(cfg, "no_deepcopy_set_nodes", True):
                    cfg.merge_with(loaded)
                continue
            except (OmegaConfBaseException, ValueError):
                schema = _Schema(cfg, tuple(self.groups))
            top = default.package or ""
            if top and top.split(".")[0] in self.groups and not schema.knows(top):
                self.problem(f"{file}: must start with the line '# @package _global_'")
                continue
            for path, value in _leaves(loaded):
                try:
                    cfg.merge_with(_nested(path, value))
                except (OmegaConfBaseException, ValueError) as error:
                    self.problem(f"{file}: {schema.explain(path, value, error)}")
        return cfg

    # values

    def apply(self, override: Override, cfg: DictConfig, schema: _Schema) -> bool:
        """Set one value, or say why it can't be set."""
        word, path = override.input_line or "", override.key_or_group
        if override.package is not None or "/" in path:
            self.problem(
                f"{word}: there is no group '{path}'{checks.suggest(path, self.groups)}; "
                f"groups: {', '.join(self.groups)}"
            )
            return False
        if override.is_delete() and schema.knows(path):
            self.problem(f"{word}: {path} is part of every run and can't be taken away; set it to another value")
            return False
        if not schema.knows(path):
            self.problem(f"{word}: {schema.unknown(path)}")
            return False
        top = path.split(".")[0]
        place = next((place for place in self.places if place.endswith(f"@{top}")), None)
        if place is not None and cfg[top] is None:
            self.problem(f"{word}: there is no {top}; choose one with {place}=OPTION")
            return False
        free = schema.free(path)
        try:
            if free and not override.is_delete():
                inner = override.value()
                for part in reversed(path[len(free) + 1 :].split(".")) if path != free else ():
                    inner = {part: inner}
                OmegaConf.update(cfg, free, inner, merge=True, force_add=True)
            else:
                ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
            return True
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
            self.problem(schema.explain(path, override.value(), cause, word))
        return False

    def check_hydra(self, override: Override, choices: tuple[str, ...]) -> None:
        """Look whether Hydra has this setting of its own (hydra.launcher.n_jobs)."""
        if wrong := _imports(override.key_or_group):
            self.problem(f"{override.input_line}: {wrong}")
            return
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], self.compose(choices))
        except (HydraException, OmegaConfBaseException, ValueError):
            self.problem(f"{override.input_line}: no such setting of hydra, or not with this value")

    def convert(self, cfg: DictConfig, schema: _Schema) -> config.Run | None:
        """The typed run, once nothing is missing, unknown or unresolved."""
        for path in _strays(cfg):
            self.problem(f"{path}: {schema.unknown(path)}")
        broken = False
        for path, raw in _references(cfg):
            try:
                OmegaConf.select(cfg, path)
            except (OmegaConfBaseException, RecursionError) as error:
                self.problem(f"{path}={raw}: {_reference_words(raw, error, schema.words(path))}")
                broken = True
        if broken:
            return None
        for path in sorted(path for path, inner in _ends(cfg) if inner._is_missing()):
            self.problem(f"{path}: must be given; it takes {schema.words(path)}")
            stand_in = schema.stand_in(path)
            if stand_in is None:
                return None
            OmegaConf.update(cfg, path, stand_in)
        try:
            return cast(config.Run, OmegaConf.to_object(cfg))
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            path = getattr(error, "full_key", None) or ""
            self.problem(schema.explain(path, OmegaConf.select(cfg, path) if path else "", error))
            return None


class _Schema:
    """The tree of dataclasses below a composed configuration: which keys there are and what they take."""

    def __init__(self, cfg: DictConfig, groups: tuple[str, ...]) -> None:
        method = OmegaConf.get_type(cfg, "method") if "method" in cfg else None
        self.method = method if isinstance(method, type) and is_dataclass(method) else config.Distillation
        self.groups = groups

    def find(self, path: str) -> tuple[Any, dict[str, Any], list[str]]:
        """(type, metadata of the field, keys below) of a path; else KeyError(parent, its keys, bad key)."""
        node: Any = config.Run
        metadata: dict[str, Any] = {}
        seen: list[str] = []
        for part in re.sub(r"\[([^\]]*)\]", r".\1", path).split("."):
            node = _bare(node)
            if is_dataclass(node):
                hints, known = self.hints(node), {item.name: item for item in fields(node)}
                if part not in known:
                    raise KeyError(".".join(seen), list(known), part)
                node, metadata = hints[part], dict(known[part].metadata)
            elif get_origin(node) is dict:
                node, metadata = get_args(node)[1], {}
            elif get_origin(node) is list:
                node = get_args(node)[0]
            elif node is not Any:
                raise KeyError(".".join(seen), [], part)
            seen.append(part)
        inner = _bare(node)
        return node, metadata, [item.name for item in fields(inner)] if is_dataclass(inner) else []

    def hints(self, node: Any) -> dict[str, Any]:
        hints = _hints(node)
        return {**hints, "method": self.method} if node is config.Run else hints

    def knows(self, path: str) -> bool:
        try:
            self.find(path)
        except KeyError:
            return False
        return True

    def free(self, path: str) -> str | None:
        """The section of free keys that a path goes into: model.student.config of model.student.config.x."""
        parts = path.split(".")
        for count in range(1, len(parts) + 1):
            prefix = ".".join(parts[:count])
            if get_origin(_bare(self.find(prefix)[0])) is dict:
                return prefix
        return None

    def stand_in(self, path: str) -> Any:
        """Something of the right type for a value that is missing, so that the other checks can go on."""
        bare = _bare(self.find(path)[0])
        return "?" if bare is str else ["?"] if get_origin(bare) is list else None

    def paths(self) -> Iterator[str]:
        """Every key that takes a value."""

        def below(node: Any, prefix: str) -> Iterator[str]:
            for name, hint in self.hints(node).items():
                inner = _bare(hint)
                if is_dataclass(inner):
                    yield from below(inner, f"{prefix}{name}.")
                else:
                    yield f"{prefix}{name}"

        return below(config.Run, "")

    def unknown(self, path: str) -> str:
        """'unknown key', with what may have been meant and the keys there are."""
        try:
            self.find(path)
        except KeyError as error:
            parent, known, part = error.args
        else:
            return "is not a key of the configuration"
        if part in ("True", "False"):
            return f"a key {part} (YAML reads on, off, yes and no as true and false: quote the key)"
        if not known:
            return f"unknown key: {parent} takes a value and has no keys below it"
        prefix = f"{parent}." if parent else ""
        rest = path[len(prefix) + len(part) :]
        hint = checks.suggest(part, known)
        if hint:
            found = hint.removeprefix("; did you mean ").removesuffix("?")
            hint = f"; did you mean {prefix}{found}{rest}?"
        else:
            leaf = path.rsplit(".", 1)[-1]
            same = [other for other in self.paths() if other.rsplit(".", 1)[-1] == leaf]
            close = same or [other for other in self.paths() if checks.suggest(leaf, [other.rsplit(".", 1)[-1]], 0.8)]
            hint = f"; did you mean {' or '.join(close[:4])}?" if close else ""
        keys = known if parent else [*self.groups, *(name for name in known if name not in self.groups)]
        where = f"keys of {parent}" if parent else "keys"
        return f"unknown key{hint}; {where}: {', '.join(keys)}"

    def words(self, path: str) -> str:
        """What a key takes, in words."""
        try:
            hint, metadata, keys = self.find(path)
        except KeyError:
            return "a value"
        return _type_words(hint, metadata.get("choices"), keys)

    def explain(self, path: str, value: Any, error: BaseException, word: str | None = None) -> str:
        """Why a value does not fit."""
        where = str(getattr(error, "full_key", None) or path)
        if not self.knows(where):
            lead = word or f"{where}={_shown(value)}"
            return f"{lead}: {self.unknown(where)}"
        if where != path and isinstance(value, dict | DictConfig | list | ListConfig):
            value = _inner(value, where.removeprefix(path).lstrip("."))
        lead = word or f"{where}={_shown(value)}"
        subject = "" if lead.lstrip("+").startswith(f"{where}=") else f"{where} "
        keys = self.find(where)[2]
        if keys:
            return f"{lead}: {subject}is a section, not a value; its keys: {', '.join(keys)}"
        return f"{lead}: {subject}takes {self.words(where)}, not {_shown(value) or 'nothing'}"


@cache
def _hints(node: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(node)


def _bare(hint: Any) -> Any:
    """The type without '| None'."""
    if get_origin(hint) in (Union, UnionType):
        return next(item for item in get_args(hint) if item is not NoneType)
    return hint


def _type_words(hint: Any, allowed: Iterable[str] | None, keys: Sequence[str]) -> str:
    bare = _bare(hint)
    optional = " (or null)" if bare is not hint else ""
    if keys:
        return f"a section with the keys {', '.join(keys)}"
    if allowed:
        one = "a list of" if get_origin(bare) is list else "one of"
        return f"{one} {', '.join(allowed)}"
    if get_origin(bare) is list:
        inner = {str: "words", int: "whole numbers"}.get(get_args(bare)[0], "values")
        return f"a list of {inner}, written [a,b]{optional}".replace("[a,b]", "[0,2]" if inner != "words" else "[a,b]")
    if get_origin(bare) is dict:
        return "a section of keys and values, written {key: value}"
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return f"{simple.get(bare, 'a value')}{optional}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | ListConfig):
        return f"[{','.join(_shown(item) for item in value)}]"
    if isinstance(value, dict | DictConfig):
        return "{" + ", ".join(f"{key!s}: {_shown(item)}" for key, item in value.items()) + "}"
    return str(value)


def _inner(value: Any, path: str) -> Any:
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list | ListConfig) else value[part]
        except (KeyError, ValueError, IndexError, TypeError, OmegaConfBaseException):
            return value
    return value


def _other_sources(overrides: Sequence[Override]) -> Iterator[str]:
    """Keys that a source on the command line replaces: task.source.path=FOLDER takes the place of a yaml's hub."""
    given = {path for override in overrides for path in _paths(override)}
    for root in ("task.source", "supplement.source"):
        chosen = [name for name in ("hub", "path", "demo") if f"{root}.{name}" in given]
        if chosen:
            others = ["hub", "path", "demo"]
            others += [] if "hub" in chosen else ["config", "data_dir", "revision"]
            others += [] if "path" in chosen else ["columns"]
            others += [] if "demo" in chosen else ["language"]
            yield from (f"{root}.{name}" for name in others if f"{root}.{name}" not in given)


def _after(word: str) -> str:
    return word.partition("=")[2]


def _spelled(override: Override) -> str:
    """A choice as Hydra takes it; '' for one that takes nothing (experiment=null)."""
    word = override.input_line or ""
    if override.is_delete() or override.value() is None:
        return ""
    return word


def _paths(override: Override) -> list[str]:
    """The keys that a word sets: those inside, if it gives a section."""

    def below(prefix: str, value: Any) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from below(f"{prefix}.{key}", item)
        else:
            yield prefix

    return list(below(override.key_or_group, override.value()))


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all that isn't a section in a loaded file; a structured node counts as one value."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and len(node) > 0:
        for key, value in node.items_ex(resolve=False):
            path = f"{prefix}.{key!s}" if prefix else str(key)
            if isinstance(value, DictConfig) and not _is_typed(value):
                yield from _leaves(value, path)
            else:
                yield path, value
    elif prefix:
        yield prefix, node


def _nested(path: str, value: Any) -> dict[str, Any]:
    """One value in the sections that its path names; unlike OmegaConf.update, merges into null sections too."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)


def _is_typed(node: DictConfig) -> bool:
    kind = OmegaConf.get_type(node)
    return isinstance(kind, type) and is_dataclass(kind)


def _strays(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys that a dataclass doesn't have ('+key=1' gets past the schema)."""
    kind = OmegaConf.get_type(node)
    known = {item.name for item in fields(kind)} if isinstance(kind, type) and is_dataclass(kind) else None
    for key, value in node.items_ex(resolve=False):
        path = f"{prefix}{key!s}"
        if known is not None and key not in known:
            yield path
        elif isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            yield from _strays(value, f"{path}.")


def _references(node: DictConfig | ListConfig) -> Iterator[tuple[str, str]]:
    """(path, text) of every ${...}."""
    return ((path, str(inner._value())) for path, inner in _ends(node) if inner._is_interpolation())


def _ends(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """(path, node) of all that isn't a section or a list with something in it; ${...} are not filled in."""
    keys: Iterable[Any] = node.keys() if isinstance(node, DictConfig) else range(len(node))
    for key in list(keys):
        path = f"{prefix}.{key}" if prefix else str(key)
        inner = cast(Node, node._get_node(key, validate_access=False))
        if isinstance(inner, DictConfig | ListConfig) and not isinstance(inner._value(), str | NoneType):
            yield from _ends(inner, path)
        else:
            yield path, inner


def _reference_words(raw: str, error: BaseException, wanted: str) -> str:
    text = str(error).splitlines()[0]
    if "Recursive" in text or isinstance(error, RecursionError):
        return "the reference leads back to itself"
    absent = re.search(r"Interpolation key '([^']+)' not found", text)
    if absent:
        return f"there is no key '{absent.group(1)}' to refer to"
    value = re.search(r"Value '(.*)' of type", text)
    if value:
        return f"refers to '{value.group(1)}', but takes {wanted}"
    return f"the reference can't be filled in ({text})"


def _same_ending(name: str, allowed: Sequence[str]) -> str:
    found = [option for option in allowed if option.rsplit("/", 1)[-1] == name.rsplit("/", 1)[-1]]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _in_short(error: BaseException) -> str:
    """Hydra's message without its search path and the names of exceptions."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = list(itertools.takewhile(lambda line: not line.startswith("Config search path"), lines))
    return " ".join(line for line in kept if line) or type(error).__name__


def _absent_words(error: MissingConfigException) -> str:
    """A yaml file names an option that there is not."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    allowed = list(error.options or ())
    listed = f"; allowed: {', '.join(sorted(allowed))}" if allowed else ""
    return f"there is no {group or 'file'} '{name}'{checks.suggest(name, allowed)}{listed}"


def _yaml_words(error: yaml.YAMLError) -> str:
    mark, text = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return f"{text} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(text)


def _head(word: str) -> str:
    """The part of the configuration that a word is about: "hardware" of hardware.threads=1."""
    return re.split(r"[./=]", word.lstrip("~+"), maxsplit=1)[0]


def _name(words: Sequence[str]) -> str:
    """Fit for a folder, and the same whatever other jobs there are: a sweep may be given in parts."""
    kept = sorted(word for word in words if _head(word) not in NOT_IN_NAMES)
    text = _fit_for_a_folder(kept) or "default"
    if len(text) <= LONGEST_NAME:
        return text
    digest = sha256(",".join(kept).encode()).hexdigest()[:8]
    brief = _fit_for_a_folder([re.sub(r"^([~+]*)[\w.@/-]*[./](?=[\w-]+=)", r"\1", word) for word in kept])
    return f"{brief[: LONGEST_NAME - 9]}-{digest}"


def _fit_for_a_folder(words: Sequence[str]) -> str:
    return re.sub(r"[^\w=,.+~-]+", "_", ",".join(words))


def _distinct(found: list[Job]) -> list[Job]:
    """Give jobs whose names fell together their own: what names leave out, where they differ in that, else a mark."""
    names = [job.name for job in found]
    told = []
    for job in found:
        others = [other for other in found if other.name == job.name] if names.count(job.name) > 1 else []
        hidden = [word for word in job.overrides if _head(word) in NOT_IN_NAMES]
        differing = sorted(word for word in hidden if any(word not in other.overrides for other in others))
        told.append(_fit_for_a_folder([job.name, *differing]))
    result = []
    for job, name in zip(found, told, strict=True):
        if told.count(name) > 1 or len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 9]}-{sha256(','.join(job.overrides).encode()).hexdigest()[:8]}"
        result.append(replace(job, name=name))
    return result


def _help(composer: _Composer, given: argparse.Namespace) -> str:
    lines = []
    chosen = composer.defaults([]).overrides.known_choices
    for group in composer.groups:
        lines.append(group)
        described = dict(catalog.entries(group, given.config_dir))
        width = max((len(name) for name in described), default=0)
        for name, text in described.items():
            lines.append(f"  {'*' if name == chosen.get(group) else ' '} {name.ljust(width)}  {text}".rstrip())
    cfg = composer.compose(())
    texts = cfg.hydra.help
    page = Template(str(texts.template)).safe_substitute(APP_CONFIG_GROUPS="\n".join(f"  {line}" for line in lines))
    return page.strip("\n")


def _ask_hydra(given: argparse.Namespace) -> None:
    """--info, --hydra-help and --cfg hydra|all: Hydra's own answers."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra

    search_path = _Composer(given.config_dir).loader.config_search_path
    hydra = Hydra.create_main_hydra2(task_name=CONFIG_NAME, config_search_path=search_path)
    try:
        if given.hydra_help:
            hydra.hydra_help(config_name=CONFIG_NAME, args_parser=get_args_parser(), args=given)
        elif given.cfg:
            hydra.show_cfg(
                config_name=CONFIG_NAME,
                overrides=given.overrides,
                cfg_type=given.cfg,
                package=given.package,
                resolve=given.resolve,
            )
        else:
            hydra.show_info(given.info, config_name=CONFIG_NAME, overrides=given.overrides)
    finally:
        GlobalHydra.instance().clear()


def _launcher_name(given: argparse.Namespace) -> str:
    chosen = [word.partition("=")[2] for word in given.overrides if word.startswith("hydra/launcher=")]
    return chosen[-1] if chosen else BASIC


@contextmanager
def _hydra(given: argparse.Namespace) -> Iterator[tuple[ConfigLoader, DictConfig]]:
    """Hydra's own loader and configuration of a sweep, for its launcher plugins."""
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    search_path = _Composer(given.config_dir).loader.config_search_path
    hydra = Hydra.create_main_hydra2(task_name=CONFIG_NAME, config_search_path=search_path)
    own = [word for word in given.overrides if word.startswith("hydra")]
    try:
        cfg = hydra.compose_config(
            config_name=CONFIG_NAME, overrides=[*own, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN
        )
        wrong = _imports("hydra.callbacks") if cfg.hydra.callbacks else None
        if not str(cfg.hydra.launcher.get("_target_")).startswith(("hydra_plugins.", "hydra._internal.core_plugins.")):
            wrong = _imports("_target_")
        if wrong:
            raise ConfigError([f"hydra/launcher={_launcher_name(given)}: {wrong}"])
        yield hydra.config_loader, cfg
    finally:
        GlobalHydra.instance().clear()


def _imports(key: str) -> str | None:
    """Why a setting of Hydra's is refused that names what to import."""
    if key.split(".")[-1] == "_target_":
        return "kdlab imports nothing that a configuration names; launchers are hydra_plugins that are installed"
    if key.replace("/", ".").startswith("hydra.callbacks"):
        return "kdlab runs no callbacks: they import what a configuration names"
    return None


@contextmanager
def _patient() -> Iterator[None]:
    """Let submitit's launcher wait for every job: by itself it stops at the first whose process died."""
    try:
        import submitit
    except ImportError:
        yield
        return
    executor, original = submitit.AutoExecutor, submitit.AutoExecutor.map_array

    def map_array(self: Any, *arguments: Any) -> list[_Patient]:
        return [_Patient(job) for job in original(self, *arguments)]

    executor.map_array = map_array  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        executor.map_array = original  # type: ignore[method-assign]


class _Patient:
    """A submitted job that tells in words what kept it from its result."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def results(self) -> list[Any]:
        try:
            found: list[Any] = self.job.results()
        except Exception as error:
            return [f"{_in_short(error)[:500]} (job {self.job.job_id}, logs: {self.job.paths.folder})"]
        return found
