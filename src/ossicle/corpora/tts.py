"""Convert texts into generated speech with manifests, as in Spoken-SQuAD (`ossicle prepare-tts`).

TEXTS has one of four formats: plain text with one utterance per line; JSONL with a language code as key of each text
(``{"en": ..., "de": ...}``); JSONL with context, question and answers; or the JSON of SQuAD. Each utterance or passage
is spoken once. Its transcript, translations and questions become lines with the same audio.
"""

from __future__ import annotations

import json
import shutil
import signal
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from ossicle.batch import Sample
from ossicle.corpora.items import (
    Dropped,
    Item,
    Make,
    Options,
    Reached,
    Recording,
    asr_line,
    clean,
    parse_record,
    read_lines,
    st_line,
)
from ossicle.corpora.prepare import load_report, non_defaults
from ossicle.corpora.report import Report
from ossicle.corpora.tables import safe_name
from ossicle.corpora.tts_engines import CommandMaker, EspeakMaker, espeak_voices, fill
from ossicle.corpora.voices import espeak
from ossicle.corpora.writer import Limits, progress_of, write
from ossicle.errors import CorpusError
from ossicle.prompts import LANGUAGE_NAMES

PARALLEL_FROM = 64
"""Number of utterances from which processes are used. Fewer are spoken before new processes have started."""
EXPECTED = 'one text per line; or JSONL with {"en": .., "de": ..} or {"context": .., "question": .., "answers": [..]}'


@dataclass(frozen=True, kw_only=True)
class TtsOptions:
    """Settings of the generated speech."""

    language: str = "en"
    """Spoken language of lines that name none."""
    targets: tuple[str, ...] = ()
    """Target languages of translations; by default all that a line has."""
    command: str | None = None
    """Template of the command that speaks; None uses espeak-ng."""
    voices: tuple[str, ...] = ()
    """Values of ``{voice}`` in the command, drawn with equal probability."""
    kind: Literal["train", "test"] = "train"
    """Voices of espeak-ng for training, or those held out for tests."""
    seed: int = 0
    """Seed for voice, rate, pitch and noise."""
    limit: int | None = None
    """Number of utterances or passages to speak, from the first; None speaks all."""
    lower: bool = False
    """Write transcripts in lower case."""
    min_s: float = 0.0
    """Shortest utterance to keep, in seconds."""
    max_s: float = float("inf")
    """Longest utterance to keep, in seconds."""


def prepare_tts(
    texts: Path, out: Path, options: TtsOptions | None = None, *, jobs: int | None = None, show: bool = True
) -> Report:
    """Write the speech of ``texts`` to ``out/audio``, and manifests for it.

    The manifests are ``NAME`` (asr), ``NAME.st-TARGET`` and ``NAME.qa``. An interrupted call resumes. espeak-ng runs in
    ``jobs`` processes, one per core by default. A command runs in ``jobs`` threads.

    Raises:
        CorpusError: the texts have another format, or the command is invalid.
        VoiceError: espeak-ng is needed and not installed.
    """
    options = options or TtsOptions()
    if not texts.is_file():
        raise CorpusError(f"{texts}: there is no such file; expected {EXPECTED}")
    _check_engine(options)
    about = {"corpus": "tts", "source": str(texts.resolve()), "options": non_defaults(options, TtsOptions())}
    finished = load_report(out, about)
    if finished is not None:
        return finished
    items = _limited(_read(texts, options), options.limit)
    first = list(islice(items, 2 * PARALLEL_FROM))  # every second item is a `Reached`
    limits, few = Limits(options.min_s, options.max_s), len(first) < 2 * PARALLEL_FROM
    with progress_of("speaking", enabled=show) as progress, _pool(options, few, jobs) as pool:
        return write(chain(first, items), out, about, limits, pool, progress=progress)


def _check_engine(options: TtsOptions) -> None:
    if options.command is None:
        espeak()
        return
    words = fill(options.command, {})
    if not words or shutil.which(words[0]) is None:
        raise CorpusError(f"--command {options.command}: there is no program {words[0] if words else ''!r}; install it")
    if "{out}" not in options.command:
        raise CorpusError(f"--command {options.command}: has no {{out}}; write {{out}} where the audio file goes")
    if "{voice}" in options.command and not options.voices:
        raise CorpusError(f"--command {options.command}: has {{voice}}; name the voices with --voice")


def _pool(options: TtsOptions, few: bool, jobs: int | None) -> Executor:
    if options.command is not None or few:
        return ThreadPoolExecutor(jobs)
    # espeak-ng has global state, so each process speaks one text at a time. Processes are spawned because a fork of a
    # process with threads can hang. They ignore Ctrl-C because this process stops them.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignore)


def _limited(items: Iterable[Item], limit: int | None) -> Iterator[Item]:
    left = limit
    for item in items:
        if left == 0:
            return
        yield item
        if left is not None and not isinstance(item, Reached):
            left -= 1


