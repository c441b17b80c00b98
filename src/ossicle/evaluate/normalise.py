"""Normalise texts before their words are compared. Each normaliser has a name that the score reports."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ossicle.errors import ConfigError, DataError

NORMALISERS = ("none", "basic", "whisper")
"""Names that `normaliser` accepts."""


@dataclass(frozen=True)
class Normaliser:
    """A function that normalises a text, and its name in signatures."""

    apply: Callable[[str], str]
    signature: str


def normaliser(name: str = "basic", language: str | None = None, spelling: Path | None = None) -> Normaliser:
    """Return the normaliser ``name`` for texts in ``language``.

    Args:
        name: ``none``, ``basic`` (`normalise_basic`) or ``whisper``, OpenAI's normaliser as transformers implements it.
            For English, ``whisper`` also writes numbers as figures and expands contractions. For other languages it
            only removes case, brackets and symbols.
        language: ISO 639-1 code.
        spelling: ``normalizer.json`` of a Whisper checkpoint, which maps British spellings to American ones. Without
            it British spellings stay, and the signature has ``spelling:none``.

    Raises:
        ConfigError: ``name`` is unknown.
        DataError: ``spelling`` is not such a file.
    """
    if name == "none":
        return Normaliser(lambda text: text, "norm:none")
    if name == "basic":
        return Normaliser(normalise_basic, "norm:basic")
    if name != "whisper":
        raise ConfigError(f"no normaliser {name!r}: choose one of {', '.join(NORMALISERS)}")
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    if language != "en":
        basic = BasicTextNormalizer()
        return Normaliser(lambda text: basic(text).strip(), "norm:whisper-basic")
    mapping = {} if spelling is None else _spelling(spelling)
    english = EnglishTextNormalizer(mapping)
    known = f"{len(mapping)} words" if mapping else "none"
    return Normaliser(lru_cache(1 << 16)(lambda text: english(text).strip()), f"norm:whisper-english|spelling:{known}")


def normalise_basic(text: str) -> str:
    """Return the text in lower case and NFKC, without punctuation and symbols, with single spaces.

    An apostrophe between two letters stays ("don't"). Any other mark becomes a space, so "well-known" is two words.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    padded = f" {text} "
    kept = (
        char if _is_kept(before, char, after) else " "
        for before, char, after in zip(padded, padded[1:], padded[2:], strict=False)
    )
    return " ".join("".join(kept).split())


def _is_kept(before: str, char: str, after: str) -> bool:
    if char == "'":
        return before.isalnum() and after.isalnum()
    return unicodedata.category(char)[0] not in "PS"


def _spelling(path: Path) -> Mapping[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); give the normalizer.json of a Whisper checkpoint"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise DataError(f"{path}: expected a JSON object of words; give the normalizer.json of a Whisper checkpoint")
    return found
