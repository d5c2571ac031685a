"""Keep some rows of a model's vocabulary: embeddings, head, biases, config ids, all consistent."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")


def num_rows(model: PreTrainedModel) -> int:
    """Rows of the input embedding (often more than the tokenizer's tokens)."""
    return int(_weight(model).shape[0])


def _weight(model: PreTrainedModel) -> Tensor:
    weight: Tensor = model.get_input_embeddings().get_parameter("weight")
    return weight


def named_ids(model: PreTrainedModel) -> set[int]:
    """Every token id that the model's config or generation config names."""
    found: set[int] = set()
    for config in _configs(model):
        for _, value in _id_fields(config):
            found.update(value if isinstance(value, list) else [value])
    return {i for i in found if 0 <= i < num_rows(model)}


def keep_rows(model: PreTrainedModel, old_ids: list[int], new_ids: Mapping[int, int]) -> None:
    """Shrink the vocabulary to `old_ids`, in this order, in place.

    A token without a row of its own (some tokenizers know more than their model) gets zeros.
    """
    rows, kept = num_rows(model), torch.tensor(old_ids)
    assert len(old_ids) <= rows, (len(old_ids), rows)
    with torch.no_grad():
        for tensor in _vocabulary_tensors(model, rows):
            chosen = tensor.data[kept.clamp(max=rows - 1)]
            chosen[kept >= rows] = 0
            tensor.data[: len(old_ids)] = chosen
    padding_idx = {m: m.padding_idx for m in _embeddings(model)}
    # transformers knows each family's ties, biases and config fields; only the order was ours.
    model.resize_token_embeddings(len(old_ids), mean_resizing=False)
    for module, old in padding_idx.items():
        module.padding_idx = None if old is None else new_ids.get(old)
    for config in _configs(model):
        for name, value in _id_fields(config):
            setattr(config, name, _renumbered(name, value, new_ids))


def _embeddings(model: PreTrainedModel) -> list[Any]:
    """Embedding modules over the vocabulary (an encoder–decoder may hold several on one weight)."""
    weight = _weight(model)
    return [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.weight is weight
    ]


def _vocabulary_tensors(model: PreTrainedModel, rows: int) -> Iterable[Tensor]:
    """Distinct tensors, seen with the vocabulary as their first axis: embeddings, head, biases."""
    holders: list[Any] = [model.get_input_embeddings(), _head(model)]
    found = [getattr(holder, name, None) for holder in holders for name in ("weight", "bias")]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("logits_bias", "predictions.bias")):
            found.append(tensor.view(-1))  # Marian and BART keep theirs as (1, vocabulary).
    distinct = {t.data_ptr(): t for t in found if t is not None and t.shape[0] == rows}
    return distinct.values()


def _head(model: Any) -> Module | None:
    head: Module | None = model.get_output_embeddings()
    return head


def _configs(model: PreTrainedModel) -> list[Any]:
    configs = [model.config, model.config.get_text_config(), model.config.get_text_config(True)]
    generation = getattr(model, "generation_config", None)
    unique = {id(c): c for c in [*configs, generation] if c is not None}
    return list(unique.values())


def _id_fields(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(config.to_dict().items()):
        is_id = name.endswith(("token_id", "token_ids")) or name in SUPPRESSED
        is_numbers = isinstance(value, int) or (
            isinstance(value, list) and all(isinstance(item, int) for item in value)
        )
        if is_id and is_numbers and not isinstance(value, bool):
            yield name, value


def _renumbered(name: str, value: Any, new_ids: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        kept = [new_ids[item] for item in value if item in new_ids]
        return kept or None
    return new_ids.get(value)


def with_new_vocabulary(
    model: PreTrainedModel, size: int, special_ids: Mapping[str, int], *, seed: int
) -> PreTrainedModel:
    """`model` with `size` tokens that it has never seen: their rows are drawn, the rest is kept."""
    vocabulary = {t.data_ptr() for t in _vocabulary_tensors(model, num_rows(model))}
    kept = {n: t for n, t in model.state_dict().items() if t.data_ptr() not in vocabulary}
    config = copy.deepcopy(model.config)
    for name, value in {"vocab_size": size, **special_ids}.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(config)
    fresh.load_state_dict(kept, strict=False)
    fresh.train(False)
    return fresh
