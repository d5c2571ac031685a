"""Bundle: a model with its tokenizer and card, opened from disk lazily, changed in memory, saved again."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError, IntegrityError, RecipeError
from lcc.core.lazy import torch, transformers
from lcc.core.types import AUTO_CLASSES, UNTRAINED, Head
from lcc.models.adapters import put_adapter
from lcc.models.card import ADAPTER, Card, auto_class, examine, hush, read_card, read_json
from lcc.models.formats import FORMAT, is_one_scheme, read_factored, unpacked
from lcc.models.offload import OffloadedModule, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Bundle:
    """A model: card, folder it came from, and (once loaded) module and tokenizer.

    A stage works on `load()` in place, or sets `module` to another one; `write`, set by a packing
    stage, writes weights and config into a folder in place of `save_pretrained`. With `streamed`
    set (see models.offload) the module holds no weights but those that were brought in, and
    `aside.output` is what it said to the probe (see reload_check). `emptied` names matrices that a
    stage zeroed on purpose.
    """

    card: Card
    path: Path | None = None
    module: Any = None
    write: Callable[[Bundle, Path], None] | None = None
    native: bool = dataclasses.field(default=False, init=False)
    streamed: OffloadedModule | None = dataclasses.field(default=None, init=False, repr=False)
    aside: Any = dataclasses.field(default=None, init=False, repr=False)
    emptied: frozenset[str] = dataclasses.field(default=frozenset(), init=False)
    _tokenizer: Any = dataclasses.field(default=None, repr=False)
    tokenizer_changed: bool = dataclasses.field(default=False, init=False)

    def load(
        self,
        *,
        device: str | None = "cpu",
        dtype: str | None = "float32",
        native: bool = False,
        **placed: Any,
    ) -> Any:
        """The module in memory, in eval mode when freshly read; None keeps a loaded one's own.

        Packed weights are dequantized to dense unless `native`; `placed` goes to `from_pretrained`.
        """
        if self.module is None or (self.native and not native and self.path is not None):
            self.module = self._read(dtype or self.card.dtype, native=native, placed=placed)
            self.native = native and self.card.form == "packed"
        elif (
            dtype is not None and self.streamed is None and getattr(self.module, "hf_quantizer", None) is None
        ):
            _with_parameters_in(self.module, dtype)
        if self.streamed is not None:
            return self.module
        return self.module if device is None or self.native else self.module.to(device)

    def stream(self, *, device: str = "cpu", dtype: str = "float32") -> Any:
        """The module without weights, in eval mode, or None where it must be read whole.

        `streamed` then brings parts of it in.
        """
        if self.module is None and self.path is not None and self.card.form == "dense":
            self.streamed = stream(self.card, self.path, device=device, dtype=dtype)
            self.module = self.streamed.module if self.streamed is not None else None
            return self.module
        return None

    def release(self) -> None:
        """Release the module; the next `load()` reads the folder again."""
        self.module, self.native, self.streamed = None, False, None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read at first use; raises DataError for a model without one."""
        if self._tokenizer is None:
            if self.path is None or not has_tokenizer(self.path):
                raise DataError(f"model {self.card.name!r} has no tokenizer files beside it.")
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
        return self._tokenizer  # type: ignore[no-any-return]

    @tokenizer.setter
    def tokenizer(self, value: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self.tokenizer_changed = value, True

    def with_card(self, **changes: Any) -> None:
        """Change fields of the card in place."""
        self.card = dataclasses.replace(self.card, **changes)

    def lacks_head(self, head: Head) -> bool:
        """Whether a task with this head finds none, or an untrained one."""
        return self.card.headless or self.card.head != head

    def with_head(
        self, head: Head, *, num_labels: int = 2, seed: int = 0, labels: Sequence[str] = ()
    ) -> Bundle:
        """Give the model this head, in place; only tensors that it lacks are drawn, from `seed`.

        Raises RecipeError for a generating head: a language model cannot be made from an encoder.
        """
        if not self.lacks_head(head) and not self._other_labels(head, num_labels):
            return self
        if head in ("causal", "seq2seq"):
            raise RecipeError(
                f"task: needs a {head} head, which model {self.card.name!r} "
                f"({self.card.head}) does not have; choose a model that generates."
            )
        self.module = _with_new_head(self.load(device=None), head, num_labels, seed, labels)
        self.with_card(head=head, auto_class=AUTO_CLASSES[head], headless=head in UNTRAINED)
        return self

    def _other_labels(self, head: Head, num_labels: int) -> bool:
        return head == "classify" and self.load(dtype=None).config.num_labels != num_labels

    def _read(self, dtype: str, *, native: bool, placed: dict[str, Any]) -> Any:
        assert self.path is not None, "a bundle without a folder must carry its module"
        hush()
        if self.card.adapter:
            return self._read_adapted(dtype, native=native)
        if self.card.format == FORMAT:
            return read_factored(auto_class(self.card), self.path, dtype=dtype)
        options = {"dtype": getattr(torch, dtype), "use_safetensors": True, **placed}
        dequantize = self.card.form == "packed" and not native
        integers = dequantize and self.card.format == "compressed-tensors"
        by_layer = integers and not is_one_scheme(self.path)
        if by_layer:
            options["dtype"] = getattr(torch, self.card.dtype)  # Scales as they are stored.
        elif integers:
            config = transformers.CompressedTensorsConfig(dequantize=True)
            options["quantization_config"] = config
        with warnings.catch_warnings():
            # Asking for dense weights passes a config beside the checkpoint's own; that is meant.
            warnings.filterwarnings("ignore", message="You passed `quantization_config`")
            module = _from_disk(self.card, self.path, options)
        if dequantize and self.card.format == "bitsandbytes":
            # bitsandbytes gives back the dtype it quantized from, whatever is asked.
            module = _with_parameters_in(module.dequantize(getattr(torch, dtype)), dtype)
        return _with_parameters_in(unpacked(module), dtype) if by_layer else module

    def _read_adapted(self, dtype: str, *, native: bool) -> Any:
        """The base with its own adapter on it, or merged into it where that can be."""
        assert self.path is not None
        base = Bundle(dataclasses.replace(self.card, adapter=False), self.path)
        module = base._read(dtype, native=native, placed={})
        return put_adapter(module, self.path / ADAPTER, merge=not native)


def open_bundle(path: Path) -> Bundle:
    """The checkpoint in `path` (a folder with config.json), checked but not yet loaded."""
    examine(path)
    return Bundle(card=read_card(path), path=path)


def _from_disk(card: Card, path: Path, options: dict[str, Any]) -> Any:
    """The module; raises RecipeError for an unknown family, IntegrityError for absent weights."""
    family = read_json(path / "config.json").get("model_type")
    if family not in transformers.CONFIG_MAPPING:
        raise RecipeError(
            f"{path}: its architecture {family!r} is not known to transformers "
            f"{transformers.__version__}; choose another model or a newer transformers."
        )
    # What the files lack is drawn at random: from a fixed seed, and for heads that need training.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            module, info = auto_class(card).from_pretrained(path, output_loading_info=True, **options)
        except (ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RecipeError(f"{path}: transformers cannot load it as {card.auto_class}: {reason}") from None
    absent = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if absent and card.form == "dense" and not card.headless:
        raise IntegrityError(
            f"{path}: {len(absent)} tensors are missing from its files, {absent[0]} among them; "
            "fetch the model again."
        )
    return module


def has_tokenizer(path: Path) -> bool:
    """Whether tokenizer files lie in a model folder."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
    return any((path / name).is_file() for name in names)


def _with_parameters_in(module: Any, dtype: str) -> Any:
    """Cast parameters only: rotary frequencies and the like stay as `from_pretrained` has them."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return module


def _with_new_head(module: Any, head: Head, num_labels: int, seed: int, labels: Sequence[str]) -> Any:
    config = copy.deepcopy(module.config)
    if head == "classify":
        names = list(labels) or [f"LABEL_{i}" for i in range(num_labels)]
        config.num_labels = num_labels
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            kind = getattr(transformers, AUTO_CLASSES[head])
            fresh = kind.from_config(config, dtype=module.dtype)
        except ValueError:
            raise RecipeError(
                f"a model of the family {config.model_type!r} can have no {head} head; choose "
                "another model, or another objective or task."
            ) from None
    fresh.base_model.load_state_dict(module.base_model.state_dict(), strict=False)
    return fresh.eval()
