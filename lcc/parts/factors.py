"""Checkpoints whose linear layers are two thin ones: written and read by lcc alone.

Plain transformers has no such layer. Its Auto classes must not take the file for the whole model
and draw the missing matrices at random, so the config names an architecture they refuse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import IntegrityError
from lcc.core.lazy import safetensors_torch, torch, transformers
from lcc.parts.folder import read_json, weight_files

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.parts.model import Bundle

FORMAT = "low-rank factors"  # on the card
MODEL_TYPE = "lcc_low_rank"
KEY = "low_rank"  # in config.json: the family's own model_type, and the rank of each layer


def put_factors(model: Any, name: str, up: Tensor, down: Tensor) -> None:
    """In place of a linear layer (or a Conv1D) stand `down` (rank, in), then `up` (out, rank)."""
    parent, _, leaf = name.rpartition(".")
    bias = model.get_submodule(name).bias
    pair = _pair(up.shape[0], down.shape[0], down.shape[1], has_bias=bias is not None)
    pair[0].weight.data, pair[1].weight.data = down, up
    if bias is not None:
        pair[1].bias.data = bias.data
    setattr(model.get_submodule(parent), leaf, pair)


def _pair(num_outputs: int, rank: int, num_inputs: int, *, has_bias: bool) -> Any:
    return _pair_type()(
        torch.nn.Linear(num_inputs, rank, bias=False),
        torch.nn.Linear(rank, num_outputs, bias=has_bias),
    )


@cache
def _pair_type() -> Any:
    class Pair(torch.nn.Sequential):
        @property
        def weight(self) -> Any:
            """T5 asks its layers for the dtype of their weight."""
            return self[1].weight

    return Pair


def write_factored(bundle: Bundle, folder: Path, *, ranks: Mapping[str, int]) -> None:
    """Weights and config into `folder`; tensors that share storage are stored once."""
    module, seen = bundle.load(device=None, dtype=None), set()
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() in seen or _is_made_anew(module, name):
            continue
        seen.add(tensor.data_ptr())
        wanted = getattr(torch, bundle.card.dtype) if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.detach().to("cpu", wanted, copy=True).contiguous()
    safetensors_torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = module.config.to_dict()
    facts = {"model_type": config["model_type"], "ranks": dict(ranks)}
    config |= {"model_type": MODEL_TYPE, KEY: facts, "dtype": bundle.card.dtype}
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
    if module.can_generate():
        module.generation_config.save_pretrained(folder)


def read_factored(auto: Any, path: Path, *, dtype: str) -> Module:
    """The module with its factors; raises IntegrityError when a tensor is missing or too many."""
    told = read_json(path / "config.json")
    facts = told.pop(KEY)
    told["model_type"] = facts["model_type"]
    config = transformers.CONFIG_MAPPING[facts["model_type"]].from_dict(told)
    with torch.random.fork_rng(devices=[]):
        module = auto.from_config(config, dtype=getattr(torch, dtype))
    for name, rank in facts["ranks"].items():
        _make_room(module, name, rank, dtype)
    state = {
        k: v for file in weight_files(path) for k, v in safetensors_torch.load_file(file).items()
    }
    missing, unexpected = module.load_state_dict(state, strict=False)
    given = {t.data_ptr() for n, t in module.state_dict().items() if n in state}
    lost = [n for n in missing if module.state_dict()[n].data_ptr() not in given
            and not _is_made_anew(module, n)]  # fmt: skip
    if lost or unexpected:
        raise IntegrityError(f"{path}: tensor {[*lost, *unexpected][0]} does not fit its config; "
                             "copy the folder again.")  # fmt: skip
    generation = path / "generation_config.json"
    if generation.is_file():
        module.generation_config = transformers.GenerationConfig.from_pretrained(path)
    return module.eval()  # type: ignore[no-any-return]


def _is_made_anew(module: Any, name: str) -> bool:
    """Whether the family computes this tensor itself (Marian's positions)."""
    return any(re.search(p, name) for p in module._keys_to_ignore_on_save or ())


def _make_room(module: Any, name: str, rank: int, dtype: str) -> None:
    """A pair of empty layers in place of the family's own."""
    layer = module.get_submodule(name)
    num_outputs, num_inputs = layer.weight.shape
    if not isinstance(layer, torch.nn.Linear):
        num_outputs, num_inputs = num_inputs, num_outputs  # Conv1D stands on its side.
    kind = getattr(torch, dtype)
    put_factors(module, name, torch.zeros(num_outputs, rank, dtype=kind),
                torch.zeros(rank, num_inputs, dtype=kind))  # fmt: skip
