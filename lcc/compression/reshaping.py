"""The config of a narrower model, and the model it builds with the narrower weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcc.compression.families import HEADS_STATED, POSITION_BIASED, head_dim
from lcc.compression.ranking import NEAR
from lcc.compression.sizing import FFN_FIELDS, Dims, RoundTo, Shape
from lcc.core.errors import GateError

if TYPE_CHECKING:
    from lcc.compression.units import Unit

STACKS = ("encoder", "decoder")


class Plan:
    """Which field of the config states the number of each unit's things, and what it will say."""

    def __init__(self, config: Any, units: Sequence[Unit], *, dims: Dims) -> None:
        self.config, self.units, self.dims = config.get_text_config(), units, dims
        config = self.config
        self.shape = Shape(config.model_type, int(config.hidden_size),
                           int(config.num_attention_heads), head_dim(config))  # fmt: skip
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

    def _after(self, unit: Unit, field: str, ratio: float, round_to: RoundTo) -> int:
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
        found: dict[tuple[int, int], list[str]] = {}
        for field, sizes in self.sizes.items():
            found.setdefault(sizes, []).append(field)
        return found

    def wished(self) -> list[dict[str, Any]]:
        """What the ranking over all layers would have taken from each."""
        return [
            {"layer": unit.name, "before": unit.num, "after": self.wishes[unit.name],
             "ratio": 1 - self.wishes[unit.name] / unit.num}
            for unit in self.units
        ]  # fmt: skip

    def sentence(self) -> str:
        """The same in words."""
        rows = sorted(self.wished(), key=lambda row: float(row["ratio"]))
        least, most = rows[0], rows[-1]
        return (
            f"ranked over all layers, {least['layer']} would have lost {least['ratio']:.0%} and"
            f" {most['layer']} {most['ratio']:.0%} (table global_ranking); a config states one"
            " width for all, so every layer of a kind lost the same."
        )

    def _field(self, unit: Unit) -> str:
        if self.dims == "ffn":
            return ffn_field(self.config, unit)
        if self.dims == "hidden" and unit.num == self.config.hidden_size:
            return "hidden_size"
        for stack in STACKS:
            if f".{stack}." in f".{unit.name}" and hasattr(self.config, f"{stack}_attention_heads"):
                return f"{stack}_attention_heads"
        num_keys = getattr(self.config, "num_key_value_heads", None)
        return "num_key_value_heads" if num_keys == unit.num else "num_attention_heads"


def ffn_field(config: Any, unit: Unit) -> str:
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
