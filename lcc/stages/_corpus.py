"""Corpus of a pretraining: prepared rows tokenized, with a tokenizer trained on them where one is asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lcc.config.cards import card
from lcc.core import signals
from lcc.core.lazy import transformers
from lcc.models.sources import special_ids
from lcc.tokenization.prune_vocabulary import with_new_vocabulary
from lcc.tokenization.special_tokens import frame_of
from lcc.tokenization.train import Kind, SpecialTokens, train_tokenizer
from lcc.training.pretraining import Corpus, Document, Encoding, Material, TextRows, tokenised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.core.progress import Progress
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context
    from lcc.tasks.task import Task

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")


@card
class NewTokenizer:
    """A tokenizer trained on the training split; its special tokens are the objective's usual."""

    kind: Kind = "bpe"
    vocab_size: Annotated[int, Field(ge=64, le=2**20)] = 8192
    lowercase: bool = False


@dataclass(frozen=True)
class Documents:
    """The documents of a split, streamed: a row each, or all rows in sequence of one `doc`."""

    context: Context
    task: Task
    unit: Literal["row", "doc"]
    by_sentence: bool
    limits: Mapping[str, int | None]  # split → most rows that are read

    def stream(self, split: str, start: int = 0) -> Iterator[tuple[int, Document]]:
        """Documents from byte `start` on, each with the byte where the next one begins."""
        last = self._last_byte(split)
        rows = takewhile(lambda pair: last is None or pair[0] <= last, self.context.data.stream(split, start))
        same = (lambda pair: str(pair[1]["doc"])) if self.unit == "doc" else (lambda pair: pair[0])
        for _, members in groupby(rows, key=same):
            pairs = list(members)
            yield pairs[-1][0], self._document([self.task.text(row) for _, row in pairs])

    def texts(self) -> Iterator[str]:
        """Every text of the training split."""
        for _, document in self.stream("train"):
            yield from document

    def _last_byte(self, split: str) -> int | None:
        """Where the last row ends that is read, if not all are."""
        limit = self.limits.get(split)
        if limit is None:
            return None
        return max((end for end, _ in islice(self.context.data.stream(split), limit)), default=0)

    def _document(self, texts: list[str]) -> Document:
        if not self.by_sentence:
            return ["\n".join(texts)]
        return sentences(texts)


def sentences(texts: Iterable[str]) -> Document:
    """Texts taken apart where a sentence or a line ends."""
    pieces = (piece for text in texts for piece in SENTENCE_END.split(text))
    return [piece for piece in pieces if piece.strip()]


def material_of(
    corpus: Corpus | TextRows, tokenizer: PreTrainedTokenizerBase, *, length: int, isolated: bool = False
) -> Material:
    """The corpus with what its tokenizer has for objectives to use."""
    sentinels = _sentinels(tokenizer)
    special = {*tokenizer.all_special_ids, *sentinels}
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    return Material(
        corpus,
        length,
        frame_of(tokenizer),
        ordinary,
        mask=tokenizer.mask_token_id,
        eos=tokenizer.eos_token_id,
        sentinels=sentinels,
        isolated=isolated,
    )


def _sentinels(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of `<extra_id_0>` and on, as far as the tokenizer has them."""
    vocabulary, ids = tokenizer.get_vocab(), list[int]()
    while (token := f"<extra_id_{len(ids)}>") in vocabulary:
        ids.append(vocabulary[token])
    return ids


def corpus_of(split: str, documents: Documents, tokenizer: PreTrainedTokenizerBase, *, ends: bool) -> Corpus:
    """The split as tokens on disk, made once below the step's state."""
    context = documents.context
    return tokenised(
        lambda start: documents.stream(split, start),
        Encoding(tokenizer, ends=ends),
        context.state / f"corpus-{split}",
        dist=context.dist,
        progress=context.progress,
        label=split,
    )


def renew_vocabulary(
    bundle: Bundle, asked: NewTokenizer, documents: Documents, *, special_tokens: SpecialTokens
) -> None:
    """Train the tokenizer and give the model rows for it, in place."""
    context = documents.context
    made = trained_tokenizer(asked, context, documents.texts, special_tokens)
    module = bundle.load(device=None, dtype="float32")
    ids = special_ids(made)
    bundle.module = with_new_vocabulary(module, len(made), ids, seed=context.seed)
    bundle.tokenizer = made


def trained_tokenizer(
    asked: NewTokenizer, context: Context, texts: Callable[[], Iterator[str]], special_tokens: SpecialTokens
) -> PreTrainedTokenizerBase:
    """The tokenizer trained by rank 0 and kept below the step's state; resumed, it is read back."""
    folder = context.state / "tokenizer"
    if context.dist.is_main and not folder.is_dir():
        _train(asked, context.progress, texts, special_tokens, folder)
    context.dist.barrier()
    made: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(folder)
    return made


def _train(
    asked: NewTokenizer,
    progress: Progress,
    texts: Callable[[], Iterator[str]],
    special_tokens: SpecialTokens,
    folder: Path,
) -> None:
    track = progress.track("train tokenizer", unit="text", polls=False)
    with signals.watched(), track as bar:

        def polled() -> Iterator[str]:
            for text in texts():
                if signals.requested():
                    return  # what was learnt so far is thrown away below
                bar.advance()
                yield text

        made = train_tokenizer(
            polled(),
            kind=asked.kind,
            vocab_size=asked.vocab_size,
            special_tokens=special_tokens,
            lowercase=asked.lowercase,
        )
        signals.check("train tokenizer")
    building = folder.with_name("tokenizer-building")
    made.save_pretrained(building)
    building.rename(folder)
