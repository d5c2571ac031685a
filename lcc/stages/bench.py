"""Benchmark every checkpoint of a run in turns: speed, latency, size, memory, the machine's rates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.disk import folder_bytes
from lcc.core.errors import DataError, ResourceError
from lcc.core.format import size
from lcc.core.lazy import torch
from lcc.core.machine import available_bytes
from lcc.core.progress import Measure
from lcc.evaluation.metrics import chosen_rows
from lcc.inference.benchmark import BenchmarkedModel, Load, MeasuringProcess, verdicts, workers
from lcc.models.bundle import open_bundle
from lcc.pipeline.stage import Outcome

if TYPE_CHECKING:
    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

PREFIX = "checkpoint."
NATIVE_TOKENS = 3  # packed weights without a fast kernel run at about one token a second


@card
class Bench:
    """Prefill, decode, latency, memory and size of every checkpoint, interleaved round by round.

    Models that write are run as `lcc infer` runs them, packed ones by transformers in their own
    format too. Prompts are the task's own from the test split; `prompt_tokens` is the length of
    those made up for a task without a prompt.
    """

    reads: ClassVar[tuple[Noun, ...]] = ("task", "data", "device", "dtype")
    accepts: ClassVar[tuple[Form, ...]] = ()
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "bench"
    revision: ClassVar[int] = 3  # 2 measured transformers' own loop on dense weights

    rounds: Annotated[int, Field(ge=1)] = 3
    requests: Annotated[int, Field(ge=1)] = 3
    new_tokens: Annotated[int, Field(ge=2)] = 32
    prompt_tokens: Annotated[int, Field(ge=1)] = 32
    batch_sizes: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 8)

    def run(self, bundle: Bundle | None, context: Context) -> Outcome:
        folders = {
            name.removeprefix(PREFIX): path / "model"
            for name, path in context.inputs.items()
            if name.startswith(PREFIX)
        }
        if not folders:
            raise DataError("bench: the run has no checkpoint to measure.")
        measured_models = list(self._measured_models(folders, context))
        _require_memory(measured_models)
        load, threads = Load(), torch.get_num_threads()
        with workers(
            context.state, [benchmarked.label for benchmarked in measured_models], threads=threads
        ) as running:
            empty = running[measured_models[-1].label]  # measures the machine before it loads its model
            machine = empty.ask("machine")
            for benchmarked in measured_models:
                benchmarked.opened(
                    running[benchmarked.label].ask(
                        "load",
                        model=str(benchmarked.folder),
                        native=benchmarked.native,
                        device=context.device,
                        dtype=context.dtype,
                        slots=max(self.batch_sizes),
                    )
                )
            self._race(measured_models, running, context)
            for benchmarked in measured_models:
                benchmarked.memory = running[benchmarked.label].ask("memory")
            again = empty.ask("machine")
            ours = sum(worker.ask("spent")["cpu_seconds"] for worker in running.values())
        outcome = Outcome(measures=_machine_measures(machine, again, load, ours))
        outcome.tables["speed"] = [row for benchmarked in measured_models for row in benchmarked.rows()]
        outcome.notes += verdicts(measured_models)
        outcome.warnings += load.warnings(ours)
        return outcome

    def _measured_models(self, folders: dict[str, Path], context: Context) -> Iterator[BenchmarkedModel]:
        for name, folder in folders.items():
            bundle = open_bundle(folder)
            prompts = self._prompts(bundle, context)
            new_tokens = self.new_tokens if bundle.card.head in ("causal", "seq2seq") else 0
            yield BenchmarkedModel(name, folder, prompts, new_tokens, self.batch_sizes)
            if bundle.card.form == "packed":
                # Enough to see whether a fast kernel stands behind the format, and no more.
                few = min(new_tokens, NATIVE_TOKENS)
                yield BenchmarkedModel(name, folder, prompts, few, self.batch_sizes[:1], native=True)

    def _prompts(self, bundle: Bundle, context: Context) -> list[list[int]]:
        """As many prompts as the largest batch, real ones where the task has them."""
        num, task = max(self.batch_sizes), context.required_task
        rows = context.data.rows("test") if "data" in context.inputs else []
        prompts = []
        for row in chosen_rows(rows, num, "test") if rows else []:
            ids = task.prompt_ids(row, bundle.tokenizer)
            if len(ids) < 2:
                ids = bundle.tokenizer(task.text(row))["input_ids"][: self.prompt_tokens]
            prompts.append(ids[-self.prompt_tokens * 8 :])
        if not prompts:
            size = len(bundle.tokenizer)
            prompts = [[(7 * i + 3) % size for i in range(self.prompt_tokens)]]
        return [prompts[i % len(prompts)] for i in range(num)]

    def _race(
        self, measured_models: list[BenchmarkedModel], running: dict[str, MeasuringProcess], context: Context
    ) -> None:
        total = self.rounds * sum(len(benchmarked.batch_sizes) for benchmarked in measured_models)
        with context.progress.track("measure", total=total, unit="turn") as bar:
            for number in range(-1, self.rounds):
                for benchmarked in measured_models:
                    for size in benchmarked.batch_sizes:
                        if not benchmarked.native or number <= 0:
                            requests = 1 if number < 0 or benchmarked.native else self.requests
                            benchmarked.turn(
                                running[benchmarked.label], size, warm=number < 0, requests=requests
                            )
                        bar.advance(1 if number >= 0 else 0)


def _machine_measures(
    before: dict[str, Any], after: dict[str, Any], load: Load, ours: float
) -> dict[str, Measure]:
    return {
        "memory_bandwidth": Measure(max(before["bandwidth"], after["bandwidth"]), "bytes/s"),
        "matrix_product": Measure(max(before["flops"], after["flops"]), "FLOP/s"),
        "threads": Measure(torch.get_num_threads(), "count"),
        "load_average_before": Measure(round(load.average, 2)),
        "load_average_after": Measure(round(os.getloadavg()[0], 2)),
        "foreign_load": Measure(load.foreign(ours), "cores"),
    }


def _require_memory(measured_models: list[BenchmarkedModel]) -> None:
    """All models stay loaded while they take turns; four bytes a parameter, two on disk."""
    free = available_bytes()
    needed = sum(4 * folder_bytes(benchmarked.folder) for benchmarked in measured_models)
    if free is not None and needed > free:
        raise ResourceError(
            f"bench: {len(measured_models)} models in turns need about {size(needed)} of memory, "
            f"{size(free)} are free; name fewer in stages.bench.checkpoints."
        )
