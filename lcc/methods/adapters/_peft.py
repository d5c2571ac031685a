"""What adapters through peft share: attaching, starting values (PiSSA, LoftQ), virtual tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import bitsandbytes, peft, safetensors_torch, torch
from lcc.models.adapter_io import AdapterNote, BaseForm, attach
from lcc.models.adapters import hush
from lcc.models.card import class_names, read_json, write_config
from lcc.models.safetensors_io import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.models.bundle import Bundle

NUM_ITERATIONS = 16  # of the randomised SVD


def initial_factors(model: Module) -> dict[str, Tensor]:
    """A copy of every A and B by the name under which peft stores it."""
    return {
        name.replace(".default.", "."): parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if "lora_A" in name or "lora_B" in name
    }


def subtract_at_writing(bundle: Bundle, initial: Mapping[str, Tensor]) -> None:
    """Let BA − B₀A₀ be stored, one adapter of twice the rank: the base is as it always was."""
    write = bundle.write
    assert write is not None

    def written(changed: Bundle, folder: Path) -> None:
        write(changed, folder)
        _subtract(folder, initial)

    bundle.write = written


def _subtract(folder: Path, initial: Mapping[str, Tensor]) -> None:
    file, config_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    stored, config = safetensors_torch.load_file(file), read_json(config_file)
    for name, start in initial.items():
        if "lora_A" in name:
            stored[name] = torch.cat([stored[name], start])  # (2 rank, in)
        else:
            stored[name] = torch.cat([stored[name], -start], dim=1)  # (out, 2 rank)
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    config |= {
        "r": 2 * rank,
        "lora_alpha": scaling * 2 * rank,
        "use_rslora": False,
        "init_lora_weights": True,
    }
    safetensors_torch.save_file(stored, file, metadata={"format": "pt"})
    write_config(config_file, config)


def make_up_for_nf4(model: Any, bundle: Bundle) -> None:
    """Let every adapter begin as the best change of its rank to what NF4 lost, in place.

    One turn of LoftQ: the quantized weights stay those that anybody quantizes from this base.
    """
    assert bundle.path is not None
    stored, prefix = StoredTensors(bundle.path), model.get_base_model().base_model_prefix
    for name, layer in model.get_base_model().named_modules():
        packed: Any = getattr(getattr(layer, "base_layer", None), "weight", None)
        if not hasattr(packed, "quant_state"):
            continue
        rough = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state)
        lost = _stored(stored, f"{name}.weight", prefix).to(rough).float() - rough.float()
        up, down = _factors(lost, layer.r["default"])
        layer.lora_B["default"].weight.data.copy_(up)
        layer.lora_A["default"].weight.data.copy_(down / layer.scaling["default"])


def _stored(stored: StoredTensors, name: str, prefix: str) -> Tensor:
    """The tensor under its own name, or as the bare body of the model calls it."""
    aliases = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return stored.read(next(alias for alias in aliases if alias in stored.entries))


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, values, right = torch.svd_lowrank(matrix, q=min(rank, *matrix.shape), niter=NUM_ITERATIONS)
    half = values.sqrt()
    return left * half, half[:, None] * right.T


# What LoRA, QLoRA, DoRA and AdaLoRA share: their options, and a peft model around a base.

TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classify": "SEQ_CLS",
              "masked": "FEATURE_EXTRACTION", "extract": "QUESTION_ANS"}  # fmt: skip


@card
class LowRank:
    """W + s·BA on `target`: a list of module names, or every linear layer.

    s is alpha / rank, or alpha / √rank with `rslora` (Kalajdzievski, 2023), under which a large
    rank learns as fast as a small one. B learns at `lr_ratio` times the rate of A (LoRA+; Hayou et
    al., 2024). "all-linear" leaves the output layer alone, and with it embeddings tied to it. A
    classification head is trained whole.
    """

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target: tuple[str, ...] | str = "all-linear"
    rslora: bool = False
    lr_ratio: Annotated[float, Field(ge=1)] = 1.0

    @property
    def default_lr(self) -> float:
        """Of A; the geometric mean of both rates stays where it is best for LoRA."""
        return 1e-3 / math.sqrt(self.lr_ratio)

    @property
    def lr_ratios(self) -> dict[str, float]:
        return {"lora_B": self.lr_ratio}

    def config(self, bundle: Bundle, **options: Any) -> Any:
        hush()
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=named(self.target),
            task_type=TASK_TYPES[bundle.card.head],
            **options,
        )


def named(target: tuple[str, ...] | str) -> list[str] | str:
    """Module names as peft takes them."""
    return target if isinstance(target, str) else list(target)


def adapt(bundle: Bundle, base: Any, config: Any, *, seed: int, form: BaseForm = "dense") -> Module:
    """Freeze `base` and put a fresh adapter in it; the bundle becomes that adapter."""
    torch.manual_seed(seed)  # draws A; B starts at zero
    model: Module = peft.get_peft_model(base, config)
    attach(bundle, model, note_of(bundle, base, form))
    return model


def note_of(bundle: Bundle, base: Any, form: BaseForm = "dense") -> AdapterNote:
    """What whoever opens the adapter again must know of its base."""
    labels = class_names(base.config.to_dict()) if bundle.card.head == "classify" else ()
    return AdapterNote(form, bundle.card.head, labels)


# What prompt, prefix and P-tuning share: virtual tokens before the text, no weight changed.


@card
class Virtual:
    """`num_tokens` trained vectors stand before every text and take that much of its window."""

    num_tokens: Annotated[int, Field(ge=1)] = 20
