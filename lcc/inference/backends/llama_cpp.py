"""llama.cpp as an inference session: every answer is a sequence of one context, and joins at any turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cyllama.llama.llama_cpp as bindings
import numpy as np
import torch
from torch import Tensor

from lcc.core.errors import GateError
from lcc.inference.engine import ExportedSession
from lcc.inference.kv_cache import common
from lcc.inference.session import Opening
from lcc.inference.sidecar import GGUF_FILE, read_sidecar

if TYPE_CHECKING:
    from lcc.core.types import Array

BATCH_TOKENS = 512  # of one call
MOST_CELLS = 32_768  # of keys and values, where nobody says how long answers may be
TRIED_TOKENS = 5  # with each number of threads
READ_TOKENS = 4096  # of a text whose logits are asked for

bindings.disable_logging()


class LoadedLlama(bindings.LlamaModel):  # type: ignore[misc]
    """A GGUF file in memory, as it lies."""

    @property
    def n_vocab(self) -> int:
        """cyllama's own contexts ask for this and find nothing."""
        return int(self.get_vocab().n_vocab)


def load(file: Path) -> LoadedLlama:
    """The model of a GGUF file; ValueError for one that llama.cpp refuses."""
    options = bindings.LlamaModelParams()
    return LoadedLlama(str(file), options, verbose=False)


