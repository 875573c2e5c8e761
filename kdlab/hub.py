"""Files of the Hugging Face Hub, by commit, in the Hub's own cache.

No other module fetches files: everything else reads the folders that `get` gives, so that what is in the cache is used
without a request, and never anything of another commit. A file is compared with the Hub's checksum when it is fetched;
what is whole is remembered beside the snapshots:

    HF_HUB_CACHE/models--owner--name/snapshots/COMMIT/    as the Hub's own client leaves it
    HF_HUB_CACHE/models--owner--name/kdlab/COMMIT.json    which files a part is made of, their sizes and checksums
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from kdlab.artifacts import write_text
from kdlab.errors import HubError, ModelError, StoreError, disk_errors
from kdlab.integrity import checksum

Kind = Literal["model", "dataset"]
What = Literal["config", "tokenizer", "weights", "rows"]
T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0)  # seconds before a request that failed for the moment is made again
LONGEST_WAIT = 120.0  # seconds that the Hub may ask to be left alone
TOLD = 5.0  # seconds from which on a wait is told
PASSING = (408, 429, 502, 503, 504)  # statuses that may be another one soon

COMMIT = re.compile(r"[0-9a-f]{40}")
GIT_DIGITS = 40  # of the checksum of a small file, git's own sha1
CONFIG = "config.json"
TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|target_vocab|tekken)\.json|vocab\.txt"
    r"|merges\.txt|[^/]+\.(model|spm)|chat_template\.jinja|additional_chat_templates/[^/]+\.jinja"
)
VOCABULARY = re.compile(r"tokenizer\.json|vocab\.(json|txt)|tekken\.json|[^/]+\.(model|spm)")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CARD = ("README.md", ".huggingface.yaml", "dataset_infos.json")  # what says how a data set's files are to be read


@dataclass(frozen=True, order=True)
class Part:
    """What is read of a repository. rows: those of a data set's configuration `config`, or of its folder `folder`."""

    kind: Kind
    name: str
    commit: str
    what: What
    config: str | None = None
    folder: str | None = None

    def __str__(self) -> str:
        if self.kind == "model":
            return f"model {self.name} ({self.what})"
        inner = [self.config or "", f"folder {self.folder}" if self.folder else ""]
        return f"data set {self.name}" + "".join(f", {one}" for one in inner if one)

    @property
    def key(self) -> str:
        """Its name in the record of the commit."""
        return self.what if self.kind == "model" else f"rows:{self.config or ''}:{self.folder or ''}"

    @property
    def snapshot(self) -> Path:
        """The folder with the commit's files, as far as they were fetched."""
        return repository(self.kind, self.name) / "snapshots" / self.commit


@dataclass(frozen=True)
class File:
    """A file as the Hub lists it. checksum: sha256 of a large file, git's sha1 of a small one; None: not known."""

    name: str
    size: int | None
    checksum: str | None


Splits = dict[str, list[str]]  # names of files by split; under "" those that belong to none
Names = Callable[[Part], Splits]  # the files of a data set's part, asked of the Hub
Tell = Callable[[Part, File], None]  # hears of each file before it is fetched


@dataclass
class Record:
    """What is known to be whole of a commit. parts: their files, by key; files: [size, checksum] by name."""

    parts: dict[str, Splits] = field(default_factory=dict)
    files: dict[str, list[Any]] = field(default_factory=dict)


_unwritten: dict[Path, Record] = {}  # records of a cache that can only be read


def offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)


def endpoint() -> str:
    """Where the Hub is, without a password that may stand in the address."""
    return re.sub(r"//[^/@]*@", "//", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository(kind: Kind, name: str) -> Path:
    return cache_folder() / f"{kind}s--{name.replace('/', '--')}"


# What is there


def absent(part: Part) -> str | None:
    """What keeps a part from being read without a request, in a few words; None: nothing. Asks nobody."""
    remembered = splits(part)
    if remembered is None:
        return None if part.kind == "model" and _plausible(part) else "not in the cache"
    files = _read_record(part).files
    for name in chain.from_iterable(remembered.values()):
        file, size = part.snapshot / name, files[name][0]
        if not file.is_file():
            return f"{name} is not in the cache"
        if size is not None and file.stat().st_size != size:
            return f"{name} is damaged in the cache: {file.stat().st_size} bytes, it should be {size}"
    return None


def splits(part: Part) -> Splits | None:
    """The files that a part is made of, as they were remembered."""
    return _read_record(part).parts.get(part.key)


def _plausible(part: Part) -> bool:
    """Whether files that another program left in the cache will do. Of those of a data set nobody can tell."""
    folder = part.snapshot
    if not (folder / CONFIG).is_file():
        return False
    if part.what == "config":
        return True
    there = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    if part.what == "tokenizer":
        return any(VOCABULARY.fullmatch(name) for name in there)
    found = next((name for name in WEIGHTS if name in there), None)
    if found is None:
        return False
    try:
        shards = _shards(folder / found) if found.endswith(".index.json") else [found]
    except ModelError:
        return False
    return all((folder / name).is_file() and weights_fault(folder / name) is None for name in shards)


def weights_fault(file: Path) -> str | None:
    """Why safetensors can't be read whole, as far as their head tells; None of whole ones, and of other files."""
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return str(error)


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index.name} is no list of weights: {type(error).__name__} {error}",
            where=str(index),
            fix="choose another revision, or delete the file and fetch it again",
        ) from error


