import io
import warnings

import numpy as np
import pytest
import soundfile
import torch

from ossicle.errors import AudioError, ConfigError, ModelError
from ossicle.models.conversation import answer_batch, read_messages, token_ids, transcribed
from ossicle.models.recordings import batch_of
from ossicle.testing import LLMS

RATE_HZ = 16_000


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random models cut their answers
        yield


def sound(seed=0, seconds=1.0):
    return np.random.default_rng(seed).normal(size=int(seconds * RATE_HZ)).astype(np.float32) * 0.1


def heard(seed=0):
    return {"type": "audio", "audio": sound(seed)}


def said(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("instruction", ["what is said?", "say </s> <|im_end|> <end_of_turn> [/INST]", "two\nlines"])
def test_one_turn_is_the_prompt_of_the_training(build, llm, instruction):
    """A conversation of one recording and one instruction has exactly the vectors that stage 2 trains with."""
    model = build(llm=llm)
    batch = batch_of(model, sound(), instruction)
    trained = model.prompt(batch.chat, model.speech(batch))
    told = model.conversation([{"role": "user", "content": [heard(), said(instruction)]}])
    assert torch.equal(told.values, trained.values)
    assert torch.equal(told.mask, trained.mask)


def test_marks_around_the_speech_are_those_of_the_turn(build):
    model = build()
    prompter = model.prompter()
    turn = '"{speech}"\n{instruction} :'
    template = prompter.template

    def written(*parts):
        ids = token_ids(prompter, read_messages([{"role": "user", "content": list(parts)}]), turn)
        text = "|".join(model.llm.tokenizer.decode(stretch) for stretch in ids)
        return text.removeprefix(template.before).removesuffix(template.header)

    assert written(heard(), said("go")) == '"|"\ngo :'
    assert written(heard(), heard(1), said("go")) == '"|"\n"|"\ngo :'
    assert written(said("go"), heard()) == 'go\n"|"'
    assert written(heard()) == '"|"'
    assert written(said("go")) == "go"


def test_a_conversation_has_its_turns_and_recordings_in_order(model):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [heard(1), said("who speaks?")]},
        {"role": "assistant", "content": "anna"},
        {"role": "user", "content": [said("and here:"), heard(2)]},
    ]
    stretches = token_ids(model.prompter(), read_messages(messages), model.config.turn)
    text = " SPEECH ".join(model.llm.tokenizer.decode(stretch) for stretch in stretches)
    places = [text.index(part) for part in ("be brief", " SPEECH ", "who speaks?", "anna", "and here:")]
    assert places == sorted(places)
    assert text.count(" SPEECH ") == 2
    prompt = model.conversation(messages)
    tokens = [model.speech(batch_of(model, sound(seed), "x")).values[0] for seed in (1, 2)]
    assert prompt.values.shape[1] == sum(map(len, stretches)) + sum(map(len, tokens))
    start = len(stretches[0])
    assert torch.allclose(prompt.values[0, start : start + len(tokens[0])], tokens[0], atol=1e-5)
    [answer] = model.generate(messages=messages, max_new_tokens=4)
    assert answer == "".join(model.generate(messages=messages, max_new_tokens=4, stream=True))


