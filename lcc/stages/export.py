"""Export a model to another tool's format, and fail where that tool answers otherwise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.calibration.calibrate import Calibration
from lcc.config.cards import Choice, card, name_of
from lcc.core.disk import folder_bytes
from lcc.core.errors import GateError
from lcc.core.lazy import torch
from lcc.core.progress import Measure
from lcc.export.model_card import Provenance
from lcc.export.parity import task_prompts
from lcc.export.publish import ParityTrial, closed, write_and_compare
from lcc.pipeline.stage import Outcome

if TYPE_CHECKING:
    from lcc.core.types import Form
    from lcc.methods.criteria import Needs
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun


@card
class Export:
    """The export lies in `export/` of the step's folder.

    Its model card tells what led to the model, and evaluations that stand before the export.
    `prompts: task` compares on the task's test rows, `fixed` on texts of our own. `importance` has
    calibration look at the model first, for formats that weigh errors by it.
    """

    reads: ClassVar[tuple[Noun, ...]] = ()  # of an instance: see below
    accepts: ClassVar[tuple[Form, ...]] = ("dense", "packed")
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "export"
    revision: ClassVar[int] = 2  # 1 told nothing of what led to the model

    format: Annotated[Any, Choice("exporters")]
    prompts: Literal["fixed", "task"] = "fixed"
    importance: bool = False
    calibration: Calibration = Field(default_factory=lambda: Calibration(mode="dense"))

    def __post_init__(self) -> None:
        if self.importance and not getattr(self.format, "wants_statistics", False):
            raise ValueError(
                f"importance changes nothing in format {name_of(self.format)} with "
                "these options; leave it out"
            )
        if self.calibration.mode != "dense":
            raise ValueError("calibration.mode is dense: an export looks at the finished model")
        reads = ("task", "data") if self.prompts == "task" else ()
        object.__setattr__(self, "reads", reads)

    @property
    def needs(self) -> Needs | None:
        return "diagonal" if self.importance else None

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        assert bundle.path is not None
        exporter, folder = self.format, context.folder / "export"
        if self.importance:
            exporter = dataclasses.replace(exporter, importance=str(context.inputs["stats"]))
        prompts = None
        if self.prompts == "task":
            prompts = task_prompts(bundle.path, context.required_task, context.data)
        origin = Provenance.of_inputs(context.inputs)
        trial = ParityTrial(prompts=prompts, threads=torch.get_num_threads())
        made = write_and_compare(bundle.path, folder, exporter, trial=trial, origin=origin)
        if made.refusals:
            raise GateError(closed(exporter, made.parity, made.refusals, folder))
        parity = made.parity
        notes = [f"Compared with its source on {parity.num_prompts} prompts by {exporter.engine}."]
        return Outcome(
            files={"export": folder},
            notes=notes if exporter.engine else [],
            measures={
                "export_bytes": Measure(folder_bytes(folder), "bytes"),
                "agreement": Measure(parity.agreement, "share"),
                "logit_error": Measure(parity.logit_error, "share"),
                "num_prompts": Measure(parity.num_prompts, "count"),
            },
        )
