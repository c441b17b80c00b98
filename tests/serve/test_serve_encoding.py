"""Recordings that wait are encoded together, and those that are late are not waited for."""

import asyncio
import io
import threading
import time

import pytest
import torch

from ossicle import audio_av
from ossicle.serve.audio_uploads import Uploads
from ossicle.serve.encoding import READING_S, Encoding
from ossicle.serve.errors import RequestError
from ossicle.serve.metrics import Metrics
from ossicle.serve.settings import ServeSettings


class Model:
    """A model that is not asked for anything."""

    def prompter(self):
        return None


@pytest.fixture
def encoding():
    return Encoding(Model(), lambda ready: None)


@pytest.mark.parametrize(("reading", "together"), [(1, ["first", "second"]), (0, ["first"])])
def test_a_recording_waits_for_those_that_are_being_read(encoding, reading, together, monkeypatch):
    monkeypatch.setattr("ossicle.serve.encoding.READING_S", 10.0)
    encoding._took_s = 10.0
    encoding.reading = lambda: reading
    encoding.submit("first")
    later = threading.Timer(0.2, lambda: (encoding.submit("second"), encoding.stop()))
    later.start()
    assert encoding._next() == together
    later.join()


@pytest.mark.parametrize("took_s", [0.0, 99.0])
def test_it_does_not_wait_for_ever(encoding, took_s):
    encoding.reading, encoding._took_s = lambda: 1, took_s
    encoding.submit("first")
    started_s = time.monotonic()
    assert encoding._next() == ["first"]
    assert min(took_s, READING_S) <= time.monotonic() - started_s < 20


def test_recordings_count_as_being_read_until_they_are_read_or_refused(spoken, monkeypatch):
    uploads, seen = Uploads(ServeSettings(), Metrics()), []
    read = Uploads._read
    monkeypatch.setattr(Uploads, "_read", lambda self, content: seen.append(self.reading) or read(self, content))
    waveform = asyncio.run(uploads.read(spoken.wav(spoken.tones(0)), "file"))
    assert len(waveform) > 0
    for wrong in ("!", "bm90IGF1ZGlv"):
        with pytest.raises(RequestError):
            asyncio.run(uploads.read_base64(wrong, "audio"))
    assert min(seen) > 0
    assert len(seen) == 2
    assert uploads.reading == 0


def test_nothing_is_kept_of_a_recording_that_pyav_decodes(spoken):
    av = pytest.importorskip("av", reason="needs pip install 'ossicle[av]'")
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        track = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(spoken.tones(0)[None], format="flt", layout="mono")
        frame.sample_rate = 16_000
        container.mux(track.encode(frame))
    uploads = Uploads(ServeSettings(), Metrics())
    read = asyncio.run(uploads.read(file.getvalue(), "file"))
    torch.testing.assert_close(read, torch.from_numpy(spoken.tones(0)), atol=1e-4, rtol=0)
    assert audio_av._decoded.cache_info().currsize == 0
