"""A served chat that is grounded: the FAQ's entries reach the model, strangers reach a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lcc.config.cards import decode
from lcc.tasks.task import Task


def service(folder: Path) -> Task:
    path = folder / "faq.jsonl"
    path.write_text(json.dumps({"question": "May I bring my dog?", "answer": "No animals."}) + "\n")
    return decode(
        Task,
        {
            "name": "service",
            "fields": ["turns"],
            "turns": "turns",
            "chat": True,
            "grounding": {"file": str(path), "threshold": 0.5, "handover": "A person comes."},
        },
    )


def test_what_the_faq_covers_is_answered_and_the_rest_handed_over(
    serve: Callable[..., Any], chat_folder: Path, tmp_path: Path
) -> None:
    with serve(chat_folder, task=service(tmp_path)) as running, running.client() as client:

        def ask(text: str, **wishes: Any) -> Any:
            messages = [{"role": "user", "content": text}]
            body = {"messages": messages, "max_tokens": 4, "temperature": 0, **wishes}
            return client.post("/v1/chat/completions", json=body)

        known = ask("my dog?").json()
        bare = len("<|user|>my dog?<|end|><|assistant|>")
        assert known["usage"]["prompt_tokens"] > bare + len("No animals.")
        assert known["usage"]["completion_tokens"] == 4
        turns = running.served.engine_thread.num_turns
        strange = ask("Why is the sky blue?", n=2).json()
        assert [c["message"]["content"] for c in strange["choices"]] == ["A person comes."] * 2
        assert strange["choices"][0]["finish_reason"] == "stop"
        assert strange["usage"]["total_tokens"] == 0
        streamed = ask("Why is the sky blue?", stream=True).text
        assert '"content":"A person comes."' in streamed.replace('": "', '":"')
        assert "[DONE]" in streamed and running.served.engine_thread.num_turns == turns
