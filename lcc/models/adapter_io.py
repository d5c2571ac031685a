"""Adapters on disk: written with a note on their base, put back on it, merged and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcc.core.errors import IntegrityError, RecipeError
from lcc.core.lazy import torch, transformers
from lcc.models.adapters import Bottlenecks, hush, merge_adapter, put_adapter, write_bottlenecks
from lcc.models.bundle import Bundle
from lcc.models.card import auto_class, write_config

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# What was pruned stays zero: masks for full training, and adapters that respect them.

Masks = Mapping[str, "Tensor"]
"""By parameter name: True where a linear weight is kept."""


def zero_masks(model: Module) -> dict[str, Tensor]:
    """The zero pattern of every linear weight that has zeros."""
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kept = module.weight.detach() != 0
            if not bool(kept.all()):
                masks[f"{name}.weight"] = kept
    return masks


def mask_gradients(model: Module, masks: Masks) -> None:
    """Zero the gradients of pruned weights, in place, so that clipping does not count them."""
    for name, kept in masks.items():
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            gradient.mul_(kept)


def mask_weights(model: Module, masks: Masks) -> None:
    """Put pruned weights back to zero, in place."""
    with torch.no_grad():
        for name, kept in masks.items():
            model.get_parameter(name).mul_(kept)


def mask_adapters(model: Module) -> None:
    """Make every LoRA or VeRA layer over a sparse weight compute with W + mask ⊙ BA, in place."""
    for layer in model.modules():
        base = getattr(layer, "base_layer", None)
        if not hasattr(layer, "get_delta_weight") or not isinstance(base, torch.nn.Linear):
            continue
        kept = base.weight.detach() != 0
        if not bool(kept.all()):
            layer.forward = partial(_masked_forward, layer, kept)


def _masked_forward(layer: Any, kept: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    unchanged: Tensor = layer.base_layer(x)
    if layer.merged or layer.disable_adapters:
        return unchanged
    (name,) = layer.active_adapters
    change = layer.get_delta_weight(name) * kept  # (out, in)
    dropout = layer.vera_dropout if hasattr(layer, "vera_dropout") else layer.lora_dropout
    dropped = dropout[name](x).to(change.dtype)
    return unchanged + torch.nn.functional.linear(dropped, change).to(unchanged.dtype)


NOTE_FILE = "lcc_adapter.json"
BaseForm = Literal["dense", "nf4"]


@dataclass(frozen=True)
class AdapterNote:
    """What an adapter was trained on: `nf4` means the base as dequantized from 4 bits."""

    base: BaseForm
    head: str
    labels: tuple[str, ...] = ()


def attach(bundle: Bundle, model: Any, note: AdapterNote) -> None:
    """Make `bundle` the adapter `model` (a PeftModel), written together with `note`."""

    def write(written: Bundle, folder: Path) -> None:
        model.save_pretrained(folder, save_embedding_layers=False)
        for stray in ("README.md", "config.json"):
            (folder / stray).unlink(missing_ok=True)
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        # peft notes the path it was trained from: a path of this machine, true nowhere else.
        config["base_model_name_or_path"] = written.card.name
        if isinstance(config.get("target_modules"), list):
            config["target_modules"].sort()  # a set: its order changes between processes
        write_config(file, config)
        write_config(folder / NOTE_FILE, asdict(note))

    bundle.module = model
    bundle.write = write
    bundle.with_card(form="adapter")


def attach_bottlenecks(bundle: Bundle, model: Module, note: AdapterNote, shape: Bottlenecks) -> None:
    """Make `bundle` the bottleneck adapters inside `model`, written together with `note`."""

    def write(written: Bundle, folder: Path) -> None:
        write_bottlenecks(model, shape, folder)
        write_config(folder / NOTE_FILE, asdict(note))

    bundle.module = model
    bundle.write = write
    bundle.with_card(form="adapter")


def fills_zeros(bundle: Bundle) -> bool:
    """Whether a dense change merged into this parent would fill its zeros.

    An adapter of packed weights stays beside them and fills nothing.
    """
    return bundle.card.sparse is not None and bundle.card.form == "dense"


def refuse_sparse(bundle: Bundle, method: str) -> None:
    """A dense change would fill a sparse model's zeros when it is merged."""
    if fills_zeros(bundle):
        raise RecipeError(
            f"method: model {bundle.card.name!r} is sparse ({bundle.card.sparse}) and {method} "
            "would fill its zeros; use method=full or method=lora, which keep them."
        )


