"""Draw passages of one to three sentences in disjoint, seeded splits, and random word strings.

The hash of a sentence's core (who does what to what) decides its split, so no sentence is in two splits. No person,
verb, object, place or time occurs twice in a passage, so every question about it has one answer.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from ossicle_lab.world.grammar import Language, Phrase, Sentence, Where, render
from ossicle_lab.world.lexicon import (
    CONNECTORS,
    INVERTING,
    NAMES,
    OBJECTS,
    PEOPLE,
    PERSON_ADJECTIVES,
    PLACES,
    THING_ADJECTIVES,
    TIMES,
    VERBS,
    Adjective,
    Noun,
)

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
_FIRST_DEV_BUCKET, _FIRST_TEST_BUCKET, _BUCKETS = 80, 90, 100

_ADJECTIVE_SHARE = 0.35
_PERSON_ADJECTIVE_SHARE = 0.2
_COMPANION_SHARE = 0.12
_RECIPIENT_SHARE = 0.6
_PLACE_SHARE = 0.6
_TIME_SHARE = 0.6
_TIME_FIRST_SHARE = 0.3
_SYNONYM_SHARE = 0.4
_INDEFINITE_SHARE = 0.35
_NAME_SHARE = 0.55

Word = TypeVar("Word")


@dataclass(frozen=True)
class Passage:
    """A sequence of sentences, joined by their connectors."""

    sentences: tuple[Sentence, ...]

    @property
    def text(self) -> str:
        """Return the English words in lower case, without punctuation."""
        return render(self.sentences)

    def translation(self, language: Language) -> str:
        """Return the passage in German, Spanish or English."""
        return render(self.sentences, language)


def split_of(sentence: Sentence) -> Split:
    """Return the split of a sentence: 80% of all cores are in train, 10% in dev and 10% in test."""
    digest = hashlib.blake2s(sentence.core().encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "big") % _BUCKETS
    if bucket >= _FIRST_TEST_BUCKET:
        return "test"
    return "dev" if bucket >= _FIRST_DEV_BUCKET else "train"


def sample_passages(
    split: Split, count: int, *, seed: int = 0, max_sentences: int = 3, shares: Sequence[float] = ()
) -> list[Passage]:
    """Return ``count`` different passages of one to ``max_sentences`` sentences.

    The same arguments give the same passages, and a larger ``count`` extends the list of a smaller one.

    Args:
        split: the passages consist of sentences of this split.
        count: number of passages.
        seed: seed of the draw.
        max_sentences: largest number of sentences in a passage.
        shares: relative frequency of each number of sentences; by default all are equally frequent.
    """
    lengths = range(1, max_sentences + 1)
    rng = random.Random(f"{split}-{seed}-{max_sentences}")
    passages: dict[str, Passage] = {}
    while len(passages) < count:
        length = rng.choices(lengths, shares)[0] if shares else rng.randint(1, max_sentences)
        passage = random_passage(split, length, rng)
        passages.setdefault(passage.text, passage)
    return list(passages.values())


def random_passage(split: Split, sentences: int, rng: random.Random) -> Passage:
    """Draw a passage with ``sentences`` sentences of the split."""
    used: set[str] = set()
    drawn: list[Sentence] = []
    while len(drawn) < sentences:
        connector = rng.choice(tuple(CONNECTORS)) if drawn else ""
        tried = set(used)
        sentence = _random_sentence(rng, connector, tried)
        if split_of(sentence) == split:
            drawn.append(sentence)
            used = tried
    return Passage(tuple(drawn))


@cache
def vocabulary() -> tuple[str, ...]:
    """Return every English word that a passage can contain, sorted. The encoder learns to spell these."""
    words = {"a", "an", "the", "to", "with", "near", "behind", *CONNECTORS}
    for noun in (*NAMES, *PEOPLE, *OBJECTS, *(place.noun for place in PLACES)):
        words |= {noun.english, noun.synonym}
    for adjective in (*THING_ADJECTIVES, *PERSON_ADJECTIVES):
        words |= {adjective.english, adjective.synonym}
    for verb in VERBS:
        words |= {verb.english[0], verb.synonym[0] if verb.synonym else ""}
    for place in PLACES:
        words.add(place.english)
    for time in TIMES:
        words |= set(time.english.split())
    return tuple(sorted(words - {""}))


def word_strings(count: int, seed: int = 0, *, min_words: int = 3, max_words: int = 14) -> list[str]:
    """Return ``count`` strings of random words, which train the encoder without any sentence of the tasks."""
    rng = random.Random(f"words-{seed}")
    words = vocabulary()
    return [" ".join(rng.choices(words, k=rng.randint(min_words, max_words))) for _ in range(count)]


def _random_sentence(rng: random.Random, connector: str, used: set[str]) -> Sentence:
    """Draw a sentence without the content words in ``used``, and add its own content words to ``used``."""
    subject = _person(rng, used)
    verb = _fresh(rng, VERBS, used, lambda verb: verb.english[0])
    kinds = verb.objects + verb.objects.upper()
    if "p" in kinds and (kinds == "pP" or rng.random() < 0.5):
        target = _person(rng, used)
    else:
        noun = _fresh(rng, [noun for noun in OBJECTS if noun.kind in kinds], used, _english)
        definite = noun.kind.isupper() or rng.random() >= _INDEFINITE_SHARE
        adjective = _adjective(rng, THING_ADJECTIVES, used) if rng.random() < _ADJECTIVE_SHARE else None
        target = Phrase(noun, adjective, definite, rng.random() < _SYNONYM_SHARE)
    recipient = _person(rng, used) if verb.gives and rng.random() < _RECIPIENT_SHARE else None
    companion = _person(rng, used) if recipient is None and rng.random() < _COMPANION_SHARE else None
    where = _where(rng, used) if rng.random() < _PLACE_SHARE else None
    when = _fresh(rng, TIMES, used, lambda time: time.english) if rng.random() < _TIME_SHARE else None
    # "then yesterday tom saw" is not English: after such a connector the time stays at the end.
    time_first = when is not None and connector not in INVERTING and rng.random() < _TIME_FIRST_SHARE
    return Sentence(
        subject,
        verb,
        target,
        recipient,
        companion,
        where,
        when,
        connector,
        time_first,
        swapped=rng.random() < _SYNONYM_SHARE,
    )


def _person(rng: random.Random, used: set[str]) -> Phrase:
    if rng.random() < _NAME_SHARE:
        return Phrase(_fresh(rng, NAMES, used, _english))
    adjective = _adjective(rng, PERSON_ADJECTIVES, used) if rng.random() < _PERSON_ADJECTIVE_SHARE else None
    return Phrase(_fresh(rng, PEOPLE, used, _english), adjective, swapped=rng.random() < _SYNONYM_SHARE)


def _where(rng: random.Random, used: set[str]) -> Where:
    place = _fresh(rng, PLACES, used, lambda place: place.noun.english)
    relation = rng.choices(("home", "near", "behind"), (6, 2, 2))[0]
    return Where(place, relation, rng.random() < _SYNONYM_SHARE)


def _adjective(rng: random.Random, adjectives: Sequence[Adjective], used: set[str]) -> Adjective:
    return _fresh(rng, adjectives, used, lambda adjective: adjective.english)


def _english(noun: Noun) -> str:
    return noun.english


def _fresh(rng: random.Random, words: Sequence[Word], used: set[str], key: Callable[[Word], str]) -> Word:
    """Draw a word whose key is not in ``used``, and add the key to ``used``."""
    while True:
        word = rng.choice(words)
        if key(word) not in used:
            used.add(key(word))
            return word
