"""Remove the channels, heads or hidden dimensions that matter least, the same number everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.compression.families import (
    POSITION_BIASED,
    key_value_groups,
    query_heads,
    refuse_bias,
    refuse_heads,
    refuse_hidden,
)
from lcc.compression.pruning import feed_forwards
from lcc.compression.ranking import globally_kept
from lcc.compression.rescaling import keep_scales
from lcc.compression.reshaping import Plan, rebuilt, restate
from lcc.compression.sizing import Dims, foreseen
from lcc.compression.streams import streams
from lcc.core.catalog import Choice, name_of
from lcc.core.decode import card, decode_card
from lcc.core.errors import RecipeError
from lcc.engine.blocks import as_linear, block_linears
from lcc.engine.calibration import Calibration
from lcc.methods.criteria import ByGradient
from lcc.methods.criteria.wanda import Wanda
from lcc.stage import Measure, Outcome
from lcc.stages._calibrated import SEQUENTIAL, Needs, reads, text_batches
from lcc.stages._narrowing import Narrowing, Refit

if TYPE_CHECKING:
    from lcc.compression.units import Unit
    from lcc.parts.checkpoint import Form
    from lcc.parts.model import Bundle
    from lcc.stage import Context, Noun

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
            raise RecipeError(
                "width.allocation: the hidden width is one number for all layers; use uniform."
            )
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
            job = Narrowing(bundle, context, units, self.criterion, self.repair, self.damping,
                            self.calibration, self.needs)  # fmt: skip
            kept = self._cut(job, plan, str(model.config.model_type))
        restate(model.config, {field: after for field, (_, after) in plan.sizes.items()})
        bundle.module = rebuilt(model)
        if self.dims == "hidden":
            keep_scales(bundle.module, *plan.sizes["hidden_size"])
        if self._refits:
            with as_linear(bundle.module):
                refit.fit(bundle.module, job, kept)
        return self._outcome(job, plan)

    def _cut(self, job: Narrowing, plan: Plan, family: str) -> dict[str, list[int]]:
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
        kept = {
            unit.name: unit.best(importances[unit.name], plan.num_kept[unit.name])
            for unit in job.units
        }
        job.at_once(kept)
        return kept

    def _units(self, model: Any) -> list[Unit]:
        if self.dims == "hidden":
            return streams(model)
        if self.dims == "ffn":
            return feed_forwards(model)
        return query_heads(model) if self.dims == "heads" else key_value_groups(model)

    def _refuse(self, units: list[Unit], model: Any) -> None:
        kind = type(model).__name__
        if not units:
            raise RecipeError(f"width: found no {self.dims} to narrow in {kind}; leave it out.")
        inside = block_linears(model)
        consumers = {name for unit in units for name in unit.consumers if name in inside}
        if self.repair == "bias" and any(inside[name].bias is None for name in consumers):
            raise RecipeError(f"width.repair: {kind} has no biases to repair; use ridge or none.")

    def _outcome(self, job: Narrowing, plan: Plan) -> Outcome:
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

    def _measures(self, job: Narrowing, table: list[dict[str, Any]]) -> dict[str, Measure]:
        achieved = min(row["achieved_ratio"] for row in table)
        found = {"achieved_ratio": Measure(achieved, "share")}
        if self.repair == "ridge":
            errors = [fact["errors"] for fact in job.facts.values()]
            plain, repaired = (sum(column) / len(errors) for column in zip(*errors, strict=True))
            found["layer_error_unrepaired"] = Measure(plain, "share")
            found["layer_error"] = Measure(repaired, "share")
        return found


def _overshot(table: list[dict[str, Any]]) -> list[str]:
    """A warning where the sizes that the model may have are far from what was asked."""
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
