"""Factorize each linear layer of the blocks into two thin ones (SVD-LLM v2; Wang et al., 2025).

No form that plain transformers loads was found to save bytes so: configs know the rank of
embeddings (OPT's `word_embed_proj_dim`), of whole heads (T5's `d_kv`), of projections with a norm
between their factors (DeepSeek's `q_lora_rank`), never of any linear layer. A peft adapter adds to
a whole matrix. Hence a loader of our own, allowed by name.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.calibration.calibrate import Calibration
from lcc.compression.lowrank import (
    Decomposition,
    break_even,
    decompose,
    ranks_by_loss,
    uniform_ranks,
    whitening,
)
from lcc.config.cards import card
from lcc.core.errors import RecipeError
from lcc.core.progress import Measure
from lcc.models.blocks import as_linear, block_linears
from lcc.models.formats import FORMAT, put_factors, write_factored
from lcc.pipeline.stage import Outcome
from lcc.stages._input_groups import Needs, few_tokens, input_groups

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Linear

    from lcc.core.types import Form
    from lcc.models.bundle import Bundle
    from lcc.pipeline.stage import Context, Noun

MOST = 0.4  # of the parameters: the truncated values are no longer the small ones


@card
class Factorize:
    """W ≈ UV of a rank that keeps the layer's outputs best: the optimum in the inputs' own norm.

    `ratio` of the layers' parameters goes; `allocation: loss` gives every layer the rank at which
    one more would take away equally much relative output error per parameter. No config of plain
    transformers can say that a layer is two: `store: factors` loads with lcc only and has to be
    allowed (`allow_lcc_loader`); `store: merged` loads anywhere and saves no bytes.
    """

    needs: ClassVar[Needs] = "gram"
    reads: ClassVar[tuple[Noun, ...]] = ()
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = True
    word: ClassVar[str] = "factorize"
    revision: ClassVar[int] = 2

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.2
    allocation: Literal["loss", "uniform"] = "loss"
    store: Literal["factors", "merged"] = "factors"
    allow_lcc_loader: bool = False
    accept_damage: bool = False
    damping: Annotated[float, Field(ge=0)] = 0.01
    calibration: Calibration = Field(default_factory=Calibration)

    def __post_init__(self) -> None:
        if self.store == "factors" and not self.allow_lcc_loader:
            raise ValueError(
                "store: factors makes a checkpoint that plain transformers cannot load; say"
                " allow_lcc_loader: true, or store: merged, which loads anywhere and saves no bytes"
            )
        if self.ratio > MOST and not self.accept_damage:
            raise ValueError(
                f"ratio {self.ratio} is more than {MOST}: beyond, what is cut off are no longer the"
                " small singular values and models fall apart; take less, or say"
                " accept_damage: true"
            )

    @property
    def produces(self) -> Form:
        return "packed" if self.store == "factors" else "dense"

    def check(self, config: dict[str, Any]) -> None:
        """Refuse, before any work, what the ranks of all layers cannot be weighed in."""
        refuse_sequential("factorize", self.calibration)

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        num_before = sum(p.numel() for p in model.parameters())
        rows: list[dict[str, Any]] = []
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        with as_linear(model):
            layers = block_linears(model)
            decompositions, num_tokens = self._decomposed(bundle, context, layers)
            shapes = {n: (layer.out_features, layer.in_features) for n, layer in layers.items()}
            ranks = self._ranks(decompositions, shapes)
            for name, (decomposition, _) in decompositions.items():
                if ranks[name] < break_even(*shapes[name]):
                    up, down = decomposition.factors(ranks[name])
                    pairs[name] = (up.float().contiguous(), down.float().contiguous())
                rows.append(self._row(name, decompositions[name], shapes[name], rank=ranks[name]))
            self._merge(layers, pairs)
        self._settle(bundle, model, pairs)
        widest = max(layer.in_features for layer in layers.values())
        return Outcome(
            bundle=bundle,
            measures=self._measures(rows, num_before, model),
            tables={"ranks": rows},
            notes=[self._note(sum(row["after"] - row["before"] for row in rows))],
            warnings=few_tokens(num_tokens, widest, self.calibration),
        )

    def _decomposed(
        self, bundle: Bundle, context: Context, layers: dict[str, Linear]
    ) -> tuple[dict[str, tuple[Decomposition, float]], int]:
        """Each layer's decomposition and the energy of its outputs; none is changed yet."""
        decompositions: dict[str, tuple[Decomposition, float]] = {}
        num_tokens = 0
        with context.progress.track("decompose", len(layers), "layer") as bar:
            for group in input_groups(bundle, context, layers, self.calibration, needs=self.needs):
                assert group.stats is not None and group.stats.gram is not None
                num_tokens = group.stats.num_tokens
                whitened = whitening(group.stats.gram, damping=self.damping)
                for name, layer in group.layers.items():
                    cut = decompose(layer.weight.detach(), whitened)
                    most = break_even(layer.out_features, layer.in_features)
                    energy = float(cut.energy.sum())
                    decompositions[name] = (
                        Decomposition(cut.left[:, :most].float(), cut.values, cut.right[:most].float()),
                        energy,
                    )
                    bar.advance()
        return {name: decompositions[name] for name in layers}, num_tokens

    def _ranks(
        self, decompositions: dict[str, tuple[Decomposition, float]], shapes: dict[str, tuple[int, int]]
    ) -> dict[str, int]:
        if self.allocation == "uniform":
            return uniform_ranks(shapes, self.ratio)
        energies = {name: decomposition.energy for name, (decomposition, _) in decompositions.items()}
        return ranks_by_loss(energies, shapes, self.ratio)

    def _row(
        self, name: str, decomposed: tuple[Decomposition, float], shape: tuple[int, int], *, rank: int
    ) -> dict[str, Any]:
        (decomposition, energy), whole = decomposed, shape[0] * shape[1]
        is_whole = rank >= break_even(*shape)
        lost = 0.0 if is_whole else float(decomposition.energy[rank:].sum()) / max(energy, 1e-300)
        after = whole if is_whole or self.store == "merged" else rank * sum(shape)
        return {
            "layer": name,
            "rank": "whole" if is_whole else rank,
            "output_error": lost,
            "before": whole,
            "after": after,
        }

    def _merge(self, layers: dict[str, Linear], pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
        if self.store == "factors":
            return
        for name, (up, down) in pairs.items():
            layers[name].weight.data = (up @ down).to(layers[name].weight.dtype)

    def _settle(self, bundle: Bundle, model: Any, pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
        bundle.module = model
        bundle.with_card(sparse=None)
        if self.store == "merged":
            return
        for name, (up, down) in pairs.items():
            put_factors(model, name, up, down)
        ranks = {name: down.shape[0] for name, (_, down) in pairs.items()}
        bundle.write = partial(_write, ranks=ranks)
        bundle.with_card(form="packed", format=FORMAT, loads_with="lcc")

    def _measures(self, rows: list[dict[str, Any]], num_before: int, model: Any) -> dict[str, Measure]:
        num_after = sum(p.numel() for p in model.parameters())
        errors = [row["output_error"] for row in rows]
        whole = sum(row["before"] for row in rows)
        return {
            "num_parameters_before": Measure(num_before, "count"),
            "num_parameters": Measure(num_after, "count"),
            "achieved_ratio": Measure(1 - sum(row["after"] for row in rows) / whole, "share"),
            "output_error": Measure(sum(errors) / len(errors), "share"),
        }

    def _note(self, change: int) -> str:
        if self.store == "merged":
            return (
                "0 bytes saved and no faster: the two factors of each layer are multiplied out"
                " again, so that plain transformers loads the model."
            )
        return (
            f"{-change} parameters fewer. Loads with lcc only: no config of plain transformers"
            " can say that a layer is two; store: merged makes a copy that loads anywhere and"
            " saves no bytes."
        )


def refuse_sequential(stage: str, calibration: Calibration) -> None:
    """Raise RecipeError where a stage that needs the parent's statistics would not get them."""
    if calibration.mode in ("sequential", "true_sequential"):
        raise RecipeError(
            f"{stage}.calibration.mode: all layers are weighed by what the parent's see; use"
            " calibration.mode=dense (and a larger stats_budget where the model needs it)."
        )


def _write(bundle: Bundle, folder: Path, *, ranks: Mapping[str, int]) -> None:
    module = bundle.load(device=None, dtype=None)
    write_factored(module, folder, dtype=bundle.card.dtype, ranks=ranks)
