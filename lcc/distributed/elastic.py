"""A process group on one node: torchelastic's agent watches its processes and starts them again."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.rendezvous import rendezvous

from lcc.core import errors, signals
from lcc.core.errors import LccError, LostError, PreemptedError, ResourceError
from lcc.core.lazy import torch
from lcc.core.machine import cores
from lcc.distributed.dist import Dist, Distributed, node_rank

GRACE_SECONDS = 120  # for saving the state when we are asked to stop
STOP_SECONDS = 10  # for the others when one is lost: what they do is lost anyway
JOIN_SECONDS = 900  # for the other nodes to arrive
HISTORY = "restarts.json"
GONE, SILENT = "gone", "silent"  # what a process says of the others
# Requests to stop are passed on as such: the agent would end whoever does not save in time.
AGENTS_SIGNALS = "SIGHUP,SIGQUIT"
CRASH = "crash"  # our own fault: its traceback is wanted, and a second time would end alike
# What gloo says when a process it talks with is gone, and when it does not answer.
_SAYS_GONE = ("closed by peer", "reset by peer", "broken pipe", "connection refused")
_SAYS_SILENT = ("timed out", "timeout")


class Agent(LocalElasticAgent):
    """Starts a node's processes again when one was lost, but not when one refused its task."""

    def __init__(self, spec: WorkerSpec, folder: Path) -> None:
        super().__init__(spec, DefaultLogsSpecs(), "spawn", shutdown_timeout=GRACE_SECONDS)
        self.folder = folder
        self.history: list[str] = []
        self.exit_codes: dict[int, int] = {}  # by rank, once a process failed

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if not result.is_failed():
            return result
        # The result names one of those that failed, perhaps not the first.
        workers, processes = worker_group.workers, getattr(self._pcontext, "_pc").processes  # noqa: B009
        self.exit_codes = {
            worker.global_rank: process.exitcode or 0
            for worker, process in zip(workers, processes, strict=True)
        }
        if signals.requested() or any(not r["passing"] for r in _records(self.folder)):
            self._remaining_restarts = 0  # so it was meant, or the same mistake would be made again
        if self._remaining_restarts:
            self.history.append(reason_of(self.exit_codes, self.folder))
            (self.folder / HISTORY).write_text(json.dumps(self.history), encoding="utf-8")
        return result

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for path in self.folder.glob("error-*.json"):
            path.unlink()  # what the processes before said
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(timeout=STOP_SECONDS)


def run_group(
    worker: Callable[..., Any], distributed: Distributed, args: tuple[Any, ...], *, device: str, name: str
) -> Any:
    """`worker(dist, *args)` in every process; rank 0's result where rank 0 is, else None."""
    # The agent logs every failure it also raises; ours are told once, as sentences.
    for logger in [n for n in logging.root.manager.loggerDict if "distributed.elastic" in n]:
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="lcc-dist-") as folder:
        handler = _rendezvous(distributed, name)
        spec = WorkerSpec(
            role="default",
            local_world_size=distributed.local_size,
            entrypoint=work,
            args=(worker, distributed, device, folder, args),
            rdzv_handler=handler,
            max_restarts=distributed.max_restarts,
            monitor_interval=0.1,
            local_addr="127.0.0.1" if distributed.nodes == 1 else None,
            **_master(distributed),
        )
        agent = Agent(spec, Path(folder))
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = AGENTS_SIGNALS
        try:
            with signals.watched(), signals.passed_on():
                result = agent.run()
                if result.is_failed():
                    raise _error_of(agent, result.failures, distributed)
        except SignalException as error:
            name = signal.Signals(error.sigval).name
            raise PreemptedError(f"stopped by {name}; the state saved so far is kept.") from None
        except torch.distributed.DistError as error:
            why = str(error).strip().splitlines()[0]
            raise ResourceError(
                f"distributed: the nodes have lost each other ({why}); the reason "
                "is what another of them says."
            ) from None
        finally:
            handler.shutdown()
    return result.return_values.get(0)


def _rendezvous(distributed: Distributed, name: str) -> RendezvousHandler:
    nodes = distributed.nodes
    if nodes == 1:
        parameters = RendezvousParameters(
            "c10d", "localhost:0", uuid.uuid4().hex, 1, 1, local_addr="127.0.0.1"
        )
    else:
        # Not c10d's: that numbers nodes as it likes, and rank 0 must be where the store is claimed.
        parameters = RendezvousParameters(
            "static",
            str(distributed.rendezvous),
            name,
            nodes,
            nodes,
            rank=node_rank(distributed),
            timeout=JOIN_SECONDS,
        )
    return get_rendezvous_handler(parameters)


def _master(distributed: Distributed) -> dict[str, Any]:
    if distributed.nodes == 1:
        return {}
    host, _, port = str(distributed.rendezvous).rpartition(":")
    return {"master_addr": host, "master_port": int(port)}


