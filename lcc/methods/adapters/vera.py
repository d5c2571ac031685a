"""Train two vectors per layer around random matrices all share (VeRA; Kopiczko et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import peft
from lcc.core.types import Form
from lcc.methods.adapters._peft import TASK_TYPES, adapt, named
from lcc.models.adapter_io import fills_zeros, mask_adapters
from lcc.models.adapters import hush

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle


@card
class Vera:
    """W + diag(b) B diag(d) A with B and A frozen and drawn from the seed; `initial` is d's value.

    The random matrices are stored beside the vectors, so that no other machine must draw the same.
    """

    word: ClassVar[str] = "vera"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = True
    over_packed: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-2

    rank: Annotated[int, Field(ge=1)] = 256
    initial: Annotated[float, Field(gt=0)] = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target: tuple[str, ...] | str = "all-linear"

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        masked, base = fills_zeros(bundle), bundle.load(device=device, dtype=dtype)
        hush()
        config = peft.VeraConfig(
            r=self.rank,
            d_initial=self.initial,
            vera_dropout=self.dropout,
            target_modules=named(self.target),
            projection_prng_key=seed,
            save_projection=True,
            task_type=TASK_TYPES[bundle.card.head],
        )
        model = adapt(bundle, base, config, seed=seed)
        if masked:
            mask_adapters(model)
        return model
