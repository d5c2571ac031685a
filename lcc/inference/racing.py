"""Models that take turns: what each turn measured, what it comes to, and who else was running."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lcc.core.machine import cores

if TYPE_CHECKING:
    from lcc.inference.benching import Worker

NOTABLE = 0.03  # a difference that every round shows and that is larger than this is called one
BUSY = 0.25  # foreign load, in cores, above which the figures are not to be trusted


@dataclass
class Racer:
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

    def turn(self, worker: Worker, size: int, *, warm: bool, requests: int) -> None:
        """One turn at one batch size; a warm-up turn is not kept."""
        tokens = min(2, self.new_tokens) if warm else self.new_tokens
        found = worker.ask("measure", prompts=self.prompts[:size], new_tokens=tokens,
                           requests=requests)  # fmt: skip
        if not warm:
            self.turns.setdefault(size, []).append(found)

    def rows(self) -> list[dict[str, Any]]:
        """One row per batch size for the table `speed`."""
        return [self._row(size) for size in self.batch_sizes]

    def rates(self, size: int) -> list[float]:
        """One figure per round: decoded tokens a second, or an encoder's texts a second."""
        found = []
        for turn in self.turns[size]:
            pairs = zip(turn["first_seconds"], turn["whole_seconds"], strict=True)
            seconds = [whole - first if self.new_tokens else whole for first, whole in pairs]
            found.append(size * max(1, self.new_tokens - 1) / median(seconds))
        return found

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
            "disk_bytes": disk_bytes(self.folder),
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
        return [f"Other processes kept {foreign:.1f} of {cores()} cores busy meanwhile; "
                "measure again on a quiet machine before relying on these speeds."]  # fmt: skip


def _busy_seconds() -> float | None:
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = map(int, line.split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def verdicts(racers: list[Racer]) -> list[str]:
    """One sentence per checkpoint: against the first, and in its own format against itself."""
    first, told = racers[0], []
    size = first.batch_sizes[0]
    for racer in racers[1:]:
        if racer.native:
            ours = next(r for r in racers if r.name == racer.name and not r.native)
            told.append(_native_verdict(racer, ours, size))
        elif racer.new_tokens == first.new_tokens:
            told.append(_verdict(racer, first, size))
    return told


def _verdict(racer: Racer, first: Racer, size: int) -> str:
    pairs = zip(racer.rates(size), first.rates(size), strict=True)
    ratios = [mine / theirs for mine, theirs in pairs]
    what = "decoding" if racer.new_tokens else "the forward pass"
    spread = f"{min(ratios):.2f}–{max(ratios):.2f} × {first.name}, {len(ratios)} rounds"
    if len(ratios) < 2:
        return f"{racer.name}: {ratios[0]:.2f} × {first.name} in one round, which shows nothing."
    if min(ratios) > 1 + NOTABLE:
        return f"{racer.name}: {what} is {median(ratios):.2f} × as fast ({spread})."
    if max(ratios) < 1 - NOTABLE:
        return f"{racer.name}: {what} is slower, {median(ratios):.2f} × ({spread})."
    return f"{racer.name}: no clear difference in the speed of {what} ({spread})."


def _native_verdict(racer: Racer, ours: Racer, size: int) -> str:
    ratio = median(racer.rates(size)) / median(ours.rates(size))
    return (f"{racer.name}: transformers reads it as {racer.backend}, at {ratio:.2f} × the speed "
            "that it has here.")  # fmt: skip


def _quantile(values: list[float], share: float) -> float:
    """The nearest-rank quantile: with few requests, p99 is the slowest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def disk_bytes(folder: Path) -> int:
    """Everything in a model folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
