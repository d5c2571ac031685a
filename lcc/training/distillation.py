"""Distillation losses: a teacher's sampled logits, kept or online, and hidden states through fixed maps.

Keeping only the largest logits teaches a student that the rest has no probability; sampling is
unbiased (Anshumann et al., Sparse Logit Sampling, arXiv 2503.16870): with ids drawn from
q ∝ pᵗ and weights p / (n q), the expected weight of every token is its probability p.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lcc.core import signals
from lcc.core.disk import write_text
from lcc.core.errors import DataError
from lcc.core.lazy import safetensors, torch
from lcc.core.progress import Progress
from lcc.distributed.dist import SINGLE, Dist
from lcc.models.safetensors_io import entry, is_sealed, write_file
from lcc.training.batches import IGNORED, Batch, LogitsOf, collate, micro_batches
from lcc.training.packing import laid_out

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Head
    from lcc.training.batches import EncodedExamples

PART = 256  # examples in one file
SETTINGS = "settings.json"


@dataclass(frozen=True)
class TeacherSampling:
    """How a teacher is sampled; `proposal` is t above."""

    num_samples: int
    temperature: float
    proposal: float
    seed: int


def draw(logits: Tensor, sampling: TeacherSampling, *, generator: Any) -> Samples:
    """Tokens (targets, num_samples) with their weights, and the teacher's entropy."""
    log_p = (logits.float().cpu() / sampling.temperature).log_softmax(-1)
    log_q = (log_p * sampling.proposal).log_softmax(-1)
    ids = torch.multinomial(log_q.exp(), sampling.num_samples, replacement=True, generator=generator)
    weights = (log_p.gather(1, ids) - log_q.gather(1, ids)).exp() / sampling.num_samples
    entropy = -(log_p.exp() * log_p).nan_to_num().sum(-1)
    return Samples(ids, weights, entropy)


