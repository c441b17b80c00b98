import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch, Sample
from ossicle.data.dataset import SpeechDataset, Utterance
from ossicle.errors import HypothesesError
from ossicle.evaluate.decode import decode, meta_path
from ossicle.evaluate.hypotheses import read_hypotheses
from ossicle.evaluate.references import references_of
from ossicle.evaluate.score import score


class Parrot:
    """A decoder that answers with the transcript and records its batches; it is interrupted at batch ``dies_at``."""

    def __init__(self, dies_at=None):
        self.batches = []
        self.decoding = []
        self.dies_at = dies_at

    def generate_batch(self, batch, **decoding):
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append([sample.id for sample in batch.samples])
        self.decoding.append(decoding)
        return [f"heard {sample.text}" for sample in batch.samples]


def collate(items):
    utterances = [item for item in items if isinstance(item, Utterance)]
    return Batch(
        samples=[utterance.sample for utterance in utterances],
        audio_s=sum(utterance.duration_s for utterance in utterances),
    )


@pytest.fixture
def samples(tmp_path):
    made = []
    for index in range(5):
        audio = tmp_path / f"{index}.wav"
        soundfile.write(audio, np.zeros(SAMPLE_RATE_HZ * (index + 1) // 4, dtype=np.float32), SAMPLE_RATE_HZ)
        made.append(Sample(id=f"u{index}", audio=audio, text=f"word {index}", language="en", source=f"m.jsonl:{index}"))
    return made


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run" / "hypotheses.jsonl"


def test_every_utterance_is_decoded_longest_first(samples, out):
    model = Parrot()
    report = decode(model, SpeechDataset(samples), collate, out, fingerprint="abc", batch_size=2)
    assert model.batches == [["u4", "u3"], ["u2", "u1"], ["u0"]]
    assert model.decoding[0] == {"max_new_tokens": 200}
    assert (report.decoded, report.already_decoded, report.skipped) == (5, 0, [])
    assert report.audio_s == pytest.approx(3.75)
    first = json.loads(out.read_text().splitlines()[0])
    assert first == {
        "id": "u4",
        "hypothesis": "heard word 4",
        "references": ["word 4"],
        "task": None,
        "instruction": None,
        "language": "en",
        "target_language": None,
        "audio": str(samples[4].audio),
        "speaker": None,
        "text": "word 4",
        "input_hash": first["input_hash"],
    }
    assert score(out)[0].scores["wer"] == 50


def test_an_interrupted_run_resumes(samples, out):
    with pytest.raises(KeyboardInterrupt):
        decode(Parrot(dies_at=1), SpeechDataset(samples), collate, out, fingerprint="abc", batch_size=2)
    with out.open("a") as file:
        file.write('{"id": "u2", "hypo')  # interrupted in the middle of a line
    model = Parrot()
    report = decode(model, SpeechDataset(samples), collate, out, fingerprint="abc", batch_size=2)
    assert model.batches == [["u2", "u1"], ["u0"]]
    assert (report.decoded, report.already_decoded) == (3, 2)
    assert sorted(line.id for line in read_hypotheses(out)) == ["u0", "u1", "u2", "u3", "u4"]

    report = decode(model, SpeechDataset(samples), collate, out, fingerprint="abc")
    assert (report.decoded, report.already_decoded) == (0, 5)


@pytest.mark.parametrize("change", [{"fingerprint": "other"}, {"max_new_tokens": 7}])
def test_the_file_of_another_run_is_refused(samples, out, change):
    dataset, settings = SpeechDataset(samples[:1]), {"fingerprint": "abc"}
    decode(Parrot(), dataset, collate, out, **settings)
    before = out.read_text()
    with pytest.raises(HypothesesError, match=r"delete hypotheses\.jsonl and hypotheses\.meta\.json"):
        decode(Parrot(), dataset, collate, out, **settings | change)
    assert out.read_text() == before


def test_the_file_of_another_dataset_is_refused(samples, out):
    decode(Parrot(), SpeechDataset(samples[:2]), collate, out, fingerprint="abc")
    with pytest.raises(HypothesesError, match="holds 1 utterances that this dataset does not"):
        decode(Parrot(), SpeechDataset(samples[1:]), collate, out, fingerprint="abc")


def test_a_file_of_unknown_origin_is_refused(samples, out):
    decode(Parrot(), SpeechDataset(samples[:1]), collate, out, fingerprint="abc")
    meta_path(out).unlink()
    with pytest.raises(HypothesesError, match=r"no hypotheses\.meta\.json"):
        decode(Parrot(), SpeechDataset(samples[:1]), collate, out, fingerprint="abc")


def test_a_call_that_failed_before_its_first_answer_does_not_bind_the_next(samples, out):
    with pytest.raises(KeyboardInterrupt):
        decode(Parrot(dies_at=0), SpeechDataset(samples), collate, out, fingerprint="abc", max_new_tokens=10**6)
    assert out.read_text() == ""
    decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="other", max_new_tokens=5)
    assert json.loads(meta_path(out).read_text()) == {"fingerprint": "other", "decoding": {"max_new_tokens": 5}}
    with pytest.raises(HypothesesError, match="written with"):
        decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="other", max_new_tokens=6)


