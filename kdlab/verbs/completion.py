"""`kdlab completion`: the script for a shell, and its answers."""

from __future__ import annotations

from kdlab import completion as shells
from kdlab.verbs import parser


def main(words: list[str]) -> int:
    if words[:1] == ["line"]:
        print("\n".join(shells.complete(" ".join(words[1:]))))
        return 0
    arguments = parser("completion", 'Print a completion script: eval "$(kdlab completion bash)"')
    arguments.add_argument("shell", choices=["bash", "zsh"])
    print(shells.script(arguments.parse_args(words).shell), end="")
    return 0
