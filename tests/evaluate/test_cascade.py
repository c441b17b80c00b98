"""The cascade on generated speech, with the laboratory's encoder and LLM."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ossicle.audio import read_audio
from ossicle.cli.main import app
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import ModelError
from ossicle.evaluate.cascade import EMPTY_TRANSCRIPT, CascadeCollator, CTCRecogniser, load_recogniser
from ossicle.evaluate.metrics import wer
from ossicle.models import conversation
from ossicle.models.speech_llm import ModelConfig
from places import ENCODER, LLM, SHARED

pytestmark = pytest.mark.skipif(
    not all((part / "model.safetensors").exists() for part in (ENCODER, LLM)),
    reason="the laboratory's encoder and LLM are not built: run make lab",
)


@pytest.fixture
def shared_speech():
    """Transcripts and waveforms of three recordings."""
    folder = SHARED / "data" / "real_speech" / "librispeech_test_other"
    if not (folder / "manifest.jsonl").is_file():
        pytest.skip("the recorded speech is missing (shared/data)")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
    waveforms = [torch.from_numpy(read_audio(folder / line["audio"])) for line in lines]
    return [line["text"] for line in lines], waveforms


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of recognition, translation to German, and questions about four passages."""
    pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[lab]"')
    from ossicle_lab.world.corpus import make_corpus

    return make_corpus(tmp_path_factory.mktemp("corpus"), train=4, dev=1, test=1, max_sentences=1).finetune


def test_the_recogniser_hears_the_same_alone_and_in_a_batch(tasks):
    dataset = SpeechDataset([sample for sample in read_manifest(tasks) if sample.task == "asr"])
    waveforms = [dataset[i].waveform for i in range(len(dataset))]
    recogniser = CTCRecogniser("lab")
    heard = recogniser(waveforms)
    assert heard == [recogniser([waveform])[0] for waveform in waveforms]
    assert wer(heard, [sample.text for sample in dataset.samples]).value < 50


class Deaf:
    """Hears one sentence in the first recording and nothing in the second."""

    source = "deaf"

    def __init__(self):
        self.languages = []

    def __call__(self, waveforms, languages):
        self.languages += languages
        return ["tom saw the cat", ""][: len(waveforms)]


def test_the_batch_has_what_was_heard_and_the_samples_their_transcripts(tasks):
    samples = [sample for sample in read_manifest(tasks) if sample.task == "asr"][:2]
    dataset = SpeechDataset(samples)
    model, recogniser = ModelConfig().build(), Deaf()
    cascade = CascadeCollator(Collator(model.prompter()), recogniser)
    batch = cascade([dataset[0], dataset[1]])
    assert batch.samples == dataset.samples
    assert batch.text is not None
    read = [model.llm.tokenizer.decode(ids[mask]).strip() for ids, mask in zip(*vars(batch.text).values(), strict=True)]
    assert read == ["tom saw the cat", EMPTY_TRANSCRIPT]
    assert cascade.generate_batch(batch) == ["tom saw the cat", ""]
    assert cascade([dataset[1], dataset[0]]).samples == dataset.samples[::-1]
    assert recogniser.languages == ["en", "en"]  # a recording is recognised once


def test_the_command_scores_the_cascade_against_the_transcripts(tasks, tmp_path):
    ModelConfig().build().save(tmp_path / "model")
    command = ["evaluate", str(tmp_path / "model"), str(tasks), "--cascade", "--max-new-tokens", "30"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "model/eval/finetune-cascade.jsonl").read_text().splitlines()
    said = {sample.text for sample in read_manifest(tasks)}
    assert {json.loads(line)["text"] for line in lines} == said
    assert CliRunner().invoke(app, [*command, "--from-text"]).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--own-transcript"]).exit_code == 2


def test_the_command_scores_answers_from_the_own_transcript(tasks, tmp_path, monkeypatch):
    """A model that hears the transcript without an error scores as from the transcript."""
    ModelConfig().build().save(tmp_path / "model")
    said = {sample.id: sample.text for sample in read_manifest(tasks)}
    whole = conversation.answer_batch

    def perfect(model, batch, **decoding):
        if decoding.get("from_text") or decoding.get("own_transcript"):
            return whole(model, batch, **decoding)
        return [said[sample.id] for sample in batch.samples]

    monkeypatch.setattr(conversation, "answer_batch", perfect)
    found = {}
    for kind in ("own-transcript", "text"):
        command = ["evaluate", str(tmp_path / "model"), str(tasks), "--max-new-tokens", "20"]
        result = CliRunner().invoke(app, [*command, f"--{kind}".replace("--text", "--from-text")])
        assert result.exit_code == 0, result.output
        lines = (tmp_path / f"model/eval/finetune-{kind}.jsonl").read_text().splitlines()
        found[kind] = {json.loads(line)["id"]: json.loads(line)["hypothesis"] for line in lines}
    assert found["own-transcript"] == found["text"]


def test_the_command_hears_recordings_at_further_speeds(tasks, tmp_path, monkeypatch):
    ModelConfig().build().save(tmp_path / "model")
    asked = []
    monkeypatch.setattr(
        conversation, "answer_batch", lambda model, batch, **given: asked.append(given) or ["x"] * len(batch)
    )
    command = ["evaluate", str(tmp_path / "model"), str(tasks), "--speed", "0.9", "--speed", "1.1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    speeds = [given.get("speeds") for given in asked]
    assert [0.9, 1.1] in speeds
    assert all(("speeds" in given) != given["from_text"] for given in asked)  # also with the audio of others
    again = CliRunner().invoke(app, command[:3])
    assert "this run has" in str(again.exception)  # other settings do not continue the file


def test_the_comparison_says_that_the_untrained_projector_ignores_its_audio(tasks, tmp_path):
    ModelConfig().build().save(tmp_path / "model")
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), str(tasks), "--max-new-tokens", "30"])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "model/eval/finetune.scores.json").read_text())["honesty"]
    [asr] = [row for row in rows if row["task"] == "asr"]
    assert asr["scores"]["text"] < 10
    assert asr["scores"]["recogniser"] < 50
    assert asr["scores"]["cascade"] < asr["speech"]
    assert asr["missing"] == {}
    assert asr["ignores_audio"] is True
    assert "warning: asr en: the model ignores its audio" in result.output


def test_whisper_brings_its_own_recogniser(real_models, shared_speech):
    recogniser = load_recogniser(str(real_models["whisper-tiny.en"]))
    texts, waveforms = shared_speech
    heard = recogniser(waveforms, ["en"] * len(texts))
    assert wer(heard, texts).value < 20
    [joined] = recogniser([torch.cat([*waveforms, torch.zeros(16000 * 30)])])  # two windows
    assert wer([joined], [" ".join(texts)]).value < 40
    assert recogniser.source.startswith("whisper:")


def test_an_encoder_without_a_recogniser_is_named(folders):
    for family in ("hubert", "whisper"):
        with pytest.raises(ModelError, match="the encoder cannot transcribe for a cascade"):
            load_recogniser(str(folders[family]))
