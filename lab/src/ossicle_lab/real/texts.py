"""Read and split real text: Multi30k and Tatoeba for translation, XQuAD and Spoken-SQuAD for questions.

Texts that are spoken are normalised to lower-case words; translations stay as they are. No test text is in the training
data: Multi30k has its own test set, Tatoeba is split by sentence, and questions are split by article. Training
sentences are left out if their English or a translation is in the test set.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluate.metrics import normalise_basic

MULTI30K = "parallel/multi30k_en-de-fr-cs.{split}.jsonl"
TATOEBA = "parallel/tatoeba_en-{language}.jsonl"
XQUAD = "qa/xquad_en.jsonl"
SPOKEN_SQUAD = "qa/spoken_squad_test.jsonl"
MULTI30K_LANGUAGES = ("de", "fr")
LANGUAGES = ("de", "fr", "es")
SENTENCE = re.compile(r"[a-z' ]+")
"""Sentences that the lab's encoder can spell."""
PASSAGE = re.compile(r"[a-z0-9' ]+")
"""Passages may also have digits, which espeak-ng reads."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class TextSizes:
    """Sizes of the corpus. The LLM trains on all texts; these limit what is spoken and tested."""

    min_words: int = 3
    """Smallest number of English words in a sentence."""
    max_words: int = 10
    """Largest number of English words in a sentence."""
    passage_words: int = 30
    """Largest number of words in a passage."""
    multi30k: int = 3000
    """Number of training sentences of Multi30k that are spoken."""
    tatoeba: int = 2000
    """Number of training sentences of Tatoeba that are spoken, for each language."""
    passages: int = 700
    """Number of training passages of XQuAD that are spoken."""
    test_multi30k: int = 200
    """Number of test sentences of Multi30k."""
    test_tatoeba: int = 100
    """Number of test sentences of Tatoeba, for each language."""
    test_articles: int = 12
    """Number of XQuAD's articles that are kept for the test."""
    test_passages: int = 150
    """Largest number of test passages."""


