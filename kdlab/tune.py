"""A search over hyper-parameters: optuna draws values, each trial is a run for every seed, in the folders of a sweep.

    outputs/sweeps/<name>/study.jsonl   what optuna knows, one JSON object a line (its journal; nothing is pickled)
                          tune.json     the search so far, for readers
                          trial-0003-seed-1/  the run of a trial with a seed, as of any other sweep

The score of a trial is never that of the test set. A process that is at a trial holds the operating system's lock of
that trial, which ends with the process: who finds a trial that runs and is not locked takes it up again. What its runs
have finished is in the store. So a killed search goes on, and several processes may work on one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kdlab.artifacts import write_json
from kdlab.checks import suggest
from kdlab.config import PLACEMENT, Crosslingual, Reasoning, Run
from kdlab.errors import ConfigError, KdlabError, StoreError, bug, disk_errors
from kdlab.showing import redact

if TYPE_CHECKING:
    import optuna
    from filelock import FileLock

    from kdlab.compose import Job, Search, Space

TRIALS = 20  # unless told otherwise; of a grid all its points
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median")
LEAST_FOR_IMPORTANCES = 8  # finished trials
OTHER_SEEDS = 3  # in the command that trains the best trial again
OF_TASK = ("max_length", "pad_to_max", "epochs")  # keys of a task that change neither its rows nor its scores
NOT_SEARCHED = {  # by the first part of the key
    "seed": "each trial is the mean over the seeds: give --seeds 1,2",
    "task": "scores of different rows, or by another measure, can't be compared: search once for each task",
    "select_on": "what chooses the checkpoint also decides which rows a trial is scored on: choose one",
    "debug": "is not for a search",
    **dict.fromkeys(PLACEMENT, "can't change a score"),
}
TOLD = "kdlab"  # what we write beside optuna's own, of the study and of each trial
OF_COMPOSITION = ("--config-dir", "--multirun", "--cfg", "--info", "--resolve", "--package", "--hydra-help")
# flags that are read, or refused, with the words
STUDY = "search"  # its name in the journal; a journal has one


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How to search, as the flags say it."""

    trials: int | None = None
    metric: str | None = None
    split: str | None = None
    seeds: str | None = None
    sampler: str = "tpe"
    sampler_seed: int = 0
    pruner: str = "none"
    minutes: float | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search that can start."""

    search: Search
    wish: Wish
    folder: Path
    trials: int
    seeds: tuple[int, ...]
    metric: str
    split: str  # whose score is maximised
    reported: str  # the split that methods are compared on

    @property
    def optimistic(self) -> bool:
        return self.split == self.reported

    @property
    def aim(self) -> str:
        """One line that says which score is maximised, and what that means."""
        seeds = f"mean over seeds {', '.join(map(str, self.seeds))}" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"
        text = f"maximises {self.metric} on {self.split} ({seeds})"
        if self.optimistic:
            text += f": optimistic, for {self.reported} is also what is reported; select_on=heldout keeps rows for it"
        return text

    def identity(self) -> dict[str, Any]:
        """What all trials of a study share; it is written down, so secrets are blacked out."""
        told: dict[str, Any] = redact(
            {
                "words": self.search.told,
                "spaces": {space.key: space.word for space in self.search.spaces},
                "metric": self.metric,
                "split": self.split,
                "seeds": list(self.seeds),
            }
        )
        return told


def require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as problem:
        raise KdlabError(
            f"a search needs optuna: {problem}", where="kdlab tune", fix="pip install 'kdlab[tune]'"
        ) from problem


# planning ----------------------------------------------------------------------------------------------------------


def prepare(argv: Sequence[str], wish: Wish, flags: Sequence[str] = ()) -> Plan:
    """The search that words and flags ask for; one ConfigError has all that is wrong with them.

    argv: words, and flags that are not read yet. flags: all that there are, for one that is misspelt.
    """
    from kdlab import compose

    problems = []
    for word in argv:
        if word.startswith("--") and word.partition("=")[0] not in OF_COMPOSITION:
            problems.append(
                f"{word}: unknown flag{suggest(word, flags)} (flags: {', '.join([*flags, OF_COMPOSITION[0]])})"
            )
    argv = [word for word in argv if not word.startswith("--") or word.partition("=")[0] in OF_COMPOSITION]
    seeds = _seeds(wish, problems)
    if wish.trials is not None and wish.trials < 1:
        problems.append(f"--trials {wish.trials}: give 1 or more")
    if wish.minutes is not None and not 0 < wish.minutes < math.inf:
        problems.append(f"--minutes {wish.minutes:g}: give a number above 0")
    if wish.split == "test":
        problems.append("--split test: a search must not see the test set; take heldout or dev")
    named = [] if wish.name is None else [f"name={wish.name}"]
    if named and any(word.startswith("name=") for word in argv):
        problems.append(f"--name {wish.name}: the words give a name too; give one of the two")
    try:
        search = compose.search([*argv, *named])
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from error
    runs = [job.run for job in search.probes]
    problems += [text for space in search.spaces for text in _unsearchable(space)]
    if not search.spaces:
        problems.append("nothing to search: give a space, such as method.logits.lr='log(1e-5,1e-3)' or method=kd,ft")
    if len({run.method.family for run in runs}) > 1:
        problems.append("the methods are of several families, whose scores can't be compared: search once for each")
    if seeds and any(word.startswith("seed=") for word in search.fixed):
        problems.append(f"--seeds {wish.seeds}: the words give a seed too; give one of the two")
    if len(seeds or (0,)) < 2 and wish.pruner == "median":
        problems.append("--pruner median: compares trials after each seed: give two or more, --seeds 1,2")
    launched = any(word.startswith(("hydra/", "hydra.")) for word in search.fixed)
    if launched or os.environ.get("WORLD_SIZE", "1") != "1" or runs[0].hardware.processes > 1:
        problems.append(
            "a search runs its trials in one process, one after the other: leave launchers, torchrun and "
            "hardware.processes out, and give the same command in several shells for several trials at a time"
        )
    if wish.sampler == "grid":
        problems += [f"{space.word}: --sampler grid takes choices and ranges" for space in _endless(search.spaces)]
    metric = wish.metric or _metrics(runs[0])[0]
    if metric not in _metrics(runs[0]):
        problems.append(f"--metric {metric}: this task has {', '.join(_metrics(runs[0]))}")
    split = _split(runs, wish.split, problems)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    points = math.prod(len(space.options) for space in search.spaces)
    plan = Plan(
        search=search,
        wish=wish,
        folder=Path(),
        trials=wish.trials or (points if wish.sampler == "grid" else TRIALS),
        seeds=seeds or (runs[0].seed,),
        metric=metric,
        split=split,
        reported=_reported(runs[0]),
    )
    return replace(plan, folder=Path(runs[0].outputs) / "sweeps" / (runs[0].name or _name(plan)))


def _name(plan: Plan) -> str:
    """The same for the same search given again."""
    run = plan.search.probes[0].run
    methods = "+".join(dict.fromkeys(job.run.method.name for job in plan.search.probes))
    digest = hashlib.sha256(json.dumps(plan.identity(), sort_keys=True).encode()).hexdigest()[:8]
    return f"tune-{methods}-{run.task.name.replace('/', '_')}"[:111] + f"-{digest}"


def _seeds(wish: Wish, problems: list[str]) -> tuple[int, ...]:
    if wish.seeds is None:
        return ()
    words = [word.strip() for word in wish.seeds.split(",")]
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        problems.append(f"--seeds {wish.seeds}: give whole numbers, each once, such as 1,2,3")
        return ()
    return tuple(int(word) for word in words)


def _unsearchable(space: Space) -> Iterator[str]:
    head, _, rest = space.key.lstrip("+").partition(".")
    if head in NOT_SEARCHED and not (head == "task" and rest.split(".")[0] in OF_TASK):
        yield f"{space.word}: {NOT_SEARCHED[head]}"


def _endless(spaces: Sequence[Space]) -> Iterator[Space]:
    yield from (space for space in spaces if not space.options)


def _metrics(run: Run) -> list[str]:
    """The metrics that a run's result has, the task's own first."""
    if isinstance(run.method, Reasoning):
        from kdlab.report.result import REASONING_METRICS

        return list(REASONING_METRICS)
    return list(dict.fromkeys([run.task.metric, *run.task.metrics]))


def _reported(run: Run) -> str:
    if isinstance(run.method, Reasoning):
        return "test"
    return "test" if isinstance(run.method, Crosslingual) and run.task.splits.test is not None else "dev"


def _splits(run: Run) -> list[str]:
    """The splits that a trial may be scored on, the one that spoils no reported score first."""
    trained = not isinstance(run.method, Reasoning) or "student" in run.method.stages
    held = ["heldout"] if run.select_on == "heldout" and trained else []
    return held if isinstance(run.method, Reasoning) else [*held, "dev"]


def _split(runs: Sequence[Run], wanted: str | None, problems: list[str]) -> str:
    allowed = [split for split in _splits(runs[0]) if all(split in _splits(run) for run in runs)]
    on_test = [run for run in runs if run.select_on == "test"]
    if on_test:
        problems.append(f"select_on=test: a search must not see the test set; take heldout{' or dev' * bool(allowed)}")
    elif not allowed:
        problems.append(
            f"there are no rows to score trials on: task={runs[0].task.name} has no dev, and "
            f"select_on={runs[0].select_on} keeps none; set select_on=heldout (of a method that trains a student)"
        )
    elif wanted not in (None, "test", *allowed):
        known = {"heldout": f"select_on={runs[0].select_on} keeps no rows; set select_on=heldout"}
        problems.append(f"--split {wanted}: {known.get(str(wanted), f'take {chr(32).join(allowed)}')}")
    return wanted or (allowed or ["dev"])[0]


def score(result: Mapping[str, Any], metric: str, split: str) -> tuple[float, str]:
    """(a run's score, where in result.json it stands). Raises KdlabError if there is no such score.

    In several languages the held-out rows are asked as they are; a reasoning student's answers to held-out questions
    are in the history of its training only.
    """
    scores, means, told = result["scores"], result.get("means") or {}, result["student"].get("selection") or {}
    if metric in scores.get(split, {}):
        value, where = scores[split][metric]["selected"], f"scores.{split}.{metric}.selected"
    elif metric in means.get(split, {}).get("original", {}).get("all", {}):
        value, where = means[split]["original"]["all"][metric], f"means.{split}.original.all.{metric}"
    elif told.get("on") == split and metric == result["metric"]:
        value, where = told["score"], "student.selection.score"
    else:
        raise KdlabError(f"the run has no {metric} on {split}", where="its result.json")
    if value is None or not math.isfinite(value):
        raise KdlabError(f"{metric} on {split} is not a number: {value}", where=f"{where} in its result.json")
    return float(value), where


# the study ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Taken:
    """A trial that this process is at."""

    trial: optuna.Trial
    values: dict[str, str]  # words by key
    again: bool  # another process was at it and was killed
    seen: set[int]  # steps that it has reported


class Study:
    """optuna's study in its folder, with a lock for whoever decides what is next, and one for each trial."""

    def __init__(self, plan: Plan) -> None:
        """Open the folder's study, or make it. Raises ConfigError if it is of another search."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self.file = plan, plan.folder / "study.jsonl"
        with disk_errors("opening the study", plan.folder):
            (plan.folder / "locks").mkdir(parents=True, exist_ok=True)
            with self.lock("study"), _unreadable(self.file):
                self._cut()
                pruners = {"none": optuna.pruners.NopPruner, "median": optuna.pruners.MedianPruner}
                self.optuna = optuna.create_study(
                    storage=_storage(self.file, self.lock("journal")),
                    study_name=STUDY,
                    direction="maximize",
                    load_if_exists=True,
                    pruner=pruners[plan.wish.pruner](),
                )
                known = self.optuna.user_attrs.get(TOLD)
                if known is None:
                    self.optuna.set_user_attr(TOLD, plan.identity())
        if known not in (None, plan.identity()):
            other = ", ".join(key for key, value in plan.identity().items() if known.get(key) != value)
            raise ConfigError([f"{plan.folder} holds another search (other {other}); choose another --name"])

    def lock(self, name: str) -> FileLock:
        from filelock import FileLock

        return FileLock(self.plan.folder / "locks" / f"{name}.lock")

    def _cut(self) -> None:
        """Take away a last line that was not written to its end: no line after it could be read."""
        if not self.file.exists():
            return
        with self.lock("journal"), open(self.file, "rb+") as file:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Those that were begun."""
        from optuna.trial import TrialState

        found = self.optuna.get_trials(deepcopy=False)
        return [trial for trial in found if trial.state != TrialState.WAITING]

    @contextmanager
    def take(self) -> Iterator[Taken | None]:
        """The next trial: one whose process was killed, else a new one; None if there is none left to begin."""
        from optuna.trial import Trial, TrialState

        with self.lock("study"):
            lock = None
            running = [trial for trial in self.trials if trial.state == TrialState.RUNNING]
            for left in running:
                lock = self._free(left.number)
                if lock is not None:
                    self.optuna.sampler = self._sampler(left.number)
                    trial = Trial(self.optuna, left._trial_id)
                    seen = set(left.intermediate_values)
                    break
            number = len(self.trials)
            again = lock is not None
            if lock is None:
                if number >= self.plan.trials or not self._queued():
                    yield None
                    return
                self.optuna.sampler = self._sampler(number)
                trial, seen = self.optuna.ask(), set()
                lock = self._free(trial.number)
                assert lock is not None
            values = {space.key: space.spell(_draw(trial, space)) for space in self.plan.search.spaces}
        try:
            yield Taken(trial, values, again, seen)
        finally:
            lock.release()

    def _free(self, number: int) -> FileLock | None:
        """The lock of a trial, if no process is at it."""
        from filelock import Timeout

        lock = self.lock(f"trial-{number:04d}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def _queued(self) -> bool:
        """Of a grid, put the next point where `ask` finds it; False: all were begun."""
        from optuna.trial import TrialState

        if self.plan.wish.sampler != "grid":
            return True
        trials = self.optuna.get_trials(deepcopy=False)
        if any(trial.state == TrialState.WAITING for trial in trials):
            return True
        begun = [trial.params for trial in trials]
        spaces = self.plan.search.spaces
        axes = [space.options if space.kind == "choice" else [*map(_number, space.options)] for space in spaces]
        points = [dict(zip((space.key for space in spaces), point, strict=True)) for point in itertools.product(*axes)]
        random.Random(self.plan.wish.sampler_seed).shuffle(points)
        left = [point for point in points if point not in begun]
        if left:
            self.optuna.enqueue_trial(left[0])
        return bool(left)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """What draws a trial's values; the same for the same trial and the same trials before it."""
        import optuna

        seed = (self.plan.wish.sampler_seed * 1_000_003 + number) % 2**32
        if self.plan.wish.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)


def _storage(file: Path, lock: FileLock) -> optuna.storages.BaseStorage:
    """A journal under the operating system's lock, which ends with the process; optuna's own survive a kill."""
    from optuna.storages import journal

    return journal.JournalStorage(journal.JournalFileBackend(str(file), lock_obj=cast(Any, lock)))


@contextmanager
def _unreadable(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise StoreError(
            f"the study can't be read: {type(problem).__name__}: {problem}",
            where=str(file),
            fix="take it away to begin anew (what its runs have trained stays in the store), or choose another --name",
        ) from problem


def _draw(trial: optuna.Trial, space: Space) -> str | float:
    if space.kind == "choice":
        return str(trial.suggest_categorical(space.key, space.options))
    if space.kind == "int" or (space.kind == "range" and all(isinstance(_number(word), int) for word in space.options)):
        return trial.suggest_int(space.key, int(space.low), int(space.high), step=int(space.step), log=space.log)
    step = space.step if space.kind == "range" else None
    return trial.suggest_float(space.key, space.low, space.high, step=step, log=space.log)


def _number(word: str) -> float:
    return int(word) if word.lstrip("-").isdecimal() else float(word)


# the search --------------------------------------------------------------------------------------------------------


def run(plan: Plan, run_job: Callable[[Job], Mapping[str, Any]], say: Callable[[str], None]) -> dict[str, Any]:
    """Carry out what is left of a search; returns what tune.json holds.

    run_job: trains one run in its folder and returns its result. A trial whose run raises is recorded with the error
    and stops no other.
    """
    study = Study(plan)
    until = math.inf if plan.wish.minutes is None else time.monotonic() + 60 * plan.wish.minutes
    while True:
        if time.monotonic() >= until:
            say(f"stopped after {plan.wish.minutes:g} minutes; give the same command again to go on")
            break
        with study.take() as taken:
            if taken is None:
                break
            words = " ".join(taken.values.values())
            say(f"trial {taken.trial.number}{' (taken up again)' if taken.again else ''}: {words}")
            say(f"trial {taken.trial.number}: {_carry_out(study, taken, run_job)}")
        write(study)
    return write(study)


def _carry_out(study: Study, taken: Taken, run_job: Callable[[Job], Mapping[str, Any]]) -> str:
    """Run a trial; returns what became of it."""
    import optuna

    plan, trial = study.plan, taken.trial
    scores: dict[str, float] = {}
    told: dict[str, Any] = {"scores": scores}
    try:
        for step, seed in enumerate(plan.seeds):
            job = plan.search.job(taken.values, name=f"trial-{trial.number:04d}-seed-{seed}", seed=seed)
            told["unused"] = [key for key, word in taken.values.items() if word not in job.overrides]
            scores[str(seed)], told["from"] = score(run_job(job), plan.metric, plan.split)
            trial.set_user_attr(TOLD, told)
            if step not in taken.seen:
                trial.report(statistics.fmean(scores.values()), step)
            if step + 1 < len(plan.seeds) and trial.should_prune():
                study.optuna.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return f"pruned after seed {seed}: below the median of the trials before it"
    except Exception as error:
        text = str(error) if isinstance(error, KdlabError) else bug(error)
        trial.set_user_attr(TOLD, redact({**told, "error": text}))
        study.optuna.tell(trial, state=optuna.trial.TrialState.FAIL)
        return f"failed: {text}"
    mean = statistics.fmean(scores.values())
    study.optuna.tell(trial, mean)
    return f"{plan.metric} on {plan.split} {mean:.4f} (best: {study.optuna.best_value:.4f})"


def write(study: Study) -> dict[str, Any]:
    """Write tune.json, secrets blacked out; returns what it holds."""
    with disk_errors("writing the search", study.plan.folder), study.lock("told"):  # else an older one may come last
        told: dict[str, Any] = redact(tell(study))
        write_json(study.plan.folder / "tune.json", told)
    return told


def tell(study: Study) -> dict[str, Any]:
    """The search so far as plain values; scores are fractions."""
    from optuna.trial import TrialState

    plan = study.plan
    states = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    trials = []
    for one in study.trials:
        drawn = [space.spell(one.params[space.key]) for space in plan.search.spaces if space.key in one.params]
        told = one.user_attrs.get(TOLD, {})
        trials.append(
            {
                "number": one.number,
                "state": states.get(one.state, "running"),
                "score": one.value if one.state == TrialState.COMPLETE else None,
                "scores": told.get("scores", {}),
                "from": told.get("from"),
                "values": dict(word.split("=", 1) for word in drawn),
                "unused": told.get("unused", []),
                "runs": [f"trial-{one.number:04d}-seed-{seed}" for seed in told.get("scores", {})],
                "error": told.get("error"),
            }
        )
    finished = [trial for trial in trials if trial["state"] == "finished"]
    best = max(finished, key=lambda trial: (trial["score"], -trial["number"]), default=None)
    return {
        "format": 1,
        "name": plan.folder.name,
        "metric": plan.metric,
        "split": plan.split,
        "reported": plan.reported,
        "optimistic": plan.optimistic,
        "aim": plan.aim,
        "seeds": list(plan.seeds),
        "words": plan.search.fixed,
        "spaces": {space.key: space.word.partition("=")[2] for space in plan.search.spaces},
        "wanted": plan.trials,
        "trials": trials,
        "best": None if best is None else best["number"],
        "importances": _importances(study, len(finished)),
        "command": None if best is None else command(plan, best["values"]),
    }


def _importances(study: Study, finished: int) -> dict[str, float] | None:
    """The share of each key in how much scores differ, largest first; None: too few trials to tell.

    fANOVA (Hutter et al., ICML 2014): with few trials it finds the key that matters more surely than optuna's default.
    """
    import optuna

    if finished < LEAST_FOR_IMPORTANCES or len(study.plan.search.spaces) < 2:
        return None
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study.optuna, evaluator=evaluator)
    except (ValueError, RuntimeError):  # all scores or all values are equal
        return None
    return {key: float(value) for key, value in found.items()} if all(map(math.isfinite, found.values())) else None


def command(plan: Plan, values: Mapping[str, str]) -> str:
    """Trains a trial on seeds that the search has not used."""
    job = plan.search.job({key: f"{key}={value}" for key, value in values.items()})
    words = [word for word in job.overrides if not word.startswith(("seed=", "name=", "fresh="))]
    seeds = ",".join(str(max(plan.seeds) + 1 + more) for more in range(OTHER_SEEDS))
    return shlex.join(["kdlab", "train", "-m", *plan.search.flags, *words, f"seed={seeds}"])
