"""One scorer for everybody's results: perplexity or accuracy, KL divergence to the parent, flips.

`python scorer.py JOB.json`: the job holds model, parent (folders), threads, and either text (file)
with tokens, or data (prepared) with rows for a classifier.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WINDOW = 512  # every token of a window but its first is predicted


def token_ids(parent: Path, text: str, tokens: int) -> list[int]:
    """The first `tokens` ids of the text, by the parent's tokenizer."""
    from lcc.models.bundle import open_bundle
    from lcc.tasks.encode import plain_ids

    return plain_ids(text[: 8 * tokens], open_bundle(parent).tokenizer)[:tokens]


def module(folder: Path) -> Any:
    """The model as float32, packed weights taken off their grid."""
    from lcc.models.bundle import open_bundle

    return open_bundle(folder).load().eval()


def log_probabilities(model: Any, ids: list[int]) -> Iterator[tuple[Any, Any]]:
    """(tokens, vocabulary) log-probabilities and (tokens,) targets of one window after another."""
    import torch

    for start in range(0, len(ids) - 1, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        if window.shape[1] < 2:
            continue
        with torch.inference_mode():
            logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        yield logits.log_softmax(-1), window[0, 1:]


def parents_words(folder: Path, ids: list[int], kept: Path) -> list[Any]:
    """The parent's log-probabilities in half precision, window by window; made once."""
    import torch
    from safetensors.torch import load_file, save_file

    if not kept.is_file():
        found = {str(i): p.half() for i, (p, _) in enumerate(log_probabilities(module(folder), ids))}
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(found, kept)
    loaded = load_file(kept)
    assert all(p.dtype == torch.float16 for p in loaded.values())
    return [loaded[str(i)] for i in range(len(loaded))]


def scores(folder: Path, parent: Path, ids: list[int], kept: Path) -> dict[str, float]:
    """Perplexity, KL(parent ‖ model) in nats (mean, 99th percentile), share of other choices."""
    import torch

    teachers = parents_words(parent, ids, kept)
    nats, divergences, flips = [], [], []
    for teacher, (words, targets) in zip(teachers, log_probabilities(module(folder), ids), strict=True):
        nats.append(-words.gather(1, targets[:, None])[:, 0].double())
        theirs = teacher.float().log_softmax(-1)  # rounding to half lost the norm
        divergences.append((theirs.exp() * (theirs - words)).sum(-1).clamp(min=0))
        flips.append(theirs.argmax(-1) != words.argmax(-1))
    divergence = torch.cat(divergences)
    return {
        "perplexity": math.exp(float(torch.cat(nats).mean())),
        "kld_mean": float(divergence.mean()),
        "kld_p99": float(divergence.quantile(0.99)),
        "flips": float(torch.cat(flips).float().mean()),
        "num_tokens": len(divergence),
    }


def class_words(folder: Path, examples: list[tuple[list[int], int]]) -> Any:
    """(rows, classes) log-probabilities."""
    import torch

    model = module(folder)
    with torch.inference_mode():
        found = [model(input_ids=torch.tensor([ids])).logits[0] for ids, _ in examples]
    return torch.stack(found).float().log_softmax(-1)


def class_scores(folder: Path, parent: Path, data: Path, num_rows: int) -> dict[str, float]:
    """Accuracy on the test split, and what changed beside the parent, row by row."""
    import torch

    from lcc.data.dataset import PreparedData
    from lcc.models.bundle import open_bundle
    from lcc.pipeline.recipe import load_recipe

    prepared, tokenizer = PreparedData.open(data / "data"), open_bundle(parent).tokenizer
    task = load_recipe(["task=sentiment"]).task
    assert task is not None
    task = task.for_data(prepared)
    encoded = [task.encode(row, tokenizer, max_length=256) for row in prepared.rows("test")[:num_rows]]
    examples = [(one.input_ids, int(one.labels)) for one in encoded]  # type: ignore[arg-type]
    theirs, words = class_words(parent, examples), class_words(folder, examples)
    labels = torch.tensor([label for _, label in examples])
    divergence = (theirs.exp() * (theirs - words)).sum(-1)
    return {
        "accuracy": float((words.argmax(-1) == labels).float().mean()),
        "kld_mean": float(divergence.mean()),
        "kld_p99": float(divergence.quantile(0.99)),
        "flips": float((theirs.argmax(-1) != words.argmax(-1)).float().mean()),
        "num_rows": len(examples),
    }


def main() -> None:
    import torch

    from lcc.models.card import hush

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    hush()
    parent = Path(job["parent"])
    if "data" in job:
        print(json.dumps(class_scores(Path(job["model"]), parent, Path(job["data"]), job["rows"])))
        return
    ids = token_ids(parent, Path(job["text"]).read_text(encoding="utf-8"), job["tokens"])
    kept = Path(job["kept"]) / f"parent-{job['tokens']}.safetensors"
    print(json.dumps(scores(Path(job["model"]), parent, ids, kept)))


if __name__ == "__main__":
    main()
