"""Convert texts into generated speech with manifests, as in Spoken-SQuAD (`ossicle prepare-tts`).

TEXTS has one of four formats: plain text with one utterance per line; JSONL with a language code as key of each text
(``{"en": ..., "de": ...}``); JSONL with context, question and answers; or the JSON of SQuAD. Each utterance or passage
is spoken once. Its transcript, translations and questions become lines with the same audio.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from ossicle.batch import Sample
from ossicle.corpora.items import (
    BAD_ROW,
    Dropped,
    Item,
    Make,
    Options,
    Reached,
    Recording,
    asr_line,
    bad_row,
    clean,
    label,
    parse_record,
    printable,
    read_lines,
    st_line,
)
from ossicle.corpora.naming import plain_path, safe_name
from ossicle.corpora.piper import PiperMaker, check_voices, number_of_speakers
from ossicle.corpora.prepare import non_defaults, write_once
from ossicle.corpora.report import Report
from ossicle.corpora.tts_engines import CommandMaker, EspeakMaker, check_command, espeak_voices
from ossicle.corpora.voices import espeak
from ossicle.corpora.writer import Limits
from ossicle.errors import CorpusError
from ossicle.prompts import LANGUAGE_NAMES
from ossicle.shards import Shard
from ossicle.workers import start_worker

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
    piper: tuple[str, ...] = ()
    """Voices of Piper (VOICE.onnx), drawn with equal probability; they speak instead of espeak-ng."""
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
    texts: Path,
    out: Path,
    options: TtsOptions | None = None,
    *,
    jobs: int | None = None,
    show: bool = True,
    shard: Shard | None = None,
) -> Report:
    """Write the speech of ``texts`` to ``out/audio``, and manifests for it.

    The manifests are ``NAME`` (asr), ``NAME.st-TARGET`` and ``NAME.qa``. An interrupted call resumes. espeak-ng runs in
    ``jobs`` processes, one per core by default. A command runs in ``jobs`` threads. With ``shard``, only this part is
    spoken, and the last part of several calls writes the manifests.

    Raises:
        CorpusError: the texts have another format, or the command is invalid.
        VoiceError: espeak-ng is needed and not installed, or a voice of Piper is missing.
        MissingPackageError: Piper is needed and not installed.
    """
    options = options or TtsOptions()
    if not texts.is_file():
        raise CorpusError(f"{texts}: there is no such file; expected {EXPECTED}")
    _check_engine(options)
    about = {"corpus": "tts", "source": plain_path(texts), "options": non_defaults(options, TtsOptions())}

    def read() -> Iterator[Item]:
        return _limited(_read(texts, options), options.limit)

    def pool() -> Executor:
        many = 2 * PARALLEL_FROM * (1 if shard is None else shard.count)  # every second item is a `Reached`
        return _pool(options, next(islice(read(), many - 1, None), None) is None, jobs)

    limits = Limits(options.min_s, options.max_s)
    return write_once(read, out, about, limits, pool, title="speaking", show=show, shard=shard)


def prepare_tts_shard(shard: Shard, texts: Path, out: Path, options: TtsOptions, jobs: int | None) -> None:
    """Do the part ``shard`` of `prepare_tts` without a display, in one process by default, because Ray runs several."""
    prepare_tts(texts, out, options, jobs=jobs or 1, show=False, shard=shard)


def _check_engine(options: TtsOptions) -> None:
    if options.piper:
        if options.command is not None:
            raise CorpusError("--piper and --command both speak: give one of them")
        check_voices(options.piper)
    elif options.command is not None:
        check_command(options.command, options.voices)
    else:
        espeak()


def _pool(options: TtsOptions, few: bool, jobs: int | None) -> Executor:
    if options.command is not None or few or jobs == 1:
        return ThreadPoolExecutor(jobs)
    # espeak-ng has global state, so each process speaks one text at a time. Processes are spawned because a fork of a
    # process with threads can hang. They ignore Ctrl-C because this process stops them.
    arguments = (os.getpid(), True)
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=start_worker, initargs=arguments)


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
    for _, group in groupby(records, key=_group):
        found = list(group)  # all questions about a passage, or one text
        number, record, fraction = found[0]
        where, name = f"{texts}:{number}", f"{texts.stem}-{number:06d}"
        try:
            if isinstance(record, Dropped):
                yield record
            elif "context" in record:
                questions = [question for _, question, _ in found if not isinstance(question, Dropped)]
                yield from _passage(record, questions, name, where, texts.stem, options)
            else:
                yield _utterance(record, name, where, texts.stem, options)
        except BAD_ROW as error:
            yield bad_row(where, error, name)
        yield Reached(fraction)


def _group(found: tuple[int, dict[str, Any] | Dropped, float]) -> tuple[Any, ...]:
    """Return a key that consecutive lines about one passage share, and other lines do not."""
    number, record, _ = found
    if isinstance(record, Dropped) or "context" not in record:
        return (number,)
    return ("passage", record["context"], record.get("language"))


def _records(texts: Path) -> Iterator[tuple[int, dict[str, Any] | Dropped, float]]:
    """Yield line number, record and the share of the file that is read."""
    is_json = texts.suffix == ".jsonl"
    for number, line, fraction in read_lines(texts):
        if not line.strip():
            continue
        if not is_json:
            yield number, {"text": line}, fraction
            continue
        try:
            yield number, parse_record(line, f"{texts}:{number}", EXPECTED), fraction
        except CorpusError as error:
            yield number, bad_row(f"{texts}:{number}", error), fraction


def _utterance(record: dict[str, Any], name: str, where: str, stem: str, options: TtsOptions) -> Item:
    """Return the recording of a text with its translations."""
    spoken = record.get(options.language, record.get("text"))
    name = label(record.get("id"), "id") or name
    if spoken is None:
        keys = ", ".join(record)
        raise CorpusError(f"{where}: {name!r} has no text in {options.language!r}; its keys are {keys}")
    if not clean(spoken):
        return Dropped(name, "no text")
    others = LANGUAGE_NAMES.keys() - {options.language, "id"}  # "id" is the id of the line; Indonesian must be selected
    codes = options.targets or tuple(code for code in record if code in others)
    sample, make = _spoken(name, clean(spoken), options.language, where, options)
    plain = Options(lower=options.lower)
    lines = [(stem, asr_line(sample, plain))]
    for code in codes:
        if isinstance(record.get(code), str) and clean(record[code]):
            lines.append((f"{stem}.st-{code}", st_line(sample, code, record[code], plain)))
    return Recording(tuple(lines), make)


def _passage(
    passage: dict[str, Any], questions: list[dict[str, Any]], name: str, where: str, stem: str, options: TtsOptions
) -> Iterator[Item]:
    """Yield the recording of a passage with its questions (``question``, ``answers``, ``id``), and those left out."""
    name = label(passage.get("id"), "id") or name
    text = clean(passage["context"])
    if not text:
        yield Dropped(name, "no text")
        return
    language = label(passage.get("language"), "language") or options.language
    sample, make = _spoken(name, text, language, where, options)
    transcript = asr_line(sample, Options(lower=options.lower))
    lines = [(stem, transcript)]
    for number, question in enumerate(questions):
        question_id = f"{name}-{number}"
        try:
            question_id = label(question.get("id"), "id") or question_id
            answers = tuple(dict.fromkeys(filter(None, map(clean, _answers(question)))))
            asked = clean(question.get("question"))
        except BAD_ROW as error:
            yield bad_row(where, error, question_id)
            continue
        if asked and answers:
            line = replace(transcript, id=f"{question_id}-qa", task="qa", instruction=asked, answers=answers)
            lines.append((f"{stem}.qa", line))
        elif asked or answers:
            yield Dropped(question_id, "question without an answer" if asked else "answer without a question")
    yield Recording(tuple(lines), make)


def _answers(question: dict[str, Any]) -> list[str]:
    """Return ``answer`` if there is one, then ``answers``: texts, or SQuAD's ``{"text": ...}``."""
    found = [question["answer"]] if "answer" in question else []
    found += question.get("answers") or []
    return [label(answer["text"] if isinstance(answer, dict) else answer, "answer") or "" for answer in found]


