"""Weights & Biases: one run of kdlab is one run there.

What leaves the machine: the resolved config, the points, the summary and tables. What does not: console
output, code, git state, host and user names, system figures, the environment. wandb is imported only when a
tracker starts.

Points are logged at their `global_step`. A resumed online run (same id, resume="allow") goes on where the
server stopped: points of steps that it has already are dropped. Offline, wandb starts a new local folder for
each attempt; `kdlab sync` then replays metrics.jsonl as one run.
"""

from __future__ import annotations

import configparser
import logging
import math
import netrc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

from kdlab.config import Tracking
from kdlab.errors import TrackingError
from kdlab.showing import redact

log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "none"]

SERVERS = ("api.wandb.ai", "api.forge.coreweave.com")  # names of the public server, old and new
INIT_SECONDS = 20.0  # how long a run waits for the server before it goes on offline
FINISH_SECONDS = 60.0  # how long a finished run waits for its last points to be sent
LACKING = "wandb has not taken all of the run, which goes on without it; `kdlab sync` with its folder sends the rest"


def key_configured() -> bool:
    """Whether wandb would find an API key (environment, netrc, its settings); asks and connects nowhere."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = _system_settings()
    if settings.get("api_key"):
        return True
    given = os.environ.get("NETRC")
    files = [Path(given).expanduser()] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        return False
    try:
        machines = netrc.netrc(found)
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url", "")).netloc
    hosts = SERVERS if not host or host in SERVERS else (host,)
    return any((machines.authenticators(host) or ("", "", ""))[2] for host in hosts)


def _system_settings() -> dict[str, str]:
    """wandb's own settings files, the user's and the folder's."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    files = configparser.ConfigParser(interpolation=None)
    try:
        files.read([home / "settings", Path("wandb/settings")])
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(files["default"]) if files.has_section("default") else {}


def resolve_mode(settings: Tracking) -> Mode:
    """The mode that "auto" stands for: what WANDB_MODE says, else online if there is a key."""
    if settings.mode != "auto":
        modes: dict[str, Mode] = {"online": "online", "offline": "offline", "none": "none"}
        return modes[settings.mode]
    wish = os.environ.get("WANDB_MODE", "")
    if wish == "disabled":
        return "none"
    return "online" if wish not in ("offline", "dryrun") and key_configured() else "offline"


