import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ossicle.audio import change_speed
from ossicle.batch import Padded, Sample, Utterance, pad
from ossicle.data.augment import AugmentConfig
from ossicle.data.augmentation import add_noise
from ossicle.errors import ConfigError
from ossicle.models.encoder import load_encoder
from ossicle.models.spec_augment import mask_frames, train_mode
from ossicle.objectives import Contrastive
from ossicle.testing import tiny_manifest
from ossicle.train.batches import Data
from ossicle.train.cache_fill import fill_caches
from ossicle.train.loop import train
from ossicle.train.recipe import parse

EVERYTHING = {
    "speed": [0.9, 1.1],
    "noise_snr_db": [5, 20],
    "gain_db": [-6, 6],
    "time_masks": 2,
    "feature_masks": 1,
    "train_mode_encoder": True,
}


def utterance(name: str = "u", samples: int = 8000) -> Utterance:
    time = torch.arange(samples) / 16_000
    return Utterance(Sample(id=name, audio="."), waveform=0.3 * torch.sin(2 * torch.pi * 440 * time))


def power(waveform) -> float:
    return float(np.mean(np.square(np.asarray(waveform, dtype=np.float64))))


def test_off_by_default():
    assert AugmentConfig().build(seed=0) is None


def test_noise_is_as_loud_as_it_says():
    speech, noise = utterance().waveform.numpy(), np.random.default_rng(0).standard_normal(8000) * 7
    added = add_noise(speech, noise, 6.0) - speech
    assert power(speech) / power(added) == pytest.approx(10**0.6, rel=1e-4)
    assert (add_noise(np.zeros(10), np.ones(10), 6.0) == 0).all()
    assert (add_noise(speech, np.zeros(8000), 6.0) == speech).all()


@pytest.mark.parametrize(("factor", "samples"), [(0.5, 16_000), (1.0, 8000), (1.25, 6400), (2.0, 4000)])
def test_speed_changes_length_and_pitch(factor, samples):
    faster = change_speed(utterance().waveform.numpy(), factor)
    assert len(faster) == samples
    pitch = np.abs(np.fft.rfft(faster)).argmax() * 16_000 / samples
    assert pitch == pytest.approx(440 * factor, abs=3)


def test_gain_by_hand():
    augment = AugmentConfig(gain_db=(20, 20)).build(seed=0)
    torch.testing.assert_close(augment(utterance(), 0).waveform, 10 * utterance().waveform)


def test_a_sample_and_an_epoch_decide_everything():
    augment = AugmentConfig(speed=[0.9, 1.0, 1.1], noise_snr_db=(0, 20), gain_db=(-6, 6)).build(seed=0)
    first = augment(utterance("a"), 0).waveform
    augment(utterance("b"), 3)  # calls for other utterances do not matter
    assert torch.equal(augment(utterance("a"), 0).waveform, first)
    other_seed = AugmentConfig(noise_snr_db=(0, 20), gain_db=(-6, 6)).build(seed=1)
    others = [augment(utterance("b"), 0), augment(utterance("a"), 1), other_seed(utterance("a"), 0)]
    assert not any(torch.equal(first, other.waveform) for other in others)
    assert first.dtype == torch.float32
    assert {len(augment(utterance("a"), epoch).waveform) for epoch in range(20)} == {8889, 8000, 7273}


def test_noise_from_recordings_is_repeated_where_it_is_short(tmp_path):
    manifest = tiny_manifest(tmp_path, 2)
    augment = AugmentConfig(noise_snr_db=(0, 0), noise=[str(manifest)]).build(seed=0)
    long = utterance(samples=80_000)
    added = (augment(long, 0).waveform - long.waveform).numpy()
    assert power(added) == pytest.approx(power(long.waveform), rel=0.05)
    # The recordings have at most 1 s of tones, so that repeated noise is periodic, unlike white noise.
    spectrum = np.sort(np.abs(np.fft.rfft(added)) ** 2)
    assert spectrum[-400:].sum() > 0.8 * spectrum.sum()


def test_masks_by_time_and_feature():
    torch.manual_seed(0)
    mask = torch.arange(50) < torch.tensor([[50], [20]])
    frames = Padded(torch.randn(2, 50, 40), mask)
    config = AugmentConfig(time_masks=1, time_mask_s=0.2, feature_masks=1, feature_mask_share=0.25)
    masked = mask_frames(frames, [1, 2], config, frame_rate_hz=50.0)
    changed = (masked.values != frames.values) & mask[..., None]
    for row, length in enumerate((50, 20)):
        times, features = changed[row].all(-1), changed[row, :length].all(0)
        assert times.sum() <= 10 and features.sum() <= 10 and times.sum() + features.sum() > 0
        assert torch.equal(changed[row, :length], (times[:length, None] | features))
        mean = frames.values[row, :length].mean(0).expand(length, -1)
        torch.testing.assert_close(masked.values[row, :length][changed[row, :length]], mean[changed[row, :length]])
    alone = mask_frames(Padded(frames.values[1:, :20], mask[1:, :20]), [2], config, frame_rate_hz=50.0)
    torch.testing.assert_close(alone.values[0], masked.values[1, :20])
    assert torch.equal(mask_frames(frames, [1, 2], config, frame_rate_hz=50.0).values, masked.values)


