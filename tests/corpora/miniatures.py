"""Create the files of miniature corpora."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


def tone(path: Path, seconds: float = 1.0, rate_hz: int = RATE_HZ, *, hz: float = 440.0) -> Path:
    """Write a sine wave; the suffix determines the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = (0.3 * np.sin(2 * np.pi * hz * times)).astype(np.float32)
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, wave, rate_hz, **kind)
    return path


def text(path: Path, content: str) -> Path:
    """Write a UTF-8 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def encoded(folder: Path, seconds: float, suffix: str = ".flac") -> bytes:
    """Return the content of a file with a tone, which is written to ``folder``."""
    return tone(folder / f"tone{seconds}{suffix}", seconds, hz=200 + 100 * seconds).read_bytes()


def shard(path: Path, *files: tuple[str, bytes | str]) -> Path:
    """Write a tar file with members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def shar(folder: Path, tmp_path: Path, number: str, *cuts: tuple[str, float, str], audio: bool = True) -> None:
    """Write what Lhotse's SharWriter writes: cuts that start at 0 with placeholders, and pairs of members."""
    rows, files = [], []
    for name, seconds, words in cuts:
        supervision = {"id": f"{name}-s", "recording_id": "r", "start": 0.0, "duration": seconds, "channel": 0,
                       "text": words, "language": "en"}  # fmt: skip
        recording = {"id": "r", "sources": [{"type": "shar", "channels": [0], "source": ""}], "sampling_rate": 16_000,
                     "num_samples": round(16_000 * seconds), "duration": seconds, "channel_ids": [0]}  # fmt: skip
        rows.append({"id": name, "start": 0, "duration": seconds, "channel": 0, "supervisions": [supervision],
                     "recording": recording, "type": "MonoCut"})  # fmt: skip
        files += [(f"{name}.flac", encoded(tmp_path, seconds)), (f"{name}.json", json.dumps(recording))]
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / f"cuts.{number}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    if audio:
        shard(folder / f"recording.{number}.tar", *files)
