import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from ossicle.audio import read_audio
from ossicle.batch import Batch, Padded, Sample, Utterance
from ossicle.data.collate import Collator
from ossicle.data.manifest import read_manifest
from ossicle.errors import CheckpointError
from ossicle.models.llm import LLM
from ossicle.models.packing import join
from ossicle.models.saving import CONFIG_FILE, WEIGHTS_FILE, read_record
from ossicle.models.speech_llm import IGNORE, SpeechLLM
from ossicle.testing import tiny_encoder, tiny_llm

TEMPLATES = {
    "llama3": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        " repeat<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "chatml": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_end|>", "<|im_start|>"],
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        " repeat<|im_end|>\n<|im_start|>assistant\n",
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
        ["</s>", "[INST]", "[/INST]"],
        "<s>[INST] ",
        " repeat[/INST] ",
    ),
}
ANSWERS = ["red dog sees a cat", "fünf Vögel"]


def sequence(*rows: list[float]) -> Padded:
    """Return rows of vectors of width 1, padded on the right with a value that must not be read."""
    longest = max(len(row) for row in rows)
    values = torch.tensor([[*row, *[-9.0] * (longest - len(row))] for row in rows])[..., None]
    return Padded(values, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None])


def valid(joined: Padded) -> list[list[float]]:
    return [values[mask].flatten().tolist() for values, mask in zip(joined.values, joined.mask, strict=True)]


def test_join_by_hand():
    parts = [sequence([1, 2], [3]), sequence([4], [5, 6, 7]), sequence([], [8])]
    right, order = join(parts)
    assert valid(right) == [[1, 2, 4], [3, 5, 6, 7, 8]]
    assert right.mask.tolist() == [[True, True, True, False, False], [True] * 5]
    assert order[0, :3].tolist() == [0, 1, 2]
    assert order[1].tolist() == [0, 2, 3, 4, 5]
    left, _ = join(parts, pad="left")
    assert valid(left) == [[1, 2, 4], [3, 5, 6, 7, 8]]
    assert left.mask.tolist() == [[False, False, True, True, True], [True] * 5]


def test_join_keeps_the_gradient():
    speech = sequence([1, 2], [3])
    speech.values.requires_grad_()
    joined, _ = join([sequence([5], [6, 7]), speech])
    joined.values[joined.mask].sum().backward()
    assert speech.values.grad.flatten().tolist() == [1, 1, 1, 0]


def templated(folders, name: str) -> LLM:
    """Return the tiny llama with the chat template and the special tokens of a known model."""
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    if name in TEMPLATES:
        tokenizer.chat_template, special, *_ = TEMPLATES[name]
        tokenizer.add_special_tokens({"eos_token": special[0], "additional_special_tokens": special[1:]})
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    model.resize_token_embeddings(len(tokenizer))
    return LLM(model, tokenizer, name=name)


@pytest.mark.parametrize("name", ["tiny", *TEMPLATES])
def test_exactly_the_answer_and_its_end_of_turn_are_labels(model, folders, name):
    model.llm = templated(folders, name)
    tokenizer = model.llm.tokenizer
    utterances = [
        Utterance(Sample(id=answer, audio=".", instruction="repeat", answers=(answer,)), waveform=torch.randn(n))
        for answer, n in zip(ANSWERS, (9000, 4000), strict=True)
    ]
    batch = Collator(model.prompter())(utterances)
    speech = model.speech(batch)
    embeds, labels = model.chat_inputs(batch.chat, speech)
    assert labels.shape == embeds.mask.shape == embeds.values.shape[:2]

    end = TEMPLATES[name][1][0] if name in TEMPLATES else "<|end|>"
    before, after = TEMPLATES[name][2:] if name in TEMPLATES else ("<s><|user|>", " repeat<|end|><|assistant|>")
    for row, answer in enumerate(ANSWERS):
        labelled = labels[row] != IGNORE
        print(f"{name}: {before!r} <speech> {after!r} | labelled: {tokenizer.decode(labels[row][labelled])!r}")
        assert tokenizer.decode(labels[row][labelled]) == answer + end
        # the labels stand at the very end of the turn, where the embeddings are their own
        first = int(embeds.mask[row].sum() - labelled.sum())
        assert labelled.nonzero().flatten().tolist() == list(range(first, int(embeds.mask[row].sum())))
        assert torch.equal(embeds.values[row][labelled], model.llm.embed(labels[row][labelled]))
        expected = [
            model.llm.embed(torch.tensor(tokenizer(before, add_special_tokens=False).input_ids)),
            speech.values[row][speech.mask[row]],
            model.llm.embed(torch.tensor(tokenizer(after, add_special_tokens=False).input_ids)),
        ]
        torch.testing.assert_close(embeds.values[row, :first], torch.cat(expected))


