"""Make the corpus of a study on recorded speech: read English, split by speaker, and real text in generated voices.

Speakers of sentences that Tatoeba translates are kept for the test. No speaker and no sentence of the test is in any
training data, including that of the encoder and the LLM.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import DataError
from ossicle.evaluate.metrics import normalise_basic
from ossicle.files import atomic
from ossicle.progress import track
from ossicle.prompts import ASR_INSTRUCTIONS
from ossicle_lab.real.text_corpus import TextCorpus, sentence_lines, some, speak
from ossicle_lab.real.text_llm import translate_instruction
from ossicle_lab.real.texts import LANGUAGES, Sentence, Tested, Texts, TextSizes, read_sentences

TRAIN, TRANSLATED = "speechocean762_train", "speechocean762"
"""Names of the corpora: all recordings, and the recordings with translations."""
SPELLABLE = re.compile(r"[a-z' ]+")
"""Texts that the encoder can spell."""
SPOKEN = ("multi30k", "tatoeba")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the corpus. All recorded training speakers are used, and all texts for the LLM."""

    dev_speakers: int = 8
    """Number of development speakers."""
    test_utterances: int = 250
    """Number of test utterances for recognition. All utterances with translations are used for translation."""
    candidates: int = 100
    """Number of test utterances for retrieval, each with another transcript."""
    texts: TextSizes = field(default_factory=lambda: TextSizes(multi30k=2000, tatoeba=1000))


@dataclass(frozen=True)
class RealCorpus:
    """Paths of the manifests in a folder."""

    folder: Path

    @property
    def train(self) -> Path:
        """Return the manifest of recorded speech of the training speakers."""
        return self.folder / "train.jsonl"

    @property
    def dev(self) -> Path:
        """Return the manifest of recorded speech of the development speakers."""
        return self.folder / "dev.jsonl"

    @property
    def spoken(self) -> list[Path]:
        """Return the manifests of real text in generated voices."""
        return [TextCorpus(self.folder).spoken(name, "train") / f"{name}-train.jsonl" for name in SPOKEN]

    @property
    def finetune(self) -> Path:
        """Return the manifest of stage 2: recognition of recordings, translation of generated speech."""
        return self.folder / "finetune.jsonl"

    @property
    def test(self) -> Path:
        """Return the test manifest: recognition of unseen speakers, and translation where there is one."""
        return self.folder / "test.jsonl"

    @property
    def candidates(self) -> Path:
        """Return the manifest for retrieval: unseen speakers, every transcript once."""
        return self.folder / "candidates.jsonl"


@dataclass(frozen=True)
class Split:
    """Recorded utterances by split."""

    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]


def make_corpus(speech: Path, text: Path, folder: Path, sizes: Sizes, *, seed: int = 0) -> tuple[RealCorpus, Texts]:
    """Split the recordings, decode them to WAV and speak a part of the texts. A second call reuses what is there.

    Args:
        speech: folder of recorded speech.
        text: folder of texts, with ``parallel``.
        folder: output folder.
        sizes: sizes of the corpus.
        seed: seed of the splits and draws.

    Returns:
        The manifests, and the training texts of the LLM.

    Raises:
        DataError: a folder lacks a corpus, or the corpus is too small.
        VoiceError: espeak-ng is not installed.
    """
    corpus = RealCorpus(folder)
    translated = [sample for sample in read_corpus(speech, TRANSLATED) if sample.extra.get("translations")]
    split = split_by_speaker(
        read_corpus(speech, TRAIN), {sample.speaker or "" for sample in translated}, sizes.dev_speakers, seed=seed
    )
    rng = random.Random(seed)
    test = rng.sample(split.test, min(sizes.test_utterances, len(split.test)))
    candidates = _different(rng.sample(split.test, len(split.test)))[: sizes.candidates]
    if len(candidates) < sizes.candidates:
        few = f"has {len(candidates)} different test sentences for {sizes.candidates} candidates"
        raise DataError(f"{speech}: {few}; use fewer candidates")
    decoded = _decode([*split.train, *split.dev, *split.test], folder / "audio")

    def written(path: Path, samples: Sequence[Sample]) -> None:
        write_manifest(path, [replace(sample, audio=decoded.get(sample.id, sample.audio)) for sample in samples])

    held_out = {sample.text or "" for sample in (*split.dev, *split.test, *translated)}
    held_out |= {normalise_basic(answer) for one in translated for s in _tasks_of(one) for answer in s.answers}
    texts = training_texts(text, sizes.texts, held_out, said=[sample.text or "" for sample in split.train])
    _speak(texts, folder, sizes.texts, rng)
    translations = [s for path in corpus.spoken for s in _translations_beside(path)]
    written(corpus.train, split.train)
    written(corpus.dev, split.dev)
    written(corpus.candidates, candidates)
    written(corpus.finetune, [*(_asr(sample, rng) for sample in split.train), *translations])
    written(corpus.test, [*(_asr(sample, rng) for sample in test), *(s for one in translated for s in _tasks_of(one))])
    return corpus, texts


