"""Export to CTranslate2, by its own converter from the model in memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, transformers
from lcc.models.bundle import open_bundle
from lcc.models.card import read_card, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Head

HEADS: dict[str, tuple[Head, ...]] = {
    "causal": ("causal",),
    "seq2seq": ("seq2seq",),
    "encoder": ("embed",),
    "hearing": ("transcribe",),
}
FAMILIES = {
    "llama": "causal", "mistral": "causal", "qwen2": "causal", "qwen3": "causal",
    "gemma": "causal", "gemma2": "causal", "gemma3_text": "causal", "gpt2": "causal",
    "t5": "seq2seq", "mt5": "seq2seq", "marian": "seq2seq", "bart": "seq2seq",
    "mbart": "seq2seq", "m2m_100": "seq2seq", "pegasus": "seq2seq",
    "bert": "encoder", "roberta": "encoder", "xlm-roberta": "encoder", "distilbert": "encoder",
    "whisper": "hearing",
}  # fmt: skip
MISSING = "CTranslate2 is not installed; pip install 'lcc[ctranslate2]'."


def refusal(folder: Path) -> str | None:
    """Why CTranslate2 does not take the checkpoint in `folder`, as a sentence."""
    if importlib.util.find_spec("ctranslate2") is None:
        return MISSING
    kind, card = read_json(folder / "config.json").get("model_type"), read_card(folder)
    if kind not in FAMILIES:
        return f"CTranslate2 has no {kind} models; it has {', '.join(FAMILIES)}."
    if card.head not in HEADS[FAMILIES[kind]]:
        wanted = " or ".join(HEADS[FAMILIES[kind]])
        return f"of {kind} models CTranslate2 runs those with a {wanted} head, not {card.head}."
    return _unlike(transformers.AutoConfig.from_pretrained(folder))


def _unlike(config: Any) -> str | None:
    """What its kernels take for granted of a decoder."""
    head_dim = getattr(config, "head_dim", None)
    by_width = config.model_type in ("llama", "mistral", "qwen2")
    if by_width and head_dim and head_dim * config.num_attention_heads != config.hidden_size:
        return (
            f"CTranslate2 takes heads of {config.model_type} models to be as wide as the model "
            f"divides, not {head_dim}; export before heads are cut."
        )
    if getattr(config, "query_pre_attn_scalar", head_dim) != head_dim:
        return (
            "CTranslate2 scales queries by the width of a head "
            f"({config.head_dim}), this model by {config.query_pre_attn_scalar}."
        )
    return None


def window(folder: Path) -> int | None:
    """The window of a model's layers; CTranslate2 reads no text that is longer. None: no window."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kinds = getattr(config, "layer_types", None) or []
    return int(config.sliding_window) if "sliding_attention" in kinds else None


def write_ct2(source: Path, target: Path, *, quantization: str) -> dict[str, Any]:
    """`model.bin`, its config and vocabulary; raises RecipeError for what the converter refuses."""
    from ctranslate2.converters import transformers as theirs

    bundle = open_bundle(source)
    module, tokenizer = bundle.load(dtype="float32"), bundle.tokenizer
    if getattr(module.config, "quantization_config", None) is not None:
        # The weights are dense now; the converter would look for codes.
        del module.config.quantization_config
    _restore_defaults(module.config)
    name = type(module.config).__name__
    head, loader = read_card(source).head, theirs._MODEL_LOADERS[name]
    if head != "transcribe":
        loader = _filling(loader, padless=name == "MarianConfig")
    body = module.base_model if head == "embed" else module
    try:
        with torch.no_grad():
            spec = loader(body, tokenizer)
        if head == "transcribe":
            spec.config.lang_ids = spec.config.lang_ids or _languages(tokenizer)
        else:
            _name_tokens(spec.config, tokenizer)
        spec.validate()
        spec.optimize(quantization=None if quantization == "float32" else quantization)
        spec.save(str(target))
    except (ValueError, NotImplementedError, AttributeError, AssertionError) as error:
        raise RecipeError(f"format ctranslate2: its converter refuses this model: {error}") from None
    size = (target / "model.bin").stat().st_size
    return {"bytes_of_type": {quantization: size}}


