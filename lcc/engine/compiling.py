"""A model's blocks compiled by torch, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module

from lcc.engine.blocks import blocks


@contextmanager
def compiled_blocks(model: Module) -> Iterator[None]:
    """While open, every block of `model` runs compiled, for any batch size and length.

    Blocks share their code, so that one is compiled for all; what lies between them stays eager.
    """
    chosen = list(blocks(model).values())
    for block in chosen:
        block.compile(dynamic=True)
    try:
        yield
    finally:
        for block in chosen:
            block._compiled_call_impl = None
