"""Calibration: the layers of a model with what each distinct linear input looks like on text.

Layers that read the same tensor (q, k and v; gate and up; all cross-attention keys) share one
LayerStats; padding never enters. Torch hooks live in `engine.walking` and
`engine.bringing` only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from lcc.calibration.block_walker import Aside, Batch, Memory, Visit, run_whole, runs_in_order, walk
from lcc.calibration.resume import Facts, FinishedBlocks
from lcc.calibration.statistics import LayerStats, StoredStats, Tally
from lcc.config.cards import card
from lcc.core import signals
from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.core.progress import Progress
from lcc.distributed.dist import SINGLE, Dist
from lcc.models.blocks import blocks
from lcc.models.safetensors_io import raw_bytes
from lcc.tasks.encode import IGNORED, pad_id, padded, padded_rows

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PreTrainedTokenizerBase

    from lcc.tasks.task import Task

# Rows as the batches that calibration runs.

MAX_POSITIONS = 512


def encoded_batches(
    rows: list[dict[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: Any,
    batch_tokens: int = 2048,
    max_length: int = MAX_POSITIONS,
    device: str | None = None,
    max_tokens: int | None = None,
) -> list[Batch]:
    """Rows of like length together, at most `batch_tokens` tokens with their padding.

    Of `rows`, those count whose tokens are `max_tokens` together, the last one cut to fit.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or max_length
    longest = min(max_length, positions)
    examples: list[Any] = []
    left = max_tokens or len(rows) * longest
    for row in rows:
        signals.check("calibrate")
        if left > 0:
            examples.append(task.encode(row, tokenizer, max_length=min(longest, left)))
            left -= len(examples[-1].input_ids)
    examples.sort(key=lambda example: len(example.input_ids))
    pad = pad_id(tokenizer)
    batches: list[list[Any]] = []
    for example in examples:
        longest = len(example.input_ids)  # Sorted: the newest is the longest of its batch.
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(example)
    return [_batch(group, model, pad=pad, device=device or model.device) for group in batches]


def _batch(examples: list[Any], model: Any, *, pad: int, device: Any) -> Batch:
    ids, mask = padded([example.input_ids for example in examples], pad, device=device)
    batch = {"input_ids": ids, "attention_mask": mask}
    if any(any(example.kinds or ()) for example in examples):
        kinds = [example.kinds or [0] * len(example.input_ids) for example in examples]
        batch["token_type_ids"] = padded_rows(kinds, 0, device=device)
    if model.config.is_encoder_decoder:
        labels, seen = padded([example.labels for example in examples], IGNORED, device=device)
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        batch["decoder_attention_mask"] = seen
    return batch


# The layers of one block dealt to several processes, and what each changed given to all.

T = TypeVar("T")


