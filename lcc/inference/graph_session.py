"""An exported graph as a session, in ONNX Runtime or OpenVINO."""

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
from lcc.inference.graph_files import GRAPH_FOLDER, WHOLE, exporters
from lcc.inference.graph_pasts import Pasts
from lcc.inference.joining import joins
from lcc.inference.requests import Request, Step
from lcc.inference.sessions import Ability, Opening, Session
from lcc.inference.turning import Passes, TurningSession
from lcc.parts.signal_stack import kept_signal_stack

Rows = Sequence[Sequence[int]]
Vectors = list[np.ndarray[Any, Any]]


class GraphPasses:
    """See `inference.turning.Passes`; rows go on together where the graph hides what pads them."""

    joins = True

    def __init__(self, graph: Any, *, together: bool) -> None:
        self._graph, self._together = graph, together
        self._batches = list[Pasts]()  # one of all rows, or one of each row

    def take(self, prompts: Rows, plain: Sequence[bool] = ()) -> list[Tensor | int]:
        """One prompt after the other, each on an empty past."""
        told = list[Tensor | int]()
        for prompt in prompts:
            begun = Pasts(self._graph.config)
            told.append(self._run([prompt], begun)[0, -1])
            if self._together and self._batches:
                self._batches[0].join(begun)
            else:
                self._batches.append(begun)
        return told

    def advance(self, tokens: Sequence[int], plain: Sequence[bool] = ()) -> list[Tensor | int]:
        """One token of every row."""
        told, left = list[Tensor | int](), [[token] for token in tokens]
        for batch in self._batches:
            mine, left = left[: len(batch.lengths)], left[len(batch.lengths) :]
            told += self._run(mine, batch)[:, -1]
        return told

    def remove(self, row: int) -> None:
        """Forget a past."""
        if self._together:
            self._batches[0].remove(row)
            self._batches = [batch for batch in self._batches if batch.lengths]
        else:
            self._batches[row] = self._batches[-1]
            self._batches.pop()

    def read(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits of every token of a text."""
        found: np.ndarray[Any, Any] = self._run([ids], Pasts(self._graph.config))[0].numpy()
        return found

    def close(self) -> None:
        """Forget graph and pasts."""
        self._graph, self._batches = None, []

    def _run(self, ids: Rows, batch: Pasts) -> Tensor:
        output = _asked(self._graph, **batch.inputs(ids))
        batch.went_on(output.past_key_values, len(ids[0]))
        logits: Tensor = output.logits.float()
        return logits


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
    passes: Passes
    if beside.card.head == "seq2seq":
        assert beside.start is not None, folder
        passes = GraphAnswerPasses(graph, beside.start)
    else:
        together = joins(lambda num_rows: GraphPasses(graph, together=True))
        passes = GraphPasses(graph, together=together)
    return TurningSession(passes, beside, opening, context=context)