@pytest.mark.parametrize("family", ["hubert", "hubert-group", "wavlm", "wav2vec2-bert", "parakeet"])
@pytest.mark.parametrize("layer", ["last", 1, "mix"])
def test_the_encoder_in_train_mode_is_random_by_seed_alone(folders, family, layer):
    encoder = load_encoder(str(folders[family]), layer=layer)
    waveforms = pad([utterance(samples=16_000).waveform, utterance(samples=12_000).waveform])
    calm, before = encoder(waveforms).values, {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()

    def encode(seeds: list[int]) -> torch.Tensor:
        with train_mode(encoder.model, seeds):
            return encoder(waveforms).values

    first, again, other = encode([1, 2]), encode([1, 2]), encode([3, 4])
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, calm)
    assert torch.equal(encoder(waveforms).values, calm)
    assert not any(module.training for module in encoder.model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


def batches(config, model, epoch: int):
    data = Data.load(config.data, model, Accelerator(cpu=True), objective=Contrastive())
    return list(data.epoch(epoch))


def test_any_number_of_workers_makes_the_same_batches(config):
    made = {}
    for workers in (0, 2):
        settings = config(data={"augment": EVERYTHING, "workers": workers})
        torch.manual_seed(0)
        model = settings.model.build().eval()
        made[workers] = [batches(settings, model, epoch) for epoch in (0, 1)]
        for first, second in zip(*made[workers], strict=True):
            assert first.seeds != second.seeds
    for alone, with_workers in zip(made[0], made[2], strict=True):
        for first, second in zip(alone, with_workers, strict=True):
            assert torch.equal(first.waveforms.values, second.waveforms.values)
            assert first.seeds == second.seeds and len(first.seeds) == len(first)
            assert torch.equal(model.speech(first).values, model.speech(second).values)


def test_development_data_are_left_alone(config, manifest):
    settings = config(data={"augment": EVERYTHING, "dev": [str(manifest)]})
    model = settings.model.build().eval()
    dev = Data.load_dev(settings.data, model, Accelerator(cpu=True), objective=Contrastive())
    plain = config(data={"dev": [str(manifest)]})
    expected = Data.load_dev(plain.data, model, Accelerator(cpu=True), objective=Contrastive())
    for ours, theirs in zip(dev.epoch(0), expected.epoch(0), strict=True):
        assert ours.seeds == []
        assert torch.equal(ours.waveforms.values, theirs.waveforms.values)
        assert torch.equal(model.speech(ours).values, model.speech(theirs).values)


def test_a_run_with_everything_on_resumes_with_the_same_weights(config):
    from ossicle.models.saving import WEIGHTS_FILE

    settings = {"data": {"augment": EVERYTHING}, "train": {"steps": 4, "save_every": 2}}
    whole = train(config(name="whole", **settings))
    stopped = config(name="stopped", **settings)
    train(stopped)
    for file in (newest := stopped.folder / "checkpoints" / "step-0000004").iterdir():
        file.unlink()
    newest.rmdir()
    train(stopped, resume=True)
    assert (whole / WEIGHTS_FILE).read_bytes() == (stopped.folder / WEIGHTS_FILE).read_bytes()
    plain = train(config(name="plain", train={"steps": 4}))
    assert (plain / WEIGHTS_FILE).read_bytes() != (whole / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("option", ["speed", "noise_snr_db", "gain_db", "train_mode_encoder"])
def test_cached_frames_are_refused_for_what_changes_them(config, tmp_path, option):
    data = {"augment": {option: EVERYTHING[option]}, "cache_frames": True, "cache_dir": str(tmp_path)}
    for run in (train, fill_caches):
        with pytest.raises(ConfigError, match=rf"data\.augment\.{option} changes the frames .*cache_frames=false"):
            run(config(name=run.__name__, data=data))


def test_cached_frames_are_masked_anew_each_epoch(config, tmp_path):
    data = {"augment": {"time_masks": 2}, "cache_frames": True, "cache_dir": str(tmp_path)}
    settings = config(data=data)
    model = settings.model.build().eval()
    first, second = (batches(settings, model, epoch) for epoch in (0, 1))
    by_id = {
        sample.id: model.speech(batch).values[row][model.speech(batch).mask[row]]
        for batch in first
        for row, sample in enumerate(batch.samples)
    }
    later = {
        sample.id: model.speech(batch).values[row][model.speech(batch).mask[row]]
        for batch in second
        for row, sample in enumerate(batch.samples)
    }
    assert any(not torch.equal(by_id[name], later[name]) for name in by_id)
    assert torch.equal(first[0].frames.values, batches(settings, model, 0)[0].frames.values)


@pytest.mark.parametrize("option", ["speed", "time_masks", "train_mode_encoder"])
def test_mixed_sequences_refuse_what_moves_their_words(config, option):
    run = config(data={"augment": {option: EVERYTHING[option]}}, objective={"name": "mixed_next_token"})
    with pytest.raises(ConfigError, match=rf"data\.augment\.{option} does not work with mixed sequences"):
        train(run)


def test_a_typo_is_named(tree):
    with pytest.raises(ConfigError, match=r"data\.augment\.time_mask: unknown field; did you mean 'time_masks'"):
        parse(tree(data={"augment": {"time_mask": 1}}))
