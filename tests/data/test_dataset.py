from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from ossicle.batch import Sample
from ossicle.data.dataset import (
    Skipped,
    SpeechDataset,
    Utterance,
    known_duration_s,
    subset,
)
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import DataError
from places import SHARED

REAL_SPEECH = SHARED / "data" / "real_speech"
FIX = "Fix the file, remove the line, or set data.on_error: skip."


def write_noise(path: Path, duration_s: float) -> Path:
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.5, 0.5, round(duration_s * 16_000)).astype(np.float32), 16_000)
    return path


def make_corpus(folder: Path, *, with_durations: bool) -> list[Sample]:
    """Write eight lines: two valid files, and between them one file of each invalid kind."""
    good = [write_noise(folder / name, 1.0) for name in ("good1.wav", "good2.flac")]
    short, long = write_noise(folder / "short.wav", 0.05), write_noise(folder / "long.wav", 46.0)
    truncated = write_noise(folder / "truncated.flac", 4.0)
    truncated.write_bytes(truncated.read_bytes()[:40_000])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not audio\n" * 50)
    others = [short, long, truncated, folder / "empty.wav", folder / "text.wav", folder / "missing.wav"]
    stated_s = {"short": 0.05, "long": 46.0, "truncated": 4.0}
    write_manifest(
        folder / "m.jsonl",
        [
            Sample(id=path.stem, audio=path, duration_s=stated_s.get(path.stem, 1.0) if with_durations else None)
            for path in (good[0], *others, good[1])
        ],
    )
    return read_manifest(folder / "m.jsonl")


REASONS = {
    "short": "is too short: 0.050 s, and data.min_duration_s is 0.1",
    "long": "is too long: 46.00 s, and data.max_duration_s is 45.0",
    "truncated": "is truncated or damaged",
    "empty": "the file is empty (0 bytes)",
    "text": "is not an audio file",
    "missing": "there is no such file",
}


def first_item(samples: list[Sample]) -> Utterance | Skipped:
    return SpeechDataset(samples)[0]


@pytest.mark.parametrize("with_durations", [True, False])
@pytest.mark.parametrize("kind", REASONS)
def test_bad_file_raises_with_line_reason_and_fix(tmp_path, kind, with_durations):
    samples = [sample for sample in make_corpus(tmp_path, with_durations=with_durations) if sample.id == kind]
    with pytest.raises(DataError) as error:
        first_item(samples)
    message = str(error.value)
    line = 2 + list(REASONS).index(kind)
    assert message.startswith(f"{tmp_path / 'm.jsonl'}:{line}: {kind!r} cannot be used: {samples[0].audio}: ")
    assert REASONS[kind] in message
    assert message.endswith(FIX)


def test_all_that_headers_can_tell_is_found_before_training(tmp_path):
    samples = make_corpus(tmp_path, with_durations=False)
    with pytest.raises(DataError, match=r"m.jsonl:2: 'short' .* \(4 more files cannot be used either.\)"):
        SpeechDataset(samples)