def read_corpus(source: Path, name: str) -> list[Sample]:
    """Return the utterances with a known speaker whose text the encoder can spell, with normalised texts.

    Raises `DataError` if ``source`` has no corpus of that name.
    """
    path = source / name / "manifest.jsonl"
    if not path.is_file():
        raise DataError(f"{source}: has no {name}/manifest.jsonl; give the folder of recorded speech that holds it")
    samples = [replace(sample, text=normalise_basic(sample.text or "")) for sample in read_manifest(path)]
    return [sample for sample in samples if sample.speaker and SPELLABLE.fullmatch(sample.text or "")]


def split_by_speaker(samples: Sequence[Sample], test: Collection[str], dev_speakers: int, *, seed: int = 0) -> Split:
    """Keep the speakers ``test`` and ``dev_speakers`` others out of training, with all sentences that they say.

    Raises `DataError` if there are too few speakers.
    """
    others = sorted({sample.speaker or "" for sample in samples} - set(test))
    if len(others) <= dev_speakers:
        few = f"{len(others)} speakers besides those of the test are too few to keep {dev_speakers} for development"
        raise DataError(f"{few}; add recordings or lower dev_speakers")
    dev = set(random.Random(seed).sample(others, dev_speakers))
    kept = {sample.text for sample in samples if sample.speaker in dev or sample.speaker in test}
    return Split(
        train=[s for s in samples if s.speaker not in dev and s.speaker not in test and s.text not in kept],
        dev=[s for s in samples if s.speaker in dev],
        test=[s for s in samples if s.speaker in test],
    )


def training_texts(source: Path, sizes: TextSizes, held_out: Collection[str], said: Sequence[str]) -> Texts:
    """Return the LLM's training texts: parallel sentences that are not ``held_out``, and what speakers ``said``."""
    tested = Tested(frozenset(held_out))
    multi30k, tatoeba = read_sentences(source, sizes)
    spoken = [Sentence(f"said-{i}", text, {}) for i, text in enumerate(dict.fromkeys(said))]
    return Texts(
        multi30k=[s for s in multi30k if s not in tested],
        tatoeba={language: [s for s in part if s not in tested] for language, part in tatoeba.items()},
        recorded=spoken,
    )


def _speak(texts: Texts, folder: Path, sizes: TextSizes, rng: random.Random) -> None:
    tatoeba = [s for part in texts.tatoeba.values() for s in some(part, sizes.tatoeba, rng)]
    for name, sentences in zip(SPOKEN, (some(texts.multi30k, sizes.multi30k, rng), tatoeba), strict=True):
        speak(folder, name, "train", sentence_lines(sentences))


def _translations_beside(transcripts: Path) -> list[Sample]:
    """Return the lines of the translation manifests that prepare-tts wrote beside the manifest ``transcripts``."""
    return [
        s for path in sorted(transcripts.parent.glob(f"{transcripts.stem}.st-*.jsonl")) for s in read_manifest(path)
    ]


def _different(samples: Sequence[Sample]) -> list[Sample]:
    """Return the first utterance of each transcript."""
    return list({sample.text: sample for sample in reversed(samples)}.values())[::-1]


def _asr(sample: Sample, rng: random.Random) -> Sample:
    return replace(
        sample,
        task="asr",
        instruction=rng.choice(ASR_INSTRUCTIONS),
        answers=(sample.text or "",),
        target_language=sample.language,
    )


def _tasks_of(sample: Sample) -> list[Sample]:
    """Return a translation line for each language that the utterance has translations in."""
    return [
        replace(
            sample,
            id=f"{sample.id}-{code}",
            task="st",
            instruction=translate_instruction(code),
            answers=tuple(translations),
            target_language=code,
            extra={name: value for name, value in sample.extra.items() if name != "translations"},
        )
        for code, translations in sample.extra["translations"].items()
        if code in LANGUAGES
    ]


def _decode(samples: Sequence[Sample], folder: Path) -> dict[str, Path]:
    """Write each utterance as WAV and return the paths by id.

    The encoder reads every file in each epoch, and Opus takes 15 ms to decode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {sample.id: folder / f"{sample.id}.wav" for sample in samples}
    missing = [sample for sample in samples if not paths[sample.id].exists()]
    for sample in track(missing, "Decoding recordings", unit="utterances"):
        with atomic(paths[sample.id]) as partial:
            soundfile.write(partial, read_audio(sample.audio), SAMPLE_RATE_HZ, subtype="PCM_16", format="WAV")
    return paths