@dataclass(frozen=True)
class Sentence:
    """An English sentence and its translations by language."""

    id: str
    text: str
    translations: Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers."""

    id: str
    text: str
    answers: tuple[str, ...]


@dataclass
class Passage:
    """A sentence of an article with the questions that it answers."""

    article: str
    text: str
    questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True)
class Texts:
    """All texts by corpus and split. Fields without ``test`` are training texts."""

    multi30k: list[Sentence]
    tatoeba: dict[str, list[Sentence]]
    passages: list[Passage] = field(default_factory=list)
    heard: list[Passage] = field(default_factory=list)
    """Passages of Spoken-SQuAD, which are transcripts by a recogniser. They train the LLM and are not spoken."""
    recorded: list[Sentence] = field(default_factory=list)
    """Sentences that the training speakers of recordings read, without translations."""
    test_multi30k: list[Sentence] = field(default_factory=list)
    test_tatoeba: list[Sentence] = field(default_factory=list)
    test_passages: list[Passage] = field(default_factory=list)

    @property
    def train_sentences(self) -> list[Sentence]:
        """Return the training sentences of all corpora."""
        return [*self.multi30k, *(sentence for part in self.tatoeba.values() for sentence in part), *self.recorded]

    @property
    def test_sentences(self) -> list[Sentence]:
        """Return the test sentences of both corpora."""
        return [*self.test_multi30k, *self.test_tatoeba]


def read_texts(source: Path, sizes: TextSizes, *, seed: int = 0) -> Texts:
    """Read and split the texts in ``source``. Raises `DataError` if a file is missing, invalid or too small."""
    rng = random.Random(f"real-text-{seed}")
    test_multi30k = _sample(_multi30k(source, "test2016", sizes), sizes.test_multi30k, rng, source, "Multi30k")
    multi30k, tatoeba = read_sentences(source, sizes)
    test_tatoeba = [
        sentence
        for language, part in tatoeba.items()
        for sentence in _sample(part, sizes.test_tatoeba, rng, source, f"Tatoeba en-{language}")
    ]
    tested = Tested.of([*test_multi30k, *test_tatoeba])
    passages = read_passages(source / XQUAD, sizes)
    articles = sorted({passage.article for passage in passages})
    if len(articles) <= sizes.test_articles:
        few = f"{len(articles)} articles are too few to test on {sizes.test_articles}"
        raise DataError(f"{source / XQUAD}: {few}; lower test_articles")
    kept = set(rng.sample(articles, sizes.test_articles))
    about_tested = [passage for passage in passages if passage.article in kept]
    return Texts(
        multi30k=[s for s in multi30k if s not in tested],
        tatoeba={language: [s for s in part if s not in tested] for language, part in tatoeba.items()},
        passages=[passage for passage in passages if passage.article not in kept],
        heard=[passage for passage in read_passages(source / SPOKEN_SQUAD, sizes) if passage.article not in kept],
        test_multi30k=test_multi30k,
        test_tatoeba=test_tatoeba,
        test_passages=rng.sample(about_tested, min(sizes.test_passages, len(about_tested))),
    )


def read_sentences(source: Path, sizes: TextSizes) -> tuple[list[Sentence], dict[str, list[Sentence]]]:
    """Return the training sentences of Multi30k, and those of Tatoeba by language.

    Raises `DataError` if a file is missing or invalid.
    """
    multi30k = [s for split in ("train", "val") for s in _multi30k(source, split, sizes)]
    return multi30k, {language: list(_tatoeba(source, language, sizes)) for language in LANGUAGES}


@dataclass(frozen=True)
class Tested:
    """The normalised texts of the test set in all languages, which no training sentence may contain."""

    texts: frozenset[str]

    @classmethod
    def of(cls, sentences: Sequence[Sentence]) -> Tested:
        """Collect the texts of ``sentences``."""
        return cls(frozenset(text for sentence in sentences for text in cls._all(sentence)))

    def __contains__(self, sentence: Sentence) -> bool:
        return not self.texts.isdisjoint(self._all(sentence))

    @staticmethod
    def _all(sentence: Sentence) -> list[str]:
        return [sentence.text, *map(normalise_basic, sentence.translations.values())]


def read_passages(path: Path, sizes: TextSizes) -> list[Passage]:
    """Return the sentences of ``path`` that contain the answer to a question, each once with all its questions.

    A context is cut to the sentence with the first answer.
    """
    found: dict[tuple[str, str], Passage] = {}
    for record in _records(path, ("id", "title", "context", "question", "answer", "answer_start")):
        text = normalise_basic(sentence_at(record["context"], record["answer_start"]))
        answers = [record["answer"], *record.get("answers", [])]
        held = tuple(dict.fromkeys(a for a in map(normalise_basic, answers) if a and f" {a} " in f" {text} "))
        question = normalise_basic(record["question"])
        if not held or not question or not PASSAGE.fullmatch(text) or len(text.split()) > sizes.passage_words:
            continue
        passage = found.setdefault((record["title"], text), Passage(record["title"], text))
        if all(question != asked.text for asked in passage.questions):
            passage.questions.append(Question(record["id"], question, held))
    return list(found.values())


def sentence_at(context: str, position: int) -> str:
    """Return the sentence of ``context`` that contains the character at ``position``."""
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(context))]
    start = max(start for start in starts if start <= position)
    end = next((other for other in starts if other > position), len(context))
    return context[start:end].strip()


def _multi30k(source: Path, split: str, sizes: TextSizes) -> list[Sentence]:
    path = source / MULTI30K.format(split=split)
    return list(_sentences(path, MULTI30K_LANGUAGES, sizes))


def _tatoeba(source: Path, language: str, sizes: TextSizes) -> Iterator[Sentence]:
    seen = set()
    for sentence in _sentences(source / TATOEBA.format(language=language), (language,), sizes):
        if sentence.text not in seen:  # some differ in punctuation only
            seen.add(sentence.text)
            yield sentence


def _sentences(path: Path, languages: Sequence[str], sizes: TextSizes) -> Iterator[Sentence]:
    for record in _records(path, ("id", "en", *languages)):
        text = normalise_basic(record["en"])
        if SENTENCE.fullmatch(text) and sizes.min_words <= len(text.split()) <= sizes.max_words:
            yield Sentence(record["id"], text, {code: " ".join(record[code].split()) for code in languages})


def _records(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give the folder of texts that has parallel/ and qa/")
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: invalid JSON ({error}); fix or remove the line") from error
            missing = [name for name in fields if name not in record]
            if missing:
                raise DataError(f"{path}:{number}: has no {missing[0]!r}; expected {', '.join(fields)}")
            yield record


def _sample(sentences: Sequence[Sentence], count: int, rng: random.Random, source: Path, what: str) -> list[Sentence]:
    if len(sentences) < count:
        raise DataError(f"{source}: {what} has {len(sentences)} sentences that can be spoken; {count} were asked for")
    return rng.sample(sentences, count)
