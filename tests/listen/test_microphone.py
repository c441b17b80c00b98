import sys
from types import ModuleType

import numpy as np
import pytest

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.errors import MissingPackageError, OssicleError
from ossicle.listen.microphone import BLOCK_S, UtteranceFinder, microphone_blocks, transcribe_blocks

BLOCK = int(BLOCK_S * SAMPLE_RATE_HZ)


def sound(*parts):
    """Return a stream of (seconds, level) in blocks."""
    rng = np.random.default_rng(0)
    whole = np.concatenate([rng.normal(size=int(s * SAMPLE_RATE_HZ)) * level for s, level in parts]).astype(np.float32)
    return [whole[start : start + BLOCK] for start in range(0, len(whole), BLOCK)]


def test_an_utterance_ends_with_a_pause():
    finder = UtteranceFinder(20.0, detector="energy")
    stream = sound((2.0, 0.0), (1.5, 0.1), (1.5, 0.0), (1.0, 0.1), (0.25, 0.0))
    found = [
        (k * BLOCK_S, utterance) for k, block in enumerate(stream, 1) if (utterance := finder.push(block)) is not None
    ]
    assert [round(time, 2) for time, _ in found] == [4.25]
    [(_, first)] = found
    loud = np.abs(first) > 0.01
    assert loud.sum() / SAMPLE_RATE_HZ == pytest.approx(1.5 * 0.92, abs=0.1)  # all of it
    assert len(first) / SAMPLE_RATE_HZ < 3.2
    assert finder.flush() is not None
    assert finder.flush() is None


def test_speech_without_a_pause_is_cut_at_the_limit():
    finder = UtteranceFinder(3.0, detector="energy")
    stream = sound((0.5, 0.0), (7.0, 0.1))
    found = [utterance for block in stream if (utterance := finder.push(block)) is not None]
    assert len(found[0]) / SAMPLE_RATE_HZ == pytest.approx(3.0, abs=BLOCK_S)


def test_each_utterance_is_transcribed(model):
    stream = sound((1.0, 0.0), (1.0, 0.1), (1.5, 0.0), (1.0, 0.1))
    heard = []
    answer = model.generate
    model.generate = lambda utterance, asked: heard.append(len(utterance)) or answer(utterance, asked, max_new_tokens=3)
    try:
        texts = list(transcribe_blocks(model, stream, detector="energy"))
    finally:
        del model.generate
    assert len(heard) == 2
    assert len(texts) <= 2


def test_a_microphone_gives_mono_blocks(monkeypatch):
    opened = {}

    class Stream:
        def __init__(self, **settings):
            opened.update(settings)

        def __enter__(self):
            opened["callback"](np.full((BLOCK, 1), 0.5, np.float32), BLOCK, None, None)

        def __exit__(self, *_):
            opened["closed"] = True

    fake = ModuleType("sounddevice")
    fake.InputStream, fake.PortAudioError = Stream, RuntimeError
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    blocks = microphone_blocks("USB")
    assert np.array_equal(next(blocks), np.full(BLOCK, 0.5, np.float32))
    blocks.close()
    assert (opened["samplerate"], opened["channels"], opened["device"]) == (SAMPLE_RATE_HZ, 1, "USB")
    assert opened["closed"]

    def refuse(**_):
        raise RuntimeError("no default device")

    fake.InputStream = refuse
    with pytest.raises(
        OssicleError, match=r"the microphone of the system cannot be opened .no default device.*--microphone"
    ):
        next(microphone_blocks())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'ossicle\[listen\]'"):
        next(microphone_blocks())
