"""Spoken-SQuAD (Lee et al., Interspeech 2018): SQuAD questions about passages that a machine reads aloud.

Its audio is one file for each sentence, ``ARTICLE_PARAGRAPH_SENTENCE.wav``; a passage is joined from them, without a
pause, as FLAC in OUT/audio. Its contexts are what a recogniser heard (22.7% word errors): they become ``text``, which
serves as a weak transcript only.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.audio_makers import Joined
from ossicle.corpora.items import Dropped, Item, Options, Reached, Recording, chosen, clean, expected
from ossicle.errors import CorpusError

SPLITS = {"train": ("spoken_train-v1.1.json", "train_wav"), "test": ("spoken_test-v1.1.json", "dev_wav")}
"""The test set is made from SQuAD's development set, hence the folder's name."""

UNPACKED = "Spoken-SQuAD_audio"
"""Where the archive of the audio puts the two folders."""


def read(source: Path, options: Options) -> Iterator[Item]:
    """Manifests ``train.qa`` and ``test.qa``: a line for each question."""
    there = [split for split, (index, _) in SPLITS.items() if (source / index).is_file()]
    if not there:
        raise expected(CORPORA["spoken-squad"], source, "has no spoken_train-v1.1.json or spoken_test-v1.1.json")
    splits = chosen(options.splits, there, "split", source)
    for done, split in enumerate(splits):
        for item in _read_split(source, split):
            yield Reached((done + item.fraction) / len(splits)) if isinstance(item, Reached) else item


def _read_split(source: Path, split: str) -> Iterator[Item]:
    index, folder = (source / name for name in SPLITS[split])
    if (source / UNPACKED / folder.name).is_dir():
        folder = source / UNPACKED / folder.name
    if not folder.is_dir():
        raise expected(CORPORA["spoken-squad"], folder, "there is no such folder")
    sentences = _sentences(folder)
    if not sentences:
        raise expected(CORPORA["spoken-squad"], folder, "holds no file such as 0_0_0.wav")
    try:
        articles = json.loads(index.read_text(encoding="utf-8"))["data"]  # 30 MB
        for number, article in enumerate(articles):
            for place, paragraph in enumerate(article["paragraphs"]):
                numbers = sentences.get((number, place), [])
                parts = tuple(folder / f"{number}_{place}_{sentence}.wav" for sentence in range(len(numbers)))
                yield _passage(f"{split}-{number}_{place}", split, paragraph, parts, numbers)
            yield Reached((number + 1) / len(articles))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorpusError(f"{index}: is not laid out like SQuAD ({error!r}): data, paragraphs, context, qas") from error


def _passage(name: str, split: str, paragraph: dict, parts: tuple[Path, ...], numbers: list[int]) -> Item:
    questions = paragraph["qas"]
    if not questions:
        return Dropped(name, "passage without a question")
    if not parts:
        return Dropped(name, "passage without audio")
    if numbers != list(range(len(numbers))):
        missing = min(set(range(max(numbers))) - set(numbers))
        return Dropped(name, "passage with a sentence missing", f"{parts[0].parent}: no file for sentence {missing}")
    lines = [
        Sample(
            id=question["id"],
            audio=Path("audio") / split / f"{name.removeprefix(f'{split}-')}.flac",
            text=clean(paragraph["context"]) or None,
            language="en",
            task="qa",
            instruction=clean(question["question"]),
            answers=tuple(dict.fromkeys(clean(answer["text"]) for answer in question["answers"])),
            extra={"passage": name},
        )
        for question in questions
    ]
    return Recording(tuple((f"{split}.qa", line) for line in lines), Joined(parts))


def _sentences(folder: Path) -> dict[tuple[int, int], list[int]]:
    """Numbers of the sentences there are, by article and paragraph; about 100,000 in all."""
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for entry in os.scandir(folder):
        numbers = entry.name.removesuffix(".wav").split("_")
        if len(numbers) == 3 and all(number.isdecimal() for number in numbers):
            article, paragraph, sentence = map(int, numbers)
            found[article, paragraph].append(sentence)
    return {place: sorted(numbers) for place, numbers in found.items()}
