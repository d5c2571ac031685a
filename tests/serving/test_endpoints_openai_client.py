"""OpenAI's own client talks to the server as it does to OpenAI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

KEY = "a-key-of-at-least-sixteen-characters"
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(chat_folder: Path) -> Iterator[openai.OpenAI]:
    from running_servers import run

    with (
        run(chat_folder, key=KEY, queue=0, slots=4) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_completion_tokens=5, n=2, seed=3, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.usage is not None and reply.usage.completion_tokens == 10
    choice = reply.choices[0]
    assert choice.finish_reason == "length" and choice.logprobs is not None
    assert choice.logprobs.content is not None and len(choice.logprobs.content) == 5
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    wishes: Any = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 20, "seed": 7}
    whole = client.chat.completions.create(**wishes)
    text, usage, ends = "", None, []
    for event in client.chat.completions.create(
        **wishes, stream=True, stream_options={"include_usage": True}
    ):
        usage = event.usage or usage
        for choice in event.choices:
            text += choice.delta.content or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].message.content
    assert usage == whole.usage
    assert ends == [whole.choices[0].finish_reason]


def test_several_texts_are_completed_several_times(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="tiny-chat", prompt=["one", "two"], n=2, max_tokens=4, logprobs=1, temperature=0
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text
    assert reply.choices[0].logprobs is not None
    assert reply.choices[0].logprobs.text_offset is not None


def test_tokens_are_prompts_too(client: openai.OpenAI) -> None:
    by_text = client.completions.create(model="tiny-chat", prompt="abc", temperature=0)
    ids = [client_id for client_id in _ids("abc")]
    by_ids = client.completions.create(model="tiny-chat", prompt=ids, temperature=0)
    assert by_text.choices[0].text == by_ids.choices[0].text


def _ids(text: str) -> list[int]:
    import served_models as serving

    return list(serving.bytes_tokenizer()(text)["input_ids"])


def test_vectors_are_the_same_as_numbers_and_as_bytes(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model="tiny-chat", input=["one", "two"])
    plain = client.embeddings.create(model="tiny-chat", input=["one", "two"], encoding_format="float")
    assert len(packed.data) == 2
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-6)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-chat"]


@pytest.mark.parametrize(
    "wishes, error",
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"temperature": "warm"}, openai.BadRequestError),
        ({"n": 100}, openai.UnprocessableEntityError),
        ({"n": 5}, openai.RateLimitError),
    ],
)
def test_refusals_arrive_as_the_client_s_own_errors(
    client: openai.OpenAI, wishes: Any, error: type[openai.APIStatusError]
) -> None:
    asked: Any = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 500, **wishes}
    with pytest.raises(error) as raised:
        client.chat.completions.create(**asked)
    assert raised.value.body is not None


def test_a_wrong_key_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key=KEY + "x").models.list()
