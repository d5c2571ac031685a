"""Which span of a passage an encoder takes for the answer, over all windows of a long one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.engine.decoding import pad_id, padded
from lcc.engine.objectives import Batch, LogitsOf
from lcc.engine.scoring import context_length
from lcc.parts.passages import Window, windows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.parts.task import Row, Task

LONGEST = 384  # tokens of a window: attention costs their square
OUTSIDE = -1e4  # a logit of what can be no answer

Best = tuple[float, int, int]  # score, and the answer's characters


def extract_logits(model: Any) -> LogitsOf:
    """Logits (2 B, T): where each row's answer begins, then where each ends."""

    def logits(batch: Batch) -> Tensor:
        output = model(**batch.inputs)
        both = torch.cat([output.start_logits, output.end_logits])  # (2 B, T)
        absent = batch.inputs["attention_mask"].repeat(2, 1) == 0
        return both.masked_fill(absent, OUTSIDE)

    return logits


def extracted(
    module: Any, tokenizer: PreTrainedTokenizerBase, task: Task, rows: Sequence[Row], *,
    batch_size: int, advance: Callable[[float], None],
) -> list[str]:  # fmt: skip
    """The likeliest span of each row's passage, at most `decode.max_new_tokens` tokens long."""
    module.eval()
    room = min(LONGEST, context_length(module))
    pieces = [(i, window) for i, row in enumerate(rows)
              for window in windows(task, row, tokenizer, room)]  # fmt: skip
    pieces.sort(key=lambda piece: -len(piece[1].ids))
    best: dict[int, Best] = {}
    for start in range(0, len(pieces), batch_size):
        chosen = pieces[start : start + batch_size]
        found = _spans(module, [window for _, window in chosen], pad_id(tokenizer),
                       task.decode.max_new_tokens)  # fmt: skip
        for (i, _), one in zip(chosen, found, strict=True):
            best[i] = max(best.get(i, one), one, key=lambda span: span[0])
        advance(len(chosen) * len(rows) / len(pieces))
    texts = [str(row.get(task.passage, "")) for row in rows]
    return [text[best[i][1] : best[i][2]].strip() for i, text in enumerate(texts)]


def _spans(module: Any, batch: Sequence[Window], pad: int, most: int) -> list[Best]:
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


def _best(starts: Tensor, ends: Tensor, window: Window, most: int) -> Best:
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
