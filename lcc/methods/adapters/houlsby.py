"""Small bottlenecks after attention and feed-forward layers (adapters; Houlsby et al., 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.core.types import Form
from lcc.methods.adapters._peft import note_of
from lcc.methods.adapters.bitfit import HEADS
from lcc.methods.adapters.layernorm import norms
from lcc.models.adapter_io import attach_bottlenecks
from lcc.models.adapters import Bottlenecks, put_bottlenecks
from lcc.models.blocks import blocks

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle

# The layers that write into the residual stream, as families call them.
OUTPUTS = ("o_proj", "out_proj", "o", "output.dense", "down_proj", "wo", "fc2", "c_proj")


@card
class Houlsby:
    """x + U σ(D x) behind each layer that writes into the residual stream, near zero at first.

    A σ stands between its two matrices, so no weight of a plain model can take it in: the adapter
    stays, and no reader but lcc knows it, which `allow_lcc_loader` accepts. With `layer_norms` the
    normalisation layers train too, as in the paper.
    """

    word: ClassVar[str] = "houlsby"
    revision: ClassVar[int] = 1
    produces: ClassVar[Form] = "adapter"
    merges: ClassVar[bool] = False
    over_packed: ClassVar[bool] = True
    default_lr: ClassVar[float] = 1e-3

    width: Annotated[int, Field(ge=1)] = 64
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    layer_norms: bool = True
    allow_lcc_loader: bool = False

    def __post_init__(self) -> None:
        if not self.allow_lcc_loader:
            raise ValueError(
                "no loader but lcc's knows bottleneck adapters and they cannot be "
                "merged; say allow_lcc_loader: true, or use lora"
            )

    def apply(self, bundle: Bundle, *, device: str, dtype: str, seed: int) -> Module:
        base: Module = bundle.load(device=device, dtype=dtype)
        base.requires_grad_(False)
        trained = norms(base) if self.layer_norms else []
        for name, parameter in base.named_parameters():
            parameter.requires_grad = name.startswith(HEADS) or name.rpartition(".")[0] in trained
        shape = Bottlenecks(self.width, self.activation, tuple(_outputs(base)))
        torch.manual_seed(seed)
        put_bottlenecks(base, shape)
        attach_bottlenecks(bundle, base, note_of(bundle, base), shape)
        return base


def _outputs(model: Module) -> list[str]:
    return [
        f"{block}.{name}"
        for block, inside in blocks(model).items()
        for name, module in inside.named_modules()
        if getattr(module, "weight", None) is not None
        and f".{name}".endswith(tuple(f".{leaf}" for leaf in OUTPUTS))
    ]
