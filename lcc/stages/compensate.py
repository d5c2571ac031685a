"""Quantize, and store beside it the low-rank adapter that makes up for the error (QERA, LoftQ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.compression.lowrank import Change, Compensation, write_adapter
from lcc.compression.packed_format import part_table
from lcc.compression.quantization_grid import IntGrid
from lcc.compression.quantize import Rounding
from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.core.progress import Measure
from lcc.core.types import Form
from lcc.methods.quantizers import Smoother
from lcc.models.card import ADAPTER
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import Needs, few_tokens, input_groups
from lcc.stages.factorize import refuse_sequential
from lcc.stages.quantize import NO_GAIN, Bits, Quantize, common_group_size, layer_bits

if TYPE_CHECKING:
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context

Write = Callable[["Bundle", Path], None]


@card
class Compensate(Quantize):
    """W ≈ Q + BA: a packed base any reader of its format loads, and a peft adapter of rank `rank`.

    `PeftModel.from_pretrained(base, "model/adapter")` is the whole model. `num_turns` above 1
    quantizes again what the change leaves and keeps the best turn of every layer.
    """

    produces: ClassVar[Form] = "adapted"
    word: ClassVar[str] = "compensate"
    revision: ClassVar[int] = 2

    bits: Bits = 4
    rank: Annotated[int, Field(ge=1)] = 32
    num_turns: Annotated[int, Field(ge=1, le=20)] = 1
    damping: Annotated[float, Field(ge=0)] = 0.01

    @property
    def needs(self) -> Needs:
        return "gram"

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, what no reader could load."""
        super().check(config)
        refuse_sequential("compensate", self.calibration)
        unfit = {
            "average_bits": self.average_bits is not None,
            "include_embeddings": self.include_embeddings,
            "include_head": self.include_head,
            "quantizer": isinstance(self.quantizer, Smoother),
        }
        key = next((key for key, is_set in unfit.items() if is_set), None)
        if key is not None:
            raise RecipeError(
                f"compensate.{key}: only weights of layers inside the blocks are made up for; leave"
                " it as it is by default, or use the stage quantize."
            )

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        self.check(model.config.to_dict())
        layers, _ = self._targets(model)
        grid = IntGrid(self.bits, common_group_size(self, layers), bundle.card.dtype, self.symmetric)
        grids = {n: replace(grid, bits=bits) for n, bits in layer_bits(self, layers).items()}
        rounding = Rounding(self.quantizer, grids, facts={}, packed={})
        work = Compensation(rounding, self.rank, self.num_turns, self.damping, bundle.card.dtype)
        groups = input_groups(bundle, context, layers, self.calibration, needs=self.needs)
        warnings: list[str] = []
        with context.progress.track("compensate", len(grids), "layer") as bar:
            for group in groups:
                work.add(group)
                bar.advance(len(group.layers))
                assert group.stats is not None
                width = len(group.stats.diagonal)
                warnings = warnings or few_tokens(group.stats.num_tokens, width, self.calibration)
        self._seal(bundle, model, rounding)
        bundle.write = _with_adapter(bundle.write, work.changes)
        bundle.with_card(adapter=True, requires=(*bundle.card.requires, "peft"))
        return self._compensated(bundle, work, warnings)

    def _compensated(self, bundle: Bundle, work: Compensation, warnings: list[str]) -> Outcome:
        columns = zip(*work.errors.values(), strict=True)
        alone, left = (sum(column) / len(work.errors) for column in columns)
        size = sum(factor.nbytes for change in work.changes.values() for factor in change)
        packed_bytes = {name: fact["bytes"] for name, fact in work.rounding.facts.items()}
        table = part_table(bundle.module, packed_bytes, dtype=bundle.card.dtype)
        table.append({"part": "adapter", "before": 0, "after": size})
        return Outcome(
            bundle=bundle,
            measures={
                "num_quantized_layers": Measure(len(work.errors), "count"),
                "output_error_uncompensated": Measure(alone, "share"),
                "output_error": Measure(left, "share"),
                "bytes_before": Measure(sum(row["before"] for row in table), "bytes"),
                "bytes_after": Measure(sum(row["after"] for row in table), "bytes"),
                "adapter_bytes": Measure(size, "bytes"),
            },
            tables={"bytes": table},
            notes=[NO_GAIN, 'Load it whole: PeftModel.from_pretrained(base, "model/adapter").'],
            warnings=warnings,
        )


def _with_adapter(write: Write | None, changes: dict[str, Change]) -> Write:
    """Write the packed base, then the adapter in a folder of its own below it."""
    assert write is not None

    def written(bundle: Bundle, folder: Path) -> None:
        write(bundle, folder)
        card = bundle.card
        write_adapter(changes, folder / ADAPTER, head=card.head, base=card.name)

    return written
