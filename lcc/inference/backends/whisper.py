"""Whisper inference: models that hear sounds and write what was spoken, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lcc.core.lazy import torch, transformers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lcc.core.types import Array


@dataclass(frozen=True)
class Heard:
    """A transcript's new tokens without its end, and each step's scores (vocabulary,).

    A step that ended the transcript has scores too; tokens that may not be said are at -inf.
    """

    ids: list[int]
    scores: list[Array]


class Listener(Protocol):
    """A transcribing model in memory."""

    def states(self, features: Array) -> Array:
        """What its encoder makes of one sound (num_mels, frames): (frames / 2, hidden_size)."""
        ...

    def hear(self, features: Array, prompt: Sequence[int], new_tokens: int) -> Heard:
        """The likeliest transcript of one sound, by the settings that the model comes with."""
        ...

    def close(self) -> None:
        """Give memory back."""
        ...


class InProcessListener:
    """See `Listener`; transformers' own greedy search, without what Whisper's adds to it."""

    def __init__(self, module: Any) -> None:
        self._module = module.eval()

    def states(self, features: Array) -> Array:
        """One sound at a time."""
        with torch.inference_mode():
            output = self._module.get_encoder()(torch.from_numpy(features)[None])
        states: Array = output.last_hidden_state[0].float().numpy()
        return states

    def hear(self, features: Array, prompt: Sequence[int], new_tokens: int) -> Heard:
        """One sound at a time."""
        settings = self._settings(new_tokens)
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            # Whisper's own `generate` chooses language, task and prompt by rules of its own.
            output: Any = transformers.GenerationMixin.generate(
                self._module,
                input_features=torch.from_numpy(features)[None],
                decoder_input_ids=ids,
                generation_config=settings,
            )
        said = [int(i) for i in output.sequences[0, len(prompt) :]]
        ended = bool(said) and said[-1] == settings.eos_token_id
        scores = [step[0].float().numpy() for step in output.scores]
        return Heard(said[:-1] if ended else said, scores)

    def close(self) -> None:
        """Release the module."""
        self._module = None

    def _settings(self, new_tokens: int) -> Any:
        own, config = self._module.generation_config, self._module.config
        kept = {name: getattr(own, name, None) for name in ("suppress_tokens", "begin_suppress_tokens")}
        fresh: Any = transformers.GenerationConfig
        return fresh(
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            output_scores=True,
            return_dict_in_generate=True,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
            **kept,
        )
