"""The features of Whisper are those of transformers, and the shortened context depends on the utterance alone."""

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import pad
from ossicle.models.encoder import load_encoder
from ossicle.models.whisper_front import WhisperFront

CHUNK = 30 * SAMPLE_RATE_HZ


def noise(*durations_s, seed=0):
    """Return waveforms with loud and quiet parts, so that the floor of the features matters."""
    random = np.random.default_rng(seed)
    lengths = [int(duration * SAMPLE_RATE_HZ) for duration in durations_s]
    return [
        torch.tensor(random.normal(0, 0.1, n) * np.where(np.arange(n) % 8000 < 4000, 1, 1e-5), dtype=torch.float32)
        for n in lengths
    ]


def front_of(bins, **options):
    extractor = WhisperFeatureExtractor(feature_size=bins)
    return extractor, WhisperFront(extractor, WhisperConfig(num_mel_bins=bins), **options)


def expected_features(extractor, waveforms):
    rows = [chunk.numpy() for waveform in waveforms for chunk in waveform.split(CHUNK)]
    return extractor(rows, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize(
    "durations_s",
    [(2.0, 0.7, 0.013), (0.0001,), (29.99, 1.0), (30.0,), (29.985,), (61.3, 30.0001, 3.0)],
    ids=str,
)
def test_full_features_are_those_of_the_extractor(bins, durations_s):
    extractor, front = front_of(bins)
    waveforms = noise(*durations_s)
    features = front(pad(waveforms), torch.float32)
    expected = expected_features(extractor, waveforms)
    torch.testing.assert_close(features.tensors["input_features"], expected, atol=2e-5, rtol=0)
    assert features.widths is None
    assert features.lengths.tolist() == [-(-len(waveform) // 320) for waveform in waveforms]
    assert features.chunks.sum(1).tolist() == [-(-len(waveform) // CHUNK) for waveform in waveforms]


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("durations_s", [(2.0, 0.7), (28.99, 0.5), (29.01, 0.5), (29.99,), (31.0, 2.0)], ids=str)
def test_short_features_are_the_first_of_the_extractor(bins, durations_s):
    extractor, front = front_of(bins, shortens_context=True)
    waveforms = noise(*durations_s)
    features = front(pad(waveforms), torch.float32)
    ours, expected = features.tensors["input_features"], expected_features(extractor, waveforms)
    torch.testing.assert_close(ours, expected[..., : ours.shape[-1]], atol=2e-5, rtol=0)
    chunks = [-(-len(waveform) // CHUNK) for waveform in waveforms]
    seconds = [min(30, -(-len(waveform) // SAMPLE_RATE_HZ) + 1) for waveform in waveforms]
    assert features.widths.tolist() == [100 * s for s, count in zip(seconds, chunks, strict=True) for _ in range(count)]
    assert ours.shape[-1] == max(features.widths)


@pytest.mark.parametrize("count", [1, 400, 16_000])
def test_silence_and_nearly_nothing_are_those_of_the_extractor(count):
    extractor, front = front_of(80)
    waveforms = [torch.zeros(count), torch.full((count,), 0.5)]
    ours = front(pad(waveforms), torch.float32).tensors["input_features"]
    torch.testing.assert_close(ours, expected_features(extractor, waveforms), atol=2e-5, rtol=0)


def test_the_loudest_of_another_row_does_not_matter():
    _, front = front_of(80)
    quiet, loud = noise(1.0, 1.0)
    together = front(pad([1e-4 * quiet, loud]), torch.float32).tensors["input_features"]
    alone = front(pad([1e-4 * quiet]), torch.float32).tensors["input_features"]
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer", ["last", 1, "mix"])
def test_the_shortened_context_does_not_depend_on_the_batch(folders, layer):
    encoder = load_encoder(str(folders["whisper"]), context="audio", layer=layer)
    widths = []
    encoder.model.conv1.register_forward_pre_hook(lambda _, args: widths.append(tuple(args[0].shape)[::2]))
    waveforms = noise(0.7, 3.2, 0.4, 1.0, 1.01)
    together = encoder(pad(waveforms))
    assert widths == [(3, 200), (1, 300), (1, 500)], "each context is encoded once, and only as long as needed"
    assert encoder.pads_exactly
    for row, waveform in enumerate(waveforms):
        alone = encoder(pad([waveform]))
        frames = together.values[row][together.mask[row]]
        torch.testing.assert_close(frames, alone.values[0], atol=1e-5, rtol=1e-4)


def test_gradients_pass_through_every_context(folders):
    encoder = load_encoder(str(folders["whisper"]), context="audio")
    encoder.model.layers[1].fc2.weight.requires_grad_()
    waveforms = noise(0.7, 2.2)
    gradients = []
    for batch in ([waveforms[0]], [waveforms[1]], waveforms):
        encoder.model.layers[1].fc2.weight.grad = None
        frames = encoder(pad(batch))
        frames.values[frames.mask][:, :8].sum().backward()
        gradients.append(encoder.model.layers[1].fc2.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[2], gradients[0] + gradients[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("context", ["full", "audio"])
def test_a_bfloat16_encoder_computes_in_bfloat16(folders, context):
    encoder = load_encoder(str(folders["whisper"]), dtype=torch.bfloat16, context=context)
    types = set()
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d):
            module.register_forward_hook(lambda m, args, out: types.update((m.weight.dtype, args[0].dtype, out.dtype)))
    frames = encoder(pad(noise(0.5, 1.5)))
    assert types == {torch.bfloat16}
    assert frames.values.dtype == torch.bfloat16
    exact = load_encoder(str(folders["whisper"]), context=context)(pad(noise(0.5, 1.5)))
    difference = (frames.values.float() - exact.values)[exact.mask]
    assert difference.norm() / exact.values[exact.mask].norm() < 0.03
