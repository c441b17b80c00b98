import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import pad
from ossicle.models.encoder import load_encoder
from ossicle.models.front_ends import normalise_waveforms

CONV = ("hubert", "hubert-group", "wav2vec2", "wavlm")
LAYER_NORM = ("hubert", "wav2vec2", "wavlm")
EVERY = (*CONV, "wav2vec2-bert", "whisper", "parakeet")
RATES = {"parakeet": 12.5}
FRAMES_OF_A_SECOND = {"wav2vec2-bert": 49, "whisper": 50, "parakeet": 13}
PADS_EXACTLY = (*LAYER_NORM, "wav2vec2-bert", "whisper", "parakeet")
LEAST_SAMPLES = {"wav2vec2-bert": 560, "whisper": 1, "parakeet": 320}  # that give a frame; 400 elsewhere


def noise(*durations_s: float, seed: int = 0) -> list[torch.Tensor]:
    random = np.random.default_rng(seed)
    lengths = [int(duration * SAMPLE_RATE_HZ) for duration in durations_s]
    return [torch.tensor(random.normal(0.05, 0.1, length), dtype=torch.float32) for length in lengths]


@pytest.mark.parametrize("family", EVERY)
def test_dimension_frame_rate_and_name(folders, family):
    encoder = load_encoder(str(folders[family]))
    frames = encoder(pad(noise(1.0, 0.5)))
    assert encoder.dim == 24
    assert encoder.frame_rate_hz == RATES.get(family, 50.0)
    assert encoder.pads_exactly is (family in PADS_EXACTLY)
    assert encoder.num_layers == 2
    assert encoder.name == str(folders[family])
    assert frames.values.shape == (2, FRAMES_OF_A_SECOND.get(family, 49), 24)
    assert frames.mask.dtype == torch.bool
    assert frames.values.isfinite().all()


@pytest.mark.parametrize("family", CONV)
def test_masks_are_those_of_transformers(folders, family):
    encoder = load_encoder(str(folders[family]))
    lengths = torch.tensor([400, 401, 719, 720, 5000, 16000])
    frames = encoder(pad([torch.randn(int(length)) for length in lengths]))
    expected = encoder.model._get_feat_extract_output_lengths(lengths)
    assert torch.equal(frames.mask.sum(1), expected)
    assert torch.equal(encoder.front.frame_lengths(lengths), expected)
    assert frames.values.shape[1] == expected.max()
    assert frames.mask[0].tolist() == [True] + [False] * (frames.mask.shape[1] - 1)  # valid frames come first


@pytest.mark.parametrize("family", PADS_EXACTLY)
def test_a_batch_equals_its_utterances_one_by_one(folders, family):
    encoder = load_encoder(str(folders[family]))
    waveforms = noise(0.9, 0.4, 0.137)
    together = encoder(pad(waveforms))
    for row, waveform in enumerate(waveforms):
        alone = encoder(pad([waveform]))
        frames = together.values[row][together.mask[row]]
        assert frames.shape == alone.values[0].shape
        torch.testing.assert_close(frames, alone.values[0], atol=5e-5, rtol=1e-3)  # features of float32 differ by 1e-6


def test_group_norm_models_see_the_padding(folders):
    """Base models read padding, as in transformers. Their batches need utterances of similar length."""
    encoder = load_encoder(str(folders["hubert-group"]))
    first, second = noise(0.6, 0.6)
    equal = encoder(pad([first, second]))
    torch.testing.assert_close(equal.values[:1], encoder(pad([first])).values, atol=1e-5, rtol=1e-4)
    padded = encoder(pad([first, *noise(1.2, seed=1)]))
    valid = padded.values[0][padded.mask[0]]
    assert (valid - equal.values[0]).abs().max() > 1e-3


