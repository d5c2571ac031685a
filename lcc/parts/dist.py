"""One process or many, the same code: a rank, a world size, and the few collectives we need."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from lcc.core import errors
from lcc.core.decode import card
from lcc.core.errors import LccError, PreemptedError, ResourceError
from lcc.core.lazy import torch
from lcc.core.machine import cores

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")


@card
class Distributed:
    """How many processes train together, and what they talk through."""

    world_size: Annotated[int, Field(ge=1)] = 1
    backend: Literal["auto", "gloo", "nccl"] = "auto"


@dataclass(frozen=True)
class Dist:
    """This process among its group; for world size 1 every collective is the identity."""

    rank: int
    world_size: int

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
            for tensor, summed in zip(
                same, torch.split(flat, [t.numel() for t in same]), strict=True
            ):
                tensor.copy_(summed.view_as(tensor))

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


def launch(
    worker: Callable[..., R], distributed: Distributed, *args: Any, device: str = "cpu"
) -> R:
    """`worker(dist, *args)` in every process of a group; rank 0's result.

    World size 1 calls it right here. More start a torchelastic worker group of fresh processes, so
    `worker` must be a module's function and `args` picklable. An LccError of any worker comes back
    as itself.
    """
    if distributed.world_size == 1:
        return worker(SINGLE, *args)
    _require_places(distributed.world_size, device)
    return _launch_group(worker, distributed, device, args)


def _require_places(world_size: int, device: str) -> None:
    if device == "cuda":
        places, thing = torch.cuda.device_count(), "GPUs"
    else:
        places, thing = cores(), "cores"
    if world_size > places:
        raise ResourceError(
            f"distributed.world_size: asked for {world_size} processes, this machine has "
            f"{places} {thing}; use distributed=single."
        )


def _launch_group(
    worker: Callable[..., R], distributed: Distributed, device: str, args: tuple[Any, ...]
) -> R:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent logs every failure it also raises; ours are told once, as sentences.
    for logger in [
        name for name in logging.root.manager.loggerDict if "distributed.elastic" in name
    ]:
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    backend = distributed.backend
    if backend == "auto":
        backend = "nccl" if device == "cuda" else "gloo"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=distributed.world_size, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="127.0.0.1", max_restarts=0,
        monitor_interval=0.1, start_method="spawn",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lcc-dist-") as folder:
        entry = elastic_launch(config, _work)
        try:
            results = entry(worker, backend, device, folder, args)
        except SignalException as error:
            name = signal.Signals(error.sigval).name
            raise PreemptedError(f"stopped by {name}; the state saved so far is kept.") from None
        except ChildFailedError as error:
            raise _error_of(Path(folder)) or error from None
    result: R = results[0]
    return result


def _work(
    worker: Callable[..., R], backend: str, device: str, folder: str, args: tuple[Any, ...]
) -> R | None:
    """What every process of the group runs; only rank 0's result travels back."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(max(1, cores() // world_size))
    torch.distributed.init_process_group(backend)
    try:
        result = worker(Dist(rank, world_size), *args)
    except LccError as error:
        record = {"type": type(error).__name__, "message": str(error)}
        (Path(folder) / f"error-{rank}.json").write_text(json.dumps(record), encoding="utf-8")
        raise SystemExit(error.exit_code) from None
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return result if rank == 0 else None


def _error_of(folder: Path) -> LccError | None:
    """The LccError that a worker left behind, the lowest rank's first."""
    for path in sorted(folder.glob("error-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        kind = getattr(errors, record["type"], LccError)
        found: LccError = (kind if issubclass(kind, LccError) else LccError)(record["message"])
        return found
    return None