def read_note(folder: Path) -> AdapterNote:
    """The note beside an adapter; raises IntegrityError when it is missing or damaged."""
    try:
        facts = json.loads((folder / NOTE_FILE).read_text(encoding="utf-8"))
        return AdapterNote(**{**facts, "labels": tuple(facts["labels"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{folder / NOTE_FILE}: not readable ({error}).") from None


def load_nf4(bundle: Bundle, device: str, dtype: str, *, seed: int) -> Module:
    """The bundle's weights in NF4; a head that its folder lacks is drawn from `seed`.

    Always with double quantization, and never repacked: on a CPU with AVX-512 the first eval
    forward would lay the weights out anew, after which no gradient passes through them, and
    without double quantization a later save writes ruined ones.
    """
    assert bundle.path is not None, "NF4 weights are made while reading a checkpoint"
    hush()
    compute = getattr(torch, dtype)
    config = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        # A generating model's output layer is left alone anyway; a classifier must be told.
        llm_int8_skip_modules=["classifier", "score"] if bundle.card.head == "classify" else None,
    )
    shape = {} if bundle.module is None else {"config": bundle.module.config}
    torch.manual_seed(seed)
    model: Module = auto_class(bundle.card).from_pretrained(
        bundle.path,
        **shape,
        quantization_config=config,
        dtype=compute,
        device_map={"": device},
        use_safetensors=True,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def base_for(bundle: Bundle, note: AdapterNote, *, seed: int) -> Module:
    """The float32 weights that an adapter was trained on: the bundle's own, or through NF4."""
    if note.labels:
        bundle.with_head(
            note.head,  # type: ignore[arg-type]
            num_labels=len(note.labels),
            seed=seed,
            labels=note.labels,
        )
    if note.base == "nf4":
        quantized: Any = load_nf4(bundle, "cpu", "float32", seed=seed)
        dequantized: Module = quantized.dequantize()
        return dequantized.float()
    base: Module = bundle.load()
    return base


@dataclass(frozen=True)
class MergedModel:
    """A dense model with its adapter inside, and how far its logits moved by merging."""

    model: Module
    max_abs_logit_difference: float
    largest_logit: float


def merge(
    base: Module, folder: Path, *, probes: Sequence[Sequence[int]], sparse: bool = False
) -> MergedModel:
    """Put the adapter of `folder` into `base`, in place, comparing logits on `probes`.

    With `sparse` the zeros of `base` stay zero, as they were while the adapter was trained.
    """
    hush()
    masks = zero_masks(base) if sparse else {}
    adapted: Any = put_adapter(base, folder)
    if sparse:
        mask_adapters(adapted)
    before = _logits(adapted, probes)
    model = merge_adapter(adapted)
    mask_weights(model, masks)
    after = _logits(model, probes)
    differences = [float((a - b).abs().max()) for a, b in zip(after, before, strict=True)]
    largest = max(float(a.abs().max()) for a in before)
    return MergedModel(model, max(differences), largest)


def _logits(model: Any, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    logits = []
    is_pair = model.config.is_encoder_decoder
    with torch.no_grad():
        for probe in probes:
            ids = torch.tensor([list(probe)])
            extra = {"decoder_input_ids": ids} if is_pair else {}
            logits.append(model(input_ids=ids, **extra).logits.float())
    return logits
