"""Model runner: one forward of a generating model, which reads prompts or one token more of each row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from lcc.evaluation.score import MAX_LOGITS
from lcc.inference.kv_cache import CachedPrefix, KVCache, PrefixCache, common
from lcc.tasks.encode import pad_id, padded
from lcc.training.loss import token_logits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Array


class CausalRunner:
    """A decoder; `take` gives logits (rows, vocabulary) after each prompt.

    With `prefixes` a prompt that begins as a running or a kept text did goes on from its keys and
    values.
    """

    joins = True

    def __init__(self, module: Any, num_rows: int, prefixes: PrefixCache | None = None) -> None:
        self.module, self.prefixes = module, prefixes
        self.slots = KVCache(num_rows, _num_layers(module), crossed=False)
        self._read: list[list[int]] = []  # by row, what its columns hold
        accepted = inspect.signature(module.forward).parameters
        self._has_positions = "position_ids" in accepted
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def num_new(self, prompt: Sequence[int]) -> int:
        """How many of its tokens must be read."""
        return len(prompt) - self._known(prompt)[1]

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool] = ()) -> Tensor:
        """Give each prompt a row."""
        known, first_row = [self._known(prompt) for prompt in prompts], len(self._read)
        lengths = [len(prompt) for prompt in prompts]
        num_new = max(length - shared for length, (_, shared) in zip(lengths, known, strict=True))
        self.slots.add(lengths, num_new)
        for row, (length, (source, _)) in enumerate(zip(lengths, known, strict=True), first_row):
            # Rows are as many columns wide, so one that knows more reads some of it again.
            if length > num_new:
                layers = source.layers if isinstance(source, CachedPrefix) else self.slots.layers_of(source)
                self.slots.fill(row, layers, length - num_new)
        for source, _ in known:
            if self.prefixes is not None and isinstance(source, CachedPrefix):
                self.prefixes.used(source)
        self._read += [list(prompt) for prompt in prompts]
        rows = [list(prompt)[-num_new:] for prompt in prompts]
        ids, _ = padded(rows, 0, left=True, device=self.module.device)
        return self._logits(ids)

    def advance(self, tokens: Sequence[int], plain: Sequence[bool] = ()) -> Tensor:
        """One more token of every row."""
        self.slots.advance()
        for read, token in zip(self._read, tokens, strict=True):
            read.append(token)
        return self._logits(torch.tensor(tokens, device=self.module.device)[:, None])

    def remove(self, row: int) -> None:
        """Remove a row, whose text is kept; the last one takes its number."""
        if self.prefixes is not None and self.prefixes.budget:
            layers = [(k.clone(), v.clone()) for k, v in self.slots.layers_of(row)]
            self.prefixes.keep(self._read[row], layers)
        self._read[row] = self._read[-1]
        self._read.pop()
        self.slots.remove(row)

    def _known(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """Who begins as the prompt does, a kept text or a row, and for how many tokens."""
        if self.prefixes is None:
            return None, 0
        kept, shared = self.prefixes.longest(prompt)
        source: Any = kept
        for row, read in enumerate(self._read):
            num = common(read, prompt, self.prefixes.least)
            if num > shared:
                source, shared = row, num
        return source, shared

    def _logits(self, ids: Tensor) -> Tensor:
        """Of the newest rows, `ids` (rows, columns) being what they read now."""
        lengths = torch.tensor(self.slots.lengths)[:, None]
        places = torch.arange(self.slots.width) - self.slots.width + lengths
        mask, positions = (places >= 0).long(), places[:, -ids.shape[1] :].clamp(min=0)
        options: dict[str, Any] = dict(self._options)
        if self._has_positions:
            options["position_ids"] = positions.to(ids.device)
        output = self.module(
            input_ids=ids,
            attention_mask=mask.to(ids.device),
            use_cache=True,
            past_key_values=self.slots.cache,
            **options,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class Seq2SeqRunner:
    """An encoder–decoder; prompts go through the encoder, and answers begin with its start token.

    Where positions of the decoder's tokens are embedded, each row is given its own.
    """

    joins = True

    def __init__(self, module: Any, num_rows: int) -> None:
        self.module = module
        self.slots = KVCache(num_rows, _num_layers(module), crossed=True)
        self.start = int(module.generation_config.decoder_start_token_id)
        self._positions: Tensor | None = None
        embedding = getattr(module.get_decoder(), "embed_positions", None)
        if isinstance(embedding, torch.nn.Embedding):
            patched: Any = embedding
            patched.forward = MethodType(self._embedded(embedding), embedding)

    def num_new(self, prompt: Sequence[int]) -> int:
        """How many of its tokens must be read."""
        return len(prompt)

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool] = ()) -> Tensor:
        """Give each prompt a row; logits (rows, vocabulary) of the first token."""
        device, sources = self.module.device, [len(prompt) for prompt in prompts]
        ids, mask = padded([list(p) for p in prompts], 0, left=False, device=device)
        self.slots.add([1] * len(prompts), 1, sources)
        first = torch.full((len(prompts), 1), self.start, device=device)
        encoded = self.module.get_encoder()(input_ids=ids, attention_mask=mask)
        return self._logits(encoded.last_hidden_state, mask, first)

    def advance(self, tokens: Sequence[int], plain: Sequence[bool] = ()) -> Tensor:
        """One more token of every row."""
        self.slots.advance()
        device, sources = self.module.device, torch.tensor(self.slots.sources)[:, None]
        mask = (torch.arange(max(self.slots.sources))[None] < sources).long().to(device)
        # Only its shape is read: keys and values of the encoders' outputs are in the slots.
        hidden = torch.zeros(1, 1, 1, device=device).expand(*mask.shape, 1)
        return self._logits(hidden, mask, torch.tensor(tokens, device=device)[:, None])

    def remove(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        self.slots.remove(row)

    def _logits(self, encoded: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        lengths = torch.tensor(self.slots.lengths)[:, None]
        columns = torch.arange(self.slots.width - 1, -1, -1)[None]
        self._positions = (lengths - 1).to(ids.device)
        output = self.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=self.slots.cache,
            use_cache=True,
            decoder_attention_mask=(columns < lengths).long().to(ids.device),
        )
        self._positions = None
        logits: Tensor = output.logits[:, -1]
        return logits

    def _embedded(self, embedding: Any) -> Any:
        plain, offset = type(embedding).forward, int(getattr(embedding, "offset", 0))

        def forward(module: Any, *args: Any, **kwargs: Any) -> Tensor:
            if self._positions is None:
                whole: Tensor = plain(module, *args, **kwargs)
                return whole
            return torch.nn.functional.embedding(self._positions + offset, module.weight)

        return forward


def runner_for(
    module: Any, num_rows: int, prefixes: PrefixCache | None = None
) -> CausalRunner | Seq2SeqRunner:
    """The runner that fits the model's kind; an encoder–decoder's rows share nothing."""
    if module.config.is_encoder_decoder:
        return Seq2SeqRunner(module, num_rows)
    return CausalRunner(module, num_rows, prefixes)


def _num_layers(module: Any) -> int:
    config = module.config.get_text_config(decoder=True)
    layers = len(DynamicCache(config=config).layers)
    return layers or int(config.num_hidden_layers)


# What a model makes of texts that it only reads: logits, and one vector for each.

BATCH_TOKENS = 4096
ENOUGH = 512  # tokens that keep a CPU busy: a batch of so many takes no row that needs padding


def logits(
    module: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], head: str
) -> list[Array]:
    """Per row (num_tokens, vocabulary); (num_labels,) of a classifier.

    Of an encoder–decoder (1, vocabulary): what it would begin its answer with.
    """
    width = 1 if head == "classify" else int(module.config.get_text_config().vocab_size)

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        if head == "seq2seq":
            start = module.generation_config.decoder_start_token_id
            first = torch.full((len(ids), 1), int(start), device=ids.device)
            output = module(input_ids=ids, attention_mask=mask, decoder_input_ids=first)
        else:
            output = module(input_ids=ids, attention_mask=mask)
        return token_logits(output)

    trimmed = head not in ("classify", "seq2seq")
    budget = max(1, min(BATCH_TOKENS, MAX_LOGITS // width))
    return _each(module, tokenizer, rows, read, trimmed=trimmed, budget=budget)


def vectors(module: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[Array]:
    """Per row the mean of its last hidden states (of the encoder, where there is one)."""
    body = module.get_encoder() if module.config.is_encoder_decoder else module.base_model

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, H)
        weights = mask[..., None].to(hidden.dtype)
        means: Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return means

    return _each(module, tokenizer, rows, read, trimmed=False, budget=BATCH_TOKENS)


def _each(
    module: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    read: Callable[[Tensor, Tensor], Tensor],
    *,
    trimmed: bool,
    budget: int,
) -> list[Array]:
    """`read` of every row, in order, batched by length; `trimmed` of what stands for padding."""
    by_row: dict[int, Any] = {}
    lengths = [len(row) for row in rows]
    enough = ENOUGH if module.device.type == "cpu" else budget
    with torch.inference_mode():
        for chosen in by_length(lengths, budget, enough):
            batch = [list(rows[i]) for i in chosen]
            # Padded on the right: encoders number their positions themselves.
            ids, mask = padded(batch, pad_id(tokenizer), left=False, device=module.device)
            values = read(ids, mask).float().cpu().numpy()
            for i, value in zip(chosen, values, strict=True):
                by_row[i] = value[: lengths[i]] if trimmed else value
    return [by_row[i] for i in range(len(rows))]


def by_length(lengths: Sequence[int], budget: int, enough: int | None = None) -> Iterator[list[int]]:
    """Indices in batches of rows alike in length, each of at most `budget` tokens with padding.

    A batch that has `enough` tokens takes only rows as long as its longest.
    """
    enough = budget if enough is None else enough
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        longest = lengths[batch[0]] if batch else 0
        is_full = (len(batch) + 1) * longest > budget
        if batch and (is_full or (len(batch) * longest >= enough and lengths[i] < longest)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
