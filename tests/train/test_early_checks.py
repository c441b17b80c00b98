"""Faults of settings and lines are found before the models load, or before the first step."""

import json

import pytest

from ossicle.errors import ConfigError, DataError
from ossicle.train import loop, train


@pytest.fixture
def no_models(monkeypatch):
    """Fail if the models are loaded."""
    monkeypatch.setattr(loop, "_load_model", lambda *_: pytest.fail("the models were loaded"))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "contrastive", "layers": 4}, r"objective\.layers=4: the model has hidden states 0\.\.3"),
        ({"name": "contrastive", "layers": [0, 99]}, r"hidden states 0\.\.3"),
        ({"name": "mixed_contrastive", "layers": [99]}, r"hidden states 0\.\.3"),
        ({"name": "contrastive", "layers": [0, 1], "layer_weights": [1.0]}, "layer_weights has 1 entries for 2"),
        ({"name": "sum", "terms": [{"objective": {"name": "contrastive", "layers": 9}}]}, r"hidden states 0\.\.3"),
    ],
)
def test_layers_that_the_llm_lacks_are_refused_before_it_loads(config, no_models, objective, message):
    with pytest.raises(ConfigError, match=message):
        train(config(objective=objective))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"lora": {"modules": ["llm.*.q_proj"], "dropout": 0.1}}}, r"model\.lora\.dropout has"),
        ({"data": {"augment": {"train_mode_encoder": True}}}, r"data\.augment\.train_mode_encoder has"),
        ({"objective": {"name": "mixed_next_token"}}, "an objective with mixed sequences has"),
        ({"objective": {"name": "simulated_speech"}}, "the objective simulated_speech has"),
    ],
)
def test_what_is_random_beside_the_masks_of_utterances_is_refused(config, no_models, sections, message):
    with pytest.raises(ConfigError, match=f"train.dropout=utterance: {message} a random state of its own"):
        train(config(**sections, train={"dropout": "utterance"}))


@pytest.mark.parametrize(
    "data", [{"train": ["gone.jsonl"]}, {"dev": ["gone.jsonl"]}, {"augment": {"noise": ["gone.jsonl"]}}]
)
def test_manifest_that_does_not_exist_is_named_before_the_models_load(config, no_models, data):
    with pytest.raises(DataError, match=r"gone\.jsonl: there is no such manifest"):
        train(config(data=data))


LINES = {
    "null": {"text": None},
    "empty": {"text": ""},
    "blank": {"text": " \t"},
    "only an answer": {"text": None, "answer": "yes", "instruction": "say yes"},
}


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_line_without_a_transcript_is_named_before_the_first_step(config, manifest, tmp_path, split, line):
    records = [json.loads(text) for text in manifest.read_text().splitlines()]
    records = [{**record, "audio": str(manifest.parent / record["audio"])} for record in records]
    records[6] = {**records[6], **line}
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = config(objective={"name": "contrastive"}, data={split: [str(path)]})
    with pytest.raises(DataError, match=r"m\.jsonl:7: .* has no transcript.*add \"text\", or remove the line"):
        train(made)
    assert not list(made.folder.rglob("projector.safetensors"))


def test_line_without_any_target_is_named_for_fine_tuning(config, manifest, tmp_path):
    records = [json.loads(text) for text in manifest.read_text().splitlines()]
    records = [{**record, "audio": str(manifest.parent / record["audio"])} for record in records]
    del records[2]["text"], records[3]["text"]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match=r"m\.jsonl:3: .* has no answer and no transcript.*\(1 more lines"):
        train(config(objective={"name": "next_token"}, data={"train": [str(path)]}))
