"""A checkpoint as one GGUF file: every tensor in the type asked for, packed grids as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import transformers
from lcc.exporting.ggml_blocks import grid_blocks, grid_type, rounded
from lcc.exporting.gguf_families import Family, family_of, names_and_roles, write_keys
from lcc.exporting.gguf_types import EMBEDDING, FILE_TYPES, Mixture, fitting
from lcc.exporting.gguf_vocabulary import write_vocabulary
from lcc.exporting.stored_weights import StoredWeights
from lcc.parts.checkpoint import read_card

if TYPE_CHECKING:
    import numpy as np

    from lcc.compression.packing import GroupGrid
    from lcc.engine.statistics import LayerStats

GGUF_FILE = "model.gguf"


@dataclass
class Written:
    """What became of the tensors of a file."""

    kinds: Counter[str] = field(default_factory=Counter)  # type → bytes
    kept: int = 0  # matrices whose own codes were taken over
    rerounded: list[str] = field(default_factory=list)  # packed ones whose codes were not
    fallbacks: dict[str, str] = field(default_factory=dict)  # tensor → "Q5_0 (rows of 576)"
    weighed: int = 0  # matrices rounded with an importance of their inputs

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {"bytes_of_type": dict(self.kinds), "grids_kept": self.kept,
                "grids_rounded_anew": self.rerounded, "other_types": self.fallbacks,
                "weighed_by_importance": self.weighed}  # fmt: skip


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
    mixture = Mixture("F16" if kind == "auto" else kind, family.config.num_hidden_layers,
                      bool(family.config.tie_word_embeddings))  # fmt: skip
    pen = _Pen(writer, family, weights, mixture, kind == "auto", importance or {}, Written())
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
class _Pen:
    writer: Any
    family: Family
    weights: StoredWeights
    mixture: Mixture
    takes_grids: bool
    importance: Mapping[str, LayerStats]
    written: Written

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
            raise RecipeError(f"importance: {name} has {shape[1]} inputs, calibration saw "
                              f"{len(weighed)}: the statistics are another model's.")  # fmt: skip
        self._put(role, rounded(dense.numpy(), kind, importance=weighed), kind)
        return shape

    def _kind(self, role: str, shape: tuple[int, ...], *, packed: GroupGrid | None) -> str:
        wanted = self.mixture.wanted(role, shape)
        if packed is not None and self.takes_grids:
            wanted = "Q8_0" if packed.bits > 4 else "Q4_1"  # The nearest that ggml has.
        found = fitting(wanted, shape[-1])
        if found != wanted:
            self.written.fallbacks[role] = f"{found} instead of {wanted}: rows of {shape[-1]}"
        return found

    def _ordered(self, name: str, grid: GroupGrid) -> GroupGrid:
        order = self.family.rows(name)
        if order is None:
            return grid
        zero = None if grid.zero is None else grid.zero[order]
        return replace(grid, codes=grid.codes[order], scale=grid.scale[order], zero=zero)

    def _weights(self, name: str, kind: str) -> np.ndarray[Any, Any] | None:
        """Mean square of every input; None where calibration saw nothing or nothing is lost."""
        layer = name.removesuffix(".weight")
        if kind in ("F32", "F16", "BF16", "Q8_0") or layer not in self.importance:
            return None
        self.written.weighed += 1
        stats = self.importance[layer]
        found: np.ndarray[Any, Any] = (stats.diagonal / stats.num_tokens).float().numpy()
        return found

    def _put(self, role: str, data: np.ndarray[Any, Any], kind: str) -> None:
        import gguf

        plain = kind in ("F32", "F16")
        raw = None if plain else gguf.GGMLQuantizationType[kind]
        self.writer.add_tensor(role, data, raw_dtype=raw)
        self.written.kinds[kind] += data.nbytes


def _file_type(written: Written) -> str:
    """The file type of most bytes in matrices."""
    kinds = {kind: n for kind, n in written.kinds.items() if kind != "F32"}
    return FILE_TYPES[max(kinds, key=lambda kind: kinds[kind])]


def _write_origin(writer: Any, source: Path) -> None:
    card = read_card(source)
    writer.add_name(card.name)
    if card.licence:
        writer.add_license(card.licence)
