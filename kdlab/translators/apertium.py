"""Apertium, rule-based machine translation (https://apertium.org): which pairs are installed, and how they are asked.

Nothing heavy is imported, since `kdlab plan` looks for routes and identities here.

Texts go through `apertium -u MODE` (unknown words without a mark) with an empty line after each, which the deformatter
makes a sentence's end. With one text directly below another, rules for groups of words reach across the line's end:
"I like DC comics", "site is down" becomes "Me gusta DC sitio", "de cómics es abajo". Even so some pairs' taggers
remember what came before: of 1,200 English tweets (XLM-T) 71 are translated into Spanish otherwise when the order is
another, of 1,200 Spanish ones none into English, 48 into French (Apertium 3.8.3, measured here; with single line ends
566, 290 and 466). So what the translation memory holds of such a text is one of its translations, always the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from kdlab.errors import KdlabError

TIMEOUT = 600.0  # seconds for one call
PROTOCOL = 1  # raised when the same text would be sent, or its translation read, in another way
ENGINE = "apertium"  # the program, and its Debian package

# Modes name languages by ISO 639-1 or, mostly the younger pairs, by ISO 639-3.
THREE_LETTERS = {
    **{"af": "afr", "an": "arg", "ar": "ara", "be": "bel", "bg": "bul", "br": "bre", "ca": "cat", "cy": "cym"},
    **{"da": "dan", "de": "deu", "en": "eng", "eo": "epo", "es": "spa", "eu": "eus", "fr": "fra", "gl": "glg"},
    **{"hi": "hin", "hr": "hrv", "id": "ind", "is": "isl", "it": "ita", "kk": "kaz", "mk": "mkd", "ms": "msa"},
    **{"mt": "mlt", "nb": "nob", "nl": "nld", "nn": "nno", "oc": "oci", "pl": "pol", "pt": "por", "ro": "ron"},
    **{"ru": "rus", "sc": "srd", "sl": "slv", "sr": "srp", "sv": "swe", "tr": "tur", "tt": "tat", "uk": "ukr"},
    **{"ur": "urd"},
}
TWO_LETTERS = {three: two for two, three in THREE_LETTERS.items()}

# Debian's packages of data (bookworm), with the pairs that they translate; some go one way only.
_BOTH_WAYS = {
    ("en", "es"): "apertium-eng-spa",
    ("en", "ca"): "apertium-eng-cat",
    ("en", "gl"): "apertium-en-gl",
    ("en", "eo"): "apertium-eo-en",
    ("es", "fr"): "apertium-fr-es",
    ("es", "it"): "apertium-spa-ita",
    ("es", "pt"): "apertium-es-pt",
    ("es", "ca"): "apertium-spa-cat",
    ("es", "gl"): "apertium-es-gl",
    ("ca", "fr"): "apertium-fra-cat",
    ("ca", "it"): "apertium-cat-ita",
    ("ca", "pt"): "apertium-por-cat",
    ("gl", "pt"): "apertium-pt-gl",
}
_ONE_WAY = {("fr", "eo"): "apertium-eo-fr", ("es", "eo"): "apertium-eo-es", ("ro", "es"): "apertium-es-ro"}
PACKAGES = {**_BOTH_WAYS, **{(target, source): name for (source, target), name in _BOTH_WAYS.items()}, **_ONE_WAY}

_MODE = re.compile(r"([a-z]{2,3}(?:_\w+)?)-([a-z]{2,3}(?:_\w+)?)")
_QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")  # the dictionaries know the plain ones
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DATA = re.compile(r"'([^']+)'|(?<!\S)(/\S+)")  # files that a mode's pipeline names


def data_folder() -> Path | None:
    """Where the installed Apertium has its data, None if it is not installed.

    APERTIUM_DATADIR, or share/apertium beside the folder of the program. That folder is then named to the program.
    """
    program = shutil.which(ENGINE)
    if program is None:
        return None
    named = os.environ.get("APERTIUM_DATADIR")
    return Path(named) if named else Path(program).resolve().parent.parent / "share" / "apertium"


def installed() -> dict[tuple[str, str], str]:
    """The mode of each pair of languages (source, target; by their ISO 639-1 codes, if they have one).

    A variant is a language of its own, "pt_BR". Modes that are none of plain translation are left out.
    """
    folder = data_folder()
    found: dict[tuple[str, str], str] = {}
    for file in sorted(folder.glob("modes/*.mode")) if folder else ():
        if match := _MODE.fullmatch(file.stem):
            found.setdefault((_language(match[1]), _language(match[2])), file.stem)
    return found


def _language(name: str) -> str:
    code, underscore, variant = name.partition("_")
    return TWO_LETTERS.get(code, code) + underscore + variant


def route(
    source: str, target: str, pivots: Mapping[str, str] | None = None, codes: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The modes that a text goes through from `source` to `target`: the pair's own, else two by way of a pivot.

    pivots: languages that are reached by another one: {"fr": "es"} makes en-fr go en-es-fr, and fr-en fr-es-en.
    codes: what Apertium calls a language, where it is not the language's code: {"pt": "pt_BR"}.

    Raises KdlabError, with what to install or to set, where there is no such route.
    """
    pivots, codes = pivots or {}, codes or {}
    modes = installed()

    def mode(one: str, other: str) -> str | None:
        return modes.get((_language(codes.get(one, one)), _language(codes.get(other, other))))

    direct = mode(source, target)
    if direct is not None:
        return (direct,)
    for middle in _configured(source, target, pivots):
        first, second = mode(source, middle), mode(middle, target)
        if first is not None and second is not None:
            return (first, second)
    raise _no_route(source, target, pivots, codes, modes)


