"""GGUF writer: every tensor in the type asked for, packed grids as they are."""

from __future__ import annotations

import ctypes
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcc.compression.packed_format import GroupGrid
from lcc.core.errors import RecipeError, ResourceError
from lcc.core.lazy import torch, transformers
from lcc.export.gguf_metadata import Family, family_of, names_and_roles, write_keys, write_vocabulary
from lcc.models.bundle import open_bundle
from lcc.models.card import read_card, read_json
from lcc.models.formats import STORED, unpacked_tensors
from lcc.models.safetensors_io import StoredTensors

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lcc.calibration.statistics import LayerStats
    from lcc.core.types import Array

# Weights as ggml stores them: our own codes where a block type holds them, else rounded anew.

BLOCK, SUPER_BLOCK = 32, 256  # weights that share a scale; and what a K-quant packs together
EXACT = 1e-3  # most that a scale may change by becoming a float16, as a share of it
PLAIN = ("F32", "F16", "BF16")
NUMPY = (*PLAIN, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # those that the gguf package rounds to
NEEDS_LLAMA_CPP = "K-quants are rounded by llama.cpp's own code; pip install 'lcc[llamacpp]'."


def grid_type(grid: GroupGrid) -> str | None:
    """The block type that holds a grid's codes as they are; None where none does."""
    num_inputs, num_groups = grid.codes.shape[1], grid.scale.shape[1]
    if num_inputs % num_groups or (num_inputs // num_groups) % BLOCK or grid.bits > 8:
        return None
    if grid.bits <= 4:
        kind = "Q4_0" if grid.zero is None else "Q4_1"
    else:
        kind = "Q8_0" if grid.zero is None else ""
    halves = grid.scale.float().numpy()
    changed = np.abs(halves.astype(np.float16).astype(np.float32) - halves)
    return kind if kind and bool((changed <= EXACT * np.abs(halves)).all()) else None


def grid_blocks(grid: GroupGrid) -> Array:
    """A grid's own codes and scales as rows of blocks, (out, bytes of a row) uint8."""
    codes = grid.codes.numpy().astype(np.int16)  # (out, in), from the lowest code upwards
    num_outputs = len(codes)
    blocks = codes.reshape(num_outputs, -1, BLOCK)
    repeat = blocks.shape[1] // grid.scale.shape[1]
    scale = grid.scale.float().numpy().repeat(repeat, axis=1)[..., None]  # (out, blocks, 1)
    heads = [scale]
    if grid_type(grid) == "Q8_0":
        body: Array = blocks.astype(np.int8).view(np.uint8)
    else:
        if grid.zero is not None:
            zero = grid.zero.numpy().astype(np.float32).repeat(repeat, axis=1)[..., None]
            heads.append(scale * (-8 - zero))
        low, high = np.split((blocks + 8).astype(np.uint8), 2, axis=-1)
        body = low | (high << 4)
    halves = [head.astype(np.float16).view(np.uint8) for head in heads]
    return np.concatenate([*halves, body], axis=-1).reshape(num_outputs, -1)


def rounded(weight: Array, kind: str, *, importance: Array | None = None) -> Array:
    """Float32 rows (out, in) in a block type; `importance` (in,) weighs the errors of inputs."""
    import gguf

    wanted = gguf.GGMLQuantizationType[kind]
    if kind in NUMPY and (kind in PLAIN or importance is None):
        blocks: Array = gguf.quants.quantize(weight, wanted)
        return blocks
    return _by_llama_cpp(np.ascontiguousarray(weight, np.float32), wanted, importance)


def row_bytes(num_inputs: int, kind: str) -> int:
    """What one row takes."""
    import gguf

    size, bytes_ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(num_inputs // size * bytes_)


def _by_llama_cpp(weight: Array, kind: Any, importance: Array | None) -> Array:
    num_rows, num_inputs = weight.shape
    out = np.empty((num_rows, row_bytes(num_inputs, kind.name)), np.uint8)
    # A channel that calibration never saw still counts for something, or its weights become noise.
    weights = (
        None
        if importance is None
        else np.ascontiguousarray(np.maximum(importance, importance.mean() * 1e-4 + 1e-12), np.float32)
    )
    assert weights is None or weights.shape == (num_inputs,), weights.shape
    written = _quantizer()(
        int(kind),
        weight.ctypes.data,
        out.ctypes.data,
        0,
        num_rows,
        num_inputs,
        None if weights is None else weights.ctypes.data,
    )
    assert written == out.nbytes, f"llama.cpp wrote {written} bytes of {out.nbytes}"
    return out


@cache
def _quantizer() -> Any:
    """llama.cpp's `ggml_quantize_chunk`, which the xllamacpp wheel exports."""
    try:
        package = importlib.import_module("xllamacpp.xllamacpp")
    except ImportError:
        raise ResourceError(NEEDS_LLAMA_CPP) from None
    library = ctypes.CDLL(package.__file__)
    if not hasattr(library, "ggml_quantize_chunk"):
        raise ResourceError(f"this xllamacpp keeps ggml_quantize_chunk to itself. {NEEDS_LLAMA_CPP}")
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return function


# The weights of a checkpoint one by one, and the grids that packed ones lie on.

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
    schemes = {}
    for name in stored.entries:
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight_scale":
            group = next((g for g in groups if layer in g["targets"]), groups[0])
            schemes[layer] = group["weights"]
    return schemes


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


# Which block type each tensor of a GGUF file gets: llama.cpp's mixtures, and its ways out.

# What llama.cpp takes where a row is no multiple of 256.
NARROW = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
FILE_TYPES = {
    "F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0", "Q4_1": "MOSTLY_Q4_1", "Q5_0": "MOSTLY_Q5_0", "Q5_1": "MOSTLY_Q5_1",
    "Q2_K": "MOSTLY_Q2_K", "Q3_K_S": "MOSTLY_Q3_K_S", "Q3_K_M": "MOSTLY_Q3_K_M",
    "Q4_K_S": "MOSTLY_Q4_K_S", "Q4_K_M": "MOSTLY_Q4_K_M", "Q5_K_S": "MOSTLY_Q5_K_S",
    "Q5_K_M": "MOSTLY_Q5_K_M", "Q6_K": "MOSTLY_Q6_K",
}  # fmt: skip
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
BLOCK_NAME = re.compile(r"blk\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class TypeMixture:
    """A file type for a model of so many blocks; `tied`: the embedding is the head too."""

    name: str  # a key of FILE_TYPES
    num_blocks: int
    tied: bool

    @property
    def most(self) -> str:
        """The type that most tensors get."""
        return self.name.removesuffix("_S").removesuffix("_M")

    def wanted(self, tensor: str, shape: tuple[int, ...]) -> str:
        """The type a tensor should have, whether or not its rows divide."""
        if len(shape) < 2:
            return "F32"
        if "_K" not in self.name:
            return self.name
        if tensor == HEAD or (tensor == EMBEDDING and self.tied):
            return "Q6_K"
        match = BLOCK_NAME.fullmatch(tensor)
        return self.most if match is None else self._in_block(int(match[1]), match[2])

    def _in_block(self, number: int, part: str) -> str:
        better = _gets_more_bits(number, self.num_blocks)
        match self.name, part:
            case "Q2_K", "attn_v" | "ffn_down" | "attn_output":
                return "Q3_K"
            case "Q3_K_M", "attn_v":
                return "Q5_K" if number < 2 else "Q4_K"
            case "Q3_K_M", "ffn_down":
                first = number < self.num_blocks / 16
                return "Q5_K" if first else "Q4_K" if better else "Q3_K"
            case "Q3_K_M", "attn_output":
                return "Q4_K"
            case "Q4_K_S", "attn_v":
                return "Q5_K" if number < 4 else "Q4_K"
            case "Q4_K_S", "ffn_down":
                return "Q5_K" if number < self.num_blocks / 8 else "Q4_K"
            case (("Q4_K_M" | "Q5_K_M"), ("attn_v" | "ffn_down")):
                return "Q6_K" if better else self.most
        return self.most


def fitting(kind: str, num_inputs: int) -> str:
    """`kind`, or what is taken in its place where rows of `num_inputs` cannot be cut up so."""
    if kind in NARROW and num_inputs % SUPER_BLOCK:
        kind = NARROW[kind]
    return "F16" if kind not in PLAIN and num_inputs % BLOCK else kind


def _gets_more_bits(number: int, num_blocks: int) -> bool:
    """The first and last eighth, and every third between."""
    eighth = num_blocks // 8
    return number < eighth or number >= 7 * num_blocks // 8 or (number - eighth) % 3 == 2


@dataclass
class TensorReport:
    """What became of the tensors of a file."""

    kinds: Counter[str] = field(default_factory=Counter)  # type → bytes
    kept: int = 0  # matrices whose own codes were taken over
    rerounded: list[str] = field(default_factory=list)  # packed ones whose codes were not
    fallbacks: dict[str, str] = field(default_factory=dict)  # tensor → "Q5_0 (rows of 576)"
    weighed: int = 0  # matrices rounded with an importance of their inputs

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {
            "bytes_of_type": dict(self.kinds),
            "grids_kept": self.kept,
            "grids_rounded_anew": self.rerounded,
            "other_types": self.fallbacks,
            "weighed_by_importance": self.weighed,
        }


def write_gguf(
    source: Path, target: Path, *, kind: str, importance: Mapping[str, LayerStats] | None = None
) -> dict[str, Any]:
    """Write `source` as `target`, a GGUF file; returns facts for the report.

    `kind` is a key of FILE_TYPES, or `auto`: packed weights on their own grids, all else as
    float16. `importance` has what calibration saw at the inputs of layers, by name.
    """
    import gguf

    family, weights = family_of(source), StoredWeights(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    writer = gguf.GGUFWriter(target, family.arch)
    _write_origin(writer, source)
    mixture = TypeMixture(
        "F16" if kind == "auto" else kind,
        family.config.num_hidden_layers,
        bool(family.config.tie_word_embeddings),
    )
    pen = _GgufTensorWriter(
        writer, family, weights, mixture, kind == "auto", importance or {}, TensorReport()
    )
    num_tokens = 0
    for name, role in names_and_roles(family, weights.names()):
        shape = pen.tensor(name, role)
        num_tokens = shape[0] if role == EMBEDDING else num_tokens
    for name, tensor in family.extra().items():
        writer.add_tensor(name, tensor.numpy())
    write_keys(writer, family, num_tokens)
    write_vocabulary(writer, tokenizer, num_tokens)
    file_type = _file_type(pen.written) if kind == "auto" else FILE_TYPES[kind]
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pen.written.facts()


@dataclass(frozen=True)
class _GgufTensorWriter:
    writer: Any
    family: Family
    weights: StoredWeights
    mixture: TypeMixture
    takes_grids: bool
    importance: Mapping[str, LayerStats]
    written: TensorReport

    def tensor(self, name: str, role: str) -> tuple[int, ...]:
        """Hand one tensor to the writer; returns its shape."""
        grid = self.weights.grid(name)
        kind = None if grid is None else grid_type(grid)
        if grid is not None:
            shape = tuple(grid.codes.shape)
            wanted = fitting(self.mixture.wanted(role, shape), shape[1])
            if kind is not None and (self.takes_grids or kind == wanted):
                self._put(role, grid_blocks(self._ordered(name, grid)), kind)
                self.written.kept += 1
                return shape
            self.written.rerounded.append(name)
        dense = self.family.adjusted(name, self.weights.dense(name))
        order = self.family.rows(name)
        dense = dense if order is None else dense[order]
        shape = tuple(dense.shape)
        kind = self._kind(role, shape, packed=grid)
        weighed = self._weights(name, kind)
        if weighed is not None and len(weighed) != shape[1]:
            raise RecipeError(
                f"importance: {name} has {shape[1]} inputs, calibration saw "
                f"{len(weighed)}: the statistics are another model's."
            )
        self._put(role, rounded(dense.numpy(), kind, importance=weighed), kind)
        return shape

    def _kind(self, role: str, shape: tuple[int, ...], *, packed: GroupGrid | None) -> str:
        wanted = self.mixture.wanted(role, shape)
        if packed is not None and self.takes_grids:
            wanted = "Q8_0" if packed.bits > 4 else "Q4_1"  # The nearest that ggml has.
        kind = fitting(wanted, shape[-1])
        if kind != wanted:
            self.written.fallbacks[role] = f"{kind} instead of {wanted}: rows of {shape[-1]}"
        return kind

    def _ordered(self, name: str, grid: GroupGrid) -> GroupGrid:
        order = self.family.rows(name)
        if order is None:
            return grid
        zero = None if grid.zero is None else grid.zero[order]
        return replace(grid, codes=grid.codes[order], scale=grid.scale[order], zero=zero)

    def _weights(self, name: str, kind: str) -> Array | None:
        """Mean square of every input; None where calibration saw nothing or nothing is lost."""
        layer = name.removesuffix(".weight")
        if kind in ("F32", "F16", "BF16", "Q8_0") or layer not in self.importance:
            return None
        self.written.weighed += 1
        stats = self.importance[layer]
        mean_square: Array = (stats.diagonal / stats.num_tokens).float().numpy()
        return mean_square

    def _put(self, role: str, data: Array, kind: str) -> None:
        import gguf

        plain = kind in ("F32", "F16")
        raw = None if plain else gguf.GGMLQuantizationType[kind]
        self.writer.add_tensor(role, data, raw_dtype=raw)
        self.written.kinds[kind] += data.nbytes


def _file_type(written: TensorReport) -> str:
    """The file type of most bytes in matrices."""
    kinds = {kind: n for kind, n in written.kinds.items() if kind != "F32"}
    return FILE_TYPES[max(kinds, key=lambda kind: kinds[kind])]


def _write_origin(writer: Any, source: Path) -> None:
    card = read_card(source)
    writer.add_name(card.name)
    if card.licence:
        writer.add_license(card.licence)
