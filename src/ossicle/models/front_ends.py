"""From waveforms to what an encoder of a family is called with, and how many frames come of it.

Each front end says how many frames a second it makes (``frame_rate_hz``) and whether padding leaves the frames of an
utterance as they would be without it (``pads_exactly``), and runs the model (``run``).

Shape legend: B utterances, S audio samples, C chunks of 30 s, F feature vectors, T frames, D width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Padded

Context = Literal["full", "audio"]
WAVEFORM_VARIANCE_EPS = 1e-7
KALDI_WINDOW, KALDI_HOP, KALDI_FFT = 400, 160, 512
KALDI_PREEMPHASIS, KALDI_FLOOR = 0.97, 1.1920929e-07
PARAKEET_FLOOR, PARAKEET_EPS = 2**-24, 1e-5
SHORT_CONTEXT_MARGIN = 50
"""Frames of silence (1 s) that Whisper hears after the audio where its context is cut: it was trained to hear some."""


@dataclass(frozen=True)
class Features:
    """The arguments of the model, and where its frames belong."""

    tensors: dict[str, Tensor]
    lengths: Tensor  # (B,) valid frames of each utterance
    chunks: Tensor | None = None  # (B, C) bool: the model's rows are these stretches of the utterances


class FrontEnd(Protocol):
    """What the encoder of a family needs to be fed."""

    frame_rate_hz: float
    pads_exactly: bool

    def __call__(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Features of ``waveforms`` (B, S), in the model's ``dtype``."""
        ...

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The model's last hidden state (rows, T, D)."""
        ...


