"""Offloaded models: a skeleton without weights for a model too large for memory, and its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch, transformers
from lcc.core.machine import return_freed, return_large_blocks
from lcc.models.card import Card, auto_class, hush
from lcc.models.formats import unpacked_tensors
from lcc.models.safetensors_io import StoredTensors, TensorEntry, write_model

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

LARGE_BYTES = 1 << 24  # smaller parameters outside the blocks stay in memory


@dataclass
class _Placeholder:
    """Where a parameter that was brought in has its place, and what stood there before."""

    module: Module
    leaf: str
    empty: Any


class OffloadedModule:
    """A module on the meta device whose parameters are brought in and dropped by name.

    A parameter with several names (a tied head) is one tensor here too.
    """

    def __init__(
        self, module: Any, stored: StoredTensors, *, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        self.module, self.stored, self.device = module, stored, device
        self.dtype = getattr(torch, dtype)
        self.prefix = module.base_model_prefix
        self.sharing = _sharing(module)
        self.source = {n: self._source(names) for n, names in self.sharing.items()}
        self.transposed = _transposed(module)
        self._here: dict[str, list[_Placeholder]] = {}  # first name of a parameter → its places
        self.changed: Callable[[], Mapping[str, TensorEntry]] = dict  # name → what became of it
        self._load_buffers()
        self._compute_unsaved()

    def missing(self) -> list[str]:
        """Parameters that no file holds under their own name."""
        return sorted(n for n, s in self.source.items() if s is None and n not in self._here)

    def bring(self, prefix: str) -> None:
        """Read every parameter below the module `prefix` into memory."""
        for name in self._below(prefix):
            source = self.source[name]
            if name in self._here or source is None:
                continue
            values = self.stored.read(source, dtype=self.dtype).to(self.device)
            self._here[name] = self._place(name, values)

    def drop(self, prefix: str) -> None:
        """Give the memory of every parameter below the module `prefix` back, to the system."""
        for name in self._below(prefix):
            if self.source[name] is None:
                continue
            for place in self._here.pop(name, []):
                place.module._parameters[place.leaf] = place.empty
        return_freed()

    def settle(self, blocks: Iterable[str]) -> list[str]:
        """Bring in what is small outside the `blocks` for good; returns the large modules there."""
        inside = tuple(f"{block}." for block in blocks)
        large: dict[str, None] = {}
        for name, names in self.sharing.items():
            if name.startswith(inside):
                continue
            if self._parameter(name).numel() * self.dtype.itemsize < LARGE_BYTES:
                self.bring(name)
            else:
                large |= dict.fromkeys(alias.rpartition(".")[0] for alias in names)
        return list(large)

    def write(self, folder: Path, *, dtype: str, replaced: Mapping[str, Mapping[str, TensorEntry]]) -> None:
        """The weights as `from_pretrained` reads them, tensor by tensor, floats in `dtype`.

        `replaced` holds what is stored in place of a layer's weight.
        """
        changed, entries = self.changed(), list[TensorEntry]()
        for name, source in self.source.items():
            if source is None:
                continue
            layer = name.removesuffix(".weight")
            if layer in replaced and layer != name:
                stem = source.removesuffix(".weight")
                entries += [e.renamed(f"{stem}.{leaf}") for leaf, e in replaced[layer].items()]
                continue
            entry = changed.get(name, self.stored.entries[source]).renamed(source)
            if name in changed and name in self.transposed:
                entry = entry.turned()
            entries.append(entry)
        entries += [self.stored.entries[name] for name in self.persistent]
        write_model([entry.cast(dtype) for entry in entries], folder)

    def _below(self, prefix: str) -> list[str]:
        return [
            first
            for first, names in self.sharing.items()
            if any(name == prefix or name.startswith(f"{prefix}.") for name in names)
        ]

    def _place(self, name: str, values: Tensor) -> list[_Placeholder]:
        parameter, places = torch.nn.Parameter(values, requires_grad=False), []
        for alias in self.sharing[name]:
            owner, _, leaf = alias.rpartition(".")
            module = self.module.get_submodule(owner)
            empty = module._parameters[leaf]
            assert empty is not None
            if name in self.transposed and isinstance(module, torch.nn.Linear):
                parameter.data = parameter.data.T.contiguous()  # it stands for a Conv1D meanwhile
            places.append(_Placeholder(module, leaf, empty))
            module._parameters[leaf] = parameter
        return places

    def _parameter(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        return getattr(self.module.get_submodule(owner), leaf)  # type: ignore[no-any-return]

    def _source(self, names: Iterable[str]) -> str | None:
        spelled = (alias for name in names for alias in self._spellings(name))
        return next((name for name in spelled if name in self.stored.entries), None)

    def _spellings(self, name: str) -> tuple[str, ...]:
        """A headless checkpoint lacks the body's prefix, a body read from a whole one has it."""
        return (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}."))

    def _load_buffers(self) -> None:
        self.persistent = []
        for name, buffer in self.module.named_buffers():
            source = self._source([name])
            if source is not None:
                buffer.data = self.stored.read(source, dtype=buffer.dtype)
                self.persistent.append(source)
            buffer.data = buffer.data.to(self.device)

    def _compute_unsaved(self) -> None:
        """Parameters that are computed and never stored: Marian's positions."""
        unsaved = self.module._keys_to_ignore_on_save or ()
        for name in [n for n, s in self.source.items() if s is None and n in unsaved]:
            empty = self._parameter(name)
            self._here[name] = self._place(name, torch.empty(empty.shape, dtype=self.dtype))
            self.module._init_weights(self.module.get_submodule(name.rpartition(".")[0]))
            self._parameter(name).data = self._parameter(name).data.to(self.device)