# Getting it


def get(part: Part, *, ask: Names | None = None, tell: Tell | None = None) -> Path:
    """The folder with a part's files; what is not in the cache is fetched first.

    ask: gives the files of a data set. Raises HubError for what can't be had, ModelError for a model that lacks what
    it needs.
    """
    if absent(part) is not None:
        obtain(part, files(part, ask=ask), tell=tell)
    return part.snapshot


def obtain(part: Part, found: Mapping[str, Sequence[File]], *, tell: Tell | None = None, check: bool = False) -> None:
    """Fetch these files of a part, as `files` gives them, and remember that it is made of them.

    check: compare what is there already with the Hub's checksums, whatever was remembered. Raises HubError.
    """
    for file in chain.from_iterable(found.values()):
        fetch(part, file, tell=tell, check=check)
    _complete(part, found)


def files(part: Part, *, ask: Names | None = None) -> dict[str, list[File]]:
    """The files that a part is made of, as the Hub lists them. Fetches a model's list of shards. Raises as `get`.

    Of a data set by split; under "" those that belong to none, which are all of a model.
    """
    refuse_offline(part)
    listed = listing(part.kind, part.name, part.commit)
    if part.kind == "dataset":
        assert ask is not None
        cards = [name for name in CARD if name in listed]
        for name in cards:
            fetch(part, listed[name])  # first, since `datasets` does not say why it can't have them
        chosen = {"": cards, **ask(part)}
    elif part.what == "tokenizer":
        chosen = {"": [name for name in listed if name == CONFIG or TOKENIZER.fullmatch(name)]}
    elif part.what == "config":
        chosen = {"": [CONFIG]}
    else:
        further = [name for name in (CONFIG, "generation_config.json") if name in listed]
        chosen = {"": [*further, *_weights(part, listed)]}
    for name in chain.from_iterable(chosen.values()):
        if name not in listed:
            raise HubError(f"{part} has no file {name} at {part.commit[:12]}", where=page(part))
    return {split: [listed[name] for name in some] for split, some in chosen.items()}


def _weights(part: Part, listed: dict[str, File]) -> list[str]:
    found = next((name for name in WEIGHTS if name in listed), None)
    if found is None:
        raise ModelError(
            "the model has no weights",
            where=part.name,
            fix="it needs model.safetensors or pytorch_model.bin",
        )
    if not found.endswith(".index.json"):
        return [found]
    return [found, *_shards(fetch(part, listed[found]))]


def fetch(part: Part, file: File, *, tell: Tell | None = None, check: bool = False) -> Path:
    """One file of a part, whole. Raises HubError."""
    from huggingface_hub import hf_hub_download

    place = part.snapshot / file.name
    if place.is_file() and _is_whole(part, place, file, check=check):
        return place

    def download() -> str:
        return hf_hub_download(part.name, file.name, repo_type=part.kind, revision=part.commit)

    with _alone(part):
        if place.is_file() and _is_whole(part, place, file, check=True):
            return place  # another process was quicker
        if tell is not None:
            tell(part, file)
        for _ in range(2):  # what is spoilt may lie in the cache under the name of what is asked for
            _remove(place)
            place = Path(asked(download, part.kind, part.name, part.commit, file.name))
            if _is_whole(part, place, file, check=True):
                return place
        size = place.stat().st_size
        _remove(place)
    raise HubError(
        f"what the Hub sends of {file.name} is not what it lists: {size} bytes with another checksum"
        + ("" if file.size is None else f", {file.size} bytes are listed"),
        where=f"{page(part)}/resolve/{part.commit}/{file.name}",
        fix="give the same command again; if it stays so, a proxy or mirror (HF_ENDPOINT) changes the file",
    )


