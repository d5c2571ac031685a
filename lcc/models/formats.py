"""Checkpoint formats beside the plain one: factorized linear layers, packed weights, GGUF.

Plain transformers has no such layer. Its Auto classes must not take the file for the whole model
and draw the missing matrices at random, so the config names an architecture they refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lcc.core.errors import IntegrityError, RecipeError
from lcc.core.lazy import safetensors_torch, tokenizers, torch, transformers
from lcc.models.card import hush, read_json, weight_files, write_config
from lcc.models.safetensors_io import StoredTensors, TensorEntry

if TYPE_CHECKING:
    from gguf import GGUFReader
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase

FORMAT = "low-rank factors"  # on the card
MODEL_TYPE = "lcc_low_rank"
KEY = "low_rank"  # in config.json: the family's own model_type, and the rank of each layer


def put_factors(model: Any, name: str, up: Tensor, down: Tensor) -> None:
    """In place of a linear layer (or a Conv1D) stand `down` (rank, in), then `up` (out, rank)."""
    parent, _, leaf = name.rpartition(".")
    bias = model.get_submodule(name).bias
    pair = _pair(up.shape[0], down.shape[0], down.shape[1], has_bias=bias is not None)
    pair[0].weight.data, pair[1].weight.data = down, up
    if bias is not None:
        pair[1].bias.data = bias.data
    setattr(model.get_submodule(parent), leaf, pair)


def _pair(num_outputs: int, rank: int, num_inputs: int, *, has_bias: bool) -> Any:
    return _pair_type()(
        torch.nn.Linear(num_inputs, rank, bias=False), torch.nn.Linear(rank, num_outputs, bias=has_bias)
    )


@cache
def _pair_type() -> Any:
    class Pair(torch.nn.Sequential):
        @property
        def weight(self) -> Any:
            """T5 asks its layers for the dtype of their weight."""
            return self[1].weight

    return Pair


def write_factored(module: Any, folder: Path, *, dtype: str, ranks: Mapping[str, int]) -> None:
    """Weights and config into `folder`; tensors that share storage are stored once."""
    seen = set()
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() in seen or _is_made_anew(module, name):
            continue
        seen.add(tensor.data_ptr())
        wanted = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.detach().to("cpu", wanted, copy=True).contiguous()
    safetensors_torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = module.config.to_dict()
    facts = {"model_type": config["model_type"], "ranks": dict(ranks)}
    config |= {"model_type": MODEL_TYPE, KEY: facts, "dtype": dtype}
    write_config(folder / "config.json", config)
    if module.can_generate():
        module.generation_config.save_pretrained(folder)


def read_factored(auto: Any, path: Path, *, dtype: str) -> Module:
    """The module with its factors; raises IntegrityError when a tensor is missing or too many."""
    config_dict = read_json(path / "config.json")
    facts = config_dict.pop(KEY)
    config_dict["model_type"] = facts["model_type"]
    config = transformers.CONFIG_MAPPING[facts["model_type"]].from_dict(config_dict)
    with torch.random.fork_rng(devices=[]):
        module = auto.from_config(config, dtype=getattr(torch, dtype))
    for name, rank in facts["ranks"].items():
        _make_room(module, name, rank, dtype)
    state = {k: v for file in weight_files(path) for k, v in safetensors_torch.load_file(file).items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    given = {t.data_ptr() for n, t in module.state_dict().items() if n in state}
    lost = [
        n for n in missing if module.state_dict()[n].data_ptr() not in given and not _is_made_anew(module, n)
    ]
    if lost or unexpected:
        raise IntegrityError(
            f"{path}: tensor {[*lost, *unexpected][0]} does not fit its config; copy the folder again."
        )
    generation = path / "generation_config.json"
    if generation.is_file():
        module.generation_config = transformers.GenerationConfig.from_pretrained(path)
    return module.eval()  # type: ignore[no-any-return]


def _is_made_anew(module: Any, name: str) -> bool:
    """Whether the family computes this tensor itself (Marian's positions)."""
    return any(re.search(p, name) for p in module._keys_to_ignore_on_save or ())


def _make_room(module: Any, name: str, rank: int, dtype: str) -> None:
    """A pair of empty layers in place of the family's own."""
    layer = module.get_submodule(name)
    num_outputs, num_inputs = layer.weight.shape
    if not isinstance(layer, torch.nn.Linear):
        num_outputs, num_inputs = num_inputs, num_outputs  # Conv1D stands on its side.
    kind = getattr(torch, dtype)
    put_factors(
        module, name, torch.zeros(num_outputs, rank, dtype=kind), torch.zeros(rank, num_inputs, dtype=kind)
    )


# Checkpoints of compressed-tensors as dense modules, by the format's own code.

STORED = ("weight_scale", "weight_zero_point", "weight_shape")


def is_one_scheme(folder: Path) -> bool:
    """Whether transformers' `dequantize=True` reads `folder` right.

    It takes the first group of the config for every layer, and forgets the rounding of inputs.
    """
    groups = read_json(folder / "config.json")["quantization_config"]["config_groups"]
    return len(groups) == 1 and not any(g.get("input_activations") for g in groups.values())


def rounds_inputs(folder: Path) -> bool:
    """Whether layers of the packed model in `folder` round what they are given."""
    quantization = read_json(folder / "config.json").get("quantization_config") or {}
    groups = (quantization.get("config_groups") or {}).values()
    return any(group.get("input_activations") for group in groups)


def unpacked(module: Any) -> Any:
    """A natively loaded module with dense weights, in place; inputs are rounded as they were."""
    module.hf_quantizer.compressor.decompress_model(module)
    for layer in module.modules():
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is None:
            continue
        for name in STORED:
            if hasattr(layer, name):
                delattr(layer, name)
        if scheme.input_activations is None:
            del layer.quantization_scheme, layer.quantization_status, layer.forward
        else:
            layer.quantization_scheme = scheme.model_copy(update={"weights": None})
    del module.hf_quantizer, module.config.quantization_config
    module.is_quantized = False
    return module


def unpacked_tensors(folder: Path) -> StoredTensors:
    """The tensors of a folder; those that are packed stand there as the weights they mean."""
    stored = StoredTensors(folder)
    config = read_json(folder / "config.json").get("quantization_config", {})
    for name in [name for name in stored.entries if name.endswith(".weight_scale")]:
        layer = name.removesuffix(".weight_scale")
        parts = {e.name.removeprefix(f"{layer}."): e for e in _of_layer(stored, layer)}
        shape = (
            [int(size) for size in parts["weight_shape"].read()]
            if "weight_shape" in parts
            else parts["weight"].shape
        )
        stored.entries[f"{layer}.weight"] = TensorEntry(
            f"{layer}.weight",
            parts["weight_scale"].dtype,
            tuple(shape),
            partial(_unpacked, parts, config, layer),
        )
    return stored


def _of_layer(stored: StoredTensors, layer: str) -> list[TensorEntry]:
    names = (f"{layer}.{leaf}" for leaf in ("weight", "weight_packed", *STORED))
    return [stored.entries[name] for name in names if name in stored.entries]


def _unpacked(parts: dict[str, TensorEntry], config: dict[str, Any], layer: str) -> Any:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    groups = config["config_groups"].values()
    group = next((g for g in groups if layer in g["targets"]), None) or next(iter(groups))
    scheme = QuantizationScheme(targets=group["targets"], weights=group["weights"])
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    tensors = {leaf: entry.read() for leaf, entry in parts.items()}
    return compressor.decompress(tensors, scheme)["weight"]


def round_inputs(layer: Any, activations: dict[str, Any]) -> None:
    """From here on the layer rounds what it is given as the packed format does, in place."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationScheme,
        QuantizationStatus,
        set_forward_quantized,
    )

    arguments = QuantizationArgs(**activations)
    layer.quantization_scheme = QuantizationScheme(targets=["Linear"], input_activations=arguments)
    layer.quantization_status = QuantizationStatus.DECOMPRESSED
    set_forward_quantized(layer)


# A GGUF file as a dense model: weights taken off their grid once, tokenizer made to reload.


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
