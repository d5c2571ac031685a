"""Safetensors files read and written one tensor at a time: memory holds one, not a whole file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import IntegrityError
from lcc.core.lazy import torch
from lcc.models.card import read_header, weight_files, write_config

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
WORDS = {dtype: word for word, dtype in DTYPES.items()}
SHARD_BYTES = 4_000_000_000
CHUNK_BYTES = 1 << 24
SEAL, BLANK = "sha256", "0" * 64  # a sealed file's digest, and what stands for it in the digest


@dataclass(frozen=True)
class TensorEntry:
    """One tensor to be written: what it is called and looks like, and how to get it."""

    name: str
    dtype: str  # "bfloat16"
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)

    def renamed(self, name: str) -> TensorEntry:
        return dataclasses.replace(self, name=name)

    def turned(self) -> TensorEntry:
        """The matrix transposed."""
        read, shape = self.read, (self.shape[1], self.shape[0])
        return dataclasses.replace(self, shape=shape, read=lambda: read().T)

    def cast(self, dtype: str) -> TensorEntry:
        """In `dtype`, where it holds floats."""
        if not self.dtype.startswith(("float", "bfloat")) or self.dtype == dtype:
            return self
        read, wanted = self.read, getattr(torch, dtype)
        return dataclasses.replace(self, dtype=dtype, read=lambda: read().to(wanted))


def entry(name: str, tensor: Tensor) -> TensorEntry:
    """A tensor that is in memory."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorEntry(name, dtype, tuple(tensor.shape), lambda: tensor)


class StoredTensors:
    """The tensors of a folder (or one file), by name; read without mapping files into memory."""

    def __init__(self, place: Path) -> None:
        files = [place] if place.is_file() else weight_files(place)
        self.entries = {entry.name: entry for file in files for entry in _entries(file)}

    def read(self, name: str, *, dtype: Any = None) -> Tensor:
        """A tensor of its own memory; floats in `dtype`."""
        tensor = self.entries[name].read()
        if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        return tensor.to(dtype)


def read_metadata(file: Path) -> dict[str, str]:
    """The words that a file carries beside its tensors."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def _entries(file: Path) -> Iterator[TensorEntry]:
    with file.open("rb") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
    for name, facts in read_header(file).items():
        if facts["dtype"] in DTYPES:
            dtype, shape = DTYPES[facts["dtype"]], tuple(facts["shape"])
            first = start + facts["data_offsets"][0]
            yield TensorEntry(name, dtype, shape, _reader(file, first, dtype, shape))


def _reader(file: Path, first: int, dtype: str, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    def read() -> Tensor:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        if tensor.numel():
            with file.open("rb", buffering=0) as stream:
                stream.seek(first)
                _fill(stream, raw_bytes(tensor))
        return tensor

    return read


def _fill(stream: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        got = stream.readinto(view[done : done + CHUNK_BYTES])
        assert got, f"{stream.name} ended early"
        done += got


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def is_sealed(file: Path) -> bool:
    """Whether every byte of a `sealed` file, and its name, are what was written."""
    try:
        seal = read_metadata(file).get(SEAL, "")
        with file.open("rb") as stream:
            start = stream.read(8)
            text = stream.read(int.from_bytes(start, "little"))
            blank = text.replace(seal.encode(), BLANK.encode())
            digest = hashlib.sha256(file.name.encode() + start + blank)
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
    except (OSError, ValueError, KeyError, AttributeError, MemoryError, OverflowError):
        return False
    return len(seal) == len(BLANK) and digest.hexdigest() == seal


def require_sealed(file: Path) -> None:
    """Raise IntegrityError for a sealed file that is not what was written."""
    if not is_sealed(file):
        raise IntegrityError(f"{file} is damaged; delete {file.parent} and run again.")


def write_file(
    entries: Sequence[TensorEntry],
    file: Path,
    *,
    metadata: dict[str, str] | None = None,
    sealed: bool = False,
) -> None:
    """One safetensors file, complete or not there at all; `sealed`, with a digest of itself."""
    # Readers want every tensor aligned: the widest first.
    ordered = sorted(entries, key=lambda e: (-getattr(torch, e.dtype).itemsize, e.name))
    facts = {"format": "pt", **(metadata or {}), **({SEAL: BLANK} if sealed else {})}
    header: dict[str, Any] = {"__metadata__": facts}
    offset = 0
    for one in ordered:
        spans = [offset, offset + one.bytes]
        header[one.name] = {"dtype": WORDS[one.dtype], "shape": one.shape, "data_offsets": spans}
        offset = spans[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(file.name.encode() + text)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}.new")
    with draft.open("wb", buffering=0) as stream:
        stream.write(text)
        for one in ordered:
            tensor = one.read().detach().to("cpu").contiguous()
            assert tuple(tensor.shape) == one.shape, f"{one.name}: {tuple(tensor.shape)}"
            if tensor.numel():
                _pour(raw_bytes(tensor), stream)
                if sealed:
                    digest.update(raw_bytes(tensor))
        if sealed:
            stream.seek(text.index(BLANK.encode()))
            stream.write(digest.hexdigest().encode())
            os.fsync(stream.fileno())
    draft.replace(file)


def _pour(view: memoryview, stream: Any) -> None:
    done = 0
    while done < len(view):
        done += stream.write(view[done : done + CHUNK_BYTES])


def write_model(entries: Sequence[TensorEntry], folder: Path, *, max_bytes: int = SHARD_BYTES) -> None:
    """`model.safetensors`, or numbered shards with their index."""
    shards: list[list[TensorEntry]] = [[]]
    for one in entries:
        if shards[-1] and sum(e.bytes for e in shards[-1]) + one.bytes > max_bytes:
            shards.append([])
        shards[-1].append(one)
    if len(shards) == 1:
        write_file(shards[0], folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_file(shard, folder / name)
        where |= {one.name: name for one in shard}
    index = {"metadata": {"total_size": sum(e.bytes for e in entries)}, "weight_map": where}
    write_config(folder / "model.safetensors.index.json", index)


class TensorFolder(MutableMapping[str, dict[str, "Tensor"]]):
    """Named sets of tensors that live in files: what is put in takes no memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __setitem__(self, name: str, tensors: dict[str, Tensor]) -> None:
        entries = [entry(leaf, t) for leaf, t in tensors.items()]
        write_file(entries, self._file(name), sealed=True)

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        stored = StoredTensors(self._require(name))
        return {leaf: stored.read(leaf) for leaf in stored.entries}

    def entries(self, name: str) -> dict[str, TensorEntry]:
        """What `name` holds, unread."""
        return StoredTensors(self._require(name)).entries

    def __delitem__(self, name: str) -> None:
        self._require(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return (file.name.removesuffix(".safetensors") for file in sorted(self._files()))

    def __len__(self) -> int:
        return len(list(self._files()))

    def __contains__(self, name: object) -> bool:
        return self._file(str(name)).is_file()

    def _files(self) -> Iterator[Path]:
        return self.folder.glob("*.safetensors")

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _require(self, name: str) -> Path:
        if name not in self:
            raise KeyError(name)
        require_sealed(self._file(name))
        return self._file(name)
