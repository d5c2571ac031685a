"""Remove the feed-forward channels or head groups that matter least, the same number everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.core.catalog import Choice
from lcc.core.decode import card, decode_card
from lcc.core.errors import GateError, RecipeError
from lcc.core.lazy import torch
from lcc.engine.blocks import as_linear
from lcc.engine.calibration import Calibration
from lcc.engine.pruning import (
    Unit,
    feed_forwards,
    head_groups,
    refuse_heads,
    set_ffn_width,
    set_num_groups,
)
from lcc.engine.repairing import bias_repair, relative_error, ridge_repair
from lcc.methods.criteria.wanda import Wanda
from lcc.stage import Measure, Outcome
from lcc.stages._calibrated import Needs, few_tokens, input_groups, reads

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.statistics import LayerStats
    from lcc.parts.checkpoint import Form
    from lcc.parts.model import Bundle
    from lcc.stage import Context, Noun


# Widths that kernels and quantization groups like; `auto` takes the first that meets the ratio.
STEPS, NEAR = (128, 64, 32, 16, 8, 4, 2, 1), 0.02


def _wanda() -> Any:
    return decode_card(Wanda, {})


@card
class Width:
    """Narrow every layer alike by calibrated importance, and repair what reads the rest."""

    reads: ClassVar[tuple[Noun, ...]] = ()  # of an instance: see below
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.25
    dims: Literal["ffn", "heads"] = "ffn"
    criterion: Annotated[Any, Choice("criteria")] = Field(default_factory=_wanda)
    repair: Literal["ridge", "bias", "none"] = "ridge"
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    round_to: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    calibration: Calibration = Field(default_factory=Calibration)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", reads(self.needs, self.calibration))

    @property
    def needs(self) -> Needs:
        if self.repair == "ridge":
            return "gram"
        needs: Needs = self.criterion.needs
        return needs or ("diagonal" if self.repair == "bias" else None)

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, what the model's family (its config.json) does not allow."""
        if self.dims == "heads":
            refuse_heads(str(config.get("model_type")))

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        self.check(model.config.to_dict())
        with as_linear(model):
            found = head_groups(model) if self.dims == "heads" else feed_forwards(model)
            units = {unit.name: unit for unit in found}
            self._refuse(found, model)
            plan = {width: self._target(width) for width in sorted({u.width for u in found})}
            layers = {unit.name: unit.consumer for unit in found}
            errors, warnings = [], list[str]()
            with context.progress.track("width", len(units), "layer") as bar:
                for group in input_groups(
                    bundle, context, layers, self.calibration, needs=self.needs
                ):
                    for name in group.layers:
                        unit = units[name]
                        warnings = warnings or self._warnings(unit, group.stats)
                        errors.append(self._cut(unit, group.stats, plan[unit.width]))
                        bar.advance()
        table = [self._settle(model, before, after) for before, after in plan.items()]
        bundle.module = model
        return Outcome(
            bundle=bundle,
            measures=self._measures(errors, table),
            tables={"width": table},
            warnings=[*warnings, *_unsparse(bundle, self.repair)],
        )

    def _refuse(self, units: list[Unit], model: Any) -> None:
        kind = type(model).__name__
        if not units:
            raise RecipeError(f"width: found no {self.dims} to narrow in {kind}; leave it out.")
        if self.repair == "bias" and any(unit.consumer.bias is None for unit in units):
            raise RecipeError(f"width.repair: {kind} has no biases to repair; use ridge or none.")

    def _target(self, width: int) -> int:
        """What stays of `width`: a multiple of `round_to` for channels, whole groups for heads."""
        steps = STEPS if self.round_to == "auto" else (self.round_to,)
        for step in steps if self.dims == "ffn" else (1,):
            kept = max(1, round((1 - self.ratio) * width / step)) * step
            is_near = abs(1 - kept / width - self.ratio) <= NEAR
            if kept < width and (is_near or step == steps[-1] or self.dims == "heads"):
                return kept
        raise GateError(
            f"width: a ratio of {self.ratio} takes nothing from {width} at multiples of"
            f" {steps[-1]}; ask for a larger ratio or a smaller round_to."
        )

    def _cut(self, unit: Unit, stats: LayerStats | None, num_kept: int) -> tuple[float, float]:
        """Narrow one unit in place; its output's relative error without and with repair."""
        weight = unit.consumer.weight.detach()
        columns = self.criterion.score(weight, stats).float().square().sum(dim=0)  # (in,)
        importance = columns.view(unit.width, unit.size).sum(dim=1)
        kept = sorted(importance.topk(num_kept).indices.tolist())
        chosen = torch.tensor(unit.columns(kept), device=weight.device)
        plain = weight[:, chosen]
        unit.keep(kept)
        repaired = self._repaired(unit, weight, stats, chosen)
        if stats is None or stats.gram is None:
            return float("nan"), float("nan")
        return (
            relative_error(weight, plain, chosen, stats.gram),
            relative_error(weight, repaired, chosen, stats.gram),
        )

    def _repaired(
        self, unit: Unit, weight: Tensor, stats: LayerStats | None, kept: Tensor
    ) -> Tensor:
        new = unit.consumer.weight.detach()
        if self.repair == "ridge":
            assert stats is not None and stats.gram is not None
            new = ridge_repair(weight, stats.gram, kept, damping=self.damping)
            unit.consumer.weight.data.copy_(new)
        elif self.repair == "bias":
            assert stats is not None
            unit.consumer.bias.data += bias_repair(weight, stats.mean, kept)
        return new

    def _settle(self, model: Any, before: int, after: int) -> dict[str, Any]:
        """Config and one row of the report."""
        if self.dims == "heads":
            set_num_groups(model, before, after)
            dimension = "num_key_value_heads"
        else:
            dimension = " and ".join(set_ffn_width(model, before, after))
        return {
            "dimension": dimension,
            "before": before,
            "after": after,
            "asked_ratio": self.ratio,
            "achieved_ratio": 1 - after / before,
        }

    def _measures(
        self, errors: list[tuple[float, float]], table: list[dict[str, Any]]
    ) -> dict[str, Measure]:
        achieved = min(row["achieved_ratio"] for row in table)
        found = {"achieved_ratio": Measure(achieved, "share")}
        if self.repair == "ridge":
            plain, repaired = (sum(column) / len(errors) for column in zip(*errors, strict=True))
            found["layer_error_unrepaired"] = Measure(plain, "share")
            found["layer_error"] = Measure(repaired, "share")
        return found

    def _warnings(self, unit: Unit, stats: LayerStats | None) -> list[str]:
        if self.repair != "ridge" or stats is None:
            return []
        return few_tokens(stats.num_tokens, unit.consumer.in_features, self.calibration)


def _unsparse(bundle: Bundle, repair: str) -> list[str]:
    """Ridge repair fills the consumers' zeros, so the card may not promise a pattern any more."""
    pattern = bundle.card.sparse
    if pattern is None or repair != "ridge":
        return []
    bundle.with_card(sparse=None)
    return [f"the parent was sparse ({pattern}); ridge repair filled zeros: sparsify after width."]
