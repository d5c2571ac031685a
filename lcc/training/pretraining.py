"""Pretraining corpus: tokens on disk in shards read through memory maps, and objectives that draw from it."""

from __future__ import annotations

import bisect
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from lcc.core import signals
from lcc.core.errors import DataError, PreemptedError
from lcc.core.lazy import safetensors
from lcc.core.progress import Progress
from lcc.store.artifact import fsync
from lcc.tasks.encode import IGNORED, needs_bos
from lcc.tokenization.special_tokens import Frame
from lcc.training.batches import Batch, LogitsOf

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Head
    from lcc.distributed.dist import Dist

SHARD_TOKENS = 1 << 20
BATCH_DOCUMENTS = 256  # tokenised between two looks at whether to stop
STARTS_WORD, STARTS_SENTENCE = 1, 2  # bits of a token's flags

Document = Sequence[str]
"""The sentences of a document, or its whole text as one."""


@dataclass(frozen=True)
class Encoded:
    """One document: its tokens, and what each of them begins."""

    ids: list[int]
    flags: list[int]


class Encoding:
    """How a document becomes tokens: with `ends`, a start and an end token stand around it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, ends: bool) -> None:
        self.tokenizer = tokenizer
        bos = tokenizer.bos_token_id if ends and needs_bos(tokenizer) else None
        eos = tokenizer.eos_token_id if ends else None
        self.before = [] if bos is None else [int(bos)]
        self.after = [] if eos is None else [int(eos)]

    def __call__(self, documents: Sequence[Document]) -> list[Encoded]:
        """Every document's tokens, in order."""
        sentences = [text for document in documents for text in document]
        sentences_ids = iter(self._sentences(sentences))
        return [self._joined([next(sentences_ids) for _ in document]) for document in documents]

    def _sentences(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False)
        rows = list(encoded["input_ids"])
        if not self.tokenizer.is_fast:
            return [(ids, [STARTS_WORD] * len(ids)) for ids in rows]
        return [(ids, _word_starts(encoded.word_ids(i))) for i, ids in enumerate(rows)]

    def _joined(self, sentences: list[tuple[list[int], list[int]]]) -> Encoded:
        ids, flags = list(self.before), [STARTS_WORD] * len(self.before)
        for tokens, starts in sentences:
            if tokens:
                ids += tokens
                flags += [starts[0] | STARTS_SENTENCE, *starts[1:]]
        if len(ids) == len(self.before):
            return Encoded([], [])  # a document without text is none
        return Encoded(ids + self.after, flags + [STARTS_WORD] * len(self.after))


def _word_starts(words: Sequence[int | None]) -> list[int]:
    return [int(i == 0 or word is None or word != words[i - 1]) for i, word in enumerate(words)]


