"""Benchmark of one model in a process of its own: tokens a second, latency, memory.

A fresh process per checkpoint keeps one's memory and caches out of another's figures. All are
forked from a server that has only imported the libraries, so that these seconds are paid once;
each writes what libraries print into a log of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lcc.core import errors, signals
from lcc.core.disk import folder_bytes
from lcc.core.lazy import torch, transformers
from lcc.core.machine import LOOK_SECONDS, busy_ticks, cores
from lcc.inference.workers import PRELOADED, no_main

if TYPE_CHECKING:
    from lcc.models.bundle import Bundle

TRIAD = 1 << 24  # numbers in each of the three arrays: 64 MB, beyond any cache
MATRIX = 1024
NUM_TRIES = 5
GRACE_SECONDS = 5.0


class MeasuringProcess:
    """The client's end of one measuring process."""

    def __init__(self, log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = log
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, str(log)), daemon=True)
        with no_main():
            self._process.start()
        theirs.close()

    def ask(self, command: str, **options: Any) -> dict[str, Any]:
        """The worker's answer; its LccError is raised here again."""
        self.send(command, **options)
        return self.receive(command)

    def send(self, command: str, **options: Any) -> None:
        """Give a command without waiting for its answer."""
        with suppress(BrokenPipeError):
            self._pipe.send({"command": command, **options})

    def receive(self, command: str) -> dict[str, Any]:
        """The answer to the oldest command that has none yet."""
        try:
            reply: dict[str, Any] = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(1)
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-800:]
            raise AssertionError(f"the measuring process died at {command!r}: {tail}") from None
        if "error" in reply:
            raise getattr(errors, reply["kind"], errors.LccError)(reply["error"])
        return reply

    def close(self) -> None:
        """End the process: by hanging up, so that it tidies its own, or else by force."""
        self._pipe.close()
        self._process.join(GRACE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def workers(folder: Path, names: list[str], *, threads: int) -> Iterator[dict[str, MeasuringProcess]]:
    """One worker per name, all ended at the end."""
    started: dict[str, MeasuringProcess] = {}
    try:
        for number, name in enumerate(names):
            started[name] = MeasuringProcess(folder / f"bench-{number}.log")
        cpus = quiet_cpus(threads)
        for worker in started.values():
            worker.ask("start", threads=threads, cpus=cpus)
        yield started
    finally:
        for worker in started.values():
            worker.close()


class MeasuringWorker:
    """The worker's side: one model in memory and the clock."""

    def __init__(self) -> None:
        self.module: Any = None
        self.session: Any = None  # where the model writes and its answers can be timed
        self.device = "cpu"
        self.baseline = 0
        self.load_peak = 0

    def start(self, threads: int, cpus: list[int]) -> dict[str, Any]:
        """Import what is heavy, fix the threads and, where the system can, pin them to `cpus`."""
        _ = transformers.AutoModelForCausalLM
        torch.set_num_threads(threads)
        if cpus:
            os.sched_setaffinity(0, cpus)
        return {"threads": torch.get_num_threads()}

    def spent(self) -> dict[str, Any]:
        """Nothing but the CPU seconds that stand in every reply."""
        return {}

    def load(self, model: str, native: bool, device: str, dtype: str, slots: int) -> dict[str, Any]:
        """Read a model folder; memory before it is the baseline.

        What writes answers is opened as `lcc infer` opens it, unless it is to run `native`, by
        transformers in its packed format.
        """
        from lcc.inference.quantized_linear import num_parameters
        from lcc.inference.session import Opening, opened
        from lcc.models.bundle import open_bundle

        torch.zeros(1).to(device)
        bundle: Bundle = open_bundle(Path(model))
        self.baseline, started = memory_bytes("VmRSS"), time.perf_counter()
        if native or bundle.card.head not in ("causal", "seq2seq"):
            self.module = bundle.load(device=device, dtype=dtype, native=native).eval()
        else:
            opening = Opening(torch.get_num_threads(), slots=slots, device=device, dtype=dtype)
            session: Any = opened("transformers", {}, Path(model), opening)
            self.module = session.module
            # One that takes requests whole has no first token to time; `generate` has.
            self.session = session if "continuous" in session.abilities else None
        self.device, seconds = device, time.perf_counter() - started
        self.load_peak = memory_bytes("VmHWM")
        _forget_peak()
        backend = bundle.card.format if native else _backend(self.module, bundle)
        context = None if self.session is None else self.session.context
        return {
            "parameters": num_parameters(self.module),
            "seconds": seconds,
            "backend": backend,
            "context": context,
        }

    def measure(self, prompts: list[list[int]], new_tokens: int, requests: int) -> dict[str, Any]:
        """Seconds until the first token and until the last, one figure per request.

        Without `new_tokens` (an encoder) a request is one forward pass.
        """
        from lcc.evaluation.generate import token_times
        from lcc.tasks.encode import padded

        if self.session is not None:
            first, whole = zip(*(self._answered(prompts, new_tokens) for _ in range(requests)), strict=True)
            return {"first_seconds": list(first), "whole_seconds": list(whole)}
        # It would warn before every request that generation does not stop, which is the point.
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

        is_decoder = new_tokens > 0
        left = is_decoder and not self.module.config.is_encoder_decoder
        ids, mask = padded(prompts, 0, left=left, device=self.device)
        if not is_decoder:
            passes = [self._timed(lambda: self._forward(ids, mask)) for _ in range(requests)]
            return {"first_seconds": passes, "whole_seconds": passes}
        times = [token_times(self.module, ids, mask, num_new=new_tokens) for _ in range(requests)]
        return {"first_seconds": [t[0] for t in times], "whole_seconds": [t[-1] for t in times]}

    def _answered(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
        """Seconds until all of these have a token, and until all have as many."""
        from lcc.inference.session import Request

        started, first = time.perf_counter(), 0.0
        waiting = {self.session.start(Request(tuple(ids), new_tokens, ignore_ends=True)) for ids in prompts}
        silent = set(waiting)
        while waiting:
            steps = self.session.step()
            silent -= {step.handle for step in steps}
            waiting -= {step.handle for step in steps if step.finish is not None}
            if not silent and not first:
                first = time.perf_counter() - started
        return first, time.perf_counter() - started

    def memory(self) -> dict[str, Any]:
        """Most memory since loading, absolute and beyond what the libraries take."""
        if self.device == "cuda":
            peak = int(torch.cuda.max_memory_allocated())
            return {"peak": peak, "model": peak, "load_peak": peak}
        peak = memory_bytes("VmHWM")
        return {"peak": peak, "model": peak - self.baseline, "load_peak": self.load_peak}

    def machine(self) -> dict[str, Any]:
        """Memory bandwidth (triad, bytes/s) and float32 matrix product (FLOP/s), best of a few."""
        a, b, c = (torch.ones(TRIAD) for _ in range(3))
        triad = min(self._timed(lambda: torch.add(b, c, alpha=2.0, out=a)) for _ in range(NUM_TRIES))
        left, right = torch.ones(MATRIX, MATRIX), torch.ones(MATRIX, MATRIX)
        product = min(self._timed(lambda: left @ right) for _ in range(2 * NUM_TRIES))
        return {"bandwidth": 3 * 4 * TRIAD / triad, "flops": 2 * MATRIX**3 / product}

    def _forward(self, ids: Any, mask: Any) -> None:
        with torch.inference_mode():
            self.module(input_ids=ids, attention_mask=mask)

    def _timed(self, work: Callable[[], object]) -> float:
        from lcc.evaluation.generate import wait

        wait(self.device)
        started = time.perf_counter()
        work()
        wait(self.device)
        return time.perf_counter() - started


def _backend(module: Any, bundle: Bundle) -> str:
    """How its weights are multiplied here."""
    from lcc.inference.quantized_linear import PackedLinear

    if any(isinstance(layer, PackedLinear) for layer in module.modules()):
        return "as stored"
    return "dequantized" if bundle.card.form == "packed" else "dense"


def quiet_cpus(num: int) -> list[int]:
    """The `num` cores with the least to do just now; empty where all are wanted or none can be."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if num >= len(allowed):
        return []
    before = busy_ticks()
    time.sleep(LOOK_SECONDS)
    after = busy_ticks()
    busy = {cpu: after.get(cpu, 0) - before.get(cpu, 0) for cpu in allowed}
    return sorted(allowed, key=lambda cpu: (busy[cpu], cpu))[:num]


def memory_bytes(line: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of this process; where /proc is missing, always the peak."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = next(row for row in status.splitlines() if row.startswith(f"{line}:"))
    return int(row.split()[1]) * 1024


def _forget_peak() -> None:
    """Ask the kernel to forget the peak of loading; where it cannot, the peak includes it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def serve(pipe: Connection, log: str) -> None:
    """Answer every command until the other end closes; what is printed goes to `log`."""
    for number in signals.ASKING:
        # A scheduler asks every process of a job to stop; the client hangs up when it is time.
        signal.signal(number, signal.SIG_IGN)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    measuring = MeasuringWorker()
    while True:
        try:
            options = pipe.recv()
        except EOFError:
            return
        work = getattr(measuring, options.pop("command"))
        try:
            reply = {**work(**options), "cpu_seconds": time.process_time()}
        except errors.LccError as error:
            reply = {"error": str(error), "kind": type(error).__name__}
        pipe.send(reply)


# Models that take turns: what each turn measured, what it comes to, and who else was running.

NOTABLE = 0.03  # a difference that every round shows and that is larger than this is called one
BUSY = 0.25  # foreign load, in cores, above which the figures are not to be trusted


@dataclass
class BenchmarkedModel:
    """One checkpoint in one backend, and everything measured of it."""

    name: str
    folder: Path
    prompts: list[list[int]]
    new_tokens: int
    batch_sizes: tuple[int, ...]
    native: bool = False
    loaded: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    turns: dict[int, list[dict[str, list[float]]]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name}, in its own format" if self.native else self.name

    @property
    def backend(self) -> str:
        """How its weights were multiplied, as its process says."""
        return str(self.loaded["backend"])

    def opened(self, loaded: dict[str, Any]) -> None:
        """Its process has the model; prompts leave room for what is to be written."""
        self.loaded, context = loaded, loaded["context"]
        if context is not None:
            self.prompts = [ids[-max(1, context - self.new_tokens) :] for ids in self.prompts]

    def turn(self, worker: MeasuringProcess, size: int, *, warm: bool, requests: int) -> None:
        """One turn at one batch size; a warm-up turn is not kept."""
        tokens = min(2, self.new_tokens) if warm else self.new_tokens
        seconds = worker.ask("measure", prompts=self.prompts[:size], new_tokens=tokens, requests=requests)
        if not warm:
            self.turns.setdefault(size, []).append(seconds)

    def rows(self) -> list[dict[str, Any]]:
        """One row per batch size for the table `speed`."""
        return [self._row(size) for size in self.batch_sizes]

    def rates(self, size: int) -> list[float]:
        """One figure per round: decoded tokens a second, or an encoder's texts a second."""
        rates = []
        for turn in self.turns[size]:
            pairs = zip(turn["first_seconds"], turn["whole_seconds"], strict=True)
            seconds = [whole - first if self.new_tokens else whole for first, whole in pairs]
            rates.append(size * max(1, self.new_tokens - 1) / median(seconds))
        return rates

    def _row(self, size: int) -> dict[str, Any]:
        turns = self.turns[size]
        first = [s for turn in turns for s in turn["first_seconds"]]
        whole = [s for turn in turns for s in turn["whole_seconds"]]
        num_prompt = sum(map(len, self.prompts[:size]))
        rate = median(self.rates(size))
        return {
            "checkpoint": self.name,
            "backend": self.backend,
            "batch_size": size,
            "prefill_tokens_per_second": num_prompt / median(first),
            "decode_tokens_per_second": rate if self.new_tokens else None,
            "texts_per_second": None if self.new_tokens else rate,
            "latency_p50_seconds": _quantile(whole, 0.5),
            "latency_p99_seconds": _quantile(whole, 0.99),
            "num_requests": len(whole),
            "prompt_tokens": num_prompt / size,
            "new_tokens": self.new_tokens,
            "peak_memory_bytes": self.memory["peak"],
            "model_memory_bytes": self.memory["model"],
            "load_peak_memory_bytes": self.memory["load_peak"],
            "load_seconds": self.loaded["seconds"],
            "parameters": None if self.native else self.loaded["parameters"],
            "disk_bytes": folder_bytes(self.folder),
        }


@dataclass
class Load:
    """What other processes did meanwhile, from the system's own counters."""

    started: float = field(default_factory=time.monotonic)
    busy: float | None = field(default_factory=lambda: _busy_seconds())
    average: float = field(default_factory=lambda: os.getloadavg()[0])

    def foreign(self, ours: float) -> float | None:
        """Cores kept busy by others on average; `ours` are our workers' CPU seconds."""
        now = _busy_seconds()
        if now is None or self.busy is None:
            return None
        own = ours + time.process_time()
        return max(0.0, (now - self.busy - own) / (time.monotonic() - self.started))

    def warnings(self, ours: float) -> list[str]:
        foreign = self.foreign(ours)
        if foreign is None or foreign <= BUSY:
            return []
        return [
            f"Other processes kept {foreign:.1f} of {cores()} cores busy meanwhile; "
            "measure again on a quiet machine before relying on these speeds."
        ]


def _busy_seconds() -> float | None:
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, line.split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def verdicts(measured_models: list[BenchmarkedModel]) -> list[str]:
    """One sentence per checkpoint: against the first, and in its own format against itself."""
    first, sentences = measured_models[0], []
    size = first.batch_sizes[0]
    for benchmarked in measured_models[1:]:
        if benchmarked.native:
            ours = next(r for r in measured_models if r.name == benchmarked.name and not r.native)
            sentences.append(_native_verdict(benchmarked, ours, size))
        elif benchmarked.new_tokens == first.new_tokens:
            sentences.append(_verdict(benchmarked, first, size))
    return sentences


def _verdict(benchmarked: BenchmarkedModel, first: BenchmarkedModel, size: int) -> str:
    pairs = zip(benchmarked.rates(size), first.rates(size), strict=True)
    ratios = [mine / theirs for mine, theirs in pairs]
    what = "decoding" if benchmarked.new_tokens else "the forward pass"
    spread = f"{min(ratios):.2f}–{max(ratios):.2f} × {first.name}, {len(ratios)} rounds"
    if len(ratios) < 2:
        return f"{benchmarked.name}: {ratios[0]:.2f} × {first.name} in one round, which shows nothing."
    if min(ratios) > 1 + NOTABLE:
        return f"{benchmarked.name}: {what} is {median(ratios):.2f} × as fast ({spread})."
    if max(ratios) < 1 - NOTABLE:
        return f"{benchmarked.name}: {what} is slower, {median(ratios):.2f} × ({spread})."
    return f"{benchmarked.name}: no clear difference in the speed of {what} ({spread})."


def _native_verdict(benchmarked: BenchmarkedModel, ours: BenchmarkedModel, size: int) -> str:
    ratio = median(benchmarked.rates(size)) / median(ours.rates(size))
    return (
        f"{benchmarked.name}: transformers reads it as {benchmarked.backend}, at {ratio:.2f} × the speed "
        "that it has here."
    )


def _quantile(values: list[float], share: float) -> float:
    """The nearest-rank quantile: with few requests, p99 is the slowest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
