"""Identify what a model answers by its content, so that an answer is never taken for that to another recording."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ossicle.addresses import is_address, read_bytes
from ossicle.batch import Sample
from ossicle.errors import AudioError

_THREADS = 8
"""Threads that read files; they wait for the disk or the network."""


def input_hashes(samples: Sequence[Sample], *, from_text: bool = False) -> list[str]:
    """Return a hash of the input of each sample: the bytes of its audio file, its segment and its instruction.

    Names of files do not count. Neither do references, which do not change an answer. ``from_text`` adds the
    transcript, which then is an input. A file that cannot be read counts as an empty one.
    """
    files = list(dict.fromkeys(sample.audio for sample in samples))
    with ThreadPoolExecutor(_THREADS) as pool:
        content = dict(zip(files, pool.map(_hash_of_file, files), strict=True))
    return [_hash_of_input(sample, content[sample.audio], from_text) for sample in samples]


def _hash_of_input(sample: Sample, content: bytes, from_text: bool) -> str:
    parts = (sample.start_s, sample.end_s, sample.task, sample.instruction, sample.text if from_text else None)
    digest = hashlib.blake2b(content, digest_size=8)
    digest.update(repr(parts).encode())  # repr also escapes halves of surrogate pairs
    return digest.hexdigest()


def _hash_of_file(path: Path) -> bytes:
    try:
        if is_address(str(path)):
            return hashlib.blake2b(read_bytes(path), digest_size=16).digest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except (AudioError, OSError, ValueError):  # ValueError: a NUL byte in the name
        return b""
