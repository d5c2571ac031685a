"""The pasts of answers in the making, as one batch that an exported graph goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lcc.inference.graph_files import empty_past


class Pasts:
    """Keys and values (rows, heads, columns, head size) of rows that end at the same column.

    Columns before a row's first are zeros that its mask hides, as in left-padded texts; `lengths`
    are the tokens of each row.
    """

    def __init__(self, config: Any) -> None:
        self.cache, self.lengths = empty_past(config), [0]

    def inputs(self, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the graph is asked for as many more tokens of every row."""
        num_new = len(ids[0])
        lengths = torch.tensor(self.lengths)[:, None]
        columns = torch.arange(max(self.lengths) + num_new - 1, -1, -1)
        return {"input_ids": torch.tensor([list(row) for row in ids]),
                "position_ids": lengths + torch.arange(num_new),
                "attention_mask": (columns < lengths + num_new).long(),
                "past_key_values": self.cache}  # fmt: skip

    def went_on(self, cache: Any, num_new: int) -> None:
        """The graph has read them, and `cache` is the past with them."""
        self.cache = cache
        self.lengths = [length + num_new for length in self.lengths]

    def join(self, other: Pasts) -> None:
        """Take another's rows in, after these."""
        self.lengths = self.lengths + other.lengths
        width = max(self.lengths)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_widened(layer.keys, width) for layer in (mine, theirs)])
            mine.values = torch.cat([_widened(layer.values, width) for layer in (mine, theirs)])

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        kept = list(range(len(self.lengths)))
        kept[row] = kept[-1]
        kept.pop()
        self.lengths = [self.lengths[i] for i in kept]
        width = max(self.lengths, default=0)
        for layer in self.cache.layers:
            first = layer.keys.shape[2] - width
            layer.keys, layer.values = (t[kept, :, first:] for t in (layer.keys, layer.values))


def _widened(kept: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(kept, (0, 0, width - kept.shape[2], 0))
