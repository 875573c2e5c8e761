"""`kdlab doctor`: what a run would find here, and what to do about what is not as it should be."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import kdlab
from kdlab.artifacts import files_below
from kdlab.config import Tracking
from kdlab.translators import apertium

State = Literal["ok", "warn", "problem"]

HUB_SECONDS = 3.0
FEW_BYTES, TOO_FEW_BYTES = 5 * 10**9, 5 * 10**8  # two models of 110M parameters with checkpoints: 3 GB
NO_ADDRESS = "is no web address: it must start with http:// or https://"
OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Check:
    """One thing looked at. A problem stops runs; a warning makes them slower or poorer."""

    name: str
    state: State
    detail: str
    fix: str | None = None


def diagnose(
    *,
    run_offline: bool = False,
    outputs: Path = Path("outputs"),
    store: Path = Path("outputs/artifacts"),
    tracking: Tracking | None = None,
) -> list[Check]:
    """Look at everything; takes seconds, most of them to import torch. `run_offline`: ask no server."""
    return [
        _python(),
        _kdlab(),
        *_torch(),
        *_libraries(),
        _apertium(),
        _hub(run_offline),
        _endpoint(),
        _wandb(tracking or Tracking(name="wandb")),
        _outputs(outputs),
        _store(store),
        _locks(store),
    ]


def show(checks: list[Check]) -> int:
    """Print the checks as a table, fixes below; the exit code is 1 if there is a problem, else 0."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    colours = {"ok": "green", "warn": "yellow", "problem": "bold red"}
    for check in checks:
        table.add_row(f"[{colours[check.state]}]{check.state}[/]", check.name, escape(check.detail))
        if check.fix and check.state != "ok":
            table.add_row("", "", f"[dim]fix:[/] {escape(check.fix)}")
    Console().print(table)
    return int(any(check.state == "problem" for check in checks))


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _kdlab() -> Check:
    where = Path(kdlab.__file__).parent
    return Check("kdlab", "ok", f"{kdlab.__version__} in {where}")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except Exception as problem:
        yield Check("torch", "problem", f"can't be imported: {problem}", "pip install --force-reinstall torch")
        return
    yield Check("torch", "ok", torch.__version__)
    yield _device()
    yield _threads(torch.get_num_threads())
    yield _bf16()


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("device", "ok", f"cuda: {len(names)} ({', '.join(dict.fromkeys(names))})")
    if torch.backends.mps.is_available():
        return Check("device", "ok", "mps: 1")
    if Path("/dev/nvidiactl").exists():
        return Check(
            "device",
            "warn",
            f"there is an NVIDIA driver, but torch {torch.__version__} can't use it; runs go to the CPU",
            "install a CUDA build of torch that fits the driver (`nvidia-smi` shows its version)",
        )
    return Check("device", "ok", "cpu: no GPU is visible")


def _threads(threads: int) -> Check:
    cores = available_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    detail = f"{cores} cores, torch uses {threads} threads, load average {load:.1f}"
    free = max(1, int(cores - load + 0.5))
    if threads > free:
        busy = f"{detail}: others are busy here, and threads that wait for each other are slow"
        return Check("cpu", "warn", busy, f"hardware.threads={free} is faster until the others are done")
    return Check("cpu", "ok", detail)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _bf16() -> Check:
    import torch

    from kdlab.engine.device import native_bf16

    if torch.cuda.is_available():
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        return Check("bf16", "ok", "the GPU computes in bf16" if good else "not on this GPU: precision=fp16 is quicker")
    if native_bf16():
        return Check("bf16", "ok", "the CPU computes in bf16: precision=bf16 is quicker")
    return Check("bf16", "ok", "not seen in this CPU, where it is very slow: keep precision=fp32, the default")


def _libraries() -> Iterator[Check]:
    try:
        wanted = metadata.requires("kdlab") or []
    except metadata.PackageNotFoundError:
        detail = "kdlab is not installed, it runs from its folder: its ranges of versions are not known"
        yield Check("libraries", "warn", detail, "pip install -e . in that folder")
        return
    found = compare(wanted)
    yield Check("libraries", "ok", ", ".join(f"{item.name} {item.have}" for item in found if item.fits))
    for name, have, want, fits in found:
        if not fits:
            detail = f"{have or 'not installed'}, kdlab needs {want}"
            yield Check(name, "problem", detail, f"pip install '{name}{want}'")


class Library(NamedTuple):
    """An installed version (None: not installed) beside the range that is wanted."""

    name: str
    have: str | None
    want: str
    fits: bool


