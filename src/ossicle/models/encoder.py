"""The speech encoder: any HuBERT, wav2vec 2.0, WavLM, Wav2Vec2-BERT, Whisper or Parakeet of Hugging Face transformers.

Waveforms in, frames out, without gradients unless a part of it trains.

Shape legend: B utterances, S audio samples, T frames, D width, N transformer layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.batch import Padded
from ossicle.models.front_ends import Context, ConvFront, FrontEnd, KaldiFront, ParakeetFront, WhisperFront
from ossicle.models.frozen import fingerprint, freeze, layer_outputs, quiet_loading, refuse_missing

Layer = Literal["last", "mix"] | int
CONV_FAMILIES = ("hubert", "wav2vec2", "wavlm")


class Encoder(nn.Module):
    """A speech encoder and the hidden state that is taken from it.

    ``layer`` is ``last`` (after the final norm, where the model has one), k (what the k-th of N layers puts out; 0 is
    what the first reads, N is ``last``), or ``mix``, a learned sum of all N + 1. Layers above the k-th are thrown away.

    Attributes: ``dim`` (width of a frame), ``frame_rate_hz``, ``pads_exactly`` (whether an utterance's frames are the
    same in any batch), ``name`` (where the weights came from), ``fingerprint``, ``num_layers``.
    """

    def __init__(self, model: Any, front: FrontEnd, *, name: str, layers: str, layer: Layer = "last") -> None:
        super().__init__()
        self.fingerprint = fingerprint(model)
        self.model: Any = freeze(model)
        self.front: Any = front
        self.name = name
        self.dim: int = model.config.hidden_size
        self.frame_rate_hz, self.pads_exactly = front.frame_rate_hz, front.pads_exactly
        stack: Any = model.get_submodule(layers)
        self.num_layers = len(stack)
        if isinstance(layer, int) and not 0 <= layer <= self.num_layers:
            raise ValueError(f"model.encoder_layer={layer}: {name} has hidden states 0..{self.num_layers}")
        self.layer: Layer = "last" if layer == self.num_layers else layer
        if isinstance(self.layer, int):
            parent, _, attribute = layers.rpartition(".")
            stack = stack[: max(1, self.layer)]
            setattr(self.model.get_submodule(parent), attribute, stack)
        self._stack = [stack]  # in a list, so that it is not a second name of the same parameters
        self.mix = LayerMix(self.num_layers + 1) if layer == "mix" else None

    @property
    def trains(self) -> bool:
        """Whether any part of it does: its frames then change and cannot be cached."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def variant(self) -> str:
        """What of its frames the fingerprint does not tell: empty for the last hidden state of the whole context."""
        layer = "" if self.layer == "last" else f"-layer-{self.layer}"
        cut = isinstance(self.front, WhisperFront) and self.front.context != "full"
        return f"{layer}-short" if cut else layer

    def forward(self, waveforms: Padded) -> Padded:
        """Encode ``waveforms`` (B, S) to frames (B, T, D)."""
        with torch.no_grad():
            features = self.front(waveforms, self.model.dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains):
            frames = self._hidden_state(features.tensors)
            if features.chunks is not None:
                rows = frames.new_zeros(*features.chunks.shape, *frames.shape[1:])  # (B, C, T, D)
                rows[features.chunks] = frames
                frames = rows.flatten(1, 2)
        frames = frames[:, : max(1, int(features.lengths.max()))]
        frame_mask = torch.arange(frames.shape[1], device=frames.device) < features.lengths[:, None]
        return Padded(frames, frame_mask)

    def _hidden_state(self, tensors: dict[str, Tensor]) -> Tensor:
        if self.layer == "last":
            return self.front.run(self.model, tensors)
        deepest = self.num_layers if self.layer == "mix" else int(self.layer)
        every = self.layer == "mix" or self.model.training
        with layer_outputs(self._stack[0], range(deepest + 1) if every else [deepest]) as states:
            last = self.front.run(self.model, tensors)
        if self.mix is not None:
            states[self.num_layers] = last
        # In train mode transformers drops whole layers at random: such a layer hands its input on.
        for layer in range(deepest + 1) if every else ():
            states.setdefault(layer, states[max(layer - 1, 0)])
        return self.mix([states[layer] for layer in range(deepest + 1)]) if self.mix is not None else states[deepest]


