"""Tab completion: verbs, configuration groups and their options, keys, and the words a key may take.

Options of a group are read from the files themselves; groups and keys need Hydra, which composes what the
line says so far, so that the keys are those of the method, model and task that are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kdlab import catalog

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

VERBS: dict[str, tuple[str, ...]] = {
    "train": (),
    "plan": (),
    "fetch": (),
    "tune": (),
    "compare": (),
    "diff": (),
    "evaluate": (),
    "predict": (),
    "export": (),
    "list": tuple(catalog.GROUPS),
    "doctor": (),
    "store": ("ls", "verify", "prune"),
    "verify-resume": (),
    "analyze": (),
    "sync": (),
    "completion": ("bash", "zsh"),
}
COMPOSING = ("train", "plan", "fetch", "tune", "verify-resume")
FLAGS = ("--cfg", "--config-dir", "--help", "--info", "--multirun", "--package", "--resolve")
DIR_FLAGS = ("--config-dir", "-cd")
CFG = ("job", "hydra", "all")

_BASH = """\
_kdlab() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n' word start i
    COMPREPLY=($("${COMP_WORDS[0]}" completion line "$line" 2>/dev/null))
    word="${line##* }"
    start=""
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then start="${word%"${word##*=}"}"; fi
    for i in "${!COMPREPLY[@]}"; do
        case "${COMPREPLY[i]}" in *[=./]) ;; *) COMPREPLY[i]+=" " ;; esac
        COMPREPLY[i]="${COMPREPLY[i]#"$start"}"
    done
}
complete -o nospace -o default -F _kdlab kdlab
"""

_ZSH = """\
#compdef kdlab
_kdlab() {
    local -a whole open
    local reply
    for reply in "${(@f)$("${words[1]}" completion line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}"; do
        case "$reply" in "") ;; *[=./]) open+=("$reply") ;; *) whole+=("$reply") ;; esac
    done
    compadd -Q -S '' -- $open
    compadd -Q -- $whole
}
compdef _kdlab kdlab
"""


def script(shell: str) -> str:
    """What `eval "$(kdlab completion bash)"` runs; `shell` is "bash" or "zsh"."""
    return {"bash": _BASH, "zsh": _ZSH}[shell]


def complete(line: str) -> list[str]:
    """Whole words that may stand at the end of `line`, which is the command line up to the cursor."""
    words = line.split()[1:]
    word = "" if line.endswith(" ") or not words else words.pop()
    verb = next((item for item in words if not item.startswith("-")), None)
    found: Sequence[str] = ()
    if verb is None:
        found = (*VERBS, "--help", "--version")
    elif verb in COMPOSING:
        found = _words(word, words[words.index(verb) + 1 :])
    elif words[-1] == verb:
        found = VERBS.get(verb, ())
    return sorted({item for item in found if item.startswith(word)})


def _words(word: str, before: list[str]) -> Sequence[str]:
    """What may stand for `word` after `kdlab train` and the words `before` it."""
    folder = next((value for flag, value in pairwise(before) if flag in DIR_FLAGS), None)
    if before and before[-1] in ("--cfg", "-c"):
        return CFG
    if before and before[-1] in DIR_FLAGS:
        return ()  # the shell completes folders
    if word.startswith("-"):
        return FLAGS
    given = [item for item in before if "=" in item or item.startswith("~")]
    key, equals, value = word.partition("=")
    if not equals:
        loader = _loader(folder)
        return [*(f"{group}=" for group in _groups(loader)), *_keys(_compose(loader, given), word)]
    start = key + equals + value[: value.rfind(",") + 1]  # of a sweep, complete the last of `a,b,c`
    options = [name for name, _ in catalog.entries(key.lstrip("+"), folder)]
    return [start + item for item in options or _values(_compose(_loader(folder), given), key)]


def _loader(folder: str | None) -> ConfigLoaderImpl:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery

    from kdlab import compose

    compose.register()
    search_path = create_config_search_path(catalog.config_root())
    if folder is not None:
        anchor = SearchPathQuery(provider="schema")  # Hydra wants it to be the last
        search_path.prepend("command-line", f"file://{folder}", anchor)
    return ConfigLoaderImpl(search_path)


def _groups(loader: ConfigLoaderImpl) -> list[str]:
    from hydra.core.object_type import ObjectType

    found = loader.get_group_options("", ObjectType.GROUP)
    return [group for group in found if group not in ("hydra", "schema")]


def _compose(loader: ConfigLoaderImpl, given: list[str]) -> Any:
    """The configuration that the words so far make, or an empty one where they make none."""
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from kdlab import compose

    for overrides in (given, []):  # an unfinished or wrong word must not hide the keys
        try:
            return loader.load_configuration(compose.CONFIG_NAME, overrides, RunMode.MULTIRUN)
        except (HydraException, OmegaConfBaseException):
            continue
    return OmegaConf.create()


def _keys(config: Any, word: str) -> list[str]:
    from omegaconf import DictConfig, OmegaConf

    base, dot, _ = word.rpartition(".")
    node = OmegaConf.select(config, base) if base else config
    if not isinstance(node, DictConfig):
        return []
    found = []
    for key in map(str, node):
        if not base and key == "hydra":
            continue
        opaque = OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)
        inner = not opaque and isinstance(node[key], DictConfig)
        found.append(f"{base}{dot}{key}" + ("." if inner else "="))
    return found


def _values(config: Any, key: str) -> list[str]:
    from omegaconf import DictConfig, OmegaConf

    base, _, name = key.rpartition(".")
    node = OmegaConf.select(config, base) if base else config
    if not isinstance(node, DictConfig) or name not in node:
        return []
    kind = OmegaConf.get_type(node)
    if is_dataclass(kind):
        choices = next((item.metadata.get("choices") for item in fields(kind) if item.name == name), None)
        if choices:
            return [str(choice) for choice in choices]
    if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name):
        return []
    value = node[name]
    if isinstance(value, bool):
        return ["true", "false"]
    return [] if value is None or OmegaConf.is_config(value) else [str(value)]
