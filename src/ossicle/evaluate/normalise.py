"""What is done to texts before their words are compared. By name, so that a score can say which it was."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

NORMALISERS = ("none", "basic", "whisper")


@dataclass(frozen=True)
class Normaliser:
    """A function of a text, and what signatures call it."""

    apply: Callable[[str], str]
    signature: str


def normaliser(name: str = "basic", language: str | None = None, spelling: Path | None = None) -> Normaliser:
    """The normaliser ``name`` for texts in ``language`` (ISO 639-1).

    ``whisper`` is the one of OpenAI's Whisper, from transformers: for English it also writes numbers in figures and
    contractions in full, for other languages it only removes case, brackets and symbols. ``spelling`` is the
    ``normalizer.json`` that every Whisper checkpoint holds, which makes British spellings American; without it they
    stay, and the signature says ``spelling:none``.

    Raises:
        ValueError: no such normaliser, or ``spelling`` is not such a file.
    """
    if name == "none":
        return Normaliser(lambda text: text, "norm:none")
    if name == "basic":
        return Normaliser(normalise_basic, "norm:basic")
    if name != "whisper":
        raise ValueError(f"no normaliser {name!r}: choose one of {', '.join(NORMALISERS)}")
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if language != "en":
        basic = BasicTextNormalizer()
        return Normaliser(lambda text: basic(text).strip(), "norm:whisper-basic")
    mapping = {} if spelling is None else _spelling(spelling)
    english = EnglishTextNormalizer(mapping)
    known = f"{len(mapping)} words" if mapping else "none"
    return Normaliser(lru_cache(1 << 16)(lambda text: english(text).strip()), f"norm:whisper-english|spelling:{known}")


def normalise_basic(text: str) -> str:
    """Lower-case, NFKC, no punctuation or symbols, single spaces.

    An apostrophe between two letters stays ("don't"); any other mark becomes a space ("well-known" is two words).
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    padded = f" {text} "
    spoken = (
        char if _is_spoken(before, char, after) else " "
        for before, char, after in zip(padded, padded[1:], padded[2:], strict=False)
    )
    return " ".join("".join(spoken).split())


def _is_spoken(before: str, char: str, after: str) -> bool:
    if char == "'":
        return before.isalnum() and after.isalnum()
    return unicodedata.category(char)[0] not in "PS"


def _spelling(path: Path) -> Mapping[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); give the normalizer.json of a Whisper checkpoint"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise ValueError(f"{path}: expected a JSON object of words; give the normalizer.json of a Whisper checkpoint")
    return found