@dataclass
class Corpus:
    """Tokens of all documents, one after another, in the shards of a folder."""

    folder: Path
    _files: dict[int, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.safetensors"))

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(num_documents,): where each document ends."""
        parts = [self._tensor(i, "ends") + self._starts[i] for i in range(len(self.shards))]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @property
    def num_tokens(self) -> int:
        return self._starts[-1]

    def tokens(self, start: int, stop: int) -> list[int]:
        """Ids from `start` up to `stop`."""
        return self._read("tokens", start, stop)

    def flags(self, start: int, stop: int) -> list[int]:
        """What each of these tokens begins: a word, a sentence."""
        return self._read("flags", start, stop)

    @cached_property
    def _starts(self) -> list[int]:
        sizes = [self._open(i).get_slice("tokens").get_shape()[0] for i in range(len(self.shards))]
        return [0, *accumulate(sizes)]

    def _read(self, name: str, start: int, stop: int) -> list[int]:
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        values: list[int] = []
        shard = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            first, last = self._starts[shard], min(stop, self._starts[shard + 1])
            values += self._open(shard).get_slice(name)[start - first : last - first].tolist()
            start, shard = last, shard + 1
        return values

    def _tensor(self, shard: int, name: str) -> NDArray[np.int64]:
        tensor: NDArray[np.int64] = self._open(shard).get_tensor(name)
        return tensor

    def _open(self, shard: int) -> Any:
        if shard not in self._files:
            self._files[shard] = safetensors.safe_open(self.shards[shard], framework="np")
        return self._files[shard]


Source = Callable[[int], Iterator[tuple[int, Document]]]
"""Documents from a byte of the source on, each with the byte where the next begins."""


def tokenised(
    source: Source,
    encode: Encoding,
    folder: Path,
    *,
    dist: Dist,
    progress: Progress,
    label: str,
    shard_tokens: int = SHARD_TOKENS,
) -> Corpus:
    """The corpus in `folder`, made or completed; whole shards survive whatever stops this.

    Rank 0 writes, and all agree after each shard whether to go on. Raises PreemptedError between
    two batches of documents when asked to stop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(source, encode, folder, shard_tokens)
    with signals.watched(), progress.track(f"tokenise {label}", unit="token", polls=False) as bar:
        while True:
            written = 0
            if dist.is_main:
                written = writer.write_next()
            stop, more = dist.sum([float(signals.requested()), float(written)])
            if stop:
                raise PreemptedError(
                    f"pretrain: asked to stop while tokenising {label}; whole shards are kept."
                )
            if not more:
                break
            bar.advance(written)
    dist.barrier()
    return Corpus(folder)


@dataclass
class _Writer:
    source: Source
    encode: Encoding
    folder: Path
    shard_tokens: int

    def write_next(self) -> int:
        """Write one more shard and say how many tokens it has; 0 at the end, or when stopped."""
        number, offset = self._position()
        tokens: list[list[int]] = []
        flags: list[list[int]] = []
        size = 0
        batch: list[Document] = []
        for after, document in self.source(offset):
            batch.append(document)
            offset = after
            if len(batch) == BATCH_DOCUMENTS:
                size += self._encode(batch, tokens, flags)
                batch = []
                if signals.requested():
                    return 0
                if size >= self.shard_tokens:
                    break
        size += self._encode(batch, tokens, flags)
        if size:
            self._write(number, offset, tokens, flags)
        return size

    def _position(self) -> tuple[int, int]:
        """The next shard's number, and the byte of the source where it begins."""
        done = sorted(self.folder.glob("shard-*.safetensors"))
        if not done:
            return 0, 0
        with safetensors.safe_open(done[-1], framework="np") as file:
            return len(done), int(file.metadata()["next"])

    def _encode(self, batch: list[Document], tokens: list[list[int]], flags: list[list[int]]) -> int:
        whole = [one for one in self.encode(batch) if one.ids] if batch else []
        tokens += [one.ids for one in whole]
        flags += [one.flags for one in whole]
        return sum(len(one.ids) for one in whole)

    def _write(self, number: int, offset: int, tokens: list[list[int]], flags: list[list[int]]) -> None:
        from safetensors.numpy import save_file

        tensors = {
            "tokens": np.concatenate([np.array(ids, np.int32) for ids in tokens]),
            "flags": np.concatenate([np.array(bits, np.uint8) for bits in flags]),
            "ends": np.cumsum([len(ids) for ids in tokens], dtype=np.int64),
        }
        building = self.folder / "building"
        save_file(tensors, building, metadata={"next": json.dumps(offset)})
        fsync(building)
        building.rename(self.folder / f"shard-{number:06d}.safetensors")
        fsync(self.folder)


@dataclass(frozen=True)
class TextRows:
    """A few documents in memory, read as a Corpus is; one without text keeps its place."""

    ids: list[int]
    bits: list[int]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, documents: Sequence[Encoded]) -> TextRows:
        """These documents, one after another."""
        ids = [token for one in documents for token in one.ids]
        bits = [flag for one in documents for flag in one.flags]
        return cls(ids, bits, np.cumsum([len(one.ids) for one in documents], dtype=np.int64))

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        return self.ids[start:stop]

    def flags(self, start: int, stop: int) -> list[int]:
        return self.bits[start:stop]


# What pretraining objectives share: what they draw from, and their examples as a feed.

REMEMBERED = 8192  # drawn examples kept: each is asked for its targets and then for itself


@dataclass(frozen=True)
class Material:
    """What an objective may draw from.

    `length` is the most tokens of an example; `ordinary` are the ids that stand for text;
    `isolated` says that the model can be kept from looking across documents in one block.
    """

    corpus: Corpus | TextRows
    length: int
    frame: Frame
    ordinary: Sequence[int]
    mask: int | None = None
    eos: int | None = None
    sentinels: Sequence[int] = ()
    isolated: bool = False


