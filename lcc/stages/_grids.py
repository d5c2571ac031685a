"""Which layer of a model gets which grid, and what no format or reader takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from lcc.core.catalog import name_of
from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, transformers
from lcc.core.nearest import did_you_mean
from lcc.methods.quantizers import Smoother

if TYPE_CHECKING:
    from torch.nn import Linear

    from lcc.stages.quantize import Quantize

GROUPS = (128, 64, 32, 16, 8)
# transformers initialises them by their dense weights, so it cannot keep them packed.
UNREADABLE = ("t5", "mt5", "umt5", "longt5")


def refuse(stage: Quantize, config: dict[str, Any]) -> None:
    """Raise RecipeError, in one sentence, for what this model's family or format does not allow."""
    word = name_of(stage.quantizer)
    for key, bits in stage.all_bits().items():
        if bits not in stage.quantizer.bits:
            allowed = " or ".join(map(str, stage.quantizer.bits))
            raise RecipeError(f"quantize.{key}: {word} stores {allowed} bits, not {bits}.")
        if not stage.accept_damage and is_damaging(word, bits):
            raise RecipeError(
                f"quantize.{key}: {bits} bits with {word} usually ruin a model"
                f" ({1 << bits} values for a weight); take {_next_bits(word, bits)} bits, or set"
                " accept_damage=true."
            )
    _refuse_budget(stage, word)
    if isinstance(stage.quantizer, Smoother) and "sequential" in stage.calibration.mode:
        raise RecipeError(
            f"quantize.quantizer: {word} moves scales between layers before the first is rounded;"
            " set calibration.mode=dense."
        )
    if stage.quantizer.format == "bitsandbytes":
        _refuse_for_bitsandbytes(stage, word)
    if getattr(stage.quantizer, "rounds_inputs", False):
        _refuse_for_inputs(stage, word, config)
    if stage.is_mixed:
        _refuse_mixture(stage, config)
    if stage.bits_for and config.get("architectures"):
        refuse_patterns(stage, linear_names(config))
    width = config.get("hidden_size") or config.get("d_model") or config.get("n_embd")
    if isinstance(stage.group_size, int) and width and width % stage.group_size:
        raise RecipeError(_indivisible(stage.group_size, width, common=width))
    if stage.include_head and config.get("tie_word_embeddings", True):
        raise RecipeError(
            "quantize.include_head: the head is tied to the embedding; set"
            " include_embeddings=true, which quantizes both as one."
        )


def is_damaging(quantizer: str, bits: int) -> bool:
    """Whether so few bits are known to ruin models."""
    return bits == 2 or (bits == 3 and quantizer == "nearest")


def _next_bits(word: str, bits: int) -> str:
    return "3 or 4" if bits == 2 and word != "nearest" else "4"


def _refuse_budget(stage: Quantize, word: str) -> None:
    if stage.average_bits is None:
        return
    if stage.bits_for:
        raise RecipeError(
            "quantize.average_bits: bits_for says the bits of layers already; leave one out."
        )
    least, most = min(stage.offered_bits()), max(stage.offered_bits())
    if not least <= stage.average_bits <= most:
        raise RecipeError(
            f"quantize.average_bits: {word} mixes {least} to {most} bits, got"
            f" {stage.average_bits:g}; stay between them."
        )
    if stage.calibration.mode in ("sequential", "true_sequential"):
        raise RecipeError(
            "quantize.average_bits: weighing all layers against each other needs"
            " calibration.mode=dense."
        )


def _refuse_for_bitsandbytes(stage: Quantize, word: str) -> None:
    mine = {
        "group_size": stage.group_size != "auto",
        "symmetric": not stage.symmetric,
        "bits_for": bool(stage.bits_for),
        "average_bits": stage.average_bits is not None,
        "include_embeddings": stage.include_embeddings,
    }
    key = next((key for key, is_set in mine.items() if is_set), None)
    if key is not None:
        raise RecipeError(
            f"quantize.{key}: {word} has blocks of its own, the same for every layer; leave it"
            " out, or use quantizer=scale_search."
        )


