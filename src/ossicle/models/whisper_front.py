"""Front end of Whisper and distil-Whisper: log-mel features, computed for a whole batch on its device.

Shape legend: B utterances, S audio samples, C chunks of 30 s, R rows (chunks with audio), M mel bins, F feature
vectors, T frames, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Padded
from ossicle.models.features import Features, last_hidden_state
from ossicle.precision import outside_autocast
from ossicle.private import shallow_copy

STRIDE = 2
"""Feature vectors per frame, because of the stride of the second convolution."""
POWER_FLOOR, DYNAMIC_RANGE = 1e-10, 8.0
"""Least power of a mel bin, and the distance between the loudest and the quietest feature, in powers of ten."""
CONTEXT_STEP = 50
"""Frames in a step of the shortened context (1 s). Few different lengths keep the groups of a batch large."""
CONTEXT_MARGIN = 50
"""Frames of silence (1 s) after the audio where the context is shortened, because the training data had some."""


class WhisperFront(nn.Module):
    """Compute the features of `WhisperFeatureExtractor`, always of 30 s; longer audio is cut into chunks.

    With ``shortens_context`` the encoder runs on each utterance's audio, rounded up to whole seconds, and one second of
    silence. This is an approximation, because attention then has fewer positions of silence. Utterances with different
    contexts are encoded separately. The frames of an utterance therefore do not depend on its batch.
    """

    pads_exactly = True
    window: Tensor
    filters: Tensor

    def __init__(self, extractor: Any, config: Any, *, shortens_context: bool = False) -> None:
        super().__init__()
        self.positions: int = config.max_source_positions
        self.shortens_context = shortens_context
        self.fft, self.feature_hop = extractor.n_fft, extractor.hop_length
        self.hop = extractor.hop_length * STRIDE
        self.frame_rate_hz = SAMPLE_RATE_HZ / self.hop
        self.chunk_samples = self.positions * self.hop
        self.register_buffer("window", torch.hann_window(self.fft), persistent=False)
        filters = torch.tensor(extractor.mel_filters, dtype=torch.float32).T.contiguous()  # (M, n_fft / 2 + 1)
        self.register_buffer("filters", filters, persistent=False)

    @outside_autocast
    def forward(self, waveforms: Padded, dtype: torch.dtype) -> Features:
        """Compute the features (R, M, F) of the chunks that hold audio."""
        values, samples = waveforms.values.float(), waveforms.mask.sum(1)
        count = max(1, math.ceil(values.shape[1] / self.chunk_samples))
        if count > 1:
            values = F.pad(values, (0, count * self.chunk_samples - values.shape[1]))
        chunks = torch.unflatten(values, 1, (count, values.shape[1] // count))
        starts = torch.arange(count, device=values.device) * self.chunk_samples
        used = starts < samples[:, None].clamp(min=1)  # (B, C)
        lengths = -(-samples // self.hop)
        contexts = self._contexts(lengths)[:, None].expand_as(used)[used]  # (R,)
        features = self.log_mel(chunks[used], STRIDE * int(contexts.max())).to(dtype)
        groups = STRIDE * contexts if self.shortens_context else None
        return Features({"input_features": features}, lengths, used, groups)

    def _contexts(self, lengths: Tensor) -> Tensor:
        """Return the number of frames that the encoder computes for utterances of ``lengths`` (B,) frames."""
        if not self.shortens_context:
            return torch.full_like(lengths, self.positions)
        seconds = -(-lengths // CONTEXT_STEP)
        return (seconds * CONTEXT_STEP + CONTEXT_MARGIN).clamp(max=self.positions)

    @outside_autocast
    def log_mel(self, rows: Tensor, count: int) -> Tensor:
        """Compute the first ``count`` log-mel vectors (R, M, ``count``) of waveforms (R, S) followed by silence.

        Only the vectors that hear audio are computed: those of silence are constant before the loudest is known.
        """
        silent = math.ceil(self.fft / self.feature_hop) + 1  # vectors after which a window hears silence alone
        heard = min(math.ceil(rows.shape[1] / self.feature_hop) + silent, self.chunk_samples // self.feature_hop)
        rows = F.pad(rows, (0, heard * self.feature_hop - rows.shape[1]))
        spectrum = torch.stft(rows, self.fft, self.feature_hop, window=self.window, return_complex=True)[..., :-1]
        power = spectrum.abs().square()  # (R, n_fft / 2 + 1, F)
        logarithms = (self.filters @ power).clamp(min=POWER_FLOOR).log10()
        loudest = logarithms.amax((1, 2), keepdim=True)
        logarithms = F.pad(logarithms, (0, count - heard), value=math.log10(POWER_FLOOR))
        return (torch.maximum(logarithms, loudest - DYNAMIC_RANGE) + 4.0) / 4.0

    def run(self, model: Any, tensors: dict[str, Tensor]) -> Tensor:
        """Return the model's last hidden state (R, T, D)."""
        positions = tensors["input_features"].shape[-1] // STRIDE
        if positions < self.positions:
            model = _with_positions(model, positions)
        return last_hidden_state(model, tensors)


def _with_positions(whisper: Any, positions: int) -> Any:
    """Return a copy of Whisper's encoder for shorter features, with the first ``positions`` position embeddings."""
    short = shallow_copy(whisper)
    weight = whisper.embed_positions.weight[:positions]
    short.embed_positions = nn.Embedding(len(weight), weight.shape[1], device="meta")
    short.embed_positions.weight = nn.Parameter(weight, requires_grad=False)
    short.config.max_source_positions = positions
    return short
