"""What `quality.py` compresses: a language model and a text, or a classifier trained here once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import material

TRAINED_ON = 3000  # rows of movie reviews: enough for a classifier that can lose something


@dataclass(frozen=True)
class Subject:
    """A model, prepared data to calibrate on, the task that reads it, and how it is judged."""

    model: Path
    data: Path
    task: str
    auto_class: str
    scoring: dict[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ("re:.*lm_head",)

    @property
    def is_classifier(self) -> bool:
        return self.task == "sentiment"


def subject(options: argparse.Namespace, work: Path) -> Subject:
    """A classifier where the model card is an encoder's, a language model otherwise."""
    if options.model == "minilm_l6":
        return _classifier(options, work)
    text = material.text_of(options.text)
    model = material.model_folder(options.model, work)
    scored = work / "scored.txt"
    scored.write_text(text.scored, encoding="utf-8")
    data = material.write_data(text, work / "data")
    return Subject(
        model,
        data,
        "generation",
        "AutoModelForCausalLM",
        {"text": str(scored), "tokens": options.score_tokens},
    )


def _classifier(options: argparse.Namespace, work: Path) -> Subject:
    """The encoder, trained on movie reviews by lcc's own recipe; its test split judges."""
    from lcc.pipeline.runner import run_words

    words = [
        "+recipe=sentiment_en",
        f"model={options.model}",
        f"threads={options.threads}",
        f"stages.finetune.samples={TRAINED_ON}",
        "method=full",
        "stages.finetune.lr=1e-4",
    ]
    with material.inside(work):
        run = run_words(words, verb="finetune", quiet=True)
        made = next(s for s in reversed(run.facts["steps"]) if s.get("checkpoint"))
        model = (run.artifacts[made["name"]].path / "model").resolve()
        data = run.artifacts["data"].path.resolve()
    return Subject(
        model,
        data,
        "sentiment",
        "AutoModelForSequenceClassification",
        {"data": str(data), "rows": options.score_rows},
        ignore=("re:.*classifier", "re:.*pooler.*"),
    )
