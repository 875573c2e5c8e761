"""The command `kdlab`: finds the verb, and turns what goes wrong into a message and an exit code.

A verb is a module of `kdlab.verbs`, imported when it is asked for; everything heavy is imported by what needs it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from kdlab import __version__, interruption
from kdlab.errors import KdlabError, bug, disk_errors

EXIT_USER, EXIT_BUG = 2, 1  # of one that was asked to stop: 128 + the signal's number, see `interruption`

USAGE = """\
usage: kdlab VERB ...

  train       run a graph: kdlab train method=cr_ild task=glue/rte   (-m for a sweep, --help for all groups)
  plan        show the same graph: what is cached, what would run, how much work; runs nothing
  fetch       get all that a run needs of the Hub, for a machine without network: kdlab fetch method=kd task=glue/rte
  tune        search hyper-parameters: kdlab tune method=cr_ild task=glue/rte method.logits.lr='log(1e-5,1e-3)'
  compare     runs beside each other: tables, tests over seeds and examples, the papers' numbers, one HTML page
  diff        what differs between two runs: configuration, data, versions, graph, scores
  evaluate    a finished run on another task or split, or on GLUE's test sets with the leaderboard's files
  predict     a finished run on your own rows: kdlab predict RUN --input file.jsonl
  export      a finished student as a plain folder, as ONNX, or to the Hub: kdlab export RUN --to DIR
  list        what there is to choose from: kdlab list methods|tasks|models|rationales|translators|hardware|experiments
  doctor      look at device, versions, Hub, wandb and store, each problem with its fix
  store       the artifacts: kdlab store ls|verify|prune
  verify-resume  kill a command at random moments, give it again, compare the bits with an unbroken run's
  analyze     how much finished runs overfit: curves, loss surface, noise on weights, distance to the teacher;
              of runs in several languages: scores by language, matrix of training and test texts
  samples     look at a reasoning run: questions, rationales, answers, right or wrong
  sync        send finished runs to Weights & Biases: kdlab sync outputs/runs/*
  completion  shell completion: eval "$(kdlab completion bash)"

  --version, --help; KDLAB_DEBUG=1 shows the traceback of an error
"""

# Libraries that would otherwise report home, or talk over our own output.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not words or words[0] in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0 if words else EXIT_USER
    if words[0] == "--version":
        print(f"kdlab {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        from kdlab.checks import suggest

        print(f"error: kdlab has no verb '{verb}'{suggest(verb, VERBS)}\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_USER
    try:
        with interruption.watched(), disk_errors(f"kdlab {verb}", Path("."), named=True):
            return VERBS[verb](rest)
    except KdlabError as error:
        show_traceback()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt as stop:
        print("\ninterrupted; give the same command again to continue", file=sys.stderr)
        return interruption.code(stop)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        show_traceback()
        print(f"error: {bug(error)}", file=sys.stderr)
        return EXIT_BUG


def show_traceback() -> None:
    if os.environ.get("KDLAB_DEBUG"):
        traceback.print_exc()


def run_verb(verb: str, words: list[str]) -> int:
    code: int = importlib.import_module(f"kdlab.verbs.{verb.replace('-', '_')}").main(words)
    return code


VERBS: dict[str, Callable[[list[str]], int]] = {
    verb: partial(run_verb, verb)
    for verb in (
        "train",
        "plan",
        "fetch",
        "tune",
        "compare",
        "diff",
        "evaluate",
        "predict",
        "export",
        "list",
        "doctor",
        "store",
        "verify-resume",
        "analyze",
        "samples",
        "sync",
        "completion",
    )
}
