"""A GGUF file as a dense model: weights taken off their grid once, tokenizer made to reload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import tokenizers, torch, transformers
from lcc.parts.checkpoint import hush

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase


def read_gguf(file: Path, *, dtype: str) -> tuple[Any, PreTrainedTokenizerBase, str]:
    """Module in `dtype`, tokenizer, and where the weights come from ("dequantized Q4_K_M").

    Raises RecipeError for an architecture that transformers cannot read from GGUF.
    """
    import gguf

    hush()
    try:
        module = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=getattr(torch, dtype)
        )
    except (ValueError, KeyError) as error:
        raise RecipeError(f"{file.name}: transformers cannot read this GGUF ({error}).") from None
    _forget_quantization(module)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    reader = gguf.GGUFReader(file)
    _mend_pre_tokenizer(tokenizer, _field(reader, "tokenizer.ggml.pre"))
    kind = gguf.LlamaFileType(_field(reader, "general.file_type"))
    return module, tokenizer, f"dequantized {kind.name.removeprefix('MOSTLY_')}"


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return field.contents() if field is not None else None


def _forget_quantization(module: Any) -> None:
    """In place: the weights are dense now, which transformers would deny when saving."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(module):
            delattr(module, name)
    del module.config.quantization_config
    # A name from the file's author; transformers would carry it on as if it were a path.
    if hasattr(module.config, "_model_name_or_path"):
        del module.config._model_name_or_path


def _mend_pre_tokenizer(tokenizer: PreTrainedTokenizerBase, kind: str | None) -> None:
    """In place: transformers gives every byte-level GGUF GPT-2's rule; SmolLM splits digits."""
    if kind != "smollm":
        return
    rules = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = rules.Sequence(
        [rules.Digits(individual_digits=True), rules.ByteLevel(add_prefix_space=False)]
    )
