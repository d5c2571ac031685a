"""Width pruning: narrow every layer alike by calibrated importance, and repair what reads the rest."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.calibration.calibrate import Calibration, calibrated, collect
from lcc.compression.importance import (
    column_importance,
    combined,
    globally_kept,
    sensitivities,
    size_importance,
    task_losses,
)
from lcc.compression.prune_groups import (
    POSITION_BIASED,
    STREAMS,
    feed_forwards,
    key_value_groups,
    query_heads,
    refuse_bias,
    refuse_heads,
    refuse_hidden,
    streams,
)
from lcc.compression.prune_width import (
    Dims,
    Plan,
    bias_repair,
    final_energy,
    fit_inputs,
    foreseen,
    keep_scales,
    last_norm,
    multiply,
    rebuilt,
    relative_error,
    restate,
    ridge_repair,
)
from lcc.config.cards import Choice, card, decode_card, name_of
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.core.progress import Measure
from lcc.methods.criteria import ByGradient
from lcc.methods.criteria.wanda import Wanda
from lcc.models.blocks import as_linear, block_linears
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import SEQUENTIAL, Needs, few_tokens, input_groups, reads, text_batches
from lcc.tasks.encode import pad_id

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.calibration.block_walker import Batch
    from lcc.calibration.resume import Facts
    from lcc.calibration.statistics import LayerStats
    from lcc.compression.prune_groups import PruningGroup
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

NUM_FINAL = 4  # batches that show what comes out of the last norm

KeptIndices = Mapping[str, list[int]]
"""Unit → the numbers of what stays of it."""


@dataclass
class WidthPruning:
    """One model on its way to its new widths, and what was found on the way."""

    bundle: Bundle
    context: Context
    units: Sequence[PruningGroup]
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
        groups = input_groups(self.bundle, self.context, self.layers, self.calibration, needs=self.needs)
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
            importance = column_importance(self.criterion, unit, name, stats)
            votes.setdefault(unit.name, []).append(importance)
        return {
            unit.name: combined(votes[unit.name]) if unit.name in votes else size_importance(unit)
            for unit in self.units
        }

    def at_once(self, kept: KeptIndices) -> None:
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
        for by_layer in collect(model, batches, self.layers, gram=needs == "gram"):
            yield from by_layer.items()

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
            pad=pad_id(self.bundle.tokenizer),
            batch_tokens=calibration.batch_tokens,
        )
        return sensitivities(model, self.units, losses, criterion.score_by_gradient)

    def _repaired(
        self, unit: PruningGroup, name: str, stats: LayerStats | None, kept: list[int]
    ) -> ColumnUpdate:
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
            self.warnings = self.warnings or few_tokens(stats.num_tokens, layer.in_features, self.calibration)
        elif self.repair == "bias":
            assert stats is not None
            shift = bias_repair(weight, stats.mean, chosen)
        errors = [
            relative_error(weight, columns, chosen, gram) if gram is not None else float("nan")
            for columns in (weight[:, chosen], new)
        ]
        return ColumnUpdate(layer, chosen, new, shift, errors)


class Refit:
    """Scales after a cut of the hidden width, brought back to what they were before it."""

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        self.batches, self.few = batches, batches[:NUM_FINAL]
        wanted = batches and last_norm(model) is not None
        self.before = final_energy(model, self.few) if wanted else None

    def fit(self, model: Any, job: WidthPruning, kept: KeptIndices) -> None:
        """Weigh what reads the narrower streams block by block, then the last norm, in place."""
        layers: dict[str, Linear] = {
            name: model.get_submodule(name) for name, (unit, _) in job.readers.items() if unit.name in STREAMS
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
class ColumnUpdate:
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


# Remove the channels, heads or hidden dimensions that matter least, the same number everywhere.

OVERSHOT = 0.05  # beyond the ratio asked for
# Large weights alone tell little: SmolLM2's perplexity rose from 28 to a million at 0.25.
MOST_BLIND = 0.1
# Above these, one cut leaves hardly more than noise, whatever the criterion.
MOST = {"ffn": 0.5, "heads": 0.5, "kv_groups": 0.5, "hidden": 0.35}


def _wanda() -> Any:
    return decode_card(Wanda, {})


@card
class Width:
    """Narrow every layer alike by calibrated importance, and repair what reads the rest.

    `ffn`: feed-forward channels. `heads`: query heads, as many of every key-value head (with keys
    of their own, these go too). `kv_groups`: a key-value head with its query heads. `hidden`: the
    residual stream with all that is on it; where a config ties heads to it, heads go along.
    """

    reads: ClassVar[tuple[Noun, ...]] = ()  # of an instance: see below
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "width"
    revision: ClassVar[int] = 3

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.25
    dims: Dims = "ffn"
    criterion: Annotated[Any, Choice("criteria")] = Field(default_factory=_wanda)
    allocation: Literal["uniform", "global"] = "uniform"
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.25  # what a global ranking leaves at least
    repair: Literal["ridge", "bias", "none"] = "ridge"
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    round_to: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    accept_damage: bool = False
    calibration: Calibration = Field(default_factory=Calibration)

    def __post_init__(self) -> None:
        needs_text = isinstance(self.criterion, ByGradient) or self._refits
        nouns = SEQUENTIAL if needs_text else reads(self.needs, self.calibration)
        object.__setattr__(self, "reads", nouns)

    @property
    def needs(self) -> Needs:
        if self.repair == "ridge":
            return "gram"
        needs: Needs = self.criterion.needs
        return needs or ("diagonal" if self.repair == "bias" else None)

    @property
    def _refits(self) -> bool:
        """Norms over fewer channels give other scales; what reads them is fitted to these."""
        return self.dims == "hidden" and self.repair != "none"

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, what the model's family (its config.json) does not allow."""
        family = str(config.get("model_type"))
        if self.dims == "hidden":
            refuse_hidden(family)
        elif self.dims != "ffn":
            refuse_heads(family)
        if self.repair == "bias":
            refuse_bias(config, attention=self.dims in ("heads", "kv_groups"))
        blind = self.repair == "none" and name_of(self.criterion) == "magnitude"
        most, cut = MOST_BLIND if blind else MOST[self.dims], self._foreseen(config)
        if cut > most and not self.accept_damage:
            raise RecipeError(
                f"width.ratio: this takes {cut:.0%}; more than {most:.0%} of {self.dims} in one"
                f" step{' by size alone' if blind else ''} usually ruins a model beyond what"
                " healing brings back: ask for less, cut in several steps with healing between"
                " them, or set accept_damage=true."
            )
        if self.allocation == "global" and self.dims == "hidden":
            raise RecipeError("width.allocation: the hidden width is one number for all layers; use uniform.")
        if "sequential" in self.calibration.mode and self._looks_at_all(family):
            raise RecipeError(
                "width.calibration.mode: this cut ranks over all layers before it changes the"
                " first, so no layer can see its narrowed predecessors; set mode=dense."
            )

    def _foreseen(self, config: dict[str, Any]) -> float:
        """What goes of the most that a config lets go."""
        taken = foreseen(config, self.ratio, dims=self.dims, round_to=self.round_to)
        return max(self.ratio, taken or 0.0)

    def _looks_at_all(self, family: str) -> bool:
        """Whether layers have to be known before the first is cut."""
        joined = self.dims in ("heads", "kv_groups") and family in POSITION_BIASED
        whole = self.dims == "hidden" or self.allocation == "global"
        return whole or joined or isinstance(self.criterion, ByGradient)

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        self.check(model.config.to_dict())
        batches = text_batches(context, bundle, model, self.calibration) if self._refits else []
        refit = Refit(model, batches)
        with as_linear(model):
            units = self._units(model)
            self._refuse(units, model)
            plan = Plan(model.config, units, dims=self.dims)
            job = WidthPruning(
                bundle,
                context,
                units,
                self.criterion,
                self.repair,
                self.damping,
                self.calibration,
                self.needs,
            )
            kept = self._cut(job, plan, str(model.config.model_type))
        restate(model.config, {field: after for field, (_, after) in plan.sizes.items()})
        bundle.module = rebuilt(model)
        if self.dims == "hidden":
            keep_scales(bundle.module, *plan.sizes["hidden_size"])
        if self._refits:
            with as_linear(bundle.module):
                refit.fit(bundle.module, job, kept)
        return self._outcome(job, plan)

    def _cut(self, job: WidthPruning, plan: Plan, family: str) -> dict[str, list[int]]:
        """Cut in place; what was kept of every unit, where that was known beforehand."""
        if not self._looks_at_all(family):
            plan.decide(self.ratio, self.round_to)
            job.in_order(plan.num_kept)
            return {}
        importances = job.importances()
        if self.allocation == "global":
            by_loss = isinstance(self.criterion, ByGradient)  # comparable as they are
            plan.wishes = globally_kept(
                importances, ratio=self.ratio, floor=self.floor, standardize=not by_loss
            )
        plan.decide(self.ratio, self.round_to)
        kept = {unit.name: unit.best(importances[unit.name], plan.num_kept[unit.name]) for unit in job.units}
        job.at_once(kept)
        return kept

    def _units(self, model: Any) -> list[PruningGroup]:
        if self.dims == "hidden":
            return streams(model)
        if self.dims == "ffn":
            return feed_forwards(model)
        return query_heads(model) if self.dims == "heads" else key_value_groups(model)

    def _refuse(self, units: list[PruningGroup], model: Any) -> None:
        kind = type(model).__name__
        if not units:
            raise RecipeError(f"width: found no {self.dims} to narrow in {kind}; leave it out.")
        inside = block_linears(model)
        consumers = {name for unit in units for name in unit.consumers if name in inside}
        if self.repair == "bias" and any(inside[name].bias is None for name in consumers):
            raise RecipeError(f"width.repair: {kind} has no biases to repair; use ridge or none.")

    def _outcome(self, job: WidthPruning, plan: Plan) -> Outcome:
        table = [
            {
                "dimension": " and ".join(fields),
                "before": before,
                "after": after,
                "asked_ratio": self.ratio,
                "achieved_ratio": 1 - after / before,
            }
            for (before, after), fields in plan.by_size().items()
        ]
        tables = {"width": table}
        notes = []
        if plan.wishes:
            tables["global_ranking"] = plan.wished()
            notes.append(plan.sentence())
        if self._refits:
            notes.append(
                f"repair ({self.repair}) is approximate for hidden: every norm now divides by a"
                " mean over fewer channels, so readers were repaired as if it did not and then"
                " weighed by the scales that were measured; heal."
            )
        bundle = job.bundle
        return Outcome(
            bundle=bundle,
            measures=self._measures(job, table),
            tables=tables,
            notes=notes,
            warnings=[*job.warnings, *_overshot(table), *_unsparse(bundle, self.repair)],
        )

    def _measures(self, job: WidthPruning, table: list[dict[str, Any]]) -> dict[str, Measure]:
        achieved = min(row["achieved_ratio"] for row in table)
        measures = {"achieved_ratio": Measure(achieved, "share")}
        if self.repair == "ridge":
            errors = [fact["errors"] for fact in job.facts.values()]
            plain, repaired = (sum(column) / len(errors) for column in zip(*errors, strict=True))
            measures["layer_error_unrepaired"] = Measure(plain, "share")
            measures["layer_error"] = Measure(repaired, "share")
        return measures


def _overshot(table: list[dict[str, Any]]) -> list[str]:
    """A warning where the sizes that the model may have are far from the ratio."""
    return [
        f"width.ratio: {row['asked_ratio']:.0%} was asked, but {row['dimension']} could only go"
        f" from {row['before']} to {row['after']} (-{row['achieved_ratio']:.0%})."
        for row in table
        if row["achieved_ratio"] > row["asked_ratio"] + OVERSHOT
    ]


def _unsparse(bundle: Bundle, repair: str) -> list[str]:
    """Ridge repair fills the consumers' zeros, so the card may not promise a pattern any more."""
    pattern = bundle.card.sparse
    if pattern is None or repair != "ridge":
        return []
    bundle.with_card(sparse=None)
    return [f"the parent was sparse ({pattern}); ridge repair filled zeros: sparsify after width."]