def test_the_prompt_is_the_turn_without_its_answer_padded_on_the_left(model, task_manifest, collate):
    batch = collate(model, task_manifest)
    speech = model.speech(batch)
    prompt = model.prompt(batch.chat, speech)
    embeds, labels = model.chat_inputs(batch.chat, speech)
    for row in range(len(batch)):
        length = int(prompt.mask[row].sum())
        assert prompt.mask[row, -length:].all()
        assert torch.equal(prompt.values[row, -length:], embeds.values[row, :length])
        assert labels[row, length] != IGNORE


def test_speech_comes_from_waveforms_frames_or_an_earlier_objective(model, manifest, collate):
    batch = collate(model, manifest)
    speech = model.speech(batch)
    assert speech.values.shape[::2] == (4, 32)
    frames = Batch(samples=batch.samples, frames=model.encoder(batch.waveforms))
    torch.testing.assert_close(model.speech(frames).values, speech.values)
    assert model.speech(Batch(samples=batch.samples, speech=speech)) is speech
    with pytest.raises(ValueError, match="neither waveforms nor frames"):
        model.speech(Batch(samples=batch.samples))


def test_missing_transcripts_are_named(model):
    sample = Sample(id="u", audio=".", source="m.jsonl:3")
    with pytest.raises(ValueError, match=r"add 'text' to m\.jsonl:3"):
        model.text(Batch(samples=[sample]))


def test_frozen_parts_stay_in_evaluation_mode(model):
    model.train()
    assert model.projector.training
    assert not any(module.training for part in (model.encoder, model.llm) for module in part.modules())
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"projector"}
    model.eval()
    assert not model.projector.training


def test_gradient_checkpointing_is_on_while_training(model, manifest, collate):
    model.llm.checkpoint_gradients()
    model.train()
    calls = []
    model.llm.model.base_model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    speech = model.speech(collate(model, manifest))
    model.llm.hidden_states(speech, [3]).states[3].sum().backward()
    assert len(calls) == 2


def test_save_writes_the_projector_only(model, tmp_path):
    model.instructions = {"asr": "repeat"}
    model.save(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {WEIGHTS_FILE, CONFIG_FILE}
    with safe_open(tmp_path / "saved" / WEIGHTS_FILE, "pt") as file:
        assert set(file.keys()) == set(model.projector.state_dict())
    weights = 4 * sum(parameter.numel() for parameter in model.projector.parameters())
    assert (tmp_path / "saved" / WEIGHTS_FILE).stat().st_size < weights + 8192
    record = read_record(tmp_path / "saved")
    assert record["model"]["encoder"] == model.encoder.name
    assert record["fingerprints"] == {"encoder": model.encoder.fingerprint, "llm": model.llm.fingerprint}


@pytest.mark.parametrize("encoder", ["hubert", "whisper"])
def test_a_saved_model_comes_back_identical(build, encoder, manifest, collate, tmp_path):
    model = build(encoder, "qwen2", window_positions=True)
    model.instructions = {"asr": "repeat"}
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save(tmp_path)
    loaded = SpeechLLM.from_pretrained(tmp_path)
    assert not loaded.projector.training
    assert loaded.config == model.config
    assert loaded.instructions == {"asr": "repeat"}
    batch = collate(model, manifest)
    assert torch.equal(loaded.speech(batch).values, model.speech(batch).values)
    assert loaded.generate_batch(batch, max_new_tokens=8) == model.generate_batch(batch, max_new_tokens=8)


def test_moved_base_models_are_found_where_they_are_said_to_be(model, folders, tmp_path):
    model.save(tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / CONFIG_FILE).read_text())
    record["model"] |= {"encoder": "gone/encoder", "llm": "gone/llm"}
    (tmp_path / "saved" / CONFIG_FILE).write_text(json.dumps(record))
    loaded = SpeechLLM.from_pretrained(tmp_path / "saved", encoder=str(folders["hubert"]), llm=str(folders["llama"]))
    assert loaded.encoder.fingerprint == model.encoder.fingerprint