@pytest.mark.parametrize("with_durations", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_counts_and_lists(tmp_path, num_workers, with_durations):
    dataset = SpeechDataset(make_corpus(tmp_path, with_durations=with_durations), on_error="skip")
    for _ in range(2):  # two epochs report each skipped utterance once
        items = [item for batch in DataLoader(dataset, 2, collate_fn=list, num_workers=num_workers) for item in batch]
        dataset.record(item for item in items if isinstance(item, Skipped))
    assert [item.sample.id for item in items if isinstance(item, Utterance)] == ["good1", "good2"]
    head, *lines = dataset.report().split("\n  ")
    assert head == "6 of 8 utterances skipped"
    listed = {item.sample.id: str(item) for item in dataset.skipped}
    assert sorted(listed.values()) == sorted(lines)
    for number, (kind, reason) in enumerate(REASONS.items(), start=2):
        assert listed[kind].startswith(f"{tmp_path / 'm.jsonl'}:{number}: {kind!r} skipped: ")
        assert reason in listed[kind]


def test_items_are_mono_tensors_of_the_segment(tmp_path):
    path = write_noise(tmp_path / "a.wav", 3.0)
    samples = [Sample(id="whole", audio=path), Sample(id="cut", audio=path, start_s=0.5, end_s=1.5)]
    samples.append(Sample(id="tail", audio=path, start_s=2.0))
    dataset = SpeechDataset(samples)
    waveforms = [item.waveform for item in dataset]
    assert [tuple(waveform.shape) for waveform in waveforms] == [(48_000,), (16_000,), (16_000,)]
    assert all(waveform.dtype == torch.float32 for waveform in waveforms)
    assert torch.equal(waveforms[1], waveforms[0][8_000:24_000])
    assert dataset.durations_s == pytest.approx([3.0, 1.0, 1.0])
    assert [dataset[index].duration_s for index in range(3)] == pytest.approx([3.0, 1.0, 1.0])
    assert len(dataset) == 3
    assert dataset.report() == "0 of 3 utterances skipped"


def test_stated_duration_must_be_true(tmp_path):
    sample = Sample(id="a", audio=write_noise(tmp_path / "a.wav", 3.0), duration_s=6.0)
    with pytest.raises(DataError, match=r"lasts 3.00 s where the manifest states 6.00 s"):
        first_item([sample])


def test_segment_that_starts_after_the_file(tmp_path):
    sample = Sample(id="a", audio=write_noise(tmp_path / "a.wav", 3.0), start_s=3.5)
    with pytest.raises(DataError, match=r"start_s is 3.5, the file lasts 3.00 s"):
        SpeechDataset([sample])


def test_durations_are_read_from_headers_in_order(tmp_path):
    paths = [write_noise(tmp_path / f"{index}.wav", 0.1 + 0.01 * index) for index in range(20)]
    samples = [Sample(id=str(index), audio=path) for index, path in enumerate(paths * 60)]  # shows the progress
    dataset = SpeechDataset(samples)
    assert dataset.skipped == []
    assert [sample.id for sample in dataset.samples] == [sample.id for sample in samples]
    assert dataset.durations_s[:20] == pytest.approx([0.1 + 0.01 * index for index in range(20)])
    samples[3] = Sample(id="gone", audio=tmp_path / "gone.wav")
    dataset = SpeechDataset(samples, on_error="skip")
    assert len(dataset) == 1199
    assert [item.sample.id for item in dataset.skipped] == ["gone"]


def test_an_unknown_duration_is_refused():
    with pytest.raises(DataError, match='has no "duration_s"'):
        known_duration_s(Sample(id="a", audio=Path("x")))


def task_samples() -> list[Sample]:
    counts = {("asr", "en"): 300, ("st", "en"): 100, ("qa", "de"): 40, ("qa", "en"): 3}
    return [
        Sample(id=f"{task}-{language}-{index}", audio=Path("x"), task=task, language=language)
        for (task, language), count in counts.items()
        for index in range(count)
    ]


def test_subsets_are_nested_and_keep_each_share():
    samples = task_samples()
    tenth, half, whole = (subset(samples, fraction) for fraction in (0.1, 0.5, 1.0))
    ids = [{sample.id for sample in chosen} for chosen in (tenth, half, whole)]
    assert ids[0] < ids[1] < ids[2]
    assert whole == samples
    assert [sum(sample.task == task for sample in tenth) for task in ("asr", "st", "qa")] == [30, 10, 4 + 1]
    assert [sum(sample.task == task for sample in half) for task in ("asr", "st", "qa")] == [150, 50, 20 + 2]
    assert [sample for sample in samples if sample.id in ids[0]] == tenth, "the order is kept"


def test_subset_depends_on_seed_and_ids_alone():
    samples = task_samples()
    chosen = {sample.id for sample in subset(samples, 0.2)}
    assert chosen == {sample.id for sample in subset(samples[::-1], 0.2)}
    assert chosen != {sample.id for sample in subset(samples, 0.2, seed=1)}
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"data.fraction"):
            subset(samples, fraction)


@pytest.mark.skipif(not REAL_SPEECH.is_dir(), reason="needs the recorded speech in ../shared/data/real_speech")
def test_recorded_speech_reads():
    manifests = sorted(REAL_SPEECH.glob("*/manifest.jsonl"))
    assert manifests
    for manifest in manifests:
        samples = read_manifest(manifest)
        dataset = SpeechDataset(samples[:3], max_duration_s=60.0)
        for item in dataset:
            assert isinstance(item, Utterance)
            assert item.duration_s == pytest.approx(known_duration_s(item.sample), abs=0.05)