def _configured(source: str, target: str, pivots: Mapping[str, str]) -> list[str]:
    """The pivots set for these two languages, that of the target first."""
    return list(dict.fromkeys(pivots[language] for language in (target, source) if language in pivots))


def _no_route(
    source: str,
    target: str,
    pivots: Mapping[str, str],
    codes: Mapping[str, str],
    modes: Mapping[tuple[str, str], str],
) -> KdlabError:
    """What is missing, and each way that there is to mend it: packages to install, codes to correct, pivots to set."""
    configured = _configured(source, target, pivots)
    if data_folder() is None:
        what = f"Apertium, which is to translate {source} into {target}, is not installed."
    elif configured:
        what = f"Apertium has no way from {source} to {target}, neither directly nor by {' or '.join(configured)}."
    else:
        what = f"Apertium has no way from {source} to {target}: the pair is not installed."
    pairs = sorted({*modes, *PACKAGES})
    possible = [middle for one, middle in pairs if one == source and (middle, target) in pairs]
    missing = {middle: _missing([(source, middle), (middle, target)], modes) for middle in possible}
    key = target if target != "en" else source  # texts are mostly translated from English or into it
    offers = []
    named = [f"{language}: {codes[language]}" for language in (source, *configured, target) if language in codes]
    if named and modes:
        offers.append(f"correct translator.codes ({', '.join(named)}): there are the modes {', '.join(modes.values())}")
    elif (source, target) in PACKAGES:
        offers.append(install([PACKAGES[source, target]]))
    offers += [install(missing[middle]) for middle in configured if missing.get(middle)]
    others = [middle for middle in possible if middle not in configured]
    ready = [middle for middle in others if not missing[middle]]
    if ready:
        offers.append(f"set translator.pivots={{{key}: {ready[0]}}}, a way that is installed")
        offers += [f"{{{key}: {middle}}}" for middle in ready[1:]]
    elif others and not offers:
        best = min(others, key=lambda middle: len(missing[middle]))
        offers.append(f"{install(missing[best])}, and set translator.pivots={{{key}: {best}}}")
    if not offers:
        what += " No package for it is known either."
        offers.append(f"choose another translator, or leave {key} out of task.languages")
    return KdlabError(what, where="translator", fix="; or ".join(offers))


def _missing(pairs: Sequence[tuple[str, str]], modes: Mapping[tuple[str, str], str]) -> list[str]:
    """Packages of the pairs that are not installed."""
    return [PACKAGES[pair] for pair in pairs if pair not in modes]


def install(packages: Sequence[str]) -> str:
    """The command that installs Debian packages, and Apertium itself where it is missing."""
    engine = [] if data_folder() else [ENGINE]
    return f"apt-get install {' '.join(dict.fromkeys([*engine, *packages]))}"


