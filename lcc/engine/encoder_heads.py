"""What BERT's two pretraining heads say, computed at the places that are asked and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch
from lcc.engine.objectives import Batch, LogitsOf, summed_loss

if TYPE_CHECKING:
    from torch import Tensor


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
        found: Tensor = head(hidden[batch.positions])
        return found

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
        each = torch.nn.functional.cross_entropy(
            relation.float(), batch.relations, reduction="none"
        )
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
    candidates = [getattr(getattr(model, "cls", None), "predictions", None),
                  getattr(model, "lm_head", None)]  # fmt: skip
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
    found: Tensor = output.logits if "logits" in output else output.prediction_logits
    return found
