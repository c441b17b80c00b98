"""Speech that is simulated from transcripts: its posteriors, its vectors, and what it trains."""

import json
from dataclasses import replace
from itertools import groupby

import pytest
import soundfile as sounds
import torch

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch
from ossicle.models.ctc import CTCConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.objectives import CTC, MixedNextToken, NextToken, Sum, Term, names_of
from ossicle.objectives.simulated import PartlySimulated, SimulatedSpeech, simulated
from ossicle.train.loop import train
from ossicle.train.recipe import parse, to_dict
from ossicle.train.tracking import read_metrics

SIZES = {"name": "ctc", "width": 16, "heads": 2, "layers": 2, "ffn": 24, "kernel": 3, "dropout": 0.0, "prompt": 3}
CLEAN = {"substitutions": 0.0, "deletions": 0.0, "insertions": 0.0}
BOTH = Sum(terms=[Term(objective=CTC(), weight=0.3), Term(objective=NextToken())])


@pytest.fixture
def model(folders) -> SpeechLLM:
    torch.manual_seed(0)
    settings = {name: value for name, value in SIZES.items() if name != "name"}
    config = ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=CTCConfig(**settings))
    return config.build().train()


@pytest.fixture
def batch(model, task_manifest, collate) -> Batch:
    return collate(model, task_manifest, range(6))


def spelled(row) -> list[int]:
    """Return the labels of most probable classes (P, V) without repeats and then without blanks."""
    return [label for label, _ in groupby(row.argmax(-1).tolist()) if label != 0]


def test_a_posterior_without_errors_spells_its_labels():
    labels = [[4, 4, 4, 2, 9, 9], [1], [], [7] * 50]
    drawn = SimulatedSpeech(**CLEAN, smoothing=0.49, repeats=4).posterior(labels, 12)
    assert drawn.values.shape[-1] == 12
    torch.testing.assert_close(drawn.values.exp().sum(-1), torch.ones(drawn.mask.shape))
    assert [spelled(row[mask]) for row, mask in zip(drawn.values, drawn.mask, strict=True)] == labels
    assert drawn.mask.sum(1)[2] == 1
    lengths = {len(list(run)) for label, run in groupby(drawn.values[3].argmax(-1).tolist()) if label == 7}
    assert lengths == {1, 2, 3, 4}


def test_smoothing_moves_up_to_its_share_to_one_other_token():
    drawn = SimulatedSpeech(**CLEAN, smoothing=0.3).posterior([[3] * 2000], 50).values[0].exp()
    first, second, rest = drawn.topk(3).values.unbind(1)
    assert rest.max() < 1e-5
    assert 0.695 < first.min() < 0.71 and second.max() == pytest.approx(0.3, abs=0.01)
    assert second.mean() == pytest.approx(0.15, abs=0.01)
    exact = SimulatedSpeech(**CLEAN, smoothing=0.0).posterior([[3, 3]], 50).values[0].exp()
    assert exact.max(-1).values.min() > 0.999


@pytest.mark.parametrize("kind", ["substitutions", "deletions", "insertions"])
def test_errors_have_their_rates(kind):
    row, classes = [5] * 6000, 101
    [found] = SimulatedSpeech(**{**CLEAN, kind: 0.2}, smoothing=0.0).posterior([row], classes).values
    found = spelled(found)
    others = sum(label != 5 for label in found) / len(row)
    expected = {"substitutions": (1.0, 0.2 * 0.99), "deletions": (0.8, 0.0), "insertions": (1.2, 0.2 * 0.99)}[kind]
    assert (len(found) / len(row), others) == pytest.approx(expected, abs=0.02)
    if kind != "deletions":
        assert set(found) == set(range(1, classes))


def test_all_tokens_may_be_deleted_and_an_empty_text_is_one_blank(model):
    everything = SimulatedSpeech(**{**CLEAN, "deletions": 1.0}, smoothing=0.0)
    speech = simulated(model.projector, ["one two", "?!"], everything)
    assert speech.mask.sum(1).tolist() == [4, 4]  # the prompt and one vector
    assert speech.values.isfinite().all()


