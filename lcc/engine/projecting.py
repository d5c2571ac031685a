"""The last hidden states at the targets, and the map from them to logits, where a head is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.engine.cloze import cloze_logits
from lcc.engine.extracting import extract_logits
from lcc.engine.objectives import Batch, LogitsOf, unsupervised
from lcc.engine.packing import laid_out
from lcc.parts.adapters import is_prompt

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from lcc.parts.checkpoint import Head

StatesAt = Callable[[Batch], "Tensor"]
"""Hidden states (num_targets, width) that the output layer reads at the batch's targets."""


@dataclass(frozen=True)
class Projection:
    """A model cut before its output layer, so that targets can be scored a few at a time."""

    states: StatesAt
    output: Callable[[Tensor], Tensor]  # (n, width) → logits (n, classes)
    layer: Module  # whose weights `output` uses

    @property
    def trained(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.layer.parameters() if p.requires_grad)

    def logits(self, batch: Batch) -> Tensor:
        return self.output(self.states(batch))


def projection_of(model: Any, head: Head) -> Projection | None:
    """`model` cut before its output layer; None where that layer is not all that makes logits."""
    whole = unwrapped(model)
    if is_prompt(model):
        return None  # Virtual tokens are put in front by what is around the model.
    if head not in ("causal", "seq2seq") or whole.get_output_embeddings() is None:
        return None
    for states in _causal_states(whole) if head == "causal" else _pair_states(whole):
        found = Projection(states, _output_of(whole), whole.get_output_embeddings())
        if _agrees(whole, found, head):
            return found
    return None


def logits_function(model: Any, head: Head) -> LogitsOf:
    """How to get `model`'s logits at the targets with the least work."""
    if head == "classify":
        return lambda batch: model(**batch.inputs).logits
    if head == "masked":
        return cloze_logits(model)
    if head == "extract":
        return extract_logits(model)
    if head not in ("causal", "seq2seq"):
        raise unsupervised(head)
    projection = projection_of(model, head)
    return projection.logits if projection is not None else partial(_whole_logits, model, head)


def _whole_logits(model: Any, head: Head, batch: Batch) -> Tensor:
    inputs = dict(batch.inputs)
    if head == "seq2seq":
        labels = inputs.pop("labels")
        shifted = unwrapped(model).prepare_decoder_input_ids_from_labels(labels=labels)
        inputs["decoder_input_ids"] = shifted
    assert batch.positions is not None
    with laid_out(batch.lengths):
        logits = model(**inputs, use_cache=False).logits  # (B, virtual + T, V) behind a prompt
    found: Tensor = logits[:, -batch.positions.shape[1] :][batch.positions]
    return found


def unwrapped(model: Any) -> Any:
    """The transformers model, with an adapter's layers in it but without peft around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _causal_states(model: Any) -> Iterator[StatesAt]:
    body = getattr(model, model.base_model_prefix, None)
    if body is None or body is model:
        return

    def states(batch: Batch) -> Tensor:
        with laid_out(batch.lengths):
            hidden = body(**batch.inputs, use_cache=False).last_hidden_state  # (B, T, H)
        found: Tensor = hidden[batch.positions]
        return found

    yield states


def _pair_states(model: Any) -> Iterator[StatesAt]:
    # A decoder that is a language model by itself has a body of its own.
    encoder, decoder = model.get_encoder(), model.get_decoder().base_model
    width = model.get_output_embeddings().in_features

    def states(batch: Batch, scale: float) -> Tensor:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        encoded = encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, S, H)
        shifted = model.prepare_decoder_input_ids_from_labels(labels=batch.inputs["labels"])
        hidden = decoder(
            input_ids=shifted, encoder_hidden_states=encoded, encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state  # (B, T, H)  # fmt: skip
        found: Tensor = hidden[batch.positions]
        return found if scale == 1.0 else found * scale

    # T5 scales its states where its embeddings are tied; nothing says so but its logits.
    for scale in (1.0, width**-0.5):
        yield partial(states, scale=scale)


def _output_of(model: Any) -> Callable[[Tensor], Tensor]:
    layer, bias = model.get_output_embeddings(), getattr(model, "final_logits_bias", None)
    cap = getattr(model.config, "final_logit_softcapping", None)

    def output(states: Tensor) -> Tensor:
        logits: Tensor = layer(states)
        if bias is not None:
            logits = logits + bias
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return output


def _agrees(model: Any, found: Projection, head: Head) -> bool:
    """Whether it gives the whole forward's logits, on a few tokens."""
    was_training = model.training
    model.eval()
    ids = torch.arange(1, 5, device=model.device).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs | ({"labels": ids} if head == "seq2seq" else {}), ids > 0, ids[0])
    with torch.no_grad():
        parts = found.logits(batch)
        if head == "seq2seq":
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=ids)
        whole = model(**inputs, use_cache=False).logits[0]
    model.train(was_training)
    return bool(torch.allclose(whole, parts, rtol=1e-4, atol=1e-4))
