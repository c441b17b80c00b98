import json
import logging
import os
import shutil
from dataclasses import replace

import pytest
import torch

from ossicle.batch import Utterance, pad
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import CacheError
from ossicle.losses.contrastive import mean_pool
from ossicle.models.encoder import load_encoder
from ossicle.models.llm import LLM
from ossicle.objectives import Contrastive
from ossicle.testing import tiny_manifest
from ossicle.train.cache import CACHE_DTYPE, CachedDataset, FrameCache, TextCache, audio_key
from ossicle.train.cache_store import ABOUT

CPU = torch.device("cpu")


@pytest.fixture
def encoder(folders):
    return load_encoder(str(folders["hubert"]))


@pytest.fixture
def dataset(manifest) -> SpeechDataset:
    return SpeechDataset(read_manifest(manifest))


@pytest.fixture
def counted(encoder):
    """Count the waveforms that the encoder receives."""
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
    assert len({audio_key(one) for one in [sample, *segments]}) == 4
    assert audio_key(replace(sample, id="another name", text="another text")) == audio_key(sample)


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
    """Leave what a crash between the two writes leaves."""
    cache = FrameCache(tmp_path, encoder)
    cache.fill(dataset, CPU)
    (index,) = (path for path in cache.folder.glob("*.json") if path.name != ABOUT)
    assert set(json.loads(index.read_text())) == {audio_key(sample) for sample in dataset.samples}
    index.unlink()
    again = FrameCache(tmp_path, encoder)
    assert dataset.samples[0] not in again
    again.fill(dataset, CPU)
    assert sum(counted) == 16
    assert dataset.samples[0] in again


@pytest.fixture
def batch(model, manifest, collate):
    return collate(model, manifest)


@pytest.fixture
def read_texts(model):
    """Collect the rows of token ids that the LLM reads."""
    seen = []
    read = model.llm.read
    model.llm.read = lambda ids, *args, **kwargs: seen.extend(ids.values.tolist()) or read(ids, *args, **kwargs)
    return seen


