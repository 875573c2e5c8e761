"""`kdlab list`: what there is to choose from."""

from __future__ import annotations

from pathlib import Path

from kdlab import catalog
from kdlab.errors import ConfigError
from kdlab.verbs import parser


def main(words: list[str]) -> int:
    arguments = parser("list", "What there is to choose from, one line each.")
    arguments.add_argument("group", choices=list(catalog.GROUPS))
    arguments.add_argument("--config-dir", "-cd", help="a folder of your own with further options")
    given = arguments.parse_args(words)
    if given.config_dir is not None and not Path(given.config_dir).is_dir():
        raise ConfigError([f"--config-dir {given.config_dir}: no such folder"])
    entries = catalog.entries(given.group, given.config_dir)
    width = max((len(name) for name, _ in entries), default=0)
    for name, about in entries:
        print(f"{name:{width}}  {about}")
    return 0
