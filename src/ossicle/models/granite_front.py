"""Front end of Granite Speech's conformer: log-mel features in pairs, computed for a whole batch on its device.

Shape legend: B utterances, S audio samples, F feature vectors, T frames, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Padded
from ossicle.models.features import Features
from ossicle.precision import outside_autocast

FFT, WINDOW, HOP, MELS = 512, 400, 160, 80
STRIDE = 2
"""Feature vectors per frame."""
POWER_FLOOR, DYNAMIC_RANGE = 1e-10, 8.0
"""Least power of a mel bin, and the distance between the loudest and the quietest feature, in powers of ten."""


class GraniteFront(nn.Module):
    """Compute the features of ``GraniteSpeechFeatureExtractor``, which requires torchaudio, without it.

    The conformer has no mask for padding. The last frames of an utterance therefore depend on the padding of its batch.
    """

    shortens_context = False
    pads_exactly = False
    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(FFT // 2 + 1, MELS, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, None, "htk")
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.frame_rate_hz = SAMPLE_RATE_HZ / (HOP * STRIDE)

    @outside_autocast
    def forward(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Compute the features (B, T, 160) of waveforms (B, S)."""
        values, samples = waveforms.values.float(), waveforms.mask.sum(1)
        least = FFT // 2 + 1  # the reflected edges need as many
        values = nn.functional.pad(values, (0, max(0, least - values.shape[1])))
        spectrum = torch.stft(values, FFT, HOP, WINDOW, window=self.window, return_complex=True)  # (B, bins, F)
        power = spectrum.abs().square().mT @ self.filters  # (B, F, 80)
        logarithms = power.clamp(min=POWER_FLOOR).log10()
        loudest = logarithms.amax((1, 2), keepdim=True)
        features = torch.maximum(logarithms, loudest - DYNAMIC_RANGE) / 4 + 1
        whole = features.shape[1] // STRIDE * STRIDE
        paired = torch.unflatten(features[:, :whole], 1, (-1, STRIDE)).flatten(2)
        lengths = ((samples // HOP + 1) // STRIDE).masked_fill(samples == 0, 0)
        return Features({"hidden_states": paired.to(dtype)}, lengths)

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """Return the model's last hidden state (B, T, D)."""
        state: Tensor = model(**tensors).last_hidden_state
        return state
