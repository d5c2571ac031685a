"""ONNX Runtime and OpenVINO as an inference session over an exported graph."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lcc.core.errors import DataError, GateError
from lcc.core.lazy import torch, transformers
from lcc.core.signals import kept_signal_stack
from lcc.inference.engine import ExportedRunner, ExportedSession, joins
from lcc.inference.session import Ability, AnswerStep, Opening, Request, Session
from lcc.inference.sidecar import Sidecar, read_sidecar

if TYPE_CHECKING:
    from lcc.core.types import Array

# Where an exported graph lies in an export's folder, whose code reads it, and its empty past.

GRAPH_FOLDER = "graph"  # of its own, as transformers calls its report as we call ours
WHOLE, ENCODER, DECODER = "model", "encoder", "decoder"  # its parts: one, or two


def exporters() -> Any:
    """`transformers.exporters`, imported when asked for: it takes a second."""
    return importlib.import_module("transformers.exporters")


def empty_past(config: Any) -> Any:
    """The keys and values that an answer begins with: of the decoder's own layers, no token."""
    past = transformers.DynamicCache(config=config.get_text_config(decoder=True))
    if config.is_encoder_decoder:
        heads = getattr(config, "decoder_attention_heads", None) or config.num_heads
        width = getattr(config, "d_kv", None) or config.d_model // heads
    else:
        heads, width = config.num_key_value_heads, getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
    for layer in range(len(past.layers)):
        nothing = torch.zeros(1, heads, 0, width)
        past.update(nothing, nothing.clone(), layer)
    return past


# An encoder–decoder's two graphs: a text is read once, its answer goes on from its own past.


@dataclass
class _GraphRow:
    encoded: Tensor  # (1, num_tokens, hidden_size)
    past: Any


