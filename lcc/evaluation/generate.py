"""Greedy batch generation with a padded KV cache: the same words as one by one, sorted by length.

The checkpoint's own generation settings (sampling, penalties, lengths) are put aside while we
decode; only what belongs to its architecture stays: end, start, forced and forbidden tokens. What
was decided is in the task's `decode` and nowhere else.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core import signals
from lcc.core.lazy import torch, transformers
from lcc.models.adapters import is_prompt
from lcc.tasks.encode import pad_id, padded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.tasks.task import Decode

NUM_TAIL = 16  # tokens decoded at each step to look for a stop string
ARCHITECTURAL = ("eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
                 "forced_eos_token_id", "bad_words_ids", "suppress_tokens",
                 "begin_suppress_tokens")  # fmt: skip


@dataclass(frozen=True)
class Generated:
    """An answer; `finished` says that it ended by itself and was not cut at its limit.

    `ids` are its tokens without the end token; the text of a stop string is among them.
    """

    text: str
    num_tokens: int
    finished: bool
    ids: tuple[int, ...] = ()


def answer(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    decode: Decode,
    limits: Sequence[int] | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Generated]:
    """One answer per prompt, in order; `limits` are the most new tokens of each."""
    module.eval()
    limits = [decode.max_new_tokens] * len(prompts) if limits is None else limits
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), limits[i]), reverse=True)
    answers: dict[int, Generated] = {}
    with torch.inference_mode(), _own_settings(module):
        for chosen in _batches(module, [len(prompt) for prompt in prompts], order, batch_size):
            batch = _PromptBatch(module, tokenizer, decode, [limits[i] for i in chosen])
            generated = batch.generate([prompts[i] for i in chosen])
            answers.update(zip(chosen, generated, strict=True))
            advance(len(chosen))
    return [answers[i] for i in range(len(prompts))]


def ends_batch(module: Any, lengths: Sequence[int], last: int, following: int) -> bool:
    """Whether row `following` must not be padded to the length of row `last`, the one before it.

    Padding of the left stands between a text and the virtual tokens of prompt or prefix tuning,
    where none was in training.
    """
    if module.config.is_encoder_decoder or not is_prompt(module):
        return False
    return lengths[last] != lengths[following]


def _batches(
    module: Any, lengths: Sequence[int], order: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or ends_batch(module, lengths, batch[-1], i)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def token_times(module: Any, ids: Tensor, mask: Tensor, *, num_new: int) -> list[float]:
    """Seconds from the start until each of `num_new` tokens of every row; for measuring speed."""
    times: list[float] = []

    def clock(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        wait(module.device.type)
        times.append(time.perf_counter() - started)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    with torch.inference_mode(), _own_settings(module):
        settings = copy.deepcopy(module.generation_config)
        # None would be filled in from the model's own settings, and a model that ends its answers
        # early would then be counted as several times faster: -1 is no token's id.
        settings.update(do_sample=False, max_new_tokens=num_new, eos_token_id=-1, pad_token_id=0)
        wait(module.device.type)
        started = time.perf_counter()
        module.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
    assert len(times) == num_new, f"{len(times)} of {num_new} tokens were generated"
    return times


def wait(device: str) -> None:
    """Until the device has done what it was given; clocks need it, a CPU does not."""
    if device in ("cuda", "mps"):
        getattr(torch, device).synchronize()


def eos_ids(module: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a text: the tokenizer's, and those the checkpoint names."""
    named = [tokenizer.eos_token_id]
    for config in (getattr(module, "generation_config", None), module.config):
        value = getattr(config, "eos_token_id", None)
        named += value if isinstance(value, list | tuple) else [value]
    return sorted({int(i) for i in named if i is not None})


@dataclass(frozen=True)
class _PromptBatch:
    module: Any
    tokenizer: PreTrainedTokenizerBase
    decode: Decode
    limits: list[int]

    def generate(self, prompts: list[list[int]]) -> list[Generated]:
        module, is_seq2seq = self.module, bool(self.module.config.is_encoder_decoder)
        ids, mask = padded(prompts, pad_id(self.tokenizer), left=not is_seq2seq, device=module.device)
        num_before = 1 if is_seq2seq else ids.shape[1]
        sequences = module.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._settings(),
            stopping_criteria=transformers.StoppingCriteriaList([self._stopper(num_before)]),
        )
        new = sequences[:, num_before:].tolist()
        return [self._trimmed(row, limit) for row, limit in zip(new, self.limits, strict=True)]

    def _settings(self) -> Any:
        settings = copy.deepcopy(self.module.generation_config)
        settings.update(
            do_sample=False,
            num_beams=self.decode.num_beams,
            max_new_tokens=max(self.limits),
            eos_token_id=eos_ids(self.module, self.tokenizer) or None,
            pad_token_id=pad_id(self.tokenizer),
            bos_token_id=self.tokenizer.bos_token_id,
        )
        return settings

    def _stopper(self, num_before: int) -> Callable[..., Tensor]:
        """Ends each row at its own limit or stop string, so that a batch ends with its last."""
        stop, limits = self.decode.stop, torch.tensor(self.limits, device=self.module.device)

        def is_done(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            signals.check("answer")
            num_new = ids.shape[1] - num_before
            # Beam search asks about several candidates of each row at once.
            done = limits.repeat_interleave(len(ids) // len(limits)) <= num_new
            if stop:
                tails = self.tokenizer.batch_decode(ids[:, num_before:][:, -NUM_TAIL:])
                hits = [any(word in tail for word in stop) for tail in tails]
                done = done | torch.tensor(hits, device=done.device)
            return done

        return is_done

    def _trimmed(self, ids: list[int], limit: int) -> Generated:
        """Cut at the end token, at the row's limit and before the first stop string."""
        ends = eos_ids(self.module, self.tokenizer)
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        kept = ids[:limit] if end is None else ids[: min(end, limit)]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        cuts = [text.index(word) for word in self.decode.stop if word in text]
        finished = bool(cuts) or (end is not None and end <= limit)
        text = text[: min(cuts)] if cuts else text
        return Generated(text.strip(), len(kept), finished, tuple(kept))


@contextmanager
def _own_settings(module: Any) -> Iterator[None]:
    """Put the checkpoint's generation settings aside: generate() would mix them into ours."""
    before = module.generation_config
    module.generation_config = demanded_settings(module)
    try:
        yield
    finally:
        module.generation_config = before


def demanded_settings(module: Any) -> Any:
    """Generation settings with what the architecture demands, and nothing else."""
    fresh: Any = transformers.GenerationConfig
    kept = {name: getattr(module.generation_config, name, None) for name in ARCHITECTURAL}
    if kept["decoder_start_token_id"] is None:
        kept["decoder_start_token_id"] = getattr(module.config, "decoder_start_token_id", None)
    return fresh(**kept)
