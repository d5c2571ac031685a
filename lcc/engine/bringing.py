"""Weights of a streamed model in memory while its blocks are walked over, and no longer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.parts.streaming import Streamed


@contextmanager
def inner_weights(block: str, weights: Streamed | None) -> Iterator[None]:
    """While open, the block has its weights."""
    if weights is None:
        yield
        return
    weights.bring(block)
    try:
        yield
    finally:
        weights.drop(block)


@contextmanager
def outer_weights(stops: Mapping[str, Module], weights: Streamed | None) -> Iterator[None]:
    """While open, a large module outside the blocks has its weights from the moment it runs."""
    if weights is None:
        yield
        return

    def bring(name: str) -> Any:
        return lambda _module, _inputs: weights.bring(name)

    large = weights.settle(stops)
    modules = {name: weights.module.get_submodule(name) for name in large}
    handles = [m.register_forward_pre_hook(bring(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in large:
            weights.drop(name)
