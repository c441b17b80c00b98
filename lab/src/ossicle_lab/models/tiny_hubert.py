"""Build the lab's encoder before training: a tiny HuBERT with a character vocabulary."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from ossicle.audio import SAMPLE_RATE_HZ

CHARACTERS = ("<pad>", "<unk>", "|", "'", *"abcdefghijklmnopqrstuvwxyz")
"""The CTC vocabulary. ``<pad>`` is the blank and ``|`` separates words."""

_BANDS, _CONSTANTS, _KERNEL = 76, 16, 240
_BAND_CENTRES_HZ = (90, 7500)


def tiny_hubert() -> HubertForCTC:
    """Return an untrained HuBERT of 2.5M parameters with the usual frames, one of 25 ms every 20 ms.

    Layer norm in the convolutions and an attention mask give an utterance the same frames alone and in a batch, as in
    HuBERT-large. The usual seven convolutions have to learn a spectrum first, which took most of the training. Here two
    convolutions with the same frames start as a bank of band-pass filters.
    """
    model = HubertForCTC(
        HubertConfig(
            vocab_size=len(CHARACTERS),
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=192,
            num_hidden_layers=5,
            num_attention_heads=4,
            intermediate_size=768,
            conv_dim=(4 * _BANDS + _CONSTANTS, 192),
            conv_stride=(160, 2),
            conv_kernel=(_KERNEL, 2),
            num_feat_extract_layers=2,
            conv_bias=True,
            feat_extract_norm="layer",
            feat_extract_activation="relu",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=31,
            num_conv_pos_embedding_groups=16,
            apply_spec_augment=False,
            layerdrop=0.0,
            **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), 0.0),
            **dict.fromkeys(("feat_proj_dropout", "final_dropout"), 0.0),
            attn_implementation="eager",  # the backward of fused attention is slow on CPUs
        )
    )
    _start_as_filter_bank(*(layer.conv for layer in model.hubert.feature_extractor.conv_layers))
    return model


def ctc_processor(folder: Path) -> Wav2Vec2Processor:
    """Write the feature extractor and the character tokenizer to ``folder``, and return both as a processor."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({character: index for index, character in enumerate(CHARACTERS)}, indent=0))
    feature_extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=SAMPLE_RATE_HZ, do_normalize=True, return_attention_mask=True
    )
    tokenizer = Wav2Vec2CTCTokenizer(
        str(vocabulary), pad_token="<pad>", unk_token="<unk>", bos_token=None, eos_token=None
    )
    feature_extractor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Wav2Vec2Processor(feature_extractor=feature_extractor, tokenizer=tokenizer)


@torch.no_grad()
def _start_as_filter_bank(filters: torch.nn.Conv1d, mixer: torch.nn.Conv1d) -> None:
    """Initialise the convolutions as band-pass filters on the mel scale in four phases.

    The sum of four rectified phases, which the second convolution computes, is the envelope of the band. A few filters
    are constant: relative to them, the layer norm preserves the loudness of the frame.
    """
    lowest, highest = (math.log(1 + hz / 700) for hz in _BAND_CENTRES_HZ)
    centres_hz = 700 * torch.linspace(lowest, highest, _BANDS).expm1()  # equally spaced on the mel scale
    spacing_hz = torch.gradient(centres_hz)[0]
    samples = torch.arange(_KERNEL) - (_KERNEL - 1) / 2
    widths = (1.6 * SAMPLE_RATE_HZ / spacing_hz).clamp(60, _KERNEL)[:, None]
    windows = torch.cos(torch.pi * samples / widths).square() * (samples.abs() < widths / 2)  # (bands, kernel)
    phases = torch.arange(4)[:, None, None] * torch.pi / 2
    waves = windows * torch.cos(2 * torch.pi * samples * centres_hz[:, None] / SAMPLE_RATE_HZ + phases)
    emphasis = (centres_hz / 1000).clamp(0.3, 4.0)[:, None]  # speech falls off towards high frequencies
    waves = emphasis * waves / waves.norm(dim=-1, keepdim=True)
    constants = torch.linspace(-2, 2, _CONSTANTS)
    filters.weight.copy_(torch.cat([waves.reshape(-1, 1, _KERNEL), torch.zeros(_CONSTANTS, 1, _KERNEL)]))
    assert filters.bias is not None  # conv_bias above
    filters.bias.copy_(torch.cat([torch.zeros(4 * _BANDS), constants]))
    mixer.weight[:, : 4 * _BANDS] = mixer.weight[:, :_BANDS].repeat(1, 4, 1)
