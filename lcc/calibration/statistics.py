"""LayerStats: calibration statistics of one distinct linear input, in memory and on disk."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.disk import write_json
from lcc.core.errors import DataError
from lcc.core.lazy import safetensors_torch, torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.calibration.block_walker import Padding
    from lcc.distributed.dist import Dist

INDEX = "index.json"
MIRRORED_STRIP = 1024
STRIPS = ((1024, 4), (256, 3))  # at a width of so much, so many strips of a Gram's upper half
VECTORS = ("mean", "mean_abs", "max_abs", "diagonal")


@dataclass
class LayerStats:
    """What calibration saw at one distinct linear input; sums run over `num_tokens` tokens."""

    num_tokens: int
    mean: Tensor  # (in,)
    mean_abs: Tensor  # (in,)
    max_abs: Tensor  # (in,)
    diagonal: Tensor  # (in,), of the Gram: sum of x²
    gram: Tensor | None = None  # (in, in) float32: sum of x xᵀ
    source: str = ""  # the first layer that read it

    @property
    def input_norm(self) -> Tensor:
        """√(sum of x²) of every input, (in,)."""
        return self.diagonal.sqrt()

    @property
    def variance(self) -> Tensor:
        """Of every input around its mean, (in,)."""
        return (self.diagonal / self.num_tokens - self.mean.square()).clamp(min=0)

    def __post_init__(self) -> None:
        assert self.num_tokens > 0, "a layer saw no token"


class Sums:
    """Running sums of one distinct input."""

    def __init__(self, *, gram: bool) -> None:
        self.wants_gram, self.num_tokens = gram, 0
        self.total: Any = None
        self.total_abs: Any = None
        self.max_abs: Any = None
        self.square: Any = None
        self.gram: Any = None

    def add(self, x: Tensor) -> None:  # (tokens, in)
        x = x.float()
        if self.total is None:
            self._open(x)
        magnitude, ones = x.abs(), x.new_ones(x.shape[0])
        self.num_tokens += x.shape[0]
        # Sums over tokens as products with ones: twice as fast as summing down the columns.
        self.total += ones @ x
        self.total_abs += ones @ magnitude
        if x.shape[0]:
            torch.maximum(self.max_abs, magnitude.amax(dim=0), out=self.max_abs)
        if self.wants_gram:
            _add_upper(self.gram, x)
        else:
            self.square += ones @ x.square()

    def _open(self, x: Tensor) -> None:
        width = x.shape[1]
        self.total, self.total_abs, self.max_abs, self.square = x.new_zeros(4, width).unbind()
        if self.wants_gram:
            self.gram = x.new_zeros(width, width)

    def reduce(self, dist: Dist) -> None:
        """Sum over the processes of `dist`, in place."""
        if dist.world_size == 1:
            return
        largest = self.gram if self.wants_gram else self.square
        dist.sum_([self.total, self.total_abs, largest])
        dist.max_([self.max_abs])
        (self.num_tokens,) = map(int, dist.sum([self.num_tokens]))

    def stats(self, source: str = "") -> LayerStats:
        return LayerStats(
            source=source,
            num_tokens=self.num_tokens,
            mean=self.total / self.num_tokens,
            mean_abs=self.total_abs / self.num_tokens,
            max_abs=self.max_abs,
            diagonal=self.square if self.gram is None else self.gram.diagonal().clone(),
            gram=None if self.gram is None else _mirrored(self.gram),
        )


def _add_upper(gram: Tensor, x: Tensor) -> None:
    """Add xᵀx to the strips of `gram` that touch its upper triangle, in place."""
    width = x.shape[1]
    strip = -(-width // next((num for least, num in STRIPS if width >= least), 1))
    for first in range(0, width, strip):
        gram[first : first + strip, first:].addmm_(x[:, first : first + strip].T, x[:, first:])


def _mirrored(gram: Tensor) -> Tensor:
    """The whole symmetric matrix from its upper triangle, in place."""
    width = len(gram)
    for first in range(0, width, MIRRORED_STRIP):
        last = min(first + MIRRORED_STRIP, width)
        corner = gram[first:last, first:last].triu()
        gram[first:last, first:last] = corner + corner.triu(1).T
        gram[last:, first:last] = gram[first:last, last:].T
    return gram


def write_stats(stats: Mapping[str, LayerStats], folder: Path) -> None:
    """One file per distinct input, Grams as their upper triangle, and an index of the layers.

    `stats` maps layer names to statistics that may be shared; more can be added to `folder` later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = _index(folder)
    written = {entry["source"] for entry in index.values()}
    for name, layer_stats in stats.items():
        if layer_stats.source not in written:
            safetensors_torch.save_file(_tensors(layer_stats), folder / _file(layer_stats.source))
            written.add(layer_stats.source)
        index[name] = {
            "source": layer_stats.source,
            "num_tokens": layer_stats.num_tokens,
            "num_inputs": len(layer_stats.diagonal),
        }
    write_json(folder / INDEX, index)