def _squad(texts: Path, options: TtsOptions) -> Iterator[Item]:
    try:
        articles = json.loads(texts.read_text(encoding="utf-8"))["data"]
        for number, article in enumerate(articles):
            for place, paragraph in enumerate(article["paragraphs"]):
                name = f"{texts.stem}-{number}_{place}"
                try:
                    yield from _passage(paragraph, paragraph["qas"], name, f"{texts}", texts.stem, options)
                except BAD_ROW as error:
                    yield bad_row(f"{texts}: passage {name}", f"does not have the layout of SQuAD ({error!r})", name)
            yield Reached((number + 1) / len(articles))
    except BAD_ROW as error:
        problem = f"does not have the layout of SQuAD ({printable(repr(error))})"
        raise CorpusError(f"{texts}: {problem}; expected data, paragraphs, context, qas") from error


def _spoken(name: str, text: str, language: str, where: str, options: TtsOptions) -> tuple[Sample, Make]:
    """Return the utterance and what speaks it. The voice depends on seed and id, not on the order of the lines."""
    draw = zlib.crc32(f"{options.seed} {name}".encode(errors="surrogatepass"))
    make: Make
    if options.piper:
        model = options.piper[draw % len(options.piper)]
        several = number_of_speakers(model)
        number = draw // len(options.piper) % several if several > 1 else None
        speaker = Path(model).stem + ("" if number is None else f"#{number}")
        make = PiperMaker(text, model, number, options.seed)
    elif options.command is None:
        voices = espeak_voices(language, options.kind)
        voice = voices[draw % len(voices)]
        speaker, make = voice.name, EspeakMaker(text, voice, options.seed)
    else:
        speaker = options.voices[draw % len(options.voices)] if options.voices else ""
        make = CommandMaker(options.command, text, speaker, language)
    audio = Path("audio") / f"{safe_name(name)}.wav"
    return Sample(id=name, audio=audio, text=text, language=language, speaker=speaker or None, source=where), make
