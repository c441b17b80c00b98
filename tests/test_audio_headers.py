"""Files whose headers do not agree with what they hold."""

import io
import logging
import resource
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ, audio_duration_s, read_audio
from ossicle.errors import AudioError
from ossicle.mp3 import parse_header
from places import SHARED
from sounds import assert_same_sound, chirp, write


def without_length(path: Path) -> Path:
    """Remove the frame with the Xing header, as streams and some cutters leave an MP3."""
    content = path.read_bytes()
    at = content.index(b"\xff")
    header = parse_header(content, at)
    assert content[at + header.tag_offset :][:4] in (b"Xing", b"Info")
    path.write_bytes(content[:at] + content[at + header.size :])
    return path


def varying_mp3(path: Path, seconds: float, rate_hz: int, channels: int = 1) -> Path:
    """Write an MP3 with a variable bit rate, whose first frames are silent and small."""
    wave = np.concatenate([np.zeros((rate_hz, channels), np.float32), chirp(seconds - 1, rate_hz, channels)])
    wave[rate_hz:] += 0.1 * np.random.default_rng(0).standard_normal((len(wave) - rate_hz, 1)).astype(np.float32)
    vbr = {"bitrate_mode": "VARIABLE", "compression_level": 0.3}
    with soundfile.SoundFile(path, "w", rate_hz, channels, format="MP3", subtype="MPEG_LAYER_III", **vbr) as file:
        file.write(wave)
    return path


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_without_a_length_is_decoded_to_its_end(tmp_path, rate_hz, channels):
    path = varying_mp3(tmp_path / "a.mp3", 10, rate_hz, channels)
    expected = read_audio(path)
    without_length(path)
    assert abs(soundfile.info(path).frames / rate_hz - 10) > 2  # libsndfile's estimate
    assert audio_duration_s(path) == pytest.approx(10, abs=0.1)
    heard = read_audio(path)
    assert len(heard) == pytest.approx(160_000, abs=1600)
    lag = round(576 / rate_hz * SAMPLE_RATE_HZ)  # the encoder's delay, which only the removed header states
    assert np.abs(heard[lag + 20_000 : lag + 150_000] - expected[20_000:150_000]).mean() < 0.02
    segment = read_audio(path, start_s=8, end_s=9)
    assert_same_sound(segment, heard[8 * SAMPLE_RATE_HZ : 9 * SAMPLE_RATE_HZ])


def test_joined_mp3_files_are_decoded_to_their_end(tmp_path):
    path = varying_mp3(tmp_path / "a.mp3", 5, 16_000)
    path.write_bytes(path.read_bytes() + b"ID3\x03\0\0\0\0\0\x0a0123456789" + path.read_bytes())
    assert soundfile.info(path).frames / 16_000 == pytest.approx(5, abs=0.1)
    assert audio_duration_s(path) == pytest.approx(10, abs=0.2)
    assert len(read_audio(path)) == pytest.approx(160_000, abs=3200)


def test_mp3_with_a_constant_bit_rate_is_not_touched(tmp_path):
    path = tmp_path / "a.mp3"
    cbr = {"bitrate_mode": "CONSTANT", "compression_level": 0.7}
    with soundfile.SoundFile(path, "w", 16_000, 1, format="MP3", subtype="MPEG_LAYER_III", **cbr) as file:
        file.write(chirp(10, 16_000))
    without_length(path)
    assert np.array_equal(read_audio(path), soundfile.read(path, dtype="float32")[0])


@pytest.mark.parametrize("quieter", [1.0, 0.8])
def test_channels_that_cancel_are_not_averaged(tmp_path, caplog, quieter):
    wave = chirp(2, 16_000, channels=2) * np.float32([1.0, -quieter])
    path = write(tmp_path / "a.wav", wave, 16_000, "FLOAT")
    with caplog.at_level(logging.WARNING):
        assert_same_sound(read_audio(path), wave[:, 0])
    assert f"{path}: its channels cancel each other" in caplog.text


@pytest.mark.parametrize("second", [1.0, 0.0, -0.3])
def test_other_channels_are_averaged_without_a_warning(tmp_path, caplog, second):
    wave = chirp(2, 16_000, channels=2) * np.float32([1.0, second])
    assert_same_sound(read_audio(write(tmp_path / "a.wav", wave, 16_000, "FLOAT")), wave.mean(axis=1))
    assert not caplog.text


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", name, len(content)) + content


