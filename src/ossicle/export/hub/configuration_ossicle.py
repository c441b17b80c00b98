"""Configuration of a speech LLM: a speech encoder, a projector, and a language model."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


class OssicleConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of an exported Ossicle model.

    Args:
        audio_config: Configuration of the speech encoder.
        text_config: Configuration of the language model.
        audio_model_id: Folder or hub id of the encoder's weights; None if they are in the model's own files.
        text_model_id: Folder or hub id of the language model's weights; None if they are in the model's own files.
        audio_part: Path of the encoder in the model at ``audio_model_id``; empty for the model itself.
        audio_layers: Path of the transformer layers in the encoder.
        encoder_layer: Hidden state of the encoder to use: ``last``, the index of a layer, or ``mix`` for a weighted sum
            of all.
        encoder_context: ``audio`` runs a Whisper encoder on the audio and a second of silence instead of 30 s.
        attends_mask: True if the encoder gets the mask of its input.
        subsampling: Kernel, stride and padding of each convolution of the encoder, which decide the number of frames.
        chunk: Feature vectors that the encoder reads at once, or None for no limit. Longer audio is cut.
        projector: Name and sizes of the projector.
        audio_token_id: Token whose positions the speech replaces.
        counts_tokens: False if the number of speech tokens depends on what is said, so that it is known only after the
            projector. The processor then writes as many placeholders as there can be.
        logit_factor: Factor of the logits.
        logit_cap: Soft cap of the logits, or None.
    """

    model_type = "ossicle"
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 - as transformers has it

    def __init__(  # noqa: PLR0913 - the fields of a configuration
        self,
        audio_config: Any = None,
        text_config: Any = None,
        audio_model_id: str | None = None,
        text_model_id: str | None = None,
        audio_part: str = "",
        audio_layers: str = "encoder.layers",
        encoder_layer: str | int = "last",
        encoder_context: str = "full",
        attends_mask: bool = True,
        subsampling: list[list[int]] | None = None,
        chunk: int | None = None,
        projector: dict[str, Any] | None = None,
        audio_token_id: int = 0,
        counts_tokens: bool = True,
        logit_factor: float = 1.0,
        logit_cap: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.audio_config = _config(audio_config, "hubert")
        self.text_config = _config(text_config, "llama")
        self.audio_model_id, self.text_model_id = audio_model_id, text_model_id
        self.audio_part, self.audio_layers = audio_part, audio_layers
        self.encoder_layer, self.encoder_context = encoder_layer, encoder_context
        self.attends_mask, self.subsampling, self.chunk = attends_mask, subsampling or [], chunk
        self.projector = projector or {}
        self.audio_token_id, self.counts_tokens = audio_token_id, counts_tokens
        self.logit_factor, self.logit_cap = logit_factor, logit_cap
        kwargs.setdefault("tie_word_embeddings", bool(getattr(self.text_config, "tie_word_embeddings", False)))
        super().__init__(**kwargs)


def _config(given: Any, default: str) -> Any:
    """Return a configuration object for a dictionary with ``model_type``, or for None."""
    if given is None or isinstance(given, dict):
        settings = dict(given or {})
        return AutoConfig.for_model(settings.pop("model_type", default), **settings)
    return given


def frame_counts(features: Any, subsampling: list[list[int]]) -> Any:
    """Return the number of encoder frames for a number of feature vectors or samples: integers, or a tensor of them."""
    frames = features
    for kernel, stride, padding in subsampling:
        frames = (frames + 2 * padding - kernel) // stride + 1
    return frames
