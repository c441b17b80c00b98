"""Recorded speech for both stages: read English of 220 speakers, split by speaker, beside generated speech.

No speaker and no sentence of the test set is in anything that trains, the encoder included.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
from rich.console import Console
from rich.progress import track

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.evaluate.metrics import normalise_basic
from ossicle.lab.build_encoder import training_strings
from ossicle.lab.synthesise import synthesise
from ossicle.lab.voices import train_voices
from ossicle.lab.world import sample_passages

CORPUS = "speechocean762_train"
INSTRUCTION = "repeat the text"
"""A wording of the task that the lab's LLM knows."""
SPELLABLE = re.compile(r"[a-z' ]+")
"""What the lab's encoder can spell and its LLM has read."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the recorded training speakers are used whole."""

    test_speakers: int = 25
    dev_speakers: int = 8
    test_utterances: int = 250
    candidates: int = 100
    """Test utterances of different transcripts, for retrieval."""
    generated: int = 1500
    """Passages of the lab's world, for stage 1."""
    strings: int = 1200
    """Random word strings, for the encoder."""


@dataclass(frozen=True)
class RealCorpus:
    """Manifests. ``test`` and ``candidates`` lie where `ossicle.lab.chain` looks for them."""

    folder: Path

    @property
    def train(self) -> Path:
        """Recorded speech of the training speakers."""
        return self.folder / "train.jsonl"

    @property
    def dev(self) -> Path:
        """Recorded speech of the development speakers."""
        return self.folder / "dev.jsonl"

    @property
    def finetune(self) -> Path:
        """``train`` with the task of stage 2."""
        return self.folder / "finetune.jsonl"

    @property
    def test(self) -> Path:
        """Unseen speakers, with the task of stage 2."""
        return self.folder / "test.jsonl"

    @property
    def candidates(self) -> Path:
        """Unseen speakers, every transcript once."""
        return self.folder / "test" / "manifest.jsonl"

    @property
    def generated(self) -> Path:
        """Passages in generated voices."""
        return self.folder / "generated" / "manifest.jsonl"

    @property
    def strings(self) -> Path:
        """Random word strings in generated voices."""
        return self.folder / "strings" / "manifest.jsonl"


@dataclass(frozen=True)
class Split:
    """Recorded utterances by what they are for."""

    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]


def make_corpus(source: Path, folder: Path, sizes: Sizes, *, seed: int = 0) -> RealCorpus:
    """Split the recordings in ``source``, decode them once, and generate the rest; a second call reuses what is there.

    Raises `ValueError` where ``source`` does not hold the corpus, or too little of it.
    """
    corpus = RealCorpus(folder)
    split = split_by_speaker(read_corpus(source), sizes, seed=seed)
    rng = random.Random(seed)
    test = rng.sample(split.test, min(sizes.test_utterances, len(split.test)))
    candidates = _different(rng.sample(split.test, len(split.test)))[: sizes.candidates]
    if len(candidates) < sizes.candidates:
        raise ValueError(f"{source}: only {len(candidates)} different sentences for {sizes.candidates} candidates")
    decoded = _decode([*split.train, *split.dev, *split.test], folder / "audio")
    for path, samples in (
        (corpus.train, split.train),
        (corpus.dev, split.dev),
        (corpus.finetune, [_asr(sample) for sample in split.train]),
        (corpus.test, [_asr(sample) for sample in test]),
        (corpus.candidates, candidates),
    ):
        write_manifest(path, [replace(sample, audio=decoded[sample.id]) for sample in samples])
    _generate(corpus, sizes, seed)
    return corpus


def read_corpus(source: Path) -> list[Sample]:
    """The utterances with a known speaker and a text that can be spelt, in the lab's convention."""
    path = source / CORPUS / "manifest.jsonl"
    if not path.is_file():
        raise ValueError(f"{source}: has no {CORPUS}/manifest.jsonl; give the folder of recorded speech that holds it")
    samples = [replace(sample, text=normalise_basic(sample.text or "")) for sample in read_manifest(path)]
    return [sample for sample in samples if sample.speaker and SPELLABLE.fullmatch(sample.text or "")]


def split_by_speaker(samples: Sequence[Sample], sizes: Sizes, *, seed: int = 0) -> Split:
    """Whole speakers to test and development, the others to training, without the sentences of the former two."""
    speakers = sorted({sample.speaker or "" for sample in samples})
    held_out = sizes.test_speakers + sizes.dev_speakers
    if len(speakers) <= held_out:
        raise ValueError(f"{len(speakers)} speakers are too few to keep {held_out} of them out of training")
    random.Random(seed).shuffle(speakers)
    test, dev = set(speakers[: sizes.test_speakers]), set(speakers[sizes.test_speakers : held_out])
    kept = {sample.text for sample in samples if sample.speaker in test | dev}
    return Split(
        train=[s for s in samples if s.speaker not in test | dev and s.text not in kept],
        dev=[s for s in samples if s.speaker in dev],
        test=[s for s in samples if s.speaker in test],
    )


def _different(samples: Sequence[Sample]) -> list[Sample]:
    """The first utterance of each transcript."""
    return list({sample.text: sample for sample in reversed(samples)}.values())[::-1]


def _asr(sample: Sample) -> Sample:
    return replace(
        sample, task="asr", instruction=INSTRUCTION, answers=(sample.text or "",), target_language=sample.language
    )


def _decode(samples: Sequence[Sample], folder: Path) -> dict[str, Path]:
    """Write each utterance as WAV; paths by id. The encoder reads it every epoch, and Opus takes 15 ms to decode."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {sample.id: folder / f"{sample.id}.wav" for sample in samples}
    missing = [sample for sample in samples if not paths[sample.id].exists()]
    console = Console(stderr=True)
    for sample in track(missing, "Decoding recordings", console=console, disable=not console.is_terminal):
        partial = paths[sample.id].with_suffix(".partial")
        soundfile.write(partial, read_audio(sample.audio), SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
        partial.replace(paths[sample.id])
    return paths


def _generate(corpus: RealCorpus, sizes: Sizes, seed: int) -> None:
    passages = sample_passages("train", sizes.generated, seed=seed, max_sentences=2)
    strings = training_strings(sizes.strings, seed, min_words=2, max_words=10)
    for manifest, texts in ((corpus.generated, [passage.text for passage in passages]), (corpus.strings, strings)):
        items = [{"id": f"{manifest.parent.name}-{i:05d}", "text": text} for i, text in enumerate(texts)]
        synthesise(items, manifest.parent, voices=train_voices(), seed=seed)
