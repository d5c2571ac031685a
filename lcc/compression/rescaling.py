"""What depends on the hidden width beside shapes: scales of embeddings, logits and norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.engine.blocks import blocks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.engine.statistics import LayerStats
    from lcc.engine.walking import Batch


def keep_scales(model: Any, before: int, after: int) -> None:
    """Undo, in place, what the model makes of its hidden width, so that the old scales stay.

    Gemma multiplies embeddings by √width; a T5 whose head is tied divides by it. A tied head is
    evened out in the last norm, whose gain nothing else reads.
    """
    config, gain = model.config, 1.0
    if config.model_type.startswith("gemma"):
        factor = (before / after) ** 0.5
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        embeddings.data *= factor
        if head is not None and head.weight is embeddings:
            gain /= factor
    if getattr(config, "scale_decoder_outputs", False):
        gain *= (after / before) ** 0.5
    if gain != 1.0:
        multiply(last_norm(model), gain)


def last_norm(model: Any) -> Any:
    """The norm after the last block, or None where the blocks end with one of their own."""
    body, inside = model.base_model, {m for b in blocks(model).values() for m in b.modules()}
    width = model.config.get_text_config().hidden_size
    found = None
    for name, module in body.named_modules():
        weight = getattr(module, "weight", None)
        is_norm = weight is not None and tuple(weight.shape) == (width,)
        foreign = "embed" in name or (model.config.is_encoder_decoder and "encoder" in name)
        if is_norm and module not in inside and not foreign:
            found = module
    return found


def multiply(norm: Any, factor: float) -> None:
    """Make what a norm gives larger, in place."""
    if type(norm).__name__.startswith("Gemma"):
        norm.weight.data = (1 + norm.weight.data) * factor - 1  # It stores the gain less one.
    else:
        norm.weight.data *= factor
    if getattr(norm, "bias", None) is not None:
        norm.bias.data *= factor


def fit_inputs(layers: Mapping[str, Linear], expected: float, stats: LayerStats) -> None:
    """Weigh layers, in place, so that inputs of another size count as the expected ones did.

    Norms divide by the root of a mean over fewer channels; `expected` is the old mean square of
    all channels that stayed.
    """
    found = float(stats.diagonal.sum()) / stats.num_tokens
    factor = (expected / max(found, torch.finfo(torch.float32).tiny)) ** 0.5
    for layer in layers.values():
        layer.weight.data *= factor


def final_energy(model: Any, batches: Sequence[Batch]) -> Tensor:
    """The mean square of every channel after the last norm, over tokens that are no padding."""
    total: Any = 0.0
    num_tokens = 0.0
    for batch in batches:
        with torch.no_grad():
            output = model.base_model(**batch, output_hidden_states=True)
        # T5 with a head is its own base model, and has no last state but that of its decoder.
        last = output.get("last_hidden_state")
        hidden = (output.decoder_hidden_states[-1] if last is None else last).float()  # (B, T, H)
        key = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"
        mask = batch[key].to(hidden).unsqueeze(-1)
        total = total + (hidden.square() * mask).sum(dim=(0, 1))
        num_tokens += float(mask.sum())
    found: Tensor = total / num_tokens
    return found
