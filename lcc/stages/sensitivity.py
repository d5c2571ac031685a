"""Try every action on every block alone: what the model would lose, and how many bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from lcc.compression.probing import Probing
from lcc.core.decode import card
from lcc.core.errors import ResourceError
from lcc.core.writing import write_text
from lcc.engine.blocks import as_linear, block_linears, blocks
from lcc.engine.calibration import Calibration, encoded_batches
from lcc.engine.statistics import StoredStats
from lcc.stage import Measure, Outcome
from lcc.stages._actions import NEEDS, Action, Actions
from lcc.stages._calibrated import SEQUENTIAL, Needs

if TYPE_CHECKING:
    from torch.nn import Linear

    from lcc.engine.walking import Batch
    from lcc.parts.checkpoint import Form
    from lcc.parts.model import Bundle
    from lcc.stage import Context, Noun

DEFAULT: tuple[Action, ...] = ("w8", "w4", "sparse50", "width25")


@card
class Sensitivity:
    """Mean KL to the model as it is, on `max_tokens` tokens of the validation split.

    One part is changed at a time, so that figures of several parts do not add up exactly; they say
    where to be careful. `per: layer` tries single linear layers in place of whole blocks.
    """

    reads: ClassVar[tuple[Noun, ...]] = SEQUENTIAL
    accepts: ClassVar[tuple[Form, ...]] = ("dense",)
    changes_model: ClassVar[bool] = False
    word: ClassVar[str] = "sensitivity"
    revision: ClassVar[int] = 1

    actions: Annotated[tuple[Action, ...], Field(min_length=1)] = DEFAULT
    per: Literal["block", "layer"] = "block"
    samples: Annotated[int, Field(ge=1)] = 32
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    calibration: Calibration = Field(default_factory=Calibration)

    def __post_init__(self) -> None:
        if "sequential" in self.calibration.mode:
            raise ValueError("sensitivity looks at the model as it is; leave calibration.mode out")

    @property
    def needs(self) -> Needs:
        wanted = {NEEDS.get(action) for action in self.actions}
        return "gram" if "gram" in wanted else "diagonal" if "diagonal" in wanted else None

    def run(self, bundle: Bundle, context: Context) -> Outcome:
        model = bundle.load(device=context.device)
        stats = self._statistics(context)
        batches = self._batches(model, bundle, context)
        with as_linear(model):
            parts = self._parts(model)
            actions = Actions(model, stats, dtype=bundle.card.dtype)
            probing = Probing(model, blocks(model), batches)
            rows = self._try(probing, actions, parts, context)
        told = [row for row in rows if row["kl"] is not None]
        return Outcome(
            measures={
                "num_parts": Measure(len(parts), "count"),
                "num_tokens": Measure(sum(_num_tokens(b) for b in batches), "count"),
                **_means(told, self.actions),
            },
            tables={"sensitivity": rows},
            notes=_notes(told),
        )

    def _statistics(self, context: Context) -> StoredStats | None:
        if self.needs is None:
            return None
        if "stats" not in context.inputs:
            raise ResourceError(
                "sensitivity: this model's Grams take more than the recipe's stats_budget; raise"
                " it, or leave width25 and w4_gptq out of stages.sensitivity.actions."
            )
        return StoredStats(context.inputs["stats"] / "stats", device=context.device)

    def _batches(self, model: Any, bundle: Bundle, context: Context) -> list[Batch]:
        """Texts that calibration did not see."""
        data = context.data
        return encoded_batches(
            list(data.rows("validation"))[: self.samples],
            context.required_task.for_data(data),
            bundle.tokenizer,
            model=model,
            batch_tokens=self.calibration.batch_tokens,
            max_length=self.calibration.max_length,
            max_tokens=self.max_tokens,
        )

    def _parts(self, model: Any) -> dict[str, tuple[str, dict[str, Linear]]]:
        """Part → its block and its linear layers, in forward order."""
        found: dict[str, tuple[str, dict[str, Linear]]] = {}
        linears = block_linears(model)
        for block in blocks(model):
            inside = {n: layer for n, layer in linears.items() if n.startswith(f"{block}.")}
            if self.per == "block":
                found[block] = (block, inside)
            else:
                found |= {name: (block, {name: layer}) for name, layer in inside.items()}
        return found

    def _try(
        self, probing: Probing, actions: Actions,
        parts: dict[str, tuple[str, dict[str, Linear]]], context: Context,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """One row for every part and action; a killed run goes on after its last one."""
        file = context.state / "rows.json"
        rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
        todo = [(part, action) for part in parts for action in self.actions]
        with context.progress.track("probe", len(todo), "trial", done=len(rows)) as bar:
            for part, action in todo[len(rows) :]:
                block, layers = parts[part]
                change = actions.change(action, layers)
                kl = None if change is None else probing.divergence(block, change.weights)
                rows.append({"part": part, "action": action, "kl": kl,
                             "bytes": None if change is None else change.bytes})  # fmt: skip
                write_text(file, json.dumps(rows))
                bar.advance()
        return rows


def _num_tokens(batch: Batch) -> int:
    mask = batch.get("decoder_attention_mask")
    return int((batch["attention_mask"] if mask is None else mask).sum())


def _means(rows: list[dict[str, Any]], actions: tuple[str, ...]) -> dict[str, Measure]:
    """Each action's mean over the parts that it applies to."""
    found = {a: [row["kl"] for row in rows if row["action"] == a] for a in actions}
    return {f"mean_kl_{a}": Measure(sum(v) / len(v), "nats") for a, v in found.items() if v}


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """The part that each action hurts most."""
    worst: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["kl"] > worst.get(row["action"], {"kl": -1.0})["kl"]:
            worst[row["action"]] = row
    told = ", ".join(f"{a} at {row['part']} ({row['kl']:.3g})" for a, row in worst.items())
    return [f"What hurts most, as KL in nats: {told}."] if told else []
