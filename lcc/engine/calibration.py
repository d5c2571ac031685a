"""What each distinct linear input looks like on calibration text: the statistics methods read.

This is the only room with torch hooks. Layers that read the same tensor (q, k and v; gate and up;
all cross-attention keys) share one LayerStats; padding never enters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.core.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lcc.parts.task import Task
    from lcc.stage import Context

Batch = dict[str, Any]  # keyword arguments of the model: int64 tensors (batch, tokens)


@dataclass
class LayerStats:
    """What calibration saw at one distinct linear input; sums run over `num_tokens` tokens."""

    num_tokens: int
    mean: Tensor  # (in,)
    mean_abs: Tensor  # (in,)
    max_abs: Tensor  # (in,)
    diagonal: Tensor  # (in,), of the Gram: sum of x²
    gram: Tensor | None = None  # (in, in) float32: sum of x xᵀ

    @property
    def input_norm(self) -> Tensor:
        """√(sum of x²) of every input, (in,)."""
        return self.diagonal.sqrt()


def collect(
    model: PreTrainedModel,
    batches: list[Batch],
    layers: Mapping[str, Linear],
    *,
    gram: bool = False,
    progress: Progress | None = None,
) -> dict[str, LayerStats]:
    """Statistics of the input of each layer; layers with one input share one object."""
    if not batches:
        raise DataError("calibration has no text: the training split is empty.")
    body: Any = model
    if set(layers.values()) <= set(model.base_model.modules()):
        body = model.base_model  # A large vocabulary's logits would cost more than the rest.
    body.eval()
    with torch.no_grad():
        owners = _owners(model, body, batches[0], layers)
        sums = {name: _Sums(gram) for name in set(owners.values())}
        with (progress or Progress(quiet=True)).track("calibrate", len(batches), "batch") as bar:
            for batch in batches:
                with _watching(model, layers, sums, batch):
                    body(**_for(body, batch))
                bar.advance()
    done = {name: total.stats() for name, total in sums.items()}
    return {name: done[owner] for name, owner in owners.items()}


def context_batches(
    context: Context, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, samples: int
) -> list[Batch]:
    """Calibration batches of the training split through the task's template."""
    data = context.data
    rows = list(data.rows("train"))
    random.Random(context.seed).shuffle(rows)
    task = context.required_task.for_data(data)
    return encoded_batches(rows[:samples], task, tokenizer, model=model)


def encoded_batches(
    rows: list[dict[str, Any]],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: PreTrainedModel,
    batch_tokens: int = 2048,
    max_length: int = 512,
) -> list[Batch]:
    """Rows of like length together, at most `batch_tokens` tokens with their padding."""
    positions = getattr(model.config, "max_position_embeddings", None) or max_length
    longest = min(max_length, positions)
    examples = [task.encode(row, tokenizer, max_length=longest) for row in rows]
    examples.sort(key=lambda example: len(example.input_ids))
    pad = tokenizer.pad_token_id or 0
    batches: list[list[Any]] = []
    for example in examples:
        longest = len(example.input_ids)  # Sorted: the newest is the longest of its batch.
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(example)
    return [_batch(group, model, pad=pad) for group in batches]


def num_tokens(batches: list[Batch]) -> int:
    """Tokens without padding."""
    return sum(int(batch["attention_mask"].sum()) for batch in batches)


def _batch(examples: list[Any], model: Any, *, pad: int) -> Batch:
    ids, mask = _padded([example.input_ids for example in examples], pad, model.device)
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        labels, seen = _padded([example.labels for example in examples], -100, model.device)
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        batch["decoder_attention_mask"] = seen
    return batch


