"""`kdlab tune`: search over hyper-parameters."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from kdlab.verbs import parser

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from kdlab.compose import Job
    from kdlab.tune import Plan

SHOWN = 10  # trials of the table
EXAMPLES = """\
The words are those of `kdlab train`; the ones with several values are searched:

  method=kd,cr_ild   method.logits.temperature='choice(1,2,4)'   a choice
  method.logits.epochs='range(2,6)'                              2, 3, 4, 5
  method.logits.alpha='interval(0,1)'                            anything between
  method.logits.lr='log(1e-5,1e-3)'                              the same on a logarithmic scale
                                                                 (also: tag(log, interval(1e-5,1e-3)))

Each trial is a run in outputs/sweeps/NAME for every seed. The same command again goes on with a search, also one that
was killed; given in several shells at once, they share it.
"""


def main(words: list[str]) -> int:
    arguments = parser("tune", "Search over hyper-parameters with optuna.")
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.epilog = EXAMPLES
    arguments.usage = "kdlab tune [flags] GROUP=OPTION KEY=VALUE KEY=SPACE ..."
    arguments.add_argument("--trials", type=int, help="in all, failed ones too; default: 20, of a grid all points")
    arguments.add_argument("--metric", help="to maximise; default: the task's")
    arguments.add_argument("--split", help="whose score: heldout (default where select_on=heldout) or dev; never test")
    arguments.add_argument("--seeds", metavar="A,B", help="a trial is the mean over these; default: the words' seed")
    arguments.add_argument("--sampler", choices=["tpe", "random", "grid"], default="tpe", help="default: tpe")
    arguments.add_argument("--sampler-seed", type=int, default=0, help="of what the sampler draws; default: 0")
    arguments.add_argument(
        "--pruner",
        choices=["none", "median"],
        default="none",
        help="median: after each seed but the last, end a trial whose mean so far is below the median of the trials "
        "before it (once five have finished); default: none",
    )
    arguments.add_argument("--minutes", type=float, help="begin no trial after so many; one that has begun is finished")
    arguments.add_argument("--name", help="of the folder in outputs/sweeps; default: made from the words")
    given, rest = arguments.parse_known_args(words)

    from rich.console import Console

    from kdlab import tune
    from kdlab.compose import Composition
    from kdlab.verbs.plan import refuse_bad_plans, warn_of
    from kdlab.workers import gpus

    tune.require_optuna()
    flags = [flag for flag in arguments._option_string_actions if flag.startswith("--")]
    plan = tune.prepare(rest, tune.Wish(**vars(given)), flags)
    probes = Composition(jobs=plan.search.probes, multirun=True, config_dir=None)
    warn_of(probes)
    refuse_bad_plans(probes)
    console = Console(highlight=False)
    say = partial(console.print, markup=False, soft_wrap=True)
    say(f"search {plan.folder}: {plan.trials} trials, {plan.wish.sampler}, {plan.aim}")
    on_gpu = plan.search.probes[0].run.hardware.device in ("auto", "cuda")
    with ExitStack() as claimed:
        if on_gpu:
            os.environ.update(claimed.enter_context(gpus(1)))
        told = tune.run(plan, partial(train, plan, words), say)
    report(console, told)
    say(f"search: {plan.folder / 'tune.json'}")
    return 0 if told["best"] is not None else 2


def train(plan: Plan, words: list[str], job: Job) -> Mapping[str, Any]:
    """Train one run of a trial in its folder; returns its result."""
    from kdlab.runs import read_json
    from kdlab.sweep import announce
    from kdlab.verbs.train import train_job

    announce(plan.folder, [job], words, verb="tune")
    names = {tuple(job.overrides): job.name}
    train_job(job.run, job.overrides, sweep=plan.folder, names=names, renewed=set())
    result: dict[str, Any] = read_json(plan.folder / job.name / "result.json")
    return result


def report(console: Any, told: Mapping[str, Any]) -> None:
    """The best trials, what mattered, what failed, and how to go on."""
    from kdlab.report.summary import hundredfold

    say = partial(console.print, markup=False, soft_wrap=True)
    trials = told["trials"]
    if told["best"] is not None:
        console.print(table(told), crop=False)
    if told["importances"]:
        parts = [f"{key} {hundredfold(share)} %" for key, share in told["importances"].items()]
        say(f"how much of the differences each key makes (fANOVA): {', '.join(parts)}")
    counts = Counter(one["state"] for one in trials)
    say(f"{len(trials)} of {told['wanted']} trials: {', '.join(f'{n} {state}' for state, n in counts.items())}")
    for one in trials:
        if one["state"] == "failed":
            say(f"failed: trial {one['number']}: {one['error']}")
    if counts["running"]:
        say("running: another process is at them; the same command again shows what they come to")
    if told["best"] is None:
        say("no trial has finished: mend what failed and choose another --name, or give more --trials")
        return
    say(
        f"the best score is the best of {counts['finished']}, so it is optimistic on {told['split']}; "
        "train that trial on seeds that the search has not seen:"
    )
    say(f"  {told['command']}")


def table(told: Mapping[str, Any]) -> Table:
    from kdlab.report.summary import metric_name, over_seeds, titled, with_columns

    finished = [one for one in told["trials"] if one["state"] == "finished"]
    best = sorted(finished, key=lambda one: (-one["score"], one["number"]))[:SHOWN]
    columns = {
        "trial": [str(one["number"]) for one in best],
        "score": [over_seeds(list(one["scores"].values())) for one in best],
        **{
            key.replace(".", ".\n"): ["-" if key in one["unused"] else shortened(one["values"][key]) for one in best]
            for key in told["spaces"]
        },
    }
    title = f"{metric_name(told['metric'])} on {told['split']}, x 100 (seeds {', '.join(map(str, told['seeds']))})"
    notes = ["optimistic: the split that is reported"] if told["optimistic"] else []
    notes += ["-: the run has no use for it"] if any(one["unused"] for one in best) else []
    return with_columns(titled(title, notes), columns, keep=("trial", "score"), wrap=True)


def shortened(value: str) -> str:
    """A drawn number in three digits; anything else as it is."""
    try:
        return value if value.lstrip("-").isdecimal() else f"{float(value):.3g}"
    except ValueError:
        return value
