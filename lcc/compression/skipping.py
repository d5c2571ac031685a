"""What a model says with parts left out; a trial runs only the blocks from its part on.

The blocks before stand still and hand on what they gave last time, so that the model's own code
around them (masks, positions, norms, heads) is run as it is and no family needs a word here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lcc.core import preemption
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.engine.walking import Batch

Patch = Callable[..., Any]
Answers = tuple["Tensor", bool]  # (rows, classes or hidden), and whether they are logits


@dataclass(frozen=True)
class Part:
    """A whole block, or the half of it that speaks through the layer `output` alone."""

    block: str
    output: str = ""

    @property
    def name(self) -> str:
        return self.output or self.block


@dataclass
class _Trial:
    """One batch, up to which block of each stack it stands finished, and the part now left out."""

    done: dict[str, tuple[int, Any]] = field(default_factory=dict)
    part: Part | None = None


class Skipping:
    """Compares a model without some `parts` with the whole one; nothing in it is changed."""

    def __init__(self, model: Any, stops: Mapping[str, Module]) -> None:
        self.model, self.stops = model, stops
        self.order = {name: position for position, name in enumerate(stops)}
        self.left_out: set[Part] = set()
        self.num_block_runs = 0
        self._beside: dict[str, tuple[Any, ...] | None] = {}  # what a block returns after its state
        self._trial: _Trial | None = None
        self._is_silent = False

    def divergences(self, batches: Sequence[Batch], parts: Sequence[Part]) -> dict[Part, float]:
        """Mean KL to the whole model without each of `parts` and all that `left_out` names.

        Models without logits are judged by the relative squared change of their last states.
        """
        parts = sorted(parts, key=lambda part: self.order[part.block])
        totals, num_answers = dict.fromkeys(parts, 0.0), 0
        with torch.no_grad(), self._patched(parts):
            for batch in batches:
                whole = self._answers(batch, None)
                trial = _Trial()
                for part in parts:
                    trial.part = part
                    totals[part] += divergence(whole, self._answers(batch, trial))
                num_answers += len(whole[0])
        return {part: total / num_answers for part, total in totals.items()}

    def _answers(self, batch: Batch, trial: _Trial | None) -> Answers:
        self._trial = trial
        return said(self.model, batch)

    def _block(self, name: str, forward: Patch, args: Any, kwargs: Any) -> Any:
        """What the block hands on in this run."""
        state = args[0] if args else kwargs["hidden_states"]
        trial, position, stack = self._trial, self.order[name], name.rpartition(".")[0]
        if trial is None:
            output = self._run(forward, args, kwargs)
            self._beside[name] = output[1:] if isinstance(output, tuple) else None
            return output
        assert trial.part is not None
        done, last = trial.done.get(stack, (-1, None))
        if position == done:
            return last
        if position < done or Part(name) in self.left_out:
            return self._passed(name, state)
        output = self._run(forward, args, kwargs)
        if position <= self.order[trial.part.block]:
            trial.done[stack] = (position, output)
        if name != trial.part.block:
            return output
        return self._without(trial.part, state, forward, args, kwargs)

    def _without(self, part: Part, state: Tensor, forward: Patch, args: Any, kwargs: Any) -> Any:
        if not part.output:
            return self._passed(part.block, state)
        self._is_silent = True
        output = self._run(forward, args, kwargs)
        self._is_silent = False
        return output

    def _run(self, forward: Patch, args: Any, kwargs: Any) -> Any:
        self.num_block_runs += 1
        return forward(*args, **kwargs)

    def _passed(self, name: str, state: Tensor) -> Any:
        beside = self._beside[name]
        return state if beside is None else (state, *beside)

    def _output(self, part: Part, forward: Patch, args: Any, kwargs: Any) -> Any:
        """What the layer gives that a half speaks through: nothing while the half is left out."""
        trial = self._trial
        given = forward(*args, **kwargs)
        if trial is None or not (part in self.left_out or (self._is_silent and part == trial.part)):
            return given
        return torch.zeros_like(given)

    @contextmanager
    def _patched(self, parts: Sequence[Part]) -> Iterator[None]:
        halves = {part for part in [*parts, *self.left_out] if part.output}
        with ExitStack() as stack:
            for name, block in self.stops.items():
                stack.enter_context(_replaced(block, self._block, name))
            for part in halves:
                layer = self.model.get_submodule(part.output)
                stack.enter_context(_replaced(layer, self._output, part))
            yield


@contextmanager
def _replaced(module: Any, by: Patch, what: Any) -> Iterator[None]:
    forward = module.forward
    module.forward = lambda *args, **kwargs: by(what, forward, args, kwargs)
    try:
        yield
    finally:
        del module.forward


def said(model: Any, batch: Batch) -> Answers:
    """The model's answers where the batch has no padding; its last states where it has no head."""
    preemption.check("compare")
    cache = {"use_cache": False} if model.config.to_dict().get("use_cache") else {}
    output = model(**batch, **cache)
    is_scored = "logits" in output
    found = output.logits if is_scored else output.last_hidden_state
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    if mask is not None and mask.shape == found.shape[:-1]:
        return found[mask.bool()].float(), is_scored
    return found.reshape(-1, found.shape[-1]).float(), is_scored


def divergence(whole: Answers, got: Answers) -> float:
    """Summed over the rows: KL(whole ‖ got) of logits, ‖Δ‖² / ‖whole‖² of states."""
    (expected, is_scored), (given, _) = whole, got
    if not is_scored:
        change = (expected - given).square().sum(-1)
        return float((change / expected.square().sum(-1).clamp(min=1e-30)).sum())
    p, q = expected.log_softmax(-1), given.log_softmax(-1)
    found = float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
    return max(0.0, found)  # Rounding alone can fall below nothing.
