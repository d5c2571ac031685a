"""Finished blocks of a calibration on disk: what a killed run resumes from, and what is written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.models.safetensors_io import StoredTensors, TensorEntry, entry, is_sealed, read_metadata, write_file

if TYPE_CHECKING:
    from torch.nn import Module

Facts = dict[str, dict[str, Any]]
"""Layer → what a stage found out about it, in JSON's terms."""


class FinishedBlocks:
    """The changed parameters of every finished block, in the dtype they will be stored in.

    A damaged file is no finished block: `warn` is told, and the block is done again.
    """

    def __init__(self, folder: Path, *, dtype: str, warn: Callable[[str], None] = print) -> None:
        self.folder, self.dtype = folder, dtype
        sound = [file for file in self._files() if is_sealed(file)]
        for file in self._files():
            if file not in sound:
                warn(f"the finished block {file} is damaged and will be done again.")
        self.facts: Facts = {}
        self.finished = frozenset(file.name.removesuffix(".safetensors") for file in sound)
        for file in sound:
            self.facts |= json.loads(read_metadata(file)["facts"])

    def __contains__(self, block: object) -> bool:
        """Whether an earlier run had finished it."""
        return block in self.finished

    def restore(self, block: str, module: Module) -> None:
        """Put the parameters of a finished block in place."""
        stored = StoredTensors(self._file(block))
        for name, parameter in module.named_parameters(block):
            parameter.data.copy_(stored.read(name))

    def keep(self, block: str, module: Module, *, write: bool = True) -> None:
        """Round the block to what will be stored, in place, so that later ones see just that."""
        wanted, entries = getattr(torch, self.dtype), []
        for name, parameter in module.named_parameters(block):
            stored = parameter.data.to(wanted)
            parameter.data.copy_(stored)
            if write:
                entries.append(entry(name, stored))
        if write:
            facts = {n: f for n, f in self.facts.items() if n.startswith(f"{block}.") or n == block}
            metadata = {"facts": json.dumps(facts)}
            write_file(entries, self._file(block), metadata=metadata, sealed=True)

    def entries(self) -> dict[str, TensorEntry]:
        """Every kept parameter by name, unread."""
        return {n: e for file in self._files() for n, e in StoredTensors(file).entries.items()}

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _file(self, block: str) -> Path:
        return self.folder / f"{block}.safetensors"
