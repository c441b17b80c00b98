"""`SpeechLLM.generate` accepts recordings of many kinds and refuses unusable ones in one line."""

import io

import numpy as np
import pytest
import soundfile
import soxr
import torch

from ossicle.errors import AudioError, ConfigError, DataError, OssicleError
from ossicle.models.recordings import is_list, read_recording

RATE = 16_000
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / RATE)).astype(np.float32)


def file_bytes(values: np.ndarray = TONE, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, values, rate, format="WAV", subtype="FLOAT")
    return out.getvalue()


ACCEPTED = {
    "array": TONE,
    "float64": TONE.astype(np.float64),
    "tensor": torch.from_numpy(TONE),
    "bfloat16": torch.from_numpy(TONE).bfloat16(),
    "with a gradient": torch.from_numpy(TONE.copy()).requires_grad_(),
    "(1, S)": torch.from_numpy(TONE)[None],
    "(S, 1)": TONE[:, None],
    "(2, S)": np.stack([TONE, TONE]),
    "(S, 2)": np.stack([TONE, TONE], 1),
    "list": TONE.tolist(),
    "float16": TONE.astype(np.float16),
    "other byte order": TONE.astype(">f4"),
    "int16 stereo": np.stack([np.round(TONE * 2**15).astype(np.int16)] * 2, 1),
    "int16": np.round(TONE * 2**15).astype(np.int16),
    "int16 tensor": torch.from_numpy(np.round(TONE * 2**15).astype(np.int16)),
    "int32": np.round(TONE.astype(np.float64) * 2**31).astype(np.int32),
    "uint8": np.round(TONE * 2**7 + 2**7).astype(np.uint8),
    "pair": (TONE, RATE),
    "reversed pair": (RATE, TONE),
    "dictionary": {"array": TONE, "sampling_rate": RATE, "path": None},
    "dictionary of bytes": {"bytes": file_bytes(), "path": "a.wav"},
    "bytes": file_bytes(),
    "bytearray": bytearray(file_bytes()),
    "file": io.BytesIO(file_bytes()),
    "stereo file": io.BytesIO(file_bytes(np.stack([TONE, TONE], 1))),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_every_kind_is_the_same_waveform(kind):
    waveform = read_recording(ACCEPTED[kind], None, "recording 1")
    assert waveform.dtype == torch.float32 and waveform.shape == TONE.shape
    tolerance = {"uint8": 5e-3, "bfloat16": 2e-3, "float16": 2e-4}.get(kind, 4e-5)
    assert (waveform - torch.from_numpy(TONE)).abs().max() < tolerance


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_a_rate_is_converted(rate):
    other = (0.3 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)).astype(np.float32)
    expected = torch.from_numpy(soxr.resample(other, rate, RATE, quality="HQ"))
    for audio, sampling_rate in ((other, rate), ((other, rate), None), (file_bytes(other, rate), RATE)):
        assert torch.allclose(read_recording(audio, sampling_rate, "r"), expected, atol=1e-6)
    inner = slice(500, 7500)
    assert np.abs(expected.numpy()[inner] - TONE[inner]).max() < 1e-3


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "holds no samples"),
        ([], "holds no samples"),
        (np.array([0.1, np.nan]), "not finite"),
        (torch.tensor([0.1, torch.inf]), "not finite"),
        (1e30 * TONE, "full scale is 1"),
        (np.zeros((4, 8000)), r"has the shape \(4, 8000\)"),
        (np.zeros((2, 3, 4)), r"has the shape"),
        (np.array(["a"]), "is not audio"),
        (TONE.astype(np.complex64), "is not audio"),
        (np.array([True, False]), "is not audio"),
        (3.5, "is not audio"),
        (None, "is not audio"),
        (object(), "is not audio"),
        ({}, "the dictionary has the keys"),
        ({"array": None}, "the dictionary has the keys"),
        (b"", "the file is empty"),
        (b"RIFF", "^recording 1: is not an audio file"),
        ([0, 1000, -1000], "integers of 64 bits"),
        (file_bytes()[:-9000], "^recording 1: .*truncated"),
        (io.StringIO("a"), "open for text"),
        ("missing.wav", "there is no such file"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(audio, message):
    with pytest.raises(AudioError, match=message) as caught:
        read_recording(audio, None, "recording 1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 10**9, "16000", True])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ConfigError, match="the sampling rate is"):
        read_recording(TONE, rate, "recording 1")


def test_a_pair_is_one_recording_and_a_list_is_several():
    assert not is_list((TONE, RATE)) and not is_list((RATE, TONE)) and not is_list(TONE.tolist())
    assert is_list([TONE, TONE]) and is_list((TONE, TONE)) and is_list([(TONE, RATE)]) and is_list(["a.wav"])


def test_all_kinds_get_the_same_answer(model):
    with torch.no_grad():
        model.projector.out.weight.mul_(30)
    expected = model.generate(TONE, "repeat", max_new_tokens=6)
    assert model.generate([TONE, (TONE, RATE), file_bytes()], "repeat", max_new_tokens=6) == expected * 3
    fast = soxr.resample(TONE, RATE, 48_000)
    assert model.generate(fast, "repeat", sampling_rate=48_000, max_new_tokens=6) == expected
    assert model.generate([], "repeat") == []


def test_a_recording_without_a_frame_gets_no_invented_answer(model):
    with pytest.raises(DataError, match=r"recording 2: the audio is shorter than a frame"):
        model.generate([TONE, TONE[:100]], "repeat", max_new_tokens=2)


@pytest.mark.parametrize("instruction", [["a"], ["a", "b", "c"]])
def test_another_number_of_instructions_is_refused(model, instruction):
    with pytest.raises(OssicleError, match="2 recordings and"):
        model.generate([TONE, TONE], instruction)


@pytest.mark.parametrize("instruction", [None, 3, ["a", None], "half \ud83d"])
def test_an_instruction_that_is_no_text_is_refused(model, instruction):
    with pytest.raises(ConfigError, match="is no text"):
        model.generate([TONE, TONE], instruction)


def test_answers_of_a_model_that_was_only_pretrained_have_a_warning(model):
    model.objectives = ("contrastive",)
    with pytest.warns(UserWarning, match="pretrained with contrastive and has not learned to answer"):
        model.generate(TONE, "repeat", max_new_tokens=2)


def test_recordings_longer_than_those_of_the_training_have_a_warning(model):
    model.longest_s = 0.2
    with pytest.warns(UserWarning, match=r"recording 1 lasts 0\.5 s, and the longest recording of the training 0\.2 s"):
        model.generate(TONE, "repeat", max_new_tokens=2)


def test_speech_longer_than_the_context_is_refused_with_the_numbers(model):
    model.llm.context = 100
    minute = np.tile(TONE, 120)
    rate = model.token_rate_hz
    with pytest.raises(DataError, match=rf"recording 1: 60 s of audio are {round(60 * rate)} speech tokens, but .*100"):
        model.generate(minute, "repeat")
    with pytest.raises(DataError, match=r"positions and an answer of up to 200 tokens exceed the context of .*is 100"):
        model.generate(TONE, "repeat")
