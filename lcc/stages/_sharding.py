"""What a training stage has to do for FSDP: cut its model into pieces, or refuse to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.engine.sharding import Sharded
    from lcc.parts.dist import Distributed
    from lcc.stage import Context


def sharded_for(
    model: Module, distributed: Distributed, cards: Iterable[Any], context: Context
) -> Sharded | None:
    """The model to train in pieces, not yet cut; None where every process holds it whole.

    Raises RecipeError for what FSDP cannot train; `cards` are those of method and optimizer.
    """
    if distributed.strategy == "ddp":
        return None
    from lcc.engine.sharding import Sharded, require_shardable

    require_shardable(model, distributed, cards, context.device)
    return Sharded(model, distributed, context.dist, context.device)


def load_device(distributed: Distributed, device: str) -> str:
    """Where a model is read to: FSDP brings each block to the device by itself, in pieces."""
    return "cpu" if distributed.strategy == "fsdp" else device