class Tracker:
    """A wandb run as a context manager. With mode "none" every method does nothing.

    It never breaks a run: if the server can't be reached the run goes on offline, if wandb itself fails it
    goes on without it; either way with one warning, as at the end if the server has not taken all that it was sent.
    `fall_back=False` raises TrackingError instead.
    After `__enter__`, `mode` says what is really done and `url` where the run can be seen (online only).
    """

    def __init__(
        self,
        settings: Tracking,
        *,
        run_id: str,
        name: str,
        group: str | None,
        job_type: str | None,
        tags: Sequence[str],
        config: Mapping[str, Any],
        folder: Path,
        fall_back: bool = True,
    ) -> None:
        self.mode: Mode = resolve_mode(settings)
        self.url: str | None = None
        self._settings, self._folder, self._fall_back = settings, folder, fall_back
        labels = dict.fromkeys([*settings.tags, *tags])
        self._identity = redact(
            {
                "run_id": run_id,
                "run_name": name,
                "run_group": group,
                "run_job_type": job_type,
                "run_tags": [label[:64] for label in labels],  # wandb refuses longer ones
            }
        )
        self._config = redact({key: value for key, value in config.items() if key != "expected"})  # the papers' numbers
        self._run: Any = None
        self._step = 0
        self._said: set[str] = set()

    def __enter__(self) -> Tracker:
        if self.mode == "none":
            return self
        if self.mode == "online":
            self._start_online()
        if self._run is None:
            with self._guard("wandb could not start; the run goes on untracked"):
                self.mode = "offline"
                self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._close(exit_code=0 if kind is None else 1)

    def log(self, point: Mapping[str, Any]) -> None:
        """Log one point at `point["global_step"]` (without it: at the step before).

        Keys are put under the point's `stage`: "teacher/loss", "layers/parts/attention",
        "logits/eval/dev/accuracy".
        Points of an earlier step than the last one and values that are not finite are left out.
        """
        if self._run is None:
            return
        step = int(point.get("global_step", self._step))
        if step < self._step:
            return
        with self._guard(LACKING):
            self._run.log({**logged(point), "global_step": step}, step=step)
            self._step = step

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table in the run. Cells are plain values."""
        if self._run is None:
            return
        with self._guard(LACKING, lasting=False), _wandb_data_in(self._folder / "wandb"):
            import wandb

            table = wandb.Table(columns=list(columns), data=redact(rows), allow_mixed_types=True)
            self._run.log({name: table}, step=self._step)

    def finish(self, summary: Mapping[str, Any], *, whole: bool = True) -> None:
        """Write the final summary ("scores/dev/accuracy/selected": 0.63) and close the run.

        whole: False marks it as failed, for a run that did not get to its end.
        """
        if self._run is None:
            return
        with self._guard(LACKING):
            self._run.summary.update(summarised(redact(summary)))
        if self._run is not None:
            self._close(exit_code=0 if whole else 1)

    def _start_online(self) -> None:
        if not key_configured():
            self._complain("no wandb API key is configured; the run is tracked offline", None)
            return
        try:
            self._start()
        except Exception as problem:
            _let_go()  # else the service still holds the run's id
            self._complain("wandb can't be reached; the run is tracked offline", problem)

    def _start(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports to wandb's makers
        os.environ.setdefault("WANDB_SILENT", "true")  # settings alone don't silence the login
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            mode="online" if self.mode == "online" else "offline",
            root_dir=str(self._folder),
            use_dot_wandb=False,
            symlink=False,
            resume="allow",
            reinit="create_new",
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            silent=True,
            quiet=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            label_disable=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=2.0,  # seconds that kill -9 may cost
            host="kdlab",
            username="kdlab",
            email="",
            program="kdlab",
            **self._identity,
        )
        self._run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            config=self._config,
            settings=settings,
        )
        self._step = int(self._run.step)
        self.url = self._run.url if self.mode == "online" else None

    def _close(self, *, exit_code: int) -> None:
        run, self._run = self._run, None
        started = time.monotonic()
        with self._guard(LACKING):
            log_file = Path(run.settings.log_internal)
            run.finish(exit_code=exit_code)
            late = time.monotonic() - started >= FINISH_SECONDS
            if self.mode == "online" and (late or _refused(log_file)):
                self._complain(LACKING, None, again=late)

    @contextmanager
    def _guard(self, what: str, *, lasting: bool = True) -> Iterator[None]:
        """lasting: what fails here fails again, so that nothing more is asked of wandb."""
        try:
            yield
        except TrackingError:
            raise
        except Exception as problem:
            if lasting:
                self._run = None
                _let_go()
            self._complain(what, problem)

    def _complain(self, what: str, problem: Exception | None, *, again: bool = False) -> None:
        """Say it once. again: the server only needs more time than a run waits for it."""
        reason = " ".join(str(redact(str(problem))).split()) if problem else None
        if self._fall_back:
            if what not in self._said:
                log.warning("%s%s", what, f" ({reason})" if reason else "")
            self._said.add(what)
            return
        if again:
            raise TrackingError(
                f"wandb's server has not taken all of the run within {FINISH_SECONDS:g} s",
                fix="give the same command again: it goes on where the server stopped",
            )
        raise TrackingError(
            "the run can't be sent to wandb",
            where=reason or what,
            fix="`wandb login` or WANDB_API_KEY, and a connection to the server; or tracking.mode=offline",
        ) from problem


def _refused(log_file: Path) -> bool:
    """Whether the server refused points for good: wandb then stops sending, and says so in its own log only."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any('"level":"ERROR"' in line and "/file_stream" in line for line in lines)


def _let_go() -> None:
    """Have wandb forget its service: at the exit of this process it would show a traceback if that has died."""
    import wandb

    with suppress(Exception, SystemExit):  # it exits with the service's code if that is not 0
        wandb.teardown(exit_code=1)


@contextmanager
def _wandb_data_in(folder: Path) -> Iterator[None]:
    """Keep the copies that wandb makes of a table out of the user's home."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder / "data")
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before


def logged(point: Mapping[str, Any]) -> dict[str, Any]:
    """What is logged of a point, keys under its stage: "logits/eval/dev/accuracy"."""
    prefix = f"{point['stage']}/" if point.get("stage") else ""
    return {
        prefix + key: value
        for key, value in _flat(point).items()
        if key not in ("stage", "global_step") and _loggable(value)
    }


def summarised(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a summary: "scores/dev/accuracy/selected"."""
    return {key: value for key, value in _flat(summary).items() if _loggable(value)}


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by "/"."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping):
            result.update(_flat(value, where))
        else:
            result[where] = value.item() if hasattr(value, "item") else value
    return result


def _loggable(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
