"""Put an adapter that cannot be merged beside its base, as one checkpoint."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.types import Form
from lcc.models.adapter_io import base_for, read_note
from lcc.models.adapters import has_bottlenecks, hush, put_adapter
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.card import ADAPTER, CARD_FILE
from lcc.models.checkpoint import write_weights
from lcc.pipeline.stage import Noun, Outcome

if TYPE_CHECKING:
    from lcc.pipeline.stage import Context

GRID = "merging would take the packed weights off their grid"
NO_WEIGHT = "it is no change of any weight, so that none can take it in"
HOW = 'Load it whole: PeftModel.from_pretrained(base, "model/adapter").'
HOW_BOTTLENECKS = "Only lcc puts bottleneck adapters back; plain readers see the base alone."


@card
class Attach:
    """The base in `model/` as it was, with the head that the adapter needs; the adapter below."""

    reads: ClassVar[tuple[Noun, ...]] = ()
    accepts: ClassVar[tuple[Form, ...]] = ("dense", "packed")
    produces: ClassVar[Form] = "adapted"
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "attach"
    revision: ClassVar[int] = 1

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        hush()
        folder = context.inputs["adapter"] / "adapter"
        note, is_packed = read_note(folder), bundle.card.form == "packed"
        assert bundle.path is not None and note.base == "dense"
        base = open_bundle(bundle.path)
        bundle.module = put_adapter(base_for(bundle, note, seed=context.seed), folder, merge=is_packed)
        if note.labels and base.lacks_head("classify"):
            base_for(base, note, seed=context.seed)  # a head to put the trained one in place of
        bundle.write = partial(_write, base, folder)
        own_loader = has_bottlenecks(folder)
        needed = () if own_loader else ("peft",)
        bundle.with_card(adapter=True, requires=(*bundle.card.requires, *needed), headless=False)
        if own_loader:
            bundle.with_card(loads_with="lcc")
        reason = GRID if is_packed else NO_WEIGHT
        return Outcome(
            bundle=bundle,
            notes=[f"The adapter stays beside its base: {reason}.", HOW_BOTTLENECKS if own_loader else HOW],
        )


def _write(base: Bundle, adapter: Path, bundle: Bundle, folder: Path) -> None:
    write_weights(base, folder)
    shutil.copytree(adapter, folder / ADAPTER, ignore=shutil.ignore_patterns(CARD_FILE))
