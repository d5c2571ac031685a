"""A GGUF file as a dense model: weights taken off their grid once, tokenizer made to reload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
    with _one_reader() as reader_of:
        try:
            module = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=getattr(torch, dtype)
            )
        except (ValueError, KeyError) as error:
            sentence = f"{file.name}: transformers cannot read this GGUF ({error})."
            raise RecipeError(sentence) from None
        _forget_quantization(module)
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        reader = reader_of(file)
    _mend_pre_tokenizer(tokenizer, _field(reader, "tokenizer.ggml.pre"))
    kind = gguf.LlamaFileType(_field(reader, "general.file_type"))
    return module, tokenizer, f"dequantized {kind.name.removeprefix('MOSTLY_')}"


@contextmanager
def _one_reader() -> Iterator[Any]:
    """Let transformers share one parse of the header, which it would make four times.

    262,144 tokens and their merges take half a minute a parse, most of it in numpy's memmap
    slicing, which a plain view of the same mapped bytes avoids.
    """
    import gguf
    import numpy

    class Shared(gguf.GGUFReader):
        def _get(self, *args: Any, **options: Any) -> Any:
            if isinstance(self.data, numpy.memmap):
                self.data = cast(Any, self.data.view(numpy.ndarray))
            return super()._get(*args, **options)

    opened: dict[str, Any] = {}

    def reader_of(path: Any, *args: Any) -> Any:
        if str(path) not in opened:
            opened[str(path)] = Shared(path, *args)
        return opened[str(path)]

    module: Any = gguf
    original = module.GGUFReader
    module.GGUFReader = reader_of
    try:
        yield reader_of
    finally:
        module.GGUFReader = original


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
