"""Bottleneck adapters (Houlsby et al., 2019): put into a model, written beside it and read again.

Beside `bottlenecks.safetensors` lies `bottlenecks.json`, which says after which layers they stand;
peft finds no adapter of its own there and refuses the folder.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import IntegrityError
from lcc.core.lazy import peft, safetensors_torch, torch
from lcc.models.card import read_json, write_config

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
    trained = {
        n: p.detach().to("cpu", copy=True).contiguous()
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    safetensors_torch.save_file(trained, folder / TENSORS, metadata={"format": "pt"})
    write_config(folder / CONFIG, asdict(shape))


def has_bottlenecks(folder: Path) -> bool:
    """Whether the adapter in `folder` is one of these."""
    return (folder / CONFIG).is_file()


def read_bottlenecks(model: Module, folder: Path) -> Module:
    """Put what `folder` holds into `model`, in place; raises IntegrityError if it does not fit."""
    facts = read_json(folder / CONFIG)
    shape = Bottlenecks(facts["width"], facts["activation"], tuple(facts["sites"]))
    with torch.random.fork_rng(devices=[]):
        put_bottlenecks(model, shape)
    stored = safetensors_torch.load_file(folder / TENSORS)
    parameters = dict(model.named_parameters())
    strange = next((name for name in stored if name not in parameters), None)
    if strange is not None:
        raise IntegrityError(
            f"{folder}: tensor {strange} fits no layer of this base; give the "
            "base that the adapter was trained on."
        )
    with torch.no_grad():
        for name, tensor in stored.items():
            parameters[name].copy_(tensor)
    return model


# An adapter from its folder onto its base: around the weights, or inside them where it can be.


def hush() -> None:
    """Silence what peft and bitsandbytes say about themselves; nothing in it is the user's."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    # AdaLoRA keeps its ranks where LoRA has other ones, and may leave a layer with none.
    warnings.filterwarnings("ignore", message="Adapter .* have invalid shape")
    warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
    warnings.filterwarnings("ignore", message="Unsupported layer type .*Norm")
    # Behind a prompt no row is padded, so that counted positions are the right ones.
    warnings.filterwarnings("ignore", message="Position ids are not supported")


def put_adapter(base: Any, folder: Path, *, merge: bool = False) -> Module:
    """`base` with the adapter of `folder`, in place and in eval mode.

    With `merge` it becomes part of the weights, if it is of a kind that can.
    """
    hush()
    if has_bottlenecks(folder):
        return read_bottlenecks(base, folder).eval()
    adapted: Any = peft.PeftModel.from_pretrained(base, folder).eval()
    if not merge or is_prompt(adapted):
        return adapted  # type: ignore[no-any-return]
    return merge_adapter(adapted)


def merge_adapter(adapted: Any) -> Module:
    """The plain model with the adapter in its weights."""
    model: Module = adapted.merge_and_unload()
    for name, module in list(model.named_modules()):
        # LN tuning leaves a trained head in the wrapper that it was trained in.
        unwrap: Any = getattr(module, "unload_and_optionally_merge_module", None)
        if unwrap is not None:
            parent, _, leaf = name.rpartition(".")
            bare = unwrap(merge=True, safe_merge=False, adapter_names=None)
            setattr(model.get_submodule(parent), leaf, bare)
    return model


def is_prompt(model: Any) -> bool:
    """Whether trained vectors stand before the text that `model` reads."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def num_virtual(model: Any) -> int:
    """Positions of the window that trained vectors take."""
    return int(model.active_peft_config.num_virtual_tokens) if is_prompt(model) else 0
