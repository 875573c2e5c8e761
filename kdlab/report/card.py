"""The model card of a student: `README.md` of its folder, with the front matter that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from kdlab import config
from kdlab.report.summary import count, hundredfold, megabytes, metric_name, milliseconds, score_rows

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
LANGUAGES = {"nyu-mll/glue": "en"}  # of data sets on the Hub; others: not known, so not claimed

# Settings that can change the student's numbers and are not told elsewhere in the card.
TOLD_AS_HYPERPARAMETERS = re.compile(
    r"method\.(?!name$|family$|stages$)"
    r"|model\.(teacher|student)\.(?!id$|revision$)|model\.tokenizer$"
    r"|task\.(max_length|pad_to_max|heldout|dev_limit|(few|imbalance|noise)\..*)$"
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


def model_card(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Markdown with YAML front matter.

    result: what result.json holds; run: the resolved config as plain values (asdict of config.Run).
    What is not known (licence, a language, a base model that is a local folder) is left out, not guessed.
    """
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(result, run), sort_keys=False, allow_unicode=True)}---",
        f"# {result['run']['name']}",
        _introduction(result, run),
        _data(run),
        _method(run),
        _hyperparameters(run),
        _scores(result),
        _cost(result),
        _loading(run),
        _citations(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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


def _front_matter(result: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    source = run["task"].get("source", {})
    hub = source.get("hub")
    regression = run["task"].get("kind") == "regression"
    metrics = dict.fromkeys(name for row in score_rows(result) for name in HUB_METRICS[row.metric])
    base = _base_model(run)
    matter: dict[str, Any] = {
        "language": LANGUAGES.get(hub) if hub else None,
        "library_name": "transformers",
        "pipeline_tag": None if regression else "text-classification",
        "tags": ["kdlab", "knowledge-distillation"] if result.get("teacher") else ["kdlab"],
        "base_model": base,
        "datasets": [hub] if hub else None,
        "metrics": list(metrics),
        "model-index": [{"name": result["run"]["name"], "results": _index(result, run)}],
    }
    return {key: value for key, value in matter.items() if value}


def _index(result: Mapping[str, Any], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    task = run["task"]
    source = task.get("source", {})
    results = []
    for split, metrics in result["student"]["scores"].items():
        further = task.get("evaluations", {}).get(split, {})
        data = {
            "name": f"{task['name']}, {split}",
            "type": source.get("hub") or task["name"],
            "config": further.get("config") or source.get("config"),
            "split": further.get("split") or task.get("splits", {}).get(split),
            "revision": source.get("revision"),
        }
        found = [
            {"type": _hub_metric(metric), "name": metric_name(metric), "value": scores["selected"]}
            for metric, scores in metrics.items()
            if scores.get("selected") is not None
        ]
        if found:
            results.append(
                {
                    "task": {"type": "text-classification", "name": task["name"]},
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
    if result.get("teacher"):
        lines.append(f"- {_encoder(run['model'].get('teacher', {}), 'Teacher')}")
    lines.append(f"- {_encoder(run['model'].get('student', {}), 'Student')}")
    return "\n".join(lines)


def _data(run: Mapping[str, Any]) -> str:
    task = run["task"]
    source = task.get("source", {})
    if source.get("hub"):
        where = f"`{source['hub']}`"
        where += f", configuration `{source['config']}`" if source.get("config") else ""
        where += f", revision `{source['revision']}`" if source.get("revision") else ""
    else:
        where = f"`{source['demo']}`, embedded in kdlab" if source.get("demo") else "Local files"
    columns = ", ".join(f"`{name}`" for name in task["text"])
    lines = ["## Data", "", f"{where}; text: {columns}."]
    if task.get("labels"):
        labels = ", ".join(f"{place} = {name}" for place, name in enumerate(task["labels"]))
        lines.append(f"Labels: {labels}.")
    return "\n".join(lines)


def _method(run: Mapping[str, Any]) -> str:
    stages = run["method"].get("stages", [])
    told = [f"{place}. {_stage(run['method'], stage)}" for place, stage in enumerate(stages, start=1)]
    how = {
        "heldout": "a held-out part of the training data",
        "dev": "the dev set, as papers often do: its scores flatter",
        "last": "nothing: the last one is kept",
    }
    chosen = how.get(run.get("select_on", "heldout"), run.get("select_on"))
    return "\n".join(["## Method", "", *told, "", f"Checkpoints are chosen on {chosen}."])


def _stage(method: Mapping[str, Any], stage: str) -> str:
    """What a stage does; of one that distils layers, which and how."""
    text = STAGES.get(stage, stage)
    fit = method.get(stage, {})
    if stage in ("layers", "joint") and fit:
        text += f": {', '.join(fit['relations'])}; layer map {fit['layer_map']}"
        text += "; mixed inputs" if fit["mixup"] else ""
        text += "; consistency" if fit["mixup"] and fit["consistency"]["weight"] else ""
    if stage == "logits" and fit.get("mixed", {}).get("mixup"):
        text += ", of mixed inputs too" if fit["clean"] else ", of mixed inputs"
    return text.removesuffix(".") + "."


def _hyperparameters(run: Mapping[str, Any]) -> str:
    """Stages that the method does not run have no settings worth telling."""
    stages = run["method"].get("stages")
    idle = set(STAGES) - set(stages) if stages is not None else set()
    shown = {
        where: value
        for where, value in differences(run).items()
        if TOLD_AS_HYPERPARAMETERS.match(where) and not any(where.startswith(f"method.{name}.") for name in idle)
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


def _scores(result: Mapping[str, Any]) -> str:
    head = [
        "## Scores",
        "",
        "Times 100. *Selected* is the checkpoint that the run chose; *best* is the highest score seen on",
        "these very rows, so it is optimistic. *Majority*: always the most frequent answer.",
        "",
        "| set | metric | majority | teacher | student, selected | last | best (optimistic) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    rows = [
        f"| {row.split} | {metric_name(row.metric)} | {' | '.join(map(hundredfold, row.values))} |"
        for row in score_rows(result)
    ]
    seed, precision = result["run"]["seed"], result["run"]["precision"]
    return "\n".join([*head, *rows, "", f"One run, seed {seed}, {precision}."])


def _cost(result: Mapping[str, Any]) -> str:
    rows = [
        f"| {role} | {count(one.get('parameters'))} | {megabytes(one.get('bytes'))} | "
        f"{milliseconds(one.get('latency_ms'))} | {count(one.get('flops_per_example'))} |"
        for role in ("teacher", "student")
        if (one := result.get(role))
    ]
    return "\n".join(
        [
            "## Size and speed",
            "",
            "Latency as measured on the machine of the run.",
            "",
            "| | parameters | size, MB | latency, ms | FLOPs per example |",
            "|---|---:|---:|---:|---:|",
            *rows,
        ]
    )


def _loading(run: Mapping[str, Any]) -> str:
    text = """## How to load

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "student"  # the folder that holds this file
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""
    if run["model"].get("student", {}).get("head") == "official":
        text += (
            "\n\n**Warning:** this student was trained with the head of the official code, a ReLU before the"
            "\nclassifier. Plain transformers knows no such head: the code above loads the model but gives"
            "\nother scores than those of this card. `kdlab.models.encoder.load_saved` reads the head as it"
            "\nwas trained."
        )
    return text


def _citations(run: Mapping[str, Any]) -> str:
    name, stages = run["method"]["name"], run["method"].get("stages", [])
    of_stages = [STAGE_PAPERS[stage] for stage in stages if stage in STAGE_PAPERS and name not in OWN_STAGES]
    keys = dict.fromkeys([*([PAPERS[name]] if name in PAPERS else []), *of_stages])
    cited = [CITATIONS[key] for key in keys]
    return "\n".join(["## Citation", "", "```bibtex", "\n\n".join(cited), "```"]) if cited else ""