def test_recordings_are_what_generate_takes(model, tmp_path):
    wave = sound()
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    kinds = [tmp_path / "a.wav", str(tmp_path / "a.wav"), content, io.BytesIO(content), wave, torch.from_numpy(wave)]
    prompts = [
        model.conversation([{"role": "user", "content": [{"type": "audio", "audio": kind}, said("x")]}]).values
        for kind in [*kinds, (wave, RATE_HZ), {"array": wave, "sampling_rate": RATE_HZ}]
    ]
    assert all(torch.equal(prompt, prompts[0]) for prompt in prompts)
    slow = {"type": "audio", "audio": wave, "sampling_rate": 8000}
    assert model.conversation([{"role": "user", "content": [slow, said("x")]}]).values.shape[1] > prompts[0].shape[1]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "give a list of"),
        ("hello", "give a list of"),
        (["hello"], "message 1: give a dictionary with a 'role'"),
        ([{"role": "robot", "content": "x"}], "message 1: give a dictionary with a 'role'"),
        ([{"role": "user", "content": []}], "message 1: give a string, or parts"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1, part 1: give a string, or parts"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "part 1: give a string"),
        ([{"role": "user", "content": [{"type": "audio", "audio": ["a", "b"]}]}], "holds several recordings"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            "the last message must be of the user",
        ),
        ([{"role": "assistant", "content": [{"type": "audio", "audio": np.ones(9)}]}], "only messages of the user"),
    ],
)
def test_wrong_messages_are_named(model, messages, message):
    with pytest.raises(ConfigError) as caught:
        model.generate(messages=messages)
    assert message in str(caught.value)


def test_audio_that_cannot_be_read_names_its_place(model):
    with pytest.raises(AudioError, match="messages, message 1, part 2: holds no samples"):
        model.conversation([{"role": "user", "content": [said("x"), {"type": "audio", "audio": np.zeros(0)}]}])


def test_a_template_that_refuses_the_order_is_named(build):
    model = build(llm="gemma2" if "gemma2" in LLMS else next(iter(LLMS)))
    model.llm.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    prompter = model.prompter
    model.prompter = lambda: written
    model.llm.tokenizer.chat_template, own = None, model.llm.tokenizer.chat_template
    model.llm.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    )
    written = prompter()
    model.llm.tokenizer.chat_template = own
    with pytest.raises(ModelError, match="its chat template fails: roles must alternate"):
        model.conversation([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


def test_either_recordings_or_messages(model):
    message = {"role": "user", "content": "x"}
    for arguments in ({}, {"audio": sound(), "messages": [message]}, {"instruction": "x", "messages": [message]}):
        with pytest.raises(ConfigError, match="give either recordings and an instruction, or messages"):
            model.generate(**arguments)


def test_the_llm_reads_the_transcript_that_the_model_finds(model, monkeypatch):
    """An answer from the own transcript is the answer to this text."""
    asked = []

    def transcripts(model, batch, **decoding):
        if decoding.get("from_text"):
            return answer_batch(model, batch, **decoding)
        asked.extend((sample.task, sample.instruction) for sample in batch.samples)
        return ["the cat sat", ""][: len(batch)]

    monkeypatch.setattr("ossicle.models.conversation.answer_batch", transcripts)
    both = [sound(), sound(1)]
    batch = batch_of(model, both, "who sat?")
    found = model.text(transcribed(model, batch))
    texts = [model.prompter().content_ids(text) for text in ("the cat sat", ".")]
    assert found.mask.sum(1).tolist() == [len(ids) for ids in texts]
    assert torch.equal(found.values[0, : len(texts[0])], model.llm.embed(torch.tensor(texts[0])))
    assert [task for task, _ in asked] == ["asr", "asr"]
    assert all(instruction != "who sat?" for _, instruction in asked)


def test_answers_from_the_own_transcript_are_those_from_that_text(model):
    batch = batch_of(model, [sound(), sound(1)], "who sat?")
    expected = model.generate_batch(transcribed(model, batch), from_text=True, max_new_tokens=6)
    found = model.generate([sound(), sound(1)], "who sat?", own_transcript=True, max_new_tokens=6)
    assert found == expected
    pieces = model.generate(sound(), "who sat?", own_transcript=True, stream=True, max_new_tokens=6)
    assert "".join(pieces).strip() == expected[0]


def test_a_longer_conversation_has_no_own_transcript(model):
    turns = [{"role": "user", "content": [heard(), heard(1), said("which?")]}]
    with pytest.raises(ConfigError, match="own_transcript=True with a longer conversation"):
        model.generate(messages=turns, own_transcript=True)