def get_config(part: Part) -> Path:
    """A model's config.json, which is looked at before anything else of it is fetched. Raises HubError."""
    from huggingface_hub import hf_hub_download

    def download() -> str:
        return hf_hub_download(part.name, CONFIG, revision=part.commit)

    return Path(asked(download, part.kind, part.name, part.commit, CONFIG))


def _complete(part: Part, found: Mapping[str, Sequence[File]]) -> None:
    """Remember that a part is made of these files, which `fetch` has seen whole."""
    record = _read_record(part)
    record.parts[part.key] = {split: [file.name for file in some] for split, some in found.items()}
    record.files |= {file.name: [file.size, file.checksum] for some in found.values() for file in some}
    _write_record(part, record)


def missing(lines: Sequence[str], command: str = "kdlab fetch") -> HubError:
    """The error for what is not in the cache, a line each, where the Hub is not to be asked."""
    return HubError(
        "what this needs of the Hub is not in the cache:" + "".join(f"\n  - {line}" for line in lines),
        where=f"{cache_folder()} (HF_HUB_OFFLINE is set)",
        fix=f"where there is a network, `{command}` gets all that is needed, and says what to copy here",
    )


def refuse_offline(part: Part) -> None:
    if offline() and (why := absent(part)) is not None:
        raise missing([f"{part}: {why}"])


def commit(kind: Kind, name: str, revision: str) -> str:
    """The commit that a branch or tag of the Hub stands for; offline, that it stood for. Raises HubError."""
    from huggingface_hub import HfApi

    def ask() -> str:
        return str(HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10).sha)

    if COMMIT.fullmatch(revision):
        return revision
    if not offline():
        found = asked(ask, kind, name, revision)
        if not COMMIT.fullmatch(found):
            raise HubError(f"the Hub names no commit for {revision}: {found}", where=f"{endpoint()}/{name}")
        return found
    known = known_commit(kind, name, revision)
    if known is None:
        what = f"{'model' if kind == 'model' else 'data set'} {name}{'' if revision == 'main' else f' at {revision}'}"
        raise missing([f"{what}: not in the cache"])
    return known


def known_commit(kind: Kind, name: str, revision: str) -> str | None:
    """The commit that a branch or tag stood for when it was last seen, of which there is something in the cache."""
    reference = repository(kind, name) / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


@cache
def listing(kind: Kind, name: str, commit: str) -> dict[str, File]:
    """All files of a commit by name. Raises HubError."""
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi().repo_info(name, repo_type=kind, revision=commit, files_metadata=True, timeout=60)

    found = {}
    for one in asked(ask, kind, name, commit).siblings or []:
        if PurePosixPath(one.rfilename).is_absolute() or ".." in PurePosixPath(one.rfilename).parts:
            raise HubError(
                f"the Hub lists a file outside of the repository: {one.rfilename}",
                where=f"{endpoint()}/{name}",
                fix="don't use this repository, or this mirror (HF_ENDPOINT)",
            )
        large = getattr(one, "lfs", None)
        found[one.rfilename] = File(one.rfilename, one.size, large.sha256 if large else one.blob_id)
    return found


def remember(kind: Kind, name: str, revision: str, commit: str) -> None:
    """Let a branch or tag stand for a commit in the cache, as it does on the Hub, for who asks without a network."""
    if COMMIT.fullmatch(revision) or known_commit(kind, name, revision) == commit:
        return
    reference = repository(kind, name) / "refs" / revision
    with suppress(OSError):  # a cache that can only be read keeps what it has
        reference.parent.mkdir(parents=True, exist_ok=True)
        scratch = reference.with_name(f".{reference.name}.{os.getpid()}")
        scratch.write_text(commit, encoding="utf-8")
        scratch.replace(reference)


def page(part: Part) -> str:
    return f"{endpoint()}/{'datasets/' if part.kind == 'dataset' else ''}{part.name}"


def _is_whole(part: Part, place: Path, file: File, *, check: bool) -> bool:
    """check: read it, whatever was remembered."""
    if file.size is not None and place.stat().st_size != file.size:
        return False
    if file.checksum is None or (not check and _read_record(part).files.get(file.name) == [file.size, file.checksum]):
        return True
    if len(file.checksum) == GIT_DIGITS:
        from huggingface_hub.utils.sha import git_hash

        return str(git_hash(place.read_bytes())) == file.checksum
    return checksum(place) == file.checksum


