"""How width cuts: layer after layer as calibration goes, or all at once when all had a say."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lcc.compression.ranking import column_importance, combined, size_importance
from lcc.compression.repairing import bias_repair, relative_error, ridge_repair
from lcc.compression.rescaling import final_energy, fit_inputs, last_norm, multiply
from lcc.compression.sensitivity import sensitivities, task_losses
from lcc.compression.streams import STREAMS
from lcc.core.lazy import torch
from lcc.engine.blocks import block_linears
from lcc.engine.calibration import Calibration, calibrated, collect
from lcc.methods.criteria import ByGradient
from lcc.stages._calibrated import Needs, few_tokens, input_groups, text_batches

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.compression.units import Unit
    from lcc.engine.keeping import Facts
    from lcc.engine.statistics import LayerStats
    from lcc.engine.walking import Batch
    from lcc.parts.model import Bundle
    from lcc.stage import Context

NUM_FINAL = 4  # batches that show what comes out of the last norm

Kept = Mapping[str, list[int]]
"""Unit → the numbers of what stays of it."""


@dataclass
class Narrowing:
    """One model on its way to its new widths, and what was found on the way."""

    bundle: Bundle
    context: Context
    units: Sequence[Unit]
    criterion: Any
    repair: str
    damping: float
    calibration: Calibration
    needs: Needs
    facts: Facts = field(default_factory=dict)  # consumer → its errors
    energies: dict[str, float] = field(default_factory=dict)  # consumer → mean square of what stays
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        inside = block_linears(self.bundle.module)
        self.readers = {
            name: (unit, layer)
            for unit in self.units
            for name, layer in unit.consumers.items()
            if name in inside
        }
        self.layers: dict[str, Linear] = {name: layer for name, (_, layer) in self.readers.items()}

    def in_order(self, num_kept: Mapping[str, int]) -> None:
        """Cut every unit as soon as its input is known, so that later layers may see it."""
        groups = input_groups(
            self.bundle, self.context, self.layers, self.calibration, needs=self.needs
        )
        for name, fact in groups.facts.items():  # Finished before a kill; values are put back.
            self.readers[name][0].keep(fact["kept"])
        with self.context.progress.track("width", len(self.layers), "layer") as bar:
            bar.advance(len(groups.facts))
            for group in groups:
                for name in group.layers:
                    unit = self.readers[name][0]
                    importance = column_importance(self.criterion, unit, name, group.stats)
                    kept = unit.best(importance, num_kept[unit.name])
                    change = self._repaired(unit, name, group.stats, kept)
                    change.apply()
                    unit.keep(kept)
                    _share_keys(self.bundle.module, name)
                    groups.facts[name] = {"kept": kept, "errors": change.errors}
                    bar.advance()
        self.facts = groups.facts

    def importances(self) -> dict[str, Tensor]:
        """What each unit's channels or heads matter: unit → (num,)."""
        if isinstance(self.criterion, ByGradient):
            return self._by_gradient(self.criterion)
        needs: Needs = self.criterion.needs
        votes: dict[str, list[Tensor]] = {}
        for name, stats in self._each(needs, "rank"):
            unit = self.readers[name][0]
            found = column_importance(self.criterion, unit, name, stats)
            votes.setdefault(unit.name, []).append(found)
        return {
            unit.name: combined(votes[unit.name]) if unit.name in votes else size_importance(unit)
            for unit in self.units
        }

    def at_once(self, kept: Kept) -> None:
        """Repair every consumer from what it read in the whole model, then cut all units."""
        changes = []
        if self.repair != "none":
            for name, stats in self._each(self.needs, "repair"):
                unit = self.readers[name][0]
                changes.append(self._repaired(unit, name, stats, kept[unit.name]))
                self.facts[name] = {"errors": changes[-1].errors}
        for change in changes:
            change.apply()
        for unit in self.units:
            unit.keep(kept[unit.name])

    def _each(self, needs: Needs, label: str) -> Iterator[tuple[str, LayerStats | None]]:
        """Every reader with what it reads in the model as it is."""
        with self.context.progress.track(label, len(self.layers), "layer") as bar:
            for name, stats in self._statistics(needs):
                yield name, stats
                bar.advance()

    def _statistics(self, needs: Needs) -> Iterator[tuple[str, LayerStats | None]]:
        if needs is None or "stats" in self.context.inputs:
            options = (self.bundle, self.context, self.layers, self.calibration)
            for group in input_groups(*options, needs=needs):
                yield from ((name, group.stats) for name in group.layers)
            return
        model = self.bundle.module
        batches = text_batches(self.context, self.bundle, model, self.calibration)
        for found in collect(model, batches, self.layers, gram=needs == "gram"):
            yield from found.items()

    def _by_gradient(self, criterion: ByGradient) -> dict[str, Tensor]:
        model, context = self.bundle.module, self.context
        data, calibration = context.data, self.calibration
        rows = list(data.rows("train"))
        random.Random(context.seed).shuffle(rows)
        task = context.required_task.for_data(data)
        length = min(
            calibration.max_length,
            getattr(model.config, "max_position_embeddings", None) or calibration.max_length,
        )
        examples: list[Any] = []
        left = calibration.max_tokens
        for row in rows[: calibration.samples]:
            if left > 0:
                examples.append(task.encode(row, self.bundle.tokenizer, max_length=length))
                left -= len(examples[-1].input_ids)
        losses = task_losses(
            model,
            examples,
            head=self.bundle.card.head,
            pad=self.bundle.tokenizer.pad_token_id or 0,
            batch_tokens=calibration.batch_tokens,
        )
        return sensitivities(model, self.units, losses, criterion.score_by_gradient)

    def _repaired(self, unit: Unit, name: str, stats: LayerStats | None, kept: list[int]) -> Change:
        """What the consumer's weight and bias shall be before it is cut."""
        layer = self.layers[name]
        weight = layer.weight.detach()
        chosen = torch.tensor(unit.columns(name, kept), device=weight.device)
        new, shift = weight[:, chosen], None
        gram = None if stats is None else stats.gram
        if stats is not None:
            self.energies[name] = float(stats.diagonal[chosen].sum()) / stats.num_tokens
        if self.repair == "ridge":
            assert stats is not None and gram is not None
            new = ridge_repair(weight, gram, chosen, damping=self.damping)
            self.warnings = self.warnings or few_tokens(
                stats.num_tokens, layer.in_features, self.calibration
            )
        elif self.repair == "bias":
            assert stats is not None
            shift = bias_repair(weight, stats.mean, chosen)
        errors = [
            relative_error(weight, columns, chosen, gram) if gram is not None else float("nan")
            for columns in (weight[:, chosen], new)
        ]
        return Change(layer, chosen, new, shift, errors)


