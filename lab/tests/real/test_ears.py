"""The checkpoint that comes with the laboratory: complete, small, and it hears."""

import json
import os
from pathlib import Path

import pytest

from ossicle.data.manifest import read_manifest
from ossicle.errors import OssicleError
from ossicle.evaluate.metrics import wer
from ossicle.models.saving import locate
from ossicle.models.speech_llm import SpeechLLM
from ossicle_lab.real.models import MODELS, fetch
from ossicle_lab.real.ship import ears
from places import SHARED

TEST_OTHER = SHARED / "data" / "real_speech" / "librispeech_test_other"
MOST_BYTES = 20_000_000
CLIPS, LONGEST_S, MOST_WER = 6, 5.0, 40.0
"""Six short clips of 68: their error rate varies far more than that of the whole test in docs/real-speech.md."""


def test_it_is_found_by_name_and_names_published_models():
    folder = locate("ears")
    record = json.loads((folder / "ossicle.json").read_text())

    assert folder == ears()
    assert {record["model"]["encoder"], record["model"]["llm"]} <= MODELS.keys()
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    assert (folder / "CARD.md").is_file()


def test_it_hears_speakers_that_it_was_not_trained_on():
    if not TEST_OTHER.is_dir():
        pytest.skip(f"no recordings in {TEST_OTHER}")
    models = Path(os.environ.get("OSSICLE_TEST_MODELS", Path.home() / ".cache" / "ossicle-tests"))
    models.mkdir(parents=True, exist_ok=True)
    try:
        encoder, llm = (fetch(name, models) for name in ("whisper-base", "smollm2-135m-instruct"))
    except OssicleError as error:
        pytest.skip(f"published models cannot be fetched: {error}")
    model = SpeechLLM.from_pretrained("ears", encoder=encoder, llm=llm)
    short = [clip for clip in read_manifest(TEST_OTHER / "manifest.jsonl") if (clip.duration_s or 0.0) < LONGEST_S]
    clips = short[:: len(short) // CLIPS][:CLIPS]

    heard = model.generate([clip.audio for clip in clips], "Transcribe the speech.")

    assert wer(heard, [[clip.text] for clip in clips]).value < MOST_WER
