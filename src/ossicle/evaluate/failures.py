"""How answers go wrong, by simple rules that a reader can check. A rate counts only the lines that a rule can judge.

- empty: there is no letter or digit in it.
- looping: some phrase of 1-10 words stands 4 times in a row, or 1-4 letters stand 10 times, and in no reference.
- prompt echo: the instruction (3 words or more) or a chat marker such as ``<|`` is in it, and in no reference.
- untranslated: it shares 80% of its words (F1) with the transcript, and no reference does. Judges translations whose
  transcript is known.
- wrong language: py3langid is 90% sure that it is in another language, and takes a reference for the right one.
  Judges answers of 20 letters or more, where the language is known. Only `LANGUAGES` and those of the line are
  candidates: rare languages that look like a common one would be found on single sentences.
- refusal: it begins with one of `REFUSALS`, and no reference does.
- too long: over 3 times as long as its longest reference, and over 50 characters longer.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from ossicle.evaluate.hypotheses import Hypothesis
from ossicle.evaluate.normalise import normalise_basic

EXAMPLES = 5
LANGUAGE_HELP = "wrong language was not looked for: it needs py3langid; pip install 'ossicle[score]'"
LANGUAGES = frozenset(
    {"ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it"}
    | {"ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "th", "tr", "uk", "vi", "zh"}
)
SURE = 0.9
LETTERS = 20
MARKERS = ("<|", "|>", "[inst]", "[/inst]", "<s>", "</s>")
REFUSALS = (
    *("i'm sorry", "i am sorry", "sorry i", "i cannot", "i can't", "i can not", "i'm unable"),
    *("i am unable", "i'm not able", "i am not able", "as an ai", "as a language model", "i don't have access"),
    *("es tut mir leid", "ich kann nicht", "ich kann leider", "als ki", "lo siento", "no puedo", "je suis désolé"),
    *("désolé", "je ne peux pas", "mi dispiace", "non posso"),
)
"""Beginnings, after `normalise_basic`."""


@dataclass(frozen=True)
class Failure:
    """How often one failure occurs."""

    name: str
    applicable: int
    """Lines that the rule can judge."""
    count: int
    examples: list[str] = field(default_factory=list)
    """The first few ids."""

    @property
    def rate(self) -> float:
        """Percentage of the lines that the rule can judge; 0 where there are none."""
        return 100 * self.count / self.applicable if self.applicable else 0.0


def failures(lines: Sequence[Hypothesis]) -> list[Failure]:
    """Every failure of `RULES` in turn; a line may have several."""
    found = []
    for name, rule in RULES.items():
        verdicts = [(line.id, rule(line)) for line in lines]
        failed = [identifier for identifier, verdict in verdicts if verdict]
        judged = sum(verdict is not None for _, verdict in verdicts)
        found.append(Failure(name, judged, len(failed), failed[:EXAMPLES]))
    return found


def can_identify() -> bool:
    """Whether py3langid is installed."""
    return find_spec("py3langid") is not None


def is_empty(line: Hypothesis) -> bool:
    """Nothing that could be read aloud."""
    return not normalise_basic(line.hypothesis)


def is_looping(line: Hypothesis) -> bool:
    """The same over and over."""
    return _loops(line.hypothesis) and not any(map(_loops, line.references))


def is_echo(line: Hypothesis) -> bool:
    """Repeats the prompt."""
    return _echoes(line.hypothesis, line) and not any(_echoes(text, line) for text in line.references)


def is_untranslated(line: Hypothesis) -> bool | None:
    """Repeats the speech where a translation was asked for; None where that cannot be told."""
    if line.target_language in (None, line.language) or not normalise_basic(line.text or ""):
        return None
    alike = [_overlap(text, line.text or "") >= 0.8 for text in (line.hypothesis, *line.references)]
    return alike[0] and not any(alike[1:])


def is_wrong_language(line: Hypothesis) -> bool | None:
    """Surely not in the language asked for; None where that cannot be told."""
    wanted = line.target_language or line.language
    known = _known_languages()
    if wanted not in known or sum(map(str.isalpha, line.hypothesis)) < LETTERS:
        return None
    candidates = (LANGUAGES | {wanted, line.language or wanted}) & known
    language, probability = _identify(line.hypothesis, candidates)
    if language == wanted or probability < SURE:
        return False
    # a reference full of names says as little about the language as the hypothesis would
    return any(_identify(text, candidates)[0] == wanted for text in line.references)


def is_refusal(line: Hypothesis) -> bool:
    """Declines to answer."""
    return _refuses(line.hypothesis) and not any(map(_refuses, line.references))


def is_too_long(line: Hypothesis) -> bool:
    """Goes on long after the answer."""
    longest = max(map(len, line.references))
    return len(line.hypothesis) > max(3 * longest, longest + 50)


RULES: dict[str, Callable[[Hypothesis], bool | None]] = {
    "empty": is_empty,
    "looping": is_looping,
    "prompt echo": is_echo,
    "untranslated": is_untranslated,
    "wrong language": is_wrong_language,
    "refusal": is_refusal,
    "too long": is_too_long,
}
"""Name -> rule: true, false, or None where it does not apply."""


def _loops(text: str) -> bool:
    words = normalise_basic(text).split()
    letters = [char for char in text if char.isalpha()]
    return _repeats(words, longest=10, times=4) or _repeats(letters, longest=4, times=10)


def _repeats(units: Sequence[str], longest: int, times: int) -> bool:
    """Whether up to ``longest`` units stand ``times`` times in a row, by how long each equals the one before it."""
    for size in range(1, longest + 1):
        run = 0
        for unit, before in zip(units[size:], units, strict=False):
            run = run + 1 if unit == before else 0
            if run == size * (times - 1):
                return True
    return False


def _echoes(text: str, line: Hypothesis) -> bool:
    if any(marker in text.lower() for marker in MARKERS):
        return True
    prompt = normalise_basic(line.instruction or "")
    return len(prompt.split()) >= 3 and f" {prompt} " in f" {normalise_basic(text)} "


def _refuses(text: str) -> bool:
    return re.match(_REFUSAL, normalise_basic(text)) is not None


_REFUSAL = re.compile("|".join(rf"{re.escape(start)}\b" for start in REFUSALS))


def _overlap(first: str, second: str) -> float:
    """F1 of their words, 0-1."""
    mine, other = normalise_basic(first).split(), normalise_basic(second).split()
    if not mine or not other:
        return 0.0
    return 2 * sum((Counter(mine) & Counter(other)).values()) / (len(mine) + len(other))


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def _known_languages() -> frozenset[str]:
    """What can be identified; nothing without py3langid."""
    return frozenset(_identifier().labels) if can_identify() else frozenset()


@lru_cache(maxsize=8)
def _among(candidates: frozenset[str]) -> Any:
    """An identifier of these languages, all of them known; to restrict one takes far longer than to ask it."""
    identifier = copy.copy(_identifier())
    identifier.set_languages(candidates)
    return identifier


@lru_cache(maxsize=4096)
def _identify(text: str, candidates: frozenset[str]) -> tuple[str, float]:
    """The likeliest of ``candidates`` and its probability among them."""
    language, probability = _among(candidates).classify(text)
    return str(language), float(probability)