@contextmanager
def _alone(part: Part) -> Iterator[None]:
    """One process at a time fetches the files of a commit: two that mend one would take it from each other."""
    from filelock import FileLock

    lock = FileLock(_record_file(part).with_suffix(".fetching"))
    held = False
    with suppress(OSError, NotImplementedError):  # in a cache that can only be read there is nothing to mend
        _record_file(part).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        held = True
    try:
        yield
    finally:
        if held:
            lock.release()


def _remove(place: Path) -> None:
    """A file of the cache, with the blob it points to."""
    with suppress(OSError):
        blob = place.resolve()
        place.unlink(missing_ok=True)
        if blob.is_relative_to(cache_folder().resolve()):
            blob.unlink(missing_ok=True)


def _record_file(part: Part) -> Path:
    return repository(part.kind, part.name) / "kdlab" / f"{part.commit}.json"


def _read_record(part: Part) -> Record:
    file = _record_file(part)
    with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        found = Record(**json.loads(file.read_text(encoding="utf-8")))
        for name in chain.from_iterable(chain.from_iterable(one.values() for one in found.parts.values())):
            _size, _sum = found.files[name]
        return found
    return _unwritten.get(file, Record())


def _write_record(part: Part, record: Record) -> None:
    from filelock import FileLock

    file = _record_file(part)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            other = _read_record(part)  # another process may have fetched another part meanwhile
            whole = {"parts": other.parts | record.parts, "files": other.files | record.files}
            write_text(file, json.dumps(whole, indent=1))  # splits in their order
    except OSError:
        _unwritten[file] = record


# What goes wrong

AGAIN = "give the same command again, what was fetched is kept"
FAILINGS: Sequence[tuple[set[str], str | None, str, str]] = (
    # names of classes in an error's causes, or a pattern of what they say; what it means; what to do; the first fits
    (
        {"OfflineModeIsEnabled"},
        None,
        "offline, and it is not in the cache",
        "`kdlab fetch` where there is a network, or unset HF_HUB_OFFLINE",
    ),
    (
        {"TooManyRedirects"},
        None,
        "the Hub sends from one address to the next without end",
        "check HF_ENDPOINT and the proxy",
    ),
    (
        {"JSONDecodeError", "FileMetadataError", "DecodingError"},
        "X-Repo-Commit",
        "what answers is not the Hub",
        "a proxy or a login page may: check HF_ENDPOINT, HTTPS_PROXY and NO_PROXY",
    ),
    (
        {"SSLError"},
        r"CERTIFICATE_|\[SSL",
        "the Hub's certificate is not trusted, or TLS fails",
        "if a proxy here opens TLS, SSL_CERT_FILE=FILE names its certificate; also check the clock and HF_ENDPOINT",
    ),
    (
        {"gaierror"},
        "Name or service not known|name resolution|getaddrinfo|No address",
        "the Hub's name can't be resolved",
        "check the network, the name server and HF_ENDPOINT",
    ),
    (
        {"ProxyError"},
        None,
        "the proxy does not let this through",
        "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY",
    ),
    (
        {"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"},
        None,
        "HF_ENDPOINT is no web address",
        "unset it, or give http:// or https://",
    ),
    (
        {"TimeoutException"},
        None,
        "the Hub does not answer in time",
        f"{AGAIN}; HF_HUB_DOWNLOAD_TIMEOUT=60 and HF_HUB_ETAG_TIMEOUT=60 wait longer",
    ),
    (
        {"ReadError", "WriteError", "RemoteProtocolError"},
        "Consistency check failed",
        "the connection broke off",
        AGAIN,
    ),
    (
        {"NetworkError", "TransportError", "ConnectionError"},
        None,
        "the Hub can't be reached",
        "check the network, HTTPS_PROXY and HF_ENDPOINT; `kdlab doctor` tells more",
    ),
)


def asked(ask: Callable[[], T], kind: Kind, name: str, revision: str, file: str | None = None) -> T:
    """What the Hub answers; asked again where it fails for the moment. file: the one that is asked for.

    Raises HubError for whatever goes wrong, StoreError where the cache can't be written.
    """
    with disk_errors(f"fetching {file or name}", cache_folder(), place="HF_HOME"):
        try:
            return patiently(ask)
        except Exception as error:
            found = trouble(error, kind, name, revision=revision, file=file)
            if found is None:
                raise
            raise found from error


