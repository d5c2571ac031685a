"""What training minimises: summed losses over the targets of a batch, one function per head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.engine.batching import Example

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.engine.teaching import HiddenMatch
    from lcc.parts.checkpoint import Head

IGNORED = -100
LogitsOf = Callable[["Batch"], "Tensor"]
"""Logits (num_targets, classes) at the batch's targets, and nowhere else."""


@dataclass(frozen=True)
class Batch:
    """Padded examples on the device, and where their targets stand."""

    inputs: dict[str, Tensor]  # what the model's forward takes
    positions: Tensor | None  # (B, T) bool: where a logit is needed; None for one logit per row
    targets: Tensor  # (num_targets,)
    examples: tuple[int, ...] = ()  # which of the training examples they are, in this order


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
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if head == "classify":
        targets = torch.tensor([e.labels for e in examples])
        return Batch(inputs, None, targets.to(device))
    labels = _padded([_sequence(e) for e in examples], IGNORED)
    if head == "seq2seq":
        inputs["labels"] = labels.to(device)
        positions = labels != IGNORED
    else:
        # The logit at t predicts token t + 1.
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        positions = labels != IGNORED
    return Batch(inputs, positions.to(device), labels[positions].to(device))


def _sequence(example: Example) -> list[int]:
    assert isinstance(example.labels, list), example
    return example.labels


def _padded(rows: list[list[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])  # (B, T)


def logits_function(model: Module, head: Head) -> LogitsOf:
    """How to get `model`'s logits at the targets with the least work."""
    if head == "classify":
        return lambda batch: _forward(model, batch.inputs).logits
    if head == "seq2seq":
        return lambda batch: _seq2seq_logits(model, batch)
    if head == "causal":
        return _causal_logits(model)
    raise _unsupervised(head)


def require_loss(head: Head) -> None:
    """Raises DataError for a head that has nothing to be trained towards."""
    if head == "embed":
        raise _unsupervised(head)


def _unsupervised(head: Head) -> DataError:
    return DataError(f"finetune: a task with the head {head!r} has no supervised loss to train on; "
                    "choose a task with the head causal, seq2seq or classify.")  # fmt: skip


def _forward(model: Module, inputs: dict[str, Tensor]) -> Any:
    return model(**inputs)


def _seq2seq_logits(model: Module, batch: Batch) -> Tensor:
    unwrapped = _unwrapped(model)
    labels = batch.inputs["labels"]
    shifted = unwrapped.prepare_decoder_input_ids_from_labels(labels=labels)
    inputs = {k: v for k, v in batch.inputs.items() if k != "labels"}
    hidden = model(**inputs, decoder_input_ids=shifted, use_cache=False)
    assert batch.positions is not None
    logits: Tensor = hidden.logits[batch.positions]
    return logits


def _causal_logits(model: Module) -> LogitsOf:
    """The output matrix is applied at the targets only, when that is all the model's head does."""
    unwrapped = _unwrapped(model)
    body = getattr(unwrapped, unwrapped.base_model_prefix, None)
    output = unwrapped.get_output_embeddings()
    if body is None or body is unwrapped or not _is_plain_head(unwrapped, body, output):
        return lambda batch: model(**batch.inputs, use_cache=False).logits[batch.positions]

    def logits(batch: Batch) -> Tensor:
        hidden = body(**batch.inputs, use_cache=False).last_hidden_state  # (B, T, H)
        found: Tensor = output(hidden[batch.positions])  # (num_targets, V)
        return found

    return logits


def _unwrapped(model: Any) -> Any:
    """The transformers model, with an adapter's layers in it but without peft around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_plain_head(model: Any, body: Any, output: Any) -> bool:
    """Whether logits are the output matrix times the last hidden state (no cap, no scale)."""
    was_training = model.training
    model.eval()
    probe = torch.arange(1, 5, device=output.weight.device).unsqueeze(0)
    with torch.no_grad():
        whole = model(input_ids=probe, use_cache=False).logits
        parts = output(body(input_ids=probe, use_cache=False).last_hidden_state)
    model.train(was_training)
    return bool(torch.allclose(whole, parts, rtol=1e-4, atol=1e-4))


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
