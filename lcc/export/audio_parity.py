"""Parity of an audio export: the fixed sounds it is compared on, and the prompt before a transcript."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcc.core.errors import RecipeError
from lcc.core.lazy import transformers
from lcc.export.parity import NUM_SHOWN, Errors, Parity, count_differences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Array
    from lcc.inference.backends.whisper import Heard, Listener


NUM_SOUNDS = 24
EXTRACTOR_FILE = "preprocessor_config.json"
START, SPOKEN, TRANSCRIBE, UNTIMED = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
NEEDED = (START, UNTIMED, "<|endoftext|>")
FEWEST_MULTILINGUAL = 51865  # rows of the vocabulary, by which every Whisper tells its kind


def features(folder: Path, *, num: int = NUM_SOUNDS) -> Iterator[Array]:
    """Log-mel features (num_mels, frames) of `num` sounds, as the model's own extractor has them.

    Sounds fill the model's window or half of it.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    kind: Any = transformers.WhisperFeatureExtractor
    own = (folder / EXTRACTOR_FILE).is_file()
    extractor = kind.from_pretrained(folder) if own else kind(feature_size=config.num_mel_bins)
    longest = 2 * config.max_source_positions * extractor.hop_length
    for seed in range(num):
        heard = sound(seed, longest // (1 + seed % 2), extractor.sampling_rate)
        extracted = extractor(
            heard,
            sampling_rate=extractor.sampling_rate,
            max_length=longest,
            padding="max_length",
            truncation=True,
            return_tensors="np",
        )
        row: Array = extracted["input_features"][0].astype(np.float32)
        yield row


def sound(seed: int, num_samples: int, rate: int) -> Array:
    """A voiced chirp with overtones, cut into syllables, in more or less noise."""
    draw = np.random.default_rng(seed)
    time = np.arange(num_samples) / rate
    pitch = draw.uniform(90, 300) * (1 + draw.uniform(-0.5, 0.5) * time / max(time[-1], 1e-3))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    strengths = draw.uniform(0, 1, 12) / np.arange(1, 13)
    voice = sum(s * np.sin(n * phase) for n, s in enumerate(strengths, 1))
    syllables = np.sin(2 * np.pi * draw.uniform(2, 6) * time + draw.uniform(0, 6)) > -0.3
    noise = draw.normal(size=num_samples) * draw.choice([0.003, 0.05, 0.3])
    samples: Array = (0.2 * voice * syllables + noise).astype(np.float32)
    return samples


def transcript_prompt(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """What stands before an English transcript without times.

    Raises RecipeError for a tokenizer without Whisper's marks.
    """
    known = tokenizer.get_vocab()
    missing = [mark for mark in NEEDED if mark not in known]
    if missing:
        raise RecipeError(
            f"the tokenizer has no {missing[0]}, as every Whisper's has; fetch the model again."
        )
    marks = [START, UNTIMED]
    if vocab_size >= FEWEST_MULTILINGUAL:
        marks = [START, SPOKEN, TRANSCRIBE, UNTIMED]
    return [known[mark] for mark in marks if mark in known]


# How far an export that hears is from its source: transcripts, their scores, and what is heard.


def compare_heard(
    source: Listener,
    export: Listener,
    sounds: Iterable[Array],
    prompt: Sequence[int],
    *,
    tolerance: float,
    new_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Parity:
    """Both transcribe the same sounds; compared up to the first token that differs."""
    parity, errors, states = Parity("tokens", tolerance), Errors(), Errors()
    margins, shown = list[float](), list[tuple[float, dict[str, Any]]]()
    for number, features in enumerate(sounds):
        states.add(source.states(features), export.states(features))
        mine, other = (each.hear(features, prompt, new_tokens) for each in (source, export))
        own = Errors()
        num, margin = _compared(mine, other, (errors, own))
        parity.num_prompts += 1
        parity.num_tokens += num
        margins += [] if margin is None else [margin]
        shown.append(
            (
                own.share,
                {
                    "prompt": f"sound {number}",
                    "source": tokenizer.decode(mine.ids),
                    "export": tokenizer.decode(other.ids),
                },
            )
        )
    parity.logit_error, parity.encoder_error = errors.share, states.share
    count_differences(parity, margins, errors.deviation)
    shown.sort(key=lambda item: -item[0])
    parity.shown = [facts for _, facts in shown[:NUM_SHOWN]]
    return parity


def _compared(mine: Heard, other: Heard, errors: Sequence[Errors]) -> tuple[int, float | None]:
    """Tokens compared, and by how much the source preferred its own where they part."""
    num = 0
    for expected, got in zip(mine.scores, other.scores, strict=False):
        num += 1
        width = min(len(expected), len(got))
        both = np.isfinite(expected[:width]) & np.isfinite(got[:width])
        for each in errors:
            each.add(expected[:width][both][None], got[:width][both][None])
        chosen, instead = int(expected.argmax()), int(got.argmax())
        if chosen != instead:
            return num, float(expected[chosen] - expected[instead])
    return num, None if len(mine.scores) == len(other.scores) else np.inf