def test_the_vectors_by_hand(model):
    config, texts = SimulatedSpeech(smoothing=0.4), ["one blue blue ten", "six"]
    with torch.no_grad():
        model.projector.residual.bias.normal_()
    torch.manual_seed(3)
    speech = simulated(model.projector, texts, config)
    torch.manual_seed(3)
    spoken = model.projector.spoken
    drawn = config.posterior([[1 + i for i in spoken.spell(text)] for text in texts], len(spoken.ids) + 1)
    table = model.llm.embed(torch.tensor(spoken.ids))
    for values, mask, row, valid in zip(*vars(speech).values(), *vars(drawn).values(), strict=True):
        probabilities, expected = row[valid].exp(), list(model.projector.prompt)
        position = 0
        for label, run in groupby(probabilities.argmax(-1).tolist()):
            end = position + len(list(run))
            if label != 0:
                weights = probabilities[position:end, 1:].sum(0)
                expected.append(weights / weights.sum() @ table + model.projector.residual.bias)
            position = end
        torch.testing.assert_close(values[mask], torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_a_share_of_the_utterances_is_simulated_and_the_others_are_heard(model, batch):
    objective = SimulatedSpeech(share=0.5, **CLEAN, smoothing=0.0).build()
    torch.manual_seed(1)
    speech = objective.speech(model, batch)
    torch.manual_seed(1)
    chosen = (torch.rand(6) < 0.5).tolist()
    assert 0 < sum(chosen) < 6
    heard = model.speech(batch)
    for i, is_simulated in enumerate(chosen):
        found = speech.values[i][speech.mask[i]]
        if is_simulated:
            spoken = model.projector.spoken
            ids = torch.tensor([spoken.ids[k] for k in spoken.spell(batch.samples[i].text)])
            mean = model.llm.embed(torch.tensor(spoken.ids)).mean(0)
            assert len(found) == 3 + len(ids)
            torch.testing.assert_close(
                found[3:], model.llm.embed(ids), atol=1e-4 * float(1 + mean.abs().max()), rtol=1e-3
            )
        else:
            torch.testing.assert_close(found, heard.values[i][heard.mask[i]], atol=1e-5, rtol=1e-4)
    counts = [int((torch.rand(6) < 0.5).sum()) for _ in range(200)]
    assert sum(counts) / 1200 == pytest.approx(0.5, abs=0.05)


def test_simulated_speech_alone_reads_no_audio_and_trains_what_reads_the_mixtures(model, batch):
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    output = SimulatedSpeech(share=1.0).build()(model, batch)
    assert calls == [] and list(output.parts) == ["next_token"]
    output.total.backward()
    for name, parameter in model.projector.named_parameters():
        moved = name in ("prompt", "residual.bias")
        assert (parameter.grad.abs().max() > 0) == moved, name  # every parameter has a gradient, as DDP needs


def test_the_loss_is_that_of_the_inner_objective(model, batch):
    objective = SimulatedSpeech(share=1.0).build()
    torch.manual_seed(2)
    found = objective(model, batch).total
    torch.manual_seed(2)
    texts = [sample.text for sample in batch.samples]
    torch.rand(6)
    speech = simulated(model.projector, texts, SimulatedSpeech())
    torch.testing.assert_close(found, NextToken()(model, replace(batch, speech=speech)).total)
    objective = SimulatedSpeech(share=1.0, objective=BOTH).build()
    expected = NextToken()(model.eval(), batch).total + 0.3 * CTC()(model, batch).total
    torch.testing.assert_close(objective(model, batch).total, expected)  # evaluation hears


def test_a_sum_with_ctc_spells_the_audio_and_encodes_it_once(model, batch):
    spelling = CTC()(model, batch).parts
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    parts = SimulatedSpeech(share=0.5, objective=BOTH).build()(model, batch).parts
    assert len(calls) == 1 and parts.keys() == {"ctc", "characters", "next_token"}
    for name, expected in spelling.items():
        torch.testing.assert_close(parts[name], expected)


def test_the_prompt_learns_from_text_alone(model, batch):
    objective = SimulatedSpeech(share=1.0, **CLEAN).build()
    optimizer = torch.optim.AdamW([model.projector.prompt, model.projector.residual.bias], lr=3e-2)
    losses = []
    for _ in range(40):
        output = objective(model, batch)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        losses.append(output.total.item())
    assert max(losses[-5:]) < losses[0] - 0.05


def test_a_killed_run_draws_the_same_after_it_continues(config, task_manifest, monkeypatch):
    def losses(folder) -> list[float]:
        return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]

    model = {"encoder": config().model.encoder, "llm": config().model.llm, "projector": SIZES}
    settings = {"model": model, "objective": {"name": "simulated_speech"}, "train": {"steps": 4, "save_every": 2}}
    settings["data"] = {"train": [str(task_manifest)]}
    whole = train(config(name="whole", **settings))
    forward, calls = PartlySimulated.forward, []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return forward(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(PartlySimulated, "forward", dies)
        train(config(name="killed", **settings))
    assert losses(train(config(name="killed", **settings), resume=True)) == losses(whole)
    assert SpeechLLM.from_pretrained(whole).objectives == ("next_token",)


def test_texts_without_speech_train_with_a_shared_silence(config, tmp_path):
    sounds.write(tmp_path / "silence.wav", [0.0] * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ)
    lines = [{"id": str(i), "audio": "silence.wav", "text": text} for i, text in enumerate(["one two", "six", "ten"])]
    manifest = tmp_path / "texts.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = {"encoder": config().model.encoder, "llm": config().model.llm, "projector": SIZES}
    objective = {"name": "simulated_speech", "share": 1.0}
    settings = config(model=model, objective=objective, data={"train": [str(manifest)], "batch_size": 3})
    folder = train(settings)
    torch.manual_seed(settings.train.seed)
    start, end = settings.model.build().projector, SpeechLLM.from_pretrained(folder).projector
    assert not torch.equal(start.prompt, end.prompt)
    assert torch.equal(start.enter.weight, end.enter.weight)


def test_a_recipe_names_it_and_others_see_the_objectives_inside(tree):
    plain = {"name": "simulated_speech", "objective": to_dict_of(BOTH), "share": 0.25, "repeats": 2}
    config = parse(tree(objective=plain))
    assert config.objective == SimulatedSpeech(objective=BOTH, share=0.25, repeats=2)
    assert names_of(config.objective) == ("ctc", "next_token")
    assert parse(to_dict(config)) == config
    assert SimulatedSpeech() == parse(tree(objective={"name": "simulated_speech"})).objective
    assert not SimulatedSpeech().build().needs_mixed and not SimulatedSpeech().build().needs_negatives


def to_dict_of(objective: Sum) -> dict:
    return {
        "name": "sum",
        "terms": [{"objective": {"name": t.objective.name}, "weight": t.weight} for t in objective.terms],
    }


def test_wrong_uses_have_a_clear_error(build, model, batch):
    with pytest.raises(ValueError, match=r"model\.projector\.name=ctc"):
        SimulatedSpeech().build()(build(), batch)
    silent = replace(batch, samples=[replace(sample, text=None) for sample in batch.samples])
    with pytest.raises(ValueError, match=r"'simulated_speech' needs transcripts; add 'text' to .*\.jsonl:1"):
        SimulatedSpeech().build()(model, silent)
    with pytest.raises(ValueError, match="without mixed sequences"):
        SimulatedSpeech(objective=MixedNextToken()).build()(model, batch)
    with pytest.raises(ValueError, match="smoothing"):
        SimulatedSpeech(smoothing=0.5)
