"""Find the members of a tar shard without unpacking it: names in an archive never become paths."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ossicle.addresses import address_of, open_binary
from ossicle.errors import CorpusError

AUDIO_SUFFIXES = frozenset((".flac", ".wav", ".opus", ".ogg", ".mp3", ".m4a", ".aac", ".webm", ".mp4", ".wma"))
"""Suffixes of members that hold audio. Formats that libsndfile does not read need the extra ``av``."""
LONGEST_TEXT = 1 << 20
"""Largest member in bytes that is read as text."""


@dataclass(frozen=True)
class TarMember:
    """A file in a shard."""

    name: str
    audio: Path | None
    """Address of the member if it is audio."""
    text: bytes | None
    """Content of the member if its suffix was asked for."""
    fraction: float
    """Share of the shard up to the end of the member."""


def members(shard: Path, *texts: str) -> Iterator[TarMember]:
    """Yield the files in a shard, which may be at a URL; the content of those with a suffix in ``texts`` is read.

    Raises `CorpusError` if the shard is missing, damaged or compressed.
    """
    try:
        with open_binary(shard) as file:
            size = max(file.seek(0, 2), 1)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # else the headers of the shard are kept
                    if member.isreg() and not member.issparse():
                        yield _member(shard, tar, member, texts, size)
    except tarfile.ReadError as error:
        raise CorpusError(
            f"{shard}: is damaged or not a plain tar file ({error}); download it again, or unpack .tar.gz to .tar, "
            "because members are read by their offset"
        ) from error
    except OSError as error:
        raise CorpusError(f"{shard}: cannot be read ({error}); check the address and access") from error


def _member(shard: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, texts: tuple[str, ...], size: int) -> TarMember:
    suffix = Path(member.name).suffix.lower()
    end, text = member.offset_data + member.size, None
    if suffix in texts and member.size <= LONGEST_TEXT:
        content = tar.extractfile(member)
        text = content.read() if content is not None else b""
    audio = address_of(shard, member.offset_data, member.size, suffix) if suffix in AUDIO_SUFFIXES else None
    return TarMember(member.name, audio, text, min(end / size, 1.0))
