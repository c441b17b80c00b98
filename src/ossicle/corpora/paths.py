"""Find the files of a corpus."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize

from ossicle.addresses import is_remote

AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")


def subfolder(source: Path, name: str) -> Path:
    """Return ``source/name``, or ``source`` if it is that folder itself."""
    return source if source.name == name and not (source / name).is_dir() else source / name


def files_below(folder: Path) -> Iterator[tuple[Path, float]]:
    """Yield all files, and folders that cannot be read, at any depth, each with the share of the folders that is read.

    Hidden entries are left out, and the others of a folder are sorted by name. A folder that links lead to more than
    once is read once. Memory holds the names in the current folder and those above it.
    """
    seen: set[tuple[int, int]] = set()
    stack = [(iter(_entries(folder, seen)), 0.0, 1.0)]  # entries with their place, start and share of the folder
    while stack:
        entries, start, share = stack[-1]
        found = next(entries, None)
        if found is None:
            stack.pop()
            continue
        entry, place, step = found
        try:
            inner = _entries(Path(entry.path), seen) if entry.is_dir() else None
        except OSError:  # a link to itself, or no permission to read the folder
            inner = None
        if inner is None:
            yield Path(entry.path), start + (place + step) * share
        else:
            stack.append((iter(inner), start + place * share, step * share))


def _entries(folder: Path, seen: set[tuple[int, int]]) -> list[tuple[os.DirEntry[str], float, float]]:
    """Return the entries with their place and share in the folder, or none if the folder is in ``seen``."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return []
    seen.add((status.st_dev, status.st_ino))
    shown = (entry for entry in os.scandir(folder) if entry.name[0] != ".")
    entries = sorted(shown, key=lambda entry: entry.name)
    return [(entry, index / len(entries), 1 / len(entries)) for index, entry in enumerate(entries)]


def resolve_audio(folder: Path, path: str) -> Path:
    """Resolve a path relative to ``folder`` or, if it exists only there, to the working directory.

    A path that exists nowhere is tried with slashes instead of backslashes, and with its accents composed or
    decomposed, because other systems write it that way.
    """
    if is_remote(path):
        return Path(path)
    spellings = dict.fromkeys((path, path.replace("\\", "/"), *(normalize(form, path) for form in ("NFC", "NFD"))))
    for spelling in spellings:
        expanded = os.path.expanduser(spelling)  # noqa: PTH111 - Path.expanduser fails for unknown users
        for candidate in (folder / expanded, Path(expanded)):
            if os.path.exists(candidate):  # noqa: PTH110 - Path.exists fails for names that are too long
                return candidate
    return folder / path


def find_audio(stem: Path) -> Path | None:
    """Return the audio file with this path and any suffix, in lower or upper case, or None."""
    # Path.with_suffix would cut names such as en.20080901.22.1-097.
    suffixes = (*AUDIO_SUFFIXES, *map(str.upper, AUDIO_SUFFIXES))
    candidates = (f"{stem}{suffix}" for suffix in suffixes)
    return next((Path(path) for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - as above