class SampledLogits:
    """Samples of all training examples, in files of `PART` examples; finished files stay.

    `folder` belongs to one step, whose key names teacher, data and seed.
    """

    def __init__(self, folder: Path, examples: EncodedExamples, sampling: TeacherSampling) -> None:
        self.folder, self.examples, self.sampling = folder, examples, sampling
        self.num_parts = -(-len(examples) // PART)
        self._open: dict[int, Any] = {}

    @property
    def missing(self) -> list[int]:
        """Parts that no earlier run has finished."""
        return [part for part in range(self.num_parts) if not self._file(part).is_file()]

    def fill(
        self,
        teacher: LogitsOf,
        *,
        head: Any,
        pad: int,
        device: str,
        micro_tokens: int,
        progress: Progress,
        dist: Dist = SINGLE,
    ) -> None:
        """Run the teacher over the examples of the missing parts, each process over its own."""
        if dist.is_main:
            self._prepare()
            for part in self._damaged():
                progress.warn(f"{self._file(part)} is damaged and will be made again.")
                self._file(part).unlink()
        dist.barrier()
        missing = self.missing
        dist.barrier()  # Nobody writes before all have looked.
        with progress.track("sample the teacher", len(missing[dist.rank :: dist.world_size]), "part") as bar:
            for part in missing[dist.rank :: dist.world_size]:
                self._write(part, self._sampled(part, teacher, micro_tokens, head, pad, device))
                bar.advance()
        dist.barrier()

    def __call__(self, indices: Sequence[int]) -> Samples:
        """The samples of these examples' targets, one below the other."""
        samples = [self._read(index) for index in indices]
        return Samples(*(torch.cat(column) for column in zip(*samples, strict=True)))

    def _sampled(
        self, part: int, teacher: LogitsOf, micro_tokens: int, head: Any, pad: int, device: str
    ) -> list[Samples]:
        members = self._members(part)
        done: dict[int, Samples] = {}
        for piece in micro_batches(members, self.examples.lengths, micro_tokens=micro_tokens):
            signals.check("sample the teacher")
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

    def _write(self, part: int, samples: list[Samples]) -> None:
        ids, weights, entropy = (torch.cat(column) for column in zip(*samples, strict=True))
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
        ids, weights, entropy = (file.get_slice(name)[first:last] for name in ("ids", "weights", "entropy"))
        return ids.long(), weights, entropy

    def _prepare(self) -> None:
        """Parts that were sampled otherwise are of no use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / SETTINGS
        facts = {**asdict(self.sampling), "targets": self.examples.targets}
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == facts:
            return
        for part in self.folder.glob("*.safetensors"):
            part.unlink()
        write_text(file, json.dumps(facts))

    def _damaged(self) -> list[int]:
        parts = range(self.num_parts)
        return [p for p in parts if self._file(p).is_file() and not is_sealed(self._file(p))]

    def _file(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.safetensors"


# What a student is shown of its teacher: logits or hidden states, in the student's vocabulary.

StatesOf = Callable[[Batch], tuple["Tensor", "Sequence[Tensor]"]]
"""Logits at the targets, and the hidden state there before the first block and after every one."""

RIDGE = 1e-3  # of the mean squared state: what keeps a projection small where nothing is seen


def vocabulary_map(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, *, stage: str = "training"
) -> list[int] | None:
    """The teacher's id of every token of the student; None where both number alike.

    Raises DataError for a token that the teacher does not know: a cut vocabulary has none.
    """
    known, own = teacher.get_vocab(), student.get_vocab()
    if known == own:
        return None
    strange = next((token for token in own if token not in known), None)
    if strange is not None or sorted(own.values()) != list(range(len(own))):
        raise DataError(
            f"{stage}.teacher: it does not know the token {strange!r}; choose a teacher with the"
            " same vocabulary, or with one that the model's was cut from."
        )
    return [known[token] for token, _ in sorted(own.items(), key=lambda item: item[1])]


def renumbered(batch: Batch, ids: Tensor) -> Batch:
    """The batch in the teacher's numbers: `ids`[the student's id] is the teacher's."""
    inputs = dict(batch.inputs)
    for name in {"input_ids", "labels"} & inputs.keys():
        known = inputs[name].clamp(min=0)
        inputs[name] = torch.where(inputs[name] == IGNORED, inputs[name], ids[known])
    return replace(batch, inputs=inputs)


def mapped_logits(logits: LogitsOf, ids: Tensor, head: Head) -> LogitsOf:
    """The teacher's logits of the student's tokens, whose softmax is over them alone."""
    if head in ("classify", "extract"):
        return lambda batch: logits(renumbered(batch, ids))
    return lambda batch: logits(renumbered(batch, ids))[:, ids]


def states_function(model: Any, head: Head) -> StatesOf:
    """Logits and hidden states of one forward; of a classifier, at every token but padding."""
    if head == "extract":
        raise DataError(
            "distill: hidden states are not compared for the head extract; leave hidden_weight out."
        )

    def states(batch: Batch) -> tuple[Tensor, Sequence[Tensor]]:
        inputs = dict(batch.inputs)
        if head == "seq2seq":
            own = model.get_base_model() if hasattr(model, "get_base_model") else model
            labels = inputs.pop("labels")
            inputs["decoder_input_ids"] = own.prepare_decoder_input_ids_from_labels(labels=labels)
        cache = {} if head == "classify" else {"use_cache": False}
        with laid_out(batch.lengths):
            output = model(**inputs, **cache, output_hidden_states=True)
        seen = output.decoder_hidden_states if head == "seq2seq" else output.hidden_states
        at = inputs["attention_mask"].bool() if batch.positions is None else batch.positions
        logits = output.logits if batch.positions is None else output.logits[at]
        return logits, [state[at] for state in seen]

    return states