def dealt(groups: Sequence[T], costs: Sequence[float], dist: Dist) -> list[T]:
    """This process's share: the costliest goes first, each to whoever has least."""
    loads = [0.0] * dist.world_size
    mine = set()
    for i in sorted(range(len(groups)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += costs[i]
        if rank == dist.rank:
            mine.add(i)
    return [group for i, group in enumerate(groups) if i in mine]


def solving_cost(layers: Mapping[str, Linear]) -> float:
    """Multiplications to factor the Gram of these layers' input and to sweep over their weights."""
    width = next(iter(layers.values())).in_features
    rows = sum(layer.out_features for layer in layers.values())
    return float(width) ** 2 * (width + rows)


class SharedParameters:
    """Parameters that must be equal in all processes again once every one has changed its share."""

    def __init__(self, modules: Iterable[Module], dist: Dist) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        self.parameters = list({id(p): p for p in parameters}.values()) if dist.world_size > 1 else []
        self.dist = dist
        self.before = [_fingerprint(p) for p in self.parameters]

    def settle(self) -> None:
        """Give everybody what each process changed; nothing may be changed by two."""
        if not self.parameters:
            return
        changed = [float(_fingerprint(p) != b) for p, b in self._pairs()]
        changers = self.dist.sum(changed)
        owners = self.dist.sum([c * self.dist.rank for c in changed])
        assert max(changers) <= 1, "two processes changed one parameter"
        for parameter, changer, owner in zip(self.parameters, changers, owners, strict=True):
            if changer:
                self.dist.broadcast_([parameter.data], source=int(owner))

    def _pairs(self) -> Iterable[tuple[Tensor, int]]:
        return zip(self.parameters, self.before, strict=True)


def _fingerprint(tensor: Tensor) -> int:
    return zlib.crc32(raw_bytes(tensor.detach().cpu().contiguous()))


@card
class Calibration:
    """How much text is looked at, and whether blocks see the changed ones before them.

    `dense`: statistics of the parent, an artifact that every plan over it shares. `sequential`:
    each block sees its compressed predecessors. `true_sequential`: so does each input in a block.
    `auto`: dense, unless the statistics would take more than the recipe's `stats_budget`.
    """

    mode: Literal["auto", "dense", "sequential", "true_sequential"] = "auto"
    samples: Annotated[int, Field(ge=1)] = 512
    max_tokens: Annotated[int, Field(ge=1)] = 16384  # of all samples together
    max_length: Annotated[int, Field(ge=1)] = MAX_POSITIONS
    batch_tokens: Annotated[int, Field(ge=1)] = 2048


@dataclass(frozen=True)
class InputGroup:
    """The layers that read one tensor, and what it looked like (None: nobody looked)."""

    layers: dict[str, Linear]
    stats: LayerStats | None

    def weight(self) -> Tensor:
        """All their weights, one below the other: (sum of out, in)."""
        return torch.cat([layer.weight.detach() for layer in self.layers.values()])

    def let_go(self) -> None:
        """Release the statistics: a solved group that is still referenced would keep its Gram."""
        object.__setattr__(self, "stats", None)

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """What belongs to each layer of a tensor whose first dimension is that of `weight`."""
        sizes = [layer.out_features for layer in self.layers.values()]
        return dict(zip(self.layers, torch.split(rows, sizes), strict=True))


def stored_groups(
    stats: StoredStats, layers: Mapping[str, Linear], *, dist: Dist = SINGLE, facts: Facts | None = None
) -> Iterator[InputGroup]:
    """`layers` by distinct input, in order, with the statistics of an artifact.

    Of several processes each is given its share; in the end all have the changes and the `facts`.
    """
    groups: dict[str, dict[str, Linear]] = {}
    for name, layer in layers.items():
        if name not in stats:
            raise DataError(f"calibration: layer {name!r} is not among the stored statistics.")
        groups.setdefault(stats.source(name), {})[name] = layer
    shared = SharedParameters(layers.values(), dist)
    listed = list(groups.values())
    for group in dealt(listed, [solving_cost(group) for group in listed], dist):
        yield InputGroup(group, stats[next(iter(group))])
    shared.settle()
    facts = {} if facts is None else facts
    for noted in dist.gather(facts):
        facts |= noted


def collect(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    *,
    gram: bool = False,
    progress: Progress | None = None,
    dist: Dist = SINGLE,
    memory: Memory | None = None,
) -> Iterator[dict[str, LayerStats]]:
    """Statistics of the inputs of `layers` in one pass, block by block; shared ones are one object.

    Summed over `dist`, whose processes each bring `batches` of their own. A model whose blocks do
    not run once each, in order, is run from end to end. Raises DataError for a layer never run.
    """
    tally = Tally(gram=gram, dist=dist)
    within, outside = _by_block(model, layers)
    if memory is None and batches and not runs_in_order(model, _body(model, layers), batches[0]):
        run_whole(model, _body(model, layers), batches, layers=layers, see=tally.see)
        yield tally.finish(layers)
        return
    done: dict[str, Linear] = {}
    around = CalibrationContext(progress or Progress(quiet=True), dist, memory=memory)
    for visit in _visits(model, batches, layers, tally, around):
        if done:
            yield tally.finish(done)
        done = within[visit.name]
        visit.watch_on_leaving(done, tally.see)
    yield tally.finish({**done, **outside})


@dataclass(frozen=True)
class CalibrationContext:
    """What a walk has beside the model and its text."""

    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    dist: Dist = SINGLE
    memory: Memory | None = None
    aside: Aside | None = None
    kept: FinishedBlocks | None = None


def calibrated(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    *,
    gram: bool = False,
    one_by_one: bool = False,
    around: CalibrationContext | None = None,
) -> Iterator[InputGroup]:
    """`layers` by distinct input, in forward order; each block sees what was changed before it.

    With `one_by_one` every input is looked at only after the groups before it were changed. Of
    several processes each is given its share, and all have what the others changed when the walk
    goes on. Blocks that `around.kept` has are put in place and not given again.
    """
    around = around or CalibrationContext()
    tally = Tally(gram=gram, dist=around.dist)
    within, outside = _by_block(model, layers)
    for visit in _visits(model, batches, layers, tally, around):
        if around.kept is not None and visit.name in around.kept:
            around.kept.restore(visit.name, visit.module)
            continue
        wanted = within[visit.name]
        yield from _each_changed(
            _looks(visit, wanted, tally, one_by_one=one_by_one), {visit.name: visit.module}, around
        )
    yield from _outer(outside, tally, around)


def _looks(
    visit: Visit, wanted: dict[str, Linear], tally: Tally, *, one_by_one: bool
) -> Iterator[list[InputGroup]]:
    """The groups of a block that may be changed at once, then those that wait for them."""
    if not one_by_one:
        visit.watch(wanted, tally.see)
        yield _grouped(wanted, tally.finish(wanted))
        return
    visit.watch(wanted, tally.note, num_batches=1)
    for group in tally.groups(wanted):
        visit.watch(group, tally.see)
        yield _grouped(group, tally.finish(group))


def _outer(layers: dict[str, Linear], tally: Tally, around: CalibrationContext) -> Iterator[InputGroup]:
    """The layers outside the blocks, one group after another."""
    weights = around.memory.weights if around.memory else None
    for group in _grouped(layers, tally.finish(layers)):
        for name in group.layers:
            if weights is not None:
                weights.bring(name)
        yield from _each_changed(iter([[group]]), dict(group.layers), around)
        for name in group.layers:
            if weights is not None:
                weights.drop(name)


def _each_changed(
    rounds: Iterator[list[InputGroup]], modules: Mapping[str, Module], around: CalibrationContext
) -> Iterator[InputGroup]:
    """Give out the groups of some `modules`, and settle what became of them."""
    facts = around.kept.facts if around.kept is not None else {}
    before = set(facts)
    for groups in rounds:
        shared = SharedParameters(modules.values(), around.dist)
        costs = [solving_cost(group.layers) for group in groups]
        mine = dealt(groups, costs, around.dist)
        groups.clear()
        while mine:
            group = mine.pop(0)
            yield group
            group.let_go()
        shared.settle()
    for theirs in around.dist.gather({n: f for n, f in facts.items() if n not in before}):
        facts |= theirs
    if around.kept is not None:
        for name, module in modules.items():
            around.kept.keep(name, module, write=around.dist.is_main)


def _visits(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    tally: Tally,
    around: CalibrationContext,
) -> Iterator[Visit]:
    if not batches:
        raise DataError("calibration has no text: the training split is empty.")
    body = _body(model, layers)
    _, outside = _by_block(model, layers)
    walked = walk(
        model, body, batches, outside=outside, see=tally.see, memory=around.memory, aside=around.aside
    )
    with around.progress.track("calibrate", len(blocks(model)), "block") as bar:
        for visit in walked:
            yield visit
            bar.advance()


def _body(model: Any, layers: Mapping[str, Linear]) -> Any:
    """What must run: a large vocabulary's logits would cost more than the rest."""
    needed = set(layers.values()) <= set(model.base_model.modules())
    return (model.base_model if needed else model).eval()


def _by_block(
    model: Any, layers: Mapping[str, Linear]
) -> tuple[dict[str, dict[str, Linear]], dict[str, Linear]]:
    """`layers` inside each block, and those outside all of them."""
    within = {
        block: {name: layer for name, layer in layers.items() if name.startswith(f"{block}.")}
        for block in blocks(model)
    }
    inside = {name for layers_of_block in within.values() for name in layers_of_block}
    return within, {name: layer for name, layer in layers.items() if name not in inside}


def _grouped(layers: Mapping[str, Linear], stats: Mapping[str, LayerStats]) -> list[InputGroup]:
    groups: dict[str, dict[str, Linear]] = {}
    for name, layer in layers.items():
        groups.setdefault(stats[name].source, {})[name] = layer
    return [InputGroup(group, stats[next(iter(group))]) for group in groups.values()]