class GraphSeq2SeqRunner:
    """See `inference.engine.ExportedRunner`; rows share nothing, so that they come and go."""

    joins = True

    def __init__(self, graph: Any, start: int) -> None:
        self._encoder, self._decoder = graph.runners[ENCODER], graph.runners[DECODER]
        self._config, self._start, self._rows = graph.config, start, list[_GraphRow]()

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool]) -> list[Tensor | int]:
        """One prompt after the other."""
        begun = [self._begun(prompt) for prompt in prompts]
        self._rows += begun
        return [self._next(row, self._start) for row in begun]

    def advance(self, tokens: Sequence[int], plain: Sequence[bool]) -> list[Tensor | int]:
        """One token of every row."""
        both = zip(self._rows, tokens, strict=True)
        return [self._next(row, token) for row, token in both]

    def remove(self, row: int) -> None:
        """Drop the past keys and values of a row."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def read(self, ids: Sequence[int]) -> Array:
        """Logits (1, vocabulary) of what an answer begins with."""
        logits: Array = self._next(self._begun(ids), self._start)[None].numpy()
        return logits

    def close(self) -> None:
        """Release graphs, keys and values."""
        self._encoder = self._decoder = None
        self._rows = []

    def _begun(self, prompt: Sequence[int]) -> _GraphRow:
        ids = torch.tensor([list(prompt)])
        output = self._encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        return _GraphRow(output.last_hidden_state, empty_past(self._config))

    def _next(self, row: _GraphRow, token: int) -> Tensor:
        mask = torch.ones(row.encoded.shape[:2], dtype=torch.long)
        output = self._decoder(
            decoder_input_ids=torch.tensor([[token]]),
            attention_mask=mask,
            encoder_hidden_states=row.encoded,
            past_key_values=row.past,
        )
        row.past = output.past_key_values
        logits: Tensor = output.logits[0, -1].float()
        return logits


# The pasts of answers in the making, as one batch that an exported graph goes on from.


class PastKeyValues:
    """Keys and values (rows, heads, columns, head size) of rows that end at the same column.

    Columns before a row's first are zeros that its mask hides, as in left-padded texts; `lengths`
    are the tokens of each row.
    """

    def __init__(self, config: Any) -> None:
        self.cache, self.lengths = empty_past(config), [0]

    def inputs(self, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Inputs of the graph for as many more tokens of every row."""
        num_new = len(ids[0])
        lengths = torch.tensor(self.lengths)[:, None]
        columns = torch.arange(max(self.lengths) + num_new - 1, -1, -1)
        return {
            "input_ids": torch.tensor([list(row) for row in ids]),
            "position_ids": lengths + torch.arange(num_new),
            "attention_mask": (columns < lengths + num_new).long(),
            "past_key_values": self.cache,
        }

    def went_on(self, cache: Any, num_new: int) -> None:
        """The graph has read them, and `cache` is the past with them."""
        self.cache = cache
        self.lengths = [length + num_new for length in self.lengths]

    def join(self, other: PastKeyValues) -> None:
        """Take another's rows in, after these."""
        self.lengths = self.lengths + other.lengths
        width = max(self.lengths)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_widened(layer.keys, width) for layer in (mine, theirs)])
            mine.values = torch.cat([_widened(layer.values, width) for layer in (mine, theirs)])

    def remove(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        kept = list(range(len(self.lengths)))
        kept[row] = kept[-1]
        kept.pop()
        self.lengths = [self.lengths[i] for i in kept]
        width = max(self.lengths, default=0)
        for layer in self.cache.layers:
            first = layer.keys.shape[2] - width
            layer.keys, layer.values = (t[kept, :, first:] for t in (layer.keys, layer.values))


def _widened(kept: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(kept, (0, 0, width - kept.shape[2], 0))


Rows = Sequence[Sequence[int]]


class GraphRunner:
    """See `inference.engine.ExportedRunner`; rows go on together where the graph hides what pads them."""

    joins = True

    def __init__(self, graph: Any, *, together: bool) -> None:
        self._graph, self._together = graph, together
        self._batches = list[PastKeyValues]()  # one of all rows, or one of each row

    def take(self, prompts: Rows, plain: Sequence[bool] = ()) -> list[Tensor | int]:
        """One prompt after the other, each on an empty past."""
        logits = list[Tensor | int]()
        for prompt in prompts:
            begun = PastKeyValues(self._graph.config)
            logits.append(self._run([prompt], begun)[0, -1])
            if self._together and self._batches:
                self._batches[0].join(begun)
            else:
                self._batches.append(begun)
        return logits

    def advance(self, tokens: Sequence[int], plain: Sequence[bool] = ()) -> list[Tensor | int]:
        """One token of every row."""
        logits, left = list[Tensor | int](), [[token] for token in tokens]
        for batch in self._batches:
            mine, left = left[: len(batch.lengths)], left[len(batch.lengths) :]
            logits += self._run(mine, batch)[:, -1]
        return logits

    def remove(self, row: int) -> None:
        """Drop the past keys and values of a row."""
        if self._together:
            self._batches[0].remove(row)
            self._batches = [batch for batch in self._batches if batch.lengths]
        else:
            self._batches[row] = self._batches[-1]
            self._batches.pop()

    def read(self, ids: Sequence[int]) -> Array:
        """Logits of every token of a text."""
        logits: Array = self._run([ids], PastKeyValues(self._graph.config))[0].numpy()
        return logits

    def close(self) -> None:
        """Release graph, keys and values."""
        self._graph, self._batches = None, []

    def _run(self, ids: Rows, batch: PastKeyValues) -> Tensor:
        output = _run_graph(self._graph, **batch.inputs(ids))
        batch.went_on(output.past_key_values, len(ids[0]))
        logits: Tensor = output.logits.float()
        return logits


class GraphReader:
    """A classifier, masked model or encoder; see `inference.session.Session`."""

    free_slots = 0

    def __init__(self, graph: Any, beside: Sidecar, opening: Opening) -> None:
        self.card, self.tokenizer, self._graph = beside.card, beside.tokenizer, graph
        self.context = min(beside.context, opening.context or beside.context)
        abilities: dict[str, frozenset[Ability]] = {
            "classify": frozenset({"classify", "logits"}),
            "embed": frozenset({"embed"}),
        }
        self.abilities = abilities.get(self.card.head, frozenset({"logits"}))

    def start(self, request: Request) -> int:
        """Refused: it writes no answers."""
        raise DataError(f"model {self.card.name!r} ({self.card.head}) writes no answers.")

    def step(self) -> list[AnswerStep]:
        """Nothing was admitted."""
        return []

    def drop(self, handle: int) -> None:
        """Nothing was admitted."""

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row (num_labels,), of a masked model (num_tokens, vocabulary)."""
        if self.card.head == "embed":
            raise DataError(f"model {self.card.name!r} (embed) has no logits; ask for vectors.")
        return [self._output(row).logits[0].float().numpy() for row in rows]

    def embed(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row the mean of its last hidden states."""
        if self.card.head != "embed":
            raise DataError("this graph ends in its head; export the encoder for vectors.")
        return [self._output(row).last_hidden_state[0].float().mean(0).numpy() for row in rows]

    def close(self) -> None:
        """Release the graph."""
        self._graph = None

    def _output(self, row: Sequence[int]) -> Any:
        ids = torch.tensor([list(row)])
        return _run_graph(self._graph, input_ids=ids, attention_mask=torch.ones_like(ids))


def _run_graph(graph: Any, **inputs: Any) -> Any:
    """Its output for those of the inputs that it was traced with."""
    runner = graph.runners[WHOLE]
    traced = {name: value for name, value in inputs.items() if name in runner.metadata.kwargs}
    return runner(**traced)


def open_graph(folder: Path, opening: Opening, **options: Any) -> Session:
    """The session of `folder/graph`; `options` go to the engine's runner.

    Raises GateError where the engine refuses the files.
    """
    beside = read_sidecar(folder)
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
    runner: ExportedRunner
    if beside.card.head == "seq2seq":
        assert beside.start is not None, folder
        runner = GraphSeq2SeqRunner(graph, beside.start)
    else:
        together = joins(lambda num_rows: GraphRunner(graph, together=True))
        runner = GraphRunner(graph, together=together)
    return ExportedSession(runner, beside, opening, context=context)
