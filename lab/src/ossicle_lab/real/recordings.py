"""Read folders of recorded speech and split them by speaker. No sentence of a test speaker is in the training data."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest
from ossicle.errors import DataError

SPEECHOCEAN, LIBRISPEECH, VOXFORGE = "speechocean762_train", "librispeech_train_clean_5", "voxforge_en"
COMMON_VOICE, TEST_OTHER = "common_voice_en", "librispeech_test_other"
NAMED = (SPEECHOCEAN, LIBRISPEECH, VOXFORGE, COMMON_VOICE, TEST_OTHER)
"""Corpora whose split is fixed, so that scores of different runs can be compared."""
TEST_SPEAKERS, TEST_UTTERANCES = 30, 300
"""Test speakers of speechocean762, and the number of their utterances in the test."""
DEV_SPEAKERS = {SPEECHOCEAN: 6, LIBRISPEECH: 2, VOXFORGE: 4}
DEV_UTTERANCES = {SPEECHOCEAN: 80, LIBRISPEECH: 40, VOXFORGE: 40}
TEST_SHARE, DEV_SHARE = 0.1, 0.05
"""Shares of the speakers that are held out in folders with other corpora."""
OTHERS_DEV_UTTERANCES = 160
UPPER_CASE_SHARE = 0.99
"""Share of upper-case letters from which a corpus counts as written in upper case only."""


@dataclass(frozen=True)
class Split:
    """Recordings by split. No speaker of `dev` or `tests` is in `train`."""

    train: list[Sample]
    dev: list[Sample]
    tests: dict[str, list[Sample]]
    """Test recordings by name of the test set."""

    @property
    def tested(self) -> set[str]:
        """Return the words of all test sentences, as `words_of` returns them."""
        return {words_of(sample.text) for samples in self.tests.values() for sample in samples}


def split_recordings(folder: Path) -> Split:
    """Read the English recordings below ``folder`` and split them by speaker.

    A folder with the corpora of `NAMED` has a fixed split. In other folders, shares of the speakers are held out.

    Raises:
        DataError: there are no English recordings with transcripts, or too few speakers.
        ManifestError: a manifest is invalid.
    """
    root = folder / "real_speech" if (folder / "real_speech").is_dir() else folder
    if all((root / name / "manifest.jsonl").is_file() for name in NAMED):
        return _fixed_split({name: read_corpus(root / name) for name in NAMED})
    return _share_split(root)


def read_corpus(folder: Path) -> list[Sample]:
    """Return the English recordings with a transcript in ``folder/manifest.jsonl``.

    The transcripts of a corpus that is written in upper case only become lower case.
    """
    samples = [s for s in read_manifest(folder / "manifest.jsonl") if s.text and (s.language or "en")[:2] == "en"]
    letters = [char for sample in samples for char in sample.text or "" if char.isalpha()]
    if letters and sum(map(str.isupper, letters)) >= UPPER_CASE_SHARE * len(letters):
        samples = [replace(sample, text=(sample.text or "").lower()) for sample in samples]
    return samples


def words_of(text: str | None) -> str:
    """Return the words of ``text`` in lower case, without punctuation, to compare sentences."""
    return " ".join(re.sub(r"[^a-z' ]+", " ", (text or "").lower().replace("’", "'")).split())


def _fixed_split(corpora: dict[str, list[Sample]]) -> Split:
    """Return the split of the published projector; its training and test data must not change."""
    speechocean, librispeech, voxforge = (corpora[name] for name in (SPEECHOCEAN, LIBRISPEECH, VOXFORGE))
    rng = random.Random(0)
    speakers = _speakers(speechocean)
    rng.shuffle(speakers)
    test = set(speakers[:TEST_SPEAKERS])
    dev = {
        SPEECHOCEAN: set(speakers[TEST_SPEAKERS : TEST_SPEAKERS + DEV_SPEAKERS[SPEECHOCEAN]]),
        LIBRISPEECH: set(_speakers(librispeech)[: DEV_SPEAKERS[LIBRISPEECH]]),
        VOXFORGE: set(_speakers(voxforge)[: DEV_SPEAKERS[VOXFORGE]]),
    }
    tested = _of(speechocean, test)
    kept = {words_of(sample.text) for sample in tested}
    train = [
        *(s for s in _others(speechocean, test | dev[SPEECHOCEAN]) if words_of(s.text) not in kept),
        *_others(librispeech, dev[LIBRISPEECH]),
        *_others(voxforge, dev[VOXFORGE]),
        *corpora[COMMON_VOICE],
    ]
    held_out = [s for name, who in dev.items() for s in _of(corpora[name], who)[: DEV_UTTERANCES[name]]]
    rng.shuffle(tested)
    return Split(train, held_out, {"librispeech": corpora[TEST_OTHER], "speechocean": tested[:TEST_UTTERANCES]})


def _share_split(root: Path) -> Split:
    """Hold out shares of the speakers below ``root``. Recordings of unknown speakers are for training."""
    manifests = sorted({*root.glob("manifest.jsonl"), *root.glob("*/manifest.jsonl")})
    samples = [s for path in manifests for s in _prefixed(read_corpus(path.parent), path.parent.name)]
    if not samples:
        raise DataError(
            f"{root}: has no English recordings with transcripts; give a folder with CORPUS/manifest.jsonl, as "
            "`ossicle prepare` and docs/data.md describe"
        )
    speakers = _speakers(samples)
    random.Random(0).shuffle(speakers)
    tests, devs = (max(1, round(share * len(speakers))) for share in (TEST_SHARE, DEV_SHARE))
    if len(speakers) < tests + devs + 1:
        raise DataError(f"{root}: {len(speakers)} known speakers are too few for a split; add recordings of others")
    test, dev = set(speakers[:tests]), set(speakers[tests : tests + devs])
    tested = _of(samples, test)
    kept = {words_of(sample.text) for sample in tested}
    train = [sample for sample in _others(samples, test | dev) if words_of(sample.text) not in kept]
    if not train:
        raise DataError(f"{root}: all training sentences are also said by test speakers; add other recordings")
    rng = random.Random(1)
    held_out = _of(samples, dev)
    return Split(
        train,
        rng.sample(held_out, min(OTHERS_DEV_UTTERANCES, len(held_out))),
        {"recordings": rng.sample(tested, min(TEST_UTTERANCES, len(tested)))},
    )


def _prefixed(samples: Iterable[Sample], corpus: str) -> list[Sample]:
    """Return ``samples`` with the corpus in ids and speakers, which are unique within a corpus only."""
    return [replace(s, id=f"{corpus}/{s.id}", speaker=s.speaker and f"{corpus}/{s.speaker}") for s in samples]


def _speakers(samples: Iterable[Sample]) -> list[str]:
    return sorted({sample.speaker for sample in samples if sample.speaker})


def _of(samples: Iterable[Sample], speakers: Collection[str]) -> list[Sample]:
    return [sample for sample in samples if sample.speaker in speakers]


def _others(samples: Iterable[Sample], speakers: Collection[str]) -> list[Sample]:
    return [sample for sample in samples if sample.speaker not in speakers]