def test_a_mismatched_base_is_refused(model, tmp_path):
    model.save(tmp_path / "saved")
    other_llm, other_encoder = tiny_llm(tmp_path / "llm", layers=3, seed=7), tiny_encoder(tmp_path / "encoder", seed=7)
    message = r"saved was trained with the llm '.*llama' \(fingerprint \w+\), but '.*llm' has fingerprint \w+: give"
    with pytest.raises(ValueError, match=message):
        SpeechLLM.from_pretrained(tmp_path / "saved", llm=str(other_llm))
    with pytest.raises(ValueError, match="was trained with the encoder"):
        SpeechLLM.from_pretrained(tmp_path / "saved", encoder=str(other_encoder))


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a checkpoint of Ossicle: it has no ossicle\.json"):
        SpeechLLM.from_pretrained(tmp_path)


def test_generate_takes_files_and_waveforms(model, manifest, tmp_path):
    files = [sample.audio for sample in read_manifest(manifest)[:3]]
    with torch.no_grad():
        model.projector.out.weight.mul_(
            30
        )  # at the start all speech is near the mean token: a random LLM hears no difference
    answers = model.generate(files, "repeat", max_new_tokens=10)
    assert len(answers) == 3
    assert len(set(answers)) > 1
    assert model.generate(str(files[1]), "repeat", max_new_tokens=10) == [answers[1]]
    waveform = read_audio(files[2])
    assert model.generate(waveform, "repeat", max_new_tokens=10) == [answers[2]]
    assert model.generate(torch.from_numpy(waveform), "repeat", max_new_tokens=10) == [answers[2]]
    stereo = tmp_path / "stereo.flac"
    soundfile.write(stereo, np.stack([waveform, waveform], 1), 16_000, subtype="PCM_24")
    assert model.generate(stereo, "repeat", max_new_tokens=10) == [answers[2]]


def test_generate_takes_one_instruction_for_each(model, manifest):
    file = read_manifest(manifest)[0].audio
    asked = ["repeat", "what is the first word of all the words you hear"]
    answers = model.generate([file, file], asked, max_new_tokens=10)
    assert answers == [model.generate(file, one, max_new_tokens=10)[0] for one in asked]
    assert answers[0] != answers[1]
    with pytest.raises(ValueError, match="2 recordings and 1 instructions"):
        model.generate([file, file], ["repeat"], max_new_tokens=2)


def test_generate_does_not_see_the_reference(model, task_manifest, collate):
    batch = collate(model, task_manifest)
    answers = model.generate_batch(batch, max_new_tokens=8)
    for sample, answer in zip(batch.samples, answers, strict=True):
        assert model.generate(sample.audio, sample.instruction, max_new_tokens=8) == [answer]


def test_the_upper_bound_reads_the_transcript_as_a_plain_chat(model, task_manifest, collate):
    batch = collate(model, task_manifest)
    answers = model.generate_batch(batch, from_text=True, max_new_tokens=8)
    assert answers != model.generate_batch(batch, max_new_tokens=8)
    for sample, answer in zip(batch.samples, answers, strict=True):
        message = {"role": "user", "content": f"{sample.text} {sample.instruction}"}
        ids = model.llm.tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        chat = Padded(model.llm.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        assert model.llm.generate(chat, max_new_tokens=8) == [answer]


def test_generation_needs_chat_turns(model, manifest, collate):
    batch = collate(model, manifest)
    with pytest.raises(ValueError, match="no chat turns"):
        model.generate_batch(Batch(samples=batch.samples, waveforms=batch.waveforms))


def test_an_encoder_in_half_precision_feeds_the_projector_in_float32(model, collate, manifest):
    """Without mixed precision, `ossicle evaluate` failed for ``encoder_dtype: bfloat16``."""
    batch = collate(model, manifest)
    exact = model.speech(batch).values
    model.encoder.model.bfloat16()
    speech = model.speech(batch).values
    assert speech.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(speech.flatten(), exact.flatten(), dim=0) > 0.95
