"""What a student is shown of its teacher: logits or hidden states, in the student's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.engine.objectives import IGNORED, Batch, LogitsOf
from lcc.engine.packing import laid_out

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.parts.checkpoint import Head

StatesOf = Callable[[Batch], tuple["Tensor", "Sequence[Tensor]"]]
"""Logits at the targets, and the hidden state there before the first block and after every one."""

RIDGE = 1e-3  # of the mean squared state: what keeps a projection small where nothing is seen


def vocabulary_map(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
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
            f"finetune.teacher: it does not know the token {strange!r}; choose a teacher with the"
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
        raise DataError("finetune.distill: hidden states are not compared for the head extract; "
                        "leave hidden_weight out.")  # fmt: skip

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
            found = state @ self.maps[i] if self.maps else state
            scale = wanted.square().sum(-1).clamp(min=1e-12)
            errors.append(((found - wanted).square().sum(-1) / scale).mean())
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
    found: Tensor = torch.linalg.solve(regular, x.T @ y)
    return found.float()
