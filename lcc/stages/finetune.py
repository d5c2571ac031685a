"""Fine-tune on a task: all weights or an adapter, with or without a teacher, online or from a cache."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import Choice, card, name_of
from lcc.core.errors import DataError, RecipeError
from lcc.core.lazy import torch
from lcc.core.progress import CurveFile
from lcc.core.types import Form
from lcc.distributed.dist import Distributed
from lcc.methods.adapters.lora import Lora
from lcc.methods.clipping.norm import Norm
from lcc.methods.optimizers.adam import AdamW
from lcc.models.adapter_io import zero_masks
from lcc.models.adapters import is_prompt
from lcc.models.blocks import compiled_blocks
from lcc.models.bundle import Bundle, has_tokenizer
from lcc.models.formats import rounds_inputs
from lcc.models.safetensors_io import StoredTensors, entry, require_sealed, write_file
from lcc.pipeline.stage import Noun, Outcome
from lcc.stages._training import load_device, sharded_for, training_measures
from lcc.tasks.encode import pad_id
from lcc.training.batches import EncodedExamples, LogitsOf, collate, micro_batches, require_loss
from lcc.training.distillation import (
    Distillation,
    HiddenMatch,
    SampledLogits,
    TeacherSampling,
    fit_maps,
    mapped_logits,
    mapped_states,
    states_function,
    vocabulary_map,
)
from lcc.training.loss import logits_function, projection_of
from lcc.training.optim import allocation_of, checkpoint_blocks, set_dropout
from lcc.training.packing import allow_packing, require_packable
from lcc.training.step import Stepper
from lcc.training.trainer import Training, TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.pipeline.stage import Context
    from lcc.tasks.task import Task

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
    train: EncodedExamples

    def distillation(self, bundle: Bundle, context: Context) -> Distillation:
        """What the training is to compare with; samples the teacher first where it is `cached`."""
        how, samples = self.options, None
        if how.mode == "cached":
            sampling = TeacherSampling(how.num_samples, how.temperature, how.proposal, context.seed)
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
        fits = (
            own == theirs
            if self.stepper.head in CLASSES or ids is None
            else (len(ids) <= own and max(ids) < theirs)
        )
        if not fits:
            raise DataError(
                f"{self.stepper.stage}.teacher: {self.name!r} predicts {theirs} classes, the model "
                f"{own}; choose a teacher with the same vocabulary (after `vocab`)."
            )
        teacher_ids = None if ids is None else torch.tensor(ids, device=context.device)
        return teacher, teacher_ids

    def _ids(self, bundle: Bundle, teacher: Bundle, context: Context) -> list[int] | None:
        if not _have_tokenizers(bundle, teacher):
            return None
        ids = vocabulary_map(bundle.tokenizer, teacher.tokenizer, stage=self.stepper.stage)
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
                    f"{self.stepper.stage}.teacher: {self.name!r} knows the model's tokens but splits texts"
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
            asked,
            head=step.head,
            pad=step.pad,
            device=step.device,
            micro_tokens=step.micro_tokens,
            progress=context.progress,
            dist=context.dist,
        )

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
        pieces = micro_batches(range(len(examples)), examples.lengths, micro_tokens=step.micro_tokens)
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


# Train the model on the task: all weights or an adapter, with or without a teacher.


@card
class Finetune(TrainingOptions):
    """Fine-tuning, healing and distillation.

    `teacher` names the model to learn from: `plan_input`, an earlier step, or a folder. `samples`
    bounds the training rows.
    """

    reads: ClassVar[tuple[Noun, ...]] = ("task", "data", "seed", "device", "dtype")
    accepts: ClassVar[tuple[Form, ...]] = ("dense", "packed")
    changes_model: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    word: ClassVar[str] = "finetune"
    revision: ClassVar[int] = 3  # warm-up begins above zero

    method: Annotated[Any, Choice("adapters")] = field(default_factory=Lora)
    clip: Annotated[Any, Choice("clipping")] = field(default_factory=Norm)
    optimizer: Annotated[Any, Choice("optimizers")] = field(default_factory=AdamW)
    distributed: Distributed = field(default_factory=Distributed)
    samples: Annotated[int, Field(ge=1)] | None = None
    teacher: str | None = None
    distill: Teaching = field(default_factory=Teaching)

    def __post_init__(self) -> None:
        if self.ema is not None and hasattr(self.method, "allocator"):
            raise ValueError(
                f"ema would keep the ranks that {name_of(self.method)} takes away; "
                "leave ema out, or choose method=lora"
            )

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        task = context.required_task.for_data(context.data)
        require_loss(task.head)
        if self.packing:
            require_packable(task.head)
        _refuse_unfit_packing(bundle, task, self.word)
        _give_head(bundle, task, context.seed, self.word)
        train = self._examples("train", bundle, task, context, limit=self.samples)
        validation = self._examples("validation", bundle, task, context, limit=self.eval_samples)
        device = load_device(self.distributed, context.device)
        model = self.method.apply(bundle, device=device, dtype=context.dtype, seed=context.seed)
        training = self._training(model, bundle, context, train=train, validation=validation)
        self._run(training)
        model.eval()
        bundle.module = model
        bundle.with_card(headless=False)
        return Outcome(
            bundle=bundle,
            measures=training_measures(training),
            notes=self._notes(train),
            files={"curves.jsonl": training.curves.path},
        )

    def _examples(
        self, split: str, bundle: Bundle, task: Task, context: Context, *, limit: int | None
    ) -> EncodedExamples:
        rows = context.data.rows(split)
        if limit is not None and limit < len(rows):
            rows = random.Random(f"{split} {context.seed}").sample(rows, limit)
        encoded, tokenizer = [], bundle.tokenizer
        with context.progress.track(f"encode {split}", len(rows), unit="row") as bar:
            for row in rows:
                encoded.append(task.encode(row, tokenizer, max_length=self.max_length))
                bar.advance()
        examples = EncodedExamples(encoded, task.head)
        if split == "train" and not len(examples):
            raise DataError(
                f"{self.word}: none of {len(rows)} training rows has a target within "
                f"max_length={self.max_length}."
            )
        return examples

    def _training(
        self,
        model: Module,
        bundle: Bundle,
        context: Context,
        *,
        train: EncodedExamples,
        validation: EncodedExamples,
    ) -> Training:
        if self.dropout is not None:
            set_dropout(model, self.dropout)
        if self.gradient_checkpointing:
            _refuse_recomputing(self.method, self.word)
            checkpoint_blocks(model)
        if self.packing:
            _refuse_packed_prompts(model, self.method, self.word)
            allow_packing(model)
        head = context.required_task.head
        masked = bundle.card.sparse is not None and self.method.produces == "dense"
        masks = zero_masks(model) if masked else {}
        sharded = sharded_for(model, self.distributed, (self.method, self.optimizer), context)
        model = sharded.working if sharded else model
        stepper = Stepper(
            model=model,
            head=head,
            student=logits_function(model, head),
            micro_tokens=min(self.micro_tokens, -(-self.batch_tokens // context.dist.world_size)),
            pad=pad_id(bundle.tokenizer),
            seed=context.seed,
            device=context.device,
            dtype=context.dtype,
            dist=context.dist,
            progress=context.progress,
            label_smoothing=self.label_smoothing,
            packing=self.packing,
            projection=projection_of(model, head),
            loss_chunk=self.loss_chunk,
            sharded=sharded,
            distributed=self.distributed,
            stage=self.word,
        )
        if self.teacher is not None:
            lesson = Lesson(self.teacher, self.distill, stepper, train)
            stepper.distillation = lesson.distillation(bundle, context)
        if sharded is not None:
            sharded.shard()
            masks = sharded.like(masks)
        return Training(
            options=self,
            stepper=stepper,
            train=train,
            validation=validation,
            clip=self.clip,
            optimizer_card=self.optimizer,
            lr=self._lr,
            state=context.state,
            curves=CurveFile(context.folder / "curves.jsonl"),
            tracker=context.tracker,
            progress=context.progress,
            masks=masks,
            lr_ratios=getattr(self.method, "lr_ratios", {}),
            allocation=allocation_of(self.method, model),
        )

    def _run(self, training: Training) -> None:
        from lcc.training.autograd import fused_adapters  # its class wants torch when read

        model, sharded = training.model, training.stepper.sharded
        with fused_adapters(model), compiled_blocks(model) if self.compile else nullcontext():
            training.run()
        if sharded is not None:
            sharded.gather()

    @property
    def _lr(self) -> float:
        lr: float = self.lr or self.optimizer.default_lr or self.method.default_lr
        return lr

    def _notes(self, train: EncodedExamples) -> list[str]:
        notes = []
        if self.ema is not None:
            notes.append(
                "Averaged weights were evaluated and are published (exponential moving "
                f"average, decay {self.ema.decay:g})."
            )
        if train.num_without_target:
            notes.append(
                f"{train.num_without_target} training rows were left out: nothing of "
                f"their answer fits into max_length={self.max_length}."
            )
        num_cut = sum(bool(getattr(row, "num_truncated", 0)) for row in train.rows)
        if num_cut:
            notes.append(
                f"{num_cut} of {len(train)} training rows were cut to max_length={self.max_length} tokens."
            )
        return notes


def _refuse_recomputing(method: Any, stage: str) -> None:
    if not getattr(method, "recomputes", True):
        raise RecipeError(
            f"{stage}.gradient_checkpointing: {name_of(method)} puts its prefix into the cache,"
            " where a second forward would find the first one's keys; set it to false."
        )


def _refuse_packed_prompts(model: Module, method: Any, stage: str) -> None:
    if is_prompt(model):
        raise RecipeError(
            f"{stage}.packing: {name_of(method)} puts its vectors before a row, not "
            "before each text in it; set it to false."
        )


def _refuse_unfit_packing(bundle: Bundle, task: Task, stage: str) -> None:
    """Packed weights are trained around, never opened: what is missing in them stays missing."""
    if bundle.card.form != "packed":
        return
    if bundle.lacks_head(task.head):
        raise RecipeError(
            f"{stage}: packed model {bundle.card.name!r} has no {task.head} head and can be given"
            " none; train the head before packing."
        )
    if bundle.path is not None and rounds_inputs(bundle.path):
        raise RecipeError(
            f"{stage}: model {bundle.card.name!r} rounds the inputs of its layers, "
            "and no gradient passes through rounding; train before it, or pack "
            "weights alone."
        )


def _give_head(bundle: Bundle, task: Task, seed: int, stage: str) -> None:
    """The task owns the head: create a missing one, in place."""
    if task.head == "classify":
        names = task.label_names
        bundle.with_head("classify", num_labels=len(names), seed=seed, labels=names)
        config = bundle.load(dtype=None).config
        if config.pad_token_id is None:  # a decoder finds a text's last token by it
            config.pad_token_id = pad_id(bundle.tokenizer)
    elif task.is_cloze and bundle.lacks_head(task.head):
        raise RecipeError(
            f"{stage}: model {bundle.card.name!r} has no head that fills gaps; train one first,"
            " with the stage pretrain and objective=masked."
        )
    elif bundle.lacks_head(task.head):
        bundle.with_head(task.head, seed=seed)
