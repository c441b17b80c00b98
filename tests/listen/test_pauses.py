import sys
from itertools import pairwise

import numpy as np
import pytest

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.corpora.voices import held_out_voices, speak_with_times
from ossicle.errors import MissingPackageError
from ossicle.listen.pauses import MARGIN_S, OVERLAP_S, Window, find_detector, windows

SECOND = SAMPLE_RATE_HZ
SENTENCE = "in the morning anna saw the red car at the end of the street"
DETECTORS = ("silero", "energy")


def needs(detector):
    pytest.importorskip("espeakng_loader", reason="needs pip install espeakng-loader")
    if detector == "silero":
        pytest.importorskip("silero_vad", reason="needs pip install silero-vad")


def silence(seconds, level=1e-4):
    return np.random.default_rng(0).normal(size=int(seconds * SECOND)).astype(np.float32) * level


def recording(pauses):
    """Return a recording with a sentence before each pause, and the samples where the sentences begin and end."""
    parts, places, length = [silence(1.0)], [], SECOND
    for number, pause in enumerate(pauses):
        said = speak_with_times(SENTENCE, held_out_voices()[number % 4], number).waveform
        places.append((length, length + len(said)))
        parts += [said + silence(len(said) / SECOND)[: len(said)], silence(pause)]
        length += len(said) + len(parts[-1])
    return np.concatenate(parts).astype(np.float32), places


@pytest.mark.parametrize("detector", DETECTORS)
def test_windows_hold_whole_sentences(detector):
    needs(detector)
    waveform, places = recording([1.0, 1.2, 0.9, 1.5])
    found = windows(waveform, most_s=6.0, detector=detector)
    assert len(found) == len(places)
    for window, (start, stop) in zip(found, places, strict=True):
        assert start / SECOND - 3 * MARGIN_S < window.start_s < start / SECOND + 0.1
        assert stop / SECOND - 0.15 < window.end_s < stop / SECOND + 3 * MARGIN_S
        assert not window.overlaps


@pytest.mark.parametrize("detector", DETECTORS)
def test_neighbours_are_joined_up_to_the_limit_and_cut_at_the_longest_pause(detector):
    needs(detector)
    waveform, places = recording([0.5, 2.0, 0.5, 0.5])
    found = windows(waveform, most_s=9.0, detector=detector)
    assert len(found) == 2
    assert places[1][1] / SECOND - 0.15 < found[0].end_s < places[2][0] / SECOND
    assert all(window.end_s - window.start_s <= 9.0 for window in found)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(5 * SECOND),
        silence(5.0, 1e-5),
        silence(5.0, 0.1),
        0.3 * np.sin(np.arange(5 * SECOND) * 2 * np.pi * 50 / SECOND),
        np.zeros(0),
        np.zeros(10),
    ],
    ids=["zeros", "dither", "white noise", "hum", "nothing", "ten samples"],
)
def test_silence_and_steady_sounds_are_no_speech(detector, sound):
    needs(detector)
    assert windows(sound.astype(np.float32), detector=detector) == []


def test_silero_finds_no_speech_in_music():
    needs("silero")
    rng, time = np.random.default_rng(0), np.arange(SECOND // 2) / SECOND
    notes = [
        sum(np.sin(2 * np.pi * 220 * 2 ** (step / 12) * k * time) / k for k in (1, 2, 3)) * np.exp(-4 * time)
        for step in rng.choice([0, 2, 4, 7, 9, 12], 16)
    ]
    assert windows(0.2 * np.concatenate(notes).astype(np.float32), detector="silero") == []


def test_speech_without_a_pause_is_cut_where_it_is_soft_and_overlaps():
    rng = np.random.default_rng(0)
    loud = rng.normal(size=30 * SECOND).astype(np.float32) * 0.1
    loud[: SECOND // 2] = loud[-SECOND // 2 :] = 0.0
    loud[8 * SECOND : int(8.1 * SECOND)] *= 0.05  # too short for a pause
    found = windows(loud, most_s=10.0, detector="off")
    assert found[0].end_s == pytest.approx(8.05, abs=0.06)
    assert [window.overlaps for window in found] == [False] + [True] * (len(found) - 1)
    for before, after in pairwise(found):
        assert before.end_s - after.start_s == pytest.approx(OVERLAP_S, abs=0.01)
        assert after.end_s - after.start_s <= 10.0
    assert found[-1].end_s == 30.0


def test_off_takes_all_and_an_hour_of_pauses_is_cut_without_recursion():
    assert windows(np.zeros(SECOND, np.float32), detector="off") == [Window(0.0, 1.0)]
    pulse = np.concatenate([0.3 * silence(0.4, 1.0), np.zeros(int(0.8 * SECOND))])
    found = windows(np.tile(pulse, 3000).astype(np.float32), most_s=5.0, detector="energy")
    assert 3000 * 1.2 / 5 <= len(found) < 3000


def test_silero_is_asked_for_by_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    from ossicle.listen import pauses

    pauses._silero.cache_clear()
    with pytest.raises(MissingPackageError, match=r"pip install 'ossicle\[vad\]'"):
        windows(np.zeros(SECOND, np.float32), detector="silero")
    monkeypatch.setattr(pauses, "find_spec", lambda name: None)
    assert find_detector("auto") is pauses.energy_speech
