"""Test `ossicle analyze` on the command line, with the lab's encoder and LLM and an untrained projector."""

import json

import pytest
import torch
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.inspect.alignment import retrieval
from ossicle.inspect.states import KeptStates, encoded, pooled_states
from ossicle.losses.contrastive import mean_pool
from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.testing import tiny_manifest
from ossicle_lab.analysis.analyze import RESULTS_FILE, stage_names
from ossicle_lab.analysis.probe_layers import PooledFrames

pytest.importorskip("matplotlib")
UTTERANCES = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("checkpoint")
    ModelConfig(projector=QFormerConfig(width=16, heads=2, layers=1, ffn=16)).build().save(folder)
    return folder


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Two dozen utterances of two speakers, with genders."""
    path = tiny_manifest(tmp_path_factory.mktemp("spoken"), UTTERANCES)
    samples = read_manifest(path)
    for i, sample in enumerate(samples):
        sample.extra["gender"] = ("female", "male")[i % 2]
    write_manifest(path, samples)
    return path


def run(*arguments):
    result = CliRunner().invoke(app, ["analyze", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def analysis(checkpoint, spoken):
    """Return what the command printed and wrote."""
    pytest.importorskip("sklearn")
    printed = run(checkpoint, spoken, "--show", "0-3")
    folder = checkpoint / "analysis" / spoken.stem
    return printed, folder, json.loads((folder / RESULTS_FILE).read_text())


def test_every_layer_of_both_stages_is_measured(analysis, checkpoint, spoken):
    _, _, record = analysis
    assert record["utterances"] == UTTERANCES
    assert list(record["stages"]) == ["untrained", "trained"]
    layers = record["stages"]["trained"]["layers"]
    assert [row["layer"] for row in layers] == [0, 1, 2, 3, 4, 5]
    assert all(isinstance(value, int | float) for row in layers for value in row.values())
    assert record["stages"]["untrained"]["layers"][0]["matched"] != layers[0]["matched"]

    model = SpeechLLM.from_pretrained(checkpoint)
    dataset = SpeechDataset(read_manifest(spoken))
    states = pooled_states(model, [Collator(model.prompter())([dataset[i] for i in range(UTTERANCES)])])
    found = retrieval(states.speech[2], states.text[2], (1, 10), texts=states.transcripts)
    assert layers[2]["speech_to_text_r1"] == pytest.approx(found[1])
    assert layers[2]["speech_to_text_r10"] == pytest.approx(found[10])


def test_pictures_are_there_as_png_and_svg(analysis):
    _, folder, _ = analysis
    names = {path.name for path in folder.iterdir()}
    stems = ("retrieval", "geometry", "pca", "probes", "tokens-0-3")
    assert names == {RESULTS_FILE} | {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    assert (folder / "pca.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "tokens-0-3.svg").read_text()


def test_probes_are_there_or_explained(analysis):
    printed, _, record = analysis
    [found] = [probe for probe in record["probes"] if probe["field"] == "speaker"]
    assert found["majority"] == 50
    assert set(found["layers"][0]) == {"layer", "before", "after", "transcript"}
    assert "of the 0 classes with 2 speakers or more" in record["probes_skipped"]["gender"]
    assert record["probes_skipped"]["emotion"] == "no line has a value"
    assert "untrained: 24 utterances" in printed
    assert "no probe for emotion: no line has a value" in printed


def test_a_checkpoint_against_itself_does_not_differ(checkpoint, spoken, tmp_path):
    run(
        checkpoint,
        spoken,
        "--before",
        checkpoint,
        "--show",
        "0-1",
        "--no-probes",
        "--limit",
        8,
        "--bos",
        "--out",
        tmp_path,
    )
    record = json.loads((tmp_path / RESULTS_FILE).read_text())
    before, after = record["stages"].values()
    assert list(record["stages"]) == ["before", "after"]
    assert before == after
    assert (record["utterances"], record["left_out"]["beyond the limit"]) == (8, UTTERANCES - 8)
    assert record["probes"] == []
    assert not (tmp_path / "probes.png").exists()


def test_checkpoints_of_other_architectures_are_refused(checkpoint, spoken, tmp_path):
    ModelConfig(projector=QFormerConfig(width=8, heads=2, layers=1, ffn=16)).build().save(tmp_path)
    with pytest.raises(ValueError, match=r"has another model\.projector than"):
        run(checkpoint, spoken, "--before", tmp_path)


def test_names_of_stages(tmp_path):
    assert stage_names(tmp_path / "stage2", tmp_path / "stage1") == ("stage1", "stage2")
    assert stage_names(tmp_path / "a" / "best", tmp_path / "b" / "best") == ("before", "after")


def test_states_do_not_depend_on_the_batches(model, manifest, collate):
    whole = collate(model, manifest, range(4))
    parts = [collate(model, manifest, [i, i + 1]) for i in (0, 2)]
    frames, kept = PooledFrames(), KeptStates([whole.samples[2].id], [0, 3])
    one = pooled_states(model, [whole])
    other = pooled_states(model, encoded(model, parts), observers=[frames, kept])
    assert one.transcripts == other.transcripts
    for layer in range(4):
        torch.testing.assert_close(one.speech[layer], other.speech[layer], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.text[layer], other.text[layer], atol=1e-4, rtol=1e-4)
    heard = model.encoder(whole.waveforms)
    torch.testing.assert_close(frames.frames, mean_pool(heard.values, heard.mask), atol=1e-4, rtol=1e-4)
    [name] = kept.text
    assert kept.tokens[name] == model.llm.tokenizer(whole.samples[2].text, add_special_tokens=False).input_ids
    assert list(kept.speech[name]) == [0, 3]
    pooled = kept.speech[name][3].mean(0)
    torch.testing.assert_close(pooled, one.speech[3][2], atol=1e-4, rtol=1e-4)


def test_nothing_to_read_is_an_error(model):
    with pytest.raises(ValueError, match="no utterances to measure"):
        pooled_states(model, [])
