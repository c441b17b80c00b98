"""Changes of a transcript: similar words, words apart or together, and those of other transcripts."""

import sys

import pytest

from ossicle.models import lexicon
from ossicle.models.lexicon import Change, Lexicon, apart, changed

OWN = ["bat", "café", "cat", "curtain", "martin", "potatoes", "quick", "some", "one", "someone", "no", "x1y"]


@pytest.fixture
def small(monkeypatch):
    """The lexicon of an LLM, with two more words from a dictionary."""
    monkeypatch.setattr(lexicon, "english_words", lambda: frozenset({"gingerly", "manipulation"}))
    return Lexicon(OWN)


def test_similar_words_have_few_other_letters(small):
    assert small.similar("curtin") == ["curtain", "martin"]
    assert small.similar("curtin", 1) == ["curtain"]
    assert small.similar("patatose") == ["potatoes"]  # three letters of eight
    assert small.similar("caf") == ["café", "cat"]
    assert small.similar("ginerly") == ["gingerly"]
    for word in ("cat", "no", "c4t", "rat's", "ca", "zzz", "gingerly"):
        assert small.similar(word) == []


def test_words_are_proposed_apart_and_together(small):
    assert small.parts("quickmanipulation") == ["quick manipulation"]
    assert small.parts("someone") == small.parts("quickxyz") == []
    assert Change(1, 3, "someone") in small.changes(["quick", "some", "one"])


def test_other_transcripts_propose_what_they_have(small):
    others = [["a", "cat", "one"], ["a", "bat", "one", "down"], ["bat", "one"], ["a", "bat", "one"]]
    found = small.changes(["a", "bat", "one"], others)
    assert found == [Change(1, 2, "cat"), Change(3, 3, "down"), Change(0, 1, "")]


def test_changes_are_put_into_the_text():
    words = ["a", "b", "c", "d"]
    assert changed(words, [Change(1, 3, "x y z"), Change(0, 1, ""), Change(4, 4, "end")]) == "x y z d end"
    assert changed(words, []) == "a b c d"
    changes = [Change(1, 3, "x"), Change(2, 4, "y"), Change(0, 1, "z"), Change(3, 4, "w")]
    assert apart(changes) == [changes[0], changes[2], changes[3]]


def test_without_a_dictionary_the_words_are_those_of_the_llm(monkeypatch):
    lexicon.english_words.cache_clear()
    monkeypatch.setitem(sys.modules, "spellchecker", None)
    try:
        assert Lexicon(OWN).words == set(OWN) - {"no", "x1y"}
    finally:
        lexicon.english_words.cache_clear()


def test_the_dictionary_is_english():
    pytest.importorskip("spellchecker", reason="pyspellchecker is not installed")
    assert {"gingerly", "deferentially", "manipulation"} <= lexicon.english_words()
    assert all(map(lexicon.is_word, lexicon.english_words()))
