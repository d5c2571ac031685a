"""The weights of a checkpoint one by one, and the grids that packed ones lie on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.compression.packing import GroupGrid
from lcc.core.lazy import torch
from lcc.parts.checkpoint import read_card
from lcc.parts.folder import read_json
from lcc.parts.model import open_bundle
from lcc.parts.packed import STORED, unpacked_tensors
from lcc.parts.tensor_files import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

BY_FILE = ("safetensors", "compressed-tensors")  # formats whose tensors are read one at a time


class StoredWeights:
    """Tensors by the names they have in the module; float32, whatever they are stored as."""

    def __init__(self, folder: Path) -> None:
        card = read_card(folder)
        self._state: dict[str, Tensor] = {}
        self._grids: dict[str, dict[str, Any]] = {}
        if card.format in BY_FILE and not card.adapter:
            self._files = unpacked_tensors(folder)
            if card.format == "compressed-tensors":
                self._packed = StoredTensors(folder)
                self._grids = _schemes(folder, self._packed)
        else:
            self._state = open_bundle(folder).load(dtype="float32").state_dict()

    def names(self) -> Iterator[str]:
        """Every weight and bias, without the pieces of packed ones."""
        if self._state:
            yield from self._state
            return
        pieces = ("weight_packed", *STORED)
        yield from (name for name in self._files.entries if name.rpartition(".")[2] not in pieces)

    def dense(self, name: str) -> Tensor:
        """The tensor in float32; a packed one is what its codes mean."""
        if self._state:
            return self._state[name].float()
        return self._files.read(name).float()

    def grid(self, name: str) -> GroupGrid | None:
        """The codes and scales of a packed weight; None for a dense one."""
        layer = name.removesuffix(".weight")
        scheme = self._grids.get(layer) if name.endswith(".weight") else None
        return None if scheme is None else _read_grid(self._packed, layer, scheme)


def _schemes(folder: Path, stored: StoredTensors) -> dict[str, dict[str, Any]]:
    """Packed layer → how its weights are stored, from the checkpoint's own config."""
    config = read_json(folder / "config.json")["quantization_config"]
    groups = list(config["config_groups"].values())
    found = {}
    for name in stored.entries:
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight_scale":
            group = next((g for g in groups if layer in g["targets"]), groups[0])
            found[layer] = group["weights"]
    return found


def _read_grid(stored: StoredTensors, layer: str, scheme: dict[str, Any]) -> GroupGrid:
    from compressed_tensors.compressors.pack_quantized import unpack_from_int32

    bits, scale = int(scheme["num_bits"]), stored.read(f"{layer}.weight_scale")
    if f"{layer}.weight_packed" not in stored.entries:
        codes = stored.read(f"{layer}.weight")
        return GroupGrid(codes, scale.reshape(len(codes), -1), bits, packs=False)
    shape = torch.Size(int(n) for n in stored.read(f"{layer}.weight_shape"))
    codes = unpack_from_int32(stored.read(f"{layer}.weight_packed"), bits, shape)
    zero, name = None, f"{layer}.weight_zero_point"
    if name in stored.entries:
        zero = unpack_from_int32(stored.read(name), bits, scale.shape, packed_dim=0)
    return GroupGrid(codes, scale, bits, zero=zero)
