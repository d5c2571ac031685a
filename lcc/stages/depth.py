"""Depth pruning: remove whole layers, one after another, by how the outputs change without each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.calibration.calibrate import Calibration
from lcc.compression.prune_depth import (
    LayerAblation,
    Part,
    PartKind,
    layer_stops,
    removable,
    remove_blocks,
    silence,
    stack_of,
)
from lcc.config.cards import card
from lcc.core.disk import write_text
from lcc.core.errors import RecipeError
from lcc.core.progress import Measure
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import SEQUENTIAL, text_batches

if TYPE_CHECKING:
    from lcc.calibration.block_walker import Batch
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

MOST = 0.4  # of the layers: beyond, healing does not bring back what was lost
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers")


CALIBRATION = Calibration(samples=128, max_tokens=2048, max_length=256, batch_tokens=512)


@card
class Depth:
    """The layer whose absence changes the model's answers least goes first, then the next.

    Judged by the mean KL to the parent's logits on training text (Kim et al., Shortened LLaMA,
    arXiv 2402.02834, judge by perplexity and all at once). `num_layers` stands in place of `ratio`;
    `part: attention` or `mlp` silences halves of layers, which saves no bytes.
    """

    reads: ClassVar[tuple[Noun, ...]] = SEQUENTIAL
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "depth"
    revision: ClassVar[int] = 1

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    num_layers: Annotated[int, Field(ge=1)] | None = None
    part: PartKind = "layer"
    accept_damage: bool = False
    calibration: Calibration = CALIBRATION

    def __post_init__(self) -> None:
        if self.calibration.mode != "auto":
            raise ValueError("depth looks at the whole model; leave calibration.mode out")
        if self.num_layers is None and self.ratio > MOST and not self.accept_damage:
            raise ValueError(self._ruinous(f"ratio {self.ratio}"))

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, a number of layers that ruins the model."""
        count = next((config[name] for name in COUNTS if config.get(name)), None)
        if count is None or self.num_layers is None or self.accept_damage:
            return
        count += config.get("decoder_layers") or config.get("num_decoder_layers") or 0
        if self.num_layers > MOST * count:
            asked = f"num_layers {self.num_layers} of {count}"
            raise RecipeError(f"depth: {self._ruinous(asked)}.")

    def _ruinous(self, asked: str) -> str:
        return (
            f"{asked} is more than {MOST:.0%} of the layers: what is left no longer computes in"
            " the order it learnt, and healing would be training anew; take less, or say"
            " accept_damage: true"
        )

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        parts = removable(model, self.part)
        num_removed = self._num_removed(len(layer_stops(model)), len(parts))
        batches = text_batches(context, bundle, model, self.calibration)
        search = LayerAblation(model, layer_stops(model))
        rows = self._search(search, parts, batches, context, num_removed=num_removed)
        counts = self._take_out(bundle, model, search.left_out)
        before, after = (sum(column) for column in zip(*counts.values(), strict=True))
        return Outcome(
            bundle=bundle,
            measures={
                "num_layers_before": Measure(before, "count"),
                "num_layers": Measure(after, "count"),
                "num_parts_removed": Measure(num_removed, "count"),
                "kl_to_parent": Measure(rows[-1]["kl"], "nats"),
            },
            tables={
                "removed": rows,
                "layers": [{"stack": s, "before": b, "after": a} for s, (b, a) in counts.items()],
            },
            notes=self._notes(num_removed),
            warnings=self._warnings(num_removed, before),
        )

    def _num_removed(self, num_layers: int, num_parts: int) -> int:
        wanted = self.num_layers or max(1, round(self.ratio * num_layers))
        if wanted > num_parts:
            raise RecipeError(f"depth: {wanted} layers were asked, only {num_parts} may go.")
        return wanted

    def _search(
        self,
        search: LayerAblation,
        parts: list[Part],
        batches: list[Batch],
        context: Context,
        *,
        num_removed: int,
    ) -> list[dict[str, Any]]:
        """The parts in the order they go, each with the KL after it; a killed search goes on."""
        file = context.state / "removed.json"
        rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
        known = {part.name: part for part in parts}
        search.left_out |= {known[row["removed"]] for row in rows}
        with context.progress.track("depth", num_removed, "layer", done=len(rows)) as bar:
            while len(rows) < num_removed:
                candidates = _candidates(search, parts)
                if not candidates:
                    raise RecipeError("depth: the last layer of a stack cannot go; take less.")
                divergences = search.divergences(batches, candidates)
                least = min(divergences, key=divergences.__getitem__)
                search.left_out.add(least)
                rows.append({"order": len(rows) + 1, "removed": least.name, "kl": divergences[least]})
                write_text(file, json.dumps(rows))
                bar.advance(kl=divergences[least])
        return rows

    def _take_out(self, bundle: Bundle, model: Any, left_out: set[Part]) -> dict[str, tuple[int, int]]:
        if self.part == "layer":
            counts = remove_blocks(model, {part.block for part in left_out})
        else:
            counts = remove_blocks(model, ())
            silence(model, left_out)
            bundle.emptied = frozenset(f"{part.output}.weight" for part in left_out)
        bundle.module = model
        return counts

    def _notes(self, num_removed: int) -> list[str]:
        if self.part == "layer":
            return []
        return [
            f"0 bytes saved and no faster: no plain config can say that a layer has no {self.part},"
            f" so {num_removed} of them stay in the file, with zeros where they spoke."
        ]

    def _warnings(self, num_removed: int, num_layers: int) -> list[str]:
        if num_removed <= MOST * num_layers or self.accept_damage:
            return []
        return [
            f"one layer at least goes: {num_removed} of {num_layers} where a share of"
            f" {self.ratio:.0%} was asked; a model of so few layers is better narrowed (width)."
        ]


def _candidates(search: LayerAblation, parts: list[Part]) -> list[Part]:
    """What may still go: a stack keeps one block at least."""
    gone = {part.block for part in search.left_out if not part.output}
    left: dict[str, int] = {}
    for name in search.stops:
        left[stack_of(name)] = left.get(stack_of(name), 0) + (name not in gone)
    return [
        part
        for part in parts
        if part not in search.left_out and (part.output or left[stack_of(part.block)] > 1)
    ]
