import math
from pathlib import Path

import numpy as np
import pytest

from ossicle.audio import SAMPLE_RATE_HZ, audio_duration_s, read_audio
from ossicle.errors import AudioError
from sounds import assert_same_sound, chirp, write


def cut_in_half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_minute_of_stereo_mp3_becomes_16_khz_mono(tmp_path):
    path = write(tmp_path / "a.mp3", chirp(60, 44_100, channels=2), 44_100)
    wave = read_audio(path)
    assert wave.dtype == np.float32
    assert audio_duration_s(path) == pytest.approx(60)
    assert_same_sound(wave, chirp(60, SAMPLE_RATE_HZ)[:, 0])


@pytest.mark.parametrize(
    ("name", "subtype", "rate_hz"),
    [
        ("a.wav", "PCM_16", 8_000),
        ("a.wav", "FLOAT", 48_000),
        ("a.flac", "PCM_24", 44_100),
        ("a.ogg", "VORBIS", 44_100),
        ("a.opus", "OPUS", 48_000),
        ("a.mp3", "MPEG_LAYER_III", 16_000),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_format_rate_and_segment(tmp_path, name, subtype, rate_hz, channels):
    path = write(tmp_path / name, chirp(8, rate_hz, channels), rate_hz, subtype)
    expected = chirp(8, SAMPLE_RATE_HZ)[:, 0]
    assert_same_sound(read_audio(path), expected)
    assert_same_sound(read_audio(path, start_s=2.5, end_s=4.0), expected[40_000:64_000])
    assert_same_sound(read_audio(path, start_s=6), expected[96_000:])


def test_mp3_segment_is_right_from_its_first_sample(tmp_path):
    path = write(tmp_path / "a.mp3", chirp(20, 44_100, channels=2), 44_100)
    assert_same_sound(read_audio(path, start_s=10, end_s=10.2), read_audio(path)[160_000:163_200])


def test_channels_are_averaged(tmp_path):
    wave = np.stack([np.full(1600, 0.5), np.full(1600, -0.25)], axis=1).astype(np.float32)
    assert np.allclose(read_audio(write(tmp_path / "a.wav", wave, SAMPLE_RATE_HZ, "FLOAT")), 0.125)


def test_very_short_file_is_read(tmp_path):
    assert read_audio(write(tmp_path / "a.wav", chirp(0.05, 16_000), 16_000)).shape == (800,)


def broken(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    if name == "empty.wav":
        path.touch()
    elif name in ("text.wav", "text.mp3"):
        path.write_text("this is not audio\n" * 100)
    elif name == "no_samples.wav":
        write(path, np.zeros((0, 1), np.float32), 16_000)
    elif name == "nan.wav":
        write(path, np.full((1600, 1), np.nan, np.float32), 16_000, "FLOAT")
    elif name == "folder":
        path.mkdir()
    elif name.startswith("truncated"):
        cut_in_half(write(path, chirp(4, 16_000), 16_000))
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.wav", "there is no such file"),
        ("folder", "is a folder"),
        ("empty.wav", "the file is empty (0 bytes)"),
        ("text.wav", "is not an audio file"),
        ("text.mp3", "is not an audio file"),
        ("no_samples.wav", "holds no samples"),
        ("nan.wav", "not finite"),
        ("truncated.flac", "is truncated or damaged"),
        ("truncated.wav", "its header promises 4.00 s, only"),
        ("truncated.mp3", "its header promises 4.00 s, only"),
    ],
)
def test_broken_file_says_why(tmp_path, name, reason):
    path = broken(tmp_path, name)
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)


def test_wav_that_was_streamed_leaves_its_size_open(tmp_path):
    path = write(tmp_path / "a.wav", chirp(1, 16_000), 16_000)
    header = bytearray(path.read_bytes())
    at = header.index(b"data") + 4
    header[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(header)
    assert len(read_audio(path)) == 16_000


def test_flac_without_a_length_is_refused(tmp_path):
    path = write(tmp_path / "a.flac", chirp(1, 16_000), 16_000)
    header = bytearray(path.read_bytes())
    header[21] &= 0xF0  # the low 36 bits of bytes 18 to 25 count the samples; 0 means unknown
    header[22:26] = bytes(4)
    path.write_bytes(header)
    for read in (read_audio, audio_duration_s):
        with pytest.raises(AudioError, match="its header has no length"):
            read(path)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(-1, 2), (5, None), (2, 2), (3, 1), (1, 5), (math.nan, 1), (0, math.nan)]
)
def test_segment_must_lie_inside_the_file(tmp_path, start_s, end_s):
    path = write(tmp_path / "a.wav", chirp(4, 16_000), 16_000)
    with pytest.raises(AudioError, match=r"not inside the file, which lasts 4.00 s"):
        read_audio(path, start_s=start_s, end_s=end_s)


def test_segment_may_end_a_rounding_error_late(tmp_path):
    path = write(tmp_path / "a.wav", chirp(4, 16_000), 16_000)
    assert len(read_audio(path, start_s=3, end_s=4.05)) == 16_000


def test_segment_before_the_damage_is_read(tmp_path):
    path = cut_in_half(write(tmp_path / "a.flac", chirp(20, 16_000), 16_000))
    assert len(read_audio(path, start_s=1, end_s=3)) == 32_000
