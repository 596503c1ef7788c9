"""Text that is sent while tokens come is never taken back."""

import random

import pytest

from backbone.tokenizer import Tokenizer
from vla.serving.model import Token
from vla.serving.transcript import Transcript


def spell(ids):
    return bytes(ids).decode("utf-8", "replace")


def run(text: bytes, *stops: str) -> tuple[list[str], Transcript]:
    transcript = Transcript(spell, stops)
    pieces = []
    for byte in text:
        pieces.append(transcript.add(Token(byte)))
        if transcript.stopped:
            break
    return [*pieces, transcript.finish()], transcript


def test_characters_are_sent_when_they_are_complete():
    pieces, _ = run("aé€".encode())
    assert pieces == ["a", "", "é", "", "", "€", ""]


def test_a_broken_character_at_the_end_is_sent_at_last():
    pieces, transcript = run(b"a\xe2\x82")
    assert "".join(pieces) == transcript.text == "a\ufffd"


def test_a_stop_text_and_what_follows_are_left_out():
    pieces, transcript = run(b"one. two", ". ")
    assert "".join(pieces) == transcript.text == "one"
    assert transcript.stopped
    assert len(transcript.tokens) == len("one. ")


def test_what_may_begin_a_stop_text_is_held_back_until_it_does_not():
    pieces, transcript = run(b"xaab", "aaa")
    assert pieces == ["x", "", "", "aab", ""]
    assert not transcript.stopped
    pieces, _ = run(b"xaa", "aaa")
    assert pieces == ["x", "", "", "aa"]


def test_the_earliest_of_several_stop_texts_counts():
    _, transcript = run(b"a;b.c", ".", ";")
    assert transcript.text == "a"


@pytest.mark.parametrize("seed", range(5))
def test_pieces_add_up_to_the_tokenizers_own_text(seed):
    tokenizer = Tokenizer.small()
    rng = random.Random(seed)
    ids = [rng.randrange(3, tokenizer.vocab_size) for _ in range(60)]
    ids += tokenizer.encode(" naïve ☃ 漢字 <loc0001>")
    transcript = Transcript(tokenizer.decode)
    text = "".join(transcript.add(Token(i)) for i in ids) + transcript.finish()
    assert text == tokenizer.decode(ids)
