"""Read and write manifests: files with one JSON object per line, each of which is a `Sample`.

    {"id": "a1", "audio": "wav/a1.flac", "text": "anna saw the car", "language": "en", "speaker": "anna",
     "duration_s": 2.1}
    {"id": "a1-st", "audio": "wav/a1.flac", "task": "st", "instruction": "translate to german",
     "answer": "anna sah das auto", "target_language": "de"}

A relative ``audio`` starts at the manifest's folder. ``start_s`` and ``end_s`` select a segment of a long file, and
``duration_s`` is then the segment's. Several references go in ``answers``. Unknown fields are kept in `Sample.extra`.
"""

from __future__ import annotations

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ossicle.addresses import is_remote, url_of
from ossicle.batch import Sample
from ossicle.errors import ManifestError

TEXT_FIELDS = ("text", "language", "speaker", "task", "instruction", "target_language")
TEXT_OR_NULL = (str, type(None))
SECONDS_FIELDS = ("duration_s", "start_s", "end_s")
LONGEST_S, LONGEST_ID, LONGEST_PATH, LONGEST_NAME, DEEPEST = 1e8, 1000, 4096, 255, 50
"""Largest number of seconds, of characters of an id, of bytes of a path and of one name in it, and of nested values."""
KNOWN_FIELDS = frozenset(("id", "audio", "answer", "answers", *TEXT_FIELDS, *SECONDS_FIELDS))


def read_manifest(path: str | Path) -> list[Sample]:
    """Return the samples in file order; blank lines are ignored. Raises `ManifestError` at the first invalid line.

    `ossicle.data.table.open_manifests` returns the same samples for millions of lines, without holding them in memory.
    """
    samples: list[Sample] = []
    line_of_id: dict[str, str] = {}
    for sample in iterate_manifest(path):
        number = sample.source.rpartition(":")[2]
        earlier = line_of_id.setdefault(sample.id, number)
        if earlier != number:
            raise repeated_id(sample, earlier)
        samples.append(sample)
    return samples


def iterate_manifest(path: str | Path) -> Iterator[Sample]:
    """Yield the samples one by one, in constant memory; unlike `read_manifest`, this does not find repeated ids."""
    path = Path(path)
    check_path(path)
    for number, _, line in numbered_lines(path):
        yield parse_line(line, path.parent, f"{path}:{number}")


def check_path(path: Path) -> None:
    """Raise `ManifestError` if ``path`` is not a file."""
    try:
        found = path.is_file()
    except (OSError, ValueError) as error:  # a path that is too long, or has characters that no path has
        raise ManifestError(f"{str(path)[:100]!r}: no manifest can have this path; check data.train") from error
    if not found:
        raise ManifestError(f"{path}: there is no such manifest; check the path under data in the configuration")


def numbered_lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield the number, the offset in bytes and the text of each line that is not blank.

    Lines end at \\n only, because JSON strings may hold other separators (U+2028). A byte-order mark is left out.
    """
    with path.open("rb") as file:
        begin = 0
        for number, raw in enumerate(file, start=1):
            mark = len(BOM_UTF8) if number == 1 and raw.startswith(BOM_UTF8) else 0
            try:
                line = raw[mark:].decode()
            except UnicodeDecodeError as error:
                raise ManifestError(f"{path}:{number}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
            if line.strip():
                yield number, begin + mark, line
            begin += len(raw)


def repeated_id(sample: Sample, earlier: str) -> ManifestError:
    """Return the error for a sample with the id of the line number ``earlier``."""
    return ManifestError(f"{sample.source}: id {sample.id!r} is already on line {earlier}; make every id unique")


def write_manifest(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write ``samples`` atomically, so that `read_manifest` returns them.

    Paths of audio below the manifest's folder are written relative to it. Raises `ManifestError` for a sample that
    cannot be written as JSON.
    """
    from ossicle.files import atomic  # only writing needs it, and training only reads

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.path.abspath(path.parent) + os.sep  # noqa: PTH100 - Path.resolve would follow links
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for sample in samples:
            file.write(_dump(sample, folder) + "\n")


def manifest_line(sample: Sample, folder: str | Path) -> str:
    """Return the line for ``sample``, without its line end, in a manifest that lies in ``folder``."""
    return _dump(sample, os.path.abspath(folder) + os.sep)  # noqa: PTH100 - Path.resolve would follow links


