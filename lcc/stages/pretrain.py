"""Pretrain a language model on plain text: from a fresh config, or further from a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import Choice, card, name_of
from lcc.core.errors import DataError
from lcc.core.progress import CurveFile, Measure
from lcc.core.types import Form
from lcc.distributed.dist import Distributed
from lcc.methods.adapters.full import Full
from lcc.methods.clipping.norm import Norm
from lcc.methods.objectives.causal import Causal
from lcc.methods.optimizers.adam import AdamW
from lcc.models.adapter_io import zero_masks
from lcc.models.blocks import compiled_blocks
from lcc.pipeline.stage import Noun, Outcome
from lcc.stages._corpus import Documents, NewTokenizer, corpus_of, material_of, renew_vocabulary
from lcc.stages._training import load_device, sharded_for, training_measures
from lcc.tasks.encode import pad_id
from lcc.tokenization.train import special_tokens_for
from lcc.training.loss import projection_of
from lcc.training.optim import set_dropout
from lcc.training.packing import isolates
from lcc.training.pretraining import DrawnExamples
from lcc.training.step import Stepper
from lcc.training.trainer import Training, TrainingOptions

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context


@card
class Pretrain(TrainingOptions):
    """`objective` says what is learnt; a text is what the task makes of a row.

    `tokenizer` trains a new one first: embeddings are then drawn anew, everything else is kept.
    `document` is a row, or all rows in sequence that share a `doc`. `samples` bounds the
    training rows, `eval_samples` those of validation.
    """

    reads: ClassVar[tuple[Noun, ...]] = ("task", "data", "seed", "device", "dtype")
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    word: ClassVar[str] = "pretrain"
    revision: ClassVar[int] = 2  # warm-up begins above zero

    objective: Annotated[Any, Choice("objectives")] = field(default_factory=Causal)
    clip: Annotated[Any, Choice("clipping")] = field(default_factory=Norm)
    optimizer: Annotated[Any, Choice("optimizers")] = field(default_factory=AdamW)
    distributed: Distributed = field(default_factory=Distributed)
    tokenizer: NewTokenizer | None = None
    document: Literal["row", "doc"] = "row"
    samples: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    max_length: Annotated[int, Field(ge=8)] = 256

    def __post_init__(self) -> None:
        if self.packing:
            raise ValueError(
                "packing is a matter of the objective here: causal always packs "
                "documents into blocks, the others never do"
            )

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        if bundle.lacks_head(self.objective.head):
            bundle.with_head(self.objective.head, seed=context.seed)
        limits = {"train": self.samples, "validation": self.eval_samples}
        documents = Documents(
            context, context.required_task, self.document, self.objective.by_sentence, limits
        )
        if self.tokenizer is not None:
            special_tokens = special_tokens_for(self.objective.head)
            renew_vocabulary(bundle, self.tokenizer, documents, special_tokens=special_tokens)
        device = load_device(self.distributed, context.device)
        model = Full().apply(bundle, device=device, dtype=context.dtype, seed=context.seed)
        feeds = self._feeds(model, bundle, documents)
        training = self._training(model, bundle, context, feeds)
        with compiled_blocks(training.model) if self.compile else nullcontext():
            training.run()
        if training.stepper.sharded is not None:
            training.stepper.sharded.gather()
        bundle.module = model.eval()
        bundle.with_card(headless=False)
        train = feeds["train"]
        return Outcome(
            bundle=bundle,
            notes=self._notes(train),
            files={"curves.jsonl": training.curves.path},
            measures={**training_measures(training), **_corpus_measures(train, bundle)},
        )

    def _feeds(self, model: Module, bundle: Bundle, documents: Documents) -> dict[str, DrawnExamples]:
        """Training and validation examples; the latter keep one drawing throughout."""
        ends = self.objective.marks_ends
        is_isolated = self.objective.head == "causal" and isolates(model)
        feeds = {}
        for split in ("train", "validation"):
            corpus = corpus_of(split, documents, bundle.tokenizer, ends=ends)
            material = material_of(corpus, bundle.tokenizer, length=self.max_length, isolated=is_isolated)
            seed = documents.context.seed
            feeds[split] = DrawnExamples(self.objective, material, seed=seed, split=split)
        if not len(feeds["train"]):
            raise DataError(
                "pretrain: no document of the training split is long enough to learn "
                f"from by objective {name_of(self.objective)}."
            )
        return feeds

    def _training(
        self, model: Module, bundle: Bundle, context: Context, feeds: dict[str, DrawnExamples]
    ) -> Training:
        if self.dropout is not None:
            set_dropout(model, self.dropout)
        if self.gradient_checkpointing:
            enable: Any = model.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        masks = zero_masks(model) if bundle.card.sparse is not None else {}
        sharded = sharded_for(model, self.distributed, (Full(), self.optimizer), context)
        model = sharded.working if sharded else model
        micro = min(self.micro_tokens, -(-self.batch_tokens // context.dist.world_size))
        stepper = Stepper(
            model=model,
            head=self.objective.head,
            student=self.objective.student(model),
            own_loss=self.objective.loss(model),
            micro_tokens=micro,
            pad=pad_id(bundle.tokenizer),
            seed=context.seed,
            device=context.device,
            dtype=context.dtype,
            dist=context.dist,
            progress=context.progress,
            label_smoothing=self.label_smoothing,
            projection=projection_of(model, self.objective.head),
            loss_chunk=self.loss_chunk,
            distributed=self.distributed,
            sharded=sharded,
            stage=self.word,
        )
        if sharded is not None:
            sharded.shard()
            masks = sharded.like(masks)
        return Training(
            options=self,
            stepper=stepper,
            train=feeds["train"],
            validation=feeds["validation"],
            clip=self.clip,
            optimizer_card=self.optimizer,
            lr=self.lr or Full.default_lr,
            state=context.state,
            curves=CurveFile(context.folder / "curves.jsonl"),
            tracker=context.tracker,
            progress=context.progress,
            masks=masks,
        )

    def _notes(self, train: DrawnExamples) -> list[str]:
        if name_of(self.objective) != "causal":
            return []
        if train.material.isolated:
            return [
                "Documents share blocks, and none sees another: positions start again with "
                "each, and attention stays within it."
            ]
        return [
            "Documents share blocks: no target stands across a border, but this architecture looks across it."
        ]


def _corpus_measures(train: DrawnExamples, bundle: Bundle) -> dict[str, Measure]:
    corpus = train.material.corpus
    return {
        "corpus_tokens": Measure(corpus.num_tokens, "count"),
        "corpus_documents": Measure(len(corpus.ends), "count"),
        "examples": Measure(len(train), "count"),
        "vocabulary": Measure(len(bundle.tokenizer), "count"),
    }
