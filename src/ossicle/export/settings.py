"""Describe a model for an export: configuration, processor, tokenizer and decoding as plain values."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from ossicle.errors import ModelError
from ossicle.export.chat import check_tokens
from ossicle.models.encoder import FAMILIES
from ossicle.models.front_ends import KALDI_HOP, KALDI_WINDOW, ConvFront, KaldiFront, ParakeetFront
from ossicle.models.generation import MAX_NEW_TOKENS
from ossicle.models.saving import absolute_name
from ossicle.models.whisper_front import STRIDE, WhisperFront

AUDIO_TOKENS = ("<|audio|>", "<|ossicle_audio|>")
"""Names of the placeholder; the second is for tokenizers that use the first for something else."""
AUTO_MAP = {
    "AutoConfig": "configuration_ossicle.OssicleConfig",
    "AutoModel": "modeling_ossicle.OssicleModel",
    "AutoModelForMultimodalLM": "modeling_ossicle.OssicleForConditionalGeneration",
    "AutoProcessor": "processing_ossicle.OssicleProcessor",
}
CHUNK_S = 30
"""Seconds of the audio for which engines reserve memory."""
HEAD_TOLERANCE = 1e-3


def tokenizer_with_audio(model: Any) -> tuple[Any, str]:
    """Return a copy of the LLM's tokenizer with a placeholder for recordings, and the placeholder."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.llm.name, trust_remote_code=False)
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    audio = next(token for token in AUDIO_TOKENS if token in added or token not in tokenizer.get_vocab())
    tokenizer.add_tokens([AddedToken(audio, special=True, normalized=False)], special_tokens=True)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(generation_config(model)["pad_token_id"])
    check_tokens(model.prompter(), tokenizer, audio)
    return tokenizer, audio


def generation_config(model: Any) -> dict[str, Any]:
    """Return greedy decoding up to the end of the turn or a new line, as `LLM.generate` decodes."""
    padding = model.llm.tokenizer.eos_token_id
    return {
        "do_sample": False,
        "max_new_tokens": MAX_NEW_TOKENS,
        "eos_token_id": model.llm.stop_ids,
        "pad_token_id": min(model.llm.end_ids) if padding is None else padding,
    }


def model_config(model: Any, audio_token_id: int, *, merge: bool) -> dict[str, Any]:
    """Return the content of config.json.

    Raises `ModelError` for an LLM whose logits `_head` cannot describe, or, without ``merge``, that is a part of a
    larger model.
    """
    encoder, llm, front = model.encoder, model.llm, model.encoder.front
    family = FAMILIES[_source_type(encoder)]
    if not merge and (kind := _source_type(llm)) != llm.model.config.model_type:
        raise ModelError(f"{llm.name}: the LLM is a part of a {kind}, which cannot be named by reference: add --merge")
    projector, layers = projector_settings(model), encoder.layer if isinstance(encoder.layer, int) else None
    audio = sub_config(encoder.model.config, model.config.encoder_dtype)
    audio |= {"add_adapter": False} if audio.get("add_adapter") else {}
    if layers is not None:
        audio["encoder_layers" if "encoder_layers" in audio else "num_hidden_layers"] = max(1, layers)
    if not {"max_source_positions", "max_position_embeddings"} & audio.keys():
        audio["max_position_embeddings"] = round(CHUNK_S * encoder.frame_rate_hz)
    dtype = model.config.llm_dtype if model.config.llm_dtype not in ("int8", "int4") else "bfloat16"
    factor, cap = _head(model)
    return {
        "architectures": ["OssicleForConditionalGeneration"],
        "auto_map": AUTO_MAP,
        "model_type": "ossicle",
        "audio_config": audio,
        "text_config": sub_config(llm.model.config, dtype),
        "audio_model_id": None if merge else absolute_name(encoder.name),
        "text_model_id": None if merge else absolute_name(llm.name),
        "audio_part": family.part,
        "audio_layers": family.layers,
        "encoder_layer": encoder.layer,
        "encoder_context": "audio" if front.shortens_context else "full",
        "attends_mask": not isinstance(front, WhisperFront) and bool(front.pads_exactly),
        "subsampling": _subsampling(front),
        "chunk": STRIDE * front.positions if isinstance(front, WhisperFront) else None,
        "projector": projector,
        "audio_token_id": audio_token_id,
        "counts_tokens": projector["name"] not in ("ctc", "cif"),
        "logit_factor": factor,
        "logit_cap": cap,
        "tie_word_embeddings": bool(llm.model.config.tie_word_embeddings),
        "dtype": dtype,
    }


