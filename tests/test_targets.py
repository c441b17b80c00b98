import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from ossicle.batch import Utterance
from ossicle.data.collate import pad
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.models.encoder import load_encoder
from ossicle.store import ABOUT
from ossicle.targets import CACHE_DTYPE, CachedDataset, FrameCache, key_of
from ossicle.testing import tiny_manifest

CPU = torch.device("cpu")


@pytest.fixture
def encoder(folders):
    return load_encoder(str(folders["hubert"]))


@pytest.fixture
def dataset(manifest) -> SpeechDataset:
    return SpeechDataset(read_manifest(manifest))


@pytest.fixture
def counted(encoder):
    """How many waveforms the encoder is given."""
    seen = []
    encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0].values)))
    return seen


def test_cached_frames_are_the_encoders_in_bfloat16(encoder, dataset, tmp_path):
    cache = FrameCache(tmp_path, encoder)
    assert dataset.samples[0] not in cache
    cache.fill(dataset, CPU)
    cached = CachedDataset(dataset, cache)
    assert len(cached) == len(dataset) == 8
    for index, sample in enumerate(dataset.samples):
        utterance = dataset[index]
        assert isinstance(utterance, Utterance)
        expected = encoder(pad([utterance.waveform])).values[0]
        assert cache[sample].dtype == CACHE_DTYPE == torch.bfloat16
        assert cached[index].frames.dtype == torch.float32
        assert cached[index].waveform is None
        assert cached[index].sample is sample
        torch.testing.assert_close(cached[index].frames, expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("batch_s", [0.1, 2.0, 60.0])
def test_every_utterance_is_encoded_once(encoder, dataset, counted, tmp_path, batch_s):
    FrameCache(tmp_path, encoder).fill(dataset, CPU, batch_s=batch_s)
    assert sum(counted) == 8
    assert len(counted) == {0.1: 8, 60.0: 1}.get(batch_s, len(counted))
    FrameCache(tmp_path, encoder).fill(dataset, CPU)
    assert sum(counted) == 8  # another run finds them on disk


def test_only_what_is_missing_is_encoded(encoder, manifest, counted, tmp_path):
    samples = read_manifest(manifest)
    FrameCache(tmp_path, encoder).fill(SpeechDataset(samples[:5]), CPU)
    cache = FrameCache(tmp_path, encoder)
    cache.fill(SpeechDataset(samples), CPU)
    assert sum(counted) == 8
    assert all(sample in cache for sample in samples)
    again = FrameCache(tmp_path, encoder)
    for sample in samples:
        assert torch.equal(again[sample], cache[sample])


def test_batches_are_bounded_by_padded_seconds(encoder, dataset, tmp_path):
    seconds = []
    encoder.register_forward_pre_hook(lambda _, args: seconds.append(args[0].values.numel() / 16_000))
    FrameCache(tmp_path, encoder).fill(dataset, CPU, batch_s=2.0)
    assert len(seconds) > 1
    assert max(seconds) <= 2.0 + 1e-6


def test_frames_of_another_encoder_are_not_found(encoder, dataset, folders, tmp_path):
    FrameCache(tmp_path, encoder).fill(dataset, CPU)
    other = FrameCache(tmp_path, load_encoder(str(folders["wavlm"])))
    assert dataset.samples[0] not in other
    assert dataset.samples[0] in FrameCache(tmp_path, load_encoder(str(folders["hubert"])))


def test_a_changed_file_is_encoded_anew(encoder, tmp_path):
    manifest = tiny_manifest(tmp_path / "data", 2, seed=5)
    samples = read_manifest(manifest)
    cache = FrameCache(tmp_path / "cache", encoder)
    cache.fill(SpeechDataset(samples), CPU)
    shutil.copy(samples[0].audio, samples[1].audio)
    os.utime(samples[1].audio, ns=(0, 0))
    assert samples[0] in cache
    assert samples[1] not in cache


def test_segments_of_a_file_are_told_apart(manifest):
    sample = read_manifest(manifest)[0]
    segments = [replace(sample, start_s=a, end_s=b) for a, b in ((0.0, 0.2), (0.0, 0.3), (0.1, 0.3))]
    assert len({key_of(one) for one in [sample, *segments]}) == 4
    assert key_of(replace(sample, id="another name", text="another text")) == key_of(sample)


def test_unreadable_files_stay_missing_and_are_reported(encoder, tmp_path):
    manifest = tiny_manifest(tmp_path / "data", 3, seed=6)
    samples = read_manifest(manifest)
    content = samples[1].audio.read_bytes()
    samples[1].audio.write_bytes(content[: len(content) // 4])
    dataset = SpeechDataset(samples, on_error="skip")
    cache = FrameCache(tmp_path / "cache", encoder)
    cache.fill(dataset, CPU)
    assert [sample.id for sample in CachedDataset(dataset, cache).samples] == ["6-0", "6-2"]
    assert [skipped.sample.id for skipped in dataset.skipped] == ["6-1"]


def test_a_shard_without_its_index_does_not_count(encoder, dataset, counted, tmp_path):
    """What a kill between the two writes leaves behind."""
    cache = FrameCache(tmp_path, encoder)
    cache.fill(dataset, CPU)
    (index,) = (path for path in cache.folder.glob("*.json") if path.name != ABOUT)
    assert set(json.loads(index.read_text())) == {key_of(sample) for sample in dataset.samples}
    index.unlink()
    again = FrameCache(tmp_path, encoder)
    assert dataset.samples[0] not in again
    again.fill(dataset, CPU)
    assert sum(counted) == 16
    assert dataset.samples[0] in again
