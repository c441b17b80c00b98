"""Write the lines of stage 2 and of its tests: recognition, questions about sentences, and unseen instructions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ossicle.batch import Sample
from ossicle.prompts import ASR_INSTRUCTIONS
from ossicle_lab.real.recordings import words_of

WORDS = "qa-words"
"""Task of questions about recorded sentences, so that they have a score of their own beside passages."""
FEWEST_WORDS = 4
"""Shortest sentence that questions are asked about."""
CONTENT_LETTERS = 4
"""Smallest number of letters of a word that is asked for with yes or no."""


def recognition(samples: Iterable[Sample], seed: int = 0) -> list[Sample]:
    """Return a recognition line for each sample, with an instruction that is drawn from `ASR_INSTRUCTIONS`."""
    rng = random.Random(seed)
    return [_line(s, "asr", rng.choice(ASR_INSTRUCTIONS), s.text or "", suffix="") for s in samples]


def recognition_test(samples: Iterable[Sample]) -> list[Sample]:
    """Return a recognition line for each sample, all with the same instruction."""
    return [_line(s, "asr", ASR_INSTRUCTIONS[0], s.text or "", suffix="") for s in samples]


def questions(samples: Sequence[Sample], count: int, seed: int = 0) -> list[Sample]:
    """Return ``count`` questions about sentences of ``samples`` whose answers follow from the words.

    The kinds of `QUESTIONS` take turns. No sentence is asked twice for the same kind, so there may be fewer questions.
    """
    rng = random.Random(seed)
    usable = [sample for sample in samples if len(_words(sample)) >= FEWEST_WORDS]
    usable = rng.sample(usable, len(usable))
    others = sorted({word for sample in usable for word in _words(sample) if len(word) >= CONTENT_LETTERS})
    kinds, asked = list(QUESTIONS), []
    for number in range(min(count, len(usable) * len(kinds)) if others else 0):
        turn, place = divmod(number, len(usable))
        kind = kinds[(place + turn) % len(kinds)]
        question, answer = QUESTIONS[kind](_words(usable[place]), others, rng)
        asked.append(_line(usable[place], WORDS, question, answer, suffix=f"-{kind}"))
    return asked


def unseen(samples: Sequence[Sample], count: int, seed: int = 0) -> list[Sample]:
    """Return ``count`` lines of each kind of `UNSEEN`, instructions that no training line has.

    The kind is the task of the line, so that each has a score of its own.
    """
    usable = [sample for sample in samples if len(_words(sample)) >= FEWEST_WORDS]
    drawn = random.Random(seed).sample(usable, min(count, len(usable)))
    return [
        _line(sample, kind, instruction, answer(sample.text or ""), suffix=f"-{kind}")
        for kind, (instruction, answer) in UNSEEN.items()
        for sample in drawn
    ]


Rule = Callable[[list[str], Sequence[str], random.Random], tuple[str, str]]
"""Function of a sentence's words, words of other sentences and a random generator: a question and its answer."""


def _next(words: list[str], others: Sequence[str], rng: random.Random) -> tuple[str, str]:
    single = [place for place, word in enumerate(words[:-1]) if words.count(word) == 1]
    place = rng.choice(single or [len(words) - 2])
    return f'Which word comes after "{words[place]}"?', words[place + 1]


def _heard(words: list[str], others: Sequence[str], rng: random.Random) -> tuple[str, str]:
    content = [word for word in words if len(word) >= CONTENT_LETTERS] or words
    absent = rng.choice(others)
    word = rng.choice(content) if rng.random() < 0.5 or absent in words else absent
    return f'Is the word "{word}" in the sentence? Answer yes or no.', "Yes" if word in words else "No"


def _first(words: list[str], others: Sequence[str], rng: random.Random) -> tuple[str, str]:
    return "What is the first word?", words[0]


def _last(words: list[str], others: Sequence[str], rng: random.Random) -> tuple[str, str]:
    return "What is the last word?", words[-1]


QUESTIONS: dict[str, Rule] = {"next": _next, "heard": _heard, "first": _first, "last": _last}
"""Kinds of questions about recorded sentences."""
UNSEEN: dict[str, tuple[str, Callable[[str], str]]] = {
    "capitals": ("Write it in capital letters.", str.upper),
    "count": (
        "How many words are in the sentence? Answer with a number.",
        lambda text: str(len(words_of(text).split())),
    ),
}
"""Instructions that are never trained from speech, with the rule of the answer."""


def _words(sample: Sample) -> list[str]:
    """Return the words of a sample's text, or none if it has digits, which may be spoken as any number of words."""
    text = sample.text or ""
    return [] if any(map(str.isdigit, text)) else words_of(text).split()


def _line(sample: Sample, task: str, instruction: str, answer: str, *, suffix: str) -> Sample:
    return replace(
        sample,
        id=f"{sample.id}{suffix}",
        task=task,
        instruction=instruction,
        answers=(answer,),
        target_language=sample.language,
    )
