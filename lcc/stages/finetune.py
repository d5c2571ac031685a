"""Train the model on the task: all weights or an adapter, with or without a teacher."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.core.catalog import Choice, name_of
from lcc.core.decode import card
from lcc.core.errors import DataError, RecipeError
from lcc.core.tracking import CurveFile
from lcc.engine.compiling import compiled_blocks
from lcc.engine.objectives import require_loss
from lcc.engine.optimization import checkpoint_blocks, set_dropout
from lcc.engine.options import TrainingOptions
from lcc.engine.packing import allow_packing, require_packable
from lcc.engine.projecting import logits_function, projection_of
from lcc.engine.rank_allocation import allocation_of
from lcc.engine.sparse_training import zero_masks
from lcc.engine.stepping import Stepper
from lcc.engine.supply import Examples
from lcc.engine.training import Training
from lcc.methods.adapters.lora import Lora
from lcc.methods.clipping.norm import Norm
from lcc.methods.optimizers.adamw import AdamW
from lcc.parts.adapters import is_prompt
from lcc.parts.checkpoint import Form
from lcc.parts.dist import Distributed
from lcc.parts.packed import rounds_inputs
from lcc.stage import Noun, Outcome
from lcc.stages._sharding import load_device, sharded_for
from lcc.stages._teaching import Lesson, Teaching
from lcc.stages._training_measures import training_measures

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.parts.model import Bundle
    from lcc.parts.task import Task
    from lcc.stage import Context


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
            raise ValueError(f"ema would keep the ranks that {name_of(self.method)} takes away; "
                             "leave ema out, or choose method=lora")  # fmt: skip

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        task = context.required_task.for_data(context.data)
        require_loss(task.head)
        if self.packing:
            require_packable(task.head)
        _refuse_unfit_packing(bundle, task)
        _give_head(bundle, task, context.seed)
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
            bundle=bundle, measures=training_measures(training), notes=self._notes(train),
            files={"curves.jsonl": training.curves.path},
        )  # fmt: skip

    def _examples(
        self, split: str, bundle: Bundle, task: Task, context: Context, *, limit: int | None
    ) -> Examples:
        rows = context.data.rows(split)
        if limit is not None and limit < len(rows):
            rows = random.Random(f"{split} {context.seed}").sample(rows, limit)
        encoded, tokenizer = [], bundle.tokenizer
        with context.progress.track(f"encode {split}", len(rows), unit="row") as bar:
            for row in rows:
                encoded.append(task.encode(row, tokenizer, max_length=self.max_length))
                bar.advance()
        examples = Examples(encoded, task.head)
        if split == "train" and not len(examples):
            raise DataError(f"finetune: none of {len(rows)} training rows has a target within "
                            f"max_length={self.max_length}.")  # fmt: skip
        return examples

    def _training(
        self, model: Module, bundle: Bundle, context: Context,
        *, train: Examples, validation: Examples,
    ) -> Training:  # fmt: skip
        if self.dropout is not None:
            set_dropout(model, self.dropout)
        if self.gradient_checkpointing:
            _refuse_recomputing(self.method)
            checkpoint_blocks(model)
        if self.packing:
            _refuse_packed_prompts(model, self.method)
            allow_packing(model)
        head = context.required_task.head
        masked = bundle.card.sparse is not None and self.method.produces == "dense"
        masks = zero_masks(model) if masked else {}
        sharded = sharded_for(model, self.distributed, (self.method, self.optimizer), context)
        model = sharded.working if sharded else model
        stepper = Stepper(
            model=model, head=head, student=logits_function(model, head),
            micro_tokens=min(self.micro_tokens, -(-self.batch_tokens // context.dist.world_size)),
            pad=_pad_id(bundle), seed=context.seed, device=context.device, dtype=context.dtype,
            dist=context.dist, progress=context.progress, label_smoothing=self.label_smoothing,
            packing=self.packing, projection=projection_of(model, head), loss_chunk=self.loss_chunk,
            sharded=sharded, distributed=self.distributed,
        )  # fmt: skip
        if self.teacher is not None:
            lesson = Lesson(self.teacher, self.distill, stepper, train)
            stepper.distillation = lesson.distillation(bundle, context)
        if sharded is not None:
            sharded.shard()
            masks = sharded.like(masks)
        return Training(
            options=self, stepper=stepper, train=train, validation=validation, clip=self.clip,
            optimizer_card=self.optimizer, lr=self._lr,
            state=context.state, curves=CurveFile(context.folder / "curves.jsonl"),
            tracker=context.tracker, progress=context.progress,
            masks=masks, lr_ratios=getattr(self.method, "lr_ratios", {}),
            allocation=allocation_of(self.method, model),
        )  # fmt: skip

    def _run(self, training: Training) -> None:
        from lcc.engine.fused_adapters import fused_adapters  # its class wants torch when read

        model, sharded = training.model, training.stepper.sharded
        with fused_adapters(model), compiled_blocks(model) if self.compile else nullcontext():
            training.run()
        if sharded is not None:
            sharded.gather()

    @property
    def _lr(self) -> float:
        lr: float = self.lr or self.optimizer.default_lr or self.method.default_lr
        return lr

    def _notes(self, train: Examples) -> list[str]:
        notes = []
        if self.ema is not None:
            notes.append("Averaged weights were evaluated and are published (exponential moving "
                         f"average, decay {self.ema.decay:g}).")  # fmt: skip
        if train.num_without_target:
            notes.append(f"{train.num_without_target} training rows were left out: nothing of "
                         f"their answer fits into max_length={self.max_length}.")  # fmt: skip
        num_cut = sum(bool(getattr(row, "num_truncated", 0)) for row in train.rows)
        if num_cut:
            notes.append(f"{num_cut} of {len(train)} training rows were cut to "
                         f"max_length={self.max_length} tokens.")  # fmt: skip
        return notes


def _refuse_recomputing(method: Any) -> None:
    if not getattr(method, "recomputes", True):
        raise RecipeError(
            f"finetune.gradient_checkpointing: {name_of(method)} puts its prefix into the cache,"
            " where a second forward would find the first one's keys; set it to false."
        )


def _refuse_packed_prompts(model: Module, method: Any) -> None:
    if is_prompt(model):
        raise RecipeError(f"finetune.packing: {name_of(method)} puts its vectors before a row, not "
                          "before each text in it; set it to false.")  # fmt: skip


def _refuse_unfit_packing(bundle: Bundle, task: Task) -> None:
    """Packed weights are trained around, never opened: what is missing in them stays missing."""
    if bundle.card.form != "packed":
        return
    if bundle.lacks_head(task.head):
        raise RecipeError(
            f"finetune: packed model {bundle.card.name!r} has no {task.head} head and can be given"
            " none; train the head before packing."
        )
    if bundle.path is not None and rounds_inputs(bundle.path):
        raise RecipeError(f"finetune: model {bundle.card.name!r} rounds the inputs of its layers, "
                          "and no gradient passes through rounding; train before it, or pack "
                          "weights alone.")  # fmt: skip


def _give_head(bundle: Bundle, task: Task, seed: int) -> None:
    """The task owns the head: create a missing one, in place."""
    if task.head == "classify":
        names = task.label_names
        bundle.with_head("classify", num_labels=len(names), seed=seed, labels=names)
        config = bundle.load(dtype=None).config
        if config.pad_token_id is None:  # a decoder finds a text's last token by it
            config.pad_token_id = _pad_id(bundle)
    elif task.is_cloze and bundle.lacks_head(task.head):
        raise RecipeError(
            f"finetune: model {bundle.card.name!r} has no head that fills gaps; train one first,"
            " with the stage pretrain and objective=masked."
        )
    elif bundle.lacks_head(task.head):
        bundle.with_head(task.head, seed=seed)


def _pad_id(bundle: Bundle) -> int:
    tokenizer = bundle.tokenizer
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0