def work(
    worker: Callable[..., Any], distributed: Distributed, device: str, folder: str, args: tuple[Any, ...]
) -> Any:
    """What every process of the group runs; only rank 0's result travels back."""
    with signals.watched():
        return _work(worker, distributed, device, folder, args)


def _work(
    worker: Callable[..., Any], distributed: Distributed, device: str, folder: str, args: tuple[Any, ...]
) -> Any:
    rank, size = int(os.environ["RANK"]), distributed.local_size
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(max(1, cores() // size))
    history = Path(folder) / HISTORY
    restarts = json.loads(history.read_text(encoding="utf-8")) if history.is_file() else ()
    dist = Dist(rank, int(os.environ["WORLD_SIZE"]), size, tuple(restarts))
    try:
        _join(distributed, device)
        result = worker(dist, *args)
        torch.distributed.barrier()
    except LccError as error:
        passing = isinstance(error, LostError | PreemptedError)
        _leave(Path(folder), rank, type(error).__name__, str(error), passing=passing)
        raise SystemExit(error.exit_code) from None
    except RuntimeError as error:
        lost = lost_sentence(error, rank, distributed.timeout)
        if lost is None:
            _leave(Path(folder), rank, CRASH, str(error), passing=False)
            raise
        _leave(Path(folder), rank, *lost, passing=True)
        sys.stderr.flush()
        os._exit(ResourceError.exit_code)  # destroying the group would wait for the lost one
    except Exception as error:
        _leave(Path(folder), rank, CRASH, str(error), passing=False)
        raise
    torch.distributed.destroy_process_group()
    return result if rank == 0 else None


def _join(distributed: Distributed, device: str) -> None:
    timeout = timedelta(seconds=distributed.timeout)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    # The agents' store outlives an attempt, and with it the addresses of processes that are gone.
    attempt = PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    torch.distributed.init_process_group(
        _backend(distributed, device), store=attempt, rank=rank, world_size=size, timeout=timeout
    )


def _backend(distributed: Distributed, device: str) -> str:
    if distributed.backend != "auto":
        return distributed.backend
    # FSDP's pieces in main memory need gloo beside nccl.
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


def lost_sentence(error: RuntimeError, rank: int, timeout: float) -> tuple[str, str] | None:
    """What a failed collective says about the other processes; None for any other error."""
    text = str(error).lower()
    if any(words in text for words in _SAYS_GONE):
        return GONE, f"process {rank} lost the connection to another process."
    if any(words in text for words in _SAYS_SILENT):
        return SILENT, (
            f"process {rank} waited {timeout:g} s (distributed.timeout) for the other "
            "processes: one of them hangs."
        )
    return None


def reason_of(exit_codes: Mapping[int, int], folder: Path) -> str:
    """Why the group failed: who gave up by itself, else who hangs, else who was killed."""
    reasons = {record["type"]: str(record["message"]) for record in reversed(_records(folder))}
    for kind in ("LostError", SILENT):
        if kind in reasons:
            return reasons[kind]
    for rank, code in sorted(exit_codes.items()):
        if code < 0 and -code != signal.SIGTERM:  # which is ours, for those that are left
            name = signal.Signals(-code).name
            hint = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
            return f"process {rank} was killed by {name}{hint}."
    failed = next((rank for rank, code in sorted(exit_codes.items()) if code), 0)
    ended = f"process {failed} ended with exit code {exit_codes.get(failed)}."
    return reasons.get(GONE) or reasons.get("PreemptedError") or ended


def _error_of(agent: Agent, failures: Mapping[int, ProcessFailure], distributed: Distributed) -> Exception:
    """The LccError that a worker left behind, the lowest rank's first; else who was lost."""
    records = _records(agent.folder)
    for record in records:
        if record["type"] == CRASH:
            return ChildFailedError("lcc", dict(failures))
        if not record["passing"]:
            kind = getattr(errors, record["type"], LccError)
            error: LccError = (kind if issubclass(kind, LccError) else LccError)(record["message"])
            return error
    if signals.requested():
        said = [r["message"] for r in records if r["type"] == PreemptedError.__name__]
        return PreemptedError(said[0] if said else "asked to stop before anything was done.")
    num_tried, allowed = len(agent.history), distributed.max_restarts
    tried = f" It was started again {num_tried} of {allowed} times." if num_tried else ""
    return ResourceError(f"distributed: {reason_of(agent.exit_codes, agent.folder)}{tried}")


def _leave(folder: Path, rank: int, kind: str, message: str, *, passing: bool) -> None:
    record = {"type": kind, "message": message, "passing": passing}
    draft = folder / f"draft-{rank}.json"
    draft.write_text(json.dumps(record), encoding="utf-8")
    draft.replace(folder / f"error-{rank}.json")


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("error-*.json"))]