class LayerMix(nn.Module):
    """A learned softmax mix of hidden states, equal shares at the start.

    Each state is normalised over its width first, so that a share means what it says: the deep states of pre-norm
    models are far larger than the others.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(count))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Mix ``states``, each (B, T, D): (B, T, D) float32."""
        mixed = torch.zeros_like(states[0], dtype=torch.float32)
        for share, state in zip(self.weights.softmax(0), states, strict=True):
            mixed = mixed + share * F.layer_norm(state.float(), state.shape[-1:])
        return mixed


@dataclass(frozen=True)
class Family:
    """What is special about the encoders of one ``model_type``."""

    layers: str
    """Where the transformer layers are in the encoder."""
    front: Callable[[Any, str, Context], FrontEnd]
    """(configuration of the encoder, name, context) -> front end."""
    part: str = ""
    """Where the encoder is in the model that transformers loads."""


def _conv(config: Any, name: str, context: Context) -> FrontEnd:
    return ConvFront(
        config,
        # Models saved without a preprocessor follow their front end.
        normalise=bool(_preprocessor(name).get("do_normalize", config.feat_extract_norm == "layer")),
    )


def _kaldi(config: Any, name: str, context: Context) -> FrontEnd:
    return KaldiFront(_extractor(name))


def _whisper(config: Any, name: str, context: Context) -> FrontEnd:
    return WhisperFront(_extractor(name), config, context=context)


def _parakeet(config: Any, name: str, context: Context) -> FrontEnd:
    return ParakeetFront(_preprocessor(name), config)


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(CONV_FAMILIES, Family("encoder.layers", _conv)),
    "wav2vec2-bert": Family("encoder.layers", _kaldi),
    "whisper": Family("layers", _whisper, part="encoder"),
    "parakeet_encoder": Family("layers", _parakeet),
    "parakeet_ctc": Family("layers", _parakeet, part="encoder"),
    "parakeet_tdt": Family("layers", _parakeet, part="encoder"),
}
"""Every encoder that Ossicle knows, by transformers' ``model_type``."""


def load_encoder(
    name: str, *, dtype: torch.dtype = torch.float32, layer: Layer = "last", context: Context = "full"
) -> Encoder:
    """Load an encoder from a hub id or a folder; ``context`` is Whisper's (`WhisperFront`).

    Raises `ValueError` for a family that is not supported or a layer that is not there. The adapter that some
    fine-tuned wav2vec 2.0 models have behind their layers, which shortens the frames for CTC, is left out.
    """
    from transformers import AutoConfig, AutoModel

    with quiet_loading(name):
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"model.encoder={name}: '{config.model_type}' is not a supported encoder; use one of "
                f"{', '.join(FAMILIES)}"
            )
        family = FAMILIES[config.model_type]
        whole, report = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
    refuse_missing(f"model.encoder={name}", report)
    model = whole.get_submodule(family.part)
    if config.to_dict().get("add_adapter"):
        model.adapter = None
    front = family.front(model.config, name, context)
    return Encoder(model, front, name=name, layers=family.layers, layer=layer)


def _extractor(name: str) -> Any:
    from transformers import AutoFeatureExtractor

    return AutoFeatureExtractor.from_pretrained(name)


def _preprocessor(name: str) -> dict[str, Any]:
    """What the file of the feature extractor says; empty where there is none."""
    from transformers.utils import cached_file

    for file, section in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        if found:
            written: dict[str, Any] = json.loads(Path(found).read_text())
            return written.get(section, {}) if section else written
    return {}
