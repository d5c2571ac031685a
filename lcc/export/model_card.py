"""Model card of an export: a README.md with the hub's YAML header, then what a reader must know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcc.core.format import size
from lcc.export.parity import Parity
from lcc.models.card import Card, read_json

# Where a model comes from, as far as the run or the store that made it tells.

Measures = dict[str, float]
EVALUATIONS = ("eval.before", "eval.this")  # inputs of an export, where the recipe evaluated
REPORT_FILE = "report.json"
TOLD_AS = {"merge": "adapter merged", "attach": "adapter attached"}


@dataclass
class Provenance:
    """What a model card says of a model's making; all of it may be unknown.

    `metrics` are evaluations by the checkpoint they judge, in order: the last one is of the model
    that is exported, and the first, if there are several, of what it was made from.
    """

    base: str = ""
    data: str = ""
    data_licence: str = ""
    task: str = ""
    steps: list[str] = field(default_factory=list)
    command: str = ""
    metrics: dict[str, Measures] = field(default_factory=dict)

    @classmethod
    def of_run(cls, facts: Mapping[str, Any], checkpoint: str) -> Provenance:
        """From a run's run.json, for its checkpoint of this name."""
        recipe = facts.get("recipe") or {}
        steps = []
        for step in facts.get("steps", []):
            if step.get("checkpoint"):
                steps.append(_report_measure(step["checkpoint"], step["kind"]))
            if step.get("checkpoint") == checkpoint:
                break
        return cls(
            base=_named(recipe.get("model")),
            data=_named(recipe.get("dataset")),
            data_licence=_named(recipe.get("dataset"), "licence"),
            task=_named(recipe.get("task")),
            steps=steps[1:],
            command=str(facts.get("command", "")),
        )

    @classmethod
    def of_inputs(cls, inputs: Mapping[str, Path]) -> Provenance:
        """From what a step of a recipe was given: reports beside it in the store lead back."""
        origin, steps = cls(), dict[str, str]()
        for report in list(_lineage(inputs.get("model")))[::-1]:  # the first step first
            spec, name = report["node"].get("spec"), report["name"].partition(".")[0]
            if report["kind"] == "base":
                origin.base = _named(spec)
            elif report["kind"] == "prepare":
                origin.data, origin.data_licence = _named(spec), _named(spec, "licence")
            else:
                # Where an adapter was merged this takes the place of its training.
                steps[name] = _report_measure(name, report["kind"])
            origin.task = _named(report["ingredients"].get("task")) or origin.task
        origin.steps = list(steps.values())
        for name in EVALUATIONS:
            judged = _report(inputs.get(name))
            if judged is not None:
                origin.metrics[judged["name"].partition(".")[2]] = evaluated(judged)
        return origin

    def judge(self, evaluations: Mapping[str, Measures], checkpoint: str) -> None:
        """Keep evaluations up to that of the exported `checkpoint`; none where it has none."""
        names = list(evaluations)
        if checkpoint in names:
            kept = names[: names.index(checkpoint) + 1]
            self.metrics = {name: evaluations[name] for name in kept}


def evaluated(report: Mapping[str, Any]) -> Measures:
    """The scores of an evaluation's report: what has no unit of time or size."""
    plain = ("", "nats", "bits", "points", "percent", "share", None)
    return {
        name: float(m["value"])
        for name, m in report.get("measures", {}).items()
        if m.get("unit") in plain and isinstance(m.get("value"), int | float)
    }


def _lineage(artifact: Path | None) -> Iterator[dict[str, Any]]:
    """Reports of an artifact's step and of all before it that are still there, data among them."""
    report = _report(artifact)
    if artifact is None or report is None:
        return
    yield report
    for name in ("adapter", "data", "model"):
        if name in report["inputs"]:
            beside = artifact.parent / report["inputs"][name]
            yield from _lineage(beside) if name == "model" else _nearest(beside)


def _nearest(artifact: Path) -> Iterator[dict[str, Any]]:
    """The report of a step, and of its data."""
    report = _report(artifact)
    if report is not None:
        yield report
        if "data" in report["inputs"]:
            yield from _nearest(artifact.parent / report["inputs"]["data"])


def _report(artifact: Path | None) -> dict[str, Any] | None:
    if artifact is None or not (artifact / REPORT_FILE).is_file():
        return None
    report: dict[str, Any] = read_json(artifact / REPORT_FILE)
    return report


def _report_measure(name: str, kind: str) -> str:
    return f"{name} ({TOLD_AS.get(kind, kind)})"


def _named(node: Any, key: str = "name") -> str:
    return str(node.get(key, "")) if isinstance(node, Mapping) else ""


PIPELINES = {"causal": "text-generation", "seq2seq": "text2text-generation",
             "classify": "text-classification", "embed": "feature-extraction",
             "masked": "fill-mask", "paired": "fill-mask", "extract": "question-answering",
             "transcribe": "automatic-speech-recognition"}  # fmt: skip
LIBRARIES = {"hf": "transformers", "compressed_tensors": "transformers",
             "bitsandbytes": "transformers", "gguf": "gguf", "ollama": "gguf",
             "ctranslate2": "ctranslate2", "openvino": "openvino", "onnx": "onnx"}  # fmt: skip
# What the hub knows by name; it asks for any other licence's name beside the word `other`.
HUB_LICENCES = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0",
                "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-2.1",
                "lgpl-3.0", "agpl-3.0", "mpl-2.0", "artistic-2.0", "gemma")  # fmt: skip
