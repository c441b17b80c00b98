"""Read Spoken-SQuAD (Lee et al., Interspeech 2018): SQuAD questions about passages of generated speech.

The corpus has one file per sentence, ``ARTICLE_PARAGRAPH_SENTENCE.wav``. The sentences of a passage are joined without
pauses, as FLAC in OUT/audio. The contexts are the output of a speech recogniser (22.7% word errors). They become
``text``, which is therefore only a weak transcript.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.audio_makers import Joined
from ossicle.corpora.items import Dropped, Item, Options, Reached, Recording, clean, layout_error, select, within_part
from ossicle.errors import CorpusError

SPLITS = {"train": ("spoken_train-v1.1.json", "train_wav"), "test": ("spoken_test-v1.1.json", "dev_wav")}
"""Index and audio folder by split. The test set is SQuAD's development set, hence the name of its folder."""

UNPACKED = "Spoken-SQuAD_audio"
"""The folder in which the audio archive puts the two audio folders."""


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of the manifests ``train.qa`` and ``test.qa``, one per question."""
    available = [split for split, (index, _) in SPLITS.items() if (source / index).is_file()]
    if not available:
        raise layout_error(CORPORA["spoken-squad"], source, "has no spoken_train-v1.1.json or spoken_test-v1.1.json")
    splits = select(options.splits, available, "split", source)
    for done, split in enumerate(splits):
        for item in _read_split(source, split):
            yield within_part(item, done, len(splits))


def _read_split(source: Path, split: str) -> Iterator[Item]:
    index, folder = (source / name for name in SPLITS[split])
    if (source / UNPACKED / folder.name).is_dir():
        folder = source / UNPACKED / folder.name
    if not folder.is_dir():
        raise layout_error(CORPORA["spoken-squad"], folder, "there is no such folder")
    sentences = _sentences(folder)
    if not sentences:
        raise layout_error(CORPORA["spoken-squad"], folder, "contains no file such as 0_0_0.wav")
    try:
        articles = json.loads(index.read_text(encoding="utf-8"))["data"]  # 30 MB
        for number, article in enumerate(articles):
            for place, paragraph in enumerate(article["paragraphs"]):
                numbers = sentences.get((number, place), [])
                parts = tuple(folder / f"{number}_{place}_{sentence}.wav" for sentence in range(len(numbers)))
                yield _passage(f"{split}-{number}_{place}", split, paragraph, parts, numbers)
            yield Reached((number + 1) / len(articles))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{index}: does not have the layout of SQuAD ({error!r}); expected data, paragraphs, context, qas"
        ) from error


def _passage(name: str, split: str, paragraph: dict[str, Any], parts: tuple[Path, ...], numbers: list[int]) -> Item:
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
    """Return the numbers of the available sentences by article and paragraph, about 100,000 in all."""
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for entry in os.scandir(folder):
        numbers = entry.name.removesuffix(".wav").split("_")
        if len(numbers) == 3 and all(number.isdecimal() for number in numbers):
            article, paragraph, sentence = map(int, numbers)
            found[article, paragraph].append(sentence)
    return {place: sorted(numbers) for place, numbers in found.items()}