def wav(*chunks: bytes, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    width = 2 * channels % 2**16
    form = struct.pack("<HHIIHH", 1, channels, rate_hz, width * rate_hz % 2**32, width, 16)
    body = b"WAVE" + chunk(b"fmt ", form) + b"".join(chunks)
    return struct.pack("<4sI", b"RIFF", len(body)) + body


PCM = (chirp(4, 16_000) * 32_767).astype("<i2").tobytes()


@pytest.mark.parametrize("metadata_bytes", [1_000, 100_000, 1_000_000])
def test_wav_that_was_cut_is_found_beside_large_metadata(tmp_path, metadata_bytes):
    content = wav(chunk(b"LIST", bytes(metadata_bytes)), chunk(b"data", PCM))
    (tmp_path / "a.wav").write_bytes(content[: -len(PCM) // 3])
    for read in (read_audio, audio_duration_s):
        with pytest.raises(AudioError, match=r"is truncated: its header promises 4\.00 s, only 2\.67 s can be read"):
            read(tmp_path / "a.wav")


def test_wav_of_which_only_trailing_metadata_was_cut_is_whole(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(chunk(b"data", PCM), chunk(b"LIST", bytes(1000)))[:-500])
    assert len(read_audio(tmp_path / "a.wav")) == 64_000


@pytest.mark.parametrize("stated", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000])
@pytest.mark.parametrize("riff", [0, 0xFFFF_FFFF, 36])
@pytest.mark.parametrize("cut", [0, 1])
def test_interrupted_wav_is_read_to_its_end(tmp_path, stated, riff, cut):
    content = bytearray(wav(chunk(b"LIST", b"x" * 100), chunk(b"data", PCM)))
    struct.pack_into("<I", content, len(content) - len(PCM) - 4, stated)
    struct.pack_into("<I", content, 4, riff)
    path = tmp_path / "a.wav"
    path.write_bytes(content[: len(content) - cut])
    assert len(read_audio(path)) == 64_000 - cut
    assert audio_duration_s(path) == pytest.approx(4, abs=0.001)
    assert path.read_bytes() == content[: len(content) - cut]  # the repair is made in memory only


def test_wav_without_samples_stays_empty(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(chunk(b"data", b""), chunk(b"LIST", b"INFOISFT")))
    with pytest.raises(AudioError, match="holds no samples"):
        read_audio(tmp_path / "a.wav")


def test_wav_with_audio_after_its_stated_end_is_refused(tmp_path):
    """A recorder that updates its header now and then leaves this when it is killed."""
    content = bytearray(wav(chunk(b"data", PCM)))
    struct.pack_into("<I", content, len(content) - len(PCM) - 4, 32_000)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match=r"states 1\.00 s of audio, and the file holds 4\.00 s.*ffmpeg -ignore_length"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("rest", [bytes(40_000), b"TAG" + bytes(125), chunk(b"id3 ", b"x" * 40_000), b"\0\0"])
def test_what_may_follow_the_audio_of_a_wav(tmp_path, rest):
    (tmp_path / "a.wav").write_bytes(wav(chunk(b"data", PCM)) + rest)
    assert len(read_audio(tmp_path / "a.wav")) == 64_000


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *((kind, "PCM_16") for kind in ("AIFF", "AU", "W64", "RF64", "WAVEX", "NIST", "CAF")),
        *(("WAV", subtype) for subtype in ("IMA_ADPCM", "FLOAT", "ULAW", "PCM_24")),
        ("AIFF", "FLOAT"),
    ],
)
def test_truncation_is_found_in_every_container(tmp_path, kind, subtype):
    path = tmp_path / "a.audio"
    soundfile.write(path, chirp(4, 16_000), 16_000, subtype=subtype, format=kind)
    assert len(read_audio(path)) == pytest.approx(64_000, abs=600)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(AudioError, match=r"is truncated: its header promises 4\.\d\d s|header is damaged"):
        read_audio(path)


def flac(path: Path, *, rate_hz: int | None = None, channels: int | None = None, samples: int | None = None) -> Path:
    """Write a second of FLAC, with other values in its STREAMINFO: 20 bits rate, 3 channels, 5 width, 36 samples."""
    content = bytearray(write(path, chirp(1, 16_000), 16_000).read_bytes())
    (word,) = struct.unpack_from(">Q", content, 18)
    for value, low, bits in ((rate_hz, 44, 20), (None if channels is None else channels - 1, 41, 3), (samples, 0, 36)):
        if value is not None:
            word = word & ~((2**bits - 1) << low) | value << low
    struct.pack_into(">Q", content, 18, word)
    path.write_bytes(content)
    return path


