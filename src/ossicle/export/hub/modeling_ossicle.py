"""A speech LLM: a speech encoder, a projector, and a language model that reads the projected speech like tokens.

Shape legend: B prompts, A recordings, S samples or feature vectors, T encoder frames, M speech tokens, N speech tokens
of all recordings, L positions of a prompt, D width.
"""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import cached_file, can_return_tuple

from .configuration_ossicle import OssicleConfig, frame_counts
from .encoding_ossicle import cut, encode
from .projectors_ossicle import build_projector

CACHE = {field.name for field in fields(CausalLMOutputWithPast)} & {"cache", "past_key_values"}
"""Name of the keys and values in outputs, which transformers 5.24 changed."""
FILES = {"cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"}
"""Arguments of ``from_pretrained`` that say where files are."""
WEIGHTS = "model.safetensors"


class OssiclePreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Register the two models below with transformers and define how they load."""

    config_class = OssicleConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    _supports_attention_backend = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = ["projector", "layer_weights"]  # noqa: RUF012 - as transformers has it

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, config: Any = None, **options: Any) -> Any:
        """Load a model; its encoder and language model come from their own folders or hub ids if the files lack them.

        Arguments are those of transformers. Of models by reference it takes ``dtype``, ``device_map``,
        ``attn_implementation`` and the arguments that say where files are. Without a ``dtype``, each part has that of
        the training.
        """
        where = {key: options[key] for key in FILES & options.keys()}
        if not isinstance(config, PretrainedConfig):
            config = OssicleConfig.from_pretrained(name if config is None else config, **where)
        if config.audio_model_id is None or config.text_model_id is None:
            return super().from_pretrained(name, *arguments, config=config, **options)
        weights = load_file(cached_file(name, WEIGHTS, **where))
        report = options.pop("output_loading_info", False)
        model = cls._of_bases(config, weights, {key: options[key] for key in options.keys() - FILES})
        if model.can_generate():
            model.generation_config = GenerationConfig.from_pretrained(name, **where)
        nothing: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return (model, nothing | {"error_msgs": []}) if report else model

    @classmethod
    def _of_bases(cls, config: OssicleConfig, weights: dict[str, Tensor], options: dict[str, Any]) -> Any:
        kept = {key: options[key] for key in ("device_map", "attn_implementation") if options.get(key) is not None}
        dtype = options.get("dtype", options.get("torch_dtype"))
        if dtype is None and _name(config.dtype) != _name(config.text_config.dtype):
            dtype = config.dtype  # old AutoModel classes write the argument there
        types = [own.dtype if dtype in (None, "auto") else dtype for own in (config.audio_config, config.text_config)]
        encoder = AutoModel.from_pretrained(config.audio_model_id, dtype=types[0], **kept)
        kept = {**_attention(config.text_config), **kept}
        language = AutoModelForCausalLM.from_pretrained(config.text_model_id, dtype=types[1], **kept)
        with torch.device("meta"):
            model = cls(copy.deepcopy(config))
        core = model.model if hasattr(model, "model") else model
        core.audio_tower = cut(encoder.get_submodule(config.audio_part), config)
        core.language_model = language.base_model
        if hasattr(model, "lm_head"):
            model.lm_head = language.get_output_embeddings()
        device = core.get_input_embeddings().weight.device
        own = {key.removeprefix("model."): value.to(device) for key, value in weights.items()}
        core.projector.to_empty(device=device)
        core.projector.load_state_dict(_below(own, "projector."))
        for key, value in own.items():
            if "." not in key:  # tensors of the model itself
                place = core.get_parameter(key) if key in dict(core.named_parameters(recurse=False)) else None
                setattr(core, key, value if place is None else nn.Parameter(value))
        model.config.audio_model_id = model.config.text_model_id = None  # this model has all weights
        return model.eval()


class OssicleModel(OssiclePreTrainedModel):
    """Encoder, projector and language model without its head."""

    def __init__(self, config: OssicleConfig) -> None:
        super().__init__(config)
        whole = AutoModel.from_config(config.audio_config)
        self.audio_tower = whole.encoder if config.audio_config.model_type == "whisper" else whole
        self.language_model = AutoModel.from_config(config.text_config, **_attention(config.text_config))
        self.projector: Any = build_projector(config.projector)
        if config.encoder_layer == "mix":
            self.layer_weights = nn.Parameter(torch.zeros(config.audio_config.num_hidden_layers + 1))
        if "vocabulary" in config.projector:
            self.register_buffer("spoken_ids", torch.zeros(config.projector["vocabulary"], dtype=torch.long))
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """Return the token embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embeddings of the language model."""
        self.language_model.set_input_embeddings(value)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def get_audio_features(
        self,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the speech tokens of all recordings, one after the other (N, D), as ``pooler_output``.

        Args:
            input_features: Features (A, S, D), or (A, D, S) of Whisper; or waveforms (A, S).
            input_features_mask: Their mask (A, S); all are valid by default.
            input_values: Another name for ``input_features``, for encoders of waveforms.
            input_values_mask: Another name for ``input_features_mask``.
            kwargs: Ignored.
        """
        values = input_values if input_features is None else input_features
        mask = input_values_mask if input_features_mask is None else input_features_mask
        if values is None:
            raise ValueError("get_audio_features needs input_features or input_values: pass what the processor returns")
        frames, tokens, valid = self._hear(values, mask)
        return BaseModelOutputWithPooling(last_hidden_state=frames, pooler_output=tokens[valid])

    def _hear(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the frames (A, T, D), the speech tokens (A, M, D), and which of these are valid (A, M)."""
        weights = self.layer_weights if self.config.encoder_layer == "mix" else None
        frames, valid = encode(self.audio_tower, self.config, values, mask, weights)
        dtype = next(self.projector.parameters()).dtype
        if "vocabulary" in self.config.projector:  # the projector mixes token embeddings
            self.projector.embeddings = self.get_input_embeddings()(self.spoken_ids).to(dtype)
        tokens, token_mask = self.projector(frames.to(dtype), valid)
        return frames, tokens, token_mask

    def embed(
        self, input_ids: Any, attention_mask: Any, values: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Return the input vectors of the language model (B, L, D) and its attention mask (B, L).

        Speech replaces the placeholders. Placeholders beyond the number of speech tokens are masked.
        """
        places = input_ids == self.config.audio_token_id
        if values is None or not bool(places.any()):
            return self.get_input_embeddings()(input_ids), attention_mask
        embeds = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        _, tokens, valid = self._hear(values, mask)
        used = valid
        if not self.config.counts_tokens:
            slots = self._slots(values, mask)
            missing = max(0, int(slots.max()) - valid.shape[1])
            tokens, valid = F.pad(tokens, (0, 0, 0, missing)), F.pad(valid, (0, missing))
            used = torch.arange(valid.shape[1], device=valid.device) < slots[:, None]
        if int(used.sum()) != int(places.sum()):
            raise ValueError(
                f"the prompts have {int(places.sum())} placeholders for {int(used.sum())} speech tokens: use text and "
                "features of one call of the processor"
            )
        embeds = embeds.masked_scatter(places[..., None], tokens[used].to(embeds.dtype))
        if not self.config.counts_tokens:
            seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            attention_mask = seen.masked_scatter(places, valid[used].to(seen.dtype))
        return embeds, attention_mask

    def _slots(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the number of placeholders of each recording (A,) of a projector that counts tokens itself."""
        lengths = values.new_full((len(values),), values.shape[-1]).long() if mask is None else mask.sum(-1)
        frames, settings = frame_counts(lengths, self.config.subsampling), self.config.projector
        slots: Tensor = settings.get("prompt", 0) - (-frames // settings["stack"])
        return slots

    def forward(  # noqa: PLR0913 - the arguments of transformers' models
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the output of the language model for prompts whose placeholders the speech replaces."""
        if inputs_embeds is None:
            values = input_values if input_features is None else input_features
            mask = input_values_mask if input_features_mask is None else input_features_mask
            inputs_embeds, seen = self.embed(input_ids, attention_mask, values, mask)
            if seen is not attention_mask:
                attention_mask, position_ids = seen, (seen.cumsum(-1) - 1).clamp(min=0)
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )


class OssicleForConditionalGeneration(OssiclePreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A speech LLM that answers: `OssicleModel` and the head of the language model."""

    def __init__(self, config: OssicleConfig) -> None:
        super().__init__(config)
        self.model = OssicleModel(config)
        text, embeddings = config.text_config, self.model.get_input_embeddings()
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """Return the token embeddings of the language model."""
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Return the head."""
        return self.lm_head

    def get_audio_features(self, *arguments: Any, **kwargs: Any) -> Any:
        """Return what `OssicleModel.get_audio_features` does."""
        return self.model.get_audio_features(*arguments, **kwargs)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0913 - the arguments of transformers' models
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Return the logits (B, L, vocabulary), and the loss of ``labels`` if there are any."""
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            input_values=input_values,
            input_values_mask=input_values_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept]) * self.config.logit_factor
        if (cap := self.config.logit_cap) is not None:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{name: getattr(outputs, name, None) for name in CACHE},
        )

    @torch.no_grad()
    def generate(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Generate answers; arguments and result are those of transformers.

        Where the number of speech tokens depends on what is said, the placeholders that are left over are removed
        from the prompt before decoding. The ids that are returned still have them.
        """
        names = [name for name in ("input_features", "input_values") if kwargs.get(name) is not None]
        if self.config.counts_tokens or not names:
            return super().generate(inputs, **kwargs)
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        seen = kwargs.pop("attention_mask", None)
        seen = torch.ones_like(input_ids) if seen is None else seen
        embeds, seen = self.model.embed(input_ids, seen, kwargs.pop(names[0]), kwargs.pop(f"{names[0]}_mask", None))
        order = torch.argsort(seen.bool().byte(), dim=1, stable=True)[:, -int(seen.bool().sum(1).max()) :]
        rows = torch.arange(len(seen), device=seen.device)[:, None]
        out = super().generate(inputs_embeds=embeds[rows, order], attention_mask=seen[rows, order], **kwargs)
        ids = out if isinstance(out, Tensor) else out.sequences
        ids = torch.cat([input_ids.repeat_interleave(len(ids) // len(input_ids), 0), ids], 1)
        if isinstance(out, Tensor):
            return ids
        out.sequences = ids
        return out


def _name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _attention(config: Any) -> dict[str, str]:
    """Return the attention of language models that cap its logits, which the fused kernel of PyTorch cannot do."""
    return {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
