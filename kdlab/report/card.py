"""The model card of a student: `README.md` of its folder, with the front matter that the Hub reads."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from kdlab import config
from kdlab.report import languages
from kdlab.report.result import without_credentials
from kdlab.report.summary import (
    ROLES,
    SIZE_AND_SPEED,
    filled,
    metric_name,
    remarks,
    score_columns,
    score_rows,
    split_of,
    translated,
)
from kdlab.showing import visible
from kdlab.study import INCIDENTAL

# Names of the metrics on the Hub.
HUB_METRICS = {
    "accuracy": ["accuracy"],
    "f1": ["f1"],
    "macro_f1": ["f1"],
    "mcc": ["matthews_correlation"],
    "pearson": ["pearsonr"],
    "spearman": ["spearmanr"],
    "pearson_spearman": ["pearsonr", "spearmanr"],
}
LANGUAGES = {  # of data sets on the Hub; others: not known, so not claimed
    "nyu-mll/glue": "en",
    "openai/gsm8k": "en",
    "deepmind/aqua_rat": "en",
    "tau/commonsense_qa": "en",
}

# Settings that can change the student's numbers and are not told elsewhere in the card.
TOLD_AS_HYPERPARAMETERS = re.compile(
    r"method\.(?!name$|family$|stages$|prompt\.exemplars$)"
    r"|model\.(teacher|student)\.(?!id$|revision$)|model\.tokenizer$"
    r"|task\.(max_length|pad_to_max|heldout|dev_limit|test_limit|compare|(few|imbalance|noise|partition|generate)\..*)$"
    r"|rationales\.(prompt|max_tokens|stop|error_rate|seed)$|model\.vocabulary$"
    r"|translator\.(unit|beams|max_tokens|precision|codes|pivots)$"
    r"|supplement\.(name|passages\..*|few\..*)$"
    r"|debug\.(?!name$)|seed$|precision$|select_on$"
)

CITATIONS = {
    "ko2023revisiting": """@inproceedings{ko2023revisiting,
  title     = {Revisiting Intermediate Layer Distillation for Compressing Language Models:
               An Overfitting Perspective},
  author    = {Ko, Jongwoo and Park, Seungjoon and Jeong, Minchan and Hong, Sukjin and Ahn, Euijai and
               Chang, Du-Seong and Yun, Se-Young},
  booktitle = {Findings of the Association for Computational Linguistics: EACL 2023},
  year      = {2023},
  url       = {https://arxiv.org/abs/2302.01530}
}""",
    "hinton2015distilling": """@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015},
  url     = {https://arxiv.org/abs/1503.02531}
}""",
    "sun2019patient": """@inproceedings{sun2019patient,
  title     = {Patient Knowledge Distillation for {BERT} Model Compression},
  author    = {Sun, Siqi and Cheng, Yu and Gan, Zhe and Liu, Jingjing},
  booktitle = {Proceedings of EMNLP-IJCNLP 2019},
  year      = {2019},
  url       = {https://arxiv.org/abs/1908.09355}
}""",
    "jiao2020tinybert": """@inproceedings{jiao2020tinybert,
  title     = {{TinyBERT}: Distilling {BERT} for Natural Language Understanding},
  author    = {Jiao, Xiaoqi and Yin, Yichun and Shang, Lifeng and Jiang, Xin and Chen, Xiao and Li, Linlin and
               Wang, Fang and Liu, Qun},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2020},
  year      = {2020},
  url       = {https://arxiv.org/abs/1909.10351}
}""",
    "wang2020minilm": """@inproceedings{wang2020minilm,
  title     = {{MiniLM}: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
               Transformers},
  author    = {Wang, Wenhui and Wei, Furu and Dong, Li and Bao, Hangbo and Yang, Nan and Zhou, Ming},
  booktitle = {Advances in Neural Information Processing Systems 33},
  year      = {2020},
  url       = {https://arxiv.org/abs/2002.10957}
}""",
    "wang2021minilmv2": """@inproceedings{wang2021minilmv2,
  title     = {{MiniLMv2}: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
               Transformers},
  author    = {Wang, Wenhui and Bao, Hangbo and Huang, Shaohan and Dong, Li and Wei, Furu},
  booktitle = {Findings of the Association for Computational Linguistics: ACL-IJCNLP 2021},
  year      = {2021},
  url       = {https://arxiv.org/abs/2012.15828}
}""",
    "li2020bertemd": """@inproceedings{li2020bertemd,
  title     = {{BERT-EMD}: Many-to-Many Layer Mapping for {BERT} Compression with Earth Mover's Distance},
  author    = {Li, Jianquan and Liu, Xiaokang and Zhao, Honghong and Xu, Ruifeng and Yang, Min and Jin, Yaohong},
  booktitle = {Proceedings of EMNLP 2020},
  year      = {2020},
  url       = {https://arxiv.org/abs/2010.06133}
}""",
    "liang2021mixkd": """@inproceedings{liang2021mixkd,
  title     = {{MixKD}: Towards Efficient Distillation of Large-scale Language Models},
  author    = {Liang, Kevin J. and Hao, Weituo and Shen, Dinghan and Zhou, Yufan and Chen, Weizhu and
               Chen, Changyou and Carin, Lawrence},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  url       = {https://arxiv.org/abs/2011.00593}
}""",
    "ho2023large": """@inproceedings{ho2023large,
  title     = {Large Language Models Are Reasoning Teachers},
  author    = {Ho, Namgyu and Schmid, Laura and Yun, Se-Young},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics},
  year      = {2023},
  url       = {https://arxiv.org/abs/2212.10071}
}""",
    "kojima2022large": """@inproceedings{kojima2022large,
  title     = {Large Language Models are Zero-Shot Reasoners},
  author    = {Kojima, Takeshi and Gu, Shixiang Shane and Reid, Machel and Matsuo, Yutaka and Iwasawa, Yusuke},
  booktitle = {Advances in Neural Information Processing Systems 35},
  year      = {2022},
  url       = {https://arxiv.org/abs/2205.11916}
}""",
    "wei2022chain": """@inproceedings{wei2022chain,
  title     = {Chain-of-Thought Prompting Elicits Reasoning in Large Language Models},
  author    = {Wei, Jason and Wang, Xuezhi and Schuurmans, Dale and Bosma, Maarten and Ichter, Brian and
               Xia, Fei and Chi, Ed H. and Le, Quoc V. and Zhou, Denny},
  booktitle = {Advances in Neural Information Processing Systems 35},
  year      = {2022},
  url       = {https://arxiv.org/abs/2201.11903}
}""",
    "oh2022synergy": """@inproceedings{oh2022synergy,
  title     = {Synergy with Translation Artifacts for Training and Inference in Multilingual Tasks},
  author    = {Oh, Jaehoon and Ko, Jongwoo and Yun, Se-Young},
  booktitle = {Proceedings of the 2022 Conference on Empirical Methods in Natural Language Processing},
  pages     = {6747--6754},
  year      = {2022},
  url       = {https://arxiv.org/abs/2210.09588}
}""",
    "khosla2020supervised": """@inproceedings{khosla2020supervised,
  title     = {Supervised Contrastive Learning},
  author    = {Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and Tian, Yonglong and
               Isola, Phillip and Maschinot, Aaron and Liu, Ce and Krishnan, Dilip},
  booktitle = {Advances in Neural Information Processing Systems 33},
  year      = {2020},
  url       = {https://arxiv.org/abs/2004.11362}
}""",
    "zhang2018mixup": """@inproceedings{zhang2018mixup,
  title     = {mixup: Beyond Empirical Risk Minimization},
  author    = {Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David},
  booktitle = {International Conference on Learning Representations},
  year      = {2018},
  url       = {https://arxiv.org/abs/1710.09412}
}""",
}
PAPERS = {  # of a method, besides those of its stages
    "pkd": "sun2019patient",
    "pkd_official": "sun2019patient",
    "tinybert": "jiao2020tinybert",
    "minilm": "wang2020minilm",
    "minilm_v2": "wang2021minilmv2",
    "bert_emd": "li2020bertemd",
    "mixkd": "liang2021mixkd",
}
OWN_STAGES = ("pkd", "mixkd")  # methods whose paper is the whole of it
STAGE_PAPERS = {"layers": "ko2023revisiting", "joint": "ko2023revisiting", "logits": "hinton2015distilling"}

STAGES = {
    "teacher": "The teacher is fine-tuned on the labels.",
    "student": "The student is fine-tuned on the labels, without a teacher.",
    "layers": "Inner layers of the teacher are distilled into the student",
    "logits": "The teacher's logits are distilled into the student",
    "joint": "Inner layers and logits of the teacher are distilled into the student together",
}
PARTITIONS = {  # how the test questions of a reasoning task are told from those of train
    "random": "30 % of all, drawn as the paper did",
    "template": "whole groups of questions that differ in numbers and names only, 30 % of the groups",
    "first": "those behind the first ones, which are trained on",
    "source": "those of the source's own split",
}
REASONING_STAGES = {
    "rationales": "A teacher writes rationales for the training questions; those that pass curation are kept",
    "answer": "The student answers the test questions greedily",
}
PROMPT_PAPERS = {"zs_cot": "kojima2022large", "fs_cot": "wei2022chain"}  # of how a teacher is asked
ENDS = {  # where a student's answer is, by the template that it was trained with
    "ft_token": "The whole completion is the answer.",
    "ft_cot_token": "The answer is what follows the first `-->` of the completion.",
    "ft_cot_natural": "The answer is what follows `Therefore the answer is` in the completion.",
}

MODES = {  # of inference, as they are told in the table of scores
    "original": "*Original*: the text as it is.",
    "translated": "*Translated*: its translation into {source}.",
    "both": "*Both*: {both}.",
    "back_translated": "*Back translated*: its translation into {source} and back.",
}

# Settings of a stage, which are not worth telling where the stage is not run.
SETTINGS: dict[str, tuple[str, ...]] = {stage: (f"method.{stage}.",) for stage in [*STAGES, "answer"]}
SETTINGS["rationales"] = ("method.curation.", "method.samples", "method.temperature", "rationales.")


def model_card(
    result: Mapping[str, Any],
    run: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    place: str = "student",
    onnx: str | None = None,
) -> str:
    """Markdown with YAML front matter.

    result: what result.json holds; run: the resolved config as plain values (asdict of config.Run); overrides: what was
    given to `kdlab train`; place: what the reader calls the folder: its name, or owner/name on the Hub; onnx: of a
    student that was exported to ONNX what its check against torch has found.
    What is not known (licence, a language, a base model that is a local folder) is left out, not guessed.
    """
    writes = run["method"]["family"] == "reasoning"
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(result, run, onnx), sort_keys=False, allow_unicode=True)}---",
        f"# {result['run']['name']}",
        _introduction(result, run),
        _data(run),
        _method(result, run),
        _rationales(result, run) if result.get("curation") else "",
        _translations(result) if result.get("translator") else "",
        _hyperparameters(result, run),
        _scores(result),
        _scores_by_language(result) if _multilingual(run) else "",
        _size_and_speed(result),
        _running(result, run, place, onnx) if onnx else _asking(result, run, place) if writes else _loading(run, place),
        _views(result) if _multilingual(run) else "",
        _reproduction(overrides) if overrides else "",
        _citations(run),
    ]
    card: str = without_credentials("\n\n".join(part for part in parts if part) + "\n")
    return card


def differences(run: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, by dotted path, that differ from the dataclasses' defaults or have none."""
    return dict(_differences(run, config.Run, ""))


def _differences(values: Mapping[str, Any], kind: type[Any], path: str) -> Iterator[tuple[str, Any]]:
    known = {item.name: item for item in fields(kind)}
    for key, value in values.items():
        where = f"{path}{key}"
        nested = _kind_of(where, known.get(key), values)
        if nested is not None and isinstance(value, Mapping):
            yield from _differences(value, nested, f"{where}.")
        elif key not in known or value != _default(known[key]):
            yield where, value


def _kind_of(where: str, item: Field[Any] | None, values: Mapping[str, Any]) -> type[Any] | None:
    """The dataclass that a nested mapping was made from."""
    if where == "method":
        family = values["method"].get("family")
        families = [kind for kind in _subclasses(config.Method) if _default_of(kind, "family") == family]
        return families[0] if families else config.Method
    if item is None:
        return None
    if isinstance(item.default_factory, type) and is_dataclass(item.default_factory):
        return item.default_factory
    kind = getattr(config, str(item.type), None)
    return kind if isinstance(kind, type) and is_dataclass(kind) else None


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _default_of(kind: type[Any], name: str) -> Any:
    return next(_default(item) for item in fields(kind) if item.name == name)


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _front_matter(result: Mapping[str, Any], run: Mapping[str, Any], onnx: str | None) -> dict[str, Any]:
    source = run["task"].get("source", {})
    hub = source.get("hub")
    metrics = dict.fromkeys(name for row in score_rows(result) for name in HUB_METRICS.get(row.metric, ()))
    base = _base_model(run)
    tags = [
        *(["knowledge-distillation"] if result.get("teacher") else []),
        *(["chain-of-thought"] if _thinks(run) else []),
        *(["cross-lingual-transfer"] if _multilingual(run) else []),
        *(["onnx"] if onnx else []),
    ]
    matter: dict[str, Any] = {
        "language": _languages(run) if _multilingual(run) else LANGUAGES.get(hub) if hub else None,
        "library_name": None if onnx else "transformers",
        "pipeline_tag": None if run["task"].get("kind") == "regression" else _pipeline(result, run),
        "tags": ["kdlab", *tags],
        "base_model": base,
        "datasets": [hub] if hub else None,
        "metrics": list(metrics),
        "model-index": [
            {
                "name": result["run"]["name"],
                "results": _index_of_languages(result, run) if _multilingual(run) else _index(result, run),
            }
        ],
    }
    return {key: value for key, value in matter.items() if value}


def _pipeline(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if run["method"]["family"] != "reasoning":
        return "text-classification"
    return "text2text-generation" if result["student"]["encoder_decoder"] else "text-generation"


def _thinks(run: Mapping[str, Any]) -> bool:
    """Whether the student writes a rationale before its answer."""
    return "_cot" in run["method"].get("prompt", {}).get("template", "")


def _multilingual(run: Mapping[str, Any]) -> bool:
    return bool(run["method"]["family"] == "crosslingual")


def _languages(run: Mapping[str, Any]) -> list[str]:
    """Codes that the Hub knows as languages; those of an embedded task are made up."""
    made_up = run["task"]["source"].get("demo")
    return [] if made_up else [code for code in run["task"]["languages"] if re.fullmatch("[a-z]{2,3}", code)]


def _index_of_languages(result: Mapping[str, Any], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the saved student scores by itself, without a translator, in each language."""
    task, split = run["task"], split_of(result)
    source = task["source"]
    results = []
    for language in languages.languages(result, split):
        scores = result["languages"][split]["original"][language]
        config = source["config"] or source["data_dir"]
        name = task["language_names"].get(language, language)
        data = {
            "name": f"{task['name']}, {split}, {language}",
            "type": source["hub"] or task["name"],
            "config": config and config.replace("{language}", name),
            "split": task["splits"].get(split),
            "revision": source["revision"],
        }
        found = [
            {"type": _hub_metric(metric), "name": metric_name(metric), "value": value}
            for metric, value in scores.items()
            if metric in HUB_METRICS and metric in result["scores"][split]
        ]
        results.append(
            {
                "task": {"type": _pipeline(result, run), "name": task["name"]},
                "dataset": {key: value for key, value in data.items() if value},
                "metrics": found,
            }
        )
    return results


def _index(result: Mapping[str, Any], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    task = run["task"]
    source = task.get("source", {})
    results = []
    drawn = run["method"]["family"] == "reasoning" and task["partition"]["rule"] != "source"  # from all rows
    for split, metrics in result["student"]["scores"].items():
        further = task.get("evaluations", {}).get(split, {})
        data = {
            "name": f"{task['name']}, {split}",
            "type": source.get("hub") or task["name"],
            "config": further.get("config") or source.get("config"),
            "split": None if drawn else further.get("split") or task.get("splits", {}).get(split),
            "revision": source.get("revision"),
        }
        found = [
            {"type": _hub_metric(metric), "name": metric_name(metric), "value": scores["selected"]}
            for metric, scores in metrics.items()
            if metric in HUB_METRICS and scores.get("selected") is not None
        ]
        if found:
            results.append(
                {
                    "task": {"type": _pipeline(result, run), "name": task["name"]},
                    "dataset": {key: value for key, value in data.items() if value},
                    "metrics": found,
                }
            )
    return results


def _hub_metric(metric: str) -> str:
    """The Hub's name; a mean of two metrics has none and keeps ours."""
    names = HUB_METRICS[metric]
    return names[0] if len(names) == 1 else metric


def _base_model(run: Mapping[str, Any]) -> str | None:
    student, teacher = run["model"].get("student", {}), run["model"].get("teacher", {})
    source = {"pretrained": student, "cut": teacher}.get(student.get("init", "pretrained"))
    return _hub_id(source.get("id")) if source else None


def _hub_id(name: str | None) -> str | None:
    """The name if it can be one on the Hub: a local folder means nothing to a reader of the card."""
    if not name or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or Path(name).exists():
        return None
    return name


def _encoder(spec: Mapping[str, Any], role: str) -> str:
    name = _hub_id(spec.get("id"))
    local = "a local model" if spec.get("id") else "a model built from its configuration"
    shown = f"`{name}`" if name else local
    if spec.get("revision") and name:
        shown += f" (revision `{spec['revision']}`)"
    if spec.get("init") == "random":
        return f"{role}: {shown}, with random weights to begin with"
    if spec.get("init") == "cut":
        layers = spec.get("layers") or f"the first {spec.get('num_layers')}"
        return f"{role}: layers of the teacher as it was before fine-tuning ({layers})"
    return f"{role}: {shown}"


def _introduction(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    method, task = run["method"]["name"], run["task"]["name"]
    lines = [f"A student made by kdlab with the method `{method}` for the task `{task}`.", ""]
    if result.get("teacher") and run["method"]["family"] != "reasoning":
        lines.append(f"- {_encoder(run['model'].get('teacher', {}), 'Teacher')}")
    lines.append(f"- {_encoder(run['model'].get('student', {}), 'Student')}")
    return "\n".join(lines)


def _data(run: Mapping[str, Any]) -> str:
    task = run["task"]
    source = task.get("source", {})
    if source.get("hub"):
        where = f"`{source['hub']}`"
        by_language = "{language}" in (source.get("config") or source.get("data_dir") or "")
        where += ", a configuration or folder for each language" if by_language else ""
        where += f", configuration `{source['config']}`" if source.get("config") and not by_language else ""
        where += f", revision `{source['revision']}`" if source.get("revision") else ""
    else:
        where = f"`{source['demo']}`, embedded in kdlab" if source.get("demo") else "Local files"
    columns = ", ".join(f"`{name}`" for name in task["text"])
    lines = ["## Data", "", f"{where}; text: {columns}."]
    if task.get("kind") == "reasoning":
        apart = "made apart from those of train" if source.get("demo") else PARTITIONS[task["partition"]["rule"]]
        lines.append(f"Answers: {task['answer'].replace('_', ' or ')}. Test questions: {apart}.")
    if task.get("labels"):
        labels = ", ".join(f"{place} = {name}" for place, name in enumerate(task["labels"]))
        lines.append(f"Labels: {labels}.")
    if task.get("languages"):
        lines.append(f"Languages: {', '.join(task['languages'])}; source language: {task['source_language']}.")
    return "\n".join(lines)


def _method(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    stages = run["method"].get("stages", [])
    several = _multilingual(run)
    steps = _crosslingual_steps(result, run) if several else [_stage(run["method"], stage) for stage in stages]
    told = [f"{place}. {step}" for place, step in enumerate(steps, start=1)]
    how = {
        "test": f"the test set, as the {'official code does' if several else 'paper did'}: its scores are optimistic",
        "heldout": "a held-out part of the training data",
        "dev": "the dev set: scores on it flatter"
        if several
        else "the dev set, as papers often do: its scores flatter",
        "last": "nothing: the last one is kept",
    }
    chosen = how.get(run.get("select_on", "heldout"), run.get("select_on"))
    return "\n".join(["## Method", "", *told, "", f"Checkpoints are chosen on {chosen}."])


def _crosslingual_steps(result: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """How the student was trained, and how it is asked for the scores."""
    fit, source = run["method"]["student"], run["task"]["source_language"]
    trained, inference = result["training"], result["inference"]
    own = ", ".join(trained["languages"])
    learned = {
        "original": f"labelled texts in {own}",
        "translated": f"labelled texts in {source} and their translations into {own}, in pairs that share a label",
        "back_translated": f"labelled texts in {own}, each translated into {source} and back",
    }[trained["texts"]]
    contrast = fit["contrast"]
    parts = ["cross entropy"]
    parts += [f"mixed inputs, Beta({fit['mixup']:g}, {fit['mixup']:g})"] if fit["mixup"] else []
    parts += (
        [f"SupCon with weight {contrast['weight']:g}, temperature {contrast['temperature']:g}"]
        if contrast["weight"]
        else []
    )
    asked = {
        "original": "the text as it is",
        "translated": f"its translation into {source}",
        "both": f"both: {_both(inference)}",
    }[inference["mode"]]
    return [
        f"The student is fine-tuned on {learned}: {'; '.join(parts)}. A step is the mean over its languages.",
        f"For the run's own score it is asked with {asked}.",
    ]


def _both(inference: Mapping[str, Any]) -> str:
    if inference["ensemble"] == "logits":
        return "the sum of the logits of the text and of its translation"
    share = inference["share"]
    return f"{1 - share:g} times the probabilities of the text and {share:g} times those of its translation"


def _translations(result: Mapping[str, Any]) -> str:
    """Who translated, how much, and what of it went wrong."""
    counts = translated(result["translations"])
    lines = ["## Translations", "", f"Translated by {_translator(result['translator'])}: {counts}."]
    return "\n".join(lines)


def _translator(translator: Mapping[str, Any]) -> str:
    """Who it is, without where it lies."""
    kind = translator["kind"]
    if kind == "apertium":
        routes = [f"{pair} by {', '.join(route['modes'])}" for pair, route in translator["routes"].items()]
        return f"Apertium, which has rules ({'; '.join(routes)})"
    if kind == "hf":
        models = [(_hub_id(name), values.get("revision")) for name, values in translator.get("models", {}).items()]
        named = [f"`{name}`" + (f" (revision `{revision}`)" if revision else "") for name, revision in models if name]
        return (", ".join(named) or "a local model") + f", with beams of {translator['beams']}"
    return {
        "rules": "kdlab's word-for-word rules for this task, which leave artifacts",
        "recorded": "others; recorded",
    }[kind]


def _scores_by_language(result: Mapping[str, Any]) -> str:
    """A table for each metric of the set that methods are compared on."""
    split, source = split_of(result), result["source_language"]
    metrics = list(result["scores"][split])
    told = [
        MODES[mode].format(source=source, both=_both(result["inference"])) for mode in languages.modes(result, split)
    ]
    parts = [
        f"### By language, on {split}",
        f"Times 100. {' '.join(told)} {source} is asked once and stands in every column.",
    ]
    for metric in metrics:
        columns = languages.language_columns(result, split, metric)
        titled = {title.replace("_", " "): cells for title, cells in columns.items()}
        parts.append("\n".join([f"{metric_name(metric)}:", "", *_markdown(filled(titled, keep=("",)), left=("",))]))
    note = languages.fallback_note(result)
    return "\n\n".join([*parts, *([f"{note[0].upper()}{note[1:]}."] if note else [])])


def _views(result: Mapping[str, Any]) -> str:
    """What of the scores the saved student gives by itself."""
    lines = ["The code above gives the scores under *original*: the student reads a text in its own language."]
    source, shown = result["source_language"], languages.modes(result, split_of(result))
    if "translated" in shown:
        lines.append(
            f"Those under *translated* need the translator above: it is the translation into {source} that is read."
        )
    if "both" in shown:
        lines.append(f"Those under *both* need it too: {_both(result['inference'])}.")
    return "\n".join(lines)


def _reproduction(overrides: Sequence[str]) -> str:
    """The command, without what changes no number; a value that means something on one machine only is left open."""
    shown = []
    for word in overrides:
        name, is_value, value = word.partition("=")
        key = name.lstrip("+~")
        if key.partition(".")[0].partition("/")[0] in ("hydra", *INCIDENTAL) and key != "seed":
            continue
        place = key.rpartition(".")[2] in ("path", "exemplars") or ("/" in value and "." in key and not _hub_id(value))
        shown.append(f"{name}=..." if is_value and place else word)
    return "\n".join(["## How to make it again", "", "```sh", shlex.join(["kdlab", "train", *shown]), "```"])


def _stage(method: Mapping[str, Any], stage: str) -> str:
    """What a stage does; of one that distils layers, which and how."""
    fit = method.get(stage, {})
    text = STAGES.get(stage, stage)
    if method["family"] == "reasoning":
        learned = "the kept rationales, each with the gold answer behind it" if _taught(method) else "the answers"
        return {**REASONING_STAGES, "student": f"The student is fine-tuned on {learned}"}[stage] + "."
    if stage in ("layers", "joint") and fit:
        text += f": {', '.join(fit['relations'])}; layer map {fit['layer_map']}"
        text += "; mixed inputs" if fit["mixup"] else ""
        text += "; consistency" if fit["mixup"] and fit["consistency"]["weight"] else ""
    if stage == "logits" and fit.get("mixed", {}).get("mixup"):
        text += ", of mixed inputs too" if fit["clean"] else ", of mixed inputs"
    return text.removesuffix(".") + "."


def _taught(method: Mapping[str, Any]) -> bool:
    return "rationales" in method["stages"]


def _rationales(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Who wrote what the student learned from, and what was left out of it."""
    method, writer, curation = run["method"], run["rationales"], result["curation"]
    samples = method["samples"]
    wanted = [
        "a right final answer" if method["curation"]["correct"] else "any final answer",
        *(["an end of their own, not the token limit"] if method["curation"]["complete"] else []),
        *([] if method["curation"]["duplicates"] else ["no copy of another one of the question"]),
    ]
    lines = [
        "## Rationales",
        "",
        f"Written by {_writer(writer, result['teacher'])}; {samples} of each question"
        + (f", at temperature {method['temperature']:g}" if writer["kind"] in ("openai", "local") else "")
        + ".",
        f"Kept were those with {'; '.join(wanted)}: {curation['kept']} of {curation['rationales']}, for "
        f"{curation['questions']} of {curation['asked']} training questions.",
    ]
    if curation["dropped"]:
        told = ", ".join(f"{number} {why}" for why, number in curation["dropped"].items())
        lines.append(f"Dropped: {told}.")
    lines.append("Whether the reasoning itself is sound was not checked.")
    return "\n".join(lines)


def _writer(writer: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """Who wrote the rationales, without what is private in how it was reached.

    teacher: as the result names it; of recorded completions that is what their file says.
    """
    kind, model = writer["kind"], writer["model"]
    if kind == "rules":
        return f"kdlab's rules for this task, {100 * writer['error_rate']:g} % of them wrong on purpose"
    if kind == "recorded":
        key = f" (`{teacher['key']}`)" if teacher["key"] else ""
        return f"`{teacher['name']}`; recorded completions{key}"
    asked = "with zero-shot-CoT prompts" if writer["prompt"] == "zs_cot" else "with few-shot-CoT prompts"
    if kind == "local":
        name = _hub_id(model)
        return f"`{name}`, {asked}" if name else f"a local model, {asked}"
    host = urlsplit(writer["base_url"] or "").hostname
    return f"`{model}` through an OpenAI-compatible endpoint" + (f" at `{host}`" if host else "") + f", {asked}"


def _hyperparameters(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Stages that the method does not run have no settings worth telling."""
    stages = run["method"].get("stages", ["student"] if _multilingual(run) else list(SETTINGS))
    idle = tuple(prefix for stage, prefixes in SETTINGS.items() if stage not in stages for prefix in prefixes)
    idle += () if result.get("translator") else ("translator.",)
    shown = {
        where: value
        for where, value in differences(run).items()
        if TOLD_AS_HYPERPARAMETERS.match(where) and not where.startswith(idle)
    }
    if not shown:
        return "## Hyper-parameters\n\nkdlab's defaults."
    rows = [f"| `{where}` | `{value}` |" for where, value in shown.items()]
    head = [
        "## Hyper-parameters",
        "",
        "Those that differ from kdlab's defaults:",
        "",
        "| setting | value |",
        "|---|---|",
    ]
    return "\n".join([*head, *rows])


EXPLAINED = {  # columns and rows of the scores
    "best (optimistic)": "*Best* is the highest score seen on these very rows, so it is optimistic.",
    "majority": "*Majority*: always the most frequent answer.",
    "chance": "*Chance*: guessing by the frequencies of the answers in train.",
    "95 % interval": "The interval is the bootstrap's over questions (Wilson's where all or none are right).",
    "contains": "*Contains*: the right answer is somewhere in the text.",
    "format": "*Format*: the text has the mark before the answer that it was trained to have.",
    "complete": "*Complete*: the text ended by itself, not at the token limit.",
}


def _scores(result: Mapping[str, Any]) -> str:
    columns = {_one_line(title): cells for title, cells in filled(score_columns(result), keep=("student",)).items()}
    told = [text for name, text in EXPLAINED.items() if name in columns or name in columns["metric"]]
    chosen = "Times 100. *Student*: the checkpoint that the run chose."
    seed, precision = result["run"]["seed"], result["run"]["precision"]
    return "\n".join(
        [
            *("## Scores", "", chosen, *told, ""),
            *_markdown(columns, left=("set", "metric")),
            *("", f"One run, seed {seed}, {precision}."),
            *(f"\n**Note:** {line}." for line in remarks(result)),
        ]
    )


def _size_and_speed(result: Mapping[str, Any]) -> str:
    rows = {role: [show(result[role]) for show in SIZE_AND_SPEED.values()] for role in ROLES if result.get(role)}
    known = {role: cells for role, cells in rows.items() if set(cells) != {"-"}}  # not of a teacher behind an endpoint
    figures = zip(map(_one_line, SIZE_AND_SPEED), zip(*known.values(), strict=True), strict=True) if known else ()
    head = ["## Size and speed", "", "Speed as measured on the machine of the run.", ""]
    return "\n".join([*head, *_markdown({"": list(known), **filled(dict(figures))}, left=("",))]) if known else ""


def _markdown(columns: Mapping[str, Sequence[str]], *, left: Sequence[str]) -> list[str]:
    """The lines of a table."""
    rules = "|".join("---" if title in left else "---:" for title in columns)
    rows = [f"| {' | '.join(cells)} |" for cells in zip(*columns.values(), strict=True)]
    return [f"| {' | '.join(columns)} |", f"|{rules}|", *rows]


def _one_line(title: str) -> str:
    return title.replace("\n", " ")


def _loading(run: Mapping[str, Any], place: str) -> str:
    text = f"""## How to load

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = {json.dumps(place)}  # {_where(place)}
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""
    if run["model"].get("student", {}).get("head") == "official":
        text += (
            "\n\n**Warning:** this student was trained with the head of the official code, a ReLU before the"
            "\nclassifier. Plain transformers knows no such head: without the lines below the code above gives"
            "\nother scores than those of this card."
            "\n\n```python\nimport torch\n\nmodel.dropout = torch.nn.ReLU()  # in place of a module that does nothing"
            " in eval mode\n```"
        )
    return text


def _where(place: str) -> str:
    return "on the Hub" if "/" in place else "the folder that holds this file"


def _running(result: Mapping[str, Any], run: Mapping[str, Any], place: str, check: str) -> str:
    """How to run a student that is an ONNX model."""
    fetched = "snapshot_download(" + json.dumps(place) + ")" if "/" in place else json.dumps(place)
    head = ["import json", "from pathlib import Path", "", "import numpy as np", "import onnxruntime"]
    head += ["from huggingface_hub import snapshot_download"] if "/" in place else []
    head += ["from transformers import AutoTokenizer", "", f"folder = {fetched}  # {_where(place)}"]
    head += ['session = onnxruntime.InferenceSession(f"{folder}/model.onnx")']
    writes = run["method"]["family"] == "reasoning"
    body = _written(result, run) if writes else _classified(run)
    parts = ["\n".join(["## How to run", "", "```python", *head, *body, "```"])]
    if writes:
        parts += ["The model keeps no cache of what it has read: each token costs a pass over the whole text."]
        parts += [ENDS[run["method"]["prompt"]["template"]]]
    side = "; padding may be on either side" if writes else ""
    parts += [f"Rows of any length that the model reads, in batches of any size{side}."]
    return "\n\n".join([*parts, f"Compared with torch: {check}."])


def _classified(run: Mapping[str, Any]) -> list[str]:
    task = run["task"]
    names = ["first", "second"] if len(task["text"]) == 2 else ["texts"]
    gives = (
        ["print(logits[:, 0])"]
        if task.get("kind") == "regression"
        else [
            'names = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["id2label"]',
            "print([names[str(number)] for number in logits.argmax(-1)])",
        ]
    )
    return [
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "",
        *(f'{name} = ["..."]' for name in names),
        f'cut = {{"padding": True, "truncation": True, "max_length": {task["max_length"]}}}',
        f'encoded = tokenizer({", ".join(names)}, **cut, return_tensors="np")',
        "inputs = {one.name: encoded[one.name].astype(np.int64) for one in session.get_inputs()}",
        '(logits,) = session.run(["logits"], inputs)',
        *gives,
    ]


def _written(result: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    asked = result["prompt"] or {}
    template = json.dumps(asked.get("template") or "{question}", ensure_ascii=False)
    return [
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'ends = json.loads(Path(folder, "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]',
        "",
        f'prompt = {template}.replace("{{question}}", "...")',
        'ids = prompt_ids = tokenizer([prompt], return_tensors="np")["input_ids"].astype(np.int64)',
        f"for _ in range({run['method']['answer']['max_tokens']}):",
        '    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})',
        "    ids = np.concatenate([ids, logits[:, -1:].argmax(-1)], axis=1)",
        "    if np.isin(ids[0, -1], ends):",
        "        break",
        "print(tokenizer.decode(ids[0, prompt_ids.shape[1] :], skip_special_tokens=True))",
    ]


def _asking(result: Mapping[str, Any], run: Mapping[str, Any], place: str) -> str:
    """How to load a student that writes, and how to ask it."""
    method, asked = run["method"], result["prompt"] or {}
    seq2seq = result["student"]["encoder_decoder"]
    kind = "AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForCausalLM"
    padding = "" if seq2seq else ', padding_side="left"'
    completion = "output" if seq2seq else 'output[:, inputs["input_ids"].shape[1] :]'
    parts = [
        f"""## How to load

```python
from transformers import {kind}, AutoTokenizer

folder = {json.dumps(place)}  # {_where(place)}
model = {kind}.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder{padding})

template = {json.dumps(asked.get("template") or "{question}", ensure_ascii=False)}
prompts = [template.replace("{{question}}", question) for question in ["..."]]
inputs = tokenizer(prompts, padding=True, return_token_type_ids=False, return_tensors="pt")
output = model.generate(**inputs, do_sample=False, max_new_tokens={method["answer"]["max_tokens"]})
print(tokenizer.batch_decode({completion}, skip_special_tokens=True))
```

{ENDS[method["prompt"]["template"]]}"""
    ]
    source = run["task"]["source"]
    if asked and (source.get("hub") or source.get("demo")):  # a question of local data may be private
        parts.append(f"A prompt of the test set:\n\n{_fenced(asked['prompt'])}")
        parts.append(f"What the student made of it:\n\n{_fenced(asked['completion'])}")
    if method["answer"]["unmasked_left_pad"]:
        parts.append(
            "**Warning:** for the scores of this card padding was attended to and counted in positions, as the official"
            "\ncode does for GPT-2. The code above masks it, and gives other answers in batches."
        )
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    """A block of code that no text can end."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}text\n{visible(text)}\n{fence}"


def _citations(run: Mapping[str, Any]) -> str:
    method = run["method"]
    papers = {"reasoning": _reasoning_papers, "crosslingual": _crosslingual_papers}
    keys = papers.get(method["family"], _distillation_papers)(run)
    cited = [CITATIONS[key] for key in dict.fromkeys(keys)]
    return "\n".join(["## Citation", "", "```bibtex", "\n\n".join(cited), "```"]) if cited else ""


def _reasoning_papers(run: Mapping[str, Any]) -> list[str]:
    """That of the family, and those of how the teacher and the student are asked."""
    method, writer = run["method"], run["rationales"]
    asked = [method["prompt"]["template"]]
    if _taught(method) and writer["kind"] != "rules":
        key = writer["key"] or ""
        asked += [
            name
            for name in PROMPT_PAPERS
            if (key.startswith(name) if writer["kind"] == "recorded" else writer["prompt"] == name)
        ]
    return ["ho2023large", *(PROMPT_PAPERS[name] for name in asked if name in PROMPT_PAPERS)]


def _crosslingual_papers(run: Mapping[str, Any]) -> list[str]:
    fit = run["method"]["student"]
    return [
        "oh2022synergy",
        *(["khosla2020supervised"] if fit["contrast"]["weight"] else []),
        *(["zhang2018mixup"] if fit["mixup"] else []),
    ]


def _distillation_papers(run: Mapping[str, Any]) -> list[str]:
    name, stages = run["method"]["name"], run["method"].get("stages", [])
    of_stages = [STAGE_PAPERS[stage] for stage in stages if stage in STAGE_PAPERS and name not in OWN_STAGES]
    return [*([PAPERS[name]] if name in PAPERS else []), *of_stages]
