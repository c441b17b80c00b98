"""Score English transcripts as the Open ASR Leaderboard does, with its own normaliser and its own alignment.

Its normaliser began as Whisper's and has further rules and tables of spellings, names and compounds. They are in no
package. They are therefore read from a clone of its repository, so that they are exactly those of the chosen revision.
Its word error rate is that of kaldialign, where two adjacent words match their compound ("white paper", "whitepaper").
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from ossicle.errors import ConfigError, DataError, MissingPackageError
from ossicle.evaluate.error_rates import cer
from ossicle.evaluate.normalise import Normaliser
from ossicle.evaluate.parts import Metric, References, Score, pairs, rate_parts, score_of
from ossicle.languages import language_code

OPEN_ASR = "open-asr"
"""Name of this normalisation."""
HOW_TO_GET_IT = (
    "run git clone https://github.com/huggingface/open_asr_leaderboard and give the folder with --leaderboard"
)
IGNORED_REFERENCE = "ignore time segment in scoring"
"""Normalised reference of a segment that the leaderboard leaves out of its test sets, as it does empty ones."""
_CACHED_TEXTS = 1 << 16


@dataclass(frozen=True)
class OpenASR:
    """The English scorer of one revision of the leaderboard."""

    normaliser: Normaliser
    """Normaliser of the leaderboard. Its signature has a hash of the code and the tables."""
    edit_distance: Callable[..., dict[str, Any]]
    """Function of kaldialign."""

    @classmethod
    def load(cls, folder: Path | None) -> OpenASR:
        """Load the normaliser from ``folder``, a clone of the leaderboard's repository. This runs code in the clone.

        Raises:
            ConfigError: ``folder`` is None.
            DataError: ``folder`` is no such clone, or its normaliser cannot be loaded.
            MissingPackageError: kaldialign is not installed.
        """
        if folder is None:
            raise ConfigError(
                f"the normalisation {OPEN_ASR} needs the tables of the Open ASR Leaderboard: {HOW_TO_GET_IT}"
            )
        try:
            from kaldialign import edit_distance
        except ImportError as error:
            raise MissingPackageError(
                f"the normalisation {OPEN_ASR} needs kaldialign: run pip install 'ossicle[score]'"
            ) from error
        return cls(_normaliser(folder.expanduser().resolve()), edit_distance)

    def wer(self, hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
        """Compute the leaderboard's word error rate, over the corpus.

        With several references, each utterance is scored against the one with the lowest error rate. An utterance is
        left out if its normalised reference is empty or `IGNORED_REFERENCE`. Raises `ConfigError` unless ``language``
        is English.
        """
        _check_english(language)
        counts = [self._best(hypothesis, accepted) for hypothesis, accepted in pairs(hypotheses, references)]
        errors, lengths = zip(*counts, strict=True)
        signature = f"{self.normaliser.signature}|merge_compounds|kaldialign:{version('kaldialign')}"
        return score_of(rate_parts(errors, lengths), f"level:corpus|{signature}")

    def cer(self, hypotheses: Sequence[str], references: References, language: str | None = None) -> Score:
        """Compute the character error rate after the leaderboard's normaliser, which has no such score itself.

        Raises as `wer`.
        """
        _check_english(language)
        return cer(hypotheses, references, language, normalise=self.normaliser)

    def _best(self, hypothesis: str, accepted: Sequence[str]) -> tuple[int, int]:
        """Return errors and reference words against the nearest reference."""
        said = self.normaliser.apply(hypothesis).split()
        right = [text.split() for text in map(self.normaliser.apply, accepted)]
        found = [
            self.edit_distance(words, said, merge_compounds=True)
            for words in right
            if words and words != IGNORED_REFERENCE.split()
        ]
        if not found:
            return 0, 0
        best = min(found, key=lambda each: each["total"] / each["ref_len"])
        return best["total"], best["ref_len"]


def with_open_asr(metrics: Mapping[str, Metric], folder: Path | None) -> Mapping[str, Metric]:
    """Return ``metrics`` by name with the leaderboard's error rates in place of others. Raises as `OpenASR.load`.

    The mean of the utterances' rates is left out, because the leaderboard has none.
    """
    if not {"wer", "cer"} & metrics.keys():
        return metrics
    scorer = OpenASR.load(folder)
    found: dict[str, Metric] = {"wer": scorer.wer, "cer": scorer.cer}
    return {name: found.get(name, metric) for name, metric in metrics.items() if name != "wer_utterance_mean"}


def _check_english(language: str | None) -> None:
    if language_code(language) != "en":
        raise ConfigError(
            f"the normalisation {OPEN_ASR} is for English, and the language of these lines is "
            f"{language or 'not given'}: give the lines their language, or use --normalise whisper"
        )


@lru_cache
def _normaliser(folder: Path) -> Normaliser:
    """Load ``normalizer/normalizer.py`` and the modules that it imports, without the rest of the clone's package."""
    package = folder / "normalizer"
    if not (package / "normalizer.py").is_file():
        raise DataError(
            f"{folder}: has no normalizer/normalizer.py, so it is no clone of the leaderboard: {HOW_TO_GET_IT}"
        )
    # The package's own __init__ imports libraries of its data sets and may have any name on other people's paths.
    name = f"_open_asr_leaderboard_{hashlib.blake2b(str(folder).encode(), digest_size=4).hexdigest()}"
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    sys.modules[name] = module_from_spec(spec)
    try:
        english = importlib.import_module(f"{name}.normalizer").EnglishTextNormalizer()
        english("a test")
    except Exception as error:  # code of any revision
        raise DataError(
            f"{package}: cannot be loaded ({type(error).__name__}: {error}); use another revision"
        ) from error
    digest = hashlib.blake2b(digest_size=4)
    for module in sorted(each for each in sys.modules if each.startswith(f"{name}.")):
        digest.update((package / f"{module.removeprefix(f'{name}.')}.py").read_bytes())
    apply = lru_cache(_CACHED_TEXTS)(lambda text: str(english(text)).strip())
    return Normaliser(apply, f"norm:{OPEN_ASR}|code:{digest.hexdigest()}")
