"""Training losses, one per head: logits at the targets, and the output layer apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.models.adapters import is_prompt
from lcc.training.batches import Batch, LogitsOf, unsupervised
from lcc.training.packing import laid_out

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

    from lcc.core.types import Head

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
        projection = Projection(states, _output_of(whole), whole.get_output_embeddings())
        if _agrees(whole, projection, head):
            return projection
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
    picked: Tensor = logits[:, -batch.positions.shape[1] :][batch.positions]
    return picked


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
        picked: Tensor = hidden[batch.positions]
        return picked

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
            input_ids=shifted, encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False
        ).last_hidden_state  # (B, T, H)
        picked: Tensor = hidden[batch.positions]
        return picked if scale == 1.0 else picked * scale

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


def _agrees(model: Any, projection: Projection, head: Head) -> bool:
    """Whether it gives the whole forward's logits, on a few tokens."""
    was_training = model.training
    model.eval()
    ids = torch.arange(1, 5, device=model.device).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = Batch(inputs | ({"labels": ids} if head == "seq2seq" else {}), ids > 0, ids[0])
    with torch.no_grad():
        parts = projection.logits(batch)
        if head == "seq2seq":
            inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=ids)
        whole = model(**inputs, use_cache=False).logits[0]
    model.train(was_training)
    return bool(torch.allclose(whole, parts, rtol=1e-4, atol=1e-4))


# What BERT's two pretraining heads say, computed at the places that are asked and nowhere else.


@dataclass(frozen=True)
class PairBatch(Batch):
    """Masked pairs: whether each was put together at random, and how much that weighs."""

    relations: Tensor | None = None  # (B,) 1 for a random pair
    weights: Tensor | None = None  # (B,)


def masked_logits(model: Any) -> LogitsOf:
    """Logits (num_targets, V) at the masked places."""
    head, body = _token_head(model), model.base_model
    if head is None:
        return lambda batch: token_logits(model(**batch.inputs))[batch.positions]

    def logits(batch: Batch) -> Tensor:
        hidden = body(**batch.inputs).last_hidden_state  # (B, T, H)
        picked: Tensor = head(hidden[batch.positions])
        return picked

    return logits


def pair_loss(model: Any) -> Callable[[Batch], Tensor]:
    """The masked tokens' summed loss and each pair's, which weighs as much as its own tokens do.

    Divided by the number of masked tokens that is BERT's sum of two means, for pairs of one length.
    """
    both = _both(model)

    def loss(batch: Batch) -> Tensor:
        assert isinstance(batch, PairBatch)
        assert batch.relations is not None and batch.weights is not None
        tokens, relation = both(batch)
        each = torch.nn.functional.cross_entropy(relation.float(), batch.relations, reduction="none")
        return summed_loss(tokens, batch.targets) + (batch.weights * each).sum()

    return loss


def pair_logits(model: Any) -> Callable[[Batch], Tensor]:
    """(B, 2): is the second text the next one, or any."""
    both = _both(model)
    return lambda batch: both(batch)[1]


def _both(model: Any) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """Logits at the masked places, and of each pair."""
    relate = getattr(getattr(model, "cls", None), "seq_relationship", None)
    head, body = _token_head(model), model.base_model
    if relate is None:
        raise RecipeError(
            f"objective next_sentence: {type(model).__name__} has no head that tells pairs apart; "
            "choose objective masked, or a model of BERT's kind."
        )

    def heads(batch: Batch) -> tuple[Tensor, Tensor]:
        if head is None:
            output = model(**batch.inputs)
            return output.prediction_logits[batch.positions], output.seq_relationship_logits
        output = body(**batch.inputs)
        tokens = head(output.last_hidden_state[batch.positions])
        return tokens, relate(output.pooler_output)

    return heads


def _token_head(model: Any) -> Any:
    """What turns hidden states into logits, where that alone gives what the whole model gives."""
    candidates = [getattr(getattr(model, "cls", None), "predictions", None), getattr(model, "lm_head", None)]
    return next((h for h in candidates if h is not None and _is_whole(model, h)), None)


def _is_whole(model: Any, head: Any) -> bool:
    was_training = model.training
    model.eval()
    probe = torch.arange(1, 5, device=model.device).unsqueeze(0)
    with torch.no_grad():
        whole = token_logits(model(input_ids=probe))
        parts = head(model.base_model(input_ids=probe).last_hidden_state)
    model.train(was_training)
    return bool(torch.allclose(whole, parts, rtol=1e-4, atol=1e-4))


def token_logits(output: Any) -> Tensor:
    """Logits (B, T, V) of a masked language model's output."""
    logits: Tensor = output.logits if "logits" in output else output.prediction_logits
    return logits


def summed_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    teacher: Tensor | None = None,
    weight: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """(1 - w) CE + w T² KL(teacher ‖ student), summed over the targets (Hinton et al., 2015).

    In float32 at least: half precision loses the tail of a softmax over a large vocabulary.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    functional = torch.nn.functional
    loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    if teacher is None:
        return loss
    # A model may have rows for more tokens than its tokenizer and its teacher know.
    known = logits[..., : teacher.shape[-1]]
    student_log = functional.log_softmax(known / temperature, dim=-1)
    teacher_log = functional.log_softmax(teacher.to(logits.dtype) / temperature, dim=-1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * divergence


def cloze_logits(model: Any) -> LogitsOf:
    """Logits (num_targets, V) in the gaps."""
    if not is_prompt(model):
        return masked_logits(model.get_base_model() if hasattr(model, "get_base_model") else model)

    def logits(batch: Batch) -> Tensor:
        assert batch.positions is not None
        whole = model(**batch.inputs).logits[:, -batch.positions.shape[1] :]
        picked: Tensor = whole[batch.positions]
        return picked

    return logits


OUTSIDE = -1e4  # a logit of what can be no answer


def extract_logits(model: Any) -> LogitsOf:
    """Logits (2 B, T): where each row's answer begins, then where each ends."""

    def logits(batch: Batch) -> Tensor:
        output = model(**batch.inputs)
        both = torch.cat([output.start_logits, output.end_logits])  # (2 B, T)
        absent = batch.inputs["attention_mask"].repeat(2, 1) == 0
        return both.masked_fill(absent, OUTSIDE)

    return logits
