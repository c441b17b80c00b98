import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest

from ossicle.audio import SAMPLE_RATE_HZ, read_audio
from ossicle.corpora.voices import PITCH, RATE_WPM, espeak, held_out_voices, speak_with_times, train_voices
from ossicle.data.manifest import read_manifest
from ossicle.errors import VoiceError
from ossicle_lab.models.build_encoder import homophones, training_strings
from ossicle_lab.models.ctc import recognition_scores
from ossicle_lab.models.tiny_hubert import ctc_processor
from ossicle_lab.world.passages import sample_passages
from ossicle_lab.world.synthesise import synthesise
from places import ENCODER

espeakng_loader = pytest.importorskip("espeakng_loader", reason="needs pip install espeakng-loader")
TEXT = "in the morning anna saw the red car at the end of the street"


def test_no_variant_is_in_both_splits() -> None:
    train, held_out = train_voices(), held_out_voices()
    assert not {voice.variant for voice in train} & {voice.variant for voice in held_out}
    assert len({voice.name for voice in train}) == len(train) >= 40
    assert len({voice.name for voice in held_out}) == len(held_out) >= 8
    assert {voice.gender for voice in train} == {voice.gender for voice in held_out} == {"female", "male"}


def test_genders_agree_with_the_voice_files() -> None:
    for voice in train_voices() + held_out_voices():
        text = (Path(espeakng_loader.get_data_path()) / "voices/!v" / voice.variant).read_text(errors="replace")
        stated = re.search(r"^gender\s+(\w+)", text, re.MULTILINE)
        assert voice.gender == (stated[1].lower() if stated else "male"), voice.name


@pytest.mark.parametrize("voice", train_voices()[::5] + held_out_voices()[::3], ids=lambda voice: voice.name)
def test_speech_depends_on_the_arguments_alone(voice) -> None:
    first = speak_with_times(TEXT, voice, seed=3).waveform
    speak_with_times("something else", train_voices()[0], seed=1)
    assert np.array_equal(first, speak_with_times(TEXT, voice, seed=3).waveform)
    assert not np.array_equal(first[:8000], speak_with_times(TEXT, voice, seed=4).waveform[:8000])


def test_another_process_gives_the_same_samples() -> None:
    voice = train_voices()[0]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.apply(speak_with_times, (TEXT, voice, 3)).waveform
    assert np.array_equal(elsewhere, speak_with_times(TEXT, voice, seed=3).waveform)


def test_waveform_and_metadata() -> None:
    for seed, voice in enumerate(held_out_voices()):
        utterance = speak_with_times(TEXT, voice, seed)
        assert utterance.waveform.dtype == np.float32 and utterance.waveform.ndim == 1
        assert 0.3 < np.abs(utterance.waveform).max() <= 1.0
        assert 2.0 < utterance.duration_s < 7.0
        assert RATE_WPM[0] <= utterance.rate_wpm <= RATE_WPM[1] and PITCH[0] <= utterance.pitch <= PITCH[1]


def test_a_higher_rate_is_faster() -> None:
    slow, fast = (espeak().synthesise(TEXT, "en-us+m3", rate_wpm, 50) for rate_wpm in RATE_WPM)
    assert len(slow.samples) > 1.2 * len(fast.samples)


@pytest.mark.parametrize("text", [TEXT, "hello", "out of the house and into the garden and then out of it"])
def test_word_times_cover_the_utterance(text: str) -> None:
    for voice in train_voices()[::9]:
        utterance = speak_with_times(text, voice, seed=1)
        words, starts, ends = zip(*utterance.words, strict=True)
        assert list(words) == text.split()
        assert starts[0] < 0.15 and ends[-1] == pytest.approx(utterance.duration_s)
        assert list(starts[1:]) == list(ends[:-1])
        assert all(end - start > 0.01 for start, end in zip(starts, ends, strict=True))


