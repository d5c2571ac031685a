"""The fixed sounds that a hearing export is compared on, and what stands before a transcript."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcc.core.errors import RecipeError
from lcc.core.lazy import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Matrix = np.ndarray[Any, Any]

NUM_SOUNDS = 24
EXTRACTOR_FILE = "preprocessor_config.json"
START, SPOKEN, TRANSCRIBE, UNTIMED = (
    "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>",
)  # fmt: skip
NEEDED = (START, UNTIMED, "<|endoftext|>")
FEWEST_MULTILINGUAL = 51865  # rows of the vocabulary, by which every Whisper tells its kind


def features(folder: Path, *, num: int = NUM_SOUNDS) -> Iterator[Matrix]:
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
        found = extractor(heard, sampling_rate=extractor.sampling_rate, max_length=longest,
                          padding="max_length", truncation=True, return_tensors="np")  # fmt: skip
        row: Matrix = found["input_features"][0].astype(np.float32)
        yield row


def sound(seed: int, num_samples: int, rate: int) -> Matrix:
    """A voiced chirp with overtones, cut into syllables, in more or less noise."""
    draw = np.random.default_rng(seed)
    time = np.arange(num_samples) / rate
    pitch = draw.uniform(90, 300) * (1 + draw.uniform(-0.5, 0.5) * time / max(time[-1], 1e-3))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    strengths = draw.uniform(0, 1, 12) / np.arange(1, 13)
    voice = sum(s * np.sin(n * phase) for n, s in enumerate(strengths, 1))
    syllables = np.sin(2 * np.pi * draw.uniform(2, 6) * time + draw.uniform(0, 6)) > -0.3
    noise = draw.normal(size=num_samples) * draw.choice([0.003, 0.05, 0.3])
    found: Matrix = (0.2 * voice * syllables + noise).astype(np.float32)
    return found


def transcript_prompt(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """What stands before an English transcript without times.

    Raises RecipeError for a tokenizer without Whisper's marks.
    """
    known = tokenizer.get_vocab()
    missing = [mark for mark in NEEDED if mark not in known]
    if missing:
        raise RecipeError(f"the tokenizer has no {missing[0]}, as every Whisper's has; fetch the "
                          "model again.")  # fmt: skip
    marks = [START, UNTIMED]
    if vocab_size >= FEWEST_MULTILINGUAL:
        marks = [START, SPOKEN, TRANSCRIBE, UNTIMED]
    return [known[mark] for mark in marks if mark in known]