def mapped_states(states: StatesOf, ids: Tensor, head: Head) -> StatesOf:
    """The same of a teacher with other numbers."""

    def mapped(batch: Batch) -> tuple[Tensor, Sequence[Tensor]]:
        logits, seen = states(renumbered(batch, ids))
        return (logits if head == "classify" else logits[:, ids]), seen

    return mapped


def layer_pairs(num_student: int, num_teacher: int) -> list[tuple[int, int]]:
    """After which block of the teacher a student's block should stand: spread evenly."""
    return [(i, round(i * num_teacher / num_student)) for i in range(1, num_student + 1)]


@dataclass(frozen=True)
class HiddenMatch:
    """The student's states should be the teacher's, through a fixed map where widths differ."""

    student: StatesOf
    teacher: StatesOf
    weight: float
    maps: Mapping[int, Tensor]  # student's block → (its width, the teacher's); none: equal widths

    def loss(self, own: Sequence[Tensor], shown: Sequence[Tensor], num_targets: int) -> Tensor:
        """Mean over blocks and positions of ‖Δ‖² / ‖teacher‖², times the targets."""
        errors = []
        for i, j in layer_pairs(len(own) - 1, len(shown) - 1):
            state, wanted = own[i].float(), shown[j].float()
            mapped = state @ self.maps[i] if self.maps else state
            scale = wanted.square().sum(-1).clamp(min=1e-12)
            errors.append(((mapped - wanted).square().sum(-1) / scale).mean())
        return num_targets * torch.stack(errors).mean()


def fit_maps(student: StatesOf, teacher: StatesOf, batches: Sequence[Batch]) -> dict[int, Tensor]:
    """Least-squares maps from the student's states to the teacher's, before training.

    They stay as they are: a map that trains along would take over what the student should learn.
    """
    own: dict[int, list[Tensor]] = {}
    shown: dict[int, list[Tensor]] = {}
    with torch.no_grad():
        for batch in batches:
            _, mine = student(batch)
            _, theirs = teacher(batch)
            for i, j in layer_pairs(len(mine) - 1, len(theirs) - 1):
                own.setdefault(i, []).append(mine[i].double())
                shown.setdefault(i, []).append(theirs[j].double())
    if all(own[i][0].shape[-1] == shown[i][0].shape[-1] for i in own):
        return {}
    return {i: _ridge(torch.cat(own[i]), torch.cat(shown[i])) for i in own}


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    gram = x.T @ x
    strength = RIDGE * gram.diagonal().mean()
    regular = gram + strength * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solution: Tensor = torch.linalg.solve(regular, x.T @ y)
    return solution.float()


class Samples(NamedTuple):
    """Tokens drawn from a teacher at each target: expected weights are its probabilities."""

    ids: Tensor  # (num_targets, samples)
    weights: Tensor  # (num_targets, samples)
    entropy: Tensor  # (num_targets,), of the teacher


@dataclass(frozen=True)
class Distillation:
    """A frozen teacher's logits, and how much they count.

    `samples` stand in place of a `teacher` that is not run any more; `hidden` compares states too.
    """

    teacher: LogitsOf | None
    weight: float
    temperature: float
    samples: Callable[[Sequence[int]], Samples] | None = None
    hidden: HiddenMatch | None = None


def sampled_loss(
    logits: Tensor,
    targets: Tensor,
    samples: Samples,
    *,
    label_smoothing: float = 0.0,
    weight: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """`summed_loss` with a teacher known by samples: its expectation, and its gradient's, is that.

    The samples were drawn at the same temperature.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    loss = torch.nn.functional.cross_entropy(
        logits, targets, reduction="sum", label_smoothing=label_smoothing
    )
    ids, weights, entropy = (tensor.to(logits.device) for tensor in samples)
    student_log = torch.nn.functional.log_softmax(logits / temperature, dim=-1)
    divergence = -(weights * student_log.gather(1, ids)).sum() - entropy.sum()
    return (1 - weight) * loss + weight * temperature**2 * divergence
