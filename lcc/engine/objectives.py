"""What training minimises: summed losses over the targets of a batch, one function per head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.engine.batching import Example
from lcc.engine.feeding import moved

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.teaching import HiddenMatch
    from lcc.parts.checkpoint import Head

IGNORED = -100
LogitsOf = Callable[["Batch"], "Tensor"]
"""Logits (num_targets, classes) at the batch's targets, and nowhere else."""


@dataclass(frozen=True)
class Batch:
    """Examples on the device, padded or packed in one row, and where their targets stand."""

    inputs: dict[str, Tensor]  # what the model's forward takes
    positions: Tensor | None  # (B, T) bool: where a logit is needed; None for one logit per row
    targets: Tensor  # (num_targets,)
    examples: tuple[int, ...] = ()  # which of the training examples they are, in this order
    lengths: tuple[int, ...] | None = None  # of the texts packed in one row
    counts: bool = True  # else it only keeps a rank in step with the others


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


def num_targets(example: Example, head: Head) -> int:
    """How many predictions of `example` are scored."""
    if head == "classify":
        return 1
    labels = _sequence(example)
    return sum(label != IGNORED for label in (labels[1:] if head == "causal" else labels))


def num_tokens(example: Example, head: Head) -> int:
    """Tokens that `example` costs: its input, and its target where that is another sequence."""
    return len(example.input_ids) + (len(_sequence(example)) if head == "seq2seq" else 0)


def collate(examples: Sequence[Example], *, head: Head, pad: int, device: str) -> Batch:
    """Pad on the right to the longest example."""
    ids = _padded([e.input_ids for e in examples], pad)
    mask = _padded([[1] * len(e.input_ids) for e in examples], 0)
    inputs = {"input_ids": moved(ids, device), "attention_mask": moved(mask, device)}
    kinds = [getattr(e, "kinds", None) or [] for e in examples]
    if any(map(any, kinds)):
        inputs["token_type_ids"] = moved(_padded(kinds, 0), device)
    if head in ("classify", "extract"):
        each = [e.labels if isinstance(e.labels, list) else [e.labels] for e in examples]
        # Of a span first where it begins, for every row, then where it ends.
        targets = torch.tensor(each).T.flatten()
        return Batch(inputs, None, moved(targets, device))
    labels = _padded([_sequence(e) for e in examples], IGNORED)
    if head == "seq2seq":
        inputs["labels"] = moved(labels, device)
    elif head == "causal":
        # The logit at t predicts token t + 1.
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    positions = labels != IGNORED
    return Batch(inputs, moved(positions, device), moved(labels[positions], device))


def pack(examples: Sequence[Example], *, device: str) -> Batch:
    """One row without padding, in which every example's positions begin at 0; causal heads only."""
    lengths = tuple(len(e.input_ids) for e in examples)
    ids = torch.tensor([[i for e in examples for i in e.input_ids]])  # (1, T)
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    # An example's last token predicts nothing: what follows it is another example.
    labels = torch.tensor([[i for e in examples for i in (*_sequence(e)[1:], IGNORED)]])
    at = labels != IGNORED
    inputs = {"input_ids": moved(ids, device), "position_ids": moved(positions, device)}
    return Batch(inputs, moved(at, device), moved(labels[at], device), lengths=lengths)


def _sequence(example: Example) -> list[int]:
    assert isinstance(example.labels, list), example
    return example.labels


def _padded(rows: list[list[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])  # (B, T)


def require_loss(head: Head) -> None:
    """Raises DataError for a head that has nothing to be trained towards."""
    if head in ("embed", "paired"):
        raise unsupervised(head)


def unsupervised(head: Head) -> DataError:
    return DataError(f"finetune: a task with the head {head!r} has no supervised loss to train on; "
                    "choose a task with the head causal, seq2seq or classify.")  # fmt: skip


def summed_loss(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, teacher: Tensor | None = None,
    weight: float = 0.0, temperature: float = 1.0,
) -> Tensor:  # fmt: skip
    """(1 - w) CE + w T² KL(teacher ‖ student), summed over the targets (Hinton et al., 2015).

    In float32 at least: half precision loses the tail of a softmax over a large vocabulary.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    functional = torch.nn.functional
    loss = functional.cross_entropy(
        logits, targets, reduction="sum", label_smoothing=label_smoothing
    )
    if teacher is None:
        return loss
    # A model may have rows for more tokens than its tokenizer and its teacher know.
    known = logits[..., : teacher.shape[-1]]
    student_log = functional.log_softmax(known / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher.to(logits.dtype) / temperature, dim=-1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence


def sampled_loss(
    logits: Tensor, targets: Tensor, samples: Samples, *, label_smoothing: float = 0.0,
    weight: float = 0.0, temperature: float = 1.0,
) -> Tensor:  # fmt: skip
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
