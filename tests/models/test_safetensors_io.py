"""Sealed files: safetensors like any other, and every byte of them answers for itself."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lcc.core.errors import IntegrityError
from lcc.models.safetensors_io import TensorFolder, entry, is_sealed, require_sealed, write_file

TENSORS = {
    "weight": torch.arange(12.0).view(3, 4),
    "mask": torch.tensor([1, 0, 3]),
    "none": torch.empty(0, 2, dtype=torch.bfloat16),
}


def sealed(file: Path) -> Path:
    entries = [entry(name, tensor) for name, tensor in TENSORS.items()]
    write_file(entries, file, metadata={"facts": "{}"}, sealed=True)
    return file


def test_a_sealed_file_is_read_by_everybody(tmp_path: Path) -> None:
    file = sealed(tmp_path / "a.safetensors")
    found = load_file(file)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert is_sealed(file)


def test_whatever_bit_is_flipped_it_is_found(tmp_path: Path) -> None:
    file, dice = sealed(tmp_path / "a.safetensors"), random.Random(0)
    original = file.read_bytes()
    for bit in dice.sample(range(8 * len(original)), 200):
        data = bytearray(original)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        assert not is_sealed(file), bit
    for end in (0, 7, 8, 100, len(original) - 1):
        file.write_bytes(original[:end])
        assert not is_sealed(file), end
    file.write_bytes(original + b"\0")
    assert not is_sealed(file)


def test_another_files_content_is_found_too(tmp_path: Path) -> None:
    one, other = sealed(tmp_path / "a.safetensors"), sealed(tmp_path / "b.safetensors")
    shutil.copy(other, one)
    with pytest.raises(IntegrityError, match=r"a\.safetensors is damaged; delete .* and run again"):
        require_sealed(one)


def test_a_file_without_a_seal_is_not_taken_for_a_sealed_one(tmp_path: Path) -> None:
    write_file([entry("weight", TENSORS["weight"])], tmp_path / "a.safetensors")
    assert not is_sealed(tmp_path / "a.safetensors")


def test_a_folder_of_tensors_refuses_what_is_damaged(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path)
    folder["layer"] = TENSORS
    assert torch.equal(folder["layer"]["weight"], TENSORS["weight"])
    file = tmp_path / "layer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(IntegrityError, match=r"layer\.safetensors is damaged"):
        folder["layer"]
