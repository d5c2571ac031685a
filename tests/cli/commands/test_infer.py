"""A model folder answers a text, lines on stdin, and classes by their names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lcc.cli import main

WORDS = ["<pad>", "<s>", "</s>", "English:", "Chinese:", "open", "the", "file", "打开", "文件"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(module: Any, folder: Path) -> str:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="the"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def causal(folder: Path) -> str:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=10,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return save(transformers.LlamaForCausalLM(config), folder)


def classifier(folder: Path) -> str:
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    return save(transformers.BertForSequenceClassification(config), folder)


def test_a_text_and_the_same_line_get_the_same_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={causal(tmp_path / 'm')}", "task=translation"]
    assert main(["infer", *words, "--text", "open the file"]) == 0
    alone = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("open\n\nopen the file\n{0} files\n"))
    assert main(["infer", *words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["source"] for one in said] == ["open", "open the file", "{0} files"]
    assert said[1]["output"] == alone.strip()


def test_a_class_is_answered_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"model={classifier(tmp_path / 'm')}"
    assert main(["infer", model, "task=sentiment", "--text", "open"]) == 0
    assert capsys.readouterr().out.strip() in ("bad", "good")


@pytest.mark.parametrize(
    "words, code, message",
    [
        ([], 2, "no run in this folder yet"),
        (["task=translation"], 2, "infer needs a model"),
        (["a", "b"], 2, "one checkpoint at a time, not a and b"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", *words, "--text", "open"]) == code
    assert message in capsys.readouterr().err


def test_a_classifier_does_not_translate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"model={classifier(tmp_path / 'm')}"
    assert main(["infer", model, "task=translation", "--text", "open"]) == 2
    assert "no trained causal head" in capsys.readouterr().err
