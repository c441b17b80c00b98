"""Exports as Granite Speech and Ultravox: the same tokens, the formats' own names, and clear refusals."""

from __future__ import annotations

import json

import pytest
import torch
from exported import INSTRUCTION, TOKENS, answers, clips, heard, large, original_ids, spoken
from safetensors.torch import load_file
from torch import nn

from ossicle.batch import Padded
from ossicle.errors import ModelError
from ossicle.export.run import write
from ossicle.models.encoder import Encoder
from ossicle.models.granite_front import GraniteFront
from ossicle.models.llm import load_llm
from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM

GRANITE = {"frame_norm": "none", "pad_windows": "zero", "queries": 3, "window_s": 0.3}
STACK = {"name": "stack-mlp", "width": 16}


@pytest.fixture
def granite(bases):
    """``granite(llm, **projector)``: a model with a tiny conformer of Granite Speech."""
    from transformers.models.granite_speech import modeling_granite_speech as library

    def make(llm="llama", **projector):
        torch.manual_seed(0)
        sizes = {"num_layers": 2, "hidden_dim": 24, "num_heads": 2, "dim_head": 12, "output_dim": 12}
        config = library.GraniteSpeechEncoderConfig(**sizes, context_size=50, max_pos_emb=64)
        conformer = library.GraniteSpeechCTCEncoder(config)
        for name, value in conformer.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(value, std=0.3)
        encoder = Encoder(conformer, GraniteFront(), name="conformer", layers="layers")
        settings = QFormerConfig(width=16, heads=2, layers=2, ffn=24, **{**GRANITE, **projector})
        frozen = load_llm(str(bases(llm)))
        model = SpeechLLM(encoder, frozen, ModelConfig(llm=str(bases(llm)), projector=settings)).eval()
        large(model.projector)
        return model

    return make


def prompt_ids(model, folder, count):
    """Return the ids of a prompt with ``count`` placeholders, by the tokenizer and the template of an export."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    turn = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": INSTRUCTION}]}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|audio|>", "<|audio|>" * count)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids


@pytest.mark.parametrize("llm", ["llama", "qwen3"])
def test_granite_speech_decodes_the_same_tokens(granite, tmp_path, llm):
    from transformers import AutoModelForMultimodalLM

    model = granite(llm)
    write(model, tmp_path, "granite_speech", merge=True)
    exported = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert type(exported).__name__ == "GraniteSpeechForConditionalGeneration"
    seen = set()
    for clip in clips(20):
        waveforms = Padded(torch.from_numpy(clip)[None], torch.ones(1, len(clip), dtype=torch.bool))
        features = model.encoder.front(waveforms, torch.float32).tensors["hidden_states"]
        count = model.projector.num_queries * -(-features.shape[1] // model.projector.window)
        ids = prompt_ids(model, tmp_path, count)
        found = exported.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), input_features=features, max_new_tokens=TOKENS
        )
        found = answers(found[:, ids.shape[1] :], model)
        assert found == original_ids(model, heard(model, [clip]))
        seen.add(tuple(found[0]))
    assert len(seen) > 3  # the answers depend on what is heard


def test_granite_speech_has_the_names_of_published_checkpoints(granite, tmp_path):
    write(granite(), tmp_path, "granite_speech", merge=True)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {"projector.query", "projector.linear.weight", "encoder.input_linear.weight"} <= names
    assert "projector.qformer.encoder.layer.1.crossattention.attention.key.weight" in names
    assert {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"} <= names
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["window_size"], config["downsample_rate"], config["has_lora_adapter"]) == (15, 5, False)


def test_the_processor_of_granite_speech_computes_our_features(granite, tmp_path):
    pytest.importorskip(
        "torchaudio", reason="the feature extractor of Granite Speech requires torchaudio", exc_type=ImportError
    )
    from transformers import AutoProcessor

    model = granite()
    write(model, tmp_path, "granite_speech", merge=True)
    processor = AutoProcessor.from_pretrained(tmp_path)
    for clip in clips(4):
        waveform = torch.from_numpy(clip)[None]
        inputs = processor(text="<|audio|>", audio=waveform, return_tensors="pt")
        features = model.encoder.front(Padded(waveform, torch.ones_like(waveform).bool()), torch.float32)
        torch.testing.assert_close(inputs["input_features"], features.tensors["hidden_states"], atol=1e-4, rtol=1e-4)
        assert int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|audio|>")).sum()) == len(
            spoken(model, clip)
        )


@pytest.mark.parametrize(
    ("projector", "merge", "message"),
    [
        ({"frame_norm": "layer"}, True, r"needs frame_norm=none \(it is layer\)"),
        ({"pad_windows": "mask"}, True, r"needs pad_windows=zero"),
        ({"window_s": 1 / 3}, True, "3 queries divide, not 17 frames"),
        ({}, False, "add --merge"),
    ],
)
def test_what_granite_speech_lacks_is_named(granite, tmp_path, projector, merge, message):
    with pytest.raises(ModelError, match=message):
        write(granite(**projector), tmp_path, "granite_speech", merge=merge)


def test_other_encoders_are_no_granite_speech(speaker, tmp_path):
    model = speaker("hubert", "llama", {"name": "qformer", "width": 16, "heads": 2, "layers": 1, "ffn": 24, **GRANITE})
    with pytest.raises(ModelError, match=r"conformer of Granite Speech .* no place for a hubert"):
        write(model, tmp_path, "granite_speech", merge=True)


class UltravoxProjector(nn.Module):
    """The projector as Ultravox 0.5 and vLLM compute it, with their names."""

    def __init__(self, config, frames, width):
        super().__init__()
        joined, hidden = frames * config["stack_factor"], config["hidden_size"]
        self.stack = config["stack_factor"]
        self.ln_pre = nn.RMSNorm(joined, eps=1e-6)
        self.linear_1 = nn.Linear(joined, hidden, bias=False)
        self.ln_mid = nn.RMSNorm(hidden // 2, eps=1e-6)
        self.linear_2 = nn.Linear(hidden // 2, width, bias=False)

    def forward(self, frames):
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % self.stack))
        hidden = self.linear_1(self.ln_pre(frames.reshape(len(frames), -1, frames.shape[2] * self.stack)))
        values, gate = hidden.chunk(2, dim=-1)
        return self.linear_2(self.ln_mid(values * nn.functional.silu(gate)))


@pytest.mark.parametrize("merge", [True, False])
def test_ultravox_decodes_the_same_tokens(speaker, bases, tmp_path, merge):
    """A program that reads the files as Ultravox's format says gets the model, here with the frames of 30 s."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    model = speaker("whisper", "qwen2", STACK)
    write(model, tmp_path, "ultravox", merge=merge)
    config, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")

    def part(prefix):
        return {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}

    if merge:
        whisper = AutoModel.from_config(AutoConfig.for_model(**config["audio_config"])).encoder
        whisper.load_state_dict(part("audio_tower."))
        llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config["text_config"]))
        assert llm.load_state_dict(part("language_model."), strict=False).missing_keys == ["lm_head.weight"]
        llm.tie_weights()
    else:
        assert {name.split(".")[0] for name in tensors} == {"multi_modal_projector"}
        whisper = AutoModel.from_pretrained(config["audio_model_id"]).encoder
        llm = AutoModelForCausalLM.from_pretrained(config["text_model_id"])
    projector = UltravoxProjector(config, whisper.config.d_model, llm.config.hidden_size)
    projector.load_state_dict(part("multi_modal_projector."))
    whisper.eval(), llm.eval()
    for clip in clips(5):
        waveforms = Padded(torch.from_numpy(clip)[None], torch.ones(1, len(clip), dtype=torch.bool))
        features = model.encoder.front(waveforms, torch.float32)
        with torch.no_grad():
            frames = whisper(features.tensors["input_features"]).last_hidden_state[:, : int(features.lengths)]
            tokens = projector(frames)
            ids = prompt_ids(model, tmp_path, tokens.shape[1])
            places = ids == config["audio_token_index"]
            embeds = llm.get_input_embeddings()(ids.masked_fill(places, 0)).masked_scatter(places[..., None], tokens)
        stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
        found = llm.generate(inputs_embeds=embeds, max_new_tokens=TOKENS, do_sample=False, eos_token_id=stops)
        assert answers(found, model) == original_ids(model, heard(model, [clip]))


