"""A coupled encoder–decoder begins with the encoder's weights, loads elsewhere and learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetune_cases as tuning
import pytest
import torch
import transformers

from lcc.config.cards import decode
from lcc.core.errors import RecipeError
from lcc.evaluation.predict import Predictor
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.checkpoint import save
from lcc.stages.couple import Couple
from lcc.stages.finetune import Finetune
from lcc.tokenization.prune_vocabulary import transferred

OPTIONS: dict[str, Any] = {"tokenizer": {"kind": "bpe", "vocab_size": 300}, "decoder_layers": 1}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tuning.write_data(folder)
    for head in ("causal", "classify"):
        tuning.write_model(folder / head, head)
    return folder


def coupled(world: Path, work: Path, **changes: Any) -> Bundle:
    stage = decode(Couple, {**OPTIONS, **changes})
    context = tuning.context(work, world, tuning.PAIRS)
    outcome = stage.run(tuning.bundle(world / "classify"), context)
    assert outcome.bundle is not None
    return outcome.bundle


def test_both_halves_begin_with_the_encoders_layers(world: Path, tmp_path: Path) -> None:
    encoder = tuning.bundle(world / "classify").load()
    module = coupled(world, tmp_path / "work").module
    first, second = encoder.encoder.layer[0], encoder.encoder.layer[1]
    for name, tensor in first.state_dict().items():
        assert torch.equal(module.encoder.encoder.layer[0].state_dict()[name], tensor), name
    inherited = module.decoder.bert.encoder.layer[0].state_dict()
    for name, tensor in second.state_dict().items():  # one layer is the last one
        assert torch.equal(inherited[name], tensor), name
    words = module.encoder.embeddings.word_embeddings.weight
    assert torch.equal(module.decoder.bert.embeddings.word_embeddings.weight, words)
    assert module.decoder.cls.predictions.decoder.weight.data_ptr() != words.data_ptr()


def test_new_rows_are_means_of_the_old_pieces(world: Path, tmp_path: Path) -> None:
    old = tuning.bundle(world / "classify")
    new = coupled(world, tmp_path / "work").tokenizer
    weight = old.load().embeddings.word_embeddings.weight.detach()
    rows, num_known = transferred(weight, old.tokenizer, new, seed=0)
    known = old.tokenizer.get_vocab()
    compared = 0
    for token in range(len(new)):
        text = new.decode([token])
        if text.strip() in tuning.WORDS:
            assert torch.equal(rows[token], weight[known[text.strip()]])
            compared += 1
    assert compared >= 5
    assert torch.equal(rows[new.pad_token_id], weight[known["<pad>"]])
    assert compared < num_known < len(new)
    assert rows.std() == pytest.approx(float(weight.std()), rel=0.2)


def test_it_loads_by_plain_auto_classes_and_says_the_same(world: Path, tmp_path: Path) -> None:
    bundle = coupled(world, tmp_path / "work")
    bundle.with_card(dtype="float32")
    save(bundle, tmp_path / "model")
    alone = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = tokenizer("one two three", return_tensors="pt")
    inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(alone(**inputs).logits, bundle.module(**inputs).logits)
    assert alone.config.decoder_start_token_id == tokenizer.cls_token_id
    assert open_bundle(tmp_path / "model").card.head == "seq2seq"
    answer = alone.generate(**tokenizer("one two", return_tensors="pt"), max_new_tokens=4)
    assert answer[0, 0] == tokenizer.cls_token_id


def test_it_learns_to_translate(world: Path, tmp_path: Path) -> None:
    bundle = coupled(world, tmp_path / "work", decoder_layers=None)
    bundle.with_card(dtype="float32")
    save(bundle, tmp_path / "coupled" / "model")
    context = tuning.context(tmp_path / "tune", world, tuning.PAIRS)
    stage = decode(
        Finetune, {"method": "full", "lr": 1e-2, "epochs": 8, "batch_tokens": 128, "max_length": 32}
    )
    outcome = stage.run(tuning.bundle(tmp_path / "coupled"), context)
    measures = outcome.measures
    assert measures["validation_loss_after"].value < 0.5 * measures["validation_loss_before"].value
    assert outcome.bundle is not None
    model = Predictor(outcome.bundle.module, outcome.bundle.tokenizer, tuning.PAIRS)
    rows = context.data.rows("test")[:3]
    told = model.answers(rows, {"answers", "likelihood"})
    assert all(one.output is not None and one.nats is not None for one in told)


def test_only_a_bert_can_be_coupled(world: Path, tmp_path: Path) -> None:
    context = tuning.context(tmp_path / "work", world, tuning.PAIRS)
    with pytest.raises(RecipeError, match="the family 'llama' cannot become a decoder"):
        decode(Couple, OPTIONS).run(tuning.bundle(world / "causal"), context)


def test_more_layers_than_there_are_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="decoder_layers: 9 asked, the encoder has 2"):
        coupled(world, tmp_path / "work", decoder_layers=9)
