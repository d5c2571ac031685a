"""Launch a function in a group of processes; a group of one is a plain call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lcc.core.errors import ResourceError
from lcc.core.lazy import torch
from lcc.core.machine import cores
from lcc.distributed.dist import SINGLE, Distributed, R


def launch(
    worker: Callable[..., R], distributed: Distributed, *args: Any, device: str = "cpu", name: str = "lcc"
) -> R:
    """`worker(dist, *args)` in every process of a group; rank 0's result (None on other nodes).

    World size 1 calls it right here. More start a torchelastic worker group of fresh processes, so
    `worker` must be a module's function and `args` picklable. Every node makes the same call; the
    groups that meet at one address are told apart by `name`. An LccError of any worker comes back
    as itself; a process that was killed or hangs is a ResourceError once restarts are used up.
    """
    if distributed.world_size == 1:
        return worker(SINGLE, *args)
    _require_places(distributed.local_size, device)
    # Only here: a run of one process need not wait for torchelastic.
    from lcc.distributed.elastic import run_group

    result: R = run_group(worker, distributed, args, device=device, name=name)
    return result


def _require_places(num_processes: int, device: str) -> None:
    if device == "cuda":
        places, thing = torch.cuda.device_count(), "GPUs"
    else:
        places, thing = cores(), "cores"
    if num_processes > places:
        raise ResourceError(
            f"distributed.world_size: asked for {num_processes} processes, this machine has "
            f"{places} {thing}; use distributed=single."
        )
