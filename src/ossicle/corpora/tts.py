"""`ossicle prepare-tts`: a corpus of texts becomes generated speech with manifests, as Spoken-SQuAD was made.

Four kinds of TEXTS, told apart by what they hold: plain text, one utterance a line; JSONL with a language code as key
of each text (``{"en": ..., "de": ...}``); JSONL with context, question and answers; SQuAD's own JSON. Each utterance or
passage is spoken once; its transcript, translations and questions are lines about the same audio.
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
from ossicle.corpora.prepare import changed, done_before
from ossicle.corpora.report import Bar, Report
from ossicle.corpora.tables import safe_name
from ossicle.corpora.tts_engines import CommandMaker, EspeakMaker, espeak_voices, fill
from ossicle.corpora.voices import espeak
from ossicle.corpora.writer import Limits, write
from ossicle.errors import CorpusError
from ossicle.prompts import LANGUAGE_NAMES

PARALLEL_FROM = 64
"""Fewer utterances than this are spoken sooner than new processes start."""
EXPECTED = 'one text a line; or JSONL with {"en": .., "de": ..} or {"context": .., "question": .., "answers": [..]}'


@dataclass(frozen=True, kw_only=True)
class TtsOptions:
    """How to speak."""

    language: str = "en"
    """Spoken, where the line does not say."""
    targets: tuple[str, ...] = ()
    """Languages to translate to; empty: all there are."""
    command: str | None = None
    """Template of a command that speaks; ``None``: espeak-ng."""
    voices: tuple[str, ...] = ()
    """Names for ``{voice}`` in the command; each is drawn equally often."""
    kind: Literal["train", "test"] = "train"
    """Which of espeak-ng's voices."""
    seed: int = 0
    limit: int | None = None
    """Utterances, from the first."""
    lower: bool = False
    min_s: float = 0.0
    max_s: float = float("inf")


def prepare_tts(
    texts: Path, out: Path, options: TtsOptions | None = None, *, jobs: int | None = None, show: bool | None = None
) -> Report:
    """Speak ``texts`` into ``out/audio`` and write manifests ``NAME`` (asr), ``NAME.st-TARGET`` and ``NAME.qa``.

    A call that was stopped is continued. espeak-ng speaks in ``jobs`` processes (``None``: one per core), a command in
    as many threads. Raises `CorpusError` for texts of another form or a command that is not there, and
    `ossicle.corpora.voices.VoiceError` without espeak-ng.
    """
    options = options or TtsOptions()
    if not texts.is_file():
        raise CorpusError(f"{texts}: there is no such file; expected {EXPECTED}")
    _check_engine(options)
    about = {"corpus": "tts", "source": str(texts.resolve()), "options": changed(options, TtsOptions())}
    done = done_before(out, about)
    if done is not None:
        return done
    items = _limited(_read(texts, options), options.limit)
    first = list(islice(items, 2 * PARALLEL_FROM))  # half of them only tell how far it is
    with Bar("speaking", show=show) as bar, _pool(options, len(first) < 2 * PARALLEL_FROM, jobs) as pool:
        return write(chain(first, items), out, about, Limits(options.min_s, options.max_s), pool, bar=bar)


def _check_engine(options: TtsOptions) -> None:
    if options.command is None:
        espeak()
        return
    words = fill(options.command, {})
    if not words or shutil.which(words[0]) is None:
        raise CorpusError(f"--command {options.command}: there is no program {words[0] if words else ''!r}")
    if "{out}" not in options.command:
        raise CorpusError(f"--command {options.command}: does not say where {{out}}, the audio file to write, goes")
    if "{voice}" in options.command and not options.voices:
        raise CorpusError(f"--command {options.command}: has {{voice}}; name voices with --voice")


def _pool(options: TtsOptions, few: bool, jobs: int | None) -> Executor:
    if options.command is not None or few:
        return ThreadPoolExecutor(jobs)
    # Processes, as espeak-ng is one engine per process; spawned, as a fork of a process with threads can hang.
    # Ctrl-C is for this process alone: it ends the others in order.
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
        found = list(group)  # the questions about one passage, or a single text
        number, record, fraction = found[0]
        if "context" in record:
            yield _passage(record, [record for _, record, _ in found], f"{texts.stem}-{number:06d}", texts, options)
        else:
            yield _utterance(record, f"{texts.stem}-{number:06d}", texts, options)
        yield Reached(fraction)


def _records(texts: Path) -> Iterator[tuple[int, dict[str, Any], float]]:
    """Line number, what the line holds, and the share of the file read."""
    is_json = texts.suffix == ".jsonl"
    for number, line, fraction in read_lines(texts):
        if not line.strip():
            continue
        if not is_json:
            yield number, {"text": line}, fraction
            continue
        yield number, parse_record(line, f"{texts}:{number}", EXPECTED), fraction


def _utterance(record: dict[str, Any], name: str, texts: Path, options: TtsOptions) -> Item:
    """A text with its translations."""
    spoken = record.get(options.language, record.get("text"))
    name = str(record.get("id", name))
    if spoken is None:
        raise CorpusError(f"{texts}: {name!r} has no text in {options.language!r}; it has {', '.join(record)}")
    if not clean(spoken):
        return Dropped(name, "no text")
    others = LANGUAGE_NAMES.keys() - {options.language, "id"}  # "id" names the line; Indonesian has to be asked for
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
    """A passage with the questions about it; a question is ``question``, ``answers`` and maybe ``id``."""
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
    """The preferred ``answer`` first, then all of ``answers``: texts, or SQuAD's ``{"text": ...}``."""
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
        raise CorpusError(f"{texts}: is not laid out like SQuAD ({error!r}): data, paragraphs, context, qas") from error


def _spoken(name: str, text: str, language: str, options: TtsOptions) -> tuple[Sample, Make]:
    """The utterance and what speaks it: the voice is drawn by seed and id, not by the order of the lines."""
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
