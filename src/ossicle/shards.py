"""Divide offline work among jobs that share a folder: ``--shard I/N`` of a job array, or blocks on Ray.

Each part writes a file of its own. The part that finishes last joins the files. The output is byte for byte that of an
undivided call. A part that is started again continues where it stopped, and one that is finished returns at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from filelock import FileLock

from ossicle.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count``, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard of a text such as ``2/8``. Raises `ConfigError` for another text."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(
                f"--shard {text}: write I/N with I from 1 to N, such as 2/8; in a job array, number the jobs from 1"
            )
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def all_of(cls, count: int) -> list[Self]:
        """Return the parts of work that is divided into ``count``."""
        return [cls(number, count) for number in range(1, count + 1)]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, index: int) -> bool:
        """Return True if the piece of work ``index`` belongs to this part: parts take turns."""
        return index % self.count == self.number - 1

    def own(self, pieces: Sequence[T]) -> Sequence[T]:
        """Return the pieces of work of this part."""
        return pieces[self.number - 1 :: self.count]

    def stretch(self, pieces: list[T]) -> list[T]:
        """Return the pieces of work of this part if the parts are consecutive."""
        start, end = (len(pieces) * number // self.count for number in (self.number - 1, self.number))
        return pieces[start:end]

    def file(self, out: Path) -> Path:
        """Return the file of this part of the output file ``out``, beside it."""
        return out.with_name(f".{out.name}.{self.number}-of-{self.count}")

    def missing(self, out: Path) -> list[int]:
        """Return the numbers of the parts of ``out`` whose files do not exist."""
        return [one.number for one in self.all_of(self.count) if not one.file(out).exists()]


WHOLE = Shard(1, 1)
"""All of the work."""


@contextmanager
def joining(out: Path) -> Iterator[None]:
    """Let one process at a time join the parts of ``out``; the others wait."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.join.lock")):
        yield


def describe_missing(out: Path, shard: Shard, missing: Sequence[int]) -> str:
    """Return the message of a part of ``out`` that is finished while others are ``missing``."""
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"{out}: shard {shard} is finished; {len(missing)} of {shard.count} are not: {shown}"
