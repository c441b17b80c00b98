"""Front ends: compute the input of an encoder from waveforms, and the number of frames of each utterance.

They compute in float32, also where mixed precision is on.

Shape legend: B utterances, S audio samples, C chunks of 30 s, F feature vectors, T frames, D width.
"""

from __future__ import annotations

import json
import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Padded
from ossicle.models.features import Features, last_hidden_state
from ossicle.precision import outside_autocast
from ossicle.public import cached_model_file

WAVEFORM_VARIANCE_EPS = 1e-7
KALDI_WINDOW, KALDI_HOP, KALDI_FFT = 400, 160, 512
KALDI_PREEMPHASIS, KALDI_FLOOR = 0.97, 1.1920929e-07
PARAKEET_FLOOR, PARAKEET_EPS = 2**-24, 1e-5


class FrontEnd(Protocol):
    """The interface of all front ends."""

    frame_rate_hz: float
    """Frames per second."""
    pads_exactly: bool
    """True if the frames of an utterance do not depend on the padding of its batch."""
    shortens_context: bool
    """True if the encoder runs on less than the context that it was trained with."""

    def __call__(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Compute the features of ``waveforms`` (B, S), in the model's ``dtype``."""
        ...

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """Return the model's last hidden state (rows, T, D)."""
        ...


class ConvFront:
    """Front end of HuBERT, wav2vec 2.0 and WavLM: convolutions on the waveform.

    Large models ("layer" norm in the front end) take waveforms of zero mean and unit variance and an attention mask.
    Base models ("group" norm) take zero padding and no mask, as transformers documents, so that padding changes their
    frames. In both, the frame mask follows from the strides of the convolutions.
    """

    shortens_context = False

    def __init__(self, config: Any, *, normalise: bool) -> None:
        self.normalise = normalise
        self.pads_exactly: bool = config.feat_extract_norm == "layer"
        self.convs = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.frame_rate_hz = SAMPLE_RATE_HZ / math.prod(config.conv_stride)
        self.receptive_field = _receptive_field(self.convs)

    def frame_lengths(self, sample_lengths: Tensor) -> Tensor:
        """Return the number of frames of waveforms of ``sample_lengths`` (B,) samples; 0 below the receptive field."""
        lengths = sample_lengths
        for kernel, stride in self.convs:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return lengths.clamp(min=0)

    @outside_autocast
    def __call__(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Return the waveforms, padded to at least one frame."""
        values, mask = waveforms.values.float(), waveforms.mask
        if self.normalise:
            values = normalise_waveforms(values, mask)
        short = self.receptive_field - values.shape[1]
        if short > 0:
            values, mask = F.pad(values, (0, short)), F.pad(mask, (0, short))
        tensors = {"input_values": values.to(dtype)}
        if self.pads_exactly:
            # transformers fails on a mask shorter than a frame. Such an utterance has no valid frame in any case.
            attended = mask | (torch.arange(mask.shape[1], device=mask.device) < self.receptive_field)
            tensors["attention_mask"] = attended.long()
        return Features(tensors, self.frame_lengths(waveforms.mask.sum(1)))

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """Return the model's last hidden state (B, T, D)."""
        return last_hidden_state(model, tensors)


class KaldiFront(nn.Module):
    """Front end of Wav2Vec2-BERT: Kaldi's log-mel filter banks, normalised per utterance and concatenated in pairs.

    It computes the same as ``SeamlessM4TFeatureExtractor``, which loops in NumPy, for a whole batch and on its device.
    """

    shortens_context = False
    window: Tensor
    filters: Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.stride, self.padding_value = extractor.stride, extractor.padding_value
        self.register_buffer("window", torch.tensor(extractor.window, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.tensor(extractor.mel_filters, dtype=torch.float32), persistent=False)
        self.frame_rate_hz = SAMPLE_RATE_HZ / (KALDI_HOP * self.stride)
        self.pads_exactly = True

    @outside_autocast
    def forward(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Compute the features (B, T, 80 * stride) and their mask."""
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
        stacked = torch.unflatten(normalised[:, : whole * self.stride], 1, (whole, self.stride)).flatten(2)
        lengths = counts // self.stride
        # At least one position is attended to, because attention would give NaN otherwise. The frame mask excludes it.
        attended = torch.arange(whole, device=banks.device) < lengths[:, None].clamp(min=1)
        return Features({"input_features": stacked.to(dtype), "attention_mask": attended.long()}, lengths)

    @outside_autocast
    def filter_banks(self, values: Tensor) -> Tensor:
        """Compute log-mel energies (B, F, 80) of waveforms (B, S) between -1 and 1."""
        frames = (values * 2**15).unfold(1, KALDI_WINDOW, KALDI_HOP)  # (B, F, 400)
        frames = frames - frames.mean(-1, keepdim=True)
        before = F.pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = (frames - KALDI_PREEMPHASIS * before) * self.window
        power: Tensor = torch.fft.rfft(frames, KALDI_FFT).abs().square()  # (B, F, 257)
        return (power @ self.filters).clamp(min=KALDI_FLOOR).log()

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """Return the model's last hidden state (B, T, D)."""
        return last_hidden_state(model, tensors)


class ParakeetFront(nn.Module):
    """Front end of Parakeet's FastConformer: log-mel features, normalised per utterance.

    It computes the same as ``ParakeetFeatureExtractor``, for which older versions of transformers require librosa, on
    the device of the batch. ``settings`` is the content of the extractor's file. The convolutions of the encoder keep
    one feature vector in eight.
    """

    shortens_context = False
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

    @outside_autocast
    def forward(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Compute the features (B, F, mel bins) and their mask."""
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

    @outside_autocast
    def filter_banks(self, values: Tensor, samples: Tensor) -> Tensor:
        """Compute log-mel energies (B, F, bins) of waveforms (B, S) with ``samples`` (B,) valid samples."""
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
        """Return the model's last hidden state (B, T, D)."""
        return last_hidden_state(model, tensors)


def normalise_waveforms(values: Tensor, mask: Tensor) -> Tensor:
    """Scale each waveform (B, S) to zero mean and unit variance over its valid samples, and padding to zero."""
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mean = (values * mask).sum(1, keepdim=True) / count
    centred = (values - mean) * mask
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + WAVEFORM_VARIANCE_EPS).sqrt()


def _receptive_field(convs: list[tuple[int, int]]) -> int:
    """Return the number of samples that one frame reads (400 for the standard front end)."""
    samples = 1
    for kernel, stride in reversed(convs):
        samples = (samples - 1) * stride + kernel
    return samples


def _slaney_filters(fft: int, bins: int) -> Tensor:
    """Return mel filters (fft / 2 + 1, bins) of equal area from 0 to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(fft // 2 + 1, bins, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, "slaney", "slaney")
    return torch.tensor(filters, dtype=torch.float32)


def load_front_end(kind: str, config: Any, name: str, *, shorten_context: bool = False) -> FrontEnd:
    """Return the front end of an encoder.

    Args:
        kind: The family's ``front_end``: ``conv``, ``kaldi``, ``whisper``, ``parakeet`` or ``granite``.
        config: The configuration of the encoder.
        name: Hub id or folder of the encoder, where the settings of its feature extractor are.
        shorten_context: Run Whisper on the audio alone (`ossicle.models.whisper_front`).
    """
    match kind:
        case "conv":
            # Models saved without a preprocessor follow the norm of their convolutions.
            default = config.feat_extract_norm == "layer"
            return ConvFront(config, normalise=bool(_extractor_settings(name).get("do_normalize", default)))
        case "kaldi":
            return KaldiFront(_extractor(name))
        case "whisper":
            from ossicle.models.whisper_front import WhisperFront  # it imports this module

            return WhisperFront(_extractor(name), config, shortens_context=shorten_context)
        case "granite":
            from ossicle.models.granite_front import GraniteFront  # as above

            return GraniteFront()
        case _:
            return ParakeetFront(_extractor_settings(name), config)


def _extractor(name: str) -> Any:
    from transformers import AutoFeatureExtractor

    return AutoFeatureExtractor.from_pretrained(name, trust_remote_code=False)


def _extractor_settings(name: str) -> dict[str, Any]:
    """Return the content of the feature extractor's file, or an empty dictionary where there is none."""
    for file, section in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        if path := cached_model_file(name, file):
            written: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return written.get(section, {}) if section else written
    return {}