def parse_line(line: str, folder: Path, source: str) -> Sample:
    """Return the sample on a line of a manifest in ``folder``. Raises `ManifestError`, which begins with ``source``."""
    record = _load(line, source)
    if not isinstance(record, dict):
        raise ManifestError(f'{source}: is not a JSON object; write {{"id": ..., "audio": ...}}')
    for name in ("id", "audio"):
        if not isinstance(record.get(name), str) or not record[name]:
            raise ManifestError(f'{source}: "{name}" is {_found(record, name)}; every line needs it as a string')
    if len(record["id"]) > LONGEST_ID:
        raise ManifestError(f'{source}: "id" has {len(record["id"])} characters; write at most {LONGEST_ID}')
    if "\0" in record["audio"] or (len(record["audio"]) > LONGEST_NAME and _too_long(record["audio"])):
        raise ManifestError(f'{source}: "audio" is {_found(record, "audio")}..., which no path can be; correct it')
    for name in TEXT_FIELDS:
        if not isinstance(record.get(name), TEXT_OR_NULL):
            raise ManifestError(f'{source}: "{name}" is {_found(record, name)}; write a string, or null if unknown')
    duration_s, start_s, end_s = (_seconds(record, name, source) for name in SECONDS_FIELDS)
    if duration_s == 0:
        raise ManifestError(f'{source}: "duration_s" is 0; correct it, or leave it out to have it measured')
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ManifestError(
            f'{source}: "end_s" ({end_s}) is not after "start_s" ({start_s or 0.0}); correct the segment'
        )
    return Sample(
        id=record["id"],
        audio=_audio_path(record["audio"], folder),
        duration_s=duration_s,
        start_s=start_s or 0.0,
        end_s=end_s,
        answers=_answers(record, source),
        extra={name: value for name, value in record.items() if name not in KNOWN_FIELDS},
        source=source,
        **{name: record.get(name) for name in TEXT_FIELDS},
    )


def _audio_path(audio: str, folder: Path) -> Path:
    if ":/" in audio and is_remote(audio):
        return Path(audio)
    return folder / os.path.expanduser(audio)  # noqa: PTH111 - Path is slow, and there are many lines


def _load(line: str, source: str) -> Any:
    """Return the value on a line of JSON. Raises `ManifestError` if later steps could not use or write it."""
    try:
        record = json.loads(line)
        if "\\u" in line:  # only an escape can write half of a character
            json.dumps(record, ensure_ascii=False).encode()
        deep = line.count("[") + line.count("{") > DEEPEST and _depth(record) > DEEPEST
    except UnicodeEncodeError as error:
        half = f"{ord(error.object[error.start]):04x}"
        raise ManifestError(
            f"{source}: holds half a character (\\u{half} without its pair); correct the text"
        ) from error
    except RecursionError:
        deep = True
    except ValueError as error:
        raise ManifestError(f"{source}: is not JSON ({error!s:.80}); write one JSON object on each line") from error
    if deep:
        raise ManifestError(f"{source}: has values nested deeper than {DEEPEST}; write them flat")
    return record


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [
        child
        for item in level
        if isinstance(item, dict | list)
        for child in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
    return depth


def _too_long(path: str) -> bool:
    encoded = path.encode()
    return len(encoded) > LONGEST_PATH or max(map(len, encoded.split(b"/"))) > LONGEST_NAME


def _seconds(record: dict[str, Any], name: str, source: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_S:
        raise ManifestError(
            f'{source}: "{name}" is {_found(record, name)}; write seconds, a number from 0 up, at most {LONGEST_S:.0e}'
        )
    return float(value)


def _answers(record: dict[str, Any], source: str) -> tuple[str, ...]:
    """Return the references, from ``answer`` or ``answers``; a line with an instruction needs at least one."""
    answer, answers = record.get("answer"), record.get("answers")
    if answer is not None and answers is not None:
        raise ManifestError(f'{source}: has both "answer" and "answers"; keep one of them')
    if answers is None:
        answers = [] if answer is None else [answer]
    if not isinstance(answers, list) or not all(isinstance(text, str) and text.strip() for text in answers):
        name = "answers" if answer is None else "answer"
        fix = 'write a non-empty string in "answer", or a list of them in "answers"'
        raise ManifestError(f'{source}: "{name}" is {_found(record, name)}; {fix}')
    if record.get("instruction") is not None and not answers:
        raise ManifestError(
            f'{source}: has an "instruction" but no answer; add "answer", or "answers" for several references'
        )
    return tuple(answers)


def _found(record: dict[str, Any], name: str) -> str:
    return json.dumps(record[name], ensure_ascii=False)[:60] if name in record else "missing"


def _dump(sample: Sample, folder: str) -> str:
    clash = KNOWN_FIELDS & sample.extra.keys()
    if clash:
        raise ManifestError(f"sample {sample.id!r}: extra holds {sorted(clash)}; set these fields of Sample instead")
    remote = is_remote(sample.audio)
    audio = url_of(sample.audio) if remote else os.path.abspath(sample.audio)  # noqa: PTH100
    record: dict[str, Any] = {
        "id": sample.id,
        "audio": audio.removeprefix(folder).replace(os.sep, "/"),
        **{name: getattr(sample, name) for name in (*TEXT_FIELDS, *SECONDS_FIELDS)},
    }
    record = {name: value for name, value in record.items() if value is not None and (name, value) != ("start_s", 0.0)}
    if len(sample.answers) == 1:
        record["answer"] = sample.answers[0]
    elif sample.answers:
        record["answers"] = list(sample.answers)
    try:
        return json.dumps(record | dict(sample.extra), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ManifestError(f"sample {sample.id!r}: cannot be written as JSON ({error}); correct its fields") from error
