import numpy as np
import pytest
import soundfile
import torch

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.errors import AudioError, DataError
from ossicle.listen import long
from ossicle.listen.inputs import Recording
from ossicle.listen.long import Piece, Segment, Stitcher, ask, pieces, repeated_words, speech_of, transcribe


def pulses(count, seconds=0.8, pause=0.6):
    """Return noises of rising level, so that every one is different, and the times where they begin."""
    rng = np.random.default_rng(0)
    parts, starts, length = [np.zeros(int(0.5 * SAMPLE_RATE_HZ))], [], 0.5
    for number in range(count):
        starts.append(length)
        noise = rng.normal(size=int(seconds * SAMPLE_RATE_HZ)) * 0.05 * (1 + number / count)
        parts += [noise, np.zeros(int(pause * SAMPLE_RATE_HZ))]
        length += seconds + pause
    return np.concatenate(parts).astype(np.float32), starts


@pytest.fixture
def file(tmp_path):
    waveform, _ = pulses(40)
    soundfile.write(tmp_path / "long.wav", waveform, SAMPLE_RATE_HZ, subtype="FLOAT")
    return tmp_path / "long.wav"


def test_pieces_do_not_depend_on_the_blocks(file, monkeypatch):
    whole = list(pieces(Recording(file), most_s=5.0, detector="energy"))
    read = []
    monkeypatch.setattr(long, "BLOCK_S", 10.0)
    original = Recording.read
    monkeypatch.setattr(Recording, "read", lambda self, *times: read.append(times) or original(self, *times))
    blocks = list(pieces(Recording(file), most_s=5.0, detector="energy"))
    assert len(read) > 5
    assert all(end is None or end - start == 10.0 for start, end in read)
    # Which noises share a window may change at a block. All are heard once, in order and whole.
    for found in (whole, blocks):
        heard = np.zeros(Recording(file).read().shape)
        for piece in found:
            first = round(piece.start_s * SAMPLE_RATE_HZ)
            heard[first : first + len(piece.waveform)] += 1
        waveform, starts = pulses(40)
        assert heard.max() == 1
        assert all(heard[int((start + 0.1) * SAMPLE_RATE_HZ)] == 1 for start in starts)
        assert all(
            np.array_equal(p.waveform, waveform[round(p.start_s * SAMPLE_RATE_HZ) :][: len(p.waveform)]) for p in found
        )


def test_a_short_recording_is_one_window_as_a_whole():
    waveform, _ = pulses(2)
    [piece] = pieces(Recording(waveform), most_s=20.0, detector="energy")
    assert np.array_equal(piece.waveform, waveform)
    assert list(pieces(Recording(np.zeros(16000, np.float32)), most_s=20.0, detector="energy")) == []


def test_a_transcript_has_the_answer_to_every_window(model):
    waveform, _ = pulses(20)
    found = list(transcribe(model, waveform, batch_size=1, detector="energy", max_new_tokens=4))
    assert len(found) == 2
    expected = [
        model.generate(piece.waveform, "Transcribe the speech.", max_new_tokens=4)[0]
        for piece in pieces(Recording(waveform), most_s=long.window_s(model), detector="energy")
    ]
    assert [segment.text for segment in found] == [text for text in expected if text]
    assert list(transcribe(model, np.zeros(80000, np.float32))) == []


def test_a_question_is_about_all_windows(model, monkeypatch):
    waveform, _ = pulses(30)
    recording = Recording(waveform)
    monkeypatch.setattr(long, "pieces", lambda r, most_s, **_: pieces(r, most_s=most_s, detector="energy"))
    windows = list(pieces(recording, most_s=long.window_s(model), detector="energy"))
    assert len(windows) > 1
    tokens = [speech_of(model, Recording(piece.waveform)) for piece in windows]
    whole = speech_of(model, recording)
    assert torch.allclose(whole.values, torch.cat([each.values for each in tokens], 1), atol=1e-5)
    answer = ask(model, recording, "who?", max_new_tokens=3)
    assert isinstance(answer, str)
    model.llm.context = 300
    try:
        with pytest.raises(
            DataError, match=r"the first \d+ of \d+ s are \d+ speech tokens, but .* reads 300 positions"
        ):
            ask(model, recording, "who?")
    finally:
        model.llm.context = None


def test_the_llm_reads_the_transcript_of_all_windows(model, monkeypatch):
    waveform, _ = pulses(30)
    said = [long.Segment(0, 1, "the cat"), long.Segment(1, 2, "sat")]
    monkeypatch.setattr(long, "transcribe", lambda *_: iter(said))
    asked = []
    monkeypatch.setattr(model.llm, "generate", lambda prompt, **_: asked.append(prompt) or ["tom"])
    assert ask(model, waveform, "who?", own_transcript=True) == "tom"
    turn, ids = model.prompter().turn("who?", ""), model.prompter().content_ids("the cat sat")
    expected = model.llm.embed(torch.tensor([[*turn.before, *ids, *turn.after]]))
    assert torch.equal(asked[0].values, expected)


@pytest.mark.parametrize("own", [False, True])
def test_a_question_about_silence_is_refused(model, monkeypatch, own):
    monkeypatch.setattr(long, "pieces", lambda r, most_s, **_: pieces(r, most_s=most_s, detector="energy"))
    with pytest.raises(AudioError, match="the recording: no speech was found in it"):
        ask(model, np.zeros(60 * SAMPLE_RATE_HZ, np.float32), "who?", own_transcript=own)


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        ("we saw the old house", "the old house was red", 3),
        ("we saw the old hou", "the old house was red", 2),  # the last word was cut
        ("we saw the Old house.", "old house, was red", 2),
        ("we saw the old house", "ld house was red", 2),  # the first word was cut
        ("we saw the", "the house", 1),
        ("we saw the thing", "the house", 0),  # a short word before a cut one is no evidence
        ("one two", "three four", 0),
        ("", "three four", 0),
        ("no no no", "no", 1),
    ],
)
def test_repeated_words(before, after, count):
    assert repeated_words(before.split(), after.split()) == count


def test_only_overlapping_windows_are_stitched():
    stitcher = Stitcher()
    wave = np.zeros(1)
    assert stitcher.segment(Piece(wave, 0.0, 5.0), "yes it is") == Segment(0.0, 5.0, "yes it is")
    assert stitcher.segment(Piece(wave, 5.0, 9.0), "it is late") == Segment(5.0, 9.0, "it is late")
    assert stitcher.segment(Piece(wave, 8.0, 9.0, overlaps=True), "is late now") == Segment(8.0, 9.0, "now")
    assert stitcher.segment(Piece(wave, 8.5, 9.0, overlaps=True), "late now") is None
