"""Convert the recipe's model into a checkpoint of the store, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lcc.config.cards import card
from lcc.core.progress import Measure
from lcc.models.sources import ModelSpec, build
from lcc.pipeline.stage import Context, Noun, Outcome

if TYPE_CHECKING:
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle


@card
class Base:
    """The first step of every recipe with a model; its input is the outside world."""

    spec: ModelSpec

    # A base model is given, like pretrained weights: a scratch model's seed stands in its card, so
    # a sweep over training seeds shares one base.
    reads: ClassVar[tuple[Noun, ...]] = ()
    accepts: ClassVar[tuple[Form, ...]] = ()
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "base"
    revision: ClassVar[int] = 1

    def run(self, bundle: Bundle | None, context: Context) -> Outcome:
        built = build(self.spec, context.state, progress=context.progress)
        return Outcome(bundle=built, measures=_measures(built, self.spec), notes=_notes(built))


def _measures(bundle: Bundle, spec: ModelSpec) -> dict[str, Measure]:
    module = bundle.load(dtype=None, device=None)
    weights = {p.data_ptr(): p.numel() for p in module.parameters()}
    return {
        "parameters": Measure(sum(weights.values()), "count"),
        "vocabulary": Measure(module.config.get_text_config().vocab_size, "count"),
        "download": Measure(spec.bytes or None, "bytes"),
        "origin": Measure(bundle.card.origin or None),
        "licence": Measure(bundle.card.licence or None),
    }


def _notes(bundle: Bundle) -> list[str]:
    if not bundle.card.origin.startswith("dequantized"):
        return []
    kind = bundle.card.origin.removeprefix("dequantized ")
    return [
        f"The base model's weights are {bundle.card.origin}: they already lie on the grid of "
        f"{kind}, so rounding them to a like grid without training first loses nothing."
    ]
