"""The cascade on generated speech, with the laboratory's encoder and LLM."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.evaluate.cascade import EMPTY_TRANSCRIPT, CascadeCollator, Recogniser
from ossicle.evaluate.metrics import wer
from ossicle.models.speech_llm import ModelConfig
from places import ENCODER, LLM

pytestmark = pytest.mark.skipif(
    not all((part / "model.safetensors").exists() for part in (ENCODER, LLM)),
    reason="the laboratory's encoder and LLM are not built: run make lab",
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of recognition, translation to German, and questions about four passages."""
    pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[lab]"')
    from ossicle_lab.world.corpus import make_corpus

    return make_corpus(tmp_path_factory.mktemp("corpus"), train=4, dev=1, test=1, max_sentences=1).finetune


def test_the_recogniser_hears_the_same_alone_and_in_a_batch(tasks):
    dataset = SpeechDataset([sample for sample in read_manifest(tasks) if sample.task == "asr"])
    waveforms = [dataset[i].waveform for i in range(len(dataset))]
    recogniser = Recogniser("lab")
    heard = recogniser(waveforms)
    assert heard == [recogniser([waveform])[0] for waveform in waveforms]
    assert wer(heard, [sample.text for sample in dataset.samples]).value < 50


def test_the_batch_has_what_was_heard_and_the_samples_their_transcripts(tasks):
    dataset = SpeechDataset(read_manifest(tasks)[:2])
    model = ModelConfig().build()

    class Deaf(Recogniser):
        def __init__(self) -> None: ...

        def __call__(self, waveforms):
            return ["tom saw the cat", ""]

    batch = CascadeCollator(Collator(model.prompter()), Deaf())([dataset[0], dataset[1]])
    assert batch.samples == dataset.samples
    assert batch.text is not None
    read = [model.llm.tokenizer.decode(ids[mask]).strip() for ids, mask in zip(*vars(batch.text).values(), strict=True)]
    assert read == ["tom saw the cat", EMPTY_TRANSCRIPT]


def test_the_command_scores_the_cascade_against_the_transcripts(tasks, tmp_path):
    ModelConfig().build().save(tmp_path / "model")
    command = ["evaluate", str(tmp_path / "model"), str(tasks), "--cascade", "--max-new-tokens", "30"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "model/eval/finetune-cascade.jsonl").read_text().splitlines()
    said = {sample.text for sample in read_manifest(tasks)}
    assert {json.loads(line)["text"] for line in lines} == said
    assert CliRunner().invoke(app, [*command, "--from-text"]).exit_code == 2