def test_ultravox_has_the_fields_of_its_configuration(speaker, tmp_path):
    model = speaker("whisper", "llama", STACK)
    write(model, tmp_path, "ultravox", merge=False)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"architectures": ["UltravoxModel"], "model_type": "ultravox", "stack_factor": 8, "hidden_size": 32}
    assert config == config | names | {"projector_act": "swiglu", "projector_ln_mid": True}
    shapes = {name: tuple(value.shape) for name, value in load_file(tmp_path / "model.safetensors").items()}
    prefix = "multi_modal_projector."
    assert shapes == {
        f"{prefix}ln_pre.weight": (192,),
        f"{prefix}linear_1.weight": (32, 192),
        f"{prefix}ln_mid.weight": (16,),
        f"{prefix}linear_2.weight": (32, 16),
    }


@pytest.mark.parametrize(
    ("encoder", "projector", "settings", "message"),
    [
        ("whisper", {"name": "mlp", "width": 8}, {}, "model.projector.name=mlp: Ultravox has the projector stack-mlp"),
        ("hubert", STACK, {}, "no place for a hubert"),
        ("whisper", STACK, {"encoder_layer": 1}, r"no place for a whisper \(hidden state 1\)"),
    ],
)
def test_what_ultravox_lacks_is_named(speaker, tmp_path, encoder, projector, settings, message):
    with pytest.raises(ModelError, match=message):
        write(speaker(encoder, "llama", projector, **settings), tmp_path, "ultravox", merge=True)


@pytest.mark.parametrize(("form", "parts"), [("granite_speech", ("projector.",)), ("ultravox", ("multi_", "audio_"))])
def test_llama_cpp_has_a_place_for_every_tensor(granite, speaker, tmp_path, form, parts):
    """Its converter computes those of Granite's encoder from several tensors each; they are not listed."""
    gguf = pytest.importorskip("gguf")
    model = granite() if form == "granite_speech" else speaker("whisper", "llama", STACK)
    write(model, tmp_path, form, merge=True)
    places = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 4)
    names = [name for name in load_file(tmp_path / "model.safetensors") if name.startswith(parts)]
    assert len(names) > 30
    renamed = [name.replace("multi_modal", "audio.multi_modal") for name in names]  # as its converter does
    assert [name for name in renamed if places.get_name(name, try_suffixes=(".weight", ".bias")) is None] == []
