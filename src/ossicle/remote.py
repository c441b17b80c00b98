"""Read objects at URLs with fsspec. Every error names the URL.

A missing or forbidden object raises `OSError`, as a local file does. Any other error of a service or of the network
raises `DataError`: it says nothing about the object, so that it must stop the work instead of leaving out an utterance.
The file systems repeat a failed request themselves before they raise an error.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any

from ossicle.errors import DataError, MissingPackageError, OssicleError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
"""Packages for the schemes that fsspec does not read by itself."""


def filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it. Raises `MissingPackageError` if it needs a package."""
    scheme = url.partition(":")[0]
    try:
        core: Any = import_module("fsspec.core")
        with naming(url):
            found: tuple[Any, str] = core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme, "fsspec")
        raise MissingPackageError(f"{url}: {scheme}:// needs {package}; install it: pip install {package}") from error
    return found


@contextmanager
def naming(url: str) -> Iterator[None]:
    """Name the URL in the errors of a block that reads it, as the module describes."""
    try:
        yield
    except (OssicleError, ImportError):
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such file or bucket", url) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, f"access is denied ({error!s:.200})", url) from error
    except Exception as error:  # each service has errors of its own
        raise DataError(
            f"{url}: cannot be read ({type(error).__name__}: {error!s:.300}); check the network, the endpoint and your "
            "credentials, then run the command again"
        ) from error


def open_object(url: str) -> IO[bytes]:
    """Open an object. Raises `OSError` or `DataError`, as `naming` does, here and when it is read."""
    return io.BufferedReader(_Object(url))


class _Object(io.RawIOBase):
    def __init__(self, url: str) -> None:
        system, path = filesystem(url)
        self._url = url
        with naming(url):
            self._file = system.open(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with naming(self._url):
            return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with naming(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def read_object(url: str, start: int, end: int | None) -> bytes:
    """Return the bytes of an object from ``start`` to ``end``; None reads to the end."""
    system, path = filesystem(url)
    with naming(url):
        content: bytes = system.cat_file(path, start=start, end=end)
    return content


def names_in(url: str) -> list[str] | None:
    """Return the names in the folder at a URL, or None if the URL is an object."""
    system, path = filesystem(url)
    with naming(url):
        if system.isfile(path):
            return None
        return [name.rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)]


def size_of(url: str) -> int:
    """Return the bytes of an object."""
    system, path = filesystem(url)
    with naming(url):
        return int(system.size(path))


def version_of_object(url: str) -> tuple[int, Any]:
    """Return the size of an object and a value that changes with its content."""
    system, path = filesystem(url)
    with naming(url):
        return int(system.size(path)), system.ukey(path)
