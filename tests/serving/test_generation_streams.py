"""An answer is the same alone, in company, whole and as a stream; one that nobody awaits ends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_servers import Running

LONG = {"prompt": "and so on", "max_tokens": 400, "temperature": 0}


def said(running: Running, **wishes: Any) -> Any:
    asked = {"prompt": "once upon a time", "max_tokens": 12, "temperature": 0, **wishes}
    with running.client() as client:
        reply = client.post("/v1/completions", json=asked)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def test_sixteen_at_once_are_told_what_each_is_told_alone(chat: Running) -> None:
    prompts = [f"{'word ' * i}end" for i in range(16)]
    alone = [said(chat, prompt=prompt)["text"] for prompt in prompts]
    before = chat.served.engine_thread.num_turns
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda p: said(chat, prompt=p)["text"], prompts))
    assert together == alone
    assert chat.served.engine_thread.num_turns - before < 16 * 12  # they shared turns


def test_a_session_that_nobody_can_join_is_filled_up_each_time(
    plain_folder: Path, serve: Callable[..., Any]
) -> None:
    prompts = [f"{'word ' * i}end" for i in range(8)]
    with serve(plain_folder, slots=3) as running:
        alone = [said(running, prompt=prompt)["text"] for prompt in prompts]
        session = running.served.session
        session.abilities -= {"continuous"}
        engine_thread, start = running.served.engine_thread, session.start
        met: list[tuple[int, int]] = []  # the turn at which each began, and beside how many

        def watched(request: Any) -> int:
            met.append((engine_thread.num_turns, len(engine_thread.active)))
            return int(start(request))

        session.start = watched
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda p: said(running, prompt=p)["text"], prompts))
    assert together == alone
    assert len(met) == 8 and max(beside for _, beside in met) == 2
    began = {turn for turn, beside in met if beside == 0}
    assert all(turn in began for turn, _ in met), "one joined an answer under way"


def test_a_seed_repeats_and_another_differs(chat: Running) -> None:
    wishes: dict[str, Any] = {"temperature": 1.0, "max_tokens": 30}
    assert said(chat, **wishes, seed=1) == said(chat, **wishes, seed=1)
    assert said(chat, **wishes, seed=1) != said(chat, **wishes, seed=2)


def test_min_p_of_a_body_bounds_its_draws(chat: Running) -> None:
    wishes: dict[str, Any] = {"temperature": 1.0, "seed": 4, "max_tokens": 30}
    # Only a token as likely as the likeliest is left: the answer is the greedy one.
    assert said(chat, min_p=1.0, **wishes)["text"] == said(chat, max_tokens=30)["text"]
    assert said(chat, **wishes)["text"] != said(chat, max_tokens=30)["text"]
    with chat.client() as client:
        refused = client.post("/v1/completions", json={"prompt": "x", "min_p": 2})
    assert refused.status_code == 400 and "min_p" in refused.text


def test_an_answer_ends_before_its_stop_string(chat: Running) -> None:
    whole = said(chat, temperature=1.0, seed=4, max_tokens=60)["text"]
    stop = next(c for i, c in enumerate(whole) if i > 4 and c.isascii())
    cut = said(chat, temperature=1.0, seed=4, max_tokens=60, stop=["never said", stop])
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_the_same_words_as_the_model_in_this_process_says(chat: Running, chat_folder: Path) -> None:
    from lcc.evaluation.generate import answer
    from lcc.models.bundle import open_bundle
    from lcc.tasks.task import Decode

    bundle = open_bundle(chat_folder)
    ids = list(bundle.tokenizer("once upon a time")["input_ids"])
    own = answer(bundle.load(), bundle.tokenizer, [ids], decode=Decode(max_new_tokens=12))
    assert said(chat)["text"].strip() == own[0].text


def test_a_client_that_hangs_up_gives_its_slot_back(chat: Running) -> None:
    active = chat.served.engine_thread.active
    with chat.client() as client:
        for kind in ({"stream": True}, {}):
            try:
                with client.stream("POST", "/v1/completions", json={**LONG, **kind}, timeout=0.25) as reply:
                    next(reply.iter_bytes())
            except Exception as error:
                assert "timed out" in str(error).lower(), error
            chat.until(lambda: not active)


def test_what_is_refused_leaves_nothing_behind(plain_folder: Path, serve: Callable[..., Any]) -> None:
    with serve(plain_folder, slots=1, queue=1) as running, running.client() as client:
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as first:
            pieces = first.iter_bytes()
            next(pieces)
            with running.client() as other:
                refused = other.post("/v1/completions", json={**LONG, "n": 2})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0
            assert not running.served.engine_thread.waiting
        assert said(running)["text"]


def test_who_waits_too_long_is_told_so(plain_folder: Path, serve: Callable[..., Any]) -> None:
    with serve(plain_folder, slots=1, queue_seconds=0.01) as running, running.client() as client:
        with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as first:
            pieces = first.iter_bytes()  # what is let go of hangs up
            next(pieces)
            with running.client() as other:
                late = other.post("/v1/completions", json={**LONG, "stream": True})
        assert late.status_code == 429


def test_a_turn_that_fails_ends_its_answers_and_no_others(
    plain_folder: Path, serve: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(plain_folder) as running, running.client() as client:
        session = running.served.session
        whole = session.step

        def spoiled() -> Any:
            session.step = whole
            raise RuntimeError("spoiled")

        session.step = spoiled
        reply = client.post("/v1/completions", json={"prompt": "x"})
        assert reply.status_code == 500 and "spoiled" not in reply.text
        assert said(running)["text"]
        assert "RuntimeError: spoiled" in capfd.readouterr().err


def test_an_engine_that_only_fails_takes_the_server_down(
    plain_folder: Path, serve: Callable[..., Any]
) -> None:
    with serve(plain_folder) as running, running.client() as client:

        def spoiled() -> Any:
            raise RuntimeError("spoiled")

        running.served.session.step = spoiled
        for _ in range(3):
            reply = client.post("/v1/completions", json={"prompt": "x"})
            assert (reply.status_code, reply.headers["Connection"]) == (500, "close")
        running.until(lambda: running.server.error is not None and running.server.should_exit)
        assert not running.served.is_well


def test_a_fault_inside_a_stream_is_told_there_and_in_the_log(
    chat: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def spoiled(*args: Any, **more: Any) -> Any:
        raise RuntimeError("a spoiled piece")

    monkeypatch.setattr("lcc.serving.endpoints.chunk", spoiled)
    with chat.client() as client:
        reply = client.post("/v1/completions", json={**LONG, "max_tokens": 3, "stream": True})
    assert "its log says why" in reply.text and "spoiled" not in reply.text
    assert "RuntimeError: a spoiled piece" in capfd.readouterr().err


@pytest.mark.parametrize(
    "path, asked",
    [
        ("/v1/completions", {"prompt": "x" * 600}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 600}]}),
        ("/v1/embeddings", {"input": ["fine", "x" * 600]}),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_by_its_tokens(chat: Running, path: str, asked: Any) -> None:
    with chat.client() as client:
        reply = client.post(path, json=asked)
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_an_answer_ends_where_the_context_does(chat: Running) -> None:
    choice = said(chat, prompt="x" * 500, max_tokens=100)
    assert choice["finish_reason"] in ("length", "stop")


def test_the_metrics_count_what_was_done(chat: Running) -> None:
    said(chat)
    with chat.client() as client:
        text = client.get("/metrics").text
    for name in (
        "lcc_requests_total",
        "lcc_completion_tokens_total",
        "lcc_answers_running",
        "lcc_first_token_seconds_bucket",
        "lcc_engine_turns",
    ):
        assert name in text