def test_group_norm_models_get_zero_padding_and_no_mask(folders):
    encoder = load_encoder(str(folders["hubert-group"]))
    waveforms = pad(noise(0.6, 0.3))
    plain = AutoModel.from_pretrained(folders["hubert-group"]).eval()
    with torch.no_grad():
        expected = plain(normalise_waveforms(waveforms.values, waveforms.mask)).last_hidden_state
    torch.testing.assert_close(encoder(waveforms).values, expected)


@pytest.mark.parametrize("family", LAYER_NORM)
def test_layer_norm_models_compute_what_transformers_does(folders, family):
    extractor, plain = AutoFeatureExtractor.from_pretrained(folders[family]), AutoModel.from_pretrained(folders[family])
    waveforms = noise(0.6, 0.3)
    inputs = extractor([w.numpy() for w in waveforms], sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = plain.eval()(**inputs).last_hidden_state
    frames = load_encoder(str(folders[family]))(pad(waveforms))
    torch.testing.assert_close(frames.values[frames.mask], expected[frames.mask], atol=1e-5, rtol=1e-4)


def test_normalisation_is_that_of_the_feature_extractor(folders):
    extractor = AutoFeatureExtractor.from_pretrained(folders["hubert"])
    waveforms = noise(0.5, 0.2)
    inputs = extractor([w.numpy() for w in waveforms], sampling_rate=16_000, padding=True, return_tensors="pt")
    padded = pad(waveforms)
    ours = normalise_waveforms(padded.values, padded.mask)
    torch.testing.assert_close(ours, inputs.input_values, atol=1e-5, rtol=1e-4)
    assert (ours[~padded.mask] == 0).all()


@pytest.mark.parametrize("waveform", [torch.zeros(8000), torch.full((8000,), 0.3)])
def test_silence_stays_finite(folders, waveform):
    assert load_encoder(str(folders["hubert"]))(pad([waveform])).values.isfinite().all()


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("samples", [1, 5, 399])
def test_shorter_than_a_frame_gives_no_valid_conv_frame(folders, family, samples):
    encoder = load_encoder(str(folders[family]))
    alone = encoder(pad([torch.randn(samples)]))
    assert alone.mask.sum() == (
        -(-samples // 320) if family == "whisper" else samples >= LEAST_SAMPLES.get(family, 400)
    )
    assert alone.values.isfinite().all()
    beside = encoder(pad([torch.randn(samples), *noise(0.3)]))
    assert beside.mask[0].sum() == alone.mask.sum()
    assert beside.values.isfinite().all()


@pytest.mark.parametrize("family", EVERY)
def test_frozen_means_no_gradient_and_no_dropout(folders, family):
    encoder = load_encoder(str(folders[family]))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.model.modules())
    waveforms = pad(noise(0.3))
    waveforms.values.requires_grad_()
    assert not encoder(waveforms).values.requires_grad


@pytest.mark.parametrize("family", ["wav2vec2-bert", "parakeet"])
def test_spectral_models_compute_what_transformers_does_on_its_own_features(folders, family):
    try:
        extractor = AutoFeatureExtractor.from_pretrained(folders[family])
    except ImportError as error:
        pytest.skip(f"this transformers makes no extractor of {family}: {str(error).strip().splitlines()[0]}")
    plain = AutoModel.from_pretrained(folders[family])
    plain = plain.encoder if family == "parakeet" else plain
    waveforms = noise(0.6, 0.3, 0.041)
    inputs = extractor([w.numpy() for w in waveforms], sampling_rate=16_000, padding=True, return_tensors="pt")
    encoder = load_encoder(str(folders[family]))
    ours = encoder.front(pad(waveforms), torch.float32).tensors
    mask = inputs.attention_mask.bool()
    assert torch.equal(ours["attention_mask"].bool(), mask[:, : ours["attention_mask"].shape[1]])
    length = ours["input_features"].shape[1]
    valid = mask[:, :length]
    torch.testing.assert_close(
        ours["input_features"][valid], inputs.input_features[:, :length][valid], atol=2e-3, rtol=1e-3
    )
    with torch.no_grad():
        expected = plain.eval()(**inputs).last_hidden_state
    frames = encoder(pad(waveforms))
    torch.testing.assert_close(
        frames.values[frames.mask], expected[:, : frames.mask.shape[1]][frames.mask], atol=2e-3, rtol=1e-3
    )


def test_parakeet_masks_are_those_of_transformers(folders):
    encoder = load_encoder(str(folders["parakeet"]))
    lengths = torch.tensor([320, 479, 1280, 1440, 16000])
    frames = encoder(pad([torch.randn(int(length)) for length in lengths]))
    assert torch.equal(frames.mask.sum(1).int(), encoder.model._get_subsampling_output_length(lengths // 160))


@pytest.mark.parametrize("family", EVERY)
def test_hidden_states_by_layer(folders, family):
    waveforms = pad(noise(0.4, 0.3))
    plain = load_encoder(str(folders[family]))
    features = plain.front(waveforms, torch.float32)
    with torch.no_grad():
        expected = plain.model(**features.tensors, output_hidden_states=True)
    last = plain(waveforms)
    for layer in (0, 1, 2):
        encoder = load_encoder(str(folders[family]), layer=layer)
        state = expected.last_hidden_state if layer == 2 else expected.hidden_states[layer]
        frames = encoder(waveforms)
        assert torch.equal(frames.mask, last.mask)
        torch.testing.assert_close(frames.values, state[:, : frames.mask.shape[1]], atol=1e-6, rtol=1e-5)
        assert encoder.fingerprint == plain.fingerprint
        assert encoder.variant == ("" if layer == 2 else f"-layer-{layer}")
    first = load_encoder(str(folders[family]), layer=1)
    assert sum(p.numel() for p in first.parameters()) < sum(p.numel() for p in plain.parameters())


def test_a_layer_that_is_not_there_is_an_error(folders):
    with pytest.raises(ValueError, match=r"model\.encoder_layer=3: .* has hidden states 0\.\.2"):
        load_encoder(str(folders["hubert"]), layer=3)


@pytest.mark.parametrize("family", EVERY)
def test_the_mix_starts_with_equal_shares_and_only_it_trains(folders, family):
    encoder = load_encoder(str(folders[family]), layer="mix")
    waveforms = pad(noise(0.4, 0.3))
    states = [load_encoder(str(folders[family]), layer=layer)(waveforms).values for layer in (0, 1, 2)]
    mixed = encoder(waveforms)
    expected = sum(torch.nn.functional.layer_norm(state, (24,)) for state in states) / 3
    torch.testing.assert_close(mixed.values, expected, atol=1e-5, rtol=1e-4)
    assert encoder.trains
    mixed.values[mixed.mask][:, :8].sum().backward()
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == {"mix.weights"}
    assert encoder.mix.weights.grad.abs().min() > 0
    with torch.no_grad():
        encoder.mix.weights.copy_(torch.tensor([-99.0, 0.0, -99.0]))
        torch.testing.assert_close(
            encoder(waveforms).values, torch.nn.functional.layer_norm(states[1], (24,)), atol=1e-5, rtol=1e-4
        )


def test_whisper_encodes_only_chunks_with_audio(folders):
    encoder = load_encoder(str(folders["whisper"]))
    rows = []
    encoder.model.conv1.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    encoder(pad([*noise(61.0), torch.randn(8000), torch.randn(1)]))
    assert rows == [3 + 1 + 1]


def test_whisper_on_the_audio_alone_is_shorter_and_not_the_same(folders):
    full, short = (load_encoder(str(folders["whisper"]), context=context) for context in ("full", "audio"))
    lengths = []
    short.model.layers[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    waveforms = pad(noise(0.7, 0.4))
    exact, cut = full(waveforms), short(waveforms)
    assert lengths == [50 + 50]  # the audio, rounded up to a second, and a second of silence
    assert torch.equal(exact.mask, cut.mask)
    assert not torch.allclose(exact.values[exact.mask], cut.values[cut.mask], atol=1e-3)
    assert (full.variant, short.variant) == ("", "-audio")
    # With all 30 s of audio there is nothing to cut.
    whole = pad(noise(30.0))
    torch.testing.assert_close(short(whole).values, full(whole).values)


def test_the_adapter_behind_the_layers_is_left_out(tmp_path):
    config = Wav2Vec2BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, output_hidden_size=16,
        feature_projection_input_dim=32, conv_depthwise_kernel_size=3, add_adapter=True,
    )  # fmt: skip
    Wav2Vec2BertModel(config).save_pretrained(tmp_path)
    SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16).save_pretrained(tmp_path)
    frames = load_encoder(str(tmp_path))(pad(noise(1.0)))
    assert frames.values.shape == (1, 49, 16)


def test_whisper_hears_beyond_30_seconds(folders):
    encoder = load_encoder(str(folders["whisper"]))
    long, short = noise(31.0, 0.5)
    frames = encoder(pad([long, short]))
    assert frames.values.shape == (2, 1550, 24)
    assert frames.mask.sum(1).tolist() == [1550, 25]
    first = encoder(pad([long[: 30 * SAMPLE_RATE_HZ]]))
    rest = encoder(pad([long[30 * SAMPLE_RATE_HZ :]]))
    torch.testing.assert_close(frames.values[0], torch.cat([first.values[0], rest.values[0]]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(frames.values[1, :25], encoder(pad([short])).values[0], atol=1e-5, rtol=1e-4)


def test_whisper_features_are_those_of_its_extractor(folders):
    extractor = AutoFeatureExtractor.from_pretrained(folders["whisper"])
    plain = AutoModel.from_pretrained(folders["whisper"]).get_encoder().eval()
    waveform = noise(0.7)[0]
    with torch.no_grad():
        features = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
        expected = plain(features).last_hidden_state[:, :35]
    torch.testing.assert_close(load_encoder(str(folders["whisper"]))(pad([waveform])).values, expected)


def test_whisper_of_another_length_is_cut_at_its_own(tmp_path):
    config = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=32, num_mel_bins=8, max_source_positions=50,
        max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    long = noise(2.5)[0]
    frames = encoder(pad([long]))
    assert frames.values.shape == (1, 125, 16)
    torch.testing.assert_close(frames.values[0, :50], encoder(pad([long[:16_000]])).values[0], atol=1e-5, rtol=1e-4)


def test_fingerprints_tell_weights_apart_not_precisions(folders, tmp_path):
    encoder = load_encoder(str(folders["hubert"]))
    assert load_encoder(str(folders["hubert"]), dtype=torch.bfloat16).fingerprint == encoder.fingerprint
    assert load_encoder(str(folders["hubert-group"])).fingerprint != encoder.fingerprint
    changed = AutoModel.from_pretrained(folders["hubert"])
    with torch.no_grad():
        changed.encoder.layers[0].attention.k_proj.bias[3] += 0.1
    changed.save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).fingerprint != encoder.fingerprint


def test_half_precision_weights_take_float32_waveforms(folders):
    encoder = load_encoder(str(folders["hubert"]), dtype=torch.bfloat16)
    assert encoder(pad(noise(0.3))).values.dtype == torch.bfloat16


def test_a_folder_without_a_preprocessor_follows_its_front_end(folders, tmp_path):
    for family, normalises in (("hubert", True), ("hubert-group", False)):
        AutoModel.from_pretrained(folders[family]).save_pretrained(tmp_path / family)
        assert load_encoder(str(tmp_path / family)).front.normalise is normalises


def test_another_family_is_refused_by_name(folders):
    with pytest.raises(ValueError, match=r"model\.encoder=.*'llama' is not a supported encoder; use one of hubert"):
        load_encoder(str(folders["llama"]))
