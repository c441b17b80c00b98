"""Ask tasks about a passage: instruction and answers are computed from its content.

``asr``, ``st`` and ``qa`` are tasks of the paper. The others train the LLM to do more with a passage than to copy it.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ossicle_lab.world.grammar import Language, Phrase, Sentence, render
from ossicle_lab.world.passages import Passage

_LANGUAGE_NAMES = {"de": "german", "es": "spanish"}
_REPEAT = ("repeat the text", "repeat what was said", "write down what you hear")
_TRANSLATE = ("translate to {}", "say it in {}", "what is it in {}")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Task:
    """An instruction, which follows the passage in the user turn, and its correct answers."""

    task: str
    instruction: str
    answers: tuple[str, ...]
    target_language: Language = "en"


def ask(passage: Passage, task: str, rng: random.Random, target_language: Language = "de") -> Task | None:
    """Return a task about the passage, or None where it does not apply (no time to put first, no synonym, ...).

    Args:
        passage: the passage.
        task: one of `TASKS`.
        rng: chooses the wording and the sentence that is asked about.
        target_language: language of the answer of ``st``; ignored by other tasks.
    """
    if task == "st":
        wording = rng.choice(_TRANSLATE).format(_LANGUAGE_NAMES[target_language])
        return Task("st", wording, (passage.translation(target_language),), target_language)
    if task == "qa":
        items = questions(passage)
        # Draw the kind first, then the sentence: "who" applies to every sentence and would dominate otherwise.
        kind = rng.choice(sorted({item.instruction.split()[0] for item in items}))
        return rng.choice([item for item in items if item.instruction.startswith(kind)])
    return _BUILDERS[task](passage, rng)


def questions(passage: Passage) -> list[Task]:
    """Return every who, what, where and when question about the passage, each with its only answer."""
    return [Task("qa", question, (answer,)) for s in passage.sentences for question, answer in _sentence_questions(s)]


def _sentence_questions(sentence: Sentence) -> Iterator[tuple[str, str]]:
    """Yield questions with their answers. Questions name persons without adjectives, and things with "the"."""
    subject, target = _plain(sentence.subject), replace(sentence.object, definite=True).english()
    base = sentence.verb_form(2)
    yield f"who {sentence.verb_form(0)} {target}", sentence.subject.english()
    if sentence.object.noun.kind != "p":
        yield f"what did {subject} {base}", sentence.object.english()
    if sentence.where:
        yield f"where did {subject} {base} {target}", sentence.where.english()
    if sentence.when:
        yield f"when did {subject} {base} {target}", sentence.when.english


def _plain(phrase: Phrase) -> str:
    return replace(phrase, adjective=None, definite=True).english()


def _repeat(passage: Passage, rng: random.Random) -> Task:
    return Task("asr", rng.choice(_REPEAT), (passage.text,))


def _echo(passage: Passage, rng: random.Random) -> Task:
    """Ask for the sentence about a subject: a look-up by key with a long answer."""
    sentence = rng.choice(passage.sentences)
    key = rng.choice((_plain(sentence.subject), replace(sentence.object, adjective=None, definite=True).english()))
    return Task("echo", f"say the sentence about {key}", (replace(sentence, connector="").text(),))


def _persons(passage: Passage, rng: random.Random) -> Task:
    return Task("persons", "name the people", (" and ".join(p.english() for p in _people(passage)),))


def _count(passage: Passage, rng: random.Random) -> Task:
    return Task("count", "how many people are there", (_NUMBERS[len(_people(passage))],))


def _backwards(passage: Passage, rng: random.Random) -> Task:
    return Task("backwards", "say it backwards", (" ".join(reversed(passage.text.split())),))


def _objects(passage: Passage, rng: random.Random) -> Task | None:
    names = [s.object.english() for s in passage.sentences if s.object.noun.kind != "p"]
    return Task("objects", "name the objects", (" and ".join(names),)) if names else None


def _places(passage: Passage, rng: random.Random) -> Task | None:
    names = [s.where.english() for s in passage.sentences if s.where]
    return Task("places", "name the places", (" and ".join(names),)) if names else None


def _time_first(passage: Passage, rng: random.Random) -> Task | None:
    moved = [replace(s, time_first=s.when is not None) for s in passage.sentences]
    return _rewritten("time_first", "put the time first", passage, moved)


def _present(passage: Passage, rng: random.Random) -> Task | None:
    if any(s.when and s.when.is_past for s in passage.sentences):
        return None
    present = [replace(s, present=True) for s in passage.sentences]
    return _rewritten("present", "say it in the present", passage, present)


def _paraphrase(passage: Passage, rng: random.Random) -> Task | None:
    return _rewritten("paraphrase", "use other words", passage, [s.with_synonyms() for s in passage.sentences])


def _rewritten(task: str, instruction: str, passage: Passage, sentences: list[Sentence]) -> Task | None:
    """Return the task with the rewritten text, or None if the text does not change."""
    text = render(sentences)
    return Task(task, instruction, (text,)) if text != passage.text else None


def _people(passage: Passage) -> list[Phrase]:
    """Return the people in the order in which the text names them."""
    phrases: list[Phrase] = []
    for s in passage.sentences:
        phrases += [p for p in (s.subject, s.object, s.recipient, s.companion) if p and p.noun.kind == "p"]
    return phrases


_BUILDERS: dict[str, Callable[[Passage, random.Random], Task | None]] = {
    "asr": _repeat,
    "echo": _echo,
    "persons": _persons,
    "count": _count,
    "objects": _objects,
    "places": _places,
    "time_first": _time_first,
    "present": _present,
    "paraphrase": _paraphrase,
    "backwards": _backwards,
}
TASKS = ("asr", "st", "qa", *(name for name in _BUILDERS if name != "asr"))
