"""Width pruning: the config of a narrower model, and the model with the narrower weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lcc.compression.importance import NEAR, nearest, rounded
from lcc.compression.prune_groups import HEADS_IN_HIDDEN, HEADS_STATED, POSITION_BIASED, head_dim
from lcc.core.errors import GateError
from lcc.core.lazy import torch
from lcc.models.blocks import blocks

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.calibration.block_walker import Batch
    from lcc.calibration.statistics import LayerStats
    from lcc.compression.prune_groups import PruningGroup

# What depends on the hidden width beside shapes: scales of embeddings, logits and norms.


def keep_scales(model: Any, before: int, after: int) -> None:
    """Undo, in place, what the model makes of its hidden width, so that the old scales stay.

    Gemma multiplies embeddings by √width; a T5 whose head is tied divides by it. A tied head is
    evened out in the last norm, whose gain nothing else reads.
    """
    config, gain = model.config, 1.0
    if config.model_type.startswith("gemma"):
        factor = (before / after) ** 0.5
        embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        embeddings.data *= factor
        if head is not None and head.weight is embeddings:
            gain /= factor
    if getattr(config, "scale_decoder_outputs", False):
        gain *= (after / before) ** 0.5
    if gain != 1.0:
        multiply(last_norm(model), gain)


def last_norm(model: Any) -> Any:
    """The norm after the last block, or None where the blocks end with one of their own."""
    body, inside = model.base_model, {m for b in blocks(model).values() for m in b.modules()}
    width = model.config.get_text_config().hidden_size
    norm = None
    for name, module in body.named_modules():
        weight = getattr(module, "weight", None)
        is_norm = weight is not None and tuple(weight.shape) == (width,)
        foreign = "embed" in name or (model.config.is_encoder_decoder and "encoder" in name)
        if is_norm and module not in inside and not foreign:
            norm = module
    return norm


def multiply(norm: Any, factor: float) -> None:
    """Make what a norm gives larger, in place."""
    if type(norm).__name__.startswith("Gemma"):
        norm.weight.data = (1 + norm.weight.data) * factor - 1  # It stores the gain less one.
    else:
        norm.weight.data *= factor
    if getattr(norm, "bias", None) is not None:
        norm.bias.data *= factor


def fit_inputs(layers: Mapping[str, Linear], expected: float, stats: LayerStats) -> None:
    """Weigh layers, in place, so that inputs of another size count as the expected ones did.

    Norms divide by the root of a mean over fewer channels; `expected` is the old mean square of
    all channels that stayed.
    """
    energy = float(stats.diagonal.sum()) / stats.num_tokens
    factor = (expected / max(energy, torch.finfo(torch.float32).tiny)) ** 0.5
    for layer in layers.values():
        layer.weight.data *= factor


def final_energy(model: Any, batches: Sequence[Batch]) -> Tensor:
    """The mean square of every channel after the last norm, over tokens that are no padding."""
    total: Any = 0.0
    num_tokens = 0.0
    for batch in batches:
        with torch.no_grad():
            output = model.base_model(**batch, output_hidden_states=True)
        # T5 with a head is its own base model, and has no last state but that of its decoder.
        last = output.get("last_hidden_state")
        hidden = (output.decoder_hidden_states[-1] if last is None else last).float()  # (B, T, H)
        key = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"
        mask = batch[key].to(hidden).unsqueeze(-1)
        total = total + (hidden.square() * mask).sum(dim=(0, 1))
        num_tokens += float(mask.sum())
    energy: Tensor = total / num_tokens
    return energy


# How many channels, heads or hidden dimensions may stay, given what a config accepts.

Dims = Literal["ffn", "heads", "kv_groups", "hidden"]
RoundTo = int | Literal["auto"]
FFN_FIELDS = ("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim",
              "n_inner", "hidden_dim")  # fmt: skip
HIDDEN_FIELDS = ("hidden_size", "d_model", "n_embd")
HEAD_FIELDS = ("num_attention_heads", "num_heads", "n_head", "encoder_attention_heads")
# Their config refuses a hidden width that is no multiple of the number of heads.
DIVIDED = ("llama", "gemma2", "gemma3_text")


@dataclass(frozen=True)
class Shape:
    """What of a model's shape decides which sizes its narrower forms may have."""

    family: str
    hidden: int
    heads: int
    head_dim: int

    def stays(self, num: int, ratio: float, *, dims: Dims, round_to: RoundTo, runs: int = 1) -> int:
        """What stays of `num` things, of which each of `runs` runs must keep as many.

        Raises RecipeError when nothing would go.
        """
        if dims == "ffn":
            return rounded(num, ratio, round_to=round_to)
        if dims != "hidden":
            return nearest(num, ratio, allowed=self._numbers_of_heads(num, runs))
        step = self._hidden_step()
        if step == 1:
            return rounded(num, ratio, round_to=round_to)
        step = step if round_to == "auto" else math.lcm(step, round_to)
        return nearest(num, ratio, allowed=range(step, num, step))

    def _numbers_of_heads(self, num: int, runs: int) -> list[int]:
        """As many of every key-value head, and what the config takes for this hidden width."""
        multiples = range(runs, num, runs)
        if self.family not in DIVIDED:
            return list(multiples)
        return [kept for kept in multiples if self.hidden % (self.heads * kept // num) == 0]

    def _hidden_step(self) -> int:
        """What the hidden width must be a multiple of."""
        if self.family in HEADS_IN_HIDDEN:
            return self.head_dim
        return self.heads if self.family in DIVIDED else 1


def foreseen(config: Mapping[str, Any], ratio: float, *, dims: Dims, round_to: RoundTo) -> float | None:
    """The share that a cut will take, as far as a config.json shows it.

    Raises RecipeError when nothing would go.
    """
    hidden, heads = _first(config, HIDDEN_FIELDS), _first(config, HEAD_FIELDS)
    if hidden is None or heads is None:
        return None
    head_dim = config.get("head_dim") or config.get("d_kv") or hidden // heads
    shape = Shape(str(config.get("model_type")), hidden, heads, head_dim)
    groups = config.get("num_key_value_heads") or heads
    sizes = {"heads": heads, "kv_groups": groups, "hidden": hidden}
    num = sizes.get(dims) or _first(config, FFN_FIELDS)
    if num is None:
        return None
    runs = groups if dims == "heads" and groups < heads else 1
    return 1 - shape.stays(num, ratio, dims=dims, round_to=round_to, runs=runs) / num


def _first(config: Mapping[str, Any], fields: tuple[str, ...]) -> int | None:
    return next((config[field] for field in fields if config.get(field)), None)


STACKS = ("encoder", "decoder")


class Plan:
    """Which field of the config states the number of each unit's things, and what it will say."""

    def __init__(self, config: Any, units: Sequence[PruningGroup], *, dims: Dims) -> None:
        self.config, self.units, self.dims = config.get_text_config(), units, dims
        config = self.config
        self.shape = Shape(
            config.model_type, int(config.hidden_size), int(config.num_attention_heads), head_dim(config)
        )
        self.fields = {unit.name: self._field(unit) for unit in units}
        self.wishes: dict[str, int] = {}  # what a ranking over all layers would keep of each unit
        self.sizes: dict[str, tuple[int, int]] = {}  # field → before, after

    @property
    def num_kept(self) -> dict[str, int]:
        return {unit.name: self.sizes[self.fields[unit.name]][1] for unit in self.units}

    def decide(self, ratio: float, round_to: RoundTo) -> None:
        """Set what stays: the same number in all units of one field.

        Raises RecipeError when nothing would go.
        """
        for unit in self.units:
            field = self.fields[unit.name]
            if field not in self.sizes:
                self.sizes[field] = (unit.num, self._after(unit, field, ratio, round_to))

    def _after(self, unit: PruningGroup, field: str, ratio: float, round_to: RoundTo) -> int:
        if self.dims == "hidden" and field != "hidden_size":
            return self.sizes["hidden_size"][1] // self.shape.head_dim
        if self.wishes:
            same = [u for u in self.units if self.fields[u.name] == field]
            ratio = 1 - sum(self.wishes[u.name] for u in same) / sum(u.num for u in same)
            if ratio < NEAR and len(set(self.fields.values())) > 1:
                return unit.num  # The others give it all.
        return self.shape.stays(unit.num, ratio, dims=self.dims, round_to=round_to, runs=unit.runs)

    def by_size(self) -> dict[tuple[int, int], list[str]]:
        """(before, after) → the fields that go from one to the other."""
        by_size: dict[tuple[int, int], list[str]] = {}
        for field, sizes in self.sizes.items():
            by_size.setdefault(sizes, []).append(field)
        return by_size

    def wished(self) -> list[dict[str, Any]]:
        """What the ranking over all layers would have taken from each."""
        return [
            {
                "layer": unit.name,
                "before": unit.num,
                "after": self.wishes[unit.name],
                "ratio": 1 - self.wishes[unit.name] / unit.num,
            }
            for unit in self.units
        ]

    def sentence(self) -> str:
        """The same in words."""
        rows = sorted(self.wished(), key=lambda row: float(row["ratio"]))
        least, most = rows[0], rows[-1]
        return (
            f"ranked over all layers, {least['layer']} would have lost {least['ratio']:.0%} and"
            f" {most['layer']} {most['ratio']:.0%} (table global_ranking); a config states one"
            " width for all, so every layer of a kind lost the same."
        )

    def _field(self, unit: PruningGroup) -> str:
        if self.dims == "ffn":
            return ffn_field(self.config, unit)
        if self.dims == "hidden" and unit.num == self.config.hidden_size:
            return "hidden_size"
        for stack in STACKS:
            if f".{stack}." in f".{unit.name}" and hasattr(self.config, f"{stack}_attention_heads"):
                return f"{stack}_attention_heads"
        num_keys = getattr(self.config, "num_key_value_heads", None)
        return "num_key_value_heads" if num_keys == unit.num else "num_attention_heads"


def ffn_field(config: Any, unit: PruningGroup) -> str:
    """The field of the config that states the width of this feed-forward layer.

    Raises GateError for a family whose config does not say it.
    """
    config = config.get_text_config()
    fields = [f for f in FFN_FIELDS if getattr(config, f, None) == unit.num]
    if not fields and hasattr(config, "n_inner") and config.n_inner is None:
        fields = ["n_inner"]  # GPT-2: unset means four times the hidden width.
    for stack in STACKS:
        if f".{stack}." in f".{unit.name}" and f"{stack}_ffn_dim" in fields:
            return f"{stack}_ffn_dim"
    if not fields:
        raise GateError(f"width: no field of {type(config).__name__} holds the width {unit.num}.")
    return fields[0]


def restate(config: Any, sizes: Mapping[str, int]) -> None:
    """Write new sizes into the config; what it derived from old ones is spelled out first."""
    config = config.get_text_config()
    derived = "hidden_size" in sizes or any("heads" in field for field in sizes)
    if derived and config.model_type in set(HEADS_STATED) - set(POSITION_BIASED):
        config.head_dim = head_dim(config)
    if getattr(config, "n_inner", 0) is None:
        config.n_inner = 4 * config.hidden_size
    if "num_key_value_heads" in sizes:
        shared = config.num_attention_heads // config.num_key_value_heads
        config.num_attention_heads = sizes["num_key_value_heads"] * shared
    for field, size in sizes.items():
        setattr(config, field, size)


def rebuilt(model: Any) -> Any:
    """The model as its config says, with the same parameters; nothing old is left in its modules.

    Raises GateError when config and weights disagree.
    """
    from transformers.initialization import no_init_weights

    with no_init_weights():
        new = type(model)(model.config)
    try:
        # Parameters themselves, not their values: tied ones stay tied.
        new.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    except RuntimeError as error:
        raise GateError(f"width: config and weights disagree: {error}") from error
    new.generation_config = getattr(model, "generation_config", None)
    return new.to(model.device).train(model.training)


# Closed-form repair of a layer that lost some of its inputs, from the Gram of its old inputs.


def ridge_repair(weight: Tensor, gram: Tensor, kept: Tensor, *, damping: float) -> Tensor:
    """The weight on the kept inputs that reproduces the old output best, in least squares.

    W' = W G[:, K] (G[K, K] + λI)⁻¹ with λ = damping · mean(diag G[K, K]), plus what pulls W' to
    the old W[:, K] instead of to zero: damping must not shrink a layer that lost nothing.
    weight (out, in), gram (in, in), kept (num_kept,) → (out, num_kept), solved in float64.
    """
    w, g = weight.double(), gram.double()
    inner = g[kept][:, kept]
    strength = damping * inner.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    regular = inner + strength * torch.eye(len(kept), dtype=g.dtype, device=g.device)
    target = w @ g[:, kept] + strength * w[:, kept]
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(regular)).T.to(weight.dtype)


def bias_repair(weight: Tensor, mean: Tensor, kept: Tensor) -> Tensor:
    """What the lost inputs gave on average: (out,) to add to the bias."""
    lost = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    lost[kept] = False
    return weight[:, lost] @ mean[lost].to(weight.dtype)


def relative_error(weight: Tensor, new: Tensor, kept: Tensor, gram: Tensor) -> float:
    """Mean squared change of the layer's output over its mean square: tr(ΔW G ΔWᵀ) / tr(W G Wᵀ)."""
    change = weight.float().clone()
    change[:, kept] -= new.float()
    lost = ((change @ gram) * change).sum()
    whole = ((weight.float() @ gram) * weight.float()).sum()
    return float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))
