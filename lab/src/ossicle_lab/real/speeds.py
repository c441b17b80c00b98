"""Write copies of recordings that are played faster or slower, as further training data.

Source: speed perturbation (Ko et al., 2015). It changes tempo and pitch, so that a frozen encoder gives other frames
for the same words. Masks on cached frames cannot do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import soundfile
import soxr

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.files import atomic
from ossicle.progress import Progress


def write_speeds(manifest: Path, folder: Path, speeds: Sequence[float], *, jobs: int | None = None) -> list[Sample]:
    """Write a copy of each recording of ``manifest`` at each of ``speeds`` to ``folder``, and return the copies.

    A second call writes what is missing. Recordings that cannot be read have no copy.

    Args:
        manifest: manifest of recordings with transcripts.
        folder: folder of the copies, FLAC at 16 kHz.
        speeds: factors of tempo and pitch; 1.1 is a tenth faster.
        jobs: number of threads; None for Python's default.
    """
    dataset = SpeechDataset(read_manifest(manifest), on_error="skip")
    folder.mkdir(parents=True, exist_ok=True)

    def write(work: tuple[float, int]) -> Sample | None:
        speed, index = work
        sample, path = dataset.samples[index], folder / f"{index}-{speed:g}.flac"
        if not path.is_file():
            waveform = getattr(dataset[index], "waveform", None)
            if waveform is None:
                return None
            with atomic(path) as partial:
                copy = soxr.resample(waveform.numpy(), SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ)
                soundfile.write(partial, copy, SAMPLE_RATE_HZ, format="FLAC")
        seconds = soundfile.info(path).duration
        at_speed = {"id": f"{sample.id}@{speed:g}", "audio": path.resolve(), "duration_s": seconds}
        return replace(sample, **at_speed, start_s=0.0, end_s=None)

    work = list(product(speeds, range(len(dataset.samples))))
    copies = []
    with Progress("changing speeds", len(work), unit="recordings") as progress, ThreadPoolExecutor(jobs) as pool:
        for copy in pool.map(write, work):
            progress.advance(1)
            copies += [copy] if copy is not None else []
    return copies
