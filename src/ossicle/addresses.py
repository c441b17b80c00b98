"""Read audio that is not a file of its own: members of tar shards, and objects at URLs.

``audio`` of a manifest line may be an address instead of a path:

- ``shards/train-000.tar#1536+48044.flac``: 48,044 bytes from offset 1536 on, a FLAC file inside a tar shard;
- ``s3://bucket/a.flac``, ``gs://...``, ``hf://datasets/...``: an object that `fsspec` reads;
- ``s3://bucket/train-000.tar#1536+48044.flac``: both.

A member is read by its offset, so that shards are read in any order. Nothing is unpacked: names inside an archive never
become paths. `pathlib.Path` writes ``s3://bucket`` as ``s3:/bucket``; both mean the same here.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from ossicle.errors import AudioError, DataError, OssicleError

SCHEMES = ("s3", "gs", "hf", "memory", "file")
"""Schemes of URLs that are read. The packages for ``s3`` and ``gs`` are installed apart."""
REMOTE = re.compile(rf"({'|'.join(SCHEMES)}):/+(.+)", re.DOTALL)
MEMBER = re.compile(r"(.+)#(\d{1,18})\+(\d{1,18})(\.\w{1,10})", re.DOTALL)


class Member(NamedTuple):
    """A part of a file."""

    file: str
    offset: int
    size: int
    suffix: str


def is_address(path: str) -> bool:
    """Return True for a member of a shard and for a URL."""
    return (":/" in path or "#" in path) and (is_remote(path) or member_of(path) is not None)


def is_remote(path: str | Path) -> bool:
    """Return True for a URL, or for a member of a shard at a URL."""
    return REMOTE.match(str(path)) is not None


def member_of(path: str) -> Member | None:
    """Return the parts of the address of a member, or None for another path."""
    found = MEMBER.fullmatch(path)
    return None if found is None else Member(found[1], int(found[2]), int(found[3]), found[4])


def address_of(file: Path, offset: int, size: int, suffix: str) -> Path:
    """Return the address of ``size`` bytes of ``file`` from ``offset`` on, of the audio format ``suffix``."""
    return file.with_name(f"{file.name}#{offset}+{size}{suffix}")


def url_of(path: str | Path) -> str:
    """Return the URL of a path such as ``s3:/bucket/a``."""
    scheme, rest = REMOTE.match(str(path)).groups()  # type: ignore[union-attr] # callers check it
    return f"{scheme}:///{rest}" if scheme == "file" else f"{scheme}://{rest}"


def open_binary(file: str | Path) -> IO[bytes]:
    """Open a whole file, local or remote. Raises `OSError`, or `DataError` if a service cannot be reached."""
    if not is_remote(file):
        return Path(file).open("rb")
    from ossicle.remote import open_object  # most data are local

    return open_object(url_of(file))


def list_files(source: Path, *suffixes: str) -> list[Path]:
    """Return ``source`` if it is a file, or the files in the folder that end with one of ``suffixes``, sorted.

    Raises `DataError` if a remote folder cannot be listed.
    """
    if not is_remote(source):
        return [source] if source.is_file() else sorted(p for p in source.glob("[!.]*") if p.name.endswith(suffixes))
    from ossicle.remote import names_in

    try:
        names = names_in(url_of(source))
    except OSError as error:
        raise DataError(f"{url_of(source)}: cannot be listed ({error.strerror}); check the address") from error
    if names is None:
        return [source]
    return sorted(source / name for name in names if name.endswith(suffixes) and not name.startswith("."))


def read_bytes(path: str | Path) -> bytes:
    """Return the bytes at an address.

    Raises `AudioError` if they are not there or may not be read, and `DataError` if a service cannot be reached.
    """
    member = member_of(str(path))
    file, offset, size = (str(path), 0, None) if member is None else (member.file, member.offset, member.size)
    where = url_of(path) if is_remote(path) else path
    try:
        if is_remote(file):
            from ossicle.remote import read_object

            content = read_object(url_of(file), offset, None if size is None else offset + size)
        else:
            with Path(file).open("rb") as opened:
                opened.seek(offset)
                content = opened.read(-1 if size is None else size)
    except OssicleError:
        raise
    except FileNotFoundError as error:
        raise AudioError(f"{where}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise AudioError(f"{where}: cannot be read ({type(error).__name__}: {error!s:.200})") from error
    if not content or (size is not None and len(content) < size):
        raise AudioError(
            f"{where}: the shard ends before it; prepare the corpus again" if size else f"{where}: is empty"
        )
    return content


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a temporary file with the bytes at an address; `AudioError` in the block names the address."""
    content = read_bytes(path)
    with tempfile.TemporaryDirectory(prefix="ossicle-") as folder:
        copy = Path(folder) / f"audio{path.suffix}"
        copy.write_bytes(content)
        try:
            yield copy
        except AudioError as error:
            raise AudioError(str(error).replace(str(copy), str(path))) from error


def is_present(path: str) -> bool:
    """Return True if a member lies within its shard. A remote object of its own is not asked for: it takes too long."""
    member = member_of(path)
    return member is None or (member.size > 0 and _size_of(member.file, os.getpid()) >= member.offset + member.size)


@lru_cache(maxsize=4096)
def _size_of(file: str, _process: int) -> int:
    """Return the bytes of a shard, or 0 if it is missing. Raises `DataError` if a service cannot be reached."""
    try:
        if not is_remote(file):
            return os.stat(file).st_size  # noqa: PTH116
        from ossicle.remote import size_of

        return size_of(url_of(file))
    except OssicleError:
        raise
    except (OSError, ValueError):
        return 0


def version_of(path: Path) -> tuple[Any, int, Any]:
    """Return what identifies the content at a path or an address: where it is, its size, and when it changed."""
    member = member_of(str(path))
    file = path if member is None else Path(member.file)
    if is_remote(file):
        from ossicle.remote import version_of_object

        return (str(path), *version_of_object(url_of(file)))
    status = file.stat()
    if member is None:
        return file.resolve(), status.st_size, status.st_mtime_ns
    return f"{file.resolve()}#{member.offset}+{member.size}", status.st_size, status.st_mtime_ns