def _refuse_for_inputs(stage: Quantize, word: str, config: dict[str, Any]) -> None:
    if stage.group_size not in ("auto", "channel") or not stage.symmetric:
        key = "symmetric" if not stage.symmetric else "group_size"
        raise RecipeError(
            f"quantize.{key}: integer kernels take one symmetric scale per channel; leave it out"
            f" with {word}."
        )
    if stage.include_embeddings:
        raise RecipeError(
            f"quantize.include_embeddings: {word} rounds the inputs of layers, and an embedding"
            " has none; leave it false."
        )
    _refuse_unreadable(config, f"quantize.quantizer: {word}", "quantizer=nearest bits=8")


def _refuse_mixture(stage: Quantize, config: dict[str, Any]) -> None:
    key = "bits_for" if stage.bits_for else "average_bits"
    if not stage.symmetric or stage.include_embeddings:
        other = "include_embeddings" if stage.include_embeddings else "symmetric"
        raise RecipeError(
            f"quantize.{key}: transformers reads layers of several bits only packed, and cannot"
            f" keep {'embeddings' if stage.include_embeddings else 'zero points'} so; leave"
            f" {other} as it is by default, or take one number of bits."
        )
    _refuse_unreadable(config, f"quantize.{key}: layers of several bits", "one number of bits")


def _refuse_unreadable(config: dict[str, Any], what: str, way_out: str) -> None:
    if config.get("model_type") in UNREADABLE:
        raise RecipeError(
            f"{what}: transformers cannot keep a {config['model_type']} packed; use {way_out}."
        )


def layer_bits(stage: Quantize, layers: Iterable[str]) -> dict[str, int]:
    """The bits of each layer; of the patterns in `bits_for`, the first that matches."""
    refuse_patterns(stage, layers)
    return {
        name: next((b for p, b in stage.bits_for.items() if fnmatchcase(name, p)), stage.bits)
        for name in layers
    }


def refuse_patterns(stage: Quantize, layers: Iterable[str]) -> None:
    """Raise RecipeError for a pattern that matches none of these names."""
    for pattern in stage.bits_for:
        if not any(fnmatchcase(name, pattern) for name in layers):
            stem = pattern.strip("*").strip(".").rpartition(".")[2]
            hint = did_you_mean(stem, {name.rpartition(".")[2] for name in layers})
            raise RecipeError(f"quantize.bits_for: no layer matches {pattern!r}{hint}")


def linear_names(config: dict[str, Any]) -> list[str]:
    """The linear layers that a model of this config has, read off a skeleton without weights."""
    known = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])._from_config(known)
    return [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]


def common_group_size(stage: Quantize, layers: Mapping[str, Linear]) -> int | None:
    """Inputs that share a scale, in every layer; None for one scale per output channel."""
    widths = sorted({_width(layer) for layer in layers.values()})
    if stage.quantizer.format == "bitsandbytes":
        block = getattr(stage.quantizer, "block", 1)
        odd = next((width for width in widths if width % block), None)
        if odd is not None:
            raise RecipeError(
                f"quantize.quantizer: {name_of(stage.quantizer)} takes inputs that are multiples"
                f" of {block}, not {odd}; use quantizer=scale_search."
            )
        return None
    if stage.group_size == "channel" or getattr(stage.quantizer, "rounds_inputs", False):
        return None
    common = math.gcd(*widths)
    if stage.group_size == "auto":
        fitting = [group for group in GROUPS if common % group == 0]
        if fitting:
            return fitting[0]
        odd = next(width for width in widths if width % GROUPS[-1])
        raise RecipeError(_indivisible("auto", odd, common=common))
    if common % stage.group_size == 0:
        return stage.group_size
    odd = next(width for width in widths if width % stage.group_size)
    raise RecipeError(_indivisible(stage.group_size, odd, common=common))


def _width(layer: Any) -> int:
    return int(layer.weight.shape[1])


def _indivisible(group: int | str, width: int, *, common: int) -> str:
    fitting = [str(group) for group in GROUPS if common % group == 0]
    return (
        f"quantize.group_size: {group} does not divide all inputs (one has {width}); what does:"
        f" {', '.join([*fitting, 'channel'])}."
    )
