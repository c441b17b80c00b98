"""Create tiny random speech encoders of every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

EncoderFamily = Literal["hubert", "wav2vec2", "wavlm", "wav2vec2-bert", "whisper", "parakeet"]
ENCODERS: tuple[EncoderFamily, ...] = ("hubert", "wav2vec2", "wavlm", "wav2vec2-bert", "whisper", "parakeet")
WIDTH = 24
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tiny_encoder(folder: Path, family: EncoderFamily = "hubert", *, norm: str = "layer", seed: int = 0) -> Path:
    """Save a random encoder of width 24 with two layers, and its feature extractor; return ``folder``.

    ``norm`` is the norm in the front end of hubert, wav2vec2 and wavlm: "layer" (as in large models) or
    "group" (as in base models).
    """
    torch.manual_seed(seed)
    match family:
        case "whisper":
            model, extractor = _whisper()
        case "wav2vec2-bert":
            model, extractor = _wav2vec2_bert()
        case "parakeet":
            model, extractor = _parakeet()
        case _:
            model, extractor = _conv(family, large=norm == "layer")
    model.save_pretrained(folder)
    if isinstance(extractor, dict):
        (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    else:
        extractor.save_pretrained(folder)
    return folder


def _conv(family: str, *, large: bool) -> tuple[Any, Any]:
    import transformers

    prefix = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}[family]
    config = getattr(transformers, f"{prefix}Config")(
        **_SIZES,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=32,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=large)
    return getattr(transformers, f"{prefix}Model")(config), extractor


def _whisper() -> tuple[Any, Any]:
    import transformers

    config = transformers.WhisperConfig(
        d_model=WIDTH,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=64,
        num_mel_bins=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        max_target_positions=16,
    )
    return transformers.WhisperModel(config), transformers.WhisperFeatureExtractor(feature_size=16)


def _wav2vec2_bert() -> tuple[Any, Any]:
    import transformers

    config = transformers.Wav2Vec2BertConfig(
        **_SIZES,
        feature_projection_input_dim=32,
        conv_depthwise_kernel_size=5,
        output_hidden_size=WIDTH,
        left_max_position_embeddings=16,
        right_max_position_embeddings=4,
    )
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16, padding_value=1)
    return transformers.Wav2Vec2BertModel(config), extractor


def _parakeet() -> tuple[Any, Any]:
    import transformers

    encoder = transformers.ParakeetEncoderConfig(
        **_SIZES, conv_kernel_size=5, subsampling_conv_channels=8, num_mel_bins=16
    )
    config = transformers.ParakeetCTCConfig(vocab_size=32, pad_token_id=0, encoder_config=encoder)
    # As a file, because older versions of transformers require librosa to create the extractor.
    return transformers.ParakeetForCTC(config), {
        "feature_extractor_type": "ParakeetFeatureExtractor",
        "feature_size": 16,
        "hop_length": 160,
        "n_fft": 512,
        "win_length": 400,
        "preemphasis": 0.97,
        "sampling_rate": 16_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
