"""Propose changes of a transcript: similar words, words apart or together, and what other transcripts have.

A network that spells writes "instuctions" and "quickmanipulation". This module only proposes; the choice is that of
`ossicle.models.rescoring`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

SIMILAR = 40
"""Similar words that are proposed for a word."""


class Change(NamedTuple):
    """Other words for the words from ``start`` to ``end`` (excluded) of a transcript."""

    start: int
    end: int
    words: str


class Lexicon:
    """The words of the LLM, and those of English if the package pyspellchecker is installed.

    Args:
        own: Words for which the LLM has a token of its own. They are usual words, and no similar ones are proposed.
    """

    def __init__(self, own: Iterable[str]) -> None:
        self.own = frozenset(filter(is_word, own))
        self.words = self.own | english_words()
        self._ordered = sorted(self.words)

    def changes(self, words: Sequence[str], others: Iterable[Sequence[str]] = ()) -> list[Change]:
        """Return the changes of a transcript of ``words`` that may be right, each once.

        ``others`` are further transcripts of the recording.
        """
        found = [*self._single(words), *self._joined(words), *_of_others(words, others)]
        return list(dict.fromkeys(found))

    def similar(self, word: str, most: int = SIMILAR) -> list[str]:
        """Return up to ``most`` words that differ from ``word`` in few letters, the most similar first.

        The list is empty for a word of the LLM, and for what is no word of three letters or more. Words of up to four
        letters may differ in one of them, words of up to seven in two, and others in three.
        """
        if not is_word(word) or word in self.own:
            return []
        letters = 1 if len(word) <= 4 else 2 if len(word) <= 7 else 3
        found = process.extract(word, self._ordered, scorer=Levenshtein.distance, score_cutoff=letters, limit=most + 1)
        return [similar for similar, *_ in found if similar != word][:most]

    def parts(self, word: str) -> list[str]:
        """Return the pairs of words that ``word`` consists of if it is none itself: "quick manipulation"."""
        if word in self.words:
            return []
        pairs = ((word[:place], word[place:]) for place in range(1, len(word)))
        return [" ".join(pair) for pair in pairs if self.words.issuperset(pair)]

    def _single(self, words: Sequence[str]) -> Iterator[Change]:
        for place, word in enumerate(words):
            for other in (*self.similar(word), *self.parts(word)):
                yield Change(place, place + 1, other)

    def _joined(self, words: Sequence[str]) -> Iterator[Change]:
        for place, pair in enumerate(pairwise(words)):
            if "".join(pair) in self.words:
                yield Change(place, place + 2, "".join(pair))


def changed(words: Sequence[str], changes: Iterable[Change]) -> str:
    """Return the text of ``words`` with ``changes``, none of which may overlap."""
    out = list(words)
    for change in sorted(changes, reverse=True):
        out[change.start : change.end] = change.words.split()
    return " ".join(out)


def apart(changes: Iterable[Change]) -> list[Change]:
    """Return the ``changes`` that do not overlap with an earlier one of them."""
    kept: list[Change] = []
    for change in changes:
        if all(change.end <= other.start or other.end <= change.start for other in kept):
            kept.append(change)
    return kept


def _of_others(words: Sequence[str], others: Iterable[Sequence[str]]) -> Iterator[Change]:
    """Yield each place where one of ``others`` differs."""
    for other in others:
        for kind, start, end, first, last in SequenceMatcher(None, words, other, autojunk=False).get_opcodes():
            if kind != "equal":
                yield Change(start, end, " ".join(other[first:last]))


def is_word(text: str) -> bool:
    """Return True if ``text`` has three letters or more, and nothing else."""
    return len(text) > 2 and text.isalpha()


@cache
def english_words() -> frozenset[str]:
    """Return the English words of three letters or more that pyspellchecker knows; none if it is not installed."""
    try:
        spellchecker = import_module("spellchecker")
    except ImportError:
        return frozenset()
    return frozenset(filter(is_word, spellchecker.SpellChecker(language="en").word_frequency.words()))
