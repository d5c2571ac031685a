"""What every kind of clipping does to a real training whose learning rate is far too high.

    python benchmarks/clipping.py --text wikitext2.valid.txt
    python benchmarks/clipping.py --text FILE --optimizer adamw --seeds 0 1 2

Trains a small Llama (660,000 parameters, vocabulary of 2,048) from scratch on the second half
of the text with lcc's own loop, each kind of clipping with its card's defaults, at a sound learning
rate and at exploding ones; the start of the first half is what the loss is measured on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import material
import torch
import transformers

from lcc.config.cards import find_card, names
from lcc.core.errors import DivergedError
from lcc.core.progress import CurveFile, Progress
from lcc.distributed.dist import SINGLE
from lcc.methods.trackers.none import NoneTracker
from lcc.models.sources import Scratch, TokenizerRecipe, make_module, make_tokenizer
from lcc.training.batches import EncodedExamples
from lcc.training.loss import logits_function
from lcc.training.step import Stepper
from lcc.training.trainer import Training, TrainingOptions

LENGTH, BATCH_TOKENS, HELD_OUT = 64, 1024, 32  # tokens a block, tokens a step, blocks judged on
RATES = {"sgd": (0.3, 3.0), "adamw": (3e-3, 0.1)}
ORDER = ("none", "norm", "value", "per_layer", "agc", "quantile")
LLAMA = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 344,
         "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": LENGTH,
         "tie_word_embeddings": True}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """`LENGTH` tokens of running text, each but the first a target."""

    input_ids: list[int]

    @property
    def labels(self) -> list[int]:
        return self.input_ids


@dataclass(frozen=True)
class Corpus:
    """Blocks to train on and to judge by, and the tokenizer that made them."""

    train: EncodedExamples
    held_out: EncodedExamples
    tokenizer: Any


def corpus(text: material.Text) -> Corpus:
    rows = [row["text"] for row in text.rows()]
    recipe = TokenizerRecipe(
        texts=tuple(rows), vocab_size=2048, specials={"pad_token": "<pad>", "eos_token": "</s>"}
    )
    tokenizer = make_tokenizer(recipe)
    train, held_out = (blocks(tokenizer, t) for t in ("".join(rows), text.scored[:200_000]))
    return Corpus(EncodedExamples(train, "causal"), EncodedExamples(held_out[:HELD_OUT], "causal"), tokenizer)


def blocks(tokenizer: Any, text: str) -> list[Block]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [Block(ids[i : i + LENGTH]) for i in range(0, len(ids) - LENGTH, LENGTH)]


def train(found: Corpus, clip: str, options: argparse.Namespace, *, rate: float, seed: int) -> Any:
    """What one training came to: its loss at the end, its norms, and what was clipped of them."""
    torch.set_num_threads(options.threads)
    model = make_module(
        Scratch(config=LLAMA, tokenizer=TokenizerRecipe(texts=()), seed=seed), "causal", found.tokenizer
    )
    with tempfile.TemporaryDirectory(prefix="lcc-clipping-") as folder:
        curves = CurveFile(Path(folder) / "curves.jsonl")
        training = Training(
            options=TrainingOptions(
                max_steps=options.steps, epochs=100, batch_tokens=BATCH_TOKENS, keep_best=False
            ),
            stepper=Stepper(
                model=model,
                head="causal",
                student=logits_function(model, "causal"),
                micro_tokens=BATCH_TOKENS,
                pad=0,
                seed=seed,
                device="cpu",
                dtype="float32",
                dist=SINGLE,
                progress=Progress(quiet=True),
            ),
            train=found.train,
            validation=found.held_out,
            clip=find_card("clipping", clip)(),
            optimizer_card=find_card("optimizers", options.optimizer)(),
            lr=rate,
            state=Path(folder),
            curves=curves,
            tracker=NoneTracker(),
            progress=Progress(quiet=True),
        )
        with suppress(DivergedError):  # what is in memory after the last good step is judged
            training.run()
        rows = list(curves.rows())
        loss = training.stepper.validate(found.held_out)
    return {"loss": loss, "steps": len(rows), **summary(rows)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    norms = [row["grad_norm"] for row in rows if row["grad_norm"] is not None]
    bounds = [row["clip_threshold"] for row in rows if "clip_threshold" in row]
    skipped = sum(row["loss"] is None or row["grad_norm"] is None for row in rows)
    return {
        "median": statistics.median(norms),
        "largest": max(norms),
        "skipped": skipped,
        "threshold": bounds[-1] if bounds else None,
        "share": sum(row["clipped_share"] for row in rows) / len(rows),
    }


def table(found: Corpus, options: argparse.Namespace) -> Iterator[str]:
    """Markdown, a line as soon as it is known."""
    yield "| lr | clip | loss | norm: median | largest | threshold | clipped | steps skipped |"
    yield "| --- " * 8 + "|"
    for rate in options.rates:
        for clip in options.only:
            runs = [train(found, clip, options, rate=rate, seed=seed) for seed in options.seeds]
            yield line(clip, runs, rate=rate, steps=options.steps)


def line(clip: str, runs: list[dict[str, Any]], *, rate: float, steps: int) -> str:
    """Means over the seeds; the largest norm of all, and the threshold of the last."""
    losses = [run["loss"] for run in runs]
    spread = f" ± {statistics.stdev(losses):.2f}" if len(losses) > 1 else ""
    loss, median, share, skipped = (
        statistics.mean(run[key] for run in runs) for key in ("loss", "median", "share", "skipped")
    )
    bound = runs[-1]["threshold"]
    threshold = "–" if bound is None else f"{bound:.3g}"
    clipped = "–" if clip == "none" else f"{100 * share:.3g} % of {find_card('clipping', clip).clips}"
    ended = min(run["steps"] for run in runs)
    stopped = f" (stopped at {ended})" if ended < steps else ""
    return (
        f"| {rate:g} | {clip} | {loss:.2f}{spread} | {median:.3g} | "
        f"{max(run['largest'] for run in runs):.3g} | {threshold} | {clipped} | "
        f"{skipped:g}{stopped} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="a plain text of about a megabyte")
    parser.add_argument("--optimizer", default="sgd", choices=names("optimizers"))
    parser.add_argument("--rates", type=float, nargs="+", help="the first should be sound")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.rates = (
        options.rates
        or RATES.get(options.optimizer)
        or parser.error(f"say with --rates which learning rates {options.optimizer} is to have")
    )
    transformers.logging.set_verbosity_error()
    found = corpus(material.text_of(options.text))
    sizes = {
        "steps": options.steps,
        "batch_tokens": BATCH_TOKENS,
        "seeds": options.seeds,
        "train_tokens": sum(found.train.lengths),
        "optimizer": options.optimizer,
    }
    print(json.dumps(sizes), flush=True)
    for line in table(found, options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