def compare(wanted: Iterable[str]) -> list[Library]:
    """Compare what is installed with requirements ("torch<3,>=2.6"); those of extras are left out."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            have = None
        fits = have is not None and requirement.specifier.contains(have, prereleases=True)
        found.append(Library(requirement.name, have, str(requirement.specifier), fits))
    return found


def _apertium() -> Check:
    """What translator=apertium would find; few runs need it."""
    pairs = {pair for pair in apertium.installed() if not any("_" in language for language in pair)}  # no variants
    missing = sorted({package for pair, package in apertium.PACKAGES.items() if pair not in pairs})
    if apertium.data_folder() is None:
        detail = f"not installed, which only translator=apertium needs: {apertium.install(missing)}"
    elif not pairs:
        detail = f"installed, but no pair of languages is: {apertium.install(missing)}"
    else:
        parts = [f"both ways {' '.join('-'.join(pair) for pair in sorted(pairs) if pair < pair[::-1] in pairs)}"]
        parts += [f"{one} to {other}" for one, other in sorted(pairs) if (other, one) not in pairs]
        pivots = _pivots(pairs)
        parts += [f"by translator.pivots from en also {', '.join(pivots)}"] if pivots else []
        parts += [f"further pairs: {apertium.install(missing)}"] if missing else []
        detail = "; ".join(parts)
    return Check("apertium", "ok", detail)


def _pivots(pairs: Set[tuple[str, str]]) -> list[str]:
    """Languages that English reaches by another one: "fr (ca, es)"."""
    near = {end for one, end in pairs if one == "en"}
    by = {end: sorted(near & {one for one, other in pairs if other == end}) for _, end in sorted(pairs)}
    return [f"{end} ({', '.join(ways)})" for end, ways in by.items() if ways and end not in {"en", *near}]


def _hub(run_offline: bool) -> Check:
    flags = [name for name in OFFLINE_FLAGS if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if flags:
        detail = f"{' and '.join(flags)} set: only what is in the cache can be used"
        return Check("hub", "ok" if run_offline else "warn", detail, f"unset {' '.join(flags)}")
    if run_offline:
        return Check("hub", "ok", "not asked")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        return Check("hub", "problem", f"HF_ENDPOINT is no web address: {endpoint}", "unset HF_ENDPOINT")
    from huggingface_hub import get_token

    token = "a token is configured" if get_token() else "no token: public models and data only"
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError as answer:
        if answer.code >= 500:
            return Check("hub", "warn", f"{endpoint} answers {answer.code} {answer.reason}", "try again later")
    except OSError as problem:
        detail = f"{endpoint} can't be reached: {getattr(problem, 'reason', problem)}"
        fix = "check the network and its proxy, or set HF_ENDPOINT to a mirror; what is cached or local works"
        return Check("hub", "warn", detail, fix)
    return Check("hub", "ok", f"{endpoint} answers; {token}")


def _endpoint() -> Check:
    """What rationales=openai and students behind an endpoint would use; few runs need it."""
    key = f"OPENAI_API_KEY is {'set' if os.environ.get('OPENAI_API_KEY') else 'not set'}"
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        return Check("endpoint", "ok", f"{key}; OPENAI_BASE_URL is not set: OpenAI's own address")
    return Check("endpoint", "ok", f"{key}; OPENAI_BASE_URL {_redacted(url)}")


def _redacted(url: str) -> str:
    """Where it points, without user, password and query; of what is no web address nothing."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return NO_ADDRESS
    if not host or parts.scheme not in ("http", "https"):
        return NO_ADDRESS
    host = f"[{host}]" if ":" in host else host
    return f"points to {parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def _wandb(tracking: Tracking) -> Check:
    from kdlab.engine.tracking import key_configured, resolve_mode

    mode = resolve_mode(tracking)
    key = "a key is configured" if key_configured() else "no key is configured"
    if mode == "online" and not key_configured():
        return Check(
            "wandb",
            "warn",
            f"{mode}, but {key}: runs are tracked offline",
            "wandb login, or tracking.mode=offline",
        )
    return Check("wandb", "ok", f"{mode}: {key}")


def _outputs(folder: Path) -> Check:
    problem = _write_error(folder)
    if problem:
        return Check(
            "outputs",
            "problem",
            f"{folder} can't be written: {problem}",
            "give outputs=FOLDER, one you can write to",
        )
    return Check("outputs", "ok", f"{folder} can be written")


def _store(folder: Path) -> Check:
    problem = _write_error(folder)
    if problem:
        return Check(
            "store",
            "problem",
            f"{folder} can't be written: {problem}",
            "give store=FOLDER, one you can write to",
        )
    used = sum(file.stat().st_size for file in files_below(folder)) if folder.is_dir() else 0
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{folder}: {size(used)} used, {size(free)} free on its disk"
    if free >= FEW_BYTES:
        return Check("store", "ok", detail)
    fix = "kdlab store prune, or give store=FOLDER on another disk"
    return Check("store", "problem" if free < TOO_FEW_BYTES else "warn", detail, fix)


def _locks(folder: Path) -> Check:
    from filelock import FileLock, Timeout

    fix = "give store=FOLDER on a local disk: without locks, jobs that share a teacher spoil it"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=_existing(folder)) as probe:
            path = Path(probe) / "lock"
            with FileLock(path):
                try:
                    FileLock(path).acquire(timeout=0)
                except Timeout:
                    return Check("locks", "ok", "one process at a time, as it should be")
    except (OSError, NotImplementedError) as problem:
        return Check("locks", "problem", f"files can't be locked in {folder}: {problem}", fix)
    return Check("locks", "problem", f"a lock in {folder} can be taken twice", fix)


def _write_error(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return None
    except OSError as problem:
        return problem.strerror or str(problem)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def size(count: float) -> str:
    """Bytes for people: 92 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
