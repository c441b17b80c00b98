"""Match speech tokens with words, and measure the similarity of speech and text by layer."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ossicle.batch import Padded, pad, pad_ids
from ossicle.errors import DataError
from ossicle.models.projectors import CTCConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.serve.analysis import MAPS, MOST_S, MOST_TEXT_TOKENS, OTHER_TEXTS, analyse

TEXT = "red dog sees nine birds"
RATE_HZ = 16_000
SIZES = CTCConfig(width=16, heads=2, layers=2, ffn=24, kernel=3, dropout=0.0, prompt=3)


@pytest.fixture
def waveform():
    return (0.1 * np.random.default_rng(0).standard_normal(int(1.05 * RATE_HZ))).astype(np.float32)


@pytest.fixture
def speller(folders) -> SpeechLLM:
    torch.manual_seed(0)
    return ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=SIZES).build().eval()


def frames_of(model, waveform):
    with torch.no_grad():
        return model.encoder(pad([torch.from_numpy(waveform)]))


def states(model, embeds):
    """The states of one sequence at every layer, without padding."""
    with torch.no_grad():
        hidden = model.llm.hidden_states(embeds, range(model.llm.num_layers + 1))
    return [hidden.states[layer][0, hidden.mask[0]] for layer in range(model.llm.num_layers + 1)]


def of_text(model, text):
    ids = pad_ids([model.prompter().content_ids(text)])
    return states(model, Padded(model.llm.embed(ids.values), ids.mask))


def test_all_queries_of_a_window_have_its_times(model, waveform):
    found = analyse(model, waveform, TEXT)

    times = [(token["start_s"], token["end_s"]) for token in found["speech_tokens"]]
    windows = [(round(0.1 * i, 3), round(0.1 * (i + 1), 3)) for i in range(len(times) // 2)]
    windows[-1] = (windows[-1][0], found["duration_s"])
    assert times == [window for window in windows for _ in range(2)]
    assert found["duration_s"] == 1.05
    assert found["prompt_tokens"] == 0
    assert {token["heard"] for token in found["speech_tokens"]} == {None}
    json.dumps(found, allow_nan=False)


def test_free_queries_are_left_out(build, waveform):
    model = build(free_queries=1)

    found = analyse(model, waveform, TEXT)

    times = [(token["start_s"], token["end_s"]) for token in found["speech_tokens"]]
    assert times[:4] == [(0.0, 0.1)] * 2 + [(0.1, 0.2)] * 2
    assert times[-2:] == [(1.0, 1.05)] * 2 and len(times) == 22
    frames = frames_of(model, waveform)
    with torch.no_grad():
        speech = model.projector(frames.values, frames.mask)[0][0, :22]
    expected = F.cosine_similarity(speech.mean(0), of_text(model, TEXT)[0].mean(0), dim=0)
    assert found["layers"][0]["matched"] == pytest.approx(float(expected), abs=2e-3)


def test_similarities_are_cosines_of_means_and_of_nearest_tokens(model, waveform):
    found = analyse(model, waveform, TEXT)

    frames = frames_of(model, waveform)
    with torch.no_grad():
        speech = states(model, Padded(*model.projector(frames.values, frames.mask)))
    text, others = of_text(model, TEXT), [of_text(model, other) for other in OTHER_TEXTS]

    def mean(side, layer):
        return F.cosine_similarity(side[layer].mean(0), speech[layer].mean(0), dim=0).item()

    def nearest(side, layer):
        return F.cosine_similarity(side[layer][:, None], speech[layer][None], dim=-1).amax(1).mean().item()

    assert [row["layer"] for row in found["layers"]] == list(range(model.llm.num_layers + 1))
    for layer, row in enumerate(found["layers"]):
        assert row["matched"] == pytest.approx(mean(text, layer), abs=1e-4)
        assert row["token_matched"] == pytest.approx(nearest(text, layer), abs=1e-4)
        assert row["other"] == pytest.approx(np.mean([mean(other, layer) for other in others]), abs=1e-4)
        assert row["token_other"] == pytest.approx(np.mean([nearest(other, layer) for other in others]), abs=1e-4)
    margins = [row["token_matched"] - row["token_other"] for row in found["layers"]]
    assert found["map_layer"] == int(np.argmax(margins))


def test_speech_that_is_the_text_is_mapped_word_by_word(model, waveform, monkeypatch):
    monkeypatch.setattr(SpeechLLM, "speech", lambda self, batch: self.text(batch))

    found = analyse(model, waveform, TEXT)

    lengths = [len(ids) for ids in model.prompter().word_ids(TEXT.split())]
    expected = [word for word, length in enumerate(lengths) for _ in range(length)]
    assert [token["word"] for token in found["speech_tokens"]] == expected
    assert min(token["share"] for token in found["speech_tokens"]) > 0.5
    assert all(row["matched"] == pytest.approx(1) == row["token_matched"] for row in found["layers"])
    assert found["words"] == TEXT.split()


def test_the_shares_of_a_speech_token_sum_to_one_in_every_map(model, waveform):
    found = analyse(model, waveform, TEXT)

    layers = [each["layer"] for each in found["maps"]]
    assert layers == sorted(set(layers))
    assert {0, model.llm.num_layers, found["map_layer"]} <= set(layers)
    assert len(layers) <= MAPS + 1
    for each in found["maps"]:
        shares = np.array(each["shares"])
        assert shares.shape == (len(TEXT.split()), len(found["speech_tokens"]))
        assert shares.sum(0) == pytest.approx(1, abs=0.01)
    best = np.array(next(each["shares"] for each in found["maps"] if each["layer"] == found["map_layer"]))
    assert [token["share"] for token in found["speech_tokens"]] == pytest.approx(best.max(0).tolist(), abs=1e-3)


def test_a_projector_that_spells_has_times_and_texts_and_its_prompt_is_left_out(speller, waveform):
    found = analyse(speller, waveform, TEXT)

    frames = frames_of(speller, waveform)
    projector = speller.projector
    with torch.no_grad():
        spelling = projector.spell(frames.values, frames.mask)
        _, mask = projector.mix(spelling)
        speech = states(speller, Padded(*projector(frames.values, frames.mask)))
    best = spelling.tokens[0].argmax(-1).tolist()
    position_s = projector.stack / speller.encoder.frame_rate_hz
    tokens = found["speech_tokens"]
    assert found["prompt_tokens"] == 3
    assert len(tokens) == int(mask.sum()) > 1
    for token in tokens:
        first = round(token["start_s"] / position_s)
        last = round(token["end_s"] / position_s) - 1
        if last < len(best) - 1:  # the last position can end after the recording
            assert len(set(best[first : last + 1])) == 1
            assert token["heard"] == projector.spoken.text([best[first] - 1])
    text = of_text(speller, TEXT)
    for layer, row in enumerate(found["layers"]):
        cosine = F.cosine_similarity(text[layer].mean(0), speech[layer][3:].mean(0), dim=0).item()
        assert row["matched"] == pytest.approx(cosine, abs=1e-4)


def test_a_recording_without_a_spelled_token_has_one(speller, waveform):
    with torch.no_grad():
        speller.projector.tokens.bias[0] = 100.0

    found = analyse(speller, waveform, TEXT)

    (token,) = found["speech_tokens"]
    assert token["heard"] == ""
    assert 0 <= token["start_s"] < token["end_s"] <= found["duration_s"]


def test_tokens_take_the_place_of_words_in_a_script_without_spaces(model, waveform):
    text = "我喜欢红色"

    found = analyse(model, waveform, text)

    assert len(found["words"]) == len(model.prompter().content_ids(text)) > 1


@pytest.mark.parametrize(
    ("seconds", "text", "message"),
    [
        (1.0, "  ", "0 tokens"),
        (1.0, "red " * (MOST_TEXT_TOKENS + 1), f"between 1 and {MOST_TEXT_TOKENS}"),
        (0.0, TEXT, r"0\.0 s"),
        (MOST_S + 0.5, TEXT, "at most 30 s"),
    ],
)
def test_what_is_empty_or_too_long_is_refused(model, seconds, text, message):
    with pytest.raises(DataError, match=message):
        analyse(model, np.zeros(int(seconds * RATE_HZ), np.float32), text)