def _file(source: str) -> str:
    return f"{source}.safetensors"


def _index(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / INDEX
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _tensors(stats: LayerStats) -> dict[str, Tensor]:
    tensors = {name: getattr(stats, name).contiguous().cpu() for name in VECTORS}
    if stats.gram is not None:
        upper = [row[i:] for i, row in enumerate(stats.gram.cpu().unbind())]
        tensors["gram_upper"] = torch.cat(upper)
    return tensors


class StoredStats(Mapping[str, LayerStats]):
    """Statistics in a folder, read when asked for; layers with one input give equal objects.

    Only the last one read is kept, so that memory holds one Gram.
    """

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        self.folder, self.device = folder, device
        self.index = _index(folder)
        self._last: LayerStats | None = None

    def __getitem__(self, layer: str) -> LayerStats:
        entry = self.index[layer]
        if self._last is None or self._last.source != entry["source"]:
            self._last = self._read(entry)
        return self._last

    def __iter__(self) -> Any:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def source(self, layer: str) -> str:
        """The first layer that read the same tensor."""
        return str(self.index[layer]["source"])

    def width(self, layer: str) -> int:
        """Inputs of a layer."""
        return int(self.index[layer]["num_inputs"])

    def _read(self, entry: dict[str, Any]) -> LayerStats:
        tensors = safetensors_torch.load_file(self.folder / _file(entry["source"]), device=self.device)
        upper = tensors.pop("gram_upper", None)
        gram = None if upper is None else _from_upper(upper, len(tensors["diagonal"]))
        return LayerStats(num_tokens=entry["num_tokens"], gram=gram, source=entry["source"], **tensors)


def _from_upper(upper: Tensor, width: int) -> Tensor:
    gram = upper.new_zeros(width, width)
    for i, row in enumerate(torch.split(upper, list(range(width, 0, -1)))):
        gram[i, i:] = row
    return _mirrored(gram)


# Which layers read one tensor, and the running sums of every such input.


class Tally:
    """Sums of every distinct input; a layer that reads a tensor already seen shares its sums."""

    def __init__(self, *, gram: bool, dist: Dist) -> None:
        self.gram, self.dist = gram, dist
        self.owners: dict[str, str] = {}  # layer → the first layer that read the same tensor
        self.sums: dict[str, Sums] = {}
        self.done: dict[str, LayerStats] = {}
        # Held weakly: an id means its tensor only while that lives.
        self.seen: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def note(self, name: str, x: Tensor, _padding: Padding) -> None:
        """Remember which layers read one tensor."""
        if name in self.owners:
            return
        known = self.seen.get(id(x))
        if known is None or known[0]() is not x:
            known = (weakref.ref(x), name)
            self.seen[id(x)] = known
        self.owners[name] = known[1]

    def see(self, name: str, x: Tensor, padding: Padding) -> None:
        self.note(name, x, padding)
        if self.owners[name] == name:
            sums = self.sums.setdefault(name, Sums(gram=self.gram))
            sums.add(padding.removed(name, x))

    def groups(self, layers: Mapping[str, Linear]) -> list[dict[str, Linear]]:
        """`layers` by owner, in the order in which they first ran."""
        ran = sorted(layers, key=list(self.owners).index)
        groups: dict[str, dict[str, Linear]] = {}
        for name in ran:
            groups.setdefault(self.owners[name], {})[name] = layers[name]
        return list(groups.values())

    def finish(self, layers: Mapping[str, Linear]) -> dict[str, LayerStats]:
        """Statistics of these layers, whose inputs have all been seen."""
        idle = next((name for name in layers if name not in self.owners), None)
        if idle is not None:
            raise DataError(
                f"calibration: layer {idle!r} is never run on this text (an expert without tokens,"
                " or a weight used past its layer); take a method without calibration."
            )
        self._forget()
        for owner in dict.fromkeys(self.owners[name] for name in layers):
            if owner in self.sums:
                sums = self.sums.pop(owner)
                sums.reduce(self.dist)
                self.done[owner] = sums.stats(owner)
        by_layer = {name: self.done[self.owners[name]] for name in layers}
        self._forget()
        return by_layer

    def _forget(self) -> None:
        """Drop finished statistics that no later layer can share: their tensors are gone."""
        self.seen = {key: known for key, known in self.seen.items() if known[0]() is not None}
        alive = {owner for _, owner in self.seen.values()}
        self.done = {owner: stats for owner, stats in self.done.items() if owner in alive}