class ConvFront:
    """HuBERT, wav2vec 2.0 and WavLM: convolutions on the waveform.

    Large models ("layer" norm in the front end) take waveforms of zero mean and unit variance and an attention mask;
    base models ("group" norm) want zero padding and no mask, as transformers documents, and so hear the padding. Frame
    masks come from the strides of the convolutions either way.
    """

    def __init__(self, config: Any, *, normalise: bool) -> None:
        self.normalise = normalise
        self.pads_exactly: bool = config.feat_extract_norm == "layer"
        self.convs = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.frame_rate_hz = SAMPLE_RATE_HZ / math.prod(config.conv_stride)
        self.receptive_field = _receptive_field(self.convs)

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """How many frames waveforms of ``sample_lengths`` (B,) samples have; 0 below the receptive field."""
        lengths = sample_lengths
        for kernel, stride in self.convs:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths.clamp(min=0)

    def __call__(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """The waveforms themselves, long enough for one frame."""
        values, mask = waveforms.values, waveforms.mask
        if self.normalise:
            values = normalise_waveforms(values, mask)
        short = self.receptive_field - values.shape[1]
        if short > 0:
            values, mask = F.pad(values, (0, short)), F.pad(mask, (0, short))
        tensors = {"input_values": values.to(dtype)}
        if self.pads_exactly:
            # transformers fails on a mask that leaves no whole frame; such an utterance has no valid frame either way.
            attended = mask | (torch.arange(mask.shape[1], device=mask.device) < self.receptive_field)
            tensors["attention_mask"] = attended.long()
        return Features(tensors, self.frame_lengths(waveforms.mask.sum(1)))

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The model's last hidden state (B, T, D)."""
        return model(**tensors).last_hidden_state


class WhisperFront:
    """Whisper (and distil-Whisper): log-mel features of 30 s, whatever the audio lasts; longer audio is cut.

    With ``context="audio"`` the encoder runs on the longest audio of the batch and a second of silence instead, with
    the first of its positions. That is an approximation: attention then has fewer positions of silence to look at, and
    how many depends on the batch.
    """

    def __init__(self, extractor: Any, config: Any, *, context: Context = "full") -> None:
        self.extractor, self.positions, self.context = extractor, config.max_source_positions, context
        self.hop = extractor.hop_length * 2  # the second convolution has stride 2
        self.frame_rate_hz = SAMPLE_RATE_HZ / self.hop
        self.chunk_samples = self.positions * self.hop
        self.pads_exactly = context == "full"

    def __call__(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Features of the chunks that hold audio."""
        values, samples = waveforms.values, waveforms.mask.sum(1)
        chunks = F.pad(values, (0, -values.shape[1] % self.chunk_samples)).unflatten(1, (-1, self.chunk_samples))
        starts = torch.arange(chunks.shape[1], device=values.device) * self.chunk_samples
        used = starts < samples[:, None].clamp(min=1)  # (B, C)
        features = self.extractor(
            list(chunks[used].cpu().numpy()),
            sampling_rate=SAMPLE_RATE_HZ,
            padding="max_length",
            max_length=self.chunk_samples,
            return_tensors="pt",
            device=str(values.device),
        ).input_features
        lengths = -(-samples // self.hop)
        if self.context == "audio":
            features = features[..., : 2 * (int(lengths.max()) + SHORT_CONTEXT_MARGIN)]
        return Features({"input_features": features.to(values.device, dtype)}, lengths, used)

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The model's last hidden state (rows, T, D)."""
        positions = tensors["input_features"].shape[-1] // 2
        if positions < self.positions:
            model = _with_positions(model, positions)
        return model(**tensors).last_hidden_state


class KaldiFront(nn.Module):
    """Wav2Vec2-BERT: Kaldi's log-mel filter banks, normalised per utterance and joined in pairs.

    What ``SeamlessM4TFeatureExtractor`` computes with loops in numpy, for the whole batch and on its device.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.stride, self.padding_value = extractor.stride, extractor.padding_value
        self.register_buffer("window", torch.tensor(extractor.window, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.tensor(extractor.mel_filters, dtype=torch.float32), persistent=False)
        self.frame_rate_hz = SAMPLE_RATE_HZ / (KALDI_HOP * self.stride)
        self.pads_exactly = True

    def forward(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Features (B, T, 80 * stride) with their mask."""
        least = KALDI_WINDOW + KALDI_HOP * (self.stride - 1)
        values = F.pad(waveforms.values, (0, max(0, least - waveforms.values.shape[1])))
        counts = ((waveforms.mask.sum(1) - KALDI_WINDOW) // KALDI_HOP + 1).clamp(min=0)  # (B,) windows of audio alone
        banks = self.filter_banks(values.float())  # (B, F, 80)
        mask = (torch.arange(banks.shape[1], device=banks.device) < counts[:, None])[..., None]
        count = counts[:, None, None].clamp(min=2)
        centred = (banks - (banks * mask).sum(1, keepdim=True) / count) * mask
        variance = centred.square().sum(1, keepdim=True) / (count - 1)
        normalised = torch.where(mask, centred / (variance + WAVEFORM_VARIANCE_EPS).sqrt(), self.padding_value)
        whole = normalised.shape[1] // self.stride
        stacked = normalised[:, : whole * self.stride].unflatten(1, (whole, self.stride)).flatten(2)
        lengths = counts // self.stride
        # One position at least is attended to, or attention would give NaN; the frame mask leaves it out again.
        attended = torch.arange(whole, device=banks.device) < lengths[:, None].clamp(min=1)
        return Features({"input_features": stacked.to(dtype), "attention_mask": attended.long()}, lengths)

    def filter_banks(self, values: Tensor) -> Tensor:
        """Log-mel energies (B, F, 80) of waveforms (B, S) within -1 and 1."""
        frames = (values * 2**15).unfold(1, KALDI_WINDOW, KALDI_HOP)  # (B, F, 400)
        frames = frames - frames.mean(-1, keepdim=True)
        before = F.pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = (frames - KALDI_PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(frames, KALDI_FFT).abs().square()  # (B, F, 257)
        return (power @ self.filters).clamp(min=KALDI_FLOOR).log()

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The model's last hidden state (B, T, D)."""
        return model(**tensors).last_hidden_state


class ParakeetFront(nn.Module):
    """Parakeet's FastConformer: log-mel features, normalised per utterance; the convolutions keep each eighth.

    What ``ParakeetFeatureExtractor`` computes, on the device of the batch; older transformers want librosa for it.
    ``settings`` are those of its file.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, settings: dict[str, Any], config: Any) -> None:
        super().__init__()
        self.hop, self.fft = settings.get("hop_length", 160), settings.get("n_fft", 512)
        self.preemphasis = settings.get("preemphasis", 0.97)
        window = torch.hann_window(settings.get("win_length", 400), periodic=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", _slaney_filters(self.fft, config.num_mel_bins), persistent=False)
        self.halvings = round(math.log2(config.subsampling_factor))
        self.kernel, self.stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
        self.frame_rate_hz = SAMPLE_RATE_HZ / (self.hop * config.subsampling_factor)
        self.pads_exactly = True
        self.least = 2 * self.hop  # the variance of a single feature vector does not exist

    def forward(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Features (B, F, mel bins) with their mask."""
        samples = waveforms.mask.sum(1)
        values = F.pad(waveforms.values.float(), (0, max(0, self.least - waveforms.values.shape[1])))
        counts = samples.clamp(min=self.least) // self.hop  # (B,) feature vectors
        banks = self.filter_banks(values, samples)  # (B, F, bins)
        mask = torch.arange(banks.shape[1], device=banks.device) < counts[:, None]
        count, inside = counts[:, None, None], mask[..., None]
        centred = (banks - (banks * inside).sum(1, keepdim=True) / count) * inside
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1)).sqrt()
        features = centred / (deviation + PARAKEET_EPS)
        lengths = counts
        for _ in range(self.halvings):
            lengths = (lengths + (self.kernel - 1) // 2 * 2 - self.kernel) // self.stride + 1
        tensors = {"input_features": features.to(dtype), "attention_mask": mask}
        return Features(tensors, lengths.masked_fill(samples < self.least, 0))

    def filter_banks(self, values: Tensor, samples: Tensor) -> Tensor:
        """Log-mel energies (B, F, bins) of waveforms (B, S), of which ``samples`` (B,) count."""
        before = F.pad(values, (1, 0))[:, :-1]
        mask = torch.arange(values.shape[1], device=values.device) < samples[:, None]
        emphasised = (values - self.preemphasis * before) * mask
        spectrum = torch.stft(
            emphasised,
            self.fft,
            hop_length=self.hop,
            win_length=len(self.window),
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        )  # (B, n_fft / 2 + 1, F)
        return (spectrum.abs().square().mT @ self.filters + PARAKEET_FLOOR).log()

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """The model's last hidden state (B, T, D)."""
        return model(**tensors).last_hidden_state


def normalise_waveforms(values: Tensor, mask: Tensor) -> Tensor:
    """Give each waveform (B, S) zero mean and unit variance over its valid samples; padding becomes zero."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mean = (values * mask).sum(1, keepdim=True) / count
    centred = (values - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + WAVEFORM_VARIANCE_EPS).sqrt()


def _receptive_field(convs: list[tuple[int, int]]) -> int:
    """Samples that one frame sees (400 for the standard front end)."""
    samples = 1
    for kernel, stride in reversed(convs):
        samples = (samples - 1) * stride + kernel
    return samples


def _slaney_filters(fft: int, bins: int) -> Tensor:
    """Mel filters (fft / 2 + 1, bins) from 0 to 8 kHz, of equal area."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(fft // 2 + 1, bins, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, "slaney", "slaney")
    return torch.tensor(filters, dtype=torch.float32)


def _with_positions(whisper: Any, positions: int) -> Any:
    """Whisper's encoder for shorter features: the same weights, of its position embeddings the first only."""
    short = copy.copy(whisper)
    short._modules = dict(whisper._modules)
    short.embed_positions = nn.Embedding.from_pretrained(whisper.embed_positions.weight[:positions])
    short.config = copy.copy(whisper.config)
    short.config.max_source_positions = positions
    return short
