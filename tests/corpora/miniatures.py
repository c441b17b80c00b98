"""Create the files of miniature corpora."""

from __future__ import annotations

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
