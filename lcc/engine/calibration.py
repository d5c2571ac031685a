"""Calibration: the layers of a model with what each distinct linear input looks like on text.

Layers that read the same tensor (q, k and v; gate and up; all cross-attention keys) share one
LayerStats; padding never enters. Torch hooks live in `engine.walking` only.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lcc.core.decode import card
from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.core.progress import Progress
from lcc.engine.blocks import blocks
from lcc.engine.statistics import LayerStats, StoredStats, Sums
from lcc.engine.walking import Batch, Padding, Visit, walk
from lcc.parts.dist import SINGLE, Dist

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedTokenizerBase

    from lcc.parts.task import Task

MAX_POSITIONS = 512


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

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """What belongs to each layer of a tensor whose first dimension is that of `weight`."""
        sizes = [layer.out_features for layer in self.layers.values()]
        return dict(zip(self.layers, torch.split(rows, sizes), strict=True))


def stored_groups(stats: StoredStats, layers: Mapping[str, Linear]) -> Iterator[InputGroup]:
    """`layers` by distinct input, in order, with the statistics of an artifact."""
    groups: dict[str, dict[str, Linear]] = {}
    for name, layer in layers.items():
        if name not in stats:
            raise DataError(f"calibration: layer {name!r} is not among the stored statistics.")
        groups.setdefault(stats.source(name), {})[name] = layer
    for group in groups.values():
        yield InputGroup(group, stats[next(iter(group))])


def collect(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    *,
    gram: bool = False,
    progress: Progress | None = None,
    dist: Dist = SINGLE,
) -> Iterator[dict[str, LayerStats]]:
    """Statistics of the inputs of `layers` in one pass, block by block; shared ones are one object.

    Summed over `dist`, whose processes each bring `batches` of their own. Raises DataError for a
    layer that is never run.
    """
    tally = _Tally(gram=gram, dist=dist)
    within, outside = _by_block(model, layers)
    done: dict[str, Linear] = {}
    for visit in _visits(model, batches, layers, tally, progress):
        if done:
            yield tally.finish(done)
        done = within[visit.name]
        visit.watch_on_leaving(done, tally.see)
    yield tally.finish({**done, **outside})


def calibrated(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    *,
    gram: bool = False,
    one_by_one: bool = False,
    progress: Progress | None = None,
    dist: Dist = SINGLE,
) -> Iterator[InputGroup]:
    """`layers` by distinct input, in forward order; each block sees what was changed before it.

    With `one_by_one` every input is looked at only after the groups before it were changed.
    """
    tally = _Tally(gram=gram, dist=dist)
    within, outside = _by_block(model, layers)
    for visit in _visits(model, batches, layers, tally, progress):
        wanted = within[visit.name]
        if not one_by_one:
            visit.watch(wanted, tally.see)
            yield from _grouped(wanted, tally.finish(wanted))
            continue
        visit.watch(wanted, tally.note, num_batches=1)
        for group in tally.groups(wanted):
            visit.watch(group, tally.see)
            yield from _grouped(group, tally.finish(group))
    yield from _grouped(outside, tally.finish(outside))


def _visits(
    model: Any,
    batches: Sequence[Batch],
    layers: Mapping[str, Linear],
    tally: _Tally,
    progress: Progress | None,
) -> Iterator[Visit]:
    if not batches:
        raise DataError("calibration has no text: the training split is empty.")
    body = model
    if set(layers.values()) <= set(model.base_model.modules()):
        body = model.base_model  # A large vocabulary's logits would cost more than the rest.
    body.eval()
    _, outside = _by_block(model, layers)
    num_blocks = len(blocks(model))
    with (progress or Progress(quiet=True)).track("calibrate", num_blocks, "block") as bar:
        for visit in walk(model, body, batches, outside=outside, see=tally.see):
            yield visit
            bar.advance()


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


def _grouped(layers: Mapping[str, Linear], stats: Mapping[str, LayerStats]) -> Iterator[InputGroup]:
    groups: dict[str, dict[str, Linear]] = {}
    for name, layer in layers.items():
        groups.setdefault(stats[name].source, {})[name] = layer
    for group in groups.values():
        yield InputGroup(group, stats[next(iter(group))])


class _Tally:
    """Sums of every distinct input; a layer that reads a tensor already seen shares its sums."""

    def __init__(self, *, gram: bool, dist: Dist) -> None:
        self.gram, self.dist = gram, dist
        self.owners: dict[str, str] = {}  # layer → the first layer that read the same tensor
        self.sums: dict[str, Sums] = {}
        self.done: dict[str, LayerStats] = {}
        # Held weakly: an id means its tensor only while that lives.
        self.seen: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def note(self, name: str, x: Tensor, _padding: Padding) -> None:
        """Remember which layers read one tensor."""
        if name in self.owners:
            return
        known = self.seen.get(id(x))
        if known is None or known[0]() is not x:
            known = (weakref.ref(x), name)
            self.seen[id(x)] = known
        self.owners[name] = known[1]

    def see(self, name: str, x: Tensor, padding: Padding) -> None:
        self.note(name, x, padding)
        if self.owners[name] == name:
            sums = self.sums.setdefault(name, Sums(gram=self.gram))
            sums.add(padding.removed(name, x))

    def groups(self, layers: Mapping[str, Linear]) -> list[dict[str, Linear]]:
        """`layers` by owner, in the order in which they first ran."""
        ran = sorted(layers, key=list(self.owners).index)
        groups: dict[str, dict[str, Linear]] = {}
        for name in ran:
            groups.setdefault(self.owners[name], {})[name] = layers[name]
        return list(groups.values())

    def finish(self, layers: Mapping[str, Linear]) -> dict[str, LayerStats]:
        """Statistics of these layers, whose inputs have all been seen."""
        idle = next((name for name in layers if name not in self.owners), None)
        if idle is not None:
            raise DataError(f"calibration: layer {idle!r} is never run by this model.")
        self._forget()
        for owner in dict.fromkeys(self.owners[name] for name in layers):
            if owner in self.sums:
                sums = self.sums.pop(owner)
                sums.reduce(self.dist)
                self.done[owner] = sums.stats(owner)
        return {name: self.done[self.owners[name]] for name in layers}

    def _forget(self) -> None:
        """Drop finished statistics that no later layer can share: their tensors are gone."""
        self.seen = {key: known for key, known in self.seen.items() if known[0]() is not None}
        alive = {owner for _, owner in self.seen.values()}
        self.done = {owner: stats for owner, stats in self.done.items() if owner in alive}


def encoded_batches(
    rows: list[dict[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: Any,
    batch_tokens: int = 2048,
    max_length: int = MAX_POSITIONS,
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
        if left > 0:
            examples.append(task.encode(row, tokenizer, max_length=min(longest, left)))
            left -= len(examples[-1].input_ids)
    examples.sort(key=lambda example: len(example.input_ids))
    pad = tokenizer.pad_token_id or 0
    batches: list[list[Any]] = []
    for example in examples:
        longest = len(example.input_ids)  # Sorted: the newest is the longest of its batch.
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(example)
    return [_batch(group, model, pad=pad) for group in batches]


def _batch(examples: list[Any], model: Any, *, pad: int) -> Batch:
    ids, mask = _padded([example.input_ids for example in examples], pad, model.device)
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        labels, seen = _padded([example.labels for example in examples], -100, model.device)
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        batch["decoder_attention_mask"] = seen
    return batch


def _padded(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor(
        [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
    )
    return ids, mask
