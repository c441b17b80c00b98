"""The frozen speech encoder: any HuBERT, wav2vec 2.0, WavLM or Whisper encoder of Hugging Face transformers.

Waveforms in, frames out, without gradients. Every encoder has the attributes ``dim`` (width of a frame),
``frame_rate_hz`` (frames a second), ``name`` (where the weights came from) and ``fingerprint``.

Shape legend: B utterances, S audio samples, C chunks of 30 s, T frames, D width.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sequence
from ossicle.models.frozen import fingerprint, freeze, quiet_loading

WAVEFORM_VARIANCE_EPS = 1e-7
CONV_FAMILIES = ("hubert", "wav2vec2", "wavlm")


class ConvEncoder(nn.Module):
    """HuBERT, wav2vec 2.0 and WavLM: a convolutional front end on the waveform.

    Large models ("layer" norm in the front end) take waveforms of zero mean and unit variance and an attention mask;
    base models ("group" norm) want zero padding and no mask, as transformers documents. Frame masks come from the
    strides of the convolutions either way.
    """

    def __init__(self, model: nn.Module, *, name: str, normalise: bool) -> None:
        super().__init__()
        config: Any = model.config
        self.model: Any = freeze(model)
        self.name, self.dim = name, config.hidden_size
        self.fingerprint = fingerprint(model)
        self.frame_rate_hz = SAMPLE_RATE_HZ / math.prod(config.conv_stride)
        self.normalise = normalise
        self.takes_mask = config.feat_extract_norm == "layer"
        self.convs = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.receptive_field = _receptive_field(self.convs)

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """How many frames waveforms of ``sample_lengths`` (B,) samples have; 0 below the receptive field."""
        lengths = sample_lengths
        for kernel, stride in self.convs:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths.clamp(min=0)

    @torch.no_grad()
    def forward(self, waveforms: Sequence) -> Sequence:
        """Encode ``waveforms`` (B, S) to frames (B, T, D)."""
        values, mask = waveforms.values, waveforms.mask
        if self.normalise:
            values = normalise_waveforms(values, mask)
        short = self.receptive_field - values.shape[1]
        if short > 0:
            values, mask = F.pad(values, (0, short)), F.pad(mask, (0, short))
        # transformers fails on a mask that leaves no whole frame; such an utterance has no valid frame below either.
        attended = mask | (torch.arange(mask.shape[1], device=mask.device) < self.receptive_field)
        attention_mask = attended.long() if self.takes_mask else None
        frames = self.model(values.to(self.model.dtype), attention_mask=attention_mask).last_hidden_state
        lengths = self.frame_lengths(waveforms.mask.sum(1))
        frame_mask = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
        return Sequence(frames, frame_mask)


class WhisperEncoder(nn.Module):
    """Whisper's encoder sees exactly 30 s; longer audio is cut into chunks of 30 s and joined again."""

    def __init__(self, model: nn.Module, extractor: Any, *, name: str) -> None:
        super().__init__()
        config: Any = model.config
        self.model: Any = freeze(model)
        self.name, self.dim = name, config.d_model
        self.fingerprint = fingerprint(model)
        self.extractor = extractor
        self.hop = extractor.hop_length * 2  # the second convolution has stride 2
        self.frame_rate_hz = SAMPLE_RATE_HZ / self.hop
        self.chunk_samples = config.max_source_positions * self.hop

    @torch.no_grad()
    def forward(self, waveforms: Sequence) -> Sequence:
        """Encode ``waveforms`` (B, S) to frames (B, T, D)."""
        batch, length = waveforms.values.shape
        chunks = F.pad(waveforms.values, (0, -length % self.chunk_samples)).unflatten(1, (-1, self.chunk_samples))
        features = self.extractor(
            list(chunks.flatten(0, 1).cpu().numpy()),  # B * C waveforms of 30 s
            sampling_rate=SAMPLE_RATE_HZ,
            padding="max_length",
            max_length=self.chunk_samples,
            return_tensors="pt",
        ).input_features
        features = features.to(waveforms.values.device, self.model.dtype)
        frames = self.model(features).last_hidden_state.unflatten(0, (batch, -1)).flatten(1, 2)  # (B, C * 1500, D)
        lengths = -(-waveforms.mask.sum(1) // self.hop)
        longest = int(lengths.max())
        frame_mask = torch.arange(longest, device=frames.device) < lengths[:, None]
        return Sequence(frames[:, :longest], frame_mask)


Encoder = ConvEncoder | WhisperEncoder


def normalise_waveforms(values: Tensor, mask: Tensor) -> Tensor:
    """Give each waveform (B, S) zero mean and unit variance over its valid samples; padding becomes zero."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mean = (values * mask).sum(1, keepdim=True) / count
    centred = (values - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + WAVEFORM_VARIANCE_EPS).sqrt()


def load_encoder(name: str, *, dtype: torch.dtype = torch.float32) -> Encoder:
    """Load an encoder from a hub id or a folder. Raises `ValueError` for a family that is not supported."""
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    with quiet_loading(name):
        config = AutoConfig.from_pretrained(name)
        if config.model_type == "whisper":
            model = AutoModel.from_pretrained(name, dtype=dtype).get_encoder()
            return WhisperEncoder(model, AutoFeatureExtractor.from_pretrained(name), name=name)
        if config.model_type in CONV_FAMILIES:
            model = AutoModel.from_pretrained(name, dtype=dtype)
            return ConvEncoder(
                model, name=name, normalise=_does_normalise(name, default=config.feat_extract_norm == "layer")
            )
    raise ValueError(
        f"model.encoder={name}: '{config.model_type}' is not a supported encoder; "
        f"use one of {', '.join(CONV_FAMILIES)} or whisper"
    )


def _does_normalise(name: str, *, default: bool) -> bool:
    """Read ``do_normalize`` from the preprocessor's file; models saved without one follow their front end."""
    from transformers.utils import cached_file

    found = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    return bool(json.loads(Path(found).read_text()).get("do_normalize", default)) if found else default


def _receptive_field(convs: list[tuple[int, int]]) -> int:
    """Samples that one frame sees (400 for the standard front end)."""
    samples = 1
    for kernel, stride in reversed(convs):
        samples = (samples - 1) * stride + kernel
    return samples
