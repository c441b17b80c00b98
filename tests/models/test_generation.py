import warnings

import numpy as np
import pytest
import torch

from ossicle.batch import Padded
from ossicle.errors import ConfigError
from ossicle.models.generation import SETTINGS, settings_of
from ossicle.models.llm import load_llm
from ossicle.models.prefix import merges
from ossicle.models.running import RunningBatch
from ossicle.testing import LLMS


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random models cut their answers
        yield


def prompt(model, length=7):
    values = torch.randn(1, length, model.llm.dim, generator=torch.Generator().manual_seed(length))
    return Padded(values, torch.ones(1, length, dtype=torch.bool))


def test_greedy_is_greedy_whatever_the_model_says(model):
    """Settings in the model's generation_config.json, such as a penalty for repetition, do not change an answer."""
    plain = model.llm.generate(prompt(model), max_new_tokens=20)
    own = model.llm.model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.num_beams, own.top_k = 5.0, True, 3.0, 4, 2
    try:
        assert model.llm.generate(prompt(model), max_new_tokens=20) == plain
        assert "".join(RunningBatch(model.llm, 1).stream(prompt(model), max_new_tokens=20)) == plain[0]
        assert model.llm.model.generation_config is own
        penalised = model.llm.generate(prompt(model), max_new_tokens=20, repetition_penalty=5.0)
    finally:
        own.repetition_penalty, own.do_sample, own.temperature, own.num_beams, own.top_k = None, None, None, None, None
    assert penalised != plain


def test_settings_have_the_names_and_meanings_of_transformers(model):
    settings = settings_of(model.llm)
    assert (settings.max_new_tokens, settings.do_sample, settings.num_beams) == (200, False, None)
    assert settings_of(model.llm, temperature=0.0).do_sample is False
    sampled = settings_of(model.llm, temperature=0.7, top_p=0.9)
    assert (sampled.do_sample, sampled.temperature, sampled.top_p, sampled.top_k) == (True, 0.7, 0.9, 0)
    assert settings_of(model.llm, do_sample=True).temperature == 1.0
    assert settings_of(model.llm, do_sample=True, top_k=5).top_k == 5
    assert settings_of(model.llm, top_k=5).do_sample is False
    assert settings_of(model.llm, num_beams=3, length_penalty=0.5).length_penalty == 0.5
    fields = settings.to_dict()
    assert not [name for name in SETTINGS if name not in fields and not hasattr(settings, name)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tempurature": 1}, "tempurature is not a setting of generation; did you mean temperature?"),
        ({"num_return_sequences": 3}, "num_return_sequences is not a setting"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: give a whole number from 1 on"),
        ({"max_new_tokens": True}, "give a number"),
        ({"max_new_tokens": "5"}, "give a number"),
        ({"num_beams": 1.5}, "num_beams=1.5: give a whole number"),
        ({"num_beams": float("nan")}, "num_beams=nan"),
        ({"temperature": -0.1}, "temperature=-0.1: give a number from 0 on"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_p": 0.0}, "top_p=0.0: give a number above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty=0: give a number above 0"),
        ({"do_sample": "yes"}, "do_sample='yes': give True or False"),
        ({"do_sample": True, "temperature": 0}, "do_sample=True with temperature=0"),
    ],
)
def test_wrong_settings_are_named(model, given, message):
    with pytest.raises(ConfigError) as caught:
        settings_of(model.llm, **given)
    assert message in str(caught.value)


def test_pieces_of_a_stream_make_up_the_answer(model):
    for length in (3, 9):
        whole = model.llm.generate(prompt(model, length), max_new_tokens=30)[0]
        pieces = list(RunningBatch(model.llm, 1).stream(prompt(model, length), max_new_tokens=30))
        assert "".join(pieces) == whole
        assert len(pieces) > 1
    with pytest.raises(ConfigError, match="num_beams=2: beams are not decoded in a running batch"):
        RunningBatch(model.llm, 1).stream(prompt(model), num_beams=2)


def test_sampling_by_the_seed_of_torch(model):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.llm.generate(prompt(model), max_new_tokens=20, temperature=1.5)[0])
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_streams_one_recording(model):
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    whole = model.generate(sound, "who?", max_new_tokens=12)
    assert "".join(model.generate(sound, "who?", max_new_tokens=12, stream=True)) == whole[0]
    with pytest.raises(ConfigError, match="stream=True with 2 recordings: give one"):
        model.generate([sound, sound], "who?", stream=True)
    assert list(model.generate([], "who?", stream=True)) == []


def test_the_head_gets_no_view_of_the_hidden_states(model):
    """PyTorch multiplies a view of a batch by one copy of the weights for each row, which takes gigabytes."""
    seen = []
    head = model.llm.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].is_contiguous()))
    values = torch.randn(3, 7, model.llm.dim)
    try:
        model.llm.generate(Padded(values, torch.ones(3, 7, dtype=torch.bool)), max_new_tokens=2)
    finally:
        hook.remove()
    assert len(seen) >= 1
    assert all(seen)


@pytest.mark.parametrize("family", LLMS)
def test_a_beam_search_reads_each_prompt_once(folders, family):
    """The texts are those of transformers, which reads a prompt once per beam. The second prompt has padding."""
    llm = load_llm(str(folders[family]))
    values = llm.embed(torch.arange(40, 60).reshape(2, 10))
    mask = torch.arange(10) >= torch.tensor([[0], [4]])
    read = []
    llm.model.base_model.layers[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[:2]))
    found = llm.generate(Padded(values, mask), num_beams=3, per_prompt=2, max_new_tokens=5)
    expected = llm.model.generate(
        inputs_embeds=values,
        attention_mask=mask.long(),
        generation_config=settings_of(llm, num_beams=3, max_new_tokens=5),
        num_return_sequences=2,
    )
    texts = llm.tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert found == [text.split("\n")[0].strip() for text in texts]
    assert (read[0] == (2, 9)) == merges(llm)
    assert ((6, 10) in read[: len(read) // 2]) != merges(llm)
