"""The speech encoder: any HuBERT, wav2vec 2.0, WavLM, Wav2Vec2-BERT, Whisper or Parakeet of Hugging Face transformers.

It encodes waveforms to frames, without gradients unless a part of it trains.

Shape legend: B utterances, S audio samples, C chunks of 30 s, T frames, D width, N transformer layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.batch import Padded
from ossicle.errors import ModelError
from ossicle.models.frozen import Fingerprint, freeze, layer_outputs, resolve_layers

if TYPE_CHECKING:
    from ossicle.models.front_ends import FrontEnd

Layer = Literal["last", "mix"] | int
Context = Literal["full", "audio"]
FrontEndKind = Literal["conv", "kaldi", "whisper", "parakeet", "granite"]
CONV_FAMILIES = ("hubert", "wav2vec2", "wavlm")


@dataclass(frozen=True)
class Family:
    """Facts that are needed to load the encoders of one ``model_type`` of transformers."""

    layers: str
    """Path of the transformer layers in the encoder."""
    front_end: FrontEndKind
    """Front end that computes the encoder's input, see `ossicle.models.front_ends.load_front_end`."""
    part: str = ""
    """Path of the encoder in the model that transformers loads; empty for the model itself."""


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(CONV_FAMILIES, Family("encoder.layers", "conv")),
    "wav2vec2-bert": Family("encoder.layers", "kaldi"),
    "whisper": Family("layers", "whisper", part="encoder"),
    "parakeet_encoder": Family("layers", "parakeet"),
    "parakeet_ctc": Family("layers", "parakeet", part="encoder"),
    "parakeet_tdt": Family("layers", "parakeet", part="encoder"),
    "granite_speech": Family("layers", "granite", part="encoder"),
}
"""The supported encoders by transformers' ``model_type``."""


class Encoder(nn.Module):
    """A speech encoder and the choice of one of its hidden states.

    Args:
        model: The encoder of transformers; it is frozen.
        front: The front end that computes the input of ``model``.
        name: Hub id or folder of the weights, for messages.
        layers: Path of the transformer layers in ``model``.
        layer: ``last`` (after the final norm, where the model has one), a layer index k in 0..N, or ``mix``. Hidden
            state k is the output of layer k, 0 is the input of the first layer, and N is the same as ``last``. Layers
            above k are removed. ``mix`` is a learned sum of all N + 1 hidden states.

    Attributes:
        dim: Width of a frame.
        frame_rate_hz: Frames per second.
        pads_exactly: True if the frames of an utterance do not depend on the padding of its batch.
        fingerprint: Hash of the weights; ``former_fingerprint`` is that of Ossicle 0.1. See `Fingerprint`.
        num_layers: Number of transformer layers of the whole model.
    """

    def __init__(self, model: Any, front: FrontEnd, *, name: str, layers: str, layer: Layer = "last") -> None:
        super().__init__()
        fingerprint = Fingerprint.of(model)
        self.fingerprint, self.former_fingerprint = fingerprint.content, fingerprint.by_name
        self.model: Any = freeze(model)
        self.front: Any = front
        self.name = name
        self.dim: int = model.config.hidden_size
        self.frame_rate_hz, self.pads_exactly = front.frame_rate_hz, front.pads_exactly
        stack: Any = model.get_submodule(layers)
        self.num_layers = len(stack)
        if isinstance(layer, int):
            resolve_layers(layer, self.num_layers, field="model.encoder_layer")
        self.layer: Layer = "last" if layer == self.num_layers else layer
        if isinstance(self.layer, int):
            parent, _, attribute = layers.rpartition(".")
            stack = stack[: max(1, self.layer)]
            setattr(self.model.get_submodule(parent), attribute, stack)
        self._stack = [stack]  # in a list, so that PyTorch does not register the same parameters under a second name
        self.mix = LayerMix(self.num_layers + 1) if layer == "mix" else None

    @property
    def trains(self) -> bool:
        """True if any part of the encoder trains. Its frames then change and cannot be cached."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def variant(self) -> str:
        """Settings that change the frames but not the fingerprint, as the suffix of a cache folder's name.

        It is empty for the last hidden state of the full context.
        """
        layer = "" if self.layer == "last" else f"-layer-{self.layer}"
        return f"{layer}-audio" if self.front.shortens_context else layer

    def forward(self, waveforms: Padded) -> Padded:
        """Encode ``waveforms`` (B, S) to frames (B, T, D)."""
        with torch.no_grad():
            features = self.front(waveforms, self.model.dtype)
        # Some releases of transformers draw a number for LayerDrop in evaluation mode too. Training must not see it.
        own_random_state = torch.random.fork_rng(devices=[], enabled=not self.model.training)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains), own_random_state:
            frames = features.encode(self._hidden_state)
            if features.chunks is not None:
                rows = frames.new_zeros(*features.chunks.shape, *frames.shape[1:])  # (B, C, T, D)
                rows[features.chunks] = frames
                frames = rows.flatten(1, 2)
        frames = frames[:, : max(1, int(features.lengths.max()))]
        frame_mask = torch.arange(frames.shape[1], device=frames.device) < features.lengths[:, None]
        return Padded(frames, frame_mask)

    def _hidden_state(self, tensors: dict[str, Tensor]) -> Tensor:
        if self.layer == "last":
            last: Tensor = self.front.run(self.model, tensors)
            return last
        deepest = self.num_layers if self.layer == "mix" else int(self.layer)
        every = self.layer == "mix" or self.model.training
        with layer_outputs(self._stack[0], range(deepest + 1) if every else [deepest]) as states:
            last = self.front.run(self.model, tensors)
        if self.mix is not None:
            states[self.num_layers] = last
        # In train mode transformers skips whole layers at random: the output of such a layer is its input.
        for layer in range(deepest + 1) if every else ():
            states.setdefault(layer, states[max(layer - 1, 0)])
        if self.mix is None:
            return states[deepest]
        mixed: Tensor = self.mix([states[layer] for layer in range(deepest + 1)])
        return mixed


class LayerMix(nn.Module):
    """A learned softmax-weighted sum of hidden states, with equal weights at the start.

    Each state is first normalised over its width, so that the weights are comparable: deep states of pre-norm models
    are far larger than the others.
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


def load_encoder(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    layer: Layer = "last",
    context: Context = "full",
    device: torch.device | None = None,
) -> Encoder:
    """Load an encoder from a hub id or a folder, onto ``device`` (default: the CPU).

    ``context`` is for Whisper, see `ossicle.models.whisper_front`; other encoders ignore it. The adapter that some
    fine-tuned wav2vec 2.0 models have after their layers, which shortens the frames for CTC, is left out.

    Raises `ModelError` if the model does not load, is of no supported family or lacks weights, and `ConfigError` for a
    layer that the model does not have.
    """
    from transformers import AutoConfig, AutoModel

    from ossicle.models.front_ends import load_front_end  # not on the path from data to loss
    from ossicle.models.loading import loading_model, placement, refuse_missing  # as above

    with loading_model("model.encoder", name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"model.encoder={name}: '{config.model_type}' is not a supported encoder; use one of "
                f"{', '.join(FAMILIES)}"
            )
        family = FAMILIES[config.model_type]
        options = {**placement(device), "trust_remote_code": False}
        whole, report = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
        refuse_missing(f"model.encoder={name}", report)
        model = whole.get_submodule(family.part)
        if config.to_dict().get("add_adapter"):
            model.adapter = None
        front = load_front_end(family.front_end, model.config, name, shorten_context=context == "audio")
    return Encoder(model, front, name=name, layers=family.layers, layer=layer)
