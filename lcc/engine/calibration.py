"""Calibration: the layers of a model with what each distinct linear input looks like on text.

Layers that read the same tensor (q, k and v; gate and up; all cross-attention keys) share one
LayerStats; padding never enters. Torch hooks live in `engine.walking` and
`engine.bringing` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lcc.core.decode import card
from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.core.progress import Progress
from lcc.engine.blocks import blocks
from lcc.engine.calibration_text import MAX_POSITIONS
from lcc.engine.calibration_text import encoded_batches as encoded_batches
from lcc.engine.dealing import Shared, dealt, solving_cost
from lcc.engine.keeping import Facts, Kept
from lcc.engine.statistics import LayerStats, StoredStats
from lcc.engine.tallying import Tally
from lcc.engine.walking import Aside, Batch, Memory, Visit, run_whole, runs_in_order, walk
from lcc.parts.dist import SINGLE, Dist

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module


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
        """Forget the statistics: whoever still holds a solved group would hold its Gram."""
        object.__setattr__(self, "stats", None)

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """What belongs to each layer of a tensor whose first dimension is that of `weight`."""
        sizes = [layer.out_features for layer in self.layers.values()]
        return dict(zip(self.layers, torch.split(rows, sizes), strict=True))


def stored_groups(
    stats: StoredStats,
    layers: Mapping[str, Linear],
    *,
    dist: Dist = SINGLE,
    facts: Facts | None = None,
) -> Iterator[InputGroup]:
    """`layers` by distinct input, in order, with the statistics of an artifact.

    Of several processes each is given its share; in the end all have the changes and the `facts`.
    """
    groups: dict[str, dict[str, Linear]] = {}
    for name, layer in layers.items():
        if name not in stats:
            raise DataError(f"calibration: layer {name!r} is not among the stored statistics.")
        groups.setdefault(stats.source(name), {})[name] = layer
    shared = Shared(layers.values(), dist)
    found = list(groups.values())
    for group in dealt(found, [solving_cost(group) for group in found], dist):
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
    around = Surroundings(progress or Progress(quiet=True), dist, memory=memory)
    for visit in _visits(model, batches, layers, tally, around):
        if done:
            yield tally.finish(done)
        done = within[visit.name]
        visit.watch_on_leaving(done, tally.see)
    yield tally.finish({**done, **outside})


@dataclass(frozen=True)
class Surroundings:
    """What a walk has beside the model and its text."""

    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    dist: Dist = SINGLE
    memory: Memory | None = None
    aside: Aside | None = None
    kept: Kept | None = None


def calibrated(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    *,
    gram: bool = False,
    one_by_one: bool = False,
    around: Surroundings | None = None,
) -> Iterator[InputGroup]:
    """`layers` by distinct input, in forward order; each block sees what was changed before it.

    With `one_by_one` every input is looked at only after the groups before it were changed. Of
    several processes each is given its share, and all have what the others changed when the walk
    goes on. Blocks that `around.kept` has are put in place and not given again.
    """
    around = around or Surroundings()
    tally = Tally(gram=gram, dist=around.dist)
    within, outside = _by_block(model, layers)
    for visit in _visits(model, batches, layers, tally, around):
        if around.kept is not None and visit.name in around.kept:
            around.kept.restore(visit.name, visit.module)
            continue
        wanted = within[visit.name]
        yield from _each_changed(_looks(visit, wanted, tally, one_by_one=one_by_one),
                                 {visit.name: visit.module}, around)  # fmt: skip
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


def _outer(layers: dict[str, Linear], tally: Tally, around: Surroundings) -> Iterator[InputGroup]:
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
    rounds: Iterator[list[InputGroup]], modules: Mapping[str, Module], around: Surroundings
) -> Iterator[InputGroup]:
    """Give out the groups of some `modules`, and settle what became of them."""
    facts = around.kept.facts if around.kept is not None else {}
    before = set(facts)
    for groups in rounds:
        shared = Shared(modules.values(), around.dist)
        costs = [solving_cost(group.layers) for group in groups]
        mine = dealt(groups, costs, around.dist)
        groups.clear()
        while mine:
            group = mine.pop(0)
            yield group
            group.let_go()
        shared.settle()
    for found in around.dist.gather({n: f for n, f in facts.items() if n not in before}):
        facts |= found
    if around.kept is not None:
        for name, module in modules.items():
            around.kept.keep(name, module, write=around.dist.is_main)


def _visits(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    tally: Tally,
    around: Surroundings,
) -> Iterator[Visit]:
    if not batches:
        raise DataError("calibration has no text: the training split is empty.")
    body = _body(model, layers)
    _, outside = _by_block(model, layers)
    walked = walk(model, body, batches, outside=outside, see=tally.see, memory=around.memory,
                  aside=around.aside)  # fmt: skip
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
    inside = {name for found in within.values() for name in found}
    return within, {name: layer for name, layer in layers.items() if name not in inside}


def _grouped(layers: Mapping[str, Linear], stats: Mapping[str, LayerStats]) -> list[InputGroup]:
    groups: dict[str, dict[str, Linear]] = {}
    for name, layer in layers.items():
        groups.setdefault(stats[name].source, {})[name] = layer
    return [InputGroup(group, stats[next(iter(group))]) for group in groups.values()]
