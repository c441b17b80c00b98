"""Formats that libsndfile does not read: the sound that PyAV decodes, and files that cannot be trusted."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from ossicle import audio_av
from ossicle.audio import audio_duration_s, read_audio
from ossicle.errors import AudioError

av = pytest.importorskip("av", reason="needs pip install 'ossicle[av]'")

RATE_HZ, SECONDS, TONE_HZ = 48_000, 3.0, 440.0


def encode(path, codec, *, layout="stereo", video=False, seconds=SECONDS):
    """Write a tone in both channels, and a track of pictures before it if ``video``."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10) if video else None
        sound = container.add_stream(codec, rate=RATE_HZ, layout=layout) if codec else None
        if pictures is not None:
            pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
            for number in range(5):
                picture = av.VideoFrame(32, 32, "yuv420p")
                picture.pts, picture.time_base = number, Fraction(1, 10)
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode())
        if sound is not None:
            sound.time_base, sound.bit_rate = Fraction(1, RATE_HZ), 128_000
            tone = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(RATE_HZ * seconds)) / RATE_HZ)
            packed = np.repeat(tone, 2 if layout == "stereo" else 1)[None].astype(np.float32)
            channels = 2 if layout == "stereo" else 1
            for start in range(0, packed.shape[1] // channels, RATE_HZ):
                block = np.ascontiguousarray(packed[:, start * channels : (start + RATE_HZ) * channels])
                frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    return path


def tone_of(waveform):
    """Return the strongest frequency in Hz and its amplitude, without the first and the last tenth of a second."""
    inside = waveform[1600:-1600]
    spectrum = np.abs(np.fft.rfft(inside * np.hanning(len(inside))))
    return spectrum.argmax() * 16_000 / len(inside), np.sqrt(2 * np.mean(inside**2))


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("a.m4a", "aac", "stereo"),
        ("a.mp4", "aac", "mono"),
        ("a.webm", "libopus", "stereo"),
        ("a.mkv", "libopus", "mono"),
        ("a.wma", "wmav2", "stereo"),
        ("a.aac", "aac", "mono"),
        ("a.ac3", "ac3", "stereo"),
        ("a.ts", "aac", "stereo"),
        ("a.m2ts", "aac", "mono"),
        ("a.mpg", "mp2", "mono"),
    ],
)
def test_what_phones_and_browsers_record_is_read(tmp_path, name, codec, layout):
    path = encode(tmp_path / name, codec, layout=layout)
    waveform = read_audio(path)
    assert len(waveform) / 16_000 == pytest.approx(SECONDS, abs=0.1)
    assert audio_duration_s(path) == pytest.approx(len(waveform) / 16_000, abs=1e-3)
    frequency, amplitude = tone_of(waveform)
    assert frequency == pytest.approx(TONE_HZ, abs=1)
    assert amplitude == pytest.approx(0.5, rel=0.1)


def test_a_segment_of_a_video(tmp_path):
    path = encode(tmp_path / "talk.mp4", "aac", video=True)
    assert len(read_audio(path, start_s=1.0, end_s=2.5)) == 24_000


def test_a_video_without_sound_is_refused(tmp_path):
    path = encode(tmp_path / "talk.mp4", None, video=True)
    with pytest.raises(AudioError, match=r"talk.mp4: has no sound track"):
        read_audio(path)


def test_a_truncated_file_is_refused(tmp_path):
    whole = encode(tmp_path / "a.mkv", "libopus", seconds=10).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AudioError, match=r"cut.mkv: is (truncated|damaged)"):
        read_audio(cut)


def test_damage_is_an_audio_error(tmp_path):
    content = bytearray(encode(tmp_path / "a.m4a", "aac").read_bytes())
    random = np.random.default_rng(0)
    for number in range(20):
        damaged = content.copy()
        for place in random.integers(8, len(damaged), 40):
            damaged[place] ^= 0xFF
        path = tmp_path / f"{number}.m4a"
        path.write_bytes(damaged[: random.integers(100, len(damaged))])
        try:
            read_audio(path)
        except AudioError as error:
            assert str(error).startswith(str(path))


def test_a_long_recording_is_decoded_once_in_memory_that_does_not_grow(tmp_path, monkeypatch):
    decoded = []
    stored = audio_av._stored
    monkeypatch.setattr(audio_av, "_stored", lambda *given: decoded.append(given) or stored(*given))
    path = encode(tmp_path / "a.mkv", "pcm_s16le", seconds=120)  # 46 MB of decoded sound
    tracemalloc.start()
    try:
        duration_s = audio_duration_s(path)
        parts = [read_audio(path, start_s=start_s, end_s=start_s + 2) for start_s in (0, 57, 118)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert duration_s == pytest.approx(120, abs=0.01)
    assert [tone_of(part)[0] for part in parts] == pytest.approx([TONE_HZ] * 3, abs=1)
    assert peak < 10e6
    assert len(decoded) == 1


def test_a_file_that_changes_is_decoded_again_and_one_of_the_past_can_be_read_to_its_end(tmp_path):
    path = encode(tmp_path / "a.m4a", "aac", seconds=3)
    found = audio_av.opened_by_av(path)
    encode(path, "aac", seconds=5)
    assert audio_duration_s(path) == pytest.approx(5, abs=0.1)
    with found[0] as before:
        assert len(before.read()) / RATE_HZ == pytest.approx(3, abs=0.1)


def test_a_full_disk_is_an_audio_error(tmp_path, monkeypatch):
    class Full:
        def tell(self):
            return 0

        def write(self, content):
            raise OSError(28, "No space left on device")

    path = encode(tmp_path / "a.m4a", "aac")
    monkeypatch.setattr(audio_av.tempfile, "TemporaryFile", lambda **options: Full())
    with pytest.raises(AudioError, match=r"a\.m4a: there is no room for the decoded sound .* set TMPDIR"):
        read_audio(path)
