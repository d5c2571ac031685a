"""An exported graph as a session, in ONNX Runtime or OpenVINO; every answer has its own past."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcc.core.errors import DataError, GateError
from lcc.inference.companions import Companions, read_companions
from lcc.inference.graph_answers import GraphAnswerPasses
from lcc.inference.graph_files import GRAPH_FOLDER, WHOLE, empty_past, exporters
from lcc.inference.requests import Request, Step
from lcc.inference.sessions import Ability, Opening, Session
from lcc.inference.turning import Passes, TurningSession
from lcc.parts.signal_stack import kept_signal_stack

Vectors = list[np.ndarray[Any, Any]]


class GraphPasses:
    """See `inference.turning.Passes`; a row is a past of its own, so that rows come and go."""

    joins = True

    def __init__(self, graph: Any) -> None:
        self._graph, self._pasts, self._lengths = graph, list[Any](), list[int]()

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool]) -> list[Tensor | int]:
        """One prompt after the other, each on an empty past."""
        told = list[Tensor | int]()
        for prompt in prompts:
            logits, past = self._run(prompt, empty_past(self._graph.config), 0)
            self._pasts.append(past)
            self._lengths.append(len(prompt))
            told.append(logits[-1])
        return told

    def advance(self, tokens: Sequence[int], plain: Sequence[bool]) -> list[Tensor | int]:
        """One token of every row."""
        told = list[Tensor | int]()
        for row, token in enumerate(tokens):
            logits, self._pasts[row] = self._run([token], self._pasts[row], self._lengths[row])
            self._lengths[row] += 1
            told.append(logits[-1])
        return told

    def remove(self, row: int) -> None:
        """Forget a past."""
        for each in (self._pasts, self._lengths):
            each[row] = each[-1]
            each.pop()

    def read(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits of every token of a text."""
        found: np.ndarray[Any, Any] = self._run(ids, empty_past(self._graph.config), 0)[0].numpy()
        return found

    def close(self) -> None:
        """Forget graph and pasts."""
        self._graph, self._pasts, self._lengths = None, [], []

    def _run(self, ids: Sequence[int], past: Any, before: int) -> tuple[Tensor, Any]:
        # `before` is counted here: a layer with a window, as the graph gives it back, counts none.
        row = torch.tensor([list(ids)])
        positions = torch.arange(before, before + len(ids))[None]
        mask = torch.ones(1, before + len(ids), dtype=torch.long)
        output = _asked(self._graph, input_ids=row, position_ids=positions, attention_mask=mask,
                        past_key_values=past)  # fmt: skip
        return output.logits[0].float(), output.past_key_values


class GraphReader:
    """A classifier, masked model or encoder; see `inference.sessions.Session`."""

    free_slots = 0

    def __init__(self, graph: Any, beside: Companions, opening: Opening) -> None:
        self.card, self.tokenizer, self._graph = beside.card, beside.tokenizer, graph
        self.context = min(beside.context, opening.context or beside.context)
        found: dict[str, frozenset[Ability]] = {"classify": frozenset({"classify", "logits"}),
                                                "embed": frozenset({"embed"})}  # fmt: skip
        self.abilities = found.get(self.card.head, frozenset({"logits"}))

    def start(self, request: Request) -> int:
        """Refused: it writes no answers."""
        raise DataError(f"model {self.card.name!r} ({self.card.head}) writes no answers.")

    def step(self) -> list[Step]:
        """Nothing was admitted."""
        return []

    def drop(self, handle: int) -> None:
        """Nothing was admitted."""

    def logits(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Per row (num_labels,), of a masked model (num_tokens, vocabulary)."""
        if self.card.head == "embed":
            raise DataError(f"model {self.card.name!r} (embed) has no logits; ask for vectors.")
        return [self._output(row).logits[0].float().numpy() for row in rows]

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Per row the mean of its last hidden states."""
        if self.card.head != "embed":
            raise DataError("this graph ends in its head; export the encoder for vectors.")
        return [self._output(row).last_hidden_state[0].float().mean(0).numpy() for row in rows]

    def close(self) -> None:
        """Forget the graph."""
        self._graph = None

    def _output(self, row: Sequence[int]) -> Any:
        ids = torch.tensor([list(row)])
        return _asked(self._graph, input_ids=ids, attention_mask=torch.ones_like(ids))


def _asked(graph: Any, **inputs: Any) -> Any:
    """Its output for those of the inputs that it was traced with."""
    runner = graph.runners[WHOLE]
    traced = {name: value for name, value in inputs.items() if name in runner.metadata.kwargs}
    return runner(**traced)


def open_graph(folder: Path, opening: Opening, **options: Any) -> Session:
    """The session of `folder/graph`; `options` go to the engine's runner.

    Raises GateError where the engine refuses the files.
    """
    beside = read_companions(folder)
    try:
        with warnings.catch_warnings(), kept_signal_stack():
            warnings.simplefilter("ignore")
            graph = exporters().ExportedModel.from_pretrained(folder / GRAPH_FOLDER, **options)
            _ = graph.runners  # compiles it
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GateError(f"{folder}: its graph does not load ({reason}).") from None
    if beside.card.head not in ("causal", "seq2seq"):
        return GraphReader(graph, beside, opening)
    context = min(beside.context, opening.context or beside.context)
    passes: Passes = GraphPasses(graph)
    if beside.card.head == "seq2seq":
        assert beside.start is not None, folder
        passes = GraphAnswerPasses(graph, beside.start)
    return TurningSession(passes, beside, opening, context=context)
