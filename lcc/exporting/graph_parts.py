"""What is traced of a model, part by part, and what each part is called with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from lcc.inference.graph_files import DECODER, ENCODER, WHOLE

if TYPE_CHECKING:
    from torch import Tensor

    Parts = dict[str, tuple[Any, dict[str, Any]]]


class Answering(torch.nn.Module):
    """The decoder of an encoder–decoder, which goes on from any past of its own.

    Keys and values of what the encoder said are made anew at each call: kept ones would need a
    graph of their own to make them, and the decoder's weights twice.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor,
        past_key_values: DynamicCache,
    ) -> Seq2SeqLMOutput:  # fmt: skip
        """Logits of every new token, and the past with them."""
        both = EncoderDecoderCache(past_key_values, DynamicCache())
        output = self.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoder_hidden_states),
            attention_mask=attention_mask, decoder_input_ids=decoder_input_ids,
            past_key_values=both, use_cache=True,
        )  # fmt: skip
        own: Any = both.self_attention_cache
        return Seq2SeqLMOutput(logits=output.logits, past_key_values=own)


def parts(module: Any, head: str) -> Parts:
    """Name → part and inputs: of two texts each, so that their number stays open."""
    ids = torch.arange(4, 16).view(2, 6) % module.config.get_text_config().vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if head == "seq2seq":
        return _of_two(module, inputs)
    if head != "causal":
        return {WHOLE: (module.base_model if head == "embed" else module, inputs)}
    from transformers.exporters.utils import decompose_for_generation

    # One graph that goes on from any past, an empty one too, so that weights are stored once. A
    # mask that hides nothing would not be traced, and rows of several lengths need one.
    inputs["attention_mask"][1, 0] = 0
    found = decompose_for_generation(module, inputs, multi_token_decode=True)
    part, called = found["decode"]
    return {WHOLE: (part, dict(called))}


def _of_two(module: Any, inputs: dict[str, Tensor]) -> Parts:
    encoder, decoder = module.get_encoder(), Answering(module)
    past = DynamicCache(config=module.config.get_text_config(decoder=True))
    asked = {"attention_mask": inputs["attention_mask"], "past_key_values": past}
    ids = inputs["input_ids"]
    with torch.no_grad():
        asked["encoder_hidden_states"] = encoder(**inputs).last_hidden_state
        decoder(decoder_input_ids=ids[:, :3], **asked)  # fills the past
    return {
        ENCODER: (encoder, inputs),
        DECODER: (decoder, {"decoder_input_ids": ids[:, 3:5], **asked}),
    }
