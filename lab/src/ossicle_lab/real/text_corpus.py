"""Make manifests of both stages from real text, through `ossicle prepare-tts`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ossicle.corpora.tts import TtsOptions, prepare_tts
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.files import write_text
from ossicle_lab.real.texts import Passage, Sentence, Texts, TextSizes

CORPORA = ("multi30k", "tatoeba", "xquad")
Split = Literal["train", "test"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class TextCorpus:
    """Paths of the manifests in a folder."""

    folder: Path

    def spoken(self, name: str, split: Split) -> Path:
        """Return the folder that prepare-tts wrote for one corpus."""
        return self.folder / "speech" / f"{name}-{split}"

    @property
    def transcripts(self) -> list[Path]:
        """Return the manifests of training speech with transcripts."""
        return [self.spoken(name, "train") / f"{name}-train.jsonl" for name in CORPORA]

    @property
    def tasks(self) -> list[Path]:
        """Return the manifests of training speech with translations and questions."""
        return [path for name in CORPORA for path in sorted(self.spoken(name, "train").glob(f"{name}-train.*.jsonl"))]

    @property
    def test(self) -> Path:
        """Return the test manifest: all tasks on unseen texts in unseen voices."""
        return self.folder / "test.jsonl"

    @property
    def candidates(self) -> Path:
        """Return the manifest for retrieval: the sentences of ``test``, each text once."""
        return self.folder / "test" / "manifest.jsonl"


def make_corpus(texts: Texts, folder: Path, sizes: TextSizes, *, seed: int = 0) -> TextCorpus:
    """Speak a part of the training texts and all test texts. A second call reuses what is there.

    Raises `VoiceError` if espeak-ng is not installed.
    """
    corpus = TextCorpus(folder)
    rng = random.Random(f"spoken-{seed}")
    tatoeba = [s for part in texts.tatoeba.values() for s in some(part, sizes.tatoeba, rng)]
    spoken: dict[tuple[str, Split], list[dict[str, Any]]] = {
        ("multi30k", "train"): sentence_lines(some(texts.multi30k, sizes.multi30k, rng)),
        ("tatoeba", "train"): sentence_lines(tatoeba),
        ("xquad", "train"): _passage_lines(some(texts.passages, sizes.passages, rng)),
        ("multi30k", "test"): sentence_lines(texts.test_multi30k),
        ("tatoeba", "test"): sentence_lines(texts.test_tatoeba),
        ("xquad", "test"): _passage_lines(texts.test_passages),
    }
    for (name, split), lines in spoken.items():
        speak(folder, name, split, lines, seed=seed)
    tests = {name: sorted(corpus.spoken(name, "test").glob(f"{name}-test*.jsonl")) for name in CORPORA}
    write_manifest(corpus.test, [s for paths in tests.values() for path in paths for s in read_manifest(path)])
    sentences = [
        sample
        for name in ("multi30k", "tatoeba")
        for sample in read_manifest(corpus.spoken(name, "test") / f"{name}-test.jsonl")
    ]
    write_manifest(corpus.candidates, {sample.text: sample for sample in sentences}.values())
    return corpus


def speak(folder: Path, name: str, split: Split, lines: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Path:
    """Speak ``lines`` by prepare-tts and return the folder with its manifests, ``NAME-SPLIT.jsonl`` and others.

    Raises `VoiceError` if espeak-ng is not installed.
    """
    path = folder / "texts" / f"{name}-{split}.jsonl"
    _write(path, lines)
    out = TextCorpus(folder).spoken(name, split)
    prepare_tts(path, out, TtsOptions(kind=split, seed=seed))
    return out


def some(items: Sequence[_T], count: int, rng: random.Random) -> list[_T]:
    """Draw ``count`` items without replacement, or return all if there are fewer."""
    return rng.sample(items, min(count, len(items)))


def sentence_lines(sentences: Iterable[Sentence]) -> list[dict[str, Any]]:
    """Return lines for prepare-tts: the English text and its translations."""
    return [{"id": s.id, "en": s.text, **s.translations} for s in sentences]


def _passage_lines(passages: Iterable[Passage]) -> list[dict[str, Any]]:
    """Return a line per question. Prepare-tts speaks a passage once for all its questions in a row."""
    return [
        {"id": q.id, "context": passage.text, "question": q.text, "answers": list(q.answers)}
        for passage in passages
        for q in passage.questions
    ]


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the lines unless the file holds them, as prepare-tts starts again if its input changes."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
