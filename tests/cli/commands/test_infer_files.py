"""Files of rows are answered line for line, in a crew too; what is wrong is said in words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import speakers

from lcc.cli import main
from lcc.core import signals

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def words(num_rows: int = 30, **options: Any) -> list[str]:
    if not Path("m").exists():
        speakers.save(speakers.llama(), Path("m"))
    rows = [{"id": f"r{i}", "source": f"{i} " + "a" * (7 * i % 23)} for i in range(num_rows)]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    own = {"input": "in.jsonl", "output": "out.jsonl", "max_new_tokens": 6, "slots": 4, **options}
    return ["infer", "model=m", "task=translation", *(f"{k}={v}" for k, v in own.items())]


def lines(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def outputs(name: str = "out.jsonl") -> list[str]:
    return [line["output"] for line in lines(name)]


def test_a_line_answers_each_row_and_says_how_long_it_took() -> None:
    assert main(words()) == 0
    assert [line["id"] for line in lines()] == [f"r{i}" for i in range(30)]
    assert lines()[3].keys() >= {"source", "output", "finish", "tokens", "prompt_tokens", "seconds"}
    assert all(line["tokens"] <= 6 and line["seconds"] > 0 for line in lines())
    assert len(set(outputs())) > 5


@pytest.mark.parametrize("options", [{"slots": 1}, {"batch_tokens": 90}, {"workers": 2}])
def test_company_changes_no_answer(options: dict[str, Any]) -> None:
    assert main(words()) == 0
    assert main(words(output="other.jsonl", **options)) == 0
    assert outputs("other.jsonl") == outputs()


@pytest.mark.parametrize("kept, half", [(0, ""), (1, ""), (17, '{"id": "r17", "out'), (30, "")])
def test_what_is_there_is_not_answered_again(kept: int, half: str) -> None:
    assert main(words()) == 0
    whole = Path("out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    before = outputs()
    marked = [line.replace('"output": "', '"output": "kept ') for line in whole[:kept]]
    Path("out.jsonl").write_text("".join(marked) + half, encoding="utf-8")
    assert main(words()) == 0
    assert outputs() == [f"kept {text}" for text in before[:kept]] + before[kept:]


def test_draws_are_the_rows_own_wherever_they_go_on() -> None:
    options = {"temperature": 1.0, "top_k": 50, "seed": 5}
    assert main(words(**options)) == 0
    before = outputs()
    kept = Path("out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:11]
    Path("out.jsonl").write_text("".join(kept), encoding="utf-8")
    assert main(words(**{**options, "slots": 7})) == 0
    assert outputs() == before
    assert main(words(output="other.jsonl", **{**options, "seed": 6})) == 0
    assert outputs("other.jsonl") != before


def test_asked_to_stop_it_keeps_what_is_done_and_ends_with_75(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(words(output="whole.jsonl")) == 0
    looks = iter(range(1000))

    def asked(what: str) -> None:
        if next(looks) == 12:
            raise signals.PreemptedError(f"{what}: asked to stop.")

    with monkeypatch.context() as patched:
        patched.setattr(signals, "check", asked)
        assert main(words()) == 75
    assert 0 < len(lines()) < 30
    assert main(words()) == 0
    assert outputs() == outputs("whole.jsonl")


def test_the_output_of_another_model_task_or_input_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words()) == 0
    text = Path("out.jsonl").read_text(encoding="utf-8")
    for change, message in [
        ({"max_new_tokens": 5}, "begun with another task"),
        ({"seed": 1}, "begun with another seed"),
    ]:
        assert main(words(**change)) == 2
        assert message in capsys.readouterr().err
    words_now = words(num_rows=20)
    assert main(words_now) == 3
    assert "30 lines and the input 20 rows" in capsys.readouterr().err
    rows = Path("in.jsonl").read_text(encoding="utf-8").replace("19 a", "19 b")
    Path("in.jsonl").write_text(rows, encoding="utf-8")
    Path("out.jsonl").write_text("".join(text.splitlines(True)[:20]), encoding="utf-8")
    assert main(words_now) == 3
    assert "line 20 does not answer row 20" in capsys.readouterr().err
    Path("mine.jsonl").write_text("{}\n", encoding="utf-8")
    assert main(words(output="mine.jsonl")) == 2
    assert "was not made by infer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({"engine": "vllm"}, "vLLM needs a GPU"),
        ({"engine": "magic"}, "no engine is named 'magic'"),
        ({"output": "out.txt"}, "ends in .jsonl"),
        ({"temprature": 1}, "temprature"),
        ({"top_p": 2}, "top_p"),
        ({"input": "none.jsonl"}, "No such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(**options)) in (2, 3)
    assert message in capsys.readouterr().err


def test_a_growing_file_is_followed_until_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    command = words(num_rows=3, follow="true")
    check: Callable[[str], None] = signals.check
    grown = []

    def grow(what: str) -> None:
        check(what)
        done = len(lines()) if Path("out.jsonl").exists() else 0
        if done == 3 and not grown:
            with Path("in.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"id": "late", "source": "late"}) + "\n")
            grown.append(done)
        if done == 4:
            raise signals.PreemptedError("infer: asked to stop.")

    monkeypatch.setattr(signals, "check", grow)
    assert main(command) == 75
    assert [line["id"] for line in lines()] == ["r0", "r1", "r2", "late"]


def test_beams_and_classes_go_the_same_way() -> None:
    assert main(words(num_rows=6, num_beams=3)) == 0
    assert len(lines()) == 6
    speakers.save(speakers.bert(id2label={0: "bad", 1: "good"}), Path("c"))
    rows = [{"text": f"text {i}"} for i in range(7)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = ["infer", "model=c", "task=sentiment", "input=t.jsonl", "output=l.jsonl"]
    assert main(command) == 0
    assert {line["output"] for line in lines("l.jsonl")} <= {"bad", "good"}
    assert len(lines("l.jsonl")) == 7


def test_a_conversation_remembers_until_it_is_told_to_forget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words()
    Path("m/chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    command = ["infer", "model=m", "--chat", "max_new_tokens=8", "stop=['\\n']"]
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nhello\n/new\nhello\n"))
    assert main(command) == 0
    first, second, third = capsys.readouterr().out.split("\n")[:3]
    assert first == third != second


def test_a_model_without_a_template_does_not_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words()
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["infer", "model=m", "--chat"]) == 3
    assert "no chat template" in capsys.readouterr().err


def test_auto_says_what_it_chose_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Whichever engines are installed here: their own tests measure and compare them.
    monkeypatch.setattr("lcc.export.select_engine.names", lambda shelf: ["transformers", "vllm"])
    assert main(words(num_rows=3, engine="auto")) == 0
    told = capsys.readouterr().err
    assert "engine=auto: transformers, as no other can: vLLM needs a GPU" in told
    assert main(words(num_rows=3, engine="auto")) == 0
    assert "goes on with transformers" in capsys.readouterr().err


def test_an_engine_takes_the_options_of_its_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(num_rows=4)) == 0
    stored = "{name: transformers, weights: stored}"
    assert main(words(num_rows=4, engine=stored, output="stored.jsonl")) == 0
    assert outputs("stored.jsonl") == outputs()
    assert main(words(num_rows=4, engine="{name: transformers, weigths: stored}")) == 2
    assert "unknown key 'weigths'" in capsys.readouterr().err
