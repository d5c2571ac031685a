"""Couple a decoder to an encoder, both from its weights, with one new vocabulary."""

from __future__ import annotations

import copy
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, transformers
from lcc.core.progress import Measure
from lcc.core.types import AUTO_CLASSES, Form
from lcc.models.sources import special_ids
from lcc.pipeline.stage import Noun, Outcome
from lcc.stages._corpus import NewTokenizer, trained_tokenizer
from lcc.tokenization.prune_vocabulary import transferred
from lcc.tokenization.train import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context

# BERT's own tokens; the start of a text is also where the decoder starts, as in BERT2BERT.
DRESS = SpecialTokens(
    {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
     "mask_token": "[MASK]", "bos_token": "[CLS]", "eos_token": "[SEP]"},
    "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1",
)  # fmt: skip
WORDS = "embeddings.word_embeddings.weight"


@card
class Couple:
    """BERT2BERT (Rothe et al., 2020): cross-attention and the decoder's head are drawn anew.

    An encoder of one language cannot write another, so both halves get one new vocabulary, trained
    on the task's texts; its rows come from the encoder's where it can write the token.
    `decoder_layers` takes as many of the encoder's layers, evenly (Kasai et al., 2021: a shallow
    decoder costs little quality).
    """

    reads: ClassVar[tuple[Noun, ...]] = ("task", "data", "seed")
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "couple"
    revision: ClassVar[int] = 1

    tokenizer: NewTokenizer = field(default_factory=NewTokenizer)
    decoder_layers: Annotated[int, Field(ge=1)] | None = None
    samples: Annotated[int, Field(ge=1)] | None = None

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        encoder, old = bundle.load().base_model, bundle.tokenizer
        if encoder.config.model_type != "bert":
            raise RecipeError(
                f"couple: a model of the family {encoder.config.model_type!r} cannot "
                "become a decoder with cross-attention; choose a BERT."
            )
        made = trained_tokenizer(self.tokenizer, context, lambda: self._texts(context), DRESS)
        words, num_known = transferred(
            encoder.embeddings.word_embeddings.weight.detach(), old, made, seed=context.seed
        )
        bundle.module = self._coupled(encoder, words, made, seed=context.seed)
        bundle.tokenizer = made
        bundle.with_card(head="seq2seq", auto_class=AUTO_CLASSES["seq2seq"], headless=False)
        cross = [p for n, p in bundle.module.named_parameters() if "crossattention" in n]
        return Outcome(
            bundle=bundle,
            measures={
                "vocabulary": Measure(len(made), "count"),
                "transferred_rows_share": Measure(num_known / len(made), "share"),
                "drawn_parameters": Measure(sum(p.numel() for p in cross), "count"),
            },
        )

    def _texts(self, context: Context) -> Iterator[str]:
        task = context.required_task
        for number, (_, row) in enumerate(context.data.stream("train")):
            if self.samples is not None and number >= self.samples:
                return
            yield task.prompt(row)
            yield task.completion(row)

    def _coupled(self, encoder: Any, words: Tensor, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Any:
        ids = {"vocab_size": len(tokenizer), **special_ids(tokenizer)}
        state = {**encoder.state_dict(), WORDS: words}
        layers = _evenly(encoder.config.num_hidden_layers, self.decoder_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = transformers.BertModel(_changed(encoder.config, **ids))
            second = transformers.BertLMHeadModel(
                _changed(
                    encoder.config,
                    is_decoder=True,
                    add_cross_attention=True,
                    num_hidden_layers=len(layers),
                    **ids,
                )
            )
            first.load_state_dict(state)
            second.bert.load_state_dict(_with_layers(state, layers), strict=False)
            whole = transformers.EncoderDecoderModel(encoder=first, decoder=second)
        start = {"decoder_start_token_id": tokenizer.bos_token_id}
        for config in (whole.config, whole.generation_config):
            for name, value in {**special_ids(tokenizer), **start}.items():
                setattr(config, name, value)
        whole.train(False)
        return whole


def _changed(config: Any, **changes: Any) -> Any:
    changed = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _evenly(num_layers: int, num_kept: int | None) -> list[int]:
    """Which layers the decoder is begun from: the first, the last, and evenly between."""
    if num_kept is None:
        return list(range(num_layers))
    if num_kept > num_layers:
        raise RecipeError(f"couple.decoder_layers: {num_kept} asked, the encoder has {num_layers}.")
    if num_kept == 1:
        return [num_layers - 1]
    return [round(i * (num_layers - 1) / (num_kept - 1)) for i in range(num_kept)]


def _with_layers(state: dict[str, Tensor], layers: list[int]) -> dict[str, Tensor]:
    """The state with only these layers, numbered anew."""
    state_dict = {n: t for n, t in state.items() if not n.startswith("encoder.layer.")}
    for new, old in enumerate(layers):
        prefix = f"encoder.layer.{old}."
        state_dict |= {
            f"encoder.layer.{new}.{n.removeprefix(prefix)}": t
            for n, t in state.items()
            if n.startswith(prefix)
        }
    return state_dict
