"""Every test runs without the network, without anyone's accounts, and on one thread."""

from __future__ import annotations

import gc
import ipaddress
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lab import Lab

HOME = Path(tempfile.mkdtemp(prefix="kdlab-tests-"))

# Read when the libraries are imported, and inherited by the processes that tests start.
os.environ.update(
    HF_HOME=str(HOME / "huggingface"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_ERROR_REPORTING="false",
    WANDB_CACHE_DIR=str(HOME / "wandb-cache"),
    WANDB_CONFIG_DIR=str(HOME / "wandb-config"),
    WANDB_DATA_DIR=str(HOME / "wandb-data"),
    NETRC=str(HOME / "netrc"),
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)
for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
    os.environ.pop(name, None)
for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "KDLAB_DEBUG"):
    os.environ.pop(name, None)


class NetworkBlocked(RuntimeError):
    """A test wanted to leave this machine."""


def _local(host: object) -> bool:
    if host is None:
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    if text in ("", "localhost", "0.0.0.0", "::", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(text.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(host: object) -> None:
    raise NetworkBlocked(f"tests may only reach this machine, not {host!r}: use a local server or a fake")


def _guard_sockets() -> None:
    lookup, connect, connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex

    def guarded_lookup(host: Any, *rest: Any, **named: Any) -> Any:
        if not _local(host):
            _refuse(host)
        return lookup(host, *rest, **named)

    def guarded(original: Any) -> Any:
        def method(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _local(address[0]):
                _refuse(address[0])
            return original(self, address)

        return method

    socket.getaddrinfo = guarded_lookup
    socket.socket.connect = guarded(connect)  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded(connect_ex)  # type: ignore[method-assign]


def pytest_configure(config: pytest.Config) -> None:
    _guard_sockets()
    os.fsync = lambda file: None  # tests kill processes, never the machine: no write need wait for the disk


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests on one worker, so that what they share is made once; some files name groups of their own."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


_file: Path | None = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is there before a file's tests is out of the reach of the collections of garbage in them.

    A run collects after each training and each stage. Over all libraries and five thousand tests that takes half a
    second each time, which was most of a run.
    """
    global _file
    if item.path != _file:
        _file = item.path
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One store for all tests that run the command line in this process."""
    from lab import Lab

    return Lab(tmp_path_factory.mktemp("lab"))