def test_a_folder_in_the_place_of_the_file_is_named(samples, out):
    out.mkdir(parents=True)
    with pytest.raises(HypothesesError, match=r"hypotheses\.jsonl: is a folder; name a file"):
        decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="abc")


def test_progress_is_printed_in_logs(samples, out, capsys, monkeypatch):
    monkeypatch.setattr("ossicle.progress.LINE_EVERY_S", 0)
    decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="abc", batch_size=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("decoding  2/4 s of audio")
    assert lines[-1].startswith(f"{out}: decoded 5 utterances, 4 s of audio in ")


def test_broken_audio_is_left_out_and_listed(samples, out, capsys):
    dataset = SpeechDataset(samples, on_error="skip")
    samples[1].audio.unlink()  # after the dataset has looked at the headers
    samples[3].audio.write_text("not audio")
    report = decode(Parrot(), dataset, collate, out, fingerprint="abc", batch_size=1)
    assert report.decoded == 3
    assert sorted(skipped.sample.id for skipped in report.skipped) == ["u1", "u3"]
    printed = capsys.readouterr().err
    assert "2 utterances have no hypothesis" in printed
    assert "m.jsonl:1" in printed
    assert "m.jsonl:3" in printed


def test_one_recording_with_two_questions(samples, out):
    questions = [
        Sample(id="q", audio=samples[0].audio, task="qa", instruction=text, answers=("a",))
        for text in ("who?", "what?")
    ]
    report = decode(Parrot(), SpeechDataset(questions), collate, out, fingerprint="abc")
    assert report.decoded == 2
    with pytest.raises(HypothesesError, match="another id"):
        decode(Parrot(), SpeechDataset([*questions, questions[0]]), collate, out, fingerprint="abc")


def test_references(samples):
    assert references_of(samples[0]) == ("word 0",)
    asked = Sample(id="a", audio=samples[0].audio, text="the passage", task="qa", answers=("x", "y"))
    assert references_of(asked) == ("x", "y")
    assert references_of(Sample(id="a", audio=samples[0].audio, text="the passage", task="st")) == ()


def test_answers_to_other_audio_are_decoded_again(samples, out):
    """A manifest of the same name and ids may hold other recordings: content counts, not names."""
    decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="abc")
    chance = np.random.default_rng(0)
    soundfile.write(samples[1].audio, chance.uniform(-0.1, 0.1, SAMPLE_RATE_HZ // 2), SAMPLE_RATE_HZ)
    moved = samples[3].audio.with_name("moved.wav")
    samples[3].audio.rename(moved)
    now = [*samples[:3], replace(samples[3], audio=moved), replace(samples[4], start_s=0.1)]
    model = Parrot()
    report = decode(model, SpeechDataset(now), collate, out, fingerprint="abc")
    assert model.batches == [["u4", "u1"]]  # another segment, another content; u3 was only renamed
    assert (report.decoded, report.already_decoded, report.stale) == (2, 3, 2)
    assert sorted(line.id for line in read_hypotheses(out)) == ["u0", "u1", "u2", "u3", "u4"]


def test_corrected_references_are_used_without_decoding_again(samples, out):
    decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="abc")
    now = [replace(sample, text=f"heard word {index}", speaker="anna") for index, sample in enumerate(samples)]
    model = Parrot()
    decode(model, SpeechDataset(now), collate, out, fingerprint="abc")
    assert model.batches == []
    assert score(out)[0].scores["wer"] == 0
    assert {line.speaker for line in read_hypotheses(out)} == {"anna"}


def test_corrected_transcripts_are_decoded_again_where_the_model_reads_them(samples, out):
    decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="abc", from_text=True)
    now = [replace(samples[0], text="corrected"), *samples[1:]]
    model = Parrot()
    decode(model, SpeechDataset(now), collate, out, fingerprint="abc", from_text=True)
    assert model.batches == [["u0"]]


def test_lines_without_an_input_hash_are_decoded_again(samples, out):
    decode(Parrot(), SpeechDataset(samples[:1]), collate, out, fingerprint="abc")
    entry = json.loads(out.read_text())
    del entry["input_hash"]
    out.write_text(json.dumps(entry) + "\n")
    assert decode(Parrot(), SpeechDataset(samples[:1]), collate, out, fingerprint="abc").stale == 1


def test_two_processes_never_write_one_file(samples, out):
    class Second(Parrot):
        def generate_batch(self, batch, **decoding):
            with pytest.raises(HypothesesError, match="another process decodes into this file"):
                decode(Parrot(), SpeechDataset(samples), collate, out, fingerprint="abc")
            return super().generate_batch(batch, **decoding)

    assert decode(Second(), SpeechDataset(samples), collate, out, fingerprint="abc").decoded == 5
