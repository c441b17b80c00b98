"""Write answers as they arrive, to a stream, a file or one file per recording; a batch that was stopped continues."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ossicle.errors import OssicleError
from ossicle.files import write_json, write_text
from ossicle.listen.answers import Answer
from ossicle.listen.forms import clock, render

SUFFIXES = {"text": ".txt", "json": ".json", "tsv": ".tsv", "verbose_json": ".json", "srt": ".srt", "vtt": ".vtt"}
LINES = ("text", "json", "tsv")
"""Forms of which one stream or file holds the answers to several recordings."""


class Output:
    """Write answers to a stream, a file, or one document per recording.

    Args:
        files: All recordings that are to be answered.
        form: One of `ossicle.listen.forms.FORMS`. Of ``text``, ``json`` and ``tsv``, a line or a group of lines is
            written for each recording, the others are one document per recording.
        out: File, or folder for documents of several recordings; None for standard output.
        timestamps: Write start and end of each segment.
        settings: What decides the answers, such as the model and the instruction. A batch is continued only if they
            are those of its beginning.
        overwrite: Delete answers of an earlier call instead of keeping them.

    Attributes:
        missing: The recordings that have no answer from an earlier call.

    Raises `OssicleError` if documents of several recordings would go to one place, or ``out`` holds answers of another
    model, question or form.
    """

    def __init__(
        self,
        files: Sequence[Path],
        form: str,
        out: Path | None = None,
        *,
        timestamps: bool = False,
        settings: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.form, self.out, self.timestamps, self.several = form, out, timestamps, len(files) > 1
        self.settings = {**(settings or {}), "form": form, "timestamps": timestamps}
        self.details: dict[str, Any] = {}
        """Language and task of the answers, for ``verbose_json``."""
        self._stream: Any = None
        self._places = self._documents(files)
        self.missing = list(files)
        if self.several and out is not None:
            self._resume(overwrite)

    def __enter__(self) -> Self:
        if self._places:
            return self
        if self.out is None:
            self._stream = sys.stdout
        else:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            mode = "a" if self.several else "w"
            self._stream = self.out.open(mode, encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream not in (None, sys.stdout):
            self._stream.close()

    def write(self, answer: Answer) -> None:
        """Write an answer; of an error, only ``json`` has a line."""
        if self._places:
            if answer.error is None:
                place = self._places[answer.file]
                place.parent.mkdir(parents=True, exist_ok=True)
                write_text(place, self._document(answer) + "\n")
        elif (text := self._lines(answer)) is not None:
            print(text, file=self._stream, flush=True)

    def _documents(self, files: Sequence[Path]) -> dict[Path, Path]:
        """Return the path of the document of each recording, or nothing if answers share a stream."""
        if self.out is None or (self.form in LINES and not self.out.is_dir()):
            if self.form not in LINES and self.several:
                raise OssicleError(
                    f"--format {self.form} is a document per recording: give a folder for them with --out FOLDER"
                )
            return {}
        suffix = SUFFIXES[self.form]
        if not self.several and not self.out.is_dir():
            return dict.fromkeys(files, self.out)
        if self.out.is_file():
            raise OssicleError(f"{self.out}: is a file; give a folder for the documents of {len(files)} recordings")
        parents = [file.absolute().parent for file in files]
        common = Path(os.path.commonpath(parents)) if parents else Path()
        names = [file.absolute().relative_to(common) for file in files]
        count = Counter(name.with_suffix("") for name in names)
        return {
            file: self.out / (f"{name}{suffix}" if count[name.with_suffix("")] > 1 else name.with_suffix(suffix))
            for file, name in zip(files, names, strict=True)
        }

    def _resume(self, overwrite: bool) -> None:
        """Keep the answers of an earlier call with the same settings. Raises `OssicleError` for other settings."""
        assert self.out is not None
        meta = self.out / ".ossicle.json" if self._places else self.out.with_name(f"{self.out.name}.meta.json")
        present = [place for place in self._places.values() if place.exists()] if self._places else []
        if not self._places and self.out.exists():
            present = [self.out]
        if overwrite:
            for path in present:
                path.unlink()
        elif present:
            self._check(meta, present)
            answered = self._answered(present)
            self.missing = [file for file in self.missing if file not in answered]
        meta.parent.mkdir(parents=True, exist_ok=True)
        write_json(meta, self.settings)

    def _check(self, meta: Path, present: Sequence[Path]) -> None:
        fix = "choose another --out, or --overwrite"
        if not meta.is_file():
            raise OssicleError(f"{present[0]}: exists, and no {meta.name} says what wrote it; {fix}")
        try:
            found = json.loads(meta.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OssicleError(f"{meta}: is not JSON ({error}); {fix}") from error
        now = json.loads(json.dumps(self.settings))
        if found != now:
            other = sorted(name for name in now if not isinstance(found, dict) or found.get(name) != now[name])
            raise OssicleError(f"{self.out}: holds answers with another {' and '.join(other)}; {fix}")

    def _answered(self, present: Sequence[Path]) -> set[Path]:
        """Return the recordings with a complete answer, after removing what an interruption left incomplete."""
        if self._places:
            return {file for file, place in self._places.items() if place in present}
        [path] = present
        names = {str(file): file for file in self.missing}
        kept: dict[str, list[str]] = {}
        *lines, rest = path.read_text(encoding="utf-8").split("\n")
        for line in lines:
            if (name := self._name_in(line, names)) is not None:
                kept.setdefault(name, []).append(line)
        if rest and self.timestamps and self.form != "json" and kept:
            kept.popitem()  # an answer of several lines was cut
        write_text(path, "".join(f"{line}\n" for lines in kept.values() for line in lines))
        return {names[name] for name in kept}

    def _name_in(self, line: str, names: Mapping[str, Path]) -> str | None:
        """Return the recording that a line answers, or None for an error and for anything else."""
        if self.form == "json":
            try:
                found = json.loads(line)
            except ValueError:
                return None
            known = isinstance(found, dict) and found.get("file") in names and "error" not in found
            return str(found["file"]) if known else None
        mark = "\t" if self.form == "tsv" else ": "
        return next((name for name in names if line.startswith(name + mark)), None)

    def _lines(self, answer: Answer) -> str | None:
        """Return what is written to the stream for an answer, or None for an error that the form cannot show."""
        if self.form == "json":
            content: dict[str, Any] = {"text": answer.text} if answer.error is None else {"error": answer.error}
            if self.timestamps and answer.error is None:
                rows = [
                    {"start": round(s.start_s, 3), "end": round(s.end_s, 3), "text": s.text} for s in answer.segments
                ]
                content |= {"duration": round(answer.duration_s, 3), "segments": rows}
            return json.dumps({"file": str(answer.file), **content}, ensure_ascii=False)
        if answer.error is not None:
            return None
        if self.form not in LINES:
            return self._document(answer)
        name = str(answer.file)
        if self.form == "tsv":
            if not self.timestamps:
                return f"{name}\t{' '.join(answer.text.split())}"
            timed = [f"{name}\t{s.start_s:.3f}\t{s.end_s:.3f}\t{' '.join(s.text.split())}" for s in answer.segments]
            return "\n".join(timed or [f"{name}\t0.000\t{answer.duration_s:.3f}\t"])
        head = f"{name}: " if self.several else ""
        if not self.timestamps:
            return f"{head}{answer.text}"
        times = [f"{head}[{clock(s.start_s, '.')} --> {clock(s.end_s, '.')}] {s.text}" for s in answer.segments]
        return "\n".join(times or [head])

    def _document(self, answer: Answer) -> str:
        if self.form == "text" and self.timestamps:
            return "\n".join(f"[{clock(s.start_s, '.')} --> {clock(s.end_s, '.')}] {s.text}" for s in answer.segments)
        return render(self.form, answer.segments, duration_s=answer.duration_s, **self.details)
