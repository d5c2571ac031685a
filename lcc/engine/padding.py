"""Which positions of a batch are padding, wherever in the model a layer reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Padding:
    """Which positions of a layer's input are real; what reads the encoder has the encoder's."""

    def __init__(self, model: Any, batch: dict[str, Any]) -> None:
        is_pair = bool(getattr(model.config, "is_encoder_decoder", False))
        self.source: Tensor | None = _mask(batch.get("attention_mask"))
        self.target = _mask(batch.get("decoder_attention_mask")) if is_pair else self.source
        self.encoded: Tensor | None = None
        self.encoder = model.get_encoder() if is_pair else None
        self.prefix = next((n for n, m in model.named_modules() if m is self.encoder), "")

    def removed(self, name: str, x: Tensor) -> Tensor:
        """The real rows of `x`, (tokens, in)."""
        in_encoder = self.encoder is not None and name.startswith(f"{self.prefix}.")
        mask = self.source if in_encoder or x is self.encoded else self.target
        # A pooled input, one row per text, has no padding; neither have images and sounds.
        if mask is None or x.shape[:-1] != mask.shape:
            return x.reshape(-1, x.shape[-1])
        return x[mask]


def _mask(given: Any) -> Tensor | None:
    # A mask over sound frames is longer than what the encoder's convolutions leave of them.
    # Nor does a batch without padding need one, which would copy every input.
    return None if given is None or bool(given.all()) else given.bool()
