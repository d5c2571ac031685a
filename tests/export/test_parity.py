"""The gate closes on an export that is not its source, keeps it, and nothing runs it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from exports import TEMPLATE, exported, prompts, saved

from lcc.config.cards import find_card
from lcc.core.errors import GateError
from lcc.export.publish import ParityTrial, publish
from lcc.inference.session import Opening
from lcc.methods.exporters.gguf import Gguf

llama_cpp: Any = pytest.importorskip(
    "lcc.inference.backends.llama_cpp", reason="llama.cpp is not installed: pip install 'lcc[llamacpp]'"
)


class Damaging(Gguf):
    """The real exporter, whose file is damaged between writing and comparing."""

    def write(self, source: Path, target: Path) -> Mapping[str, Any]:
        facts = super().write(source, target)
        file = target / "model.gguf"
        file.write_bytes(self.damaged(file.read_bytes()))
        return facts

    def damaged(self, whole: bytes) -> bytes:
        """A twentieth of the weights' bytes stand in reverse."""
        first = len(whole) // 2
        last = first + len(whole) // 20
        return whole[:first] + whole[first:last][::-1] + whole[last:]


class OtherTemplate(Damaging):
    """One character of the chat template."""

    def damaged(self, whole: bytes) -> bytes:
        return whole.replace(b"<s>assistant", b"<s>Assistant", 1)


class OtherMerge(Damaging):
    """One merge of two letters joins two others, so that the first stay apart."""

    def damaged(self, whole: bytes) -> bytes:
        found = re.search(rb"\x03\0{7}[a-z] [a-z](?=\W)", whole)
        assert found is not None
        return whole.replace(found[0], found[0][:-3] + b"z q", 1)


class Truncated(Damaging):
    """A tenth of the file, as a full disk leaves it."""

    def damaged(self, whole: bytes) -> bytes:
        return whole[: len(whole) // 10]


def refusal(exporter: Gguf, source: Path, target: Path) -> str:
    with pytest.raises(GateError) as closed:
        publish(source, target, exporter, trial=ParityTrial(prompts=prompts(source, 16), new_tokens=4))
    assert closed.value.exit_code == 9
    return str(closed.value)


def test_damaged_weights_close_it_and_both_outputs_are_shown(tmp_path: Path) -> None:
    said = refusal(Damaging(type="q8_0"), saved("llama", tmp_path / "model"), tmp_path / "out")
    assert "off by" in said and "more than the 0.08 that the format explains" in said
    assert "  source: " in said and "  export: " in said
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out.failed"
    told = json.loads((kept / "FAILED.json").read_text())
    assert told["refused"] and told["shown"][0].keys() == {"prompt", "source", "export"}
    assert told["shown"][0]["source"] != told["shown"][0]["export"]


def test_answers_that_end_where_the_same_file_reads_on_close_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved("llama", tmp_path / "model")
    end = json.loads((source / "config.json").read_text())["eos_token_id"]

    def silent(runner: Any, places: list[Any]) -> list[int]:
        runner._run(runner._context)
        return [end] * len(places)

    monkeypatch.setattr(llama_cpp.LlamaRunner, "_next", silent)
    said = refusal(Gguf(type="f32"), source, tmp_path / "out")
    assert "100.0% of the tokens that it writes are not what it says" in said


def test_what_the_gate_refused_is_not_run(tmp_path: Path) -> None:
    refusal(Damaging(type="q8_0"), saved("llama", tmp_path / "model"), tmp_path / "out")
    with pytest.raises(GateError, match=r"failed its parity gate .* so it is not run"):
        find_card("engines", "llamacpp")().open(tmp_path / "out.failed", Opening(threads=1))


def test_an_undamaged_export_passes_with_its_numbers_in_the_report(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model", template=TEMPLATE)
    made = exported(source, tmp_path / "out", "gguf", type="q8_0")
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["parity"] == dataclasses.asdict(made.parity)
    assert report["parity"]["same_template"] is True and report["refused"] == []
    assert not (tmp_path / "out" / "FAILED.json").exists()


def test_another_chat_template_closes_it(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model", template=TEMPLATE)
    assert "its chat template renders other bytes" in refusal(OtherTemplate(), source, tmp_path / "out")


def test_another_split_of_texts_closes_it(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model")
    assert "its own tokenizer splits" in refusal(OtherMerge(), source, tmp_path / "out")


def test_a_file_that_llama_cpp_ends_over_is_refused_and_not_our_end(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model")
    said = refusal(Truncated(), source, tmp_path / "out")
    assert "llama.cpp does not run it: it " in said
    assert (tmp_path / "out.failed" / "FAILED.json").is_file()


def test_a_copy_is_compared_byte_for_byte(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model")
    made = exported(source, tmp_path / "out", "hf")
    assert made.parity.kind == "bytes" and made.parity.agreement == 1.0
