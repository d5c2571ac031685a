"""One forward of a generating model over its slots: prompts taken in, or one token more of each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from lcc.engine.decoding import padded
from lcc.inference.slots import Slots

if TYPE_CHECKING:
    from torch import Tensor


class CausalPasses:
    """A decoder; `take` gives logits (rows, vocabulary) after each prompt."""

    def __init__(self, module: Any, num_rows: int) -> None:
        self.module = module
        self.slots = Slots(num_rows, _num_layers(module), crossed=False)
        accepted = inspect.signature(module.forward).parameters
        self._has_positions = "position_ids" in accepted
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def take(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Give each prompt a row."""
        lengths = [len(prompt) for prompt in prompts]
        self.slots.add(lengths)
        ids, mask = padded([list(p) for p in prompts], 0, left=True, device=self.module.device)
        return self._logits(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))

    def advance(self, tokens: Sequence[int]) -> Tensor:
        """One more token of every row."""
        self.slots.advance()
        device, lengths = self.module.device, torch.tensor(self.slots.lengths)[:, None]
        columns = torch.arange(self.slots.width - 1, -1, -1)[None]
        mask = (columns < lengths).long().to(device)
        ids = torch.tensor(tokens, device=device)[:, None]
        return self._logits(ids, mask, (lengths - 1).to(device))

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        options: dict[str, Any] = dict(self._options)
        if self._has_positions:
            options["position_ids"] = positions
        output = self.module(input_ids=ids, attention_mask=mask, use_cache=True,
                             past_key_values=self.slots.cache, **options)  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


class Seq2SeqPasses:
    """An encoder–decoder; prompts go through the encoder, and answers begin with its start token.

    Where positions of the decoder's tokens are embedded, each row is given its own.
    """

    def __init__(self, module: Any, num_rows: int) -> None:
        self.module = module
        self.slots = Slots(num_rows, _num_layers(module), crossed=True)
        self.start = int(module.generation_config.decoder_start_token_id)
        self._positions: Tensor | None = None
        embedding = getattr(module.get_decoder(), "embed_positions", None)
        if isinstance(embedding, torch.nn.Embedding):
            patched: Any = embedding
            patched.forward = MethodType(self._embedded(embedding), embedding)

    def take(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Give each prompt a row; logits (rows, vocabulary) of the first token."""
        device, sources = self.module.device, [len(prompt) for prompt in prompts]
        ids, mask = padded([list(p) for p in prompts], 0, left=False, device=device)
        self.slots.add([1] * len(prompts), sources)
        first = torch.full((len(prompts), 1), self.start, device=device)
        encoded = self.module.get_encoder()(input_ids=ids, attention_mask=mask)
        return self._logits(encoded.last_hidden_state, mask, first)

    def advance(self, tokens: Sequence[int]) -> Tensor:
        """One more token of every row."""
        self.slots.advance()
        device, sources = self.module.device, torch.tensor(self.slots.sources)[:, None]
        mask = (torch.arange(max(self.slots.sources))[None] < sources).long().to(device)
        # Only its shape is read: keys and values of the encoders' outputs are in the slots.
        hidden = torch.zeros(1, 1, 1, device=device).expand(*mask.shape, 1)
        return self._logits(hidden, mask, torch.tensor(tokens, device=device)[:, None])

    def _logits(self, encoded: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        lengths = torch.tensor(self.slots.lengths)[:, None]
        columns = torch.arange(self.slots.width - 1, -1, -1)[None]
        self._positions = (lengths - 1).to(ids.device)
        output = self.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded), attention_mask=mask,
            decoder_input_ids=ids, past_key_values=self.slots.cache, use_cache=True,
            decoder_attention_mask=(columns < lengths).long().to(ids.device),
        )  # fmt: skip
        self._positions = None
        logits: Tensor = output.logits[:, -1]
        return logits

    def _embedded(self, embedding: Any) -> Any:
        plain, offset = type(embedding).forward, int(getattr(embedding, "offset", 0))

        def forward(module: Any, *args: Any, **kwargs: Any) -> Tensor:
            if self._positions is None:
                whole: Tensor = plain(module, *args, **kwargs)
                return whole
            return torch.nn.functional.embedding(self._positions + offset, module.weight)

        return forward


def passes(module: Any, num_rows: int) -> CausalPasses | Seq2SeqPasses:
    """The passes that fit the model's kind."""
    kind = Seq2SeqPasses if module.config.is_encoder_decoder else CausalPasses
    return kind(module, num_rows)


def _num_layers(module: Any) -> int:
    config = module.config.get_text_config(decoder=True)
    layers = len(DynamicCache(config=config).layers)
    return layers or int(config.num_hidden_layers)
