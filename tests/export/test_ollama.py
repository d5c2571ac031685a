"""A Modelfile says what the chat template says, or there is none."""

from __future__ import annotations

from pathlib import Path

import compressing as tiny
import pytest
from exports import exported, saved

from lcc.core.errors import RecipeError
from lcc.export.ollama import TRIALS, frames_of, go_template

CHATML = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<s>system\nYou help.</s>\n' }}{% endif %}"
    "{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
MERGED = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{% endif %}"
    "{{ m['content'] | upper }}{% endfor %}"
)


def test_frames_render_every_trial_as_the_template_does() -> None:
    tokenizer = tiny.byte_level_tokenizer(400)
    tokenizer.chat_template = CHATML
    frames = frames_of(tokenizer)
    assert frames is not None and frames.default == "You help."
    for messages in TRIALS:
        assert frames.rendered(messages) == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    assert go_template(frames).startswith('{{- range .Messages }}{{- if eq .Role "system" }}')


def test_the_modelfile_lies_beside_the_file(tmp_path: Path) -> None:
    pytest.importorskip("cyllama", reason="llama.cpp is not installed: lcc[llamacpp]")
    exported(saved("llama", tmp_path / "model", template=CHATML), tmp_path / "out", "ollama")
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "FROM ./model.gguf" and lines[1].startswith('TEMPLATE """')
    assert 'SYSTEM """You help."""' in lines and 'PARAMETER stop "</s>"' in lines


def test_a_template_that_does_more_is_refused(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "model", template=MERGED)
    with pytest.raises(RecipeError, match="does more than put text around what each role says"):
        exported(source, tmp_path / "out", "ollama")
