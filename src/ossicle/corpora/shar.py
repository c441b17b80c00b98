"""Find the audio of Lhotse Shar: ``recording.000000.tar`` beside ``cuts.000000.jsonl.gz``, in the order of the cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ossicle.addresses import list_files
from ossicle.corpora.tars import members
from ossicle.errors import CorpusError


class Recordings:
    """The recordings of one shard of cuts. Each has the id of its cut, and exactly the audio of the cut."""

    def __init__(self, cuts: Path) -> None:
        field, dot, number = cuts.name.removesuffix(".gz").removesuffix(".jsonl").partition(".")
        name = f"recording{dot}{number}.tar"
        found = list_files(cuts.parent, name) if field == "cuts" else []
        self.shard = next((path for path in found if path.name == name), None)
        self._members = iter(()) if self.shard is None else members(self.shard)

    def fill(self, cut: dict[str, Any]) -> None:
        """Replace the placeholder in ``cut`` by the address of its audio.

        Cuts must come in their order. Raises `CorpusError` if the shard does not have the audio.
        """
        if self.shard is None:
            raise CorpusError("is a cut of a Shar, and no recording.*.tar with its number is beside it")
        for member in self._members:
            name, _, suffix = member.name.rpartition(".")
            if name == cut["id"] and suffix != "json":
                if member.audio is None:
                    raise CorpusError(f"has no audio in {self.shard} ({member.name})")
                cut["recording"]["sources"][0] |= {"type": "file", "source": str(member.audio)}
                return
        raise CorpusError(f"{self.shard} has no audio for it; cuts and recordings must have the same order")
