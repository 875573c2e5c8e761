"""Apertium's pairs, routes and identities, and texts on their way through it; the program itself is a stand-in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fake_apertium import FakeApertium, install
from kdlab.errors import KdlabError
from kdlab.translators import apertium


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApertium:
    return install(monkeypatch, tmp_path / "usr", "eng-spa", "spa-eng", "es-fr", "fr-es", "eng-cat")


@pytest.fixture
def absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


# pairs


def test_modes_are_known_by_two_letters_whatever_they_are_called(fake: FakeApertium) -> None:
    for mode in ("en-gl", "es-pt_BR", "cat-por_BR", "xyz-eng", "eo-en-bytecode", "eng-spa-tagger", "eco-es-fr"):
        fake.add(mode)
    assert apertium.installed() == {
        ("en", "es"): "eng-spa",
        ("es", "en"): "spa-eng",
        ("es", "fr"): "es-fr",
        ("fr", "es"): "fr-es",
        ("en", "ca"): "eng-cat",
        ("en", "gl"): "en-gl",
        ("es", "pt_BR"): "es-pt_BR",
        ("ca", "pt_BR"): "cat-por_BR",
        ("xyz", "en"): "xyz-eng",
    }


def test_data_elsewhere(fake: FakeApertium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FakeApertium(tmp_path / "opt", "eng-epo")
    monkeypatch.setenv("APERTIUM_DATADIR", str(other.data))
    assert apertium.installed() == {("en", "eo"): "eng-epo"}
    assert apertium.translate(["dog"], ["eng-epo"]) == ["doga"]


def test_without_apertium_there_are_no_pairs(absent: None) -> None:
    assert apertium.data_folder() is None and apertium.installed() == {}


# routes


def test_routes(fake: FakeApertium) -> None:
    assert apertium.route("en", "es") == ("eng-spa",)
    assert apertium.route("en", "fr", {"fr": "es"}) == ("eng-spa", "es-fr")
    assert apertium.route("fr", "en", {"fr": "es"}) == ("fr-es", "spa-eng")
    assert apertium.route("en", "es", {"es": "ca"}) == ("eng-spa",)  # the pair itself goes first
    assert apertium.route("fr", "en", {"fr": "ca", "en": "es"}) == ("fr-es", "spa-eng")


def test_a_variant_is_asked_for_by_its_code(fake: FakeApertium) -> None:
    fake.add("eng-cat_valencia")
    fake.add("es-pt_BR")
    assert apertium.route("en", "ca", codes={"ca": "cat_valencia"}) == ("eng-cat_valencia",)
    assert apertium.route("en", "pt", {"pt": "es"}, {"pt": "pt_BR"}) == ("eng-spa", "es-pt_BR")
    with pytest.raises(KdlabError, match="no way from en to pt"):
        apertium.route("en", "pt", {"pt": "es"})
    with pytest.raises(KdlabError, match="no way from en to es") as caught:
        apertium.route("en", "es", codes={"es": "es_MX"})
    assert str(caught.value.fix).startswith("correct translator.codes (es: es_MX): there are the modes eng-cat, ")


@pytest.mark.parametrize(
    ("pair", "pivots", "said", "fix"),
    [
        (("en", "fr"), {}, "the pair is not installed", "set translator.pivots={fr: es}, a way that is installed"),
        (("fr", "en"), {}, "the pair is not installed", "set translator.pivots={fr: es}, a way that is installed"),
        (("en", "gl"), {}, "the pair is not installed", "apt-get install apertium-en-gl"),
        (("en", "pt"), {"pt": "es"}, "neither directly nor by es", "apt-get install apertium-es-pt"),
        (
            ("en", "it"),
            {"it": "gl"},
            "neither directly nor by gl",
            "install apertium-cat-ita, and set translator.pivots",
        ),
        (("en", "de"), {}, "No package for it is known", "leave de out of task.languages"),
        (("de", "en"), {}, "No package for it is known", "leave de out of task.languages"),
    ],
)
def test_where_there_is_no_route(
    fake: FakeApertium, pair: tuple[str, str], pivots: dict[str, str], said: str, fix: str
) -> None:
    with pytest.raises(KdlabError, match=said) as caught:
        apertium.route(*pair, pivots)
    assert fix in str(caught.value.fix)


def test_without_apertium_it_says_what_to_install(absent: None) -> None:
    with pytest.raises(KdlabError, match="translate en into es, is not installed") as caught:
        apertium.route("en", "es")
    assert caught.value.fix == "apt-get install apertium apertium-eng-spa"
    with pytest.raises(KdlabError) as caught:
        apertium.route("en", "fr", {"fr": "es"})
    assert caught.value.fix == "apt-get install apertium apertium-eng-spa apertium-fr-es"


# identity


def test_what_tells_translations_apart(fake: FakeApertium) -> None:
    first = apertium.identity(["eng-spa", "es-fr"])
    assert first["modes"] == ["eng-spa", "es-fr"] and len(first["content"]) == 64
    assert apertium.identity(["eng-spa", "es-fr"]) == first != apertium.identity(["eng-spa"])
    fake.add("es-fr").write_text("other words")
    second = apertium.identity(["eng-spa", "es-fr"])
    assert second["content"] != first["content"]
    mode = fake.data / "modes" / "eng-spa.mode"
    mode.write_text(mode.read_text() + "| lt-proc -p")
    assert apertium.identity(["eng-spa", "es-fr"])["content"] not in (first["content"], second["content"])


def test_where_the_data_lies_is_no_part_of_it(
    fake: FakeApertium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = apertium.identity(["eng-spa"])
    other = install(monkeypatch, tmp_path / "opt", "eng-spa")
    assert apertium.identity(["eng-spa"]) == first
    other.add("eng-spa").write_text("words of another version")
    assert apertium.identity(["eng-spa"]) != first


# texts


def test_texts_go_through_one_mode_after_the_other(fake: FakeApertium) -> None:
    assert apertium.translate(["I see", "The end."], ["eng-spa", "es-fr"]) == ["Ioeau seeoeau", "Theoeau end.oeau"]
    assert fake.asked == [("eng-spa", ["I see", "The end."]), ("es-fr", ["Io seeo", "Theo end.o"])]


def test_what_is_sent_is_one_line_with_plain_quotes(fake: FakeApertium) -> None:
    apertium.translate(["“It’s\r\nme”,\u2028he\x00 said\t ‘now’ \x85"], ["eng-spa"])
    assert fake.asked == [("eng-spa", ["\"It's me\", he said 'now'"])]


def test_what_comes_back_has_single_blanks(fake: FakeApertium) -> None:
    assert apertium.translate(["yes uh no uh"], ["eng-spa"]) == ["yeso noo"]


def test_nothing_left_is_no_translation(fake: FakeApertium) -> None:
    texts = ["uh uh", "", " \n ", "dog", "\x01"]
    assert apertium.translate(texts, ["eng-spa", "es-fr"]) == [None, None, None, "dogoeau", None]
    assert fake.asked == [("eng-spa", ["uh uh", "dog"]), ("es-fr", ["dogo"])]


def test_without_texts_nothing_is_asked(fake: FakeApertium) -> None:
    assert apertium.translate([], ["eng-spa"]) == [] and apertium.translate([""], ["eng-spa"]) == [None]
    assert fake.asked == []


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("fail", "Apertium failed: Error: the engine is on fire"),
        ("die", "Apertium was ended by SIGKILL"),
        ("lose", "lost some of 2 texts: it gave 1 back"),
    ],
)
def test_an_engine_that_fails(fake: FakeApertium, order: str, said: str) -> None:
    fake.order(order)
    with pytest.raises(KdlabError, match=said) as caught:
        apertium.translate(["dog", "cat"], ["eng-spa"])
    assert "eng-spa" in str(caught.value.where)


def test_an_engine_that_hangs_is_ended(fake: FakeApertium) -> None:
    fake.order("hang")
    started = time.monotonic()
    with pytest.raises(KdlabError, match=r"did not answer within 0\.5 s"):
        apertium.translate(["dog"], ["eng-spa"], timeout=0.5)
    assert time.monotonic() - started < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((fake.data / "pid").read_text()), 0)


def test_a_mode_that_went_away(fake: FakeApertium) -> None:
    (fake.data / "modes" / "eng-spa.mode").unlink()
    with pytest.raises(KdlabError, match="mode eng-spa, which was there when the run was planned, is gone"):
        apertium.translate(["dog"], ["eng-spa"])
