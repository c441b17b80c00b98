"""Read WebDataset shards: tar files in which ``a.flac``, ``a.json`` and ``a.txt`` belong together.

The audio stays in the shards. A manifest line has its address (`ossicle.addresses`), so that training shuffles over all
shards and resumes at the exact utterance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ossicle.addresses import list_files
from ossicle.corpora import CORPORA
from ossicle.corpora.items import BAD_ROW, Dropped, Item, Options, Reached, Recording, bad_row, layout_error, select
from ossicle.corpora.records import check_columns, fields_of, lines_of, sample_of
from ossicle.corpora.tables import split_of
from ossicle.corpora.tars import TarMember, members


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the lines of manifests by split and task; ``train-000012.tar`` belongs to the split ``train``."""
    splits: dict[str, list[Path]] = {}
    for path in (file for file in list_files(source, ".tar") if file.suffix == ".tar"):
        splits.setdefault(split_of(path), []).append(path)
    if not splits:
        raise layout_error(CORPORA["webdataset"], source, "contains no .tar file")
    check_columns(options)
    wanted = select(options.splits, list(splits), "split", source)
    files = [(split, path) for split in wanted for path in splits[split]]
    for done, (split, path) in enumerate(files):
        for key, group in groupby(members(path, ".json", ".txt"), _key):
            parts = list(group)
            where, name = f"{path}:{key}", f"{path.stem}/{key}"
            try:
                yield _item({_kind(part): part for part in parts}, name, split, where, options)
            except BAD_ROW as error:
                yield bad_row(where, error, name)
            yield Reached((done + parts[-1].fraction) / len(files))


def _key(member: TarMember) -> str:
    """Return the name up to the first dot after the folders, which the members of an utterance share."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _kind(member: TarMember) -> str:
    return "audio" if member.audio is not None else member.name.rpartition(".")[2].lower()


def _item(parts: dict[str, TarMember], name: str, split: str, where: str, options: Options) -> Item:
    if "audio" not in parts:
        return Dropped(name, "no audio member", where)
    texts = {kind: parts[kind].text for kind in ("json", "txt") if kind in parts}
    if None in texts.values():
        raise ValueError("a .json or .txt member is longer than 1 MB")
    record: Any = json.loads(texts.get("json") or b"{}")
    if not isinstance(record, dict):
        raise TypeError("its .json member is not an object; write the fields of the utterance")
    if "txt" in texts:
        record["text"] = (texts["txt"] or b"").decode()
    fields = fields_of(record, options, where)
    for measured in ("audio", "duration_s", "start_s"):  # the member is the utterance, and is measured
        fields.pop(measured, None)
    audio = parts["audio"].audio
    assert audio is not None
    lines = lines_of(record, fields, sample_of(record, fields, name, audio, options, where), split, options)
    return lines if isinstance(lines, Dropped) else Recording(lines)
