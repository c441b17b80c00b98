"""Speak sentences and passages of text corpora in generated voices, through `ossicle prepare-tts`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ossicle.corpora.tts import TtsOptions, prepare_tts
from ossicle.errors import DataError
from ossicle.files import write_text
from ossicle_lab.real.recordings import words_of

TATOEBA = "parallel/tatoeba_en-{language}.jsonl"
MULTI30K = "parallel/multi30k_en-de-fr-cs.train.jsonl"
XQUAD = "qa/xquad_en.jsonl"
WORDS = range(3, 21)
"""Numbers of words of a sentence that is spoken."""
MOST_PASSAGE_WORDS = 35
"""Largest number of words in a passage, about 14 s of speech."""
TEST_TITLES = 10
"""Number of XQuAD's 48 articles whose questions are for the test."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

Kind = Literal["train", "test"]
Line = dict[str, Any]


def draw_sentences(texts: Path, count: int, tested: Collection[str]) -> list[Line]:
    """Return ``count`` English sentences, half of Tatoeba and half of Multi30k, with their ids.

    Args:
        texts: folder with ``parallel``.
        count: number of sentences; if there are fewer, all.
        tested: sentences to leave out, as `words_of` returns them.
    """
    rng, seen, found = random.Random(0), set(tested), []
    tatoeba = [line for code in ("de", "fr", "es") for line in records(texts / TATOEBA.format(language=code))]
    for lines, share in ((tatoeba, count // 2), (records(texts / MULTI30K), count - count // 2)):
        left = share
        for line in rng.sample(lines, len(lines)):
            words = words_of(line["en"])
            if left and words not in seen and len(words.split()) in WORDS:
                seen.add(words)
                found.append({"id": line["id"], "en": line["en"]})
                left -= 1
    return found


def draw_translations(texts: Path, language: str, count: int) -> list[Line]:
    """Return ``count`` short sentences of Tatoeba with their translations into ``language``, for tests."""
    lines = [line for line in records(texts / TATOEBA.format(language=language)) if len(line["en"].split()) in WORDS]
    drawn = random.Random(1).sample(lines, min(count, len(lines)))
    return [{"id": line["id"], "en": line["en"], language: line[language]} for line in drawn]


def draw_passages(texts: Path, kind: Kind, count: int) -> list[Line]:
    """Return questions of XQuAD, each with the sentence that holds its answer, for ``count`` different sentences.

    Articles are either for training or for the test. Questions about one sentence follow each other.
    """
    passages: dict[tuple[str, str], list[Line]] = {}
    for line in records(texts / XQUAD):
        context = sentence_at(line["context"], line["answer_start"])
        if line["answer"] in context and len(context.split()) <= MOST_PASSAGE_WORDS:
            answers = [answer for answer in dict.fromkeys([line["answer"], *line["answers"]]) if answer in context]
            question = {"id": line["id"], "context": context, "question": line["question"], "answers": answers}
            passages.setdefault((line["title"], context), []).append(question)
    titles = sorted({title for title, _ in passages})
    test = set(random.Random(0).sample(titles, min(TEST_TITLES, len(titles) // 2)))
    keys = [key for key in passages if (key[0] in test) == (kind == "test")]
    drawn = random.Random(2).sample(keys, min(count, len(keys)))
    return [question for key in drawn for question in passages[key]]


def sentence_at(context: str, position: int) -> str:
    """Return the sentence of ``context`` that contains the character at ``position``."""
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(context))]
    start = max(start for start in starts if start <= position)
    end = next((other for other in starts if other > position), len(context))
    return context[start:end].strip()


def speak(folder: Path, name: str, lines: Sequence[Mapping[str, Any]], kind: Kind, *, jobs: int | None = None) -> Path:
    """Speak ``lines`` and return the folder with the manifests ``NAME.jsonl``, ``NAME.qa.jsonl`` and so on.

    Training and test voices are different. A second call reuses what is there. Raises `VoiceError` if espeak-ng is not
    installed.
    """
    path = folder / "texts" / f"{name}.jsonl"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # prepare-tts starts again for a changed file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    out = folder / "voices" / name
    prepare_tts(path, out, TtsOptions(kind=kind), jobs=jobs)
    return out


def records(path: Path) -> list[Line]:
    """Return the lines of a JSONL file. Raises `DataError` if there is no such file, or for a line that is no JSON."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give the folder of texts that has parallel/ and qa/")
    with path.open(encoding="utf-8", newline="\n") as file:
        try:
            return [json.loads(line) for line in file]
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: holds a line that is not JSON ({error}); fix or remove the line") from error
