import json

import pytest

from ossicle.errors import ConfigError
from ossicle.inspect.alignment import AlignmentRow
from ossicle.train import dev_alignment
from ossicle.train.loop import train
from ossicle.train.tracking import read_metrics


def row(layer, to_text, to_speech, gap):
    fields = {"matched": 0.5, "mismatched": 0.1, "speech_to_text_r5": 0.0, "text_to_speech_r5": 0.0}
    recalls = {"speech_to_text_r1": to_text, "text_to_speech_r1": to_speech}
    return AlignmentRow(layer=layer, modality_gap=gap, **fields, **recalls)


def of(folder, split):
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["split"] == split]


def test_what_is_logged_of_a_report():
    assert dev_alignment.values_of([row(0, 10.0, 20.0, 1.5), row(12, 60.0, 70.0, float("inf"))]) == {
        "r_at_1": 40.0,
        "speech_to_text_r1/layer_00": 10.0,
        "text_to_speech_r1/layer_00": 20.0,
        "modality_gap/layer_00": 1.5,
        "speech_to_text_r1/layer_12": 60.0,
        "text_to_speech_r1/layer_12": 70.0,
    }


def test_a_run_that_is_analysed_trains_as_one_that_is_not(config, manifest):
    data = {"dev": [str(manifest)]}
    plain = train(config(name="plain", data=data))
    analysed = train(config(name="analysed", data=data, train={"analyze_every": 3}))
    assert [r["loss"] for r in of(plain, "train")] == [r["loss"] for r in of(analysed, "train")]
    assert of(plain, "alignment") == []
    records = of(analysed, "alignment")
    assert [record["step"] for record in records] == [3, 4]  # every third step, and the last one
    assert all(f"modality_gap/layer_0{layer}" in records[0] for layer in range(4))


def test_tensorboard_gets_a_curve_per_layer(config, manifest):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(config(data={"dev": [str(manifest)]}, train={"analyze_every": 2, "tensorboard": True}))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("alignment/r_at_1")) == 2
    assert len(events.Scalars("alignment/speech_to_text_r1/layer_03")) == 2


def test_the_best_checkpoint_is_the_one_that_retrieves_best(config, manifest, monkeypatch):
    found = iter([30.0, 50.0, 40.0, 50.0])
    monkeypatch.setattr(dev_alignment, "measure", lambda *_: {dev_alignment.R_AT_1: next(found)})
    settings = {"analyze_every": 1, "eval_every": 1, "best_by": "retrieval"}
    folder = train(config(data={"dev": [str(manifest)]}, train=settings))
    kept = json.loads((folder / "best" / "progress.json").read_text())
    assert (kept["step"], kept["best"]) == (2, -50.0)


def test_by_loss_retrieval_has_no_say(config, manifest, monkeypatch):
    monkeypatch.setattr(dev_alignment, "measure", lambda *_: {dev_alignment.R_AT_1: 100.0})
    folder = train(config(data={"dev": [str(manifest)]}, train={"analyze_every": 1, "eval_every": 2}))
    kept = json.loads((folder / "best" / "progress.json").read_text())
    assert kept["best"] == min(record["loss"] for record in of(folder, "dev"))


def test_missing_settings_are_named(config, manifest, task_manifest, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.analyze_every measures alignment on data\.dev"):
        train(config(train={"analyze_every": 1}))
    with pytest.raises(ConfigError, match=r"train\.best_by=retrieval needs train\.analyze_every"):
        train(config(data={"dev": [str(manifest)]}, train={"best_by": "retrieval"}))
    lines = manifest.read_text().splitlines()
    first = json.loads(lines[0]) | {"audio": str(manifest.parent / json.loads(lines[0])["audio"])}
    alone = tmp_path / "one.jsonl"
    alone.write_text(json.dumps(first) + "\n")
    untold = tmp_path / "untold.jsonl"
    answer = {"task": "qa", "instruction": "is it so?", "answer": "yes"}
    untold.write_text(json.dumps({**first, **answer, "text": None}) + "\n")
    asr = {"name": "next_token"}
    with pytest.raises(ConfigError, match=r"untold\.jsonl:1: '0-0' has no \"text\""):
        train(config(name="a", objective=asr, data={"dev": [str(untold)]}, train={"analyze_every": 1}))
    with pytest.raises(ConfigError, match="two different transcripts"):
        train(config(name="b", objective=asr, data={"dev": [str(alone)]}, train={"analyze_every": 1}))
