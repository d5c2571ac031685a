"""A tiny model and examples for the loop's tests, and a run that a fresh process can repeat."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import own_signals
import torch
import transformers

from lcc.core.progress import CurveFile, Progress
from lcc.distributed.dist import SINGLE, Dist
from lcc.methods.clipping.norm import Norm
from lcc.methods.optimizers.adam import AdamW
from lcc.methods.trackers.none import NoneTracker
from lcc.training.batches import EncodedExamples
from lcc.training.loss import logits_function
from lcc.training.step import Stepper
from lcc.training.trainer import Training, TrainingOptions


@dataclass(frozen=True)
class Encoded:
    input_ids: list[int]
    labels: list[int] | int


def model(dropout: float = 0.0, width: int = 16, *, tied: bool = False) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        attention_dropout=dropout,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)


def examples(num: int, seed: int = 0) -> EncodedExamples:
    dice = random.Random(seed)
    rows = []
    for _ in range(num):
        ids = [dice.randrange(3, 40) for _ in range(dice.randint(4, 12))]
        num_prompt = dice.randint(1, 3)
        rows.append(Encoded(ids, [-100] * num_prompt + ids[num_prompt:]))
    return EncodedExamples(rows, "causal")


def stepper(trained: Any, *, micro_tokens: int = 48, dist: Dist = SINGLE, **changes: Any) -> Stepper:
    return Stepper(
        model=trained,
        head="causal",
        student=logits_function(trained, "causal"),
        micro_tokens=micro_tokens,
        pad=0,
        seed=0,
        device="cpu",
        dtype="float32",
        dist=dist,
        progress=Progress(quiet=True),
        **changes,
    )


def training(folder: Path, trained: Any, **changes: Any) -> Training:
    made = changes.pop("stepper", None) or stepper(trained, dist=changes.pop("dist", SINGLE))
    tracker = changes.pop("tracker", NoneTracker())
    optimizer = changes.pop("optimizer", AdamW())
    clip = changes.pop("clip", Norm(max_norm=0.5))
    masks = changes.pop("masks", {})
    train, lr = changes.pop("train", examples(40)), changes.pop("lr", 1e-2)
    options = {"epochs": 2, "batch_tokens": 64, "schedule": "cosine", **changes}
    (folder / "state").mkdir(parents=True, exist_ok=True)
    return Training(
        options=TrainingOptions(**options),
        stepper=made,
        train=train,
        validation=examples(6, seed=1),
        clip=clip,
        optimizer_card=optimizer,
        lr=lr,
        state=folder / "state",
        curves=CurveFile(folder / "curves.jsonl"),
        tracker=tracker,
        progress=Progress(quiet=True),
        masks=masks,
    )


@dataclass
class Signalling:
    """A tracker that sends this very process a signal after a step."""

    step: int
    number: int

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.step:
            own_signals.send(self.number)

    def close(self) -> None: ...


def dropout_run(folder: Path, tracker: Any) -> Any:
    """A run whose result depends on every random draw, save and evaluation."""
    trained = model(dropout=0.2)
    training(folder, trained, tracker=tracker, save_every=3, eval_every=4).run()
    return trained


if __name__ == "__main__":
    torch.set_num_threads(1)
    dropout_run(Path(sys.argv[1]), Signalling(int(sys.argv[2]), signal.SIGKILL))
