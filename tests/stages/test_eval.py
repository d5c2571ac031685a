"""One checkpoint judged for real: outputs kept, intervals, verdicts on equal samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from sacrebleu import corpus_bleu
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lcc.config.cards import decode
from lcc.core.errors import DataError
from lcc.core.progress import Progress
from lcc.data.dataset import PreparedData
from lcc.distributed.dist import SINGLE
from lcc.methods.trackers.none import NoneTracker
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save as save_bundle
from lcc.pipeline.stage import Context, Outcome
from lcc.stages.eval import Eval
from lcc.stages.quantize import Quantize
from lcc.tasks.task import Task

ROOT = Path(__file__).parents[2]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EVAL = {"samples": 12, "batch_size": 5, "bootstrap": 200, "max_new_tokens": 8}


def task(name: str, **changes: Any) -> Task:
    node = yaml.safe_load((ROOT / f"configs/task/{name}.yaml").read_text(encoding="utf-8"))
    return decode(Task, {**node, **changes})


def tokenizer() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(["English: open the file\nChinese: 打开文件"] * 2, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def save(module: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=256,
        **IDS,
    )
    return save(transformers.LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=3,
        initializer_range=0.4,
        pad_token_id=0,
        id2label={0: "good", 1: "bad", 2: "so"},
        label2id={"good": 0, "bad": 1, "so": 2},
    )
    return save(transformers.BertForSequenceClassification(config), tmp_path_factory.mktemp("bert"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    words = ["open", "the", "file", "and", "close", "this", "window", "now", "please", "again"]
    folder = tmp_path / "prepared" / "data"
    folder.mkdir(parents=True)
    for split, num in (("train", 10), ("validation", 3), ("test", 20)):
        rows = [
            {
                "id": f"{split}{i}",
                "doc": "d",
                "source": " ".join(words[: 1 + i % 9]),
                "target": "打开文件和窗口" * (1 + i % 2),
                "text": " ".join(words[i % 4 :]),
                "label": ("bad", "bad", "good", "so")[i % 4],
            }
            for i in range(num)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    counts = {"read": 33, "removed": {}, "left_out": {}, "rows": {}, "documents": {}}
    (folder / "counts.json").write_text(json.dumps(counts))
    return folder.parent


def run(model: Path, what: Task, folder: Path, inputs: dict[str, Path], **options: Any) -> Outcome:
    """Run the stage and leave its report as the runner does."""
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(
        folder=folder,
        seed=0,
        device="cpu",
        dtype="float32",
        dist=SINGLE,
        progress=Progress(quiet=True),
        tracker=NoneTracker(),
        task=what,
        inputs=inputs,
    )
    outcome = decode(Eval, {**EVAL, **options}).run(open_bundle(model), context)
    measures = {name: dataclasses.asdict(m) for name, m in outcome.measures.items()}
    (folder / "report.json").write_text(json.dumps({"measures": measures}))
    return outcome


def samples(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def value(outcome: Outcome, name: str) -> Any:
    return outcome.measures[name].value


def test_translations_are_kept_scored_and_compared(causal: Path, data: Path, tmp_path: Path) -> None:
    metrics = ["bleu", "chrf", "meteor", "bits_per_byte"]
    what = task("translation", decode={"max_new_tokens": 20}, metrics=metrics)
    first = run(causal, what, tmp_path / "a", {"data": data})
    kept = samples(tmp_path / "a")
    assert len({s["id"] for s in kept}) == 12
    assert all(s["source"].keys() == {"source"} and s["reference"] for s in kept)
    expected = corpus_bleu([s["output"] for s in kept], [[s["reference"] for s in kept]], tokenize="zh")
    assert value(first, "bleu") == pytest.approx(expected.score)
    assert value(first, "num_shots") == 2
    assert "tok:zh" in value(first, "bleu_signature")
    assert value(first, "bleu_low") <= value(first, "bleu") <= value(first, "bleu_high")
    assert value(first, "bits_per_byte") > 0
    assert value(first, "num_empty") == sum(not s["output"] for s in kept)
    assert "verdict" not in first.measures

    earlier = {"data": data, "base": tmp_path / "a", "reference": tmp_path / "a"}
    again = run(causal, what, tmp_path / "b", earlier)
    assert samples(tmp_path / "b") == kept
    assert value(again, "verdict") == value(again, "verdict_base") == "kept"
    assert value(again, "chrf_delta_reference") == 0.0
    assert any("gained: all of it above 0" in note for note in again.notes)


def test_a_batch_size_changes_no_answer(causal: Path, data: Path, tmp_path: Path) -> None:
    what = task("translation")
    run(causal, what, tmp_path / "a", {"data": data}, batch_size=1, shots=0)
    run(causal, what, tmp_path / "b", {"data": data}, batch_size=12, shots=0)
    outputs = [[s["output"] for s in samples(tmp_path / name)] for name in "ab"]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("shots", [0, 3])
def test_of_labels_a_language_model_chooses_the_likeliest(
    causal: Path, data: Path, tmp_path: Path, shots: int
) -> None:
    what = task("sentiment_words", verbalizer={"good": "fine", "bad": "poor"})
    outcome = run(causal, what, tmp_path / "a", {"data": data}, shots=shots)
    assert value(outcome, "decoding").startswith("the likeliest of the labels 'fine', 'poor', 'so'")
    assert value(outcome, "num_shots") == shots
    bundle, rows = open_bundle(causal), PreparedData.open(data / "data").rows("train")
    known = dataclasses.replace(what, labels=("fine", "poor", "so"))
    shown = "".join(f"{known.text(row)}\n\n" for row in known.draw(rows, 0, shots))
    assert shown.count("Sentiment: ") == shots
    for sample in samples(tmp_path / "a"):
        prompt = f"{shown}Review: {sample['source']['text']}\nSentiment:"
        found = {name: likelihood(bundle, prompt, f" {name}") for name in known.label_names}
        assert sample["output"] == max(found, key=found.__getitem__)
        assert sample["reference"] in known.label_names


def likelihood(bundle: Any, prompt: str, label: str) -> float:
    """Summed log-probability of the label's tokens after the prompt, one row alone."""
    before, after = (bundle.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, label))
    ids = torch.tensor([[1, *before, *after][-256:]])
    with torch.no_grad():
        logs = bundle.load()(input_ids=ids).logits[0, :-1].log_softmax(-1)
    steps = logs[-len(after) :].gather(1, ids[0, -len(after) :, None])
    return float(steps.sum())