def room(context: int, slots: int, asked: int | None) -> int:
    """Tokens of one answer, prompt included."""
    return min(context, asked or max(READ_TOKENS // 2, MOST_CELLS // slots))


class LlamaRunner:
    """See `inference.engine.ExportedRunner`.

    With `keeps` a sequence that was left stays as it is until its place is needed, and a prompt
    that begins as it did goes on from there.
    """

    joins = True

    def __init__(self, model: LoadedLlama, *, slots: int, context: int, threads: int, keeps: bool) -> None:
        self._model, self._threads = model, threads
        self._context = self._opened(slots, context)
        self._reader: Any = None
        self._batch = bindings.LlamaBatch(n_tokens=BATCH_TOKENS, embd=0, n_seq_max=1)
        self._keeps, self._free = keeps, list(range(slots))  # those left most recently last
        self._likeliest = bindings.LlamaSampler(bindings.LlamaSamplerChainParams())
        self._likeliest.add_greedy()
        self._context.set_n_threads(self._fastest(), threads)
        self._sequences: list[int] = []  # by row
        self._read: list[list[int]] = [[] for _ in range(slots)]  # by sequence

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool]) -> list[Tensor | int]:
        """Read prompts end to end, in calls of a bounded size."""
        logits, pending = list[Tensor | int](), list[tuple[int, bool]]()
        for prompt, is_plain in zip(prompts, plain, strict=True):
            sequence, known = self._begun(prompt)
            self._sequences.append(sequence)
            for position, token in enumerate(prompt[known:], known):
                if self._batch.n_tokens == BATCH_TOKENS:
                    logits += self._next(pending)
                    pending = []
                last = position == len(prompt) - 1
                if last:
                    pending.append((self._batch.n_tokens, is_plain))
                self._batch.add(token, position, [sequence], last)
        return logits + self._next(pending)

    def advance(self, tokens: Sequence[int], plain: Sequence[bool]) -> list[Tensor | int]:
        """One token of every sequence, in one call."""
        # llama.cpp computes sequences together whose numbers follow one another, and others apart.
        order = sorted(range(len(tokens)), key=lambda row: self._sequences[row])
        for row in order:
            sequence = self._sequences[row]
            self._batch.add(tokens[row], len(self._read[sequence]), [sequence], True)
            self._read[sequence].append(tokens[row])
        return self._next([(order.index(row), is_plain) for row, is_plain in enumerate(plain)])

    def remove(self, row: int) -> None:
        """Leave a sequence."""
        sequence = self._sequences[row]
        if not self._keeps:
            self._forget(sequence)
        self._free.append(sequence)
        self._sequences[row] = self._sequences[-1]
        self._sequences.pop()

    def read(self, ids: Sequence[int]) -> Array:
        """Logits of every token of a text, in a context of its own."""
        if self._reader is None:
            self._reader = self._opened(1, min(READ_TOKENS, int(self._model.n_ctx_train)))
        rows = []
        for first in range(0, len(ids), BATCH_TOKENS):
            part = ids[first : first + BATCH_TOKENS]
            for position, token in enumerate(part, first):
                self._batch.add(token, position, [0], True)
            self._run(self._reader)
            rows += [_logits(self._reader, place) for place in range(len(part))]
        self._reader.memory_seq_rm(0, -1, -1)
        return np.stack(rows)

    def close(self) -> None:
        """Give contexts and model back."""
        for each in (self._context, self._reader, self._model):
            if each is not None:
                each.close()

    def _begun(self, prompt: Sequence[int]) -> tuple[int, int]:
        """A free sequence, and how many of the prompt's tokens it holds."""
        known = [common(self._read[sequence], prompt) for sequence in self._free]
        # If none knows, one beside those that run (see `advance`), of these the one left first.
        beside = [not {each - 1, each + 1}.isdisjoint(self._sequences) for each in self._free]
        place = max(range(len(known)), key=lambda i: (known[i], beside[i], -i))
        best, sequence = known[place], self._free.pop(place)
        # Layers with a window may have dropped what the beginning needs.
        whole = best > 0 and self._context.memory_seq_pos_min(sequence) == 0
        if not (whole and self._context.memory_seq_rm(sequence, best, -1)):
            self._forget(sequence)
            best = 0
        self._read[sequence] = list(prompt)
        return sequence, best

    def _fastest(self) -> int:
        """How many threads write a single token soonest: they wait for one another at every layer,
        and where something else runs, two were half as fast as one.
        """
        num, seconds = self._threads, dict[int, float]()
        while num and self._threads > 1:
            self._context.set_n_threads(num, self._threads)
            times = []
            for position in range(TRIED_TOKENS):
                started = time.perf_counter()
                self._batch.add(0, position, [0], True)
                self._run(self._context)
                times.append(time.perf_counter() - started)
            self._context.memory_seq_rm(0, -1, -1)
            seconds[num] = sorted(times)[len(times) // 2]
            num //= 2
        return min(seconds, key=lambda n: seconds[n], default=self._threads)

    def _forget(self, sequence: int) -> None:
        self._context.memory_seq_rm(sequence, -1, -1)
        self._read[sequence] = []

    def _opened(self, slots: int, context: int) -> Any:
        options = bindings.LlamaContextParams()
        options.n_seq_max, options.n_ctx = slots, slots * context
        options.n_batch = options.n_ubatch = BATCH_TOKENS
        options.n_threads = options.n_threads_batch = self._threads
        options.no_perf = True
        return bindings.LlamaContext(self._model, options, verbose=False)

    def _next(self, places: list[tuple[int, bool]]) -> list[Tensor | int]:
        """Decode what was added; at places of it logits or, of plain rows, the likeliest token.

        The engine's own sampler finds that in 0.06 ms of 49,152; getting at logits takes 1.5 ms.
        """
        self._run(self._context)
        return [
            int(self._likeliest.sample(self._context, place))
            if is_plain
            else torch.from_numpy(_logits(self._context, place))
            for place, is_plain in places
        ]

    def _run(self, context: Any) -> None:
        """Decode what was added."""
        context.decode(self._batch)
        self._batch.clear()


def _logits(context: Any, place: int) -> Array:
    """Of one place of the last decode; through NumPy, as torch reads a list seven times slower."""
    return np.array(context.get_logits_ith(place), np.float32)


# An exported GGUF file as a session.


class GgufSession(ExportedSession):
    """Also says how the file itself splits a text, which other programs will go by."""

    def __init__(self, model: LoadedLlama, folder: Path, opening: Opening) -> None:
        beside = read_sidecar(folder)
        context = room(beside.context, opening.slots, opening.context)
        runner = LlamaRunner(
            model, slots=opening.slots, context=context, threads=opening.threads, keeps=opening.prefix_mb > 0
        )
        super().__init__(runner, beside, opening, context=context)
        self._vocabulary = model.get_vocab()
        self.tokenizer.chat_template = model.get_default_chat_template() or None

    def own_ids(self, text: str) -> list[int]:
        """The tokens of a text as llama.cpp splits it, special ones in front included."""
        return [int(i) for i in self._vocabulary.tokenize(text, True, True)]


def open_gguf(folder: Path, opening: Opening) -> GgufSession:
    """The session of `model.gguf` in a folder; raises GateError where llama.cpp refuses it."""
    file = folder / GGUF_FILE
    read_sidecar(folder)
    try:
        model = load(file)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise GateError(f"{file}: llama.cpp does not load it ({error}).") from None
    return GgufSession(model, folder, opening)
