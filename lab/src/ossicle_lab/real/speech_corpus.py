"""Recorded speech for a study: read English of 220 speakers, split by speaker, beside real text in generated voices.

Speakers of whose sentences Tatoeba has a translation are kept for the test. No speaker and no sentence of it is in
anything that trains, encoder and LLM included.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import soundfile
from rich.console import Console
from rich.progress import track

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.evaluate.metrics import normalise_basic
from ossicle.prompts import ASR_INSTRUCTIONS
from ossicle_lab.real.text_corpus import TextCorpus, sentence_lines, some, speak
from ossicle_lab.real.text_llm import translate_instruction
from ossicle_lab.real.texts import LANGUAGES, Sentence, Tested, Texts, TextSizes, read_sentences

TRAIN, TRANSLATED = "speechocean762_train", "speechocean762"
"""All recordings, and those of them that have translations."""
SPELLABLE = re.compile(r"[a-z' ]+")
"""What the encoder can spell."""
SPOKEN = ("multi30k", "tatoeba")


@dataclass(frozen=True)
class Sizes:
    """How much of everything; recorded training speakers and texts that are only read are used whole."""

    dev_speakers: int = 8
    test_utterances: int = 250
    """To recognise; those with translations are all used."""
    candidates: int = 100
    """Test utterances of different transcripts, for retrieval."""
    texts: TextSizes = field(default_factory=lambda: TextSizes(multi30k=2000, tatoeba=1000))


@dataclass(frozen=True)
class RealCorpus:
    """Manifests below a folder."""

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
    def spoken(self) -> list[Path]:
        """Real text in generated voices."""
        return [TextCorpus(self.folder).spoken(name, "train") / f"{name}-train.jsonl" for name in SPOKEN]

    @property
    def finetune(self) -> Path:
        """Tasks of stage 2: recognition of recordings, translation of generated speech."""
        return self.folder / "finetune.jsonl"

    @property
    def test(self) -> Path:
        """Unseen speakers: recognition, and translation where there is one."""
        return self.folder / "test.jsonl"

    @property
    def candidates(self) -> Path:
        """Unseen speakers, every transcript once."""
        return self.folder / "candidates.jsonl"


@dataclass(frozen=True)
class Split:
    """Recorded utterances by what they are for."""

    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]


def make_corpus(speech: Path, text: Path, folder: Path, sizes: Sizes, *, seed: int = 0) -> tuple[RealCorpus, Texts]:
    """Split the recordings, decode them once, speak a part of the texts; a second call reuses what is there.

    Also returns the texts for the LLM. Raises `ValueError` where a folder lacks a corpus, or has too little of it.
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
        raise ValueError(f"{speech}: only {len(candidates)} different sentences for {sizes.candidates} candidates")
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
    """The utterances with a known speaker and a text that can be spelt, in the lab's convention."""
    path = source / name / "manifest.jsonl"
    if not path.is_file():
        raise ValueError(f"{source}: has no {name}/manifest.jsonl; give the folder of recorded speech that holds it")
    samples = [replace(sample, text=normalise_basic(sample.text or "")) for sample in read_manifest(path)]
    return [sample for sample in samples if sample.speaker and SPELLABLE.fullmatch(sample.text or "")]


def split_by_speaker(samples: Sequence[Sample], test: Collection[str], dev_speakers: int, *, seed: int = 0) -> Split:
    """Speakers of ``test`` and so many others are kept out of training, and so are all sentences of theirs."""
    others = sorted({sample.speaker or "" for sample in samples} - set(test))
    if len(others) <= dev_speakers:
        raise ValueError(f"{len(others)} speakers beside the test's are too few to keep {dev_speakers} for development")
    dev = set(random.Random(seed).sample(others, dev_speakers))
    kept = {sample.text for sample in samples if sample.speaker in dev or sample.speaker in test}
    return Split(
        train=[s for s in samples if s.speaker not in dev and s.speaker not in test and s.text not in kept],
        dev=[s for s in samples if s.speaker in dev],
        test=[s for s in samples if s.speaker in test],
    )


def training_texts(source: Path, sizes: TextSizes, held_out: Collection[str], said: Sequence[str]) -> Texts:
    """What the LLM reads: parallel sentences without those in ``held_out``, and what training speakers ``said``."""
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
    """The lines of the translation manifests that prepare-tts wrote beside its transcripts."""
    return [
        s for path in sorted(transcripts.parent.glob(f"{transcripts.stem}.st-*.jsonl")) for s in read_manifest(path)
    ]


def _different(samples: Sequence[Sample]) -> list[Sample]:
    """The first utterance of each transcript."""
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
    """A translation line for each language in which the utterance has translations."""
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