class Refit:
    """Scales after a cut of the hidden width, brought back to what they were before it."""

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        self.batches, self.few = batches, batches[:NUM_FINAL]
        wanted = batches and last_norm(model) is not None
        self.before = final_energy(model, self.few) if wanted else None

    def fit(self, model: Any, job: Narrowing, kept: Kept) -> None:
        """Weigh what reads the narrower streams block by block, then the last norm, in place."""
        layers: dict[str, Linear] = {
            name: model.get_submodule(name)
            for name, (unit, _) in job.readers.items()
            if unit.name in STREAMS
        }
        for group in calibrated(model, self.batches, layers):
            assert group.stats is not None
            fit_inputs(group.layers, job.energies[next(iter(group.layers))], group.stats)
        if self.before is not None:
            stream = next(unit.name for unit in reversed(job.units) if unit.name in STREAMS)
            expected = self.before[kept[stream]].sum()
            factor = (expected / final_energy(model, self.few).sum()).sqrt()
            multiply(last_norm(model), float(factor))


@dataclass(frozen=True)
class Change:
    """New columns, and what to add to the bias, of a layer that is still whole."""

    layer: Linear
    columns: Tensor
    weight: Tensor
    shift: Tensor | None
    errors: list[float]

    def apply(self) -> None:
        self.layer.weight.data[:, self.columns] = self.weight
        if self.shift is not None:
            self.layer.bias.data += self.shift


def _share_keys(model: Any, consumer: str) -> None:
    """Tell a grouped attention how many query heads now share a key (sdpa hides a wrong number)."""
    attention = model.get_submodule(consumer.rpartition(".")[0])
    if hasattr(attention, "num_key_value_groups"):
        queries, keys = attention.q_proj.out_features, attention.k_proj.out_features
        attention.num_key_value_groups = queries // keys
