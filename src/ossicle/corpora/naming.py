"""Make the ids and file names of a corpus unique, and leave out lines that no reader of manifests accepts.

Every item passes through here before its audio is opened, in the order of the corpus. Ids and names therefore do not
change when a preparation resumes, or when utterances are left out for their duration.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ossicle.addresses import is_remote, url_of
from ossicle.batch import Sample
from ossicle.corpora.disk import DiskDict
from ossicle.corpora.items import Dropped, Item, Reached, Recording, printable
from ossicle.data.manifest import manifest_line, parse_line
from ossicle.errors import ManifestError

MAX_NAME_BYTES = 120
"""Longest file name that is made from an id, in bytes. File systems allow 255, and temporary names are longer."""
MAX_SUFFIX = 10
"""Longest suffix of a file name, in characters. What follows the last dot of a longer one belongs to the name."""
LANGUAGE = re.compile(r"[^\W_][\w ().,'-]{0,63}")
"""A language tag such as ``zh-CN``, or the name of a language. It becomes part of a file name and of a command."""
SURROGATE = re.compile("[\ud800-\udfff]")
RESERVED_MANIFEST = "dropped"
"""Name of the list of left out utterances, which no manifest may have."""


def safe_name(name: str) -> str:
    """Return an id as a file name: underscores for special characters, and a hash instead of the end of a long id.

    Different ids may have the same file name.
    """
    safe = re.sub(r"[^\w.-]", "_", name)
    if safe[:1] in (".", "-"):
        safe = f"_{safe[1:]}"
    if len(safe.encode()) > MAX_NAME_BYTES:
        start = safe.encode()[: MAX_NAME_BYTES - 17].decode(errors="ignore")
        safe = f"{start}-{_digest(name)[:16]}"
    return safe


def plain_path(path: Path) -> str:
    """Return the absolute path or the URL as valid Unicode, with escapes for bytes that are not UTF-8."""
    return (url_of(path) if is_remote(path) else str(path.resolve())).encode("utf-8", "backslashreplace").decode()


class Names:
    """The ids and file names that are in use, on disk."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._used = DiskDict()

    def apply(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items with unique ids in each manifest and a file of its own for each recording that is made.

        A repeated id gets a number: ``a``, ``a-2``, ``a-3``. A line that equals an earlier one in everything is left
        out, and so is a line that cannot be read back from a manifest.
        """
        for item in items:
            if isinstance(item, Reached):
                yield item
            elif isinstance(item, Dropped):
                yield Dropped(printable(str(item.id)), item.reason, printable(item.detail))
            else:
                yield from self._recording(item)

    def _recording(self, recording: Recording) -> Iterator[Item]:
        kept: list[tuple[str, Sample]] = []
        for manifest, line in recording.lines:
            found = self._line(_manifest_name(manifest), line, shared=recording.make is None)
            if isinstance(found, Dropped):
                yield found
            else:
                kept.append(found)
        if not kept:
            return
        if recording.make is not None:
            audio = self._free_path(recording.lines[0][1].audio)
            kept = [(manifest, replace(line, audio=audio)) for manifest, line in kept]
        yield Recording(tuple(kept), recording.make)

    def _line(self, manifest: str, line: Sample, *, shared: bool) -> tuple[str, Sample] | Dropped:
        """Return the line with an id that is free in its manifest, or why it is left out.

        ``shared`` is True if the audio is a file of the corpus, so that equal paths mean equal audio.
        """
        reason = "invalid line"
        try:
            problem = _language_problem(line)
            text = "" if problem else manifest_line(replace(line, duration_s=None), self._out)
            text.encode()
            if text:
                parse_line(text, self._out, "line")
        except UnicodeEncodeError:
            reason, problem = "not UTF-8", _not_unicode(line)
        except (ManifestError, AttributeError, TypeError, ValueError, OSError) as error:
            problem = str(error).removeprefix("line: ")
        if problem:
            where = "" if line.source == "<memory>" else f"{line.source}: "
            return Dropped(printable(str(line.id)), reason, printable(f"{where}{problem}"))
        number = self._number(f"id\n{manifest}\n", line.id, _digest(text) if shared else "")
        if number == 0:
            return Dropped(line.id, "repeated line", f"in {manifest}.jsonl; the first line is kept")
        return manifest, line if number == 1 else replace(line, id=f"{line.id}-{number}")

    def _free_path(self, path: Path) -> Path:
        """Return a path that no earlier recording has, also where upper and lower case are not distinguished."""
        stem, suffix = (path.stem, path.suffix) if len(path.suffix) <= MAX_SUFFIX else (path.name, "")
        folder, safe = "/".join(safe_name(part) for part in path.parent.parts), safe_name(stem)
        suffix = re.sub(r"[^\w.]", "_", suffix)
        key = unicodedata.normalize("NFC", f"{folder}/{safe}").casefold()
        number = self._number("file\n", key, suffix=suffix.casefold())
        return Path(folder) / f"{safe}{'' if number == 1 else f'-{number}'}{suffix}"

    def _number(self, group: str, name: str, content: str = "", suffix: str = "") -> int:
        """Return 1 for a new name, else the number that makes it new, or 0 if ``content`` is that of an earlier one."""
        key = f"{group}{name}{suffix}"
        if self._used.add(key, content):
            return 1
        if content and (self._used.get(key) == content or not self._used.add(f"content\n{key}\n{content}")):
            return 0
        number = int(self._used.get(f"number\n{key}") or 1) + 1
        while not self._used.add(f"{group}{name}-{number}{suffix}"):
            number += 1
        self._used.put(f"number\n{key}", str(number))
        return number


def _manifest_name(name: str) -> str:
    safe = safe_name(name)
    return f"{safe}-corpus" if safe.casefold() == RESERVED_MANIFEST else safe


def _language_problem(line: Sample) -> str:
    for name, value in (("language", line.language), ("target_language", line.target_language)):
        if value is not None and not (isinstance(value, str) and LANGUAGE.fullmatch(value)):
            return f'"{name}" is {value!r}; write a tag such as "de" or "zh-CN"'
    return ""


def _not_unicode(line: Sample) -> str:
    """Return which field holds bytes that are not UTF-8. A reader keeps them as lone surrogates."""
    fields = {"id": line.id, "audio": line.audio, "text": line.text, "instruction": line.instruction}
    fields |= {"answers": line.answers, "speaker": line.speaker}
    wrong = [name for name, value in fields.items() if SURROGATE.search(str(value))]
    return f'"{wrong[0] if wrong else "extra"}" is not UTF-8; save names and texts as UTF-8'


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