def _name_tokens(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Some token must be named; texts come as known tokens, their first one among them."""
    for name in ("unk_token", "bos_token"):
        if name == "unk_token" or hasattr(config, name):
            named = getattr(config, name, None) or tokenizer.convert_ids_to_tokens(0)
            setattr(config, name, named)


def _languages(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of languages, which the converter finds no more in transformers 5."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    known = tokenizer.get_vocab()
    return sorted(known[f"<|{name}|>"] for name in LANGUAGES if f"<|{name}|>" in known)


def _restore_defaults(config: Any) -> None:
    """What the converter reads and transformers 5 no longer keeps; in place."""
    if config.model_type == "bert" and not hasattr(config, "position_embedding_type"):
        config.position_embedding_type = "absolute"


def _filling(registered: Any, *, padless: bool) -> Any:
    """A converter's loader that names every row of the embedding, though the tokenizer does not.

    `padless`: it takes the last row for that of padding, which is right only where it is.
    """

    class Loader(type(registered)):  # type: ignore[misc]
        def __call__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
            self.pad_is_last = tokenizer.pad_token_id == model.config.vocab_size - 1
            return super().__call__(model, tokenizer)

        def get_vocabulary(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
            num_rows = model.config.get_text_config().vocab_size
            pieces = list(tokenizer.convert_ids_to_tokens(list(range(num_rows))))
            pieces = [f"<extra_id_{i}>" if p is None else p for i, p in enumerate(pieces)]
            return pieces[:-1] if padless and self.pad_is_last else pieces

        def _remove_pad_weights(self, spec: Any) -> None:
            if self.pad_is_last:
                super()._remove_pad_weights(spec)

    return Loader()


# What eight-bit products by row do to a model, computed in PyTorch: CTranslate2's int8.

MOST = 127
# Tables that are read as weights are stored; tables of positions stay as they are.
TABLES = ("embed_tokens", "shared", "wte", "word_embeddings", "token_type_embeddings")


def by_row(values: Tensor) -> Tensor:
    """The nearest of 255 numbers between minus and plus the largest of each row (..., columns)."""
    scale = values.abs().amax(-1, keepdim=True) / MOST
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (values / scale).round() * scale


class EightBitLinear(torch.nn.Linear):
    """Weights rounded by row once, inputs by token each time."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = torch.nn.Parameter(by_row(weight), requires_grad=False)
        if bias is not None:
            self.bias = torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """As its parent, of rounded inputs."""
        return functional.linear(by_row(input), self.weight, self.bias)


class EightBitConv1d(torch.nn.Module):
    """A convolution over time as a product of windows with rows, both rounded."""

    def __init__(self, conv: torch.nn.Conv1d) -> None:
        super().__init__()
        # Named as a convolution's own, which a model may look at.
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.inner = EightBitLinear(conv.weight.detach().flatten(1), conv.bias)
        self.weight = self.inner.weight

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, frames) in and out."""
        room = int(self.padding[0])
        # (batch, channels, frames, width)
        windows = functional.pad(input, (room, room)).unfold(2, self.kernel_size[0], self.stride[0])
        outputs: Tensor = self.inner(windows.permute(0, 2, 1, 3).flatten(2))
        return outputs.transpose(1, 2)


def round_to_eight_bits(module: Any) -> Any:
    """Every product's weights and inputs, and the tables of tokens; in place."""
    for name, part in list(module.named_modules()):
        weight: Any = getattr(part, "weight", None)
        if isinstance(part, torch.nn.Linear):
            module.set_submodule(name, EightBitLinear(weight.detach(), part.bias))
        elif type(part).__name__ == "Conv1D":  # GPT-2's, which lies the other way round
            module.set_submodule(name, EightBitLinear(weight.detach().T, part.bias))
        elif isinstance(part, torch.nn.Conv1d):
            module.set_submodule(name, EightBitConv1d(part))
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Embedding) and name.rpartition(".")[2] in TABLES:
            part.weight.data = by_row(part.weight.detach())
    return module
