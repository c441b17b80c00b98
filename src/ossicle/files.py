"""Write files and folders atomically: after a crash there is the old version or the new one, never a part."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` if the block ends without an error.

    The temporary file keeps the suffix, because some libraries choose the format by it. Its permissions follow the
    umask, even where a library made the file private.
    """
    path = Path(path)
    if path.is_dir():  # before the work; the rename would name the temporary file
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.partial{path.suffix}")
    try:
        yield partial
        _sync(partial)
        partial.chmod(0o666 & ~_UMASK)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``, and rename it to ``path`` if the block ends without an error.

    An existing folder ``path`` is replaced as a whole. At most one process may write ``path`` at a time: what an
    interrupted call left is deleted. Temporary names start with a dot.
    """
    path = Path(path)
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.exists():  # a folder that is not empty cannot be replaced in one step
            path.rename(old)
        partial.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON. Raises `ValueError` for numbers that JSON does not have (NaN, infinity)."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _sync(path: Path) -> None:
    """Wait until ``path`` is on the disk, so that a rename never makes an empty file visible."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
