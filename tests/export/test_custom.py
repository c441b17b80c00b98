"""Models exported with their own code decode the same tokens as the originals."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from exported import TOKENS, answers, clips, exported_ids, heard, load, original_ids, spoken, turn

from ossicle.errors import ModelError
from ossicle.export.run import write

QFORMER = {"name": "qformer", "width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 2, "window_s": 0.1}
CTC = {"name": "ctc", "width": 16, "heads": 2, "layers": 3, "ffn": 24, "kernel": 3, "prompt": 4}
CIF = {"name": "cif", "width": 32, "heads": 2, "layers": 1, "ffn": 24, "kernel": 3, "position_s": 0.02}
MLP = {"name": "mlp", "width": 16}
CONV = {"name": "conv", "width": 16, "token_s": 0.1}
STACK = {"name": "stack-mlp", "width": 16}


def export(model, folder, *, merge=True):
    folder.mkdir()
    write(model, folder, "custom", merge=merge)
    return folder


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("projector", [QFORMER, CTC, CIF, MLP], ids=lambda settings: settings["name"])
def test_a_hundred_clips_are_answered_alike(speaker, tmp_path, projector, merge):
    model = speaker("hubert", "llama", projector)
    exported, processor = load(export(model, tmp_path / "out", merge=merge))
    recordings, expected, found = clips(100), [], []
    for start in range(0, 100, 25):
        batch = recordings[start : start + 25]
        expected += original_ids(model, heard(model, batch))
        found += exported_ids(exported, processor, model, batch)
    assert found == expected
    assert len(set(map(tuple, expected))) > 20  # the answers depend on what is heard


@pytest.mark.parametrize(
    ("encoder", "llm", "projector", "settings", "merge"),
    [
        ("whisper", "qwen2", STACK, {"encoder_context": "audio"}, True),
        ("whisper", "smollm3", CTC, {"encoder_context": "audio"}, False),
        ("whisper", "phi3", MLP, {}, True),
        ("whisper", "smollm3", CIF, {"encoder_context": "audio"}, False),
        ("wavlm", "qwen3", QFORMER | {"free_queries": 2}, {"encoder_layer": "mix"}, True),
        ("wav2vec2", "mistral", CONV, {"encoder_layer": 1}, True),
        ("wav2vec2", "mistral", CONV, {"encoder_layer": 0}, False),
        ("wavlm", "qwen3", {"name": "linear"}, {"encoder_layer": "mix"}, True),
        ("wavlm", "qwen3", {"name": "linear"}, {"encoder_layer": "mix"}, False),
        ("wav2vec2-bert", "olmo2", MLP, {}, True),
        ("wav2vec2-bert", "gemma2", MLP, {}, False),
        ("wav2vec2-bert", "gemma2", MLP, {}, True),
        ("hubert-group", "gemma3", QFORMER | {"window_positions": True}, {}, True),
        ("hubert", "llama", QFORMER | {"frame_norm": "none", "pad_windows": "zero"}, {}, False),
        ("hubert", "llama", QFORMER, {"turn": '"{speech}"\n{instruction} now'}, True),
    ],
)
def test_every_family_answers_alike(speaker, tmp_path, encoder, llm, projector, settings, merge):  # noqa: PLR0913
    model = speaker(encoder, llm, projector, **settings)
    exported, processor = load(export(model, tmp_path / "out", merge=merge))
    for batch in ([clip] for clip in clips(3, most=12_000)):
        prompt = heard(model, batch)
        assert exported_ids(exported, processor, model, batch) == original_ids(model, prompt)
    inputs = processor.apply_chat_template(turn(batch[0]), tokenize=True, add_generation_prompt=True, return_dict=True)
    if projector["name"] in ("ctc", "cif"):  # some of their positions are masked
        return
    with torch.no_grad():
        expected = model.llm.model(inputs_embeds=prompt.values, attention_mask=prompt.mask.long()).logits
        torch.testing.assert_close(exported(**inputs).logits, expected, atol=2e-3, rtol=2e-3)


def test_a_parakeet_answers_alike(speaker, tmp_path):
    model = speaker("parakeet", "llama", MLP)
    folder = export(model, tmp_path / "out")
    try:
        exported, processor = load(folder)
    except ImportError as error:
        pytest.skip(f"this version of transformers needs librosa for Parakeet: {error}")
    batch = clips(4)
    assert exported_ids(exported, processor, model, batch) == original_ids(model, heard(model, batch))


@pytest.mark.parametrize("context", ["full", "audio"])
def test_audio_beyond_thirty_seconds_is_cut_as_in_the_original(speaker, tmp_path, context):
    model = speaker("whisper", "llama", MLP | {"token_s": 0.5}, encoder_context=context)
    exported, processor = load(export(model, tmp_path / "out"))
    batch = [clips(1, least=33 * 16_000, most=34 * 16_000)[0], clips(1)[0]]
    assert exported_ids(exported, processor, model, batch) == original_ids(model, heard(model, batch))


@pytest.mark.parametrize("projector", [QFORMER, CTC], ids=lambda settings: settings["name"])
def test_conversations_are_answered_alike(speaker, tmp_path, projector):
    model = speaker("hubert", "llama", projector, turn='"{speech}"\n{instruction}')
    exported, processor = load(export(model, tmp_path / "out"))
    first, second, third = clips(3)
    conversation = [
        {"role": "user", "content": [*turn(first)[0]["content"], {"type": "audio", "audio": second}]},
        {"role": "assistant", "content": "the first answer"},
        {"role": "user", "content": [{"type": "text", "text": "and now?"}, {"type": "audio", "audio": third}]},
    ]
    inputs = processor.apply_chat_template(conversation, tokenize=True, add_generation_prompt=True, return_dict=True)
    ids = exported.generate(**inputs, max_new_tokens=TOKENS)[:, inputs["input_ids"].shape[1] :]
    assert answers(ids, model) == original_ids(model, model.conversation(conversation))


def test_adapters_are_merged_into_the_weights_and_never_left_out(speaker, tmp_path):
    lora = {"modules": ["llm.*.q_proj"], "rank": 2}
    model = speaker("hubert", "llama", QFORMER, lora=lora, trainable=["encoder.model.encoder.layers.1.*"])
    batch = clips(3)
    plain = original_ids(model, heard(model, batch))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "layers.1.final_layer_norm.weight" in name:
            torch.nn.init.normal_(weight, std=0.5)
    expected = original_ids(model, heard(model, batch))
    assert expected != plain
    with pytest.raises(ModelError, match="add --merge"):
        export(model, tmp_path / "refused", merge=False)
    exported, processor = load(export(model, tmp_path / "out"))
    assert exported_ids(exported, processor, model, batch) == expected


@pytest.mark.parametrize("merge", [True, False])
def test_a_loaded_export_is_saved_with_all_weights(speaker, tmp_path, merge):
    model = speaker("hubert", "qwen2", QFORMER)
    exported, processor = load(export(model, tmp_path / "out", merge=merge))
    exported.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again, same = load(tmp_path / "again")
    batch = clips(3)
    assert exported_ids(again, same, model, batch) == original_ids(model, heard(model, batch))


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("projector", [QFORMER, CTC], ids=lambda settings: settings["name"])
def test_half_precision_leaves_the_projector_in_float32(speaker, tmp_path, merge, projector):
    from transformers import AutoModelForMultimodalLM

    model = speaker("hubert", "llama", projector)
    folder = export(model, tmp_path / "out", merge=merge)
    exported = AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    _, processor = load(folder)
    core = exported.model
    parts = {part: next(part.parameters()).dtype for part in (core.audio_tower, core.projector, core.language_model)}
    assert list(parts.values()) == [torch.bfloat16, torch.float32, torch.bfloat16]
    inputs = processor(text=f"a {processor.audio_token} b", audio=clips(1)[0])
    tokens = core.get_audio_features(
        inputs["input_values"], input_values_mask=inputs["input_values_mask"]
    ).pooler_output
    torch.testing.assert_close(tokens.float(), spoken(model, clips(1)[0]), atol=0.5, rtol=0.1)
    assert exported.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_the_contract_of_audio_models(speaker, tmp_path):
    """vLLM's and SGLang's Transformers backends read these names."""
    from transformers import AutoConfig, AutoModel

    model = speaker("hubert", "llama", QFORMER)
    folder = export(model, tmp_path / "out")
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    _, processor = load(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(base).__name__ == "OssicleModel" and base._supports_attention_backend
    assert type(base.audio_tower).__name__ == "HubertModel" and type(base.language_model).__name__ == "LlamaModel"
    assert base.get_encoder(modality="audio") is base.audio_tower
    assert config.audio_config.max_position_embeddings == 1500
    assert config.get_text_config().vocab_size == model.llm.model.config.vocab_size
    text = f"a {processor.audio_token} b {processor.audio_token}"
    batch = clips(2)
    inputs = processor(text=text, audio=batch, return_text_replacement_offsets=True)
    features = {name: value for name, value in inputs.items() if name.startswith("input_values")}
    tokens = base.get_audio_features(features.pop("input_values"), return_dict=True, **features).pooler_output
    expected = [spoken(model, clip) for clip in batch]
    assert (inputs["input_ids"] == processor.audio_token_id).sum() == sum(map(len, expected))
    if "text_replacement_offsets" in inputs:  # since transformers 5.15
        [replaced] = inputs["text_replacement_offsets"]
        assert [entry["replacement"].count(processor.audio_token) for entry in replaced] == list(map(len, expected))
    torch.testing.assert_close(tokens, torch.cat(expected), atol=1e-4, rtol=1e-3)


def test_logits_and_loss_are_those_of_the_original(speaker, tmp_path):
    model = speaker("hubert", "llama", QFORMER)
    exported, processor = load(export(model, tmp_path / "out"))
    prompts = turn(clips(1)[0])
    inputs = processor.apply_chat_template(prompts, tokenize=True, add_generation_prompt=True, return_dict=True)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.audio_token_id, -100)
    with torch.no_grad():
        out = exported(**inputs, labels=labels)
        expected = model.llm.model(inputs_embeds=heard(model, clips(1)).values).logits
    torch.testing.assert_close(out.logits, expected, atol=1e-3, rtol=1e-3)
    loss = torch.nn.functional.cross_entropy(expected[0, :-1], labels[0, 1:])
    torch.testing.assert_close(out.loss, loss, atol=1e-3, rtol=1e-3)


def test_a_prompt_with_other_audio_is_refused(speaker, tmp_path):
    model = speaker("hubert", "llama", QFORMER)
    exported, processor = load(export(model, tmp_path / "out"))
    first, second = (processor(text=processor.audio_token, audio=clip) for clip in (clips(1)[0], np.zeros(40_000, "f")))
    with pytest.raises(ValueError, match="placeholders for"):
        exported(**{**second, "input_ids": first["input_ids"], "attention_mask": first["attention_mask"]})
    with pytest.raises(ValueError, match="at least 400 samples"):
        processor(text=processor.audio_token, audio=np.zeros(399, "f"))


def test_decoding_stops_where_the_original_stops(speaker, tmp_path):
    model = speaker("hubert", "llama", QFORMER)
    written = json.loads((export(model, tmp_path / "out") / "generation_config.json").read_text())
    assert written["eos_token_id"] == model.llm.stop_ids and written["do_sample"] is False


def test_an_export_loads_without_ossicle(speaker, tmp_path, code_folder):
    model = speaker("hubert", "llama", CTC)
    folder = export(model, tmp_path / "out")
    program = (
        "import sys; sys.modules['ossicle'] = None; import numpy as np\n"
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\n"
        f"model = AutoModelForMultimodalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "inputs = processor(text='a <|audio|> b', audio=np.ones(9000, 'f'))\n"
        "print('shape', *model.generate(**inputs, max_new_tokens=3).shape)"
    )
    environment = {
        "HF_MODULES_CACHE": code_folder,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": ":".join(filter(None, sys.path)),
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert "shape 1 " in done.stdout, done.stderr
