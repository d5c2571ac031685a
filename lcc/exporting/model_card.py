"""The README.md of an export: the hub's YAML header, then what a reader must know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcc.exporting.parity import Parity
from lcc.exporting.provenance import Provenance
from lcc.parts.checkpoint import Card

PIPELINES = {"causal": "text-generation", "seq2seq": "text2text-generation",
             "classify": "text-classification", "embed": "feature-extraction",
             "masked": "fill-mask", "paired": "fill-mask", "extract": "question-answering",
             "transcribe": "automatic-speech-recognition"}  # fmt: skip
LIBRARIES = {"hf": "transformers", "compressed_tensors": "transformers",
             "bitsandbytes": "transformers", "gguf": "gguf", "ollama": "gguf",
             "ctranslate2": "ctranslate2", "openvino": "openvino", "onnx": "onnx"}  # fmt: skip
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
    lines = {
        "license": card.licence or "other",
        "base_model": origin.base,
        "datasets": [origin.data] if origin.data else [],
        "library_name": LIBRARIES.get(format, "transformers"),
        "pipeline_tag": PIPELINES[card.head],
        "tags": ["lcc", format],
    }
    # JSON words are YAML words; names come from strangers and are quoted.
    told = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in lines.items()
            if value]  # fmt: skip
    return "\n".join(["---", *told, "---"])


def _origin(card: Card, origin: Provenance) -> str:
    lines = [f"- Base model: {origin.base or card.origin or card.name}",
             f"- Licence: {card.licence or 'not stated by its source'}"]  # fmt: skip
    if origin.data:
        lines.append(f"- Data: {origin.data}")
    if origin.task:
        lines.append(f"- Task: {origin.task}")
    return "\n".join(lines)


def _metrics(origin: Provenance) -> str:
    if not origin.metrics:
        return ""
    before, after = next(iter(origin.metrics)), next(reversed(origin.metrics))
    names = [name for name in origin.metrics[after] if name in origin.metrics[before]]
    rows = [f"| {name} | {origin.metrics[before][name]:.4g} | {origin.metrics[after][name]:.4g} |"
            for name in names]  # fmt: skip
    if not rows:
        return ""
    head = [f"| metric | {before} (before) | {after} (this) |", "| --- | --- | --- |"]
    return "\n".join(["## Metrics\n", *head, *rows])


def _parity(parity: Parity | None) -> str:
    if parity is None:
        return "## Parity\n\nThe files are the source's own, byte for byte."
    if parity.kind == "bytes":
        return f"## Parity\n\n{parity.num_prompts} files are the source's own, byte for byte."
    lines = [f"Compared with its source on {parity.num_prompts} prompts in the engine it is made "
             f"for: {parity.agreement:.2%} of {parity.num_tokens} {_word(parity)} agree, logits "
             f"are off by {parity.logit_error:.2%} of their spread (allowed: "
             f"{parity.tolerance:.0%})."]  # fmt: skip
    if parity.encoder_error is not None:
        lines.append(f"Prompts are sounds; its encoder's states are off by "
                     f"{parity.encoder_error:.2%} of their spread.")  # fmt: skip
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
        told = ", ".join(f"{kind} {size / 1e6:.2f} MB" for kind, size in kinds.items())
        lines.append(f"\nTypes: {told}.")
    others = facts.get("other_types")
    if others:
        name, why = next(iter(others.items()))
        lines.append(f"{len(others)} tensors have other types than asked for, as their rows do "
                     f"not divide: {name} has {why}.")  # fmt: skip
    if origin.command:
        lines.append(f"\nMade by `{origin.command}`.")
    return "## How it was made\n\n" + "\n".join(lines)
