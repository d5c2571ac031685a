"""Packing: texts one behind the other in one row, none of which attends to another."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, transformers

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.core.types import Head

NAME = "packed"  # among transformers' attention implementations
PROBE = ((1, 2, 3, 4, 5), (5, 4, 3))
# A text that saw its neighbour, or stood at a later position, moves its states by far more.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4}
_lengths: ContextVar[tuple[int, ...] | None] = ContextVar("lengths of packed texts", default=None)


@dataclass(frozen=True)
class TextRun:
    """Neighbouring texts of one length, which attend in one call as a batch."""

    num_texts: int
    length: int
    mask: Tensor | None  # (1, 1, length, length) bool; None: causal


@dataclass(frozen=True)
class TextRuns:
    """Stands where layers are handed an attention mask; a row is made of these."""

    runs: tuple[TextRun, ...]

    @property
    def sizes(self) -> list[int]:
        return [run.num_texts * run.length for run in self.runs]


@contextmanager
def laid_out(lengths: Sequence[int] | None) -> Iterator[None]:
    """While open, a row that a model reads holds texts of these lengths; None: one text a row."""
    token = _lengths.set(None if lengths is None else tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def require_packable(head: Head) -> None:
    """Raises RecipeError for a head that does not predict every token from those before it."""
    if head != "causal":
        raise RecipeError(
            f"packing: a task with the head {head!r} needs each text in a row of its own; set "
            "packing: false (batches are sorted by length all the same)."
        )


def allow_packing(model: Any) -> None:
    """Make `model` keep packed texts apart, in place; padded rows are read as before.

    Raises RecipeError for a model that cannot: found out by reading two texts packed and alone.
    """
    # A compiler would unroll the runs of every batch anew.
    eager: Any = torch.compiler.disable(_attention)  # type: ignore[no-untyped-call]
    transformers.AttentionInterface.register(NAME, eager)
    transformers.AttentionMaskInterface.register(NAME, _mask)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.set_attn_implementation(NAME)
    if not _keeps_apart(inner):
        raise RecipeError(
            f"packing: a model of the family {inner.config.model_type!r} cannot keep packed texts "
            "apart (its positions or its attention are its own); set packing: false."
        )


def _keeps_apart(model: Any) -> bool:
    device, was_training = model.device, model.training
    rows = [torch.tensor([text], device=device) for text in PROBE]
    positions = torch.cat([torch.arange(len(text), device=device) for text in PROBE]).unsqueeze(0)
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([model(input_ids=row, use_cache=False).logits for row in rows], 1)
            with laid_out([len(text) for text in PROBE]):
                ids = torch.cat(rows, 1)
                packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    except (TypeError, ValueError, AttributeError):
        return False  # It takes no positions, or wants to read the mask itself.
    finally:
        model.train(was_training)
    tolerance = TOLERANCES.get(str(alone.dtype).removeprefix("torch."), 3e-2)
    return bool((packed - alone).abs().max() <= tolerance * alone.abs().max())


def _mask(*args: Any, mask_function: Any, device: Any = "cpu", **kwargs: Any) -> Any:
    """transformers' mask, or where texts are packed, what each run of them may see."""
    lengths = _lengths.get()
    if lengths is None:
        kwargs |= {"mask_function": mask_function, "device": device}
        return transformers.masking_utils.sdpa_mask(*args, **kwargs)
    runs, start = [], 0
    for length, texts in groupby(lengths):
        num_texts = len(list(texts))
        seen = _seen(mask_function, torch.arange(start, start + length, device=device))
        is_causal = bool(torch.equal(seen, torch.ones_like(seen).tril()))
        runs.append(TextRun(num_texts, length, None if is_causal else seen))
        start += num_texts * length
    return TextRuns(tuple(runs))


def _seen(mask_function: Any, at: Tensor) -> Tensor:
    """Which of the positions `at` each of them sees, (1, 1, n, n): windows and the like."""
    zero = torch.zeros((1, 1, 1, 1), dtype=at.dtype, device=at.device)
    visible: Tensor = mask_function(zero, zero, at[None, None, :, None], at[None, None, None, :])
    return visible.expand(1, 1, len(at), len(at))


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of each text to itself alone; (1, heads, T, size) → (1, T, heads, size)."""
    attend = transformers.integrations.sdpa_attention.sdpa_attention_forward
    if not isinstance(attention_mask, TextRuns):
        whole: tuple[Tensor, None] = attend(module, query, key, value, attention_mask, **kwargs)
        return whole
    # Split, not sliced: the gradient of a slice is as long as the whole row.
    pieces = (torch.split(x[0], attention_mask.sizes, dim=1) for x in (query, key, value))
    outputs = []
    for run, *piece in zip(attention_mask.runs, *pieces, strict=True):
        shape = (run.num_texts, run.length)
        q, k, v = (x.unflatten(1, shape).transpose(0, 1) for x in piece)
        outputs.append(attend(module, q, k, v, run.mask, **kwargs)[0].flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0), None


# Whether a model can be kept from looking across documents packed into one row.

NUM_FIRST, NUM_SECOND = 5, 4  # tokens of the two documents that are tried


def isolates(module: Any) -> bool:
    """Whether positions that start again, and no attention mask, keep two documents apart.

    Found by asking for the gradient of the second's logits with respect to the first's embeddings:
    it is exactly zero where nothing was looked at. No table of families says so.
    """
    if "position_ids" not in inspect.signature(module.forward).parameters:
        return False
    embedding = module.get_input_embeddings()
    ids = torch.arange(1, 1 + NUM_FIRST + NUM_SECOND, device=module.device).unsqueeze(0)
    positions = torch.tensor([[*range(NUM_FIRST), *range(NUM_SECOND)]], device=module.device)
    was_training = module.training
    module.eval()
    with torch.enable_grad():
        embedded = embedding(ids % embedding.weight.shape[0]).detach().requires_grad_()
        logits = module(inputs_embeds=embedded, position_ids=positions, use_cache=False).logits
        (seen,) = torch.autograd.grad(logits[:, NUM_FIRST:].square().sum(), embedded)
    module.train(was_training)
    return not bool(seen[:, :NUM_FIRST].any())
