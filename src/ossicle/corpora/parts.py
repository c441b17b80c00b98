"""Prepare a corpus in parts (``--shard I/N``), and join the journals of the parts.

Every part reads the whole index, so that ids are unique in the corpus, and does the audio work of its own items.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ossicle.corpora.items import Item, Reached
from ossicle.corpora.manifests import locked, split
from ossicle.corpora.report import Report
from ossicle.corpora.writer import JOURNAL_NAME
from ossicle.errors import CorpusError
from ossicle.files import atomic
from ossicle.shards import Shard, describe_missing, joining

FOLDER = ".shards"
"""Folder for the parts in the output folder, which is removed when they are joined."""

Load = Callable[[], Report | None]
"""A function that returns the report of an earlier complete call, or None."""


def prepare_part(shard: Shard, out: Path, about: Mapping[str, Any], load: Load, fill: Callable[[Path], None]) -> Report:
    """Do the work of ``shard`` with ``fill``, which writes a journal, and join all parts if it is the last one.

    The report of a part that is not the last one only says in ``waiting`` which are missing. Raises `CorpusError` if
    another process does the same part, or if another part was prepared from another source or with other options.
    """
    journals = out / FOLDER / "journal"
    own = shard.file(journals)
    if (finished := load()) is not None:
        return finished
    with locked(journals.parent, f"{own.name}.lock"):
        if not own.exists():
            partial = own.with_name(f"{own.name}.partial")
            fill(partial)
            partial.rename(own)
    with joining(journals):
        if (finished := load()) is not None:
            return finished
        if missing := shard.missing(journals):
            return Report(dict(about), waiting=describe_missing(out, shard, missing))
        _merge([one.file(journals) for one in Shard.all_of(shard.count)], out / JOURNAL_NAME, about)
        report = split(out / JOURNAL_NAME, out, about)
        shutil.rmtree(journals.parent, ignore_errors=True)
        return report


def own_items(shard: Shard, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items of ``shard``, and every `Reached`."""
    number = 0
    for item in items:
        if isinstance(item, Reached):
            yield item
            continue
        if shard.owns(number):
            yield item
        number += 1


def _merge(journals: list[Path], target: Path, about: Mapping[str, Any]) -> None:
    """Write the entries of all journals in the order of the corpus: the parts take turns."""
    head = json.dumps(about) + "\n"
    with ExitStack() as stack, atomic(target) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
        files = [stack.enter_context(path.open(encoding="utf-8", newline="\n")) for path in journals]
        for file in files:
            if next(file, "") != head:
                raise CorpusError(
                    f"{file.name}: is a part of another corpus or of other options; remove {journals[0].parent}"
                )
        out.write(head)
        for row in zip_longest(*files):
            out.writelines(line for line in row if line is not None)
