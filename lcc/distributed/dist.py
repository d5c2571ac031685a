"""Dist: one process or many by the same code, with a rank, a world size and the few collectives we need."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")
# Where a launcher says which of several nodes this one is: ours, torchrun's, Slurm's.
NODE_RANKS = ("LCC_NODE_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_NODEID")


@card
class Distributed:
    """How many processes train together, how they share the work, and what they talk through.

    `ddp` keeps the whole model in every process, `fsdp` a piece of its weights, gradients and
    optimizer state. `world_size` counts the processes of all `nodes`, which run the same command
    and meet at `rendezvous` (HOST:PORT of the first). A group that lost a process starts again
    from the last saved state, `max_restarts` times; who waits for another longer than `timeout`
    seconds calls it lost. `gradients` says what ddp sends: sums as they are, in bfloat16 (half the
    bytes), or as `powersgd_rank` factors with error feedback (Vogels et al., 2019) after
    `powersgd_start` steps. With `bf16_weights`, fsdp gathers weights in bfloat16 and sums
    gradients in float32; `cpu_offload` keeps its pieces in main memory; `state` says whether it
    saves them as they lie or whole.
    """

    # Where and how safely it runs, but not what comes out: the same losses (tested to 1e-5), so the
    # same key, and a run may go on with another number of processes.
    unkeyed: ClassVar[tuple[str, ...]] = (
        "strategy", "world_size", "nodes", "rendezvous", "backend", "max_restarts", "timeout",
        "cpu_offload", "state",
    )  # fmt: skip

    strategy: Literal["ddp", "fsdp"] = "ddp"
    world_size: Annotated[int, Field(ge=1)] = 1
    nodes: Annotated[int, Field(ge=1)] = 1
    rendezvous: Annotated[str, Field(pattern=r"^[\w.\-]+:\d{1,5}$")] | None = None
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    max_restarts: Annotated[int, Field(ge=0)] = 2
    timeout: Annotated[float, Field(gt=0)] = 1800
    gradients: Literal["exact", "bf16", "powersgd"] = "exact"
    powersgd_rank: Annotated[int, Field(ge=1)] = 4
    powersgd_start: Annotated[int, Field(ge=2)] = 10
    bf16_weights: bool = False
    cpu_offload: bool = False
    state: Literal["sharded", "full"] = "sharded"

    def __post_init__(self) -> None:
        if self.world_size % self.nodes:
            raise ValueError(
                f"{self.world_size} processes cannot be dealt evenly to {self.nodes} "
                "nodes; make world_size a multiple of nodes."
            )
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                f"{self.nodes} nodes must know where to meet; set rendezvous to HOST:PORT of the first one."
            )
        if self.strategy == "fsdp" and self.world_size == 1:
            raise ValueError(
                "fsdp shards a model over several processes and world_size is 1; "
                "raise it or use distributed=single."
            )
        if self.strategy == "fsdp" and self.gradients != "exact":
            raise ValueError(
                f"gradients={self.gradients} is for ddp; fsdp sends less with bf16_weights=true."
            )
        if self.strategy == "ddp" and (self.bf16_weights or self.cpu_offload):
            word = "bf16_weights" if self.bf16_weights else "cpu_offload"
            raise ValueError(f"{word} is fsdp's; add strategy=fsdp or leave it out.")

    @property
    def local_size(self) -> int:
        """Processes on each node."""
        return self.world_size // self.nodes


@dataclass(frozen=True)
class Dist:
    """This process among its group; for world size 1 every collective is the identity."""

    rank: int
    world_size: int
    local_size: int = 1  # processes that share this machine
    restarts: tuple[str, ...] = ()  # why the group had to start again, each time

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float], device: str = "cpu") -> list[float]:
        """Each value summed over the group, in float64 where the device has it."""
        if self.world_size == 1:
            return list(values)
        precise = torch.float32 if device == "mps" else torch.float64
        tensor = torch.tensor(list(values), dtype=precise, device=device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def mean(self, values: Sequence[float], device: str = "cpu") -> list[float]:
        """Each value averaged over the group."""
        return [value / self.world_size for value in self.sum(values, device)]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the group in place, as one message per dtype."""
        if self.world_size == 1:
            return
        for dtype in sorted({t.dtype for t in tensors}, key=str):
            same = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in same])
            torch.distributed.all_reduce(flat)
            for tensor, summed in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def stacked(self, own: Tensor) -> Tensor:
        """(world_size, *shape): every process's `own` as a row, of which each holds its own."""
        if self.world_size == 1:
            return own.unsqueeze(0)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        mesh = init_device_mesh(own.device.type, (self.world_size,))
        stacked: Tensor = DTensor.from_local(own.unsqueeze(0), mesh, [Shard(0)])
        return stacked

    def max_(self, tensors: Sequence[Tensor]) -> None:
        """The largest of each element over the group, in place."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)

    def broadcast_(self, tensors: Sequence[Tensor], *, source: int = 0) -> None:
        """Give every process the values of rank `source`, in place."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=source)  # shares its storage

    def gather(self, value: Any, device: str = "cpu") -> list[Any]:
        """What every process brings, in JSON's terms, by rank."""
        if self.world_size == 1:
            return [value]
        text = json.dumps(value).encode()
        sizes = [0.0] * self.world_size
        sizes[self.rank] = len(text)
        sizes = self.sum(sizes, device)
        gathered = []
        for rank, size in enumerate(sizes):
            own = text if rank == self.rank else bytes(int(size))
            buffer = torch.frombuffer(bytearray(own), dtype=torch.uint8).to(device)
            self.broadcast_([buffer], source=rank)
            gathered.append(json.loads(bytes(buffer.cpu().numpy())))
        return gathered

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()


SINGLE = Dist(0, 1)


def node_rank(distributed: Distributed) -> int:
    """Which of the nodes this one is; raises RecipeError when its launcher does not say."""
    if distributed.nodes == 1:
        return 0
    said = next((os.environ[name] for name in NODE_RANKS if name in os.environ), None)
    if said is None or not said.isdigit() or int(said) >= distributed.nodes:
        raise RecipeError(
            f"distributed.nodes: which of {distributed.nodes} nodes this is must stand in one of "
            f"{', '.join(NODE_RANKS)} (0 to {distributed.nodes - 1}), not {said!r}; start the "
            "command through Slurm, or set LCC_NODE_RANK."
        )
    return int(said)