@pytest.mark.parametrize("similarity", ["cosine", "wasserstein"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("layers", ["all", "embeddings", [2, 1]])
def test_cached_texts_change_no_loss(model, batch, tmp_path, similarity, bos, layers):
    objective = Contrastive(similarity=similarity, bos=bos, layers=layers)
    without = objective(model, batch)
    model.text_cache = TextCache(tmp_path, model.llm)
    filling, filled = objective(model, batch), objective(model, batch)
    model.text_cache.flush()
    model.text_cache = TextCache(tmp_path, model.llm)
    again = objective(model, batch)
    for output in (filling, filled, again):
        assert torch.equal(output.total, without.total)
        assert output.parts == without.parts


@pytest.mark.parametrize("similarity", ["cosine", "wasserstein"])
def test_a_text_is_read_once(model, batch, read_texts, tmp_path, similarity):
    objective = Contrastive(similarity=similarity, layers=[0, 2])
    model.text_cache = TextCache(tmp_path, model.llm)
    for _ in range(3):
        objective(model, batch)
    assert len(read_texts) == len({sample.text for sample in batch.samples}) == 4


def test_beyond_the_limit_token_states_are_computed_again(model, batch, read_texts, tmp_path):
    objective = Contrastive(similarity="wasserstein")
    expected = objective(model, batch).total
    model.text_cache = TextCache(tmp_path, model.llm, limit_gb=0)
    assert torch.equal(objective(model, batch).total, expected)
    assert torch.equal(objective(model, batch).total, expected)
    assert len(read_texts) == 12
    model.text_cache.flush()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_layer_0_is_a_lookup(model, batch, read_texts, tmp_path):
    model.text_cache = TextCache(tmp_path, model.llm)
    Contrastive(similarity="wasserstein", layers="embeddings")(model, batch)
    assert read_texts == []


def test_other_weights_never_find_these_texts(build, batch, tmp_path):
    model = build()
    model.text_cache = TextCache(tmp_path, model.llm)
    Contrastive()(model, batch)
    model.text_cache.flush()
    with torch.no_grad():
        model.llm.model.model.layers[0].mlp.up_proj.weight.mul_(2)
    other = LLM(model.llm.model, model.llm.tokenizer, name="other")
    assert other.fingerprint != model.llm.fingerprint
    pooled = TextCache(tmp_path, other).pooled(batch.text, [0, 1], bos=False)
    hidden = other.read(batch.text, [0, 1])
    torch.testing.assert_close(pooled[1], mean_pool(hidden.states[1], hidden.mask))
    assert len(list(tmp_path.glob("text-*"))) == 2


def test_a_cache_that_claims_other_weights_is_refused(model, batch, tmp_path):
    cache = TextCache(tmp_path, model.llm)
    cache.pooled(batch.text, [0, 1], bos=False)
    (about,) = tmp_path.rglob(ABOUT)
    about.write_text(json.dumps(json.loads(about.read_text()) | {"llm": "foreign"}))
    with pytest.raises(CacheError, match=r"different model or setting \(llm\)"):
        TextCache(tmp_path, model.llm).pooled(batch.text, [0, 1], bos=False)


def test_positions_that_move_do_not_go_with_a_cache(model, batch, tmp_path):
    model.text_cache = TextCache(tmp_path, model.llm)
    model.train()
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"turn data\.cache_text off"):
        Contrastive(position_shift=400)(model, batch)


def test_a_bank_holds_other_texts_only(model, manifest, collate, tmp_path):
    first, second = collate(model, manifest, range(4)), collate(model, manifest, range(4, 8))
    cache = TextCache(tmp_path, model.llm)
    cache.pooled(first.text, [0, 1], bos=False)
    assert cache.bank(10, [0, 1], bos=False, without=first.text).shape == (2, 0, model.llm.dim)
    theirs = cache.pooled(second.text, [0, 1], bos=False)
    bank = cache.bank(10, [0, 1], bos=False, without=first.text)
    assert sorted(bank[0].sum(1).tolist()) == pytest.approx(sorted(theirs[0].sum(1).tolist()))
    assert cache.bank(2, [0, 1], bos=False, without=first.text).shape == (2, 2, model.llm.dim)


def test_each_layer_has_a_cache_of_its_own(folders, dataset, tmp_path):
    last, first = (FrameCache(tmp_path, load_encoder(str(folders["hubert"]), layer=layer)) for layer in ("last", 1))
    last.fill(dataset, CPU)
    first.fill(dataset, CPU)
    assert last.folder != first.folder
    assert not torch.equal(last[dataset.samples[0]], first[dataset.samples[0]])
    # Both names stand for the second of two layers.
    assert FrameCache(tmp_path, load_encoder(str(folders["hubert"]), layer=2)).folder == last.folder


def test_frames_of_an_encoder_that_trains_are_not_cached(folders, tmp_path):
    with pytest.raises(ValueError, match=r"a part of this one trains .*mix.*: set data\.cache_frames=false"):
        FrameCache(tmp_path, load_encoder(str(folders["hubert"]), layer="mix"))


def test_another_process_shares_the_texts(model, manifest, collate, read_texts, tmp_path, monkeypatch):
    """Two caches stand for two ranks: in the second epoch each finds what the other computed in the first."""
    monkeypatch.setattr("ossicle.train.cache.FLUSH_S", 0.0)
    monkeypatch.setattr("ossicle.train.cache_store.REFRESH_S", 0.0)
    halves = [collate(model, manifest, range(4)), collate(model, manifest, range(4, 8))]
    ranks = [TextCache(tmp_path, model.llm) for _ in range(2)]
    for rank, batch in zip(ranks, halves, strict=True):
        rank.pooled(batch.text, [0, 2], bos=False)
        rank.tokens(batch.text, [0, 2], bos=False)
    read_texts.clear()
    for rank, batch in zip(ranks, reversed(halves), strict=True):
        pooled = rank.pooled(batch.text, [0, 2], bos=False)
        hidden = rank.tokens(batch.text, [0, 2], bos=False)
        assert torch.equal(pooled[1], mean_pool(hidden.states[2], hidden.mask))
    assert read_texts == []


def test_bank_does_not_depend_on_what_other_processes_wrote(model, manifest, collate, tmp_path, monkeypatch):
    monkeypatch.setattr("ossicle.train.cache_store.REFRESH_S", 0.0)
    first, second = collate(model, manifest, range(4)), collate(model, manifest, range(4, 8))
    cache, other = TextCache(tmp_path, model.llm), TextCache(tmp_path, model.llm)
    cache.pooled(first.text, [0, 1], bos=False)
    other.pooled(second.text, [0, 1], bos=False)
    other.flush()
    assert cache.bank(10, [0, 1], bos=False, without=second.text).shape[1] == 4


@pytest.mark.parametrize("limit_gb", [0.0, 4e-7])
def test_pooled_states_keep_the_disk_limit_too(model, batch, read_texts, tmp_path, caplog, limit_gb):
    """Four texts at two layers of width 16 in float32 take 512 bytes."""
    objective = Contrastive(layers=[0, 1])
    expected = objective(model, batch).total
    model.text_cache = TextCache(tmp_path, model.llm, limit_gb=limit_gb)
    for _ in range(2):
        assert torch.equal(objective(model, batch).total, expected)
    assert len(read_texts) == 12
    model.text_cache.flush()
    assert not list(tmp_path.rglob("*.safetensors"))
    assert caplog.text.count("is used up") == (limit_gb > 0)


def test_full_disk_stops_the_caching_and_not_the_training(model, batch, tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ossicle.train.cache_store.save_file", full)
    monkeypatch.setattr("ossicle.train.cache.SHARD_TEXTS", 1)
    expected = Contrastive()(model, batch).total
    model.text_cache = TextCache(tmp_path, model.llm)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(Contrastive()(model, batch).total, expected)
        model.text_cache.flush()
    assert caplog.text.count("the disk is full") == 1
    strict = TextCache(tmp_path / "other", model.llm, strict=True)  # as `ossicle cache` uses it
    with pytest.raises(CacheError, match="the disk is full"):
        strict.pooled(batch.text, [0, 1], bos=False)


def test_frames_that_another_process_wrote_are_not_encoded_again(encoder, dataset, counted, tmp_path):
    first, second = FrameCache(tmp_path, encoder), FrameCache(tmp_path, encoder)  # both opened before either is filled
    first.fill(dataset, CPU)
    second.fill(dataset, CPU)
    assert sum(counted) == 8


def test_filling_shows_its_progress_in_a_log(encoder, dataset, tmp_path, monkeypatch, capfd):
    """Lines report the progress if the output is not a terminal."""
    monkeypatch.setattr("ossicle.progress.LINE_EVERY_S", 0.0)
    FrameCache(tmp_path, encoder).fill(dataset, CPU, batch_s=0.5)
    shown = capfd.readouterr()
    assert "Encoding speech" in shown.out + shown.err
