"""What is told of a reply while it comes adds up to the reply."""

from __future__ import annotations

import pytest

from drivekd.deploy.serving.reply_text import ReplyText

END = 0


def decode(tokens):
    """Token k is byte k; 0 ends and has no text."""
    return bytes(token for token in tokens if token).decode("utf-8", "replace")


def spoken(words, stops=(), most=1000, end=True):
    """The pieces of a reply, and what is left of it."""
    reply = ReplyText(decode, {END}, stops, most)
    pieces = []
    for token in [*words.encode(), *([END] if end else [])]:
        pieces.append(reply.add(token))
        if reply.finish:
            break
    return pieces, reply


@pytest.mark.parametrize("words", ["a red car", "Größe ≈ 12 m", "🚗🚙", "", "end\ufffd"])
def test_pieces_add_up_and_hold_whole_characters(words):
    pieces, reply = spoken(words)
    assert "".join(pieces) == words == reply.told
    assert reply.finish == "stop"
    assert len(reply.tokens) == len(words.encode()) + 1
    assert all(piece in words for piece in pieces)


def test_a_reply_cut_within_a_character_keeps_the_sign_for_it():
    pieces, reply = spoken("a≈", most=3)
    assert ("".join(pieces), reply.finish) == ("a\ufffd", "length")


@pytest.mark.parametrize(
    ("stops", "told"),
    [
        (["\n\n"], "one\ntwo"),
        (["two"], "one\n"),
        (["three", "tw", "wo"], "one\n"),
        (["nowhere"], "one\ntwo\n\nthree"),
        (["one"], ""),
        (["three!"], "one\ntwo\n\nthree"),
    ],
)
def test_nothing_of_a_stop_is_told(stops, told):
    words = "one\ntwo\n\nthree"
    pieces, reply = spoken(words, stops)
    assert "".join(pieces) == told
    assert reply.finish == "stop"
    assert reply.tokens[-1] != END or told == words


def test_what_could_become_a_stop_is_held_back_no_longer_than_needed():
    pieces, _ = spoken("abcabd", ["abd"])
    assert pieces == ["", "", "abc", "", "", ""]


def test_the_longest_reply():
    pieces, reply = spoken("abc", most=2)
    assert (pieces, reply.finish) == (["a", "b"], "length")
    pieces, reply = spoken("ab", most=3)
    assert reply.finish == "stop"  # the last token that is allowed ends it
