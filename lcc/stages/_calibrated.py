"""How a compression stage gets at its layers and what calibration saw at their inputs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from lcc.engine.calibration import (
    Calibration,
    InputGroup,
    calibrated,
    encoded_batches,
    stored_groups,
)
from lcc.engine.statistics import StoredStats

if TYPE_CHECKING:
    from torch.nn import Linear

    from lcc.engine.walking import Batch
    from lcc.parts.model import Bundle
    from lcc.stage import Context, Noun

Needs = Literal["gram", "diagonal"] | None
"""What a stage reads of calibration: whole Grams, vectors only, or nothing."""
SEQUENTIAL: tuple[Noun, ...] = ("task", "data", "seed")
"""What a stage reads when no artifact holds the statistics for it."""


def reads(needs: Needs, calibration: Calibration) -> tuple[Noun, ...]:
    """The nouns that change the numbers of a stage beside its statistics."""
    return () if needs is None or calibration.mode in ("auto", "dense") else SEQUENTIAL


def input_groups(
    bundle: Bundle,
    context: Context,
    layers: Mapping[str, Linear],
    calibration: Calibration,
    *,
    needs: Needs,
) -> Iterator[InputGroup]:
    """`layers` by distinct input; without needs, one by one and without statistics."""
    if needs is None:
        return (InputGroup({name: layer}, None) for name, layer in layers.items())
    if "stats" in context.inputs:
        stats = StoredStats(context.inputs["stats"] / "stats", device=context.device)
        return stored_groups(stats, layers)
    model = bundle.load(device=None, dtype=None)
    batches = text_batches(context, bundle, model, calibration)
    one_by_one = calibration.mode == "true_sequential"
    return calibrated(model, batches, layers, gram=needs == "gram", one_by_one=one_by_one,
                      progress=context.progress)  # fmt: skip


def text_batches(
    context: Context, bundle: Bundle, model: Any, calibration: Calibration
) -> list[Batch]:
    """Rows of the training split through the task's template, drawn with the step's seed."""
    data = context.data
    rows = list(data.rows("train"))
    random.Random(context.seed).shuffle(rows)
    task = context.required_task.for_data(data)
    return encoded_batches(
        rows[: calibration.samples],
        task,
        bundle.tokenizer,
        model=model,
        batch_tokens=calibration.batch_tokens,
        max_length=calibration.max_length,
        max_tokens=calibration.max_tokens,
    )


def few_tokens(num_tokens: int, num_inputs: int, calibration: Calibration) -> list[str]:
    """A warning where a Gram would hardly have full rank."""
    if num_tokens >= 4 * num_inputs:
        return []
    enough = 4 * num_inputs
    options = []
    if calibration.max_tokens < enough:
        options.append(f"calibration.max_tokens to at least {enough}")
    if num_tokens < calibration.max_tokens:
        samples = -(-calibration.samples * enough // num_tokens)
        options.append(f"calibration.samples to at least {samples}")
    return [
        f"{num_tokens} calibration tokens are few for {num_inputs} inputs; raise"
        f" {' and '.join(options)}."
    ]
