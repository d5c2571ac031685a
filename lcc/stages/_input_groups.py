"""Layers of a compression stage with what calibration saw at their inputs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Literal

from lcc.calibration.block_walker import Aside, Memory
from lcc.calibration.calibrate import (
    Calibration,
    CalibrationContext,
    InputGroup,
    calibrated,
    encoded_batches,
    stored_groups,
)
from lcc.calibration.resume import Facts, FinishedBlocks
from lcc.calibration.statistics import StoredStats
from lcc.core.errors import RecipeError
from lcc.distributed.dist import SINGLE, Dist, Distributed
from lcc.models.blocks import fused_share
from lcc.models.reload_check import probe_inputs
from lcc.models.safetensors_io import TensorFolder

if TYPE_CHECKING:
    from torch.nn import Linear

    from lcc.calibration.block_walker import Batch
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

Needs = Literal["gram", "diagonal"] | None
"""What a stage reads of calibration: whole Grams, vectors only, or nothing."""
LEAST_ROOM = 1 << 26
SEQUENTIAL: tuple[Noun, ...] = ("task", "data", "seed")
"""What a stage reads when no artifact holds the statistics for it."""


def reads(needs: Needs, calibration: Calibration) -> tuple[Noun, ...]:
    """The nouns that change the numbers of a stage beside its statistics."""
    return () if needs is None or calibration.mode in ("auto", "dense") else SEQUENTIAL


class Groups:
    """The layers of a stage by distinct input, and what the stage notes about each.

    `facts` (in JSON's terms) and `packed` (what is stored in place of a weight) outlive a kill in
    the sequential modes: after the loop they tell of every layer, also of those that an earlier
    run had finished. Several processes are each given a share, and know all facts in the end.
    """

    def __init__(self, source: Iterator[InputGroup], facts: Facts, packed: MutableMapping[str, Any]) -> None:
        self._source, self.facts, self.packed = source, facts, packed

    def __iter__(self) -> Iterator[InputGroup]:
        return self._source


def opened(bundle: Bundle, context: Context, *, needs: Needs) -> Any:
    """The bundle's module: its weights stay on disk where blocks are changed one after another."""
    streams = needs is not None and "stats" not in context.inputs
    module = bundle.stream(device=context.device) if streams else None
    module = bundle.load(device=context.device) if module is None else module
    if fused_share(module) > 0.5:
        raise RecipeError(
            f"{type(module).__name__} keeps its experts as stacks of matrices, most of its weights,"
            " which no layer-wise method reaches; take a model without experts."
        )
    return module


def input_groups(
    bundle: Bundle,
    context: Context,
    layers: Mapping[str, Linear],
    calibration: Calibration,
    *,
    needs: Needs,
    everybody: bool = False,
) -> Groups:
    """`layers` by distinct input; without needs, one by one and without statistics.

    With `everybody`, stored ones are not dealt: each process is given all.
    """
    if needs is None:
        return Groups((InputGroup({n: layer}, None) for n, layer in layers.items()), {}, {})
    if "stats" in context.inputs:
        stats = StoredStats(context.inputs["stats"] / "stats", device=context.device)
        return _stored(stats, layers, context, dist=SINGLE if everybody else context.dist)
    model = bundle.load(device=None, dtype=None)
    warn = context.progress.warn
    kept = FinishedBlocks(context.state / "blocks", dtype=bundle.card.dtype, warn=warn)
    context.dist.barrier()  # All know the same blocks to be finished.
    batches = text_batches(context, bundle, model, calibration)
    around = CalibrationContext(
        context.progress,
        context.dist,
        kept=kept,
        aside=_aside(bundle, context),
        memory=Memory(bundle.streamed, _room(model), context.state),
    )
    groups = calibrated(
        model,
        _own(batches, context.dist),
        layers,
        gram=needs == "gram",
        one_by_one=calibration.mode == "true_sequential",
        around=around,
    )
    if bundle.streamed is not None:
        bundle.streamed.changed, bundle.aside = kept.entries, around.aside
    return Groups(groups, kept.facts, TensorFolder(context.state / "packed"))


def processes(distributed: Distributed, needs: Needs) -> Distributed:
    """How many processes a stage takes: without calibration there is nothing to share."""
    return Distributed() if needs is None else distributed


def _stored(stats: StoredStats, layers: Mapping[str, Linear], context: Context, *, dist: Dist) -> Groups:
    if dist.world_size == 1:
        return Groups(stored_groups(stats, layers), {}, {})
    facts: Facts = {}
    packed = TensorFolder(context.state / "packed")
    return Groups(stored_groups(stats, layers, dist=dist, facts=facts), facts, packed)


def _own(batches: list[Batch], dist: Dist) -> list[Batch]:
    """This process's part of the text; raises RecipeError when there is not enough for all."""
    if len(batches) < dist.world_size:
        raise RecipeError(
            f"distributed.world_size: {dist.world_size} processes, but only {len(batches)}"
            " calibration batches; raise calibration.samples or lower calibration.batch_tokens."
        )
    return batches[dist.rank :: dist.world_size]


def _room(model: Any) -> int:
    """What waiting batches may hold in memory: as much as 1/32 of the model in bfloat16."""
    num_parameters = sum(int(p.numel()) for p in model.parameters())
    return max(LEAST_ROOM, num_parameters // 16)


def _aside(bundle: Bundle, context: Context) -> Aside | None:
    """A streamed model is never whole in memory: its logits on the probe come from the walk."""
    if bundle.streamed is None or not context.dist.is_main:
        return None
    return Aside(bundle.module, probe_inputs(bundle.module, context.device))


def text_batches(context: Context, bundle: Bundle, model: Any, calibration: Calibration) -> list[Batch]:
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
        device=context.device,
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
        f"{num_tokens} calibration tokens are few for {num_inputs} inputs; raise {' and '.join(options)}."
    ]