@dataclass(frozen=True)
class DrawnExample:
    """An example as one epoch sees it: ids, and labels (of the same places, or a target text).

    `kinds` tell the texts of a pair apart, `positions` start again with every document, and
    `relation` is 1 for a pair put together at random.
    """

    input_ids: list[int]
    labels: list[int]
    kinds: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    relation: int = 0

    @property
    def num_targets(self) -> int:
        """Predictions that are scored."""
        return sum(label != IGNORED for label in self.labels)


Piece = tuple[int, int]
"""Where an example's tokens start and stop in the corpus."""


class Objective(Protocol):
    """A card of the shelf `objectives`: how text becomes examples, and what is minimised."""

    head: ClassVar[Head]
    by_sentence: ClassVar[bool]  # whether documents must come apart into sentences
    marks_ends: ClassVar[bool]  # whether start and end tokens belong to the text

    def pieces(self, material: Material) -> list[Piece]:
        """The examples of an epoch, in the corpus' order."""
        ...

    def draw(
        self, material: Material, pieces: Sequence[Piece], index: int, dice: random.Random
    ) -> DrawnExample:
        """One example; everything random about it comes from `dice`."""
        ...

    def collate(self, drawn: Sequence[DrawnExample], material: Material, *, pad: int, device: str) -> Batch:
        """Examples as a batch."""
        ...

    def student(self, model: Module) -> LogitsOf:
        """Logits at a batch's targets."""
        ...

    def loss(self, model: Module) -> Callable[[Batch], Tensor] | None:
        """The summed loss where it is more than the cross entropy of `student`, else None."""
        ...


class DrawnExamples:
    """An objective's examples as one epoch sees them; a Supply."""

    def __init__(
        self,
        objective: Objective,
        material: Material,
        *,
        seed: int,
        split: str,
        epoch: int = 0,
        pieces: Sequence[Piece] | None = None,
    ) -> None:
        self.objective, self.material = objective, material
        self.seed, self.split, self.epoch = seed, split, epoch
        self.pieces = objective.pieces(material) if pieces is None else pieces
        self.lengths = [stop - start for start, stop in self.pieces]
        self.example = lru_cache(REMEMBERED)(self._draw)
        self.targets: Sequence[int] = _Targets(self)
        self._other: DrawnExamples | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    def at(self, epoch: int) -> DrawnExamples:
        if epoch == self.epoch:
            return self
        if self._other is None or self._other.epoch != epoch:
            self._other = DrawnExamples(
                self.objective,
                self.material,
                seed=self.seed,
                split=self.split,
                epoch=epoch,
                pieces=self.pieces,
            )
        return self._other

    def collate(self, indices: Sequence[int], *, pad: int, device: str) -> Batch:
        drawn = [self.example(i) for i in indices]
        return self.objective.collate(drawn, self.material, pad=pad, device=device)

    def _draw(self, index: int) -> DrawnExample:
        dice = random.Random(f"draw {self.split} {self.seed} {self.epoch} {index}")
        return self.objective.draw(self.material, self.pieces, index, dice)


class _Targets(Sequence[int]):
    """How many predictions of each example are scored, found when it is asked for."""

    def __init__(self, drawing: DrawnExamples) -> None:
        self.drawing = drawing

    def __len__(self) -> int:
        return len(self.drawing)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.drawing.example(index).num_targets


def document_pieces(material: Material, room: int, *, least: int = 1) -> list[Piece]:
    """Every document in pieces of at most `room` tokens; what is shorter than `least` is left."""
    pieces, start = [], 0
    for end in material.corpus.ends.tolist():
        cuts = [*range(start, end, room), end]
        pieces += [(a, b) for a, b in pairwise(cuts) if b - a >= least]
        start = end
    return pieces


def require_mask(material: Material) -> None:
    """Raises DataError for a tokenizer without a token to hide others by."""
    if material.mask is None:
        raise DataError(
            "pretrain: this tokenizer has no mask token; train one with "
            "tokenizer: {kind: wordpiece}, or choose objective causal."
        )