LIMITS = """Compression loses first what calibration and evaluation did not look at: rare words,
other languages, long texts. Judge the model on your own data before you rely on it. It can be
wrong, and it repeats what is wrong in the data it was trained on."""


def model_card(
    card: Card, origin: Provenance, *, format: str, facts: Mapping[str, Any], parity: Parity | None
) -> str:
    """The whole text; what is not known is not made up."""
    parts = [_header(card, origin, format), f"# {card.name} ({format})", _origin(card, origin)]
    parts += [_metrics(origin), _parity(parity), _made(origin, format, facts)]
    parts += [f"## Limits\n\n{LIMITS}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_model_card(folder: Path, text: str) -> None:
    """As the hub wants it: README.md."""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _header(card: Card, origin: Provenance, format: str) -> str:
    known = card.licence.lower() in HUB_LICENCES
    lines: dict[str, Any] = {
        "license": card.licence.lower() if known else "other",
        "license_name": "" if known else card.licence,
        "base_model": origin.base,
        "datasets": [origin.data] if origin.data else [],
        "metrics": list(_this(origin)),
        "library_name": LIBRARIES.get(format, "transformers"),
        "pipeline_tag": PIPELINES[card.head],
        "tags": ["lcc", format],
        "model-index": _index(card, origin),
    }
    # JSON words are YAML words; names come from strangers and are quoted.
    fields = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines.items() if value]
    return "\n".join(["---", *fields, "---"])


def _index(card: Card, origin: Provenance) -> list[dict[str, Any]]:
    """Scores as the hub shows them, of this model and of the one before."""
    last = next(reversed(origin.metrics), "")
    metrics = [
        {"type": name, "value": value, "name": name if judged == last else f"{name} of {judged}, before"}
        for judged, scores in _shown(origin).items()
        for name, value in scores.items()
    ]
    if not metrics:
        return []
    dataset = origin.data or "unnamed"
    result = {
        "task": {"type": PIPELINES[card.head], "name": origin.task or PIPELINES[card.head]},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": metrics,
    }
    return [{"name": card.name, "results": [result]}]


def _origin(card: Card, origin: Provenance) -> str:
    lines = [
        f"- Base model: {origin.base or card.name}",
        f"- Licence: {card.licence or 'not stated by its source'}",
    ]
    if card.origin:
        lines.append(f"- Its weights: {card.origin}")
    if origin.data:
        lines.append(f"- Data: {origin.data} ({origin.data_licence or 'licence not stated'})")
    if origin.task:
        lines.append(f"- Task: {origin.task}")
    return "\n".join(lines)


def _this(origin: Provenance) -> Mapping[str, float]:
    """The scores of the model that is exported."""
    return next(reversed(origin.metrics.values()), {})


def _shown(origin: Provenance) -> dict[str, Mapping[str, float]]:
    """The first evaluation and the last, of the scores that the last has."""
    names = list(origin.metrics)
    chosen = {name: origin.metrics[name] for name in dict.fromkeys([*names[:1], *names[-1:]])}
    return {
        name: {key: scores[key] for key in _this(origin) if key in scores} for name, scores in chosen.items()
    }


def _metrics(origin: Provenance) -> str:
    shown = _shown(origin)
    if not _this(origin):
        return "## Metrics\n\nNot evaluated by the run that exported it."
    *before, this = shown
    heads = [*(f"{name} (before)" for name in before), f"{this} (this)"]
    rows = [
        [name, *(f"{shown[column][name]:.4g}" if name in shown[column] else "" for column in shown)]
        for name in _this(origin)
    ]
    table = [["metric", *heads], ["---"] * (1 + len(heads)), *rows]
    return "\n".join(["## Metrics\n", *("| " + " | ".join(row) + " |" for row in table)])


def _parity(parity: Parity | None) -> str:
    if parity is None:
        return "## Parity\n\nThe files are the source's own, byte for byte."
    if parity.kind == "bytes":
        return f"## Parity\n\n{parity.num_prompts} files are the source's own, byte for byte."
    lines = [
        f"Compared with its source on {parity.num_prompts} prompts in the engine it is made "
        f"for: {parity.agreement:.2%} of {parity.num_tokens} {_word(parity)} agree, logits "
        f"are off by {parity.logit_error:.2%} of their spread (allowed: "
        f"{parity.tolerance:.2%})."
    ]
    if parity.encoder_error is not None:
        lines.append(
            f"Prompts are sounds; its encoder's states are off by {parity.encoder_error:.2%} of their spread."
        )
    if parity.same_template is not None:
        same = "renders the same bytes" if parity.same_template else "renders OTHER bytes"
        lines.append(f"The chat template {same}.")
    return "## Parity\n\n" + " ".join(lines)


def _word(parity: Parity) -> str:
    return {"labels": "labels", "vectors": "vectors"}.get(parity.kind, "greedy tokens")


def _made(origin: Provenance, format: str, facts: Mapping[str, Any]) -> str:
    lines = [f"{i}. {step}" for i, step in enumerate(origin.steps, 1)]
    lines.append(f"{len(lines) + 1}. export as {format}")
    kinds = facts.get("bytes_of_type")
    if kinds:
        sizes = ", ".join(f"{kind} {size(num)}" for kind, num in kinds.items())
        lines.append(f"\nTypes: {sizes}.")
    others = facts.get("other_types")
    if others:
        name, why = next(iter(others.items()))
        lines.append(
            f"{len(others)} tensors have other types than asked for, as their rows do "
            f"not divide: {name} has {why}."
        )
    if origin.command:
        lines.append(f"\nMade by `{origin.command}`.")
    return "## How it was made\n\n" + "\n".join(lines)