def stream(card: Card, path: Path, *, device: str, dtype: str) -> OffloadedModule | None:
    """The model in `path` without its weights, or None where it must be read whole."""
    streamed = OffloadedModule(skeleton(card, path, dtype), StoredTensors(path), device=device, dtype=dtype)
    if streamed.missing():
        return None  # Stored under other names, which from_pretrained knows to convert.
    return_large_blocks()
    return streamed


def offloaded(card: Card, path: Path) -> Any:
    """The module in `path` in float32; whatever runs in it has its weights just then."""
    from accelerate.hooks import attach_align_device_hook  # type: ignore[import-untyped]

    streamed = OffloadedModule(skeleton(card, path), unpacked_tensors(path))
    assert not streamed.missing(), streamed.missing()
    weights = _LazyWeights(streamed)
    attach_align_device_hook(
        streamed.module, execution_device=torch.device("cpu"), offload=True, weights_map=weights
    )
    return streamed.module


class _LazyWeights(Mapping[str, "Tensor"]):
    """The parameters of a streamed model by each of their names, read when asked for."""

    def __init__(self, streamed: OffloadedModule) -> None:
        self.streamed = streamed
        self.first = {name: n for n, names in streamed.sharing.items() for name in names}
        computed = [name for name, source in streamed.source.items() if source is None]
        self.computed = {name: streamed._parameter(name).detach() for name in computed}

    def __getitem__(self, name: str) -> Tensor:
        source = self.streamed.source[self.first[name]]
        if source is None:
            return self.computed[self.first[name]]
        return self.streamed.stored.read(source, dtype=self.streamed.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.first)

    def __len__(self) -> int:
        return len(self.first)


def skeleton(card: Card, path: Path, dtype: str = "float32") -> Any:
    """The module in `path` with buffers but no weights."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    hush()
    config = transformers.AutoConfig.from_pretrained(path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # Its layers are plain ones here.
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        module = auto_class(card).from_config(config, dtype=getattr(torch, dtype))
    module.tie_weights()  # Going to the meta device one by one has separated them.
    return module.eval()


def _sharing(module: Any) -> dict[str, list[str]]:
    """The first name of every parameter → all its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {shared[0]: shared for shared in names.values()}


def _transposed(module: Any) -> set[str]:
    """Weights that GPT-2 stores inputs first."""
    from transformers.pytorch_utils import Conv1D

    return {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, Conv1D)}
