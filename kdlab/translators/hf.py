"""Translations by Hugging Face models: which model a pair of languages takes, and what it calls them.

The models themselves are `kdlab.models.translation`; a stage hands that module's `load` in.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from kdlab.errors import ModelError

# ISO 639-1 -> the code of NLLB-200 (FLORES-200): of several varieties the standard one, of Chinese simplified script.
_FLORES = """
af afr_Latn, am amh_Ethi, ar arb_Arab, as asm_Beng, az azj_Latn, ba bak_Cyrl, be bel_Cyrl, bg bul_Cyrl, bm bam_Latn,
bn ben_Beng, bo bod_Tibt, bs bos_Latn, ca cat_Latn, cs ces_Latn, cy cym_Latn, da dan_Latn, de deu_Latn, dz dzo_Tibt,
ee ewe_Latn, el ell_Grek, en eng_Latn, eo epo_Latn, es spa_Latn, et est_Latn, eu eus_Latn, fa pes_Arab, ff fuv_Latn,
fi fin_Latn, fj fij_Latn, fo fao_Latn, fr fra_Latn, ga gle_Latn, gd gla_Latn, gl glg_Latn, gn grn_Latn, gu guj_Gujr,
ha hau_Latn, he heb_Hebr, hi hin_Deva, hr hrv_Latn, ht hat_Latn, hu hun_Latn, hy hye_Armn, id ind_Latn, ig ibo_Latn,
is isl_Latn, it ita_Latn, ja jpn_Jpan, jv jav_Latn, ka kat_Geor, ki kik_Latn, kk kaz_Cyrl, km khm_Khmr, kn kan_Knda,
ko kor_Hang, ku kmr_Latn, ky kir_Cyrl, lb ltz_Latn, lg lug_Latn, li lim_Latn, ln lin_Latn, lo lao_Laoo, lt lit_Latn,
lv lvs_Latn, mg plt_Latn, mi mri_Latn, mk mkd_Cyrl, ml mal_Mlym, mn khk_Cyrl, mr mar_Deva, ms zsm_Latn, mt mlt_Latn,
my mya_Mymr, nb nob_Latn, ne npi_Deva, nl nld_Latn, nn nno_Latn, no nob_Latn, ny nya_Latn, oc oci_Latn, om gaz_Latn,
or ory_Orya, pa pan_Guru, pl pol_Latn, ps pbt_Arab, pt por_Latn, qu quy_Latn, rn run_Latn, ro ron_Latn, ru rus_Cyrl,
rw kin_Latn, sa san_Deva, sc srd_Latn, sd snd_Arab, sg sag_Latn, si sin_Sinh, sk slk_Latn, sl slv_Latn, sm smo_Latn,
sn sna_Latn, so som_Latn, sq als_Latn, sr srp_Cyrl, ss ssw_Latn, st sot_Latn, su sun_Latn, sv swe_Latn, sw swh_Latn,
ta tam_Taml, te tel_Telu, tg tgk_Cyrl, th tha_Thai, ti tir_Ethi, tk tuk_Latn, tl tgl_Latn, tn tsn_Latn, tr tur_Latn,
ts tso_Latn, tt tat_Cyrl, tw twi_Latn, ug uig_Arab, uk ukr_Cyrl, ur urd_Arab, uz uzn_Latn, vi vie_Latn, wo wol_Latn,
xh xho_Latn, yi ydd_Hebr, yo yor_Latn, zh zho_Hans, zu zul_Latn
"""
FLORES = dict(entry.split() for entry in _FLORES.split(","))


class Model(Protocol):
    """What `load` gives: a translator and its tokenizer (`kdlab.models.translation.TranslationModel`)."""

    kind: str  # "marian", "m2m_100", "nllb" or "mbart50"
    languages: list[str]  # the codes that it knows; none: it translates one language into one other

    def generate(
        self,
        units: Sequence[str],
        *,
        source_code: str | None,
        target_code: str | None,
        beams: int,
        max_tokens: int,
        batch_size: int,
    ) -> list[tuple[str, bool]]:
        """The translations in order, and whether a unit or its translation was cut at `max_tokens`."""


Load = Callable[[Mapping[str, Any]], Model]


def translator(spec: Mapping[str, Any], *, load: Load) -> Translator:
    """A `Translate` by the models of `spec`, each loaded when it is first needed.

    spec: `model`, a Hub id or a folder, in which {source} and {target} stand for the languages; `revision`, `codes`,
    `pivots`, `beams`, `max_tokens` and `batch_size` as in `config.Translator`. `path`, a folder with the same
    placeholders, takes the place of `model`. `models`, if there, says by name (`model` or `path` with the languages
    filled in, see `model_names`) what `load` is given instead: pinned revisions.
    load: gives the model for {"id", "revision"} or {"path"}; in a stage

        hf.translator(spec, load=lambda one: translation.load(one, place=place, precision=spec["precision"]))
    """
    return Translator(spec, load)


class Translator:
    """Translates units by the models of one specification; see `translator`.

    cut: the units of the last call that were cut on their way, or have a translation that was.
    """

    def __init__(self, spec: Mapping[str, Any], load: Load) -> None:
        self._spec, self._load = spec, load
        self._codes: Mapping[str, str] = spec.get("codes") or {}
        self._pivots: Mapping[str, str] = spec.get("pivots") or {}
        self._loaded: dict[str, Model] = {}
        self.cut: set[str] = set()

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[str | None]:
        """Translations in the order of `texts`, None for a blank text or where a model wrote nothing.

        Raises HubError or ModelError if a model is not there, can't be used, or does not know a language.
        """
        steps = list(pairwise(route(source, target, self._pivots)))
        names = [self._name(*step) for step in steps]
        self._loaded = {name: model for name, model in self._loaded.items() if name in names}
        found: list[str | None] = [text if text.strip() else None for text in texts]
        self.cut = set()
        for name, step in zip(names, steps, strict=True):
            left = {number: text for number, text in enumerate(found) if text is not None}
            if not left:
                break
            if name not in self._loaded:
                self._loaded[name] = self._load(self._entry(name))
            source_code, target_code = _pair(self._loaded[name], name, *step, self._codes)
            written = self._loaded[name].generate(
                list(left.values()),
                source_code=source_code,
                target_code=target_code,
                beams=int(self._spec["beams"]),
                max_tokens=int(self._spec["max_tokens"]),
                batch_size=int(self._spec["batch_size"]),
            )
            for number, (text, shortened) in zip(left, written, strict=True):
                found[number] = text.strip() or None
                if shortened:
                    self.cut.add(texts[number])
        return found

    def _name(self, source: str, target: str) -> str:
        template = str(self._spec.get("path") or self._spec["model"])
        return model_name(template, source, target, self._codes)

    def _entry(self, name: str) -> Mapping[str, Any]:
        pinned: Mapping[str, Mapping[str, Any]] = self._spec.get("models") or {}
        if name in pinned:
            return pinned[name]
        return {"path": name} if self._spec.get("path") else {"id": name, "revision": self._spec.get("revision")}


# Models


def route(source: str, target: str, pivots: Mapping[str, str]) -> list[str]:
    """The languages from source to target, both included: {fr: es} makes en-fr en-es-fr, and fr-en fr-es-en.

    pivots: languages by the one that they are reached by, and leave by. Raises ModelError if they go in a circle.
    """
    up, down = _chain(source, pivots), _chain(target, pivots)
    meeting = next((language for language in up if language in down), None)
    if meeting is None:
        return [*up, *reversed(down)]
    return [*up[: up.index(meeting)], *reversed(down[: down.index(meeting) + 1])]


def _chain(language: str, pivots: Mapping[str, str]) -> list[str]:
    chain = [language]
    while chain[-1] in pivots:
        chain.append(pivots[chain[-1]])
        if chain[-1] in chain[:-1]:
            raise ModelError(f"the pivots go in a circle: {', '.join(chain)}", where="translator.pivots")
    return chain


def model_name(template: str, source: str, target: str, codes: Mapping[str, str]) -> str:
    """`template` with {source} and {target} filled in, each by its code if it has one.

    A code "ROMANCE>>fr<<" gives the model its name and, as the target, the token that it is asked by.
    """
    for placeholder, language in (("{source}", source), ("{target}", target)):
        template = template.replace(placeholder, _split(codes.get(language, language))[0])
    return template


def model_names(
    template: str, pairs: Iterable[tuple[str, str]], *, codes: Mapping[str, str], pivots: Mapping[str, str]
) -> list[str]:
    """All models that it takes to translate each (source, target), once each: what is to be pinned."""
    steps = (step for source, target in pairs for step in pairwise(route(source, target, pivots)))
    return list(dict.fromkeys(model_name(template, *step, codes) for step in steps))


# Languages


def language_code(kind: str, known: Sequence[str], language: str, codes: Mapping[str, str]) -> str | None:
    """What a model of this kind, which knows these codes, calls a language; None if it doesn't know it.

    The user's code goes before all; then the language's own name, and for NLLB and mBART-50 what ISO 639-1 stands for.
    """
    if language in codes:
        code = _split(codes[language])[1]
        return code if code in known else None
    if language in known:
        return language
    if kind == "nllb":
        return FLORES[language] if FLORES.get(language) in known else None
    if kind == "mbart50":  # language_COUNTRY, one of each
        return next((code for code in known if code.split("_")[0] == language), None)
    return None


def _pair(model: Model, name: str, source: str, target: str, codes: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The codes of both languages, None where the model is not told."""
    if model.kind == "marian":
        if not model.languages:
            return None, None
        if target not in codes:
            raise ModelError(
                f"this model writes several languages, and nothing says which is {target}: {_some(model.languages)}",
                where=name,
                fix=f"name it: translator.codes={{{target}: ...}}",
            )
        return None, _known(model, name, target, codes)
    return _known(model, name, source, codes), _known(model, name, target, codes)


def _known(model: Model, name: str, language: str, codes: Mapping[str, str]) -> str:
    code = language_code(model.kind, model.languages, language, codes)
    if code is None:
        asked = f"{language} ({codes[language]})" if language in codes else language
        there = _some(model.languages, codes.get(language, language))
        raise ModelError(
            f"this model does not know the language {asked}; it knows {there}",
            where=name,
            fix=f"give its own code for it: translator.codes={{{language}: ...}}, or take another model",
        )
    return code


def _some(known: Sequence[str], wanted: str = "") -> str:
    """Up to 30 codes; of more those that are most like the one that is wanted."""
    if len(known) <= 30:
        return ", ".join(known)
    near = difflib.get_close_matches(wanted, known, n=5, cutoff=0.3) if wanted else []
    shown = list(dict.fromkeys([*near, *known]))[:30]
    return f"{', '.join(shown)} and {len(known) - len(shown)} more"


def _split(code: str) -> tuple[str, str]:
    """What a code fills in and what it is to the model: "ROMANCE>>fr<<" is both, any other code is twice itself."""
    name, mark, token = code.partition(">>")
    return (name, token.removesuffix("<<")) if mark else (code, code)