def identity(modes: Sequence[str]) -> dict[str, Any]:
    """What tells these modes' translations from others: their names, and a hash of the files that they use."""
    folder = data_folder()
    assert folder is not None, "a route was found, so that Apertium is there"
    digest = hashlib.sha256()
    for mode in modes:
        digest.update(_mode_digest(folder, mode).encode())
    return {"modes": list(modes), "content": digest.hexdigest(), "protocol": PROTOCOL}


def _mode_digest(folder: Path, mode: str) -> str:
    """sha256 over a mode's pipeline, with the files in it by name and content, wherever they lie."""
    pipeline = _mode_file(folder, mode).read_text(encoding="utf-8")
    digest = hashlib.sha256()

    def named(match: re.Match[str]) -> str:
        path = Path(match[1] or match[2])
        if not path.is_file():
            return match[0]
        state = path.stat()
        digest.update(f"{path.name}\0{_checksum(path, state.st_size, state.st_mtime_ns)}\n".encode())
        return path.name

    digest.update(_DATA.sub(named, pipeline).encode())
    return digest.hexdigest()


def _mode_file(folder: Path, mode: str) -> Path:
    return folder / "modes" / f"{mode}.mode"


@cache
def _checksum(path: Path, size: int, changed: int) -> str:
    """Of a file that has this size and was changed at this time: files that change are read again."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def translate(texts: Sequence[str], modes: Sequence[str], *, timeout: float = TIMEOUT) -> list[str | None]:
    """The texts, sent through one mode after the other; None for those of which nothing is left, or nothing was there.

    White space is made single blanks, in what is sent (which has to be one line) and in what comes back (where words
    were dropped); typographic quotes are sent as plain ones.

    timeout: seconds for all texts in one mode. Raises KdlabError if Apertium is gone, fails, takes longer, or loses
    a text.
    """
    found: list[str | None] = [_one_line(text) for text in texts]
    for mode in modes:
        sent = [index for index, text in enumerate(found) if text]
        for index, text in zip(sent, _through(mode, [str(found[index]) for index in sent], timeout), strict=True):
            found[index] = text
    return [text or None for text in found]


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).translate(_QUOTES).split())


def _through(mode: str, texts: Sequence[str], timeout: float) -> list[str]:
    if not texts:
        return []
    said = _run(mode, "".join(f"{text}\n\n" for text in texts), timeout)
    lines = said.split("\n")
    if len(lines) != 2 * len(texts) + 1 or any(line.strip() for line in lines[1::2]):
        raise KdlabError(
            f"Apertium lost some of {len(texts)} texts: it gave {len(lines) // 2} back.",
            where=f"apertium -u {mode}, in the {len(texts)} texts from {texts[0]!r} on",
            fix="Give it these texts one by one to see which it can't take, and remove that one from the data.",
        )
    return [" ".join(line.split()) for line in lines[:-1:2]]


def _run(mode: str, sent: str, timeout: float) -> str:
    """What the program writes. It is a pipeline of processes, which are all ended if this one is interrupted."""
    folder = data_folder()
    if folder is None or not _mode_file(folder, mode).is_file():
        raise KdlabError(
            f"Apertium's mode {mode}, which was there when the run was planned, is gone.",
            where=str(folder or "PATH"),
            fix="Install its package again (`kdlab doctor` names it), or run `kdlab plan` to see what is possible now.",
        )
    command = [ENGINE, "-d", str(folder), "-u", mode]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, complaints = process.communicate(sent.encode("utf-8", "replace"), timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        raise KdlabError(
            f"Apertium did not answer within {timeout:g} s.",
            where=" ".join(command),
            fix="Run the same command again: what was translated is kept.",
        ) from None
    except BaseException:
        _end(process)
        raise
    if process.returncode:
        said = (complaints.strip() or out.strip()).decode("utf-8", "replace").splitlines()
        why = f"was ended by {signal.Signals(-process.returncode).name}" if process.returncode < 0 else "failed"
        raise KdlabError(
            f"Apertium {why}" + (f": {said[-1]}" if said else f" with exit code {process.returncode}."),
            where=" ".join(command),
            fix="Try the command on a line of text. What was translated so far is kept.",
        )
    return out.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