def test_word_times_are_where_the_words_are() -> None:
    # The second word starts about where the first ends if it is spoken alone (more slowly, with silence around it).
    for word in ("cat", "mountain"):
        utterance = speak_with_times(f"{word} dog", train_voices()[0], seed=0)
        alone = speak_with_times(word, train_voices()[0], seed=0)
        assert utterance.words[1][1] == pytest.approx(alone.duration_s, abs=0.3)


def test_an_empty_text_is_an_error() -> None:
    with pytest.raises(VoiceError, match="produces no sound"):
        speak_with_times("", train_voices()[0])


def test_an_unknown_voice_is_an_error() -> None:
    with pytest.raises(VoiceError, match="no voice 'xx-nowhere"):
        espeak().synthesise("hello", "xx-nowhere+f1", 175, 50)


def test_manifest_round_trip(tmp_path: Path) -> None:
    items = [
        {"id": f"p{i}", "text": passage.text, "task": "asr", "instruction": "repeat", "answers": (passage.text,)}
        for i, passage in enumerate(sample_passages("dev", 6, seed=1))
    ]
    manifest = synthesise(items, tmp_path / "a", voices=train_voices(), seed=5, progress=False)
    samples = read_manifest(manifest)
    assert [(sample.id, sample.text, sample.answers) for sample in samples] == [
        (item["id"], item["text"], item["answers"]) for item in items
    ]
    genders = {voice.name: voice.gender for voice in train_voices()}
    for sample in samples:
        waveform = read_audio(sample.audio)
        assert len(waveform) / SAMPLE_RATE_HZ == pytest.approx(sample.duration_s, abs=1e-3)
        assert sample.language == "en" and sample.extra["gender"] == genders[sample.speaker]
        assert [word for word, _, _ in sample.extra["words"]] == (sample.text or "").split()


def test_synthesis_continues_and_does_not_depend_on_order(tmp_path: Path) -> None:
    items = [{"id": f"p{i}", "text": f"{word} dog"} for i, word in enumerate(("red", "big", "old"))]
    manifest = synthesise(items, tmp_path, voices=train_voices(), progress=False)
    lines = {json.loads(line)["id"]: line for line in manifest.read_text().splitlines()}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("audio/*.wav")}
    new = {"id": "p3", "text": "new dog"}
    manifest = synthesise([new, *reversed(items)], tmp_path, voices=train_voices(), progress=False)
    assert {json.loads(line)["id"]: line for line in manifest.read_text().splitlines()}.items() >= lines.items()
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in written.items())


def test_several_processes_write_what_one_writes(tmp_path: Path) -> None:
    items = [{"id": f"w{i}", "text": text} for i, text in enumerate(training_strings(70, 1, min_words=1, max_words=2))]
    one, two = (
        synthesise(items, tmp_path / str(n), voices=train_voices(), processes=n, progress=False) for n in (1, 2)
    )
    assert one.read_text() == two.read_text()


def test_homophones_are_found() -> None:
    assert homophones(["ant", "aunt", "cat", "flour", "flower"]) == {"aunt": "ant", "flower": "flour"}


@pytest.mark.skipif(not (ENCODER / "model.safetensors").exists(), reason="the encoder is not built: make lab")
def test_the_shipped_encoder_recognises_new_strings_in_new_voices(tmp_path: Path) -> None:
    from transformers import HubertForCTC

    strings = training_strings(8, 987, min_words=3, max_words=8)
    items = [{"id": f"fresh{i}", "text": text} for i, text in enumerate(strings)]
    samples = read_manifest(synthesise(items, tmp_path, voices=held_out_voices(), seed=77, progress=False))
    model = HubertForCTC.from_pretrained(ENCODER).float()
    processor = ctc_processor(tmp_path / "processor")
    scores = recognition_scores(model, processor, samples, merge=homophones(sorted(" ".join(strings).split())))
    assert scores["wer"] < 35, scores
    assert scores["cer"] < 15, scores
