"""Both stages and decoding with published weights on recorded speech: Whisper-tiny.en and SmolLM2-135M."""

import json

import pytest
import torch

from ossicle.audio import audio_duration_s
from ossicle.batch import pad
from ossicle.models.encoder import load_encoder
from ossicle.models.speech_llm import SpeechLLM
from ossicle.train.loop import train
from ossicle.train.recipe import parse
from places import SHARED

SPEECH = SHARED / "data" / "real_speech" / "librispeech_test_other"
SIZES = {"name": "qformer", "width": 48, "heads": 2, "layers": 1, "ffn": 48}


@pytest.fixture(scope="module")
def recordings():
    files = sorted(path for kind in ("flac", "wav", "mp3", "ogg") for path in SPEECH.rglob(f"*.{kind}"))
    if len(files) < 2:
        pytest.skip("the recorded speech is missing (shared/data)")
    return sorted(files, key=audio_duration_s)[:2]


def test_both_stages_in_half_precision_and_decoding(real_models, recordings, tmp_path, monkeypatch):
    """Whisper's feature extractor calls NumPy, which has no bfloat16: it fails where autocast reaches it."""
    monkeypatch.setattr("ossicle.precision.multiplies", lambda dtype, device=None: True)
    lines = [
        {"id": str(i), "audio": str(path), "text": "a test of speech", "duration": audio_duration_s(path)}
        for i, path in enumerate(recordings)
    ]
    task = {"task": "asr", "instruction": "Transcribe the speech.", "answer": "a test of speech"}
    for name, extra in (("stage1", {}), ("stage2", task)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line | extra) + "\n" for line in lines))
    models = {"encoder": str(real_models["whisper-tiny.en"]), "llm": str(real_models["smollm2-135m-instruct"])}
    shared = {
        "output_dir": str(tmp_path),
        "model": {**models, "llm_dtype": "bfloat16", "encoder_context": "audio", "projector": SIZES},
        "train": {"steps": 1, "precision": "bf16", "cpu": True, "tensorboard": False, "log_every": 1},
    }
    first = shared | {"name": "first", "data": {"train": [str(tmp_path / "stage1.jsonl")], "batch_size": 2}}
    folder = train(parse(first))
    second = shared | {"name": "second", "data": {"train": [str(tmp_path / "stage2.jsonl")], "batch_size": 2}}
    second["objective"] = {"name": "next_token"}
    second["train"] = {**shared["train"], "init_from": str(folder)}
    folder = train(parse(second))
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.tensor(line["loss"]).isfinite() for line in logged if "loss" in line)
    model = SpeechLLM.from_pretrained(folder)
    assert model.objectives == ("next_token",)
    (answer,) = model.generate(recordings[0], "Transcribe the speech.", max_new_tokens=2)
    assert isinstance(answer, str)


def test_the_features_of_whisper_do_not_depend_on_autocast(real_models):
    encoder = load_encoder(str(real_models["whisper-tiny.en"]))
    waveforms = pad([0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))])
    plain = encoder.front(waveforms, torch.float32).tensors["input_features"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder.front(waveforms, torch.float32).tensors["input_features"]
        frames = encoder(waveforms)
    assert torch.equal(inside, plain)
    assert frames.values.isfinite().all()
