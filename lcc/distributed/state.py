"""Sharded state on disk: every process writes its pieces of a tensor, any number reads them whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import safetensors, torch
from lcc.models.safetensors_io import entry, write_file
from lcc.store.artifact import fsync

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.distributed.dist import Dist

# GROUP.safetensors holds whole tensors, GROUP.RANK-of-SIZE.safetensors a process's rows of others.
_FILE = re.compile(r"(?P<group>\w+)(\.(?P<rank>\d+)-of-(?P<size>\d+))?\.safetensors")


@dataclass(frozen=True)
class Tensors(Mapping[str, "Tensor"]):
    """One group's tensors by name, each read from disk when it is asked for, and whole."""

    files: Mapping[str, list[Any]]  # the open files with its rows, in their order

    def __getitem__(self, name: str) -> Tensor:
        pieces = [file.get_tensor(name) for file in self.files[name]]
        whole: Tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def write_tensors(folder: Path, group: str, values: Mapping[str, Tensor], dist: Dist) -> None:
    """This process's part of `group`, synced: its rows of what is sharded; rank 0 the rest."""
    pieces = {name: value for name, value in values.items() if is_sharded(value)}
    if pieces:
        name = f"{group}.{dist.rank:04d}-of-{dist.world_size:04d}.safetensors"
        _write(folder / name, pieces)
    if dist.is_main:
        whole = {name: value for name, value in values.items() if name not in pieces}
        _write(folder / f"{group}.safetensors", whole)


def open_tensors(folder: Path) -> dict[str, Tensors]:
    """Every group in `folder`; raises ValueError when a process's file is missing or cut off."""
    groups: dict[str, dict[str, list[Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        parts = _FILE.fullmatch(path.name)
        if parts is None:
            raise ValueError(f"{path.name} is no part of a training state")
        names = groups.setdefault(parts["group"], {})
        try:
            file = safetensors.safe_open(path, "pt")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path.name}: {error}") from None
        for name in file.keys():  # type: ignore[no-untyped-call] # noqa: SIM118
            names.setdefault(name, []).append(file)
        if parts["size"] is not None:
            _require_all(folder, parts["group"], int(parts["size"]))
    return {group: Tensors(names) for group, names in groups.items()}


def _require_all(folder: Path, group: str, size: int) -> None:
    written = len(list(folder.glob(f"{group}.*-of-{size:04d}.safetensors")))
    if written != size:
        raise ValueError(f"{group}: {written} of {size} processes' files are there")


def is_sharded(value: Tensor) -> bool:
    """Whether this process holds only some rows of `value` (a DTensor of FSDP)."""
    placements = getattr(value, "placements", ())
    assert not any(placement.is_partial() for placement in placements), placements
    return any(placement.is_shard() for placement in placements)


def local(value: Tensor) -> Tensor:
    """What this process holds of `value`."""
    held: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return held


def placed(value: Tensor, like: Tensor) -> Tensor:
    """`value`, whole and the same on every process, laid out as `like` is; nothing is sent."""
    if not hasattr(like, "placements"):
        return value
    there: Tensor = torch.empty_like(like, dtype=value.dtype)
    local(there).copy_(_own_rows(value, like) if is_sharded(like) else value)
    return there


def _own_rows(value: Tensor, like: Any) -> Tensor:
    assert all(placement.is_shard(0) for placement in like.placements), like.placements
    chunks = torch.chunk(value, like.device_mesh.size())
    rank = like.device_mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else value[:0]  # fewer rows than processes


def _write(path: Path, values: Mapping[str, Tensor]) -> None:
    # One tensor after another, by Python, whose errors say what happened and where.
    write_file([entry(name, local(value)) for name, value in values.items()], path)
    fsync(path)