def test_other_samples_are_not_compared(causal: Path, data: Path, tmp_path: Path) -> None:
    what = task("translation")
    run(causal, what, tmp_path / "a", {"data": data}, samples=11)
    with pytest.raises(DataError, match="evaluated on other samples"):
        run(causal, what, tmp_path / "b", {"data": data, "reference": tmp_path / "a"})


def test_better_answers_are_gained_and_worse_are_lost(causal: Path, data: Path, tmp_path: Path) -> None:
    what = task("translation", metrics=["chrf"])
    run(causal, what, tmp_path / "a", {"data": data}, samples=20)
    kept = samples(tmp_path / "a")
    (tmp_path / "perfect").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("perfect", "empty"):
        made = [{**s, "output": s["reference"] if name == "perfect" else ""} for s in kept]
        lines = "".join(json.dumps(line) + "\n" for line in made)
        (tmp_path / name / "samples.jsonl").write_text(lines)
    inputs = {"data": data, "base": tmp_path / "empty", "reference": tmp_path / "perfect"}
    outcome = run(causal, what, tmp_path / "b", inputs, samples=20)
    assert value(outcome, "verdict") == "lost"
    assert value(outcome, "chrf_delta_reference") == pytest.approx(value(outcome, "chrf") - 100)


def test_plain_text_is_scored_without_decoding(causal: Path, data: Path, tmp_path: Path) -> None:
    what = task("generation")
    first = run(causal, what, tmp_path / "a", {"data": data}, window=16, stride=8)
    assert "windows of 16 tokens" in value(first, "likelihood_protocol")
    assert "num_empty" not in first.measures
    assert samples(tmp_path / "a")[0]["output"] is None
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    again = run(causal, what, tmp_path / "b", {"data": data, "reference": tmp_path / "a"})
    assert value(again, "perplexity_delta_reference") is not None
    report["measures"]["vocabulary_size"]["value"] = 7
    (tmp_path / "a" / "report.json").write_text(json.dumps(report))
    other = run(causal, what, tmp_path / "c", {"data": data, "reference": tmp_path / "a"})
    assert "perplexity_delta_reference" not in other.measures
    assert "bits_per_byte_delta_reference" in other.measures
    assert any("vocabularies differ" in note for note in other.notes)


