"""Bottleneck adapters (Houlsby et al., 2019): put into a model, written beside it and read again.

Beside `bottlenecks.safetensors` lies `bottlenecks.json`, which says after which layers they stand;
peft finds no adapter of its own there and refuses the folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import IntegrityError
from lcc.core.lazy import safetensors_torch, torch
from lcc.parts.folder import read_json

if TYPE_CHECKING:
    from torch.nn import Module

CONFIG, TENSORS = "bottlenecks.json", "bottlenecks.safetensors"
NEAR_ZERO = 1e-3  # standard deviation of the up-projection: the model starts almost as it was


@dataclass(frozen=True)
class Bottlenecks:
    """After which layers of a model they stand, and how they look."""

    width: int
    activation: str
    sites: tuple[str, ...]


def put_bottlenecks(model: Module, shape: Bottlenecks) -> None:
    """Wrap every site in place, drawing from torch's generator; only what is new trains."""
    for site in shape.sites:
        parent, _, leaf = site.rpartition(".")
        layer = model.get_submodule(site)
        setattr(model.get_submodule(parent), leaf, _wrapped_type()(layer, shape))


@cache
def _wrapped_type() -> Any:
    class Bottleneck(torch.nn.Module):
        """y + U σ(D y) of a layer's output y."""

        def __init__(self, layer: Any, shape: Bottlenecks) -> None:
            super().__init__()
            num = layer.out_features if hasattr(layer, "out_features") else layer.nf
            like = {"device": layer.weight.device, "dtype": torch.float32}
            self.base_layer = layer
            self.down = torch.nn.Linear(num, shape.width, **like)
            self.up = torch.nn.Linear(shape.width, num, **like)
            torch.nn.init.normal_(self.up.weight, std=NEAR_ZERO)
            torch.nn.init.zeros_(self.up.bias)
            self.activation = getattr(torch.nn.functional, shape.activation)

        @property
        def weight(self) -> Any:
            """T5 asks its layers for the dtype of their weight."""
            return self.base_layer.weight

        def forward(self, x: Any) -> Any:
            y = self.base_layer(x)
            changed = self.up(self.activation(self.down(y.to(self.down.weight.dtype))))
            return y + changed.to(y.dtype)

    return Bottleneck


def write_bottlenecks(model: Module, shape: Bottlenecks, folder: Path) -> None:
    """What was trained, and where it stands."""
    trained = {n: p.detach().to("cpu", copy=True).contiguous()
               for n, p in model.named_parameters() if p.requires_grad}  # fmt: skip
    safetensors_torch.save_file(trained, folder / TENSORS, metadata={"format": "pt"})
    text = json.dumps(asdict(shape), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def has_bottlenecks(folder: Path) -> bool:
    """Whether the adapter in `folder` is one of these."""
    return (folder / CONFIG).is_file()


def read_bottlenecks(model: Module, folder: Path) -> Module:
    """Put what `folder` holds into `model`, in place; raises IntegrityError if it does not fit."""
    told = read_json(folder / CONFIG)
    shape = Bottlenecks(told["width"], told["activation"], tuple(told["sites"]))
    with torch.random.fork_rng(devices=[]):
        put_bottlenecks(model, shape)
    stored = safetensors_torch.load_file(folder / TENSORS)
    parameters = dict(model.named_parameters())
    strange = next((name for name in stored if name not in parameters), None)
    if strange is not None:
        raise IntegrityError(f"{folder}: tensor {strange} fits no layer of this base; give the "
                             "base that the adapter was trained on.")  # fmt: skip
    with torch.no_grad():
        for name, tensor in stored.items():
            parameters[name].copy_(tensor)
    return model
