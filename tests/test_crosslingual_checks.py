"""What can't run in the family of MUSC or on tasks in several languages, or asks for something in vain."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kdlab import catalog, checks, checks_crosslingual, compose, methods
from kdlab.config import Crosslingual
from kdlab.pins import Pins
from lab import composed, problems

TWEETS = "task=multilingual/tweet_sentiment"
ALL = "[en,ar,de,es,fr,hi,it,pt]"
DEMO = "task.source.demo=sentiment_xx translator=rules"
LOCAL = "task=sample/languages task.source.path=folder task.labels=[bad,good]"
ALONE = "method.languages=[en] method.views=[original] method.inference=original"
FT = f"method=ft model=e5_small {TWEETS}"
GLUE = "method=kd task=glue/rte"


# command line, how the only problem begins, words that it must hold
WRONG = [
    # what fits together
    (
        "method=musc task=glue/rte",
        "task=glue/rte: is in one language",
        "for one language take method=ft, kd or another",
    ),
    ("method=musc task=glue/stsb", "task=glue/stsb: method=musc needs a classification task", "this is a regression"),
    ("method=musc task=demo/coin_flip", "task=demo/coin_flip: method=musc needs", "this is a reasoning task"),
    ("method=musc task=corpus/wikipedia", "task=corpus/wikipedia: has no labels", "task@supplement=corpus/wikipedia"),
    ("method=musc model=gpt2", "model=gpt2: is a decoder", "of the family crosslingual, which needs an encoder"),
    ("method=musc model=openai_babbage", "model=openai_babbage: is an endpoint", "family crosslingual"),
    ("method=musc model=tiny", "model.student.init=cut: method=musc has no teacher", "model=mbert, xlmr_base, e5_s"),
    (
        "method=musc model=tiny_multilingual model.tokenizer=pretrained",
        "model.tokenizer=pretrained: no model has an",
        "",
    ),
    ("method=musc model.tokenizer=words", "model.tokenizer=words: model.student.init=pretrained", "only its own"),
    ("method=musc model.tokenizer=pieces", "model.tokenizer=pieces: is for models that generate", "take pretrained"),
    ("method=musc model.student.num_layers=3", "model.student.num_layers=3:", "init=cut only"),
    ("method=musc task@supplement=glue/cola", "task@supplement=glue/cola: is for layer distill", "has no layers"),
    (
        "method=cr_ild task@supplement=multilingual/pawsx",
        "task@supplement=multilingual/pawsx: is in several",
        "or a corp",
    ),
    ("method=ft_cot 'task.languages=[en,es]'", "task.languages=[en,es]: a reasoning task is in one language", "leave"),
    ("method=ft_cot task.source.data_dir=x", "task.source.data_dir=x: is for tasks of encoders", "not read so"),
    ("method=ft_cot 'task.source.columns=[a]'", "task.source.columns=[a]: is for tasks of encoders", "not read so"),
    ("method=ft_cot task.source.language=en", "task.source.language=en: is for tasks of encoders", "not read so"),
    (
        f"{GLUE} select_on=test",
        "select_on=test: is for the families reasoning and crosslingual",
        "take heldout, dev or",
    ),
    (f"{FT} select_on=test", "select_on=test: is for the families reasoning and crosslingual", "take heldout, dev or"),
    # languages of a task
    ("method=musc 'task.languages=[es,fr]'", "task.source_language=en: is not in task.languages=[es,fr]", "add it"),
    ("method=musc task.source_language=ja", f"task.source_language=ja: is not in task.languages={ALL}", "take one"),
    ("method=musc 'task.languages=[en,es,es]'", "task.languages=[en,es,es]: 'es' is there twice", ""),
    (
        "method=musc 'task.languages=[en,spanish]'",
        "task.languages=[en,spanish]: 'spanish' is no code",
        "language_names",
    ),
    ("method=musc 'task.languages=[en,../x]'", "task.languages=[en,../x]: '../x' is no code of a language", "pt-BR"),
    (
        f"{FT} 'task.languages=[en,ES]'",
        "task.languages=[en,ES]: 'ES' is no code of a language",
        "(en, pt-BR, zho_Hant)",
    ),
    ("method=musc task.language_names.es=german", "task.language_names: de and es are both 'german'", "the same rows"),
    (
        "method=musc task.evaluations.more.split=x",
        "task.evaluations.more: method=musc scores dev and test",
        "no further",
    ),
    (f"{FT} task.evaluations.es.split=x", "task.evaluations.es: take another name", "that of a language is given"),
    (
        f"{FT} 'task.evaluations.x.split=\"{{language}}\"'",
        "task.evaluations.x.split={language}:",
        "is not filled in here",
    ),
    # where the source has them
    (
        "method=musc task.source.data_dir=null",
        f"task.languages={ALL}: task.source.config=null and",
        "all rows of cardif",
    ),
    ("method=musc task.source.data_dir=english", f"task.languages={ALL}:", "task.source.data_dir=english are the same"),
    (
        "method=musc 'task.source.data_dir=\"{lang}\"'",
        "task.source.data_dir={lang}: {lang} is not filled",
        "only {language}",
    ),
    (f"{FT} task.source.data_dir=null", f"task.languages={ALL}:", 'write "{language}" into one of them'),
    (
        "method=musc task.source.path=folder",
        f"task.languages={ALL}: task.splits.train, task.splits.dev, task.spl",
        "each",
    ),
    (
        f"method=musc {LOCAL} task.splits.test=test",
        "task.languages=[en,es]: task.splits.test is the same for all",
        "each",
    ),
    (
        f"{GLUE} 'task.source.config=\"{{language}}\"'",
        "task.source.config={language}: {language} stands for",
        "names none",
    ),
    (
        f"{GLUE} 'task.splits.train=\"{{language}}\"'",
        "task.splits.train={language}: {language} stands for",
        "names none",
    ),
    (f"{GLUE} task.source.path=x task.source.data_dir=y", "task.source.data_dir=y: only a data set on the Hub", "path"),
    (
        f"{GLUE} 'task.source.columns=[sentence1,sentence2,label]'",
        "task.source.columns=[sentence1,sentence2,label]:",
        "path",
    ),
    (
        f"{LOCAL} method=musc 'task.source.columns=[text,class]'",
        "task.source.columns=[text,class]: has no 'label'",
        "task.l",
    ),
    (
        f"{LOCAL} method=musc 'task.source.columns=[label,body]'",
        "task.source.columns=[label,body]: has no 'text'",
        "task.t",
    ),
    (
        f"{LOCAL} method=musc 'task.source.columns=[label,text,text]'",
        "task.source.columns=[label,text,text]: 'text'",
        "twice",
    ),
    (f"{GLUE} task.source.language=en", "task.source.language=en: is for the embedded task sentiment_xx", ""),
    (f"{GLUE} task.source.demo=sentiment_xx", "task.source.language=null: demo=sentiment_xx needs its language", "en"),
    (
        f"method=musc {DEMO} task.source.language=en",
        "task.source.language=en: task.languages=[en,ar,de",
        "takes its place",
    ),
    ("method=musc task.label_names.bad=worse", "task.label_names.bad=worse: is none of task.labels=[negative,neu", ""),
    ("method=kd task=glue/stsb task.label_names.a=b", "task.label_names: names classes, and a regression task", "none"),
    # languages that are trained on
    ("method=musc 'method.languages=[es,ja]'", "method.languages=[es,ja]: 'ja' is not in task.languages=[en,ar", ""),
    ("method=musc 'method.languages=[es,es]'", "method.languages=[es,es]: 'es' is there twice", ""),
    (
        "method=zero_shot_xlt method.texts=translated",
        "method.languages=[en]: method.texts=translated needs",
        "s=original",
    ),
    (
        "method=zero_shot_xlt method.texts=back_translated",
        "method.languages=[en]: method.texts=back_transl",
        "s=original",
    ),
    ("method=musc 'task.languages=[en]'", "task.languages=[en]: method.texts=translated needs a language", "(en)"),
    # what is asked
    ("method=musc method.views=[]", "method.views=[]: nothing would be asked", "original, translated, back_translated"),
    ("method=musc 'method.views=[original]'", "method.inference=both: needs translated in method.views=[original]", ""),
    ("method=translate_test 'method.views=[original]'", "method.inference=translated: needs translated in", ""),
    (
        "method=zero_shot_xlt 'method.views=[translated]' select_on=last",
        "method.inference=original: needs original",
        "",
    ),
    (
        "method=zero_shot_xlt 'method.views=[original]' method.select.view=both",
        "method.select.view=both: needs tran",
        "",
    ),
    ("method=translate_test 'method.views=[translated]'", "method.select.view=original: needs original in", ""),
    ("method=musc method.inference=back_translated", "method.inference=back_translated: allowed: original, trans", ""),
    (
        "method=musc 'method.views=[original,translated,back]'",
        "method.views=back: allowed: original, translated, back_translated",
        "",
    ),
    (
        "method=musc method.texts=backtranslated",
        "method.texts=backtranslated: allowed:",
        "did you mean back_translated",
    ),
    (
        "method=musc select_on=test task.splits.test=null",
        "select_on=test: task=multilingual/tweet_sentiment has no te",
        "",
    ),
    (
        "method=supcon method.texts=original method.languages=[es,fr] select_on=heldout method.select.languages=source",
        "method.select.languages=source: select_on=heldout has rows of the trained languages only (es, fr)",
        "method.select.languages=all",
    ),
    # the objective
    (
        "method=musc hardware.micro_batch=8",
        "hardware.micro_batch=8: method.student.contrast compares all 32",
        "batch=0",
    ),
    ("method=supcon hardware.micro_batch=31", "hardware.micro_batch=31: method.student.contrast", "another loss"),
    (
        "method=mixup method.student.mixed_source=0 method.student.mixed_target=0",
        "method.student: mixed_source=0",
        "mixup=0",
    ),
    (
        "method=mixup method.student.alpha=1 method.student.mixed_source=0",
        "method.student: mixed_source=0 and",
        "alpha=1",
    ),
    # who translates
    (
        "method=musc translator=rules",
        "translator=rules: knows the words of demo/sentiment_xx only",
        "apertium, m2m100, nllb",
    ),
    ("method=translate_test translator=rules", "translator=rules: knows the words of", "method.views=[original]"),
    ("method=musc translator=hf", "translator.model=null: give a Hub id or a folder", "m2m100, nllb and marian"),
    ("method=musc translator=recorded", "translator.path=null: give the file of the recorded translations", "XTREME"),
    (
        "method=musc 'translator.model=\"opus-{src}-{target}\"'",
        "translator.model=opus-{src}-{target}: {src} is",
        "{source}",
    ),
    (
        "method=musc translator=recorded 'translator.path=\"{lang}.jsonl\"'",
        "translator.path={lang}.jsonl: {lang} is",
        "",
    ),
    (
        "method=musc translator=apertium translator.pivots.fr=fr",
        "translator.pivots.fr=fr: leads back to itself (fr - fr)",
        "",
    ),
    (
        "method=musc translator.pivots.fr=Spanish",
        "translator.pivots.fr=Spanish: 'Spanish' is no code of a language",
        "{fr: es}",
    ),
    ("method=musc translator=aprtium", "translator=aprtium: unknown option; did you mean apertium?", "marian, nllb"),
    ("method=musc translator.kind=google", "translator.kind=google: allowed: rules, apertium, hf, recorded", ""),
    # ranges
    ("method=musc method.student.contrast.weight=1", "method.student.contrast.weight=1.0: is lambda", "less than 1"),
    ("method=musc method.student.contrast.weight=-0.1", "method.student.contrast.weight=-0.1: is lambda", "at least 0"),
    ("method=musc method.student.contrast.temperature=0", "method.student.contrast.temperature=0.0:", "more than 0"),
    (
        "method=musc method.student.contrast.base_temperature=0",
        "method.student.contrast.base_temperature=0.0:",
        "more th",
    ),
    ("method=musc method.student.contrast.epsilon=0", "method.student.contrast.epsilon=0.0:", "more than 0"),
    ("method=musc method.student.contrast.size=0", "method.student.contrast.size=0:", "1 or more"),
    ("method=musc method.student.contrast.head=deep", "method.student.contrast.head=deep: allowed: mlp, linear", ""),
    ("method=musc method.student.mixup=-1", "method.student.mixup=-1.0:", "0 (off) or more"),
    ("method=musc method.student.mixed_source=-1", "method.student.mixed_source=-1.0:", "0 or more"),
    ("method=musc method.student.alpha=1.5", "method.student.alpha=1.5:", "between 0 and 1"),
    ("method=musc method.share=1.5", "method.share=1.5:", "between 0 and 1"),
    ("method=musc task.test_limit=0", "task.test_limit=0:", "1 or more"),
    ("method=musc translator.beams=0", "translator.beams=0:", "1 or more"),
    ("method=musc translator.max_tokens=0", "translator.max_tokens=0:", "1 or more"),
    ("method=musc translator.batch_size=0", "translator.batch_size=0:", "1 or more"),
    ("method=musc translator.max_missing=1.1", "translator.max_missing=1.1:", "between 0 and 1"),
    (
        "method=musc task.splits.test=null translator=recorded translator.path=file",
        "method.inference=both: the task has no test, and none of its dev rows is translated;",
        "name task.splits.test",
    ),
    # stages
    (
        "method=musc fresh=[teacher]",
        "fresh=[teacher]: no such stage here; allowed: prepare, prepare_sets, translate_tr",
        "",
    ),
]

# command line, the key and why it has no effect
IN_VAIN = [
    # who translates
    (
        f"method=zero_shot_xlt {ALONE} translator.beams=2",
        "method.texts=original and method.views=[original] (nothing is",
    ),
    (
        f"method=zero_shot_xlt {ALONE} translator.unit=text",
        "method.texts=original and method.views=[original] (nothing is",
    ),
    (
        "method=zero_shot_xlt 'task.languages=[en]' translator.beams=2",
        "method.texts=original and method.views=[original,",
    ),
    ("method=musc translator.path=x", "translator=m2m100 (it is for recorded)"),
    ("method=musc translator=apertium translator.beams=2", "translator=apertium (it is for hf)"),
    ("method=musc translator=apertium translator.model=a/b", "translator=apertium (it is for hf)"),
    ("method=musc translator=apertium translator.revision=main", "translator=apertium (it is for hf)"),
    ("method=musc translator=apertium translator.max_tokens=9", "translator=apertium (it is for hf)"),
    ("method=musc translator=apertium translator.batch_size=9", "translator=apertium (it is for hf)"),
    ("method=musc translator=apertium translator.precision=bf16", "translator=apertium (it is for hf)"),
    (f"method=musc {DEMO} translator.pivots.fr=es", "translator=rules (it is for apertium, hf)"),
    (f"method=musc {DEMO} translator.codes.fr=fra", "translator=rules (it is for apertium, hf, recorded)"),
    (
        "method=musc translator=recorded translator.path=x translator.pivots.fr=es",
        "translator=recorded (it is for apert",
    ),
    (
        "method=musc translator.codes.zh=zh",
        "translations between en and ar, de, es, fr, hi, it, pt (zh is not on the way)",
    ),
    (
        "method=musc translator=apertium translator.pivots.it=ca translator.pivots.ca=es",
        "translations between en and ar, de, es, fr, hi, it, pt (ca is not on the way)",  # Apertium goes by one pivot
    ),
    (
        "method=musc translator.pivots.gl=es",
        "translations between en and ar, de, es, fr, hi, it, pt (gl is not on the way)",
    ),
    (
        "method=translate_train method.languages=[es] method.views=[original] translator.pivots.fr=es",
        "translations between en and es (fr is not on the way)",
    ),
    (f"{GLUE} translator.beams=2", "method=kd (it translates nothing)"),
    (f"{FT} translator.max_missing=0.5", "method=ft (it translates nothing)"),
    ("method=ft_cot translator.pivots.fr=es", "method=ft_cot (it translates nothing)"),
    # languages of the task
    (f"{GLUE} task.source_language=es", "task=glue/rte (it is in one language)"),
    (f"{GLUE} task.language_names.en=english", "task=glue/rte (it is in one language)"),
    (f"{GLUE} task.test_limit=9", "task=glue/rte (it is in one language)"),
    ("method=ft_cot task.source_language=es", "task=demo/shuffled_objects (it is in one language)"),
    ("method=musc task.language_names.ja=japanese", f"task.languages={ALL}"),
    (f"method=musc {DEMO} task.language_names.es=spanish", "(its source has no {language})"),
    ("method=musc task.splits.test=null task.test_limit=9", "task.splits.test=null"),
    (f"{FT} task.test_limit=9", "method=ft (it scores whole tests)"),
    ("method=cr_ild task@supplement=glue/cola supplement.source_language=es", "a supplement (only its training texts"),
    # no teacher, no rationales, no layers
    ("method=musc model.teacher.id=gpt2", "method=musc (it has no teacher)"),
    ("method=musc task.few.examples=90 task.few.teacher=own", "method=musc (it has no teacher)"),
    ("method=musc task.noise.rate=0.1 task.noise.teacher=clean", "method=musc (it has no teacher)"),
    ("method=musc rationales.error_rate=0.1", "method=musc (nobody writes rationales)"),
    ("method=musc budget.usd=1", "method=musc (nobody writes rationales)"),
    ("method=musc task.epochs.layers=3", "method=musc (it has no stage 'layers')"),
    ("method=musc task.epochs.student=3 method.student.epochs=2", "method.student.epochs=2, which replaces it"),
    ("method=musc task.partition.limit=9", "task=multilingual/tweet_sentiment (it is for reasoning tasks)"),
    ("method=musc task.suffix=?", "task=multilingual/tweet_sentiment (it is for reasoning tasks)"),
    ("method=musc model.vocabulary=400", "model=mbert (it is for models that generate)"),
    # what is asked, and what chooses
    (f"method=zero_shot_xlt {ALONE} method.share=0.4", "method.views=[original] (original and translated are not both"),
    (
        f"method=zero_shot_xlt {ALONE} method.ensemble=logits",
        "method.views=[original] (original and translated are not",
    ),
    ("method=musc method.ensemble=logits method.share=0.4", "method.ensemble=logits (they are summed)"),
    ("method=musc select_on=last method.select.view=both", "select_on=last (no score chooses the checkpoint)"),
    ("method=musc select_on=last method.select.languages=source", "select_on=last (no score chooses the checkpoint)"),
    ("method=musc select_on=heldout method.select.view=both", "select_on=heldout (its rows are not translated)"),
    ("method=musc select_on=heldout method.select.languages=source", "select_on=heldout (its rows are in en alone)"),
    ("method=musc method.select.languages=source method.select.view=both", "method.select.languages=source (its texts"),
    ("method=musc select_on=last method.student.patience=3", "select_on=last (no score can stop a stage early)"),
    ("method=musc task.heldout=0.2", "select_on=dev"),
    # the objective
    ("method=mixup method.student.contrast.temperature=0.1", "method.student.contrast.weight=0"),
    ("method=mixup method.student.contrast.base_temperature=0.1", "method.student.contrast.weight=0"),
    ("method=mixup method.student.contrast.positives=clamp", "method.student.contrast.weight=0"),
    ("method=mixup method.student.contrast.head=linear", "method.student.contrast.weight=0"),
    ("method=mixup method.student.contrast.size=64", "method.student.contrast.weight=0"),
    (
        "method=musc method.student.contrast.positives=clamp method.student.contrast.epsilon=0.1",
        "method.student.contrast.positives=clamp",
    ),
    ("method=supcon method.student.mixed_source=2", "method.student.mixup=0"),
    ("method=supcon method.student.mixed_target=2", "method.student.mixup=0"),
    (
        "method=supcon method.student.normalise_terms=true",
        "method.student.mixup=0 (the terms' weights are scaled so al",
    ),
    ("method=mixup method.student.alpha=0 method.student.mixed_source=2", "method.student.alpha=0 (these labels have"),
    ("method=mixup method.student.alpha=1 method.student.mixed_target=2", "method.student.alpha=1 (these labels have"),
    ("method=musc method.texts=original method.student.alpha=0.3", "method.texts=original (its texts have no transl"),
    ("method=musc method.texts=back_translated method.student.mixed_source=2", "method.texts=back_translated (its t"),
    ("method=mixup method.texts=original method.student.mixed_target=2", "method.texts=original (its texts have no t"),
]


@pytest.mark.parametrize(("line", "start", "words"), WRONG, ids=[line for line, _, _ in WRONG])
def test_a_wrong_command_line_is_refused(line: str, start: str, words: str) -> None:
    found = problems(line)
    assert len(found) == 1, found
    assert found[0].startswith(start) and words in found[0]


@pytest.mark.parametrize(("line", "words"), IN_VAIN, ids=[line for line, _ in IN_VAIN])
def test_a_key_without_effect_is_refused(line: str, words: str) -> None:
    found = problems(line)
    assert len(found) == 1, found
    given = [word.partition("=")[0] for word in shlex.split(line)]
    assert found[0].partition(" has no effect for ")[0] in given
    assert words in found[0].partition(" has no effect for ")[2]


# command lines on which keys that are refused elsewhere do have an effect
FINE = [
    "method=musc translator.beams=1 translator.precision=bf16 translator.unit=text translator.codes.en=en",
    "method=musc translator=apertium translator.pivots.it=ca translator.codes.ca=cat",
    "method=musc translator.pivots.it=ca translator.pivots.ca=es translator.codes.ca=ca translator.pivots.en=gl",
    "method=musc translator=marian 'translator.model=\"owner/opus-{source}-{target}\"' translator.revision=main",
    "method=musc translator=recorded 'translator.path=\"folder/{source}-{target}.jsonl\"' translator.codes.es=spanish",
    f"method=musc {DEMO} translator.max_missing=0.2",
    f"method=zero_shot_xlt {ALONE} translator=rules",
    f"method=zero_shot_xlt {ALONE} task.languages=[en]",
    "method=translate_train 'method.languages=[es]' method.student.alpha=0",
    "method=translate_train 'method.languages=[en,es,fr]'",
    "method=musc method.ensemble=logits method.views=[original,translated,back_translated]",
    "method=zero_shot_xlt method.share=0.4",  # both is reported, whatever the run's own score is
    "method=translate_test method.views=[original,translated] method.select.view=translated",
    "method=translate_test method.views=[translated] select_on=last",
    "method=musc select_on=heldout task.heldout=0.2 method.student.patience=2",
    "method=musc select_on=test method.select.languages=source",
    "method=musc_official method.select.view=original",
    "method=musc method.texts=original select_on=heldout method.select.languages=source",
    "method=mixup hardware.micro_batch=8",
    "method=musc hardware.micro_batch=32",
    "method=musc method.student.batch_size=8 hardware.micro_batch=8",
    "method=mixup method.student.normalise_terms=true method.student.mixed_source=0.5",
    "method=musc method.student.alpha=0 method.student.mixed_source=0.5",  # of its contrast
    "method=mixup method.texts=original method.student.normalise_terms=true",
    "method=musc task.few.examples=90 task.few.seed=3 task.noise.rate=0.1 task.dev_limit=9 task.test_limit=9",
    "method=musc task.languages=[en,es,pt-BR,zh_Hant] task.language_names.pt-BR=brazil translator.codes.zh_Hant=zh",
    f"method=musc {LOCAL} task.splits.dev=null 'task.source.columns=[label,text]'",
    "method=musc task=multilingual/cls task.source.path=folder translator=apertium",
    "method=musc model=tiny_multilingual",
    f"{FT} task.source_language=es task.language_names.es=spanish",
    f"method=kd model=bert_base_to_6 {TWEETS}",
    f"{GLUE} 'task.source.path=x' 'task.source.columns=[label,sentence1,sentence2]'",
    f"{GLUE} task.source.demo=sentiment_xx task.source.language=es",
    f"{FT} task.evaluations.more.split=train",
    f"{GLUE} 'task.label_names={{a: entailment, b: not_entailment}}'",
]


@pytest.mark.parametrize("line", FINE)
def test_what_has_an_effect_is_accepted(line: str) -> None:
    assert checks.warnings(composed(line)) == []


TRAINED = ["student", "evaluate_student", "measure_student"]
LABELS = {  # command line -> the stages of its data
    "method=musc": "prepare prepare_sets translate_train translate_sets tokenise tokenise_sets",
    "method=zero_shot_xlt": "prepare prepare_sets translate_sets tokenise tokenise_sets",
    f"method=zero_shot_xlt {ALONE}": "prepare prepare_sets tokenise tokenise_sets",
    f"method=zero_shot_xlt {ALONE} task.splits.test=null": "prepare tokenise",
    "method=musc task.splits.test=null": "prepare translate_train translate_sets tokenise tokenise_sets",
    "method=musc method.texts=back_translated": (
        "prepare prepare_sets translate_train back_train translate_sets tokenise tokenise_sets"
    ),
    "method=zero_shot_xlt method.views=[original,back_translated]": (
        "prepare prepare_sets translate_sets back_sets tokenise tokenise_sets"
    ),
    # no dev: it is cut from training rows, which are the source language's or those of all
    f"method=musc method.inference=original {LOCAL} task.splits.dev=null task.splits.test=null": (
        "prepare translate_train tokenise"
    ),
    f"method=supcon {LOCAL} task.splits.dev=null task.splits.test=null method.texts=original": (
        "prepare translate_sets tokenise tokenise_sets"
    ),
}


@pytest.mark.parametrize("line", LABELS)
def test_stages_that_may_be_made_again(line: str) -> None:
    found = checks.labels(composed(line))
    assert found == [*LABELS[line].split(), *TRAINED]
    assert composed(f"{line} fresh=[{','.join(found)}]").fresh == found


def test_of_another_family_the_other_languages_are_further_sets() -> None:
    assert "tokenise_sets" in checks.labels(composed(f"{FT} task.splits.test=null"))
    assert "tokenise_sets" not in checks.labels(composed(f"{FT} task.splits.test=null 'task.languages=[en]'"))


DEMO_RUNS = [
    "method=musc",
    "method=musc method.texts=back_translated method.views=[original,translated,back_translated]",
    "method=zero_shot_xlt method.views=[original] task.splits.test=null",
    "method=supcon method.inference=original task.splits.dev=null task.splits.test=null",
    "method=translate_test task.languages=[en]",
    "method=ft task.splits.test=null",
    "method=ft task.splits.test=null task.languages=[en]",
]


@pytest.mark.parametrize("line", DEMO_RUNS)
def test_stages_that_may_be_made_again_are_those_of_the_plan(line: str) -> None:
    own = "" if "method=ft" in line else "translator=rules"
    run = composed(f"{line} task=demo/sentiment_xx model=tiny_multilingual {own}")
    assert sorted(checks.labels(run)) == sorted(stage.label for stage in methods.plan(run, Pins()))


WARNED = [
    ("method=mixup method.student.batch_size=1", "method.student mixes the rows of a forward pass"),
    ("method=mixup hardware.micro_batch=1", "method.student mixes the rows of a forward pass"),
    ("method=supcon method.student.batch_size=1", "method.student.contrast compares the rows of a batch"),
    ("method=translate_train method.student.alpha=1", "leaves the translations no weight"),
    ("method=translate_all method.share=1", "makes method.inference=both the same as translated"),
    ("method=translate_all method.share=0", "makes method.inference=both the same as original"),
]


@pytest.mark.parametrize(("line", "words"), WARNED, ids=[line for line, _ in WARNED])
def test_what_contributes_nothing_is_warned_of(line: str, words: str) -> None:
    (found,) = checks.warnings(composed(line))
    assert words in found


def test_presets_warn_of_nothing() -> None:
    for name in ("zero_shot_xlt", "translate_train", "translate_test", "translate_all", "supcon", "mixup", "musc"):
        run = composed(f"method={name}")
        assert isinstance(run.method, Crosslingual) and checks.warnings(run) == []


def test_several_processes_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass has 16 of the 32 rows then: 16 at once are no accumulation, 15 are."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert composed("method=musc hardware.micro_batch=16").hardware.micro_batch == 16
    (found,) = problems("method=musc hardware.micro_batch=15")
    assert "compares all 16 rows of a batch" in found
    (warned,) = checks.warnings(composed("method=musc method.student.batch_size=2"))
    assert "mixes the rows of a forward pass" in warned  # one each; the contrast still has the other process's


def test_a_circle_of_pivots_is_told_at_each_step() -> None:
    found = problems("method=musc translator=apertium translator.pivots.es=fr")
    assert [text.partition(": ")[2].split(";")[0] for text in found] == [
        "leads back to itself (fr - es - fr)",
        "leads back to itself (es - fr - es)",
    ]


def test_a_key_that_one_job_of_a_sweep_uses_is_no_problem() -> None:
    line = "-m method=zero_shot_xlt,supcon method.student.contrast.temperature=0.1"
    assert len(compose.jobs(shlex.split(line)).jobs) == 2
    line = f"-m {TWEETS} model=e5_small method=ft,musc translator.beams=2 task.test_limit=50 select_on=dev"
    assert len(compose.jobs(shlex.split(line)).jobs) == 2


def test_the_matrix_of_texts_is_one_sweep() -> None:
    line = "-m method=translate_all method.texts=original,translated,back_translated"
    jobs = compose.jobs([*line.split(), "method.views=[original,translated,back_translated]"]).jobs
    assert len({job.name for job in jobs}) == 3


def test_a_source_on_the_command_line_takes_the_place_of_the_hubs() -> None:
    source = composed(f"method=musc {DEMO}").task.source
    assert (source.hub, source.revision, source.data_dir, source.demo) == (None, None, None, "sentiment_xx")
    line = f"{LOCAL} method=musc 'task.source.columns=[label,text]'"
    assert composed(line).task.source.columns == ["label", "text"]
    own = "task=multilingual/mldoc method=musc task.source.hub=a/b 'task.source.config=\"{language}\"'"
    assert composed(own).task.source.columns == []


def test_nothing_is_said_of_the_keys_of_a_method_that_there_is_not() -> None:
    (found,) = problems("method=musk method.texts=original method.student.contrast.weight=0.2")
    assert found.startswith("method=musk: unknown option; did you mean musc?")


def test_every_wrong_thing_is_said_at_once() -> None:
    found = problems("method=musc translator=rules method.share=2 'method.languages=[ja]' hardware.micro_batch=8")
    assert [text.partition(":")[0] for text in found] == [
        "method.share=2.0",
        "method.languages=[ja]",
        "hardware.micro_batch=8",
        "translator=rules",
    ]


def test_tasks_models_and_translators_that_problems_name_are_there() -> None:
    tasks = dict(catalog.entries("tasks"))
    assert all(name in tasks for name in checks_crosslingual.SEVERAL.split(", "))
    (cut,) = problems("method=musc model=tiny")
    named = re.search(r"model=(\w+), (\w+), (\w+) or (\w+)", cut)
    assert named and set(named.groups()) <= set(dict(catalog.entries("models")))
    (rules,) = problems("method=musc translator=rules")
    named = re.search(r"translator=(\w+), (\w+), (\w+), (\w+), or (\w+)", rules)
    assert named and set(named.groups()) <= set(dict(catalog.entries("translators")))


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text(
        "defaults: [/schema@_here_: task, _self_]\nname: mine\nsource: {path: folder}\ntext: [text]\n"
        "labels: [bad, good]\nlanguages: [en, es]\nsplits: {train: '{language}/train', dev: null, test: test}\n"
    )
    found = problems(f"--config-dir {tmp_path} task=mine method=musc")
    assert found == [
        'task.languages=[en,es]: task.splits.test is the same for all; write "{language}" into each: '
        '"{language}/train" is a folder a language'
    ]
