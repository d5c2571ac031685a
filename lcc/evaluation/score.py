"""Log-likelihood scores of given text (nats), and choices of a class by them."""

from __future__ import annotations

import bisect
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core import signals
from lcc.core.lazy import torch
from lcc.evaluation.generate import ends_batch
from lcc.models.adapters import is_prompt, num_virtual
from lcc.tasks.encode import IGNORED, pad_id, padded
from lcc.tasks.extractive_qa import PassageWindow, passage_windows
from lcc.training.loss import PairBatch, masked_logits, pair_logits
from lcc.training.pretraining import DrawnExamples

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.tasks.task import Task
    from lcc.tasks.template import Row

MAX_LOGITS = 1 << 27  # numbers held at once: 512 MB in float32
DEFAULT_CONTEXT = 512  # for relative positions, which have no longest text


@dataclass(frozen=True)
class Span:
    """Tokens of which those from `start` on are to be predicted from all before them.

    seq2seq: `prompt` goes to the encoder and `ids` are the decoder's targets, with `start` 0.
    """

    ids: list[int]
    start: int
    prompt: list[int] | None = None


def context_length(module: Any) -> int:
    """The longest text in tokens that the model's positions can hold."""
    config = module.config.get_text_config() if module.config.is_encoder_decoder is False else None
    config = config or module.config
    for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length - num_virtual(module)
    return DEFAULT_CONTEXT


def token_windows(ids: list[int], *, window: int, stride: int, bos: int | None) -> Iterator[Span]:
    """Overlapping windows in which every token after the first is predicted exactly once.

    All but the first window show `window - stride` tokens (less a BOS, which opens every window
    where `bos` is given) that are context only.
    """
    head = [] if bos is None else [bos]
    room = window - len(head)
    assert 0 < stride < window, (stride, window)
    done = 0
    while done < len(ids):
        num_new = room if done == 0 else stride
        end = min(done + num_new, len(ids))
        begin = max(0, end - room)
        start = len(head) + done - begin
        # Without BOS nothing stands before the first token, so it cannot be predicted.
        yield Span(head + ids[begin:end], max(start, 1))
        done = end


def nats(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    spans: Sequence[Span],
    *,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda n: None,
) -> list[float]:
    """Negative log-likelihood of each span's predicted tokens, summed, in order."""
    module.eval()
    order = sorted(range(len(spans)), key=lambda i: len(spans[i].ids), reverse=True)
    by_number: dict[int, float] = {}
    with torch.inference_mode():
        for chosen in _batches(module, spans, order, batch_size):
            signals.check("score")
            batch = [spans[i] for i in chosen]
            is_seq2seq = bool(module.config.is_encoder_decoder)
            run = _seq2seq_nats if is_seq2seq else _causal_nats
            by_number.update(zip(chosen, run(module, batch, pad_id(tokenizer)), strict=True))
            advance(len(chosen))
    return [by_number[i] for i in range(len(spans))]


def choices(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n: None,
) -> list[int]:
    """The class number that a classifier gives each row of tokens, in order."""
    return likeliest(
        module, tokenizer, rows, lambda logits, batch: logits, batch_size=batch_size, advance=advance
    )


