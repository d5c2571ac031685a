"""How a training step gets at its teacher: run beside it, or sampled once and put away."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lcc.core.decode import card
from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.engine.batching import micro_batches
from lcc.engine.objectives import Distillation, LogitsOf, collate
from lcc.engine.packing import allow_packing
from lcc.engine.projecting import logits_function
from lcc.engine.sampled_logits import SampledLogits, Sampling
from lcc.engine.teaching import (
    HiddenMatch,
    fit_maps,
    mapped_logits,
    mapped_states,
    states_function,
    vocabulary_map,
)
from lcc.parts.model import Bundle, has_tokenizer
from lcc.parts.tensor_files import StoredTensors, entry, require_sealed, write_file

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.engine.stepping import Stepper
    from lcc.engine.supply import Examples
    from lcc.stage import Context

CLASSES = ("classify", "extract")  # heads whose logits are of no vocabulary
NUM_COMPARED = 8  # rows that both tokenizers must split alike
NUM_FITTED = 32  # micro-batches that maps between widths are fitted on


@card
class Teaching:
    """loss = (1 - weight) CE + weight · temperature² · KL(teacher ‖ student), per target.

    `cached` runs the teacher once and keeps `num_samples` sampled tokens per target (drawn from the
    teacher's distribution to the power `proposal`), unbiased; `online` runs it beside the student.
    `hidden_weight` adds the relative squared distance of the hidden states, blocks spread evenly.
    """

    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0
    mode: Literal["online", "cached"] = "online"
    num_samples: Annotated[int, Field(ge=1)] = 64
    proposal: Annotated[float, Field(gt=0)] = 1.0
    hidden_weight: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.hidden_weight and self.mode == "cached":
            raise ValueError("hidden states are not kept; use mode: online with hidden_weight")


@dataclass(frozen=True)
class Lesson:
    """A teacher by its name, and the training that it is for."""

    name: str
    options: Teaching
    stepper: Stepper
    train: Examples

    def distillation(self, bundle: Bundle, context: Context) -> Distillation:
        """What the training is to compare with; samples the teacher first where it is `cached`."""
        how, samples = self.options, None
        if how.mode == "cached":
            sampling = Sampling(how.num_samples, how.temperature, how.proposal, context.seed)
            samples = SampledLogits(context.state / "teacher", self.train, sampling)
            self._sample(samples, bundle, context)
            return Distillation(None, how.weight, how.temperature, samples=samples)
        teacher, ids = self._open(bundle, context)
        logits = self._logits(teacher, ids)
        hidden = self._hidden(teacher, ids, context) if how.hidden_weight else None
        return Distillation(logits, how.weight, how.temperature, hidden=hidden)

    def _open(self, bundle: Bundle, context: Context) -> tuple[Any, Tensor | None]:
        """The frozen teacher, and its numbers of the student's tokens where they are others."""
        opened = context.open("teacher")
        teacher = opened.load(device=context.device, dtype=context.dtype)
        teacher.requires_grad_(False).eval()
        if self.stepper.packing:
            allow_packing(teacher)
        ids = self._ids(bundle, opened, context)
        own, theirs = _num_classes(self.stepper.model), _num_classes(teacher)
        if ids is None and own != theirs and self.stepper.head not in CLASSES:
            ids = _shared_ids(bundle, opened)  # Equal tokenizers under embeddings of other lengths.
        fits = own == theirs if self.stepper.head in CLASSES or ids is None else (
            len(ids) <= own and max(ids) < theirs
        )  # fmt: skip
        if not fits:
            raise DataError(
                f"finetune.teacher: {self.name!r} predicts {theirs} classes, the model "
                f"{own}; choose a teacher with the same vocabulary (after `vocab`)."
            )
        found = None if ids is None else torch.tensor(ids, device=context.device)
        return teacher, found

    def _ids(self, bundle: Bundle, teacher: Bundle, context: Context) -> list[int] | None:
        if not _have_tokenizers(bundle, teacher):
            return None
        ids = vocabulary_map(bundle.tokenizer, teacher.tokenizer)
        if ids is None:
            return None
        task = context.required_task.for_data(context.data)
        for row in islice(context.data.rows("train"), NUM_COMPARED):
            own, theirs = (
                task.encode(row, tokenizer, max_length=1 << 20).input_ids
                for tokenizer in (bundle.tokenizer, teacher.tokenizer)
            )
            if [ids[i] for i in own] != theirs:
                raise DataError(
                    f"finetune.teacher: {self.name!r} knows the model's tokens but splits texts"
                    " otherwise; choose a teacher with the same tokenizer."
                )
        return ids

    def _logits(self, teacher: Any, ids: Tensor | None) -> LogitsOf:
        logits = logits_function(teacher, self.stepper.head)
        return logits if ids is None else mapped_logits(logits, ids, self.stepper.head)

    def _sample(self, samples: SampledLogits, bundle: Bundle, context: Context) -> None:
        step = self.stepper
        teacher: LogitsOf | None = None

        def asked(batch: Any) -> Tensor:
            nonlocal teacher
            if teacher is None:  # A finished cache needs no teacher in memory.
                teacher = self._logits(*self._open(bundle, context))
            with step._autocast():
                return teacher(batch)

        samples.fill(
            asked, head=step.head, pad=step.pad, device=step.device,
            micro_tokens=step.micro_tokens, progress=context.progress, dist=context.dist,
        )  # fmt: skip

    def _hidden(self, teacher: Any, ids: Tensor | None, context: Context) -> HiddenMatch:
        head = self.stepper.head
        student, shown = (states_function(m, head) for m in (self.stepper.model, teacher))
        if ids is not None:
            shown = mapped_states(shown, ids, head)
        file = context.state / "maps.safetensors"
        if context.dist.is_main and not file.is_file():
            was_training = self.stepper.model.training
            self.stepper.model.eval()
            maps = fit_maps(student, shown, self._first_batches())
            self.stepper.model.train(was_training)
            # A continued training goes on with the maps of the model it began with.
            write_file([entry(str(i), m) for i, m in maps.items()], file, sealed=True)
        context.dist.barrier()
        require_sealed(file)
        stored = StoredTensors(file)
        maps = {int(name): stored.read(name).to(context.device) for name in stored.entries}
        return HiddenMatch(student, shown, self.options.hidden_weight, maps)

    def _first_batches(self) -> list[Any]:
        step, examples = self.stepper, self.train
        pieces = micro_batches(
            range(len(examples)), examples.lengths, micro_tokens=step.micro_tokens
        )
        chosen = pieces[:: max(1, len(pieces) // NUM_FITTED)]
        rows = ([examples.rows[i] for i in piece] for piece in chosen)
        return [collate(r, head=step.head, pad=step.pad, device=step.device) for r in rows]


def _have_tokenizers(*bundles: Bundle) -> bool:
    return all(b.tokenizer_changed or (b.path and has_tokenizer(b.path)) for b in bundles)


def _shared_ids(student: Bundle, teacher: Bundle) -> list[int] | None:
    return list(range(len(student.tokenizer))) if _have_tokenizers(student, teacher) else None


def _num_classes(model: Any) -> int:
    config = model.config
    is_classifier = type(model).__name__.endswith("ForSequenceClassification")
    return int(config.num_labels if is_classifier else config.get_text_config().vocab_size)