def _read(texts: Path, options: TtsOptions) -> Iterator[Item]:
    if texts.suffix == ".json":
        yield from _squad(texts, options)
        return
    records = _records(texts)
    for _, group in groupby(records, key=lambda found: found[1].get("context", found[0])):
        found = list(group)  # all questions about a passage, or one text
        number, record, fraction = found[0]
        if "context" in record:
            yield _passage(record, [record for _, record, _ in found], f"{texts.stem}-{number:06d}", texts, options)
        else:
            yield _utterance(record, f"{texts.stem}-{number:06d}", texts, options)
        yield Reached(fraction)


def _records(texts: Path) -> Iterator[tuple[int, dict[str, Any], float]]:
    """Yield line number, record and the share of the file that is read."""
    is_json = texts.suffix == ".jsonl"
    for number, line, fraction in read_lines(texts):
        if not line.strip():
            continue
        if not is_json:
            yield number, {"text": line}, fraction
            continue
        yield number, parse_record(line, f"{texts}:{number}", EXPECTED), fraction


def _utterance(record: dict[str, Any], name: str, texts: Path, options: TtsOptions) -> Item:
    """Return the recording of a text with its translations."""
    spoken = record.get(options.language, record.get("text"))
    name = str(record.get("id", name))
    if spoken is None:
        raise CorpusError(f"{texts}: {name!r} has no text in {options.language!r}; its keys are {', '.join(record)}")
    if not clean(spoken):
        return Dropped(name, "no text")
    others = LANGUAGE_NAMES.keys() - {options.language, "id"}  # "id" is the id of the line; Indonesian must be selected
    codes = options.targets or tuple(code for code in record if code in others)
    sample, make = _spoken(name, clean(spoken), options.language, options)
    plain = Options(lower=options.lower)
    lines = [(texts.stem, asr_line(sample, plain))]
    for code in codes:
        if isinstance(record.get(code), str) and clean(record[code]):
            lines.append((f"{texts.stem}.st-{code}", st_line(sample, code, record[code], plain)))
    return Recording(tuple(lines), make)


def _passage(
    passage: dict[str, Any], questions: list[dict[str, Any]], name: str, texts: Path, options: TtsOptions
) -> Item:
    """Return the recording of a passage with its questions: ``question``, ``answers`` and an optional ``id``."""
    name = str(passage.get("id", name))
    text = clean(passage["context"])
    if not text:
        return Dropped(name, "no text")
    sample, make = _spoken(name, text, str(passage.get("language", options.language)), options)
    transcript = asr_line(sample, Options(lower=options.lower))
    lines = [(texts.stem, transcript)]
    for number, question in enumerate(questions):
        answers = tuple(dict.fromkeys(filter(None, map(clean, _answers(question)))))
        if not clean(question.get("question")) or not answers:
            continue
        question_id = f"{question.get('id', f'{name}-{number}')}-qa"
        asked = replace(transcript, id=question_id, task="qa", instruction=clean(question["question"]), answers=answers)
        lines.append((f"{texts.stem}.qa", asked))
    return Recording(tuple(lines), make)


def _answers(question: dict[str, Any]) -> list[str]:
    """Return ``answer`` if there is one, then ``answers``: texts, or SQuAD's ``{"text": ...}``."""
    found = [question["answer"]] if "answer" in question else []
    return found + [answer["text"] if isinstance(answer, dict) else answer for answer in question.get("answers", [])]


def _squad(texts: Path, options: TtsOptions) -> Iterator[Item]:
    try:
        articles = json.loads(texts.read_text(encoding="utf-8"))["data"]
        for number, article in enumerate(articles):
            for place, paragraph in enumerate(article["paragraphs"]):
                yield _passage(paragraph, paragraph["qas"], f"{texts.stem}-{number}_{place}", texts, options)
            yield Reached((number + 1) / len(articles))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{texts}: does not have the layout of SQuAD ({error!r}); expected data, paragraphs, context, qas"
        ) from error


def _spoken(name: str, text: str, language: str, options: TtsOptions) -> tuple[Sample, Make]:
    """Return the utterance and what speaks it. The voice depends on seed and id, not on the order of the lines."""
    draw = zlib.crc32(f"{options.seed} {name}".encode())
    make: Make
    if options.command is None:
        voices = espeak_voices(language, options.kind)
        voice = voices[draw % len(voices)]
        speaker, make = voice.name, EspeakMaker(text, voice, options.seed)
    else:
        speaker = options.voices[draw % len(options.voices)] if options.voices else ""
        make = CommandMaker(options.command, text, speaker, language)
    audio = Path("audio") / f"{safe_name(name)}.wav"
    return Sample(id=name, audio=audio, text=text, language=language, speaker=speaker or None), make