def _source_type(part: Any) -> str:
    """Return the ``model_type`` of the model from which the encoder or the LLM comes."""
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(part.name, trust_remote_code=False).model_type)


def sub_config(config: Any, dtype: str) -> dict[str, Any]:
    """Return the configuration of encoder or LLM as plain values, with the type of its weights."""
    tree: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "torch_dtype", "_attn_implementation", "transformers_version", "quantization_config"):
        tree.pop(name, None)
    return tree | {"dtype": dtype}


def projector_settings(model: Any) -> dict[str, Any]:
    """Return the name and sizes of the projector, from which `ossicle.export.code` builds it."""
    projector, config = model.projector, model.config.projector
    settings: dict[str, Any] = {**asdict(config), "in_dim": projector.in_dim, "out_dim": projector.out_dim}
    settings["dropout"] = 0.0
    match config.name:
        case "qformer":
            return settings | {"window": projector.window}
        case "conv":
            return settings | {"halvings": len(projector.convs)}
        case "cif":
            return settings | {"stack": projector.stack}
        case "ctc":
            return settings | {"stack": projector.stack, "vocabulary": len(projector.spoken.ids)}
        case _:
            return settings | {"stack": projector.frames_per_token}


def _subsampling(front: Any) -> list[list[int]]:
    """Return kernel, stride and padding of the convolutions that decide the number of frames."""
    match front:
        case ConvFront():
            return [[kernel, stride, 0] for kernel, stride in front.convs]
        case WhisperFront():
            return [[3, 2, 1]]
        case ParakeetFront():
            return [[front.kernel, front.stride, (front.kernel - 1) // 2]] * front.halvings
        case _:
            return []


def _shortest(front: Any) -> int:
    """Return the least number of samples that give a frame."""
    match front:
        case ConvFront():
            return front.receptive_field
        case KaldiFront():
            return int(KALDI_WINDOW + KALDI_HOP * (front.stride - 1))
        case ParakeetFront():
            return int(front.least)
        case _:
            return 1


def processor_config(model: Any, config: dict[str, Any], audio: str) -> dict[str, Any]:
    """Return the content of processor_config.json."""
    projector = config["projector"]
    match projector["name"]:
        case "qformer":
            window, tokens, prompt = projector["window"], projector["queries"] + projector["free_queries"], 0
        case "conv":
            window, tokens, prompt = 2 ** projector["halvings"], 1, 0
        case _:
            window, tokens, prompt = projector["stack"], 1, projector.get("prompt", 0)
    return {
        "processor_class": "OssicleProcessor",
        "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]},
        "audio_token": audio,
        "subsampling": config["subsampling"],
        "chunk": config["chunk"],
        "shortest": _shortest(model.encoder.front),
        "window": window,
        "window_tokens": tokens,
        "prompt_tokens": prompt,
    }


def extractor_config(model: Any) -> dict[str, Any]:
    """Return the settings of the feature extractor."""
    from transformers import FeatureExtractionMixin, Wav2Vec2FeatureExtractor

    front = model.encoder.front
    settings: dict[str, Any]
    if isinstance(front, ConvFront):
        extractor = Wav2Vec2FeatureExtractor(do_normalize=front.normalise, return_attention_mask=True)
        settings = json.loads(extractor.to_json_string())
    else:
        settings, _ = FeatureExtractionMixin.get_feature_extractor_dict(model.encoder.name)
    return settings


@torch.no_grad()
def _head(model: Any) -> tuple[float, float | None]:
    """Return the factor and the soft cap of the LLM's logits.

    Raises `ModelError` if its logits are not the product of the head and the last hidden state but for these.
    """
    llm = model.llm.model
    config = llm.config.to_dict()
    cap = config.get("final_logit_softcapping")
    factor = config.get("logit_scale") or 1.0 / (config.get("logits_scaling") or 1.0)
    embeds = model.llm.embed(torch.arange(4, device=llm.device)[None])
    out = llm(inputs_embeds=embeds, output_hidden_states=True)
    logits = out.hidden_states[-1] @ llm.get_output_embeddings().weight.mT * factor
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    apart = (logits.float() - out.logits.float()).abs().max() / out.logits.float().abs().max().clamp(min=1e-6)
    if not apart < (HEAD_TOLERANCE if llm.dtype == torch.float32 else 0.05):
        raise ModelError(
            f"{model.llm.name}: its logits are not a linear function of its last hidden state; use another LLM"
        )
    return float(factor), cap
