"""A state in pieces is read whole, and one that lacks a piece is not read at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from lcc.distributed.dist import SINGLE
from lcc.distributed.state import open_tensors, write_tensors


def in_pieces(folder: Path) -> torch.Tensor:
    whole = torch.arange(10.0).view(5, 2)
    for rank, rows in enumerate([whole[:3], whole[3:], whole[5:]]):  # the last has none
        file = folder / f"trainable.{rank:04d}-of-0003.safetensors"
        safetensors.torch.save_file({"w": rows.contiguous()}, file)
    write_tensors(folder, "trainable", {"step": torch.tensor(7)}, SINGLE)
    return whole


def test_rows_of_several_processes_are_one_tensor(tmp_path: Path) -> None:
    whole = in_pieces(tmp_path)
    found = open_tensors(tmp_path)["trainable"]
    assert set(found) == {"w", "step"}
    assert torch.equal(found["w"], whole) and found["step"] == 7


def test_an_empty_group_is_there_and_empty(tmp_path: Path) -> None:
    write_tensors(tmp_path, "best", {}, SINGLE)
    assert dict(open_tensors(tmp_path)["best"]) == {}


def test_a_missing_or_shortened_piece_is_found_out(tmp_path: Path) -> None:
    in_pieces(tmp_path)
    piece = tmp_path / "trainable.0001-of-0003.safetensors"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="0001-of-0003"):
        open_tensors(tmp_path)
    piece.unlink()
    with pytest.raises(ValueError, match="2 of 3 processes' files"):
        open_tensors(tmp_path)
