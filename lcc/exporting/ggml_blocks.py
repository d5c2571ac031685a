"""Weights as ggml stores them: our own codes where a block type holds them, else rounded anew."""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lcc.core.errors import ResourceError

if TYPE_CHECKING:
    from lcc.compression.packing import GroupGrid

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


def grid_blocks(grid: GroupGrid) -> np.ndarray[Any, Any]:
    """A grid's own codes and scales as rows of blocks, (out, bytes of a row) uint8."""
    codes = grid.codes.numpy().astype(np.int16)  # (out, in), from the lowest code upwards
    num_outputs = len(codes)
    blocks = codes.reshape(num_outputs, -1, BLOCK)
    repeat = blocks.shape[1] // grid.scale.shape[1]
    scale = grid.scale.float().numpy().repeat(repeat, axis=1)[..., None]  # (out, blocks, 1)
    heads = [scale]
    if grid_type(grid) == "Q8_0":
        body: np.ndarray[Any, Any] = blocks.astype(np.int8).view(np.uint8)
    else:
        if grid.zero is not None:
            zero = grid.zero.numpy().astype(np.float32).repeat(repeat, axis=1)[..., None]
            heads.append(scale * (-8 - zero))
        low, high = np.split((blocks + 8).astype(np.uint8), 2, axis=-1)
        body = low | (high << 4)
    halves = [head.astype(np.float16).view(np.uint8) for head in heads]
    return np.concatenate([*halves, body], axis=-1).reshape(num_outputs, -1)


def rounded(
    weight: np.ndarray[Any, Any], kind: str, *, importance: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    """Float32 rows (out, in) in a block type; `importance` (in,) weighs the errors of inputs."""
    import gguf

    wanted = gguf.GGMLQuantizationType[kind]
    if kind in NUMPY and (kind in PLAIN or importance is None):
        found: np.ndarray[Any, Any] = gguf.quants.quantize(weight, wanted)
        return found
    return _by_llama_cpp(np.ascontiguousarray(weight, np.float32), wanted, importance)


def row_bytes(num_inputs: int, kind: str) -> int:
    """What one row takes."""
    import gguf

    size, bytes_ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(num_inputs // size * bytes_)


def _by_llama_cpp(
    weight: np.ndarray[Any, Any], kind: Any, importance: np.ndarray[Any, Any] | None
) -> np.ndarray[Any, Any]:
    num_rows, num_inputs = weight.shape
    out = np.empty((num_rows, row_bytes(num_inputs, kind.name)), np.uint8)
    # A channel that calibration never saw still counts for something, or its weights become noise.
    weights = None if importance is None else np.ascontiguousarray(
        np.maximum(importance, importance.mean() * 1e-4 + 1e-12), np.float32)  # fmt: skip
    assert weights is None or weights.shape == (num_inputs,), weights.shape
    written = _quantizer()(
        int(kind), weight.ctypes.data, out.ctypes.data, 0, num_rows, num_inputs,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
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
        raise ResourceError(
            f"this xllamacpp keeps ggml_quantize_chunk to itself. {NEEDS_LLAMA_CPP}"
        )
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                         ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]  # fmt: skip
    return function
