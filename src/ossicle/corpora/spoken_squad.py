"""Read Spoken-SQuAD (Lee et al., Interspeech 2018): SQuAD questions about passages of generated speech.

The corpus has one file per sentence, ``ARTICLE_PARAGRAPH_SENTENCE.wav``. The sentences of a passage are joined without
pauses, as FLAC in OUT/audio. The contexts are the output of a speech recogniser (22.7% word errors). They become
``text``, which is therefore only a weak transcript.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossicle.batch import Sample
from ossicle.corpora import CORPORA
from ossicle.corpora.audio_makers import Joined
from ossicle.corpora.items import (
    BAD_ROW,
    Dropped,
    Item,
    Options,
    Reached,
    Recording,
    bad_row,
    clean,
    label,
    layout_error,
    printable,
    select,
    within_part,
)
from ossicle.errors import CorpusError

SPLITS = {"train": ("spoken_train-v1.1.json", "train_wav"), "test": ("spoken_test-v1.1.json", "dev_wav")}
"""Index and audio folder by split. The test set is SQuAD's development set, hence the name of its folder."""

UNPACKED = "Spoken-SQuAD_audio"
"""The folder in which the audio archive puts the two audio folders."""
SENTENCE = re.compile(r"(0|[1-9][0-9]{0,8})_(0|[1-9][0-9]{0,8})_(0|[1-9][0-9]{0,8})\.wav")
"""Name of the audio of a sentence: ARTICLE_PARAGRAPH_SENTENCE.wav."""


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
                name = f"{split}-{number}_{place}"
                try:
                    yield from _passage(name, split, paragraph, parts, numbers)
                except BAD_ROW as error:
                    yield bad_row(f"{index}: passage {name}", f"does not have the layout of SQuAD ({error!r})", name)
            yield Reached((number + 1) / len(articles))
    except BAD_ROW as error:
        problem = f"does not have the layout of SQuAD ({printable(repr(error))})"
        raise CorpusError(f"{index}: {problem}; expected data, paragraphs, context, qas") from error


def _passage(
    name: str, split: str, paragraph: dict[str, Any], parts: tuple[Path, ...], numbers: list[int]
) -> Iterator[Item]:
    """Yield the recording of a passage with its questions, and the questions that are left out."""
    questions = paragraph["qas"]
    if not questions:
        yield Dropped(name, "passage without a question")
        return
    if not parts:
        yield Dropped(name, "passage without audio")
        return
    if numbers != list(range(len(numbers))):
        missing = min(set(range(max(numbers))) - set(numbers))
        detail = f"{parts[0].parent}: no file for sentence {missing}"
        yield Dropped(name, "passage with a sentence missing", detail)
        return
    passage = Sample(
        id=name,
        audio=Path("audio") / split / f"{name.removeprefix(f'{split}-')}.flac",
        text=clean(paragraph["context"]) or None,
        language="en",
        task="qa",
        extra={"passage": name},
    )
    lines = []
    for number, question in enumerate(questions):
        try:
            found = _question(passage, question, f"{name}-{number}")
        except BAD_ROW as error:
            found = Dropped(f"{name}-{number}", "invalid question", repr(error))
        if isinstance(found, Dropped):
            yield found
        else:
            lines.append((f"{split}.qa", found))
    if lines:
        yield Recording(tuple(lines), Joined(parts))


def _question(passage: Sample, question: dict[str, Any], name: str) -> Sample | Dropped:
    name = label(question.get("id"), "id") or name
    answers = tuple(dict.fromkeys(filter(None, (clean(answer["text"]) for answer in question["answers"]))))
    asked = clean(question["question"])
    if not answers or not asked:
        return Dropped(name, "question without an answer" if asked else "no question")
    return replace(passage, id=name, instruction=asked, answers=answers)


def _sentences(folder: Path) -> dict[tuple[int, int], list[int]]:
    """Return the numbers of the available sentences by article and paragraph, about 100,000 in all."""
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for entry in os.scandir(folder):
        if match := SENTENCE.fullmatch(entry.name):
            article, paragraph, sentence = map(int, match.groups())
            found[article, paragraph].append(sentence)
    return {place: sorted(numbers) for place, numbers in found.items()}
