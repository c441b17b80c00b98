"""Normalise texts before they are compared. Each normaliser has a name that the score reports.

Every metric first applies `clean`, so that texts which look alike are alike. Error rates then apply a `Normaliser`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ossicle.errors import ConfigError, DataError
from ossicle.languages import language_code, split_unspaced

NORMALISERS = ("none", "basic", "whisper", "official")
"""Names that `normaliser` accepts. The normalisation ``open-asr`` has its own word error rate and is in
`ossicle.evaluate.open_asr`."""
_CACHED_TEXTS = 1 << 16
_TATWEEL = "\u0640"
_COMBINING_GRAPHEME_JOINER = "\u034f"
_VISIBLE_FORMATS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
_VARIATION_SELECTORS = ((0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_HANGUL_FILLERS = "\u115f\u1160\u3164\uffa0"
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02b9\u02bb\u02bc\u2032\u00b4`\uff07\u05f3", "'"))
_DOTTED_I = "i\u0307"
"""Lower case of the Turkish capital I with a dot, which is a plain i."""
_TURKISH_CAPITALS = str.maketrans({"I": "ı", "İ": "i"})
_ROUNDS = 8
"""Most rounds until lower case and NFKC of a text do not change it any more; two are enough for nearly all texts."""


@dataclass(frozen=True)
class Normaliser:
    """A function that normalises a text, and its name in signatures."""

    apply: Callable[[str], str]
    signature: str
    keeps_spaces: bool = False
    """True if every space counts in the character error rate, also in languages without spaces between words."""


def normaliser(name: str = "basic", language: str | None = None, spelling: Path | None = None) -> Normaliser:
    """Return the normaliser ``name`` for texts in ``language``.

    Args:
        name: one of

            - ``none``: nothing beyond `clean`.
            - ``basic``: `normalise_basic`.
            - ``whisper``: OpenAI's normaliser as transformers implements it. For English it also writes numbers as
              figures and expands contractions. For other languages it only removes case, brackets and symbols; unlike
              the original, it keeps combining marks, which are letters in many scripts.
            - ``official``: `normalise_official`, as in the paper's code.
        language: language tag, such as ``en`` or ``en-US``.
        spelling: ``normalizer.json`` of a Whisper checkpoint, which maps British spellings to American ones. Without
            it British spellings stay, and the signature has ``spelling:none``.

    Raises:
        ConfigError: ``name`` is unknown.
        DataError: ``spelling`` is not such a file.
    """
    code = language_code(language)
    if name == "none":
        return Normaliser(clean, "norm:none", keeps_spaces=True)
    if name == "basic":
        return Normaliser(lambda text: normalise_basic(text, code), "norm:basic")
    if name == "official":
        return Normaliser(normalise_official, "norm:official", keeps_spaces=True)
    if name != "whisper":
        raise ConfigError(f"no normaliser {name!r}: choose one of {', '.join(NORMALISERS)}")
    if code != "en":
        return Normaliser(_normalise_whisper_basic, "norm:whisper-basic")
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    mapping = {} if spelling is None else _spelling(spelling)
    english = EnglishTextNormalizer(mapping)
    known = f"{len(mapping)} words" if mapping else "none"
    return Normaliser(
        lru_cache(_CACHED_TEXTS)(lambda text: english(clean(text)).strip()), f"norm:whisper-english|spelling:{known}"
    )


@lru_cache(_CACHED_TEXTS)
def clean(text: str) -> str:
    """Return the text in NFC, without characters that cannot be seen.

    Removed are zero-width and directional characters, soft hyphens, variation selectors, the tatweel (which only
    stretches Arabic words), control characters and halves of surrogate pairs. Spaces of all kinds stay.
    """
    if text.isascii() and text.isprintable():
        return text
    text = "".join(char for char in text if not _is_invisible(char))
    return unicodedata.normalize("NFC", text)


@lru_cache(_CACHED_TEXTS)
def normalise_basic(text: str, language: str | None = None) -> str:
    """Return the text in lower case and NFKC, without punctuation and symbols, with single spaces.

    An apostrophe between two letters stays ("don't"). Any other mark becomes a space, so "well-known" is two words.
    ``language`` is a language code; Turkish (``tr``) and Azerbaijani (``az``) have their own lower case of I.
    """
    text = clean(text).translate(_APOSTROPHES)
    if language in ("tr", "az"):
        text = text.translate(_TURKISH_CAPITALS)
    for _ in range(_ROUNDS):
        folded = unicodedata.normalize("NFKC", clean(unicodedata.normalize("NFKC", text).lower()))
        folded = folded.replace(_DOTTED_I, "i").translate(_APOSTROPHES)
        if folded == text:
            break
        text = folded
    return _without_punctuation(text, keep_apostrophes=True)


def normalise_official(text: str) -> str:
    """Return the text in lower case without punctuation, as the paper's code does before WER and one of its BLEU.

    Punctuation is deleted: "well-known" is one word, "wellknown", and "don't" is "dont". Symbols stay.
    """
    kept = "".join(char for char in text.lower() if not unicodedata.category(char).startswith("P"))
    return re.sub(r"\s\s+", " ", kept.strip())


def words(text: str) -> list[str]:
    """Return the words of ``text`` after `normalise_basic`.

    Each character of a script without spaces between words, such as Chinese or Thai, is a word.
    """
    return split_unspaced(normalise_basic(text)).split()


def _normalise_whisper_basic(text: str) -> str:
    text = clean(text).lower()
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text)
    text = re.sub(r"\(([^)]+?)\)", "", text)
    for _ in range(_ROUNDS):
        folded = unicodedata.normalize("NFKC", clean(unicodedata.normalize("NFKC", text).lower()))
        folded = folded.replace(_DOTTED_I, "i")
        if folded == text:
            break
        text = folded
    return _without_punctuation(text, keep_apostrophes=False)


def _without_punctuation(text: str, *, keep_apostrophes: bool) -> str:
    """Replace punctuation and symbols by spaces, together with the combining marks on them."""
    kept: list[str] = []
    for place, char in enumerate(text):
        category = unicodedata.category(char)
        if char == "'" and keep_apostrophes:
            after = text[place + 1 : place + 2]
            stays = bool(kept) and (kept[-1].isalnum() or _is_mark(kept[-1])) and after.isalnum()
        elif category[0] == "M":
            stays = category != "Me" and bool(kept) and not kept[-1].isspace()
        else:
            stays = category[0] not in "PS"
        kept.append(char if stays else " ")
    return " ".join("".join(kept).split())


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"


@lru_cache(1 << 14)
def _is_invisible(char: str) -> bool:
    if char in _TATWEEL + _COMBINING_GRAPHEME_JOINER + _HANGUL_FILLERS:
        return True
    category = unicodedata.category(char)
    if category == "Cc":
        return not char.isspace()
    if category in ("Cf", "Cs"):
        return char not in _VISIBLE_FORMATS
    return any(first <= ord(char) <= last for first, last in _VARIATION_SELECTORS)


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
