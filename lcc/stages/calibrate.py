"""Calibration: collect once what every linear layer reads; all plans over the same model share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lcc.calibration.calibrate import Calibration, collect
from lcc.calibration.statistics import StoredStats, write_stats
from lcc.config.cards import card
from lcc.core.disk import folder_bytes
from lcc.core.progress import Measure
from lcc.distributed.dist import Distributed
from lcc.models.blocks import as_linear, block_linears
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import SEQUENTIAL, few_tokens, text_batches

if TYPE_CHECKING:
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun


@card
class Calibrate:
    """Statistics of the inputs of all linear layers in the blocks; Grams only where asked."""

    reads: ClassVar[tuple[Noun, ...]] = SEQUENTIAL
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "calibrate"
    revision: ClassVar[int] = 2

    calibration: Calibration = Field(default_factory=Calibration)
    gram: bool = False
    distributed: Distributed = Field(default_factory=Distributed)

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        folder = context.folder / "stats"
        with as_linear(model):
            # Whatever a killed run has finished stays; its blocks are run again but not looked at.
            layers = {n: m for n, m in block_linears(model).items() if n not in StoredStats(folder)}
            batches = text_batches(context, bundle, model, self.calibration)
            own = batches[context.dist.rank :: context.dist.world_size]
            for stats in collect(
                model, own, layers, gram=self.gram, progress=context.progress, dist=context.dist
            ):
                if context.dist.is_main:
                    write_stats(stats, folder)
            context.dist.barrier()
        return self._outcome(StoredStats(folder))

    def _outcome(self, stored: StoredStats) -> Outcome:
        files = {stored.source(name): stored.index[name] for name in stored}
        widest = max(stored.width(name) for name in stored)
        num_tokens = min(int(entry["num_tokens"]) for entry in files.values())
        measures: dict[str, Any] = {
            "num_tokens": Measure(num_tokens, "count"),
            "num_inputs": Measure(len(files), "count"),
            "stats": Measure(folder_bytes(stored.folder), "bytes"),
        }
        warnings = few_tokens(num_tokens, widest, self.calibration) if self.gram else []
        return Outcome(measures=measures, warnings=warnings)
