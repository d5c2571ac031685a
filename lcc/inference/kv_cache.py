"""KV cache of running answers: a row each, all ending at the same column; and the prefix cache.

Rows end together, as left-padded texts do, so that whatever a family does about positions (masks,
windows, relative biases) is what its own code does for padded texts. One more token of every row
is one more column; who leaves is replaced by the last row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

if TYPE_CHECKING:
    Layers = list[tuple[Tensor, Tensor]]

FEW = 128  # columns to begin with


class _BufferWindow:
    """Which part of the buffers the running forward reads, and how many columns it adds."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows  # as many as ever
        self.rows = slice(0, 0)
        self.begin = self.end = self.num_new = 0
        self.capacity = FEW


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffers (rows, heads, columns, head size), seen through the shared window."""

    is_sliding = False

    def __init__(self, window: _BufferWindow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (self._room(t) for t in (key_states, value_states))
        self.is_initialized = True

    def _room(self, like: Tensor) -> Tensor:
        # Zeros, as what nobody may attend to is still multiplied by zero: a NaN would stay one.
        window = self.window
        return like.new_zeros(window.num_rows, like.shape[1], window.capacity, like.shape[3])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        window = self.window
        new = slice(window.end - window.num_new, window.end)
        self.keys[window.rows, :, new] = key_states
        self.values[window.rows, :, new] = value_states
        seen = slice(window.begin, window.end)
        return self.keys[window.rows, :, seen], self.values[window.rows, :, seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.end - self.window.begin, 0

    def get_seq_length(self) -> int:
        return self.window.end - self.window.begin - self.window.num_new

    def get_max_length(self) -> int:
        return -1

    def move(self, rows: int, begin: int, end: int, to: int) -> None:
        """Columns of the first `rows` to where they end at `to`, in buffers of full size."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old if old.shape[2] == self.window.capacity else self._room(old)
            new[:rows, :, to - (end - begin) : to] = old[:rows, :, begin:end].clone()
            setattr(self, name, new)

    def seen(self, row: int, columns: slice) -> tuple[Tensor, Tensor]:
        """Views (heads, columns, head size)."""
        assert self.keys is not None and self.values is not None
        return self.keys[row, :, columns], self.values[row, :, columns]

    def copy_row(self, source: int, target: int) -> None:
        for buffer in (self.keys, self.values):
            assert buffer is not None
            buffer[target].copy_(buffer[source])


class _CrossLayer(_Layer):  # type: ignore[no-untyped-call]
    """What a layer reads of the encoders' outputs: rows begin together, and are written once."""

    def __init__(self, window: _BufferWindow) -> None:
        super().__init__(window)
        self.whole_keys: Tensor | None = None
        self.whole_values: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.whole_keys is None:
            self.whole_keys, self.whole_values = self._room(key_states), self._room(value_states)
            self.is_initialized = True
        assert self.whole_keys is not None and self.whole_values is not None
        width = key_states.shape[2]
        self.whole_keys[self.window.rows, :, :width] = key_states
        self.whole_values[self.window.rows, :, :width] = value_states
        return key_states, value_states

    def show(self, rows: slice, width: int) -> None:
        """From here on the model sees these rows, this wide."""
        assert self.whole_keys is not None and self.whole_values is not None
        self.keys = self.whole_keys[rows, :, :width]
        self.values = self.whole_values[rows, :, :width]

    def widen(self) -> None:
        for name in ("whole_keys", "whole_values"):
            old = getattr(self, name)
            if old is not None and old.shape[2] < self.window.capacity:
                new = self._room(old)
                new[:, :, : old.shape[2]] = old
                setattr(self, name, new)

    def copy_row(self, source: int, target: int) -> None:
        for buffer in (self.whole_keys, self.whole_values):
            assert buffer is not None
            buffer[target].copy_(buffer[source])


