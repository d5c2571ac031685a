"""A teacher's logits kept as a few sampled tokens per target, whose weights average to all of them.

Keeping only the largest logits teaches a student that the rest has no probability; sampling is
unbiased (Anshumann et al., Sparse Logit Sampling, arXiv 2503.16870): with ids drawn from
q ∝ pᵗ and weights p / (n q), the expected weight of every token is its probability p.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core import preemption
from lcc.core.lazy import safetensors, torch
from lcc.core.progress import Progress
from lcc.core.writing import write_text
from lcc.engine.batching import micro_batches
from lcc.engine.objectives import LogitsOf, Samples, collate
from lcc.parts.dist import SINGLE, Dist
from lcc.parts.tensor_files import entry, is_sealed, write_file

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.supply import Examples

PART = 256  # examples in one file
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Sampling:
    """How a teacher is sampled; `proposal` is t above."""

    num_samples: int
    temperature: float
    proposal: float
    seed: int


def draw(logits: Tensor, sampling: Sampling, *, generator: Any) -> Samples:
    """Tokens (targets, num_samples) with their weights, and the teacher's entropy."""
    log_p = (logits.float().cpu() / sampling.temperature).log_softmax(-1)
    log_q = (log_p * sampling.proposal).log_softmax(-1)
    ids = torch.multinomial(
        log_q.exp(), sampling.num_samples, replacement=True, generator=generator
    )
    weights = (log_p.gather(1, ids) - log_q.gather(1, ids)).exp() / sampling.num_samples
    entropy = -(log_p.exp() * log_p).nan_to_num().sum(-1)
    return Samples(ids, weights, entropy)


class SampledLogits:
    """Samples of all training examples, in files of `PART` examples; finished files stay.

    `folder` belongs to one step, whose key names teacher, data and seed.
    """

    def __init__(self, folder: Path, examples: Examples, sampling: Sampling) -> None:
        self.folder, self.examples, self.sampling = folder, examples, sampling
        self.num_parts = -(-len(examples) // PART)
        self._open: dict[int, Any] = {}

    @property
    def missing(self) -> list[int]:
        """Parts that no earlier run has finished."""
        return [part for part in range(self.num_parts) if not self._file(part).is_file()]

    def fill(
        self, teacher: LogitsOf, *, head: Any, pad: int, device: str, micro_tokens: int,
        progress: Progress, dist: Dist = SINGLE,
    ) -> None:  # fmt: skip
        """Run the teacher over the examples of the missing parts, each process over its own."""
        if dist.is_main:
            self._prepare()
            for part in self._damaged():
                progress.warn(f"{self._file(part)} is damaged and will be made again.")
                self._file(part).unlink()
        dist.barrier()
        missing = self.missing
        dist.barrier()  # Nobody writes before all have looked.
        with progress.track("sample the teacher", len(missing[dist.rank :: dist.world_size]),
                            "part") as bar:  # fmt: skip
            for part in missing[dist.rank :: dist.world_size]:
                self._write(part, self._sampled(part, teacher, micro_tokens, head, pad, device))
                bar.advance()
        dist.barrier()

    def __call__(self, indices: Sequence[int]) -> Samples:
        """The samples of these examples' targets, one below the other."""
        found = [self._read(index) for index in indices]
        return Samples(*(torch.cat(column) for column in zip(*found, strict=True)))

    def _sampled(
        self, part: int, teacher: LogitsOf, micro_tokens: int, head: Any, pad: int, device: str
    ) -> list[Samples]:
        members = self._members(part)
        done: dict[int, Samples] = {}
        for piece in micro_batches(members, self.examples.lengths, micro_tokens=micro_tokens):
            preemption.check("sample the teacher")
            rows = [self.examples.rows[i] for i in piece]
            with torch.no_grad():
                logits = teacher(collate(rows, head=head, pad=pad, device=device))
            sizes = [self.examples.targets[i] for i in piece]
            for index, own in zip(piece, torch.split(logits, sizes), strict=True):
                dice = random.Random(f"teacher {self.sampling.seed} {index}").getrandbits(63)
                generator = torch.Generator().manual_seed(dice)
                done[index] = draw(own, self.sampling, generator=generator)
        return [done[index] for index in members]

    def _members(self, part: int) -> list[int]:
        return list(range(part * PART, min((part + 1) * PART, len(self.examples))))

    def _write(self, part: int, found: list[Samples]) -> None:
        ids, weights, entropy = (torch.cat(column) for column in zip(*found, strict=True))
        tensors = {"ids": ids.to(torch.int32), "weights": weights, "entropy": entropy}
        write_file([entry(n, t) for n, t in tensors.items()], self._file(part), sealed=True)

    def _read(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        part = index // PART
        if part not in self._open:
            targets = [self.examples.targets[i] for i in self._members(part)]
            file = safetensors.safe_open(self._file(part), framework="pt")
            self._open[part] = file, [0, *accumulate(targets)]
        file, starts = self._open[part]
        first, last = starts[index % PART], starts[index % PART + 1]
        ids, weights, entropy = (
            file.get_slice(name)[first:last] for name in ("ids", "weights", "entropy")
        )
        return ids.long(), weights, entropy

    def _prepare(self) -> None:
        """Parts that were sampled otherwise are of no use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / SETTINGS
        told = {**asdict(self.sampling), "targets": self.examples.targets}
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == told:
            return
        for part in self.folder.glob("*.safetensors"):
            part.unlink()
        write_text(file, json.dumps(told))

    def _damaged(self) -> list[int]:
        parts = range(self.num_parts)
        return [p for p in parts if self._file(p).is_file() and not is_sealed(self._file(p))]

    def _file(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.safetensors"
