"""Pieces of text never end within a character, and joined they are the whole answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.models.text_stream import TextStream
from ossicle.testing import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def pieces(text: str, stop: tuple[str, ...] = ()) -> list[str]:
    """Return the pieces for a text whose tokens are single bytes."""
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    stream, found = TextStream(TOKENIZER, stop), []
    for count in range(1, len(ids)):
        found.append(stream.push(ids[:count]))
        if stream.stopped:
            return found
    return [*found, stream.finish(ids)]


@given(st.text(alphabet=st.sampled_from("ab €é語🙂\n \u2028"), max_size=12))
def test_pieces_make_up_the_answer_and_hold_whole_characters(text):
    found = pieces(text) if text else []
    assert "".join(found) == text.split("\n")[0].strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


def test_each_word_comes_as_soon_as_it_is_known():
    assert pieces(" a€ b") == ["", "a", "", "", "€", "", " b"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two", ("two",), "one"),
        ("one two", ("tw", "one t"), ""),
        ("one two", ("",), "one two"),
        ("ab abc", ("abc",), "ab"),
        ("ab abd", ("abc",), "ab abd"),
        ("aaab", ("aab",), "a"),
    ],
)
def test_a_stop_text_and_its_beginning_are_never_sent(text, stop, expected):
    found = pieces(text, stop)
    assert "".join(found) == expected
    for k in range(len(found)):
        assert expected.startswith("".join(found[:k]))


def test_a_half_character_at_the_end_is_shown():
    ids = TOKENIZER("a€", add_special_tokens=False).input_ids[:-1]
    stream = TextStream(TOKENIZER)
    assert stream.push(ids) == "a"
    assert stream.finish(ids).startswith("\N{REPLACEMENT CHARACTER}")


def test_a_tokenizer_that_joins_words_later_keeps_the_last_word_back():
    class Cleaning:
        clean_up_tokenization_spaces = True

        def decode(self, ids, skip_special_tokens):
            return "".join(ids).replace(" n't", "n't")

    stream = TextStream(Cleaning())
    ids = ["I", " do", " n", "'t", " go"]
    found = [stream.push(ids[:count]) for count in range(1, 5)] + [stream.finish(ids)]
    assert "".join(found) == "I don't go"