def disk_trouble(error: BaseException, doing: str) -> StoreError | None:
    """What the disk refuses, if it is what an error came from while something was written to the caches."""
    for one in causes(error):
        try:
            if isinstance(one, OSError):
                with disk_errors(doing, cache_folder(), place="HF_HOME"):
                    raise one
        except StoreError as found:
            return found
        except OSError:
            continue
    return None


def patiently(ask: Callable[[], T]) -> T:
    """What a request gives; made again, after a while, where the Hub says that it is busy or breaks off."""
    for wait in (*WAITS, None):
        try:
            return ask()
        except Exception as error:
            pause = _pause(error, wait)
            if pause is None:
                raise
            if pause >= TOLD:
                print(f"the Hub asks to wait for {pause:.0f} seconds", file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _pause(error: Exception, wait: float | None) -> float | None:
    """Seconds before it is worth asking again; None: not worth it."""
    if wait is None:
        return None
    for one in causes(error):
        status, named = _status(one), kinds(one)
        if status in PASSING:
            given = _retry_after(one)
            return wait if given is None else given if given <= LONGEST_WAIT else None
        if status is not None or "ConnectError" in named:
            return None
        if named & {"RemoteProtocolError", "ReadError", "WriteError"} or "Consistency check failed" in str(one):
            return wait
    return None


def trouble(
    error: BaseException, kind: Kind, name: str, *, revision: str | None = None, file: str | None = None
) -> HubError | None:
    """What a request's error means, in words; None for one that has nothing to do with Hub and network."""
    what = f"{'model' if kind == 'model' else 'data set'} {name}"
    home = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{name}"
    where = f"{home}/resolve/{revision}/{file}" if file else home
    said = [(kinds(one), one) for one in causes(error)]
    named = {each for one, _ in said for each in one}
    if "GatedRepoError" in named:
        return HubError(
            f"access to {what} must be asked for",
            where=home,
            fix="accept its terms on that page, then `hf auth login`, or set HF_TOKEN to a token of that account",
        )
    if "RevisionNotFoundError" in named:
        return HubError(f"{what} has no revision '{revision}'", where=home, fix="give a branch, tag or commit")
    if "RepositoryNotFoundError" in named:
        return HubError(
            f"the Hub has no such {what}, or it is private",
            where=endpoint(),
            fix="check the spelling; for a local folder give its path; for a private one `hf auth login` or HF_TOKEN",
        )
    if "RemoteEntryNotFoundError" in named:
        return HubError(f"{what} has no file {file}", where=home, fix="choose another revision")
    for _, one in said:
        status = _status(one)
        if status is not None:
            return _refusal(status, _retry_after(one), what, where)
    text = " ".join(str(one) for _, one in said)
    for names, pattern, meant, fix in FAILINGS:
        if named & names or (pattern is not None and re.search(pattern, text)):
            of = f"{file} of {what}" if file else what
            return HubError(f"{of}: {meant} ({_short(said[-1][1])})", where=where, fix=fix)
    return None


def _refusal(status: int, wait: float | None, what: str, where: str) -> HubError:
    if status in (401, 403):
        return HubError(
            f"{what}: the Hub refuses ({status})",
            where=where,
            fix="`hf auth login`, or set HF_TOKEN to a token that may read it; an old one that is no longer valid is "
            "refused too: `hf auth whoami`",
        )
    if status == 407:
        return HubError(
            f"{what}: the proxy wants a password (407)", where=where, fix="HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"
        )
    if status == 429:
        when = "later" if wait is None else f"in {wait:.0f} seconds"
        return HubError(
            f"{what}: the Hub was asked too often (429)",
            where=where,
            fix=f"{AGAIN}, {when}; with a token (HF_TOKEN) more is allowed",
        )
    if status >= 500:
        return HubError(
            f"{what}: the Hub fails ({status})", where=where, fix=f"{AGAIN}, later; https://status.huggingface.co"
        )
    return HubError(
        f"{what}: the Hub answers {status}",
        where=where,
        fix="check HF_ENDPOINT and the proxy; `kdlab doctor` tells more",
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the outermost first."""
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        inner = inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__)


def kinds(error: BaseException) -> set[str]:
    """The names of an error's classes: those of the HTTP client are another module's in each version of the library."""
    return {one.__name__ for one in type(error).__mro__}


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None


def _retry_after(error: BaseException) -> float | None:
    try:
        return float(error.response.headers["Retry-After"])  # type: ignore[attr-defined]
    except (AttributeError, KeyError, ValueError, TypeError):
        return None


def _short(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200] if first else type(error).__name__
