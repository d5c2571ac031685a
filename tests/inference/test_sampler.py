"""What is shown is the decoded text, in pieces that no later token changes."""

from __future__ import annotations

import pytest
import speakers

from lcc.inference.sampler import TextStream


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    words = speakers.tokenizer()
    stream = TextStream(words, stop)
    found = []
    for token in words(text)["input_ids"]:
        found.append(stream.push(token))
        if stream.stopped:
            break
    return [*found, stream.finish()], stream


@pytest.mark.parametrize("text", ["plain words", "打开文件 ok", "naïve 🙂🙂", " lead", "a\nb  c"])
def test_pieces_are_whole_characters_and_make_the_text(text: str) -> None:
    found, _ = pieces(text)
    assert "".join(found) == text
    assert "\ufffd" not in "".join(found)
    assert len([piece for piece in found if piece]) == len(text)


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    found, stream = pieces("one two ENd three END four", ("END", "five"))
    assert "".join(found) == "one two ENd three "
    assert stream.stopped
    assert all("EN" not in piece or piece == "ENd" for piece in found)


def test_what_was_held_back_is_shown_at_the_end() -> None:
    found, stream = pieces("one EN", ("END",))
    assert "".join(found) == "one EN"
    assert not stream.stopped


def test_half_a_character_at_the_end_is_shown_as_the_decoder_shows_it() -> None:
    words = speakers.tokenizer()
    stream = TextStream(words)
    ids = words("好")["input_ids"][:2]
    assert [stream.push(i) for i in ids] == ["", ""]
    assert stream.finish() == words.decode(ids)
