"""CTranslate2's Whisper writes what transformers' writes when both hear the same sounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import compressing as tiny
import numpy as np
import pytest
import torch
import transformers
from exports import exported, told

from lcc.config.cards import find_card
from lcc.core.errors import DataError, GateError, RecipeError
from lcc.export.audio_parity import features, sound
from lcc.export.publish import ParityTrial, publish
from lcc.inference.session import Opening
from lcc.methods.exporters.ctranslate2 import Ctranslate2
from lcc.models.bundle import Bundle
from lcc.models.card import Card, read_card
from lcc.models.checkpoint import save

pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: lcc[ctranslate2]")

MARKS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|transcribe|>",
         "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip
NUM_TIMES = 6  # tokens of times, which Whisper's tokenizers need not know


def whisper(folder: Path, *, marks: list[str] = MARKS) -> Path:
    """A random Whisper with marks of its own, which never says two of its tokens."""
    tokenizer = tiny.byte_level_tokenizer(400)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.pad_token = "<|endoftext|>"
    ids = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 8}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.2}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer) + NUM_TIMES,
        max_source_positions=48,
        max_target_positions=32,
        decoder_start_token_id=end + 1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **sizes,
        **ids,
    )
    module = tiny._seeded(transformers.WhisperForConditionalGeneration, config)
    module.generation_config.suppress_tokens = [5, 6]
    module.generation_config.begin_suppress_tokens = [7, end]
    made = Card(name="tiny", head="transcribe", auto_class="AutoModelForSpeechSeq2Seq", dtype="float32")
    bundle = Bundle(card=made, module=module)
    bundle.tokenizer = tokenizer
    save(bundle, folder)
    return folder


@pytest.mark.parametrize("quantization, most", [("float32", 1e-4), ("int8", 0.06)])
def test_transcripts_scores_and_what_is_heard_are_the_same(
    quantization: str, most: float, tmp_path: Path
) -> None:
    source = whisper(tmp_path / "model")
    made = exported(source, tmp_path / "out", "ctranslate2", quantization=quantization)
    parity = made.parity
    assert parity.num_prompts == 24 and parity.num_tokens >= 48
    assert parity.logit_error < most and parity.unexplained_share == 0, told(parity)
    assert parity.encoder_error is not None and parity.encoder_error < most
    assert quantization == "int8" or parity.agreement == 1.0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["suppress_ids"] == [5, 6] and len(written["lang_ids"]) == 2
    header = (tmp_path / "out" / "README.md").read_text()
    assert 'pipeline_tag: "automatic-speech-recognition"' in header


class Damaging(Ctranslate2):
    """The real exporter; the weights of a layer then stand in reverse, all but the first."""

    layer: str = "encoder"

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        facts, file = super().write(source, target), target / "model.bin"
        whole = file.read_bytes()
        first = whole.index(f"{self.layer}/layer_1/ffn/linear_0/weight".encode()) + 100
        last = first + 1500  # of 2048
        file.write_bytes(whole[:first] + whole[first:last][::-1] + whole[last:])
        return facts


@pytest.mark.parametrize(
    "layer, said", [("encoder", "what its encoder hears is off by"), ("decoder", "its logits are off by")]
)
def test_a_damaged_export_closes_the_gate_and_is_not_run(layer: str, said: str, tmp_path: Path) -> None:
    source, out = whisper(tmp_path / "model"), tmp_path / "out"
    exporter = Damaging(quantization="int8")
    object.__setattr__(exporter, "layer", layer)
    with pytest.raises(GateError, match=said) as closed:
        publish(source, out, exporter, trial=ParityTrial(new_tokens=4))
    assert closed.value.exit_code == 9 and "  source: " in str(closed.value)
    with pytest.raises(GateError, match="failed its parity gate"):
        find_card("engines", "ctranslate2")().listen(tmp_path / "out.failed", Opening(threads=1))


def test_other_formats_and_engines_say_that_they_do_not_hear(tmp_path: Path) -> None:
    source = whisper(tmp_path / "model")
    for format in ("gguf", "onnx", "openvino"):
        with pytest.raises(RecipeError, match=f"format {format}: .*transcribe|not installed"):
            exported(source, tmp_path / format, format)
    assert "transcribes sounds; export it" in str(find_card("engines", "ctranslate2")().refusal(source))
    session = find_card("engines", "transformers")().open(source, Opening(threads=1))
    from lcc.inference.session import Request

    with pytest.raises(DataError, match=r"\(transcribe\) writes no answers"):
        session.start(Request((5, 6), 2))


def test_a_tokenizer_without_whispers_marks_is_refused(tmp_path: Path) -> None:
    source = whisper(tmp_path / "model", marks=MARKS[:-1])
    with pytest.raises(RecipeError, match=r"the tokenizer has no <\|notimestamps\|>"):
        exported(source, tmp_path / "out", "ctranslate2")


def test_a_card_is_inferred_and_an_extractor_of_its_own_is_taken(tmp_path: Path) -> None:
    source = whisper(tmp_path / "model")
    (source / "lcc_card.json").unlink()
    found = read_card(source)
    assert (found.head, found.auto_class) == ("transcribe", "AutoModelForSpeechSeq2Seq")
    before = next(features(source))
    assert before.shape == (8, 96) and np.isfinite(before).all()
    transformers.WhisperFeatureExtractor(feature_size=8, hop_length=80).save_pretrained(source)
    assert not np.array_equal(before, next(features(source)))
    exported(source, tmp_path / "out", "ctranslate2")
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_sounds_are_fixed_and_different() -> None:
    first = sound(0, 1600, 16000)
    assert np.array_equal(first, sound(0, 1600, 16000)) and len(first) == 1600
    assert not np.allclose(first, sound(1, 1600, 16000))
    assert torch.from_numpy(first).abs().max() < 5