def test_headers_that_lie_cost_neither_time_nor_memory(tmp_path):
    made = [flac(tmp_path / f"samples{n}.flac", samples=n) for n in (2**36 - 1, 2**30, 50_000_000)]
    made += [flac(tmp_path / "rate.flac", rate_hz=1), flac(tmp_path / "slow.flac", rate_hz=2)]
    for rate_hz, channels in ((1, 1), (2, 1), (2**31 - 1, 1), (16_000, 1000), (16_000, 65_535), (0, 1), (16_000, 0)):
        made.append(tmp_path / f"{rate_hz}-{channels}.wav")
        made[-1].write_bytes(wav(chunk(b"data", PCM), rate_hz=rate_hz, channels=channels))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for path in made:
        with pytest.raises(AudioError, match=str(path)):
            read_audio(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # in kB
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("loudest", [1e30, -1e30, 32_767.0, 3e38])
def test_samples_far_beyond_full_scale_are_refused(tmp_path, loudest):
    wave = chirp(1, 16_000)
    wave[500] = loudest
    with pytest.raises(AudioError, match=r"holds samples up to .*, and full scale is 1"):
        read_audio(write(tmp_path / "a.wav", wave, 16_000, "FLOAT"))
    wave[500] = 3.0  # floats may exceed full scale a little
    assert len(read_audio(write(tmp_path / "b.wav", wave, 16_000, "FLOAT"))) == 16_000


def test_audio_beyond_the_limit_is_not_decoded(tmp_path):
    path = write(tmp_path / "a.flac", chirp(4, 16_000), 16_000)
    assert len(read_audio(path, most_s=4)) == 64_000
    with pytest.raises(AudioError, match=r"lasts 4\.00 s, and at most 3\.00 s are read"):
        read_audio(path, most_s=3)


@pytest.mark.parametrize(
    ("name", "head", "known"),
    [
        ("a.m4a", b"\0\0\0\x20ftypM4A ", "MPEG-4"),
        ("a.mp4", b"\0\0\0\x18ftypmp42", "MPEG-4"),
        ("a.webm", b"\x1aE\xdf\xa3", "Matroska"),
        ("a.amr", b"#!AMR\n", "AMR"),
        ("a.awb", b"#!AMR-WB\n", "AMR"),
        ("a.wma", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "Windows Media"),
        ("a.aac", b"\xff\xf1\x50\x80", "AAC"),
        ("my talk.wav", b"\0\0\0\x20ftypM4A ", "MPEG-4"),
    ],
)
def test_format_that_libsndfile_does_not_read_is_named_with_the_command(tmp_path, monkeypatch, name, head, known):
    monkeypatch.setitem(sys.modules, "av", None)  # as if PyAV were not installed
    path = tmp_path / name
    path.write_bytes(head + bytes(2000))
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert f"in the format {known}" in str(caught.value)
    assert "run pip install 'ossicle[av]', or convert it with ffmpeg -i " in str(caught.value)
    assert str(caught.value).endswith(("a.flac", "my talk.flac'"))


@pytest.mark.parametrize("path", ["a\0b.wav", "x" * 5000 + ".wav", "\ud800.wav"])
def test_path_that_no_file_can_have(path):
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert len(str(caught.value)) < 300


def test_damage_anywhere_is_an_audio_error(tmp_path):
    """Flip bytes and cut at random: every file is read, or refused by name, within its time."""
    random = np.random.default_rng(0)
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")):
        file = io.BytesIO()
        soundfile.write(file, chirp(0.5, 16_000), 16_000, subtype=subtype, format=kind)
        for turn in range(60):
            content = bytearray(file.getvalue())
            for at in random.integers(0, min(len(content), 200), 3):
                content[at] = random.integers(256)
            path = tmp_path / f"a.{kind.lower()}"
            path.write_bytes(content[: random.integers(1, len(content))] if turn % 3 == 0 else content)
            try:
                assert np.isfinite(read_audio(path)).all()
            except AudioError as error:
                assert str(error).startswith(f"{path}: ")


@pytest.mark.skipif(SHARED is None or not (SHARED / "data/hard_inputs").is_dir(), reason="needs the shared inputs")
@pytest.mark.parametrize(("name", "seconds"), [("vbr_noxing.mp3", 20), ("size0.wav", 2), ("antiphase.wav", 2)])
def test_inputs_that_failed(name, seconds):
    waveform = read_audio(SHARED / "data/hard_inputs/audio" / name)
    assert len(waveform) / SAMPLE_RATE_HZ == pytest.approx(seconds, abs=0.1)
    assert np.abs(waveform).max() > 0.1