class KVCache:
    """The cache of all running answers; `cache` is what a model's forward takes."""

    def __init__(self, num_rows: int, num_layers: int, *, crossed: bool) -> None:
        self._window, self._cross = _BufferWindow(num_rows), _BufferWindow(num_rows)
        self._layers = [_Layer(self._window) for _ in range(num_layers)]
        self._cross_layers = [_CrossLayer(self._cross) for _ in range(num_layers * crossed)]
        self.cache: Any = Cache(layers=list(self._layers))
        if crossed:
            self.cache = EncoderDecoderCache(self.cache, Cache(layers=list(self._cross_layers)))
        self.starts: list[int] = []  # first column of each row
        self.sources: list[int] = []  # tokens of each row's encoder output
        self._end = 0

    @property
    def lengths(self) -> list[int]:
        """Columns that each row fills, the running one included."""
        return [self._window.end - start for start in self.starts[self._window.rows]]

    @property
    def width(self) -> int:
        """Columns that the running forward sees."""
        return self._window.end - self._window.begin

    def add(self, lengths: list[int], num_new: int, sources: list[int] | None = None) -> None:
        """Open a row for each; the forward that follows fills the last `num_new` columns."""
        longest, rows = max(lengths), slice(len(self.starts), len(self.starts) + len(lengths))
        if self._end < longest:
            self._place(longest)
        self.starts += [self._end - length for length in lengths]
        self.sources += sources or []
        window = self._window
        window.rows, window.num_new = rows, num_new
        window.begin, window.end = self._end - longest, self._end
        if sources is not None:
            self._cross.rows = rows
            while self._cross.capacity < max(sources):
                self._cross.capacity *= 2
            for layer in self._cross_layers:
                layer.widen()
            self.cache.is_updated.update(dict.fromkeys(range(len(self._layers)), False))

    def layers_of(self, row: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (heads, columns, head size) of each layer, as far as the row goes."""
        return [layer.seen(row, slice(self.starts[row], self._end)) for layer in self._layers]

    def fill(self, row: int, layers: list[tuple[Tensor, Tensor]], length: int) -> None:
        """Begin a row with the first `length` columns of another's."""
        new = slice(self.starts[row], self.starts[row] + length)
        for mine, others in zip(self._layers, layers, strict=True):
            for into, other in zip(mine.seen(row, new), others, strict=True):
                into.copy_(other[:, :length])

    def advance(self) -> None:
        """Open one more column for every row."""
        window = self._window
        if self._end == window.capacity:
            self._place(self._end - min(self.starts))
        self._end += 1
        window.rows, window.num_new = slice(0, len(self.starts)), 1
        window.begin, window.end = min(self.starts), self._end
        if self._cross_layers:
            for layer in self._cross_layers:
                layer.show(window.rows, max(self.sources))
            self.cache.is_updated.update(dict.fromkeys(range(len(self._layers)), True))

    def remove(self, row: int) -> None:
        """Give a row to the last one."""
        last = len(self.starts) - 1
        if row != last:
            for layer in [*self._layers, *self._cross_layers]:
                layer.copy_row(last, row)
        for each in (self.starts, self.sources):
            if each:
                each[row] = each[-1]
                each.pop()
        if not self.starts:
            self._end = 0

    def _place(self, end: int) -> None:
        """Move what is there so that it ends at column `end`, with room for a good many more."""
        window = self._window
        while window.capacity < end + FEW // 2:
            window.capacity *= 2
        shift = end - self._end
        if self.starts:
            for layer in self._layers:
                layer.move(len(self.starts), min(self.starts), self._end, end)
        else:
            for layer in self._layers:
                if layer.is_initialized and layer.keys.shape[2] != window.capacity:  # type: ignore[union-attr]
                    layer.move(0, 0, 0, end)
        self.starts = [start + shift for start in self.starts]
        self._end = end


# Keys and values of what was read already, for prompts that begin as it did.
#
# A conversation's next turn begins with all that was said before, and prompts of one task with the
# same instructions and demonstrations: only what follows must be read.

LEAST = 8  # tokens in common that are worth a copy
MOST_KEPT = 64  # texts


@dataclass(eq=False)
class CachedPrefix:
    """A text that was read; `layers` are keys and values (heads, tokens, head size) of each."""

    ids: list[int]
    layers: Layers

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


class PrefixCache:
    """Texts of rows that left, the least recently used evicted beyond `budget` bytes."""

    def __init__(self, budget: int, least: int = LEAST) -> None:
        self.budget, self.least = budget, least
        self._kept: list[CachedPrefix] = []  # the most recently used last

    @property
    def bytes(self) -> int:
        """What all of them take."""
        return sum(kept.bytes for kept in self._kept)

    def keep(self, ids: Sequence[int], layers: Layers) -> None:
        """Keep a text in place of those that it goes on from; one beyond the budget is not kept."""
        new = CachedPrefix(list(ids), layers)
        if new.bytes > self.budget:
            return
        self._kept = [kept for kept in self._kept if new.ids[: len(kept.ids)] != kept.ids]
        self._kept.append(new)
        while self.bytes > self.budget or len(self._kept) > MOST_KEPT:
            self._kept.pop(0)

    def longest(self, ids: Sequence[int]) -> tuple[CachedPrefix | None, int]:
        """The text that begins as `ids` does for the most tokens, and for how many."""
        lengths = [common(kept.ids, ids, self.least) for kept in self._kept]
        best = max(lengths, default=0)
        return (self._kept[lengths.index(best)], best) if best else (None, 0)

    def used(self, kept: CachedPrefix) -> None:
        """It is the most recently used one now."""
        self._kept.remove(kept)
        self._kept.append(kept)


def common(known: Sequence[int], ids: Sequence[int], least: int = LEAST) -> int:
    """Tokens that both begin with, 0 for a few; the last of `ids` must be read in any case."""
    most = min(len(known), len(ids) - 1)
    if most < least or list(known[:least]) != list(ids[:least]):
        return 0
    pairs = zip(known[:most], ids[:most], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), most)
