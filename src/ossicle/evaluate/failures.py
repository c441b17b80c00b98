"""Count how often answers fail in typical ways, by simple rules. A rate counts only the lines that a rule can judge.

Looping, prompt echo, untranslated and refusal are not counted if a reference of the line breaks the same rule.

- empty: the answer has no letter or digit.
- looping: a phrase of 1-10 words is repeated 4 times in a row, or 1-4 letters 10 times.
- prompt echo: the answer contains the instruction (3 words or more) or a chat marker such as ``<|``.
- untranslated: the answer shares 80% of its words (F1) with the transcript. The rule judges translations whose
  transcript is known.
- wrong language: py3langid identifies another language with a probability of at least 90%, and identifies the language
  of a reference correctly. The rule judges answers of 20 letters or more whose language is known. Candidates are
  `LANGUAGES` and the languages of the line, because single sentences are easily mistaken for rare languages.
- refusal: the answer begins with one of `REFUSALS`.
- too long: the answer is over 3 times as long as its longest reference, and over 50 characters longer.
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
from ossicle.evaluate.normalise import normalise_basic, words
from ossicle.languages import language_code

MAX_EXAMPLES = 5
LANGUAGE_HELP = "failures of the kind wrong language were not counted: run pip install 'ossicle[score]' for py3langid"
LANGUAGES = frozenset(
    {"ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it"}
    | {"ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "th", "tr", "uk", "vi", "zh"}
)
MIN_PROBABILITY = 0.9
MIN_LETTERS = 20
CHAT_MARKERS = ("<|", "|>", "[inst]", "[/inst]", "<s>", "</s>")
REFUSALS = (
    *("i'm sorry", "i am sorry", "sorry i", "i cannot", "i can't", "i can not", "i'm unable"),
    *("i am unable", "i'm not able", "i am not able", "as an ai", "as a language model", "i don't have access"),
    *("es tut mir leid", "ich kann nicht", "ich kann leider", "als ki", "lo siento", "no puedo", "je suis désolé"),
    *("désolé", "je ne peux pas", "mi dispiace", "non posso"),
)
"""First words of a refusal, after `normalise_basic`."""
_REFUSAL = re.compile("|".join(rf"{re.escape(start)}\b" for start in REFUSALS))


@dataclass(frozen=True)
class Failure:
    """Number of lines that one rule finds."""

    name: str
    applicable: int
    """Lines that the rule can judge."""
    count: int
    """Lines that fail."""
    examples: list[str] = field(default_factory=list)
    """Ids of the first lines that fail, at most `MAX_EXAMPLES`."""

    @property
    def rate(self) -> float:
        """Percentage of failing lines among those that the rule can judge; 0 if there are none."""
        return 100 * self.count / self.applicable if self.applicable else 0.0


def failures(lines: Sequence[Hypothesis]) -> list[Failure]:
    """Apply each of `RULES` to the lines and return the counts. One line can fail in several ways."""
    found = []
    for name, rule in RULES.items():
        verdicts = [(line.id, rule(line)) for line in lines]
        failed = [identifier for identifier, verdict in verdicts if verdict]
        judged = sum(verdict is not None for _, verdict in verdicts)
        found.append(Failure(name, judged, len(failed), failed[:MAX_EXAMPLES]))
    return found


def add_failures(first: Sequence[Failure], second: Sequence[Failure]) -> list[Failure]:
    """Return the failures of lines that are followed by others, from those of both."""
    return [
        Failure(
            one.name,
            one.applicable + other.applicable,
            one.count + other.count,
            [*one.examples, *other.examples][:MAX_EXAMPLES],
        )
        for one, other in zip(first, second, strict=True)
    ]


def can_identify_languages() -> bool:
    """Return True if py3langid is installed."""
    return find_spec("py3langid") is not None


@lru_cache(maxsize=1)
def known_languages() -> frozenset[str]:
    """Return the languages that can be identified, as ISO 639-1 codes; none without py3langid."""
    return frozenset(_identifier().labels) if can_identify_languages() else frozenset()


def is_empty(line: Hypothesis) -> bool:
    """Return True if the answer has no letter or digit."""
    return not normalise_basic(line.hypothesis)


def is_looping(line: Hypothesis) -> bool:
    """Return True if the answer repeats a phrase, and no reference does."""
    return _loops(line.hypothesis) and not any(map(_loops, line.references))


def is_echo(line: Hypothesis) -> bool:
    """Return True if the answer contains the instruction or a chat marker, and no reference does."""
    return _echoes(line.hypothesis, line) and not any(_echoes(text, line) for text in line.references)


def is_untranslated(line: Hypothesis) -> bool | None:
    """Return True if a translation repeats the transcript; None if the line is no translation or has no transcript."""
    _, spoken, target = line.group
    if language_code(target) == language_code(spoken) or not normalise_basic(line.text or ""):
        return None
    alike = [_overlap(text, line.text or "") >= 0.8 for text in (line.hypothesis, *line.references)]
    return alike[0] and not any(alike[1:])


def is_wrong_language(line: Hypothesis) -> bool | None:
    """Return True if the answer is in another language than asked for; None if the rule cannot judge the line."""
    wanted, spoken = language_code(line.target_language or line.language), language_code(line.language)
    known = known_languages()
    if wanted is None or wanted not in known or sum(map(str.isalpha, line.hypothesis)) < MIN_LETTERS:
        return None
    candidates = (LANGUAGES | {wanted, spoken or wanted}) & known
    language, probability = _identify(line.hypothesis, candidates)
    if language == wanted or probability < MIN_PROBABILITY:
        return False
    # references that consist of names mislead the identifier, and so would a correct answer
    return any(_identify(text, candidates)[0] == wanted for text in line.references)


def is_refusal(line: Hypothesis) -> bool:
    """Return True if the answer begins like a refusal, and no reference does."""
    return _refuses(line.hypothesis) and not any(map(_refuses, line.references))


def is_too_long(line: Hypothesis) -> bool:
    """Return True if the answer is much longer than its longest reference."""
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
"""Name -> rule, which returns True for a failure and None for a line that it cannot judge."""


def _loops(text: str) -> bool:
    found = normalise_basic(text).split()
    letters = [char for char in text if char.isalpha()]
    return _repeats(found, longest=10, times=4) or _repeats(letters, longest=4, times=10)


def _repeats(units: Sequence[str], longest: int, times: int) -> bool:
    """Return True if a sequence of 1 to ``longest`` units is repeated ``times`` times in a row."""
    for size in range(1, longest + 1):
        run = 0  # length of the current stretch in which each unit equals the one ``size`` units before it
        for unit, before in zip(units[size:], units, strict=False):
            run = run + 1 if unit == before else 0
            if run == size * (times - 1):
                return True
    return False


def _echoes(text: str, line: Hypothesis) -> bool:
    if any(marker in text.lower() for marker in CHAT_MARKERS):
        return True
    prompt = words(line.instruction or "")
    return len(prompt) >= 3 and f" {' '.join(prompt)} " in f" {' '.join(words(text))} "


def _refuses(text: str) -> bool:
    return re.match(_REFUSAL, normalise_basic(text)) is not None


def _overlap(first: str, second: str) -> float:
    """Return the F1 score of the words of two texts, 0-1."""
    mine, other = words(first), words(second)
    if not mine or not other:
        return 0.0
    return 2 * sum((Counter(mine) & Counter(other)).values()) / (len(mine) + len(other))


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=8)
def _restricted_identifier(candidates: frozenset[str]) -> Any:
    """Return an identifier for ``candidates``. It is cached, because restricting takes far longer than identifying."""
    identifier = copy.copy(_identifier())
    identifier.set_languages(candidates)
    return identifier


@lru_cache(maxsize=4096)
def _identify(text: str, candidates: frozenset[str]) -> tuple[str, float]:
    """Return the most probable of ``candidates`` and its probability."""
    language, probability = _restricted_identifier(candidates).classify(text)
    return str(language), float(probability)