def test_packed_weights_speak_where_there_is_neither_prompt_nor_bos(
    causal: Path, data: Path, tmp_path: Path
) -> None:
    bundle = open_bundle(causal)
    bundle.load(dtype="float32")
    context = Context(
        folder=tmp_path / "w8",
        seed=0,
        device="cpu",
        dtype="float32",
        dist=SINGLE,
        progress=Progress(quiet=True),
        tracker=NoneTracker(),
        inputs={},
    )
    (tmp_path / "w8").mkdir()
    stage = decode(Quantize, {"quantizer": "nearest", "bits": 8, "group_size": "channel"})
    packed = stage.run(bundle, context).bundle
    assert packed is not None
    save_bundle(packed, tmp_path / "w8" / "model")
    folder, without = tmp_path / "w8" / "model", tokenizer()
    without.backend_tokenizer.post_processor = processors.ByteLevel()
    without.bos_token = None
    without.save_pretrained(folder)
    what = task("generation")
    assert what.prompt_ids({"text": "open the file"}, open_bundle(folder).tokenizer) == []
    found = run(folder, what, tmp_path / "eval", {"data": data})
    assert value(found, "native_output") == "same"


def test_classes_are_named_by_the_model(classifier: Path, data: Path, tmp_path: Path) -> None:
    outcome = run(classifier, task("sentiment"), tmp_path / "a", {"data": data})
    kept = samples(tmp_path / "a")
    assert {s["output"] for s in kept} <= {"good", "bad", "so"}
    right = sum(s["output"] == s["reference"] for s in kept)
    assert value(outcome, "accuracy") == pytest.approx(right / 12)
    bundle = open_bundle(classifier)
    row = next(s for s in kept if s["output"])
    ids = bundle.tokenizer(row["source"]["text"], return_tensors="pt")["input_ids"]
    number = int(bundle.load()(ids).logits.argmax())
    assert bundle.load().config.id2label[number] == row["output"]


def test_a_model_without_a_head_answers_with_the_majority(causal: Path, data: Path, tmp_path: Path) -> None:
    outcome = run(causal, task("sentiment"), tmp_path / "a", {"data": data})
    assert {s["output"] for s in samples(tmp_path / "a")} == {"bad"}
    assert any("most frequent class, 'bad'" in note for note in outcome.notes)


def test_a_classifier_cannot_translate(classifier: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trained causal head"):
        run(classifier, task("translation"), tmp_path / "a", {"data": data})


def test_a_baseline_is_judged_on_the_same_samples(causal: Path, data: Path, tmp_path: Path) -> None:
    what = task("translation", baseline={"name": "lead", "words": 2}, metrics=["chrf", "perplexity"])
    outcome = run(causal, what, tmp_path / "e", {"data": data}, shots=0)
    (row,) = outcome.tables["baseline"]  # perplexity judges no answer
    assert row["metric"] == "chrf" and row["baseline"] == "lead"
    assert row["delta"] == pytest.approx(value(outcome, "chrf") - row["value"])
    assert row["delta_low"] <= row["delta"] <= row["delta_high"]
    assert value(outcome, "baseline") == "lead: the first 2 words of the source"


def test_a_model_that_knows_the_answers_beats_its_baseline(
    causal: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcc.evaluation.predict import Predictor

    what = task("translation", baseline="majority", metrics=["accuracy"])
    monkeypatch.setattr(Predictor, "outputs", lambda self, rows: [(row["target"], True) for row in rows])
    outcome = run(causal, what, tmp_path / "e", {"data": data}, shots=0)
    (row,) = outcome.tables["baseline"]
    assert row["verdict"] == "better" and row["value"] < 1 == value(outcome, "accuracy")
