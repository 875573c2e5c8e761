"""`kdlab doctor`: device, versions, Hub, wandb and store, each problem with its fix."""

from __future__ import annotations

from pathlib import Path

from kdlab.verbs import parser


def main(words: list[str]) -> int:
    arguments = parser("doctor", "Look at everything a run needs; each problem comes with its fix.")
    arguments.add_argument("--offline", action="store_true", help="ask no server")
    arguments.add_argument("--store", default="outputs/artifacts")
    given = arguments.parse_args(words)
    from kdlab import doctor as checks

    return checks.show(checks.diagnose(run_offline=given.offline, store=Path(given.store)))
