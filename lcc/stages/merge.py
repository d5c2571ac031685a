"""Merge an adapter into the weights it was trained on, and prove that logits did not move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import GateError
from lcc.core.progress import Measure
from lcc.core.types import Form
from lcc.models.adapter_io import base_for, merge, read_note
from lcc.pipeline.stage import Noun, Outcome

if TYPE_CHECKING:
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context

NUM_PROBES, PROBE_LENGTH = 4, 16


@card
class Merge:
    """The difference allowed is `tolerance` times the largest logit (at least 1)."""

    reads: ClassVar[tuple[Noun, ...]] = ()
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "merge"
    revision: ClassVar[int] = 1

    tolerance: Annotated[float, Field(gt=0)] = 1e-3

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        folder = context.inputs["adapter"] / "adapter"
        note = read_note(folder)
        base = base_for(bundle, note, seed=context.seed)
        merged = merge(base, folder, probes=_probes(bundle), sparse=bundle.card.sparse is not None)
        allowed = self.tolerance * max(1.0, merged.largest_logit)
        if not merged.max_abs_logit_difference <= allowed:
            raise GateError(
                f"merge: logits moved by {merged.max_abs_logit_difference:.3g} by merging, more "
                f"than {allowed:.3g}; the adapter does not fit this base."
            )
        bundle.module = merged.model
        notes = []
        if note.base == "nf4":
            notes.append(
                "The adapter was trained over NF4 weights and is merged into those, "
                "dequantized, not into the original weights."
            )
            bundle.with_card(origin=f"dequantized NF4 of {bundle.card.origin or bundle.card.name}")
        bundle.with_card(form="dense", headless=False)
        return Outcome(
            bundle=bundle,
            notes=notes,
            measures={
                "max_abs_logit_difference": Measure(merged.max_abs_logit_difference, "logits"),
                "largest_logit": Measure(merged.largest_logit, "logits"),
            },
        )


def _probes(bundle: Bundle) -> list[list[int]]:
    """Fixed token ids spread over the vocabulary."""
    size = len(bundle.tokenizer)
    stride = max(1, size // (NUM_PROBES * PROBE_LENGTH + 1))
    ids = [(1 + i * stride) % size for i in range(NUM_PROBES * PROBE_LENGTH)]
    return [ids[i : i + PROBE_LENGTH] for i in range(0, len(ids), PROBE_LENGTH)]