def likeliest(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    pick: Callable[[Tensor, list[list[int]]], Tensor],
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[int]:
    """The best of each row's choices, in order; `pick` takes (rows, choices) from the logits."""
    module.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    by_number: dict[int, int] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [rows[i] for i in chosen]
            ids, mask = padded(batch, pad_id(tokenizer), left=False, device=module.device)
            each = pick(module(input_ids=ids, attention_mask=mask).logits, batch)
            by_number.update(zip(chosen, each.argmax(-1).tolist(), strict=True))
            advance(len(chosen))
    return [by_number[i] for i in range(len(rows))]


def _batches(module: Any, spans: Sequence[Span], order: list[int], batch_size: int) -> Iterator[list[int]]:
    """Runs of `order` whose logits fit into memory; the first of a run is its longest."""
    vocabulary = int(module.get_output_embeddings().weight.shape[0])
    lengths = [len(span.ids) for span in spans]
    batch: list[int] = []
    kept = 0
    for i in order:
        kept = max(kept, len(spans[i].ids) - spans[i].start + 1)
        if batch and (
            len(batch) == batch_size
            or (len(batch) + 1) * kept * vocabulary > MAX_LOGITS
            or ends_batch(module, lengths, batch[-1], i)
        ):
            yield batch
            batch, kept = [], len(spans[i].ids) - spans[i].start + 1
        batch.append(i)
    if batch:
        yield batch


def _causal_nats(module: Any, batch: list[Span], pad: int) -> list[float]:
    """Left-padded, so that what is predicted ends every row and only its logits are made."""
    ids, mask = padded([span.ids for span in batch], pad, left=True, device=module.device)
    kept = max(len(span.ids) - span.start for span in batch) + 1
    options: dict[str, Any] = {}
    plain = module.get_base_model() if is_prompt(module) else module
    accepted = inspect.signature(plain.forward).parameters
    if "position_ids" in accepted and not is_prompt(module):  # it counts the virtual tokens itself
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = kept
    logits = module(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
    targets = ids[:, -kept:].clone()
    for row, span in zip(targets, batch, strict=True):
        row[: kept - (len(span.ids) - span.start)] = IGNORED
    return _summed(logits[:, -kept:-1], targets[:, 1:])


def _seq2seq_nats(module: Any, batch: list[Span], pad: int) -> list[float]:
    prompts = [span.prompt or [] for span in batch]
    ids, mask = padded(prompts, pad, left=False, device=module.device)
    targets, present = padded([span.ids for span in batch], pad, left=False, device=module.device)
    targets = targets.masked_fill(present == 0, IGNORED)
    # Shifted here: some models compute a loss beside, or warn, when they are given labels.
    shifted = module.prepare_decoder_input_ids_from_labels(labels=targets)
    logits = module(input_ids=ids, attention_mask=mask, decoder_input_ids=shifted).logits
    return _summed(logits, targets)


def _summed(logits: Tensor, targets: Tensor) -> list[float]:
    """(rows, tokens, vocabulary), (rows, tokens) → nats of each row."""
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return [float(value) for value in losses.view(targets.shape).double().sum(dim=1)]


# Which span of a passage an encoder takes for the answer, over all windows of a long one.

LONGEST = 384  # tokens of a window: attention costs their square

Best = tuple[float, int, int]  # score, and the answer's characters


def extracted(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Row],
    *,
    batch_size: int,
    advance: Callable[[float], None],
) -> list[str]:
    """The likeliest span of each row's passage, at most `decode.max_new_tokens` tokens long."""
    module.eval()
    room = min(LONGEST, context_length(module))
    pieces = [
        (i, window) for i, row in enumerate(rows) for window in passage_windows(task, row, tokenizer, room)
    ]
    pieces.sort(key=lambda piece: -len(piece[1].ids))
    best: dict[int, Best] = {}
    for start in range(0, len(pieces), batch_size):
        chosen = pieces[start : start + batch_size]
        spans = _spans(
            module, [window for _, window in chosen], pad_id(tokenizer), task.decode.max_new_tokens
        )
        for (i, _), one in zip(chosen, spans, strict=True):
            best[i] = max(best.get(i, one), one, key=lambda span: span[0])
        advance(len(chosen) * len(rows) / len(pieces))
    texts = [str(row.get(task.passage, "")) for row in rows]
    return [text[best[i][1] : best[i][2]].strip() for i, text in enumerate(texts)]


def _spans(module: Any, batch: Sequence[PassageWindow], pad: int, most: int) -> list[Best]:
    ids, mask = padded([window.ids for window in batch], pad, left=False, device=module.device)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if any(any(window.kinds) for window in batch):
        inputs["token_type_ids"] = padded(
            [window.kinds for window in batch], 0, left=False, device=module.device
        )[0]
    with torch.inference_mode():
        output = module(**inputs)
    return [
        _best(output.start_logits[i].float(), output.end_logits[i].float(), window, most)
        for i, window in enumerate(batch)
    ]


def _best(starts: Tensor, ends: Tensor, window: PassageWindow, most: int) -> Best:
    """The span within the passage with the largest sum of both logits."""
    inside = slice(window.first, window.end)
    num = window.end - window.first
    if num == 0:
        return (float("-inf"), 0, 0)
    sums = starts[inside, None] + ends[None, inside]  # (N, N)
    allowed = torch.ones(num, num, dtype=torch.bool, device=sums.device).triu().tril(most - 1)
    place = int(sums.masked_fill(~allowed, float("-inf")).argmax())
    first, last = divmod(place, num)
    return (float(sums[first, last]), window.places[first][0], window.places[last][1])


# How often a masked language model guesses right, beside guessing the most frequent token.

COUNTS = ("masked", "hits", "unigram_hits", "pairs", "pair_hits")


def guesses(
    module: Any,
    drawing: DrawnExamples,
    *,
    pad: int,
    frequent: int,
    batch_size: int,
    advance: Callable[[float], None],
) -> list[dict[str, float]]:
    """COUNTS of each document of the drawing's corpus; `frequent` is the token that a guess
    without any context names.
    """
    module.eval()
    ends = drawing.material.corpus.ends
    counts = [dict.fromkeys(COUNTS, 0.0) for _ in ends]
    order = sorted(range(len(drawing)), key=lambda i: -drawing.lengths[i])
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            owners = [bisect.bisect_right(ends, drawing.pieces[i][0]) for i in chosen]
            for owner, new in zip(owners, _counted(module, drawing, chosen, pad, frequent), strict=True):
                for name, value in new.items():
                    counts[owner][name] += value
            asked = len(set(ends.tolist())) or 1  # documents that have text
            advance(len(chosen) * asked / len(order))
    return counts


def _counted(
    module: Any, drawing: DrawnExamples, chosen: list[int], pad: int, frequent: int
) -> list[dict[str, float]]:
    batch = drawing.collate(chosen, pad=pad, device=str(module.device))
    assert batch.positions is not None
    hits = masked_logits(module)(batch).argmax(-1) == batch.targets
    rows = torch.nonzero(batch.positions)[:, 0]  # of each target
    per_row = {"masked": torch.ones_like(hits), "hits": hits, "unigram_hits": batch.targets == frequent}
    sums = {
        name: torch.bincount(rows, weights=value.double(), minlength=len(chosen)).tolist()
        for name, value in per_row.items()
    }
    if isinstance(batch, PairBatch):
        assert batch.relations is not None
        right = pair_logits(module)(batch).argmax(-1).eq(batch.relations)
        sums |= {"pairs": [1.0] * len(chosen), "pair_hits": right.double().tolist()}
    return [{name: values[i] for name, values in sums.items()} for i in range(len(chosen))]


def most_frequent(documents: Iterable[list[int]]) -> int:
    """The commonest token; of several the one with the smallest id."""
    counts = Counter(token for ids in documents for token in ids)
    return min(counts, key=lambda token: (-counts[token], token))


# A gap in a text, and which word a masked language model puts there (Schick and Schütze, 2021).


def fills(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    words: Sequence[int],
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n: None,
) -> list[int]:
    """Which of the tokens `words` is likeliest in each row's gap, by its number, in order."""

    def in_gaps(logits: Tensor, batch: list[list[int]]) -> Tensor:
        own = logits[:, -max(map(len, batch)) :]  # what stands before the text has logits too
        gaps = [row.index(tokenizer.mask_token_id) for row in batch]
        return own[torch.arange(len(batch)), gaps][:, list(words)]  # (rows, words)

    return likeliest(module, tokenizer, rows, in_gaps, batch_size=batch_size, advance=advance)