def _padded(rows: list[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor(
        [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
    )
    return ids, mask


class _Sums:
    """Running sums of one distinct input."""

    def __init__(self, gram: bool) -> None:
        self.wants_gram, self.num_tokens = gram, 0
        self.total: Any = 0
        self.total_abs: Any = 0
        self.max_abs: Any = None
        self.square: Any = 0
        self.gram: Any = None

    def add(self, x: Tensor) -> None:  # (tokens, in)
        x = x.float()
        magnitude = x.abs()
        highest = magnitude.amax(dim=0)
        self.num_tokens += x.shape[0]
        self.total = self.total + x.sum(dim=0)
        self.total_abs = self.total_abs + magnitude.sum(dim=0)
        self.square = self.square + (x * x).sum(dim=0)
        self.max_abs = highest if self.max_abs is None else torch.maximum(self.max_abs, highest)
        if self.wants_gram:
            if self.gram is None:
                self.gram = x.new_zeros(x.shape[1], x.shape[1])
            self.gram.addmm_(x.T, x)

    def stats(self) -> LayerStats:
        assert self.num_tokens > 0, "a layer saw no token"
        return LayerStats(
            num_tokens=self.num_tokens,
            mean=self.total / self.num_tokens,
            mean_abs=self.total_abs / self.num_tokens,
            max_abs=self.max_abs,
            diagonal=self.square,
            gram=self.gram,
        )


def _owners(model: Any, body: Any, batch: Batch, layers: Mapping[str, Linear]) -> dict[str, str]:
    """The first layer that reads the same tensor, for every layer that ran."""
    seen: dict[int, tuple[str, Tensor]] = {}  # Tensors are held, else their ids would be reused.
    owners: dict[str, str] = {}

    def note(name: str, x: Tensor) -> None:
        owners[name] = seen.setdefault(id(x), (name, x))[0]

    with _hooks(layers, note):
        body(**_for(body, batch))
    idle = sorted(set(layers) - set(owners))
    if idle:
        raise DataError(f"calibration: layer {idle[0]!r} is never run by this model.")
    return owners


@contextmanager
def _watching(
    model: Any, layers: Mapping[str, Linear], sums: Mapping[str, _Sums], batch: Batch
) -> Iterator[None]:
    """While open, every forward adds to `sums`, without the batch's padding."""
    masks = _Masks(model, batch)

    def add(name: str, x: Tensor) -> None:
        sums[name].add(masks.without_padding(name, x))

    with masks.following_the_encoder(), _hooks({name: layers[name] for name in sums}, add):
        yield


class _Masks:
    """Which mask fits a layer's input: the decoder's, or the encoder's for what comes from it."""

    def __init__(self, model: Any, batch: Batch) -> None:
        is_pair = model.config.is_encoder_decoder
        self.source: Tensor = batch["attention_mask"].bool()
        self.target: Tensor = batch["decoder_attention_mask"].bool() if is_pair else self.source
        self.encoder = model.get_encoder() if is_pair else None
        self.prefix = next((n for n, m in model.named_modules() if m is self.encoder), "")
        self.encoded: Tensor | None = None

    @contextmanager
    def following_the_encoder(self) -> Iterator[None]:
        if self.encoder is None:
            yield
            return

        def note(_module: Any, _inputs: Any, output: Any) -> None:
            self.encoded = output[0]

        handle = self.encoder.register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def without_padding(self, name: str, x: Tensor) -> Tensor:
        in_encoder = self.encoder is not None and name.startswith(f"{self.prefix}.")
        mask = self.source if in_encoder or x is self.encoded else self.target
        # A pooled input, one row per text, has no padding.
        return x[mask] if x.shape[:-1] == mask.shape else x.reshape(-1, x.shape[-1])


@contextmanager
def _hooks(layers: Mapping[str, Linear], see: Any) -> Iterator[None]:
    def watch(name: str) -> Any:
        return lambda _module, inputs: see(name, inputs[0])

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _for(body: Any, batch: Batch) -> Batch:
    """A decoder would fill a cache that nobody reads."""
    return {**batch, "use_cache": False} if body.config.to_dict().get("use_cache") else batch
