import json

import numpy as np
import pytest

from ossicle.inspect.alignment import AlignmentRow
from ossicle_lab.analysis.drawing import separate_labels
from ossicle_lab.analysis.plots import (
    _read_losses,
    _running_mean,
    plot_loss,
    plot_retrieval_by_layer,
    plot_similarity,
)

pytest.importorskip("matplotlib")

PNG = b"\x89PNG"


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def row(layer, recall):
    return AlignmentRow(
        layer=layer,
        matched=0.9,
        mismatched=0.1,
        speech_to_text_r1=recall,
        speech_to_text_r5=recall,
        text_to_speech_r1=recall,
        text_to_speech_r5=recall,
    )


def test_plots_are_written(tmp_path):
    log = tmp_path / "metrics.jsonl"
    records = [{"step": step, "split": "train", "loss": 3 / step} for step in range(1, 40)]
    write(log, [*records, {"step": 39, "split": "dev", "loss": 1.0}])
    drawn = [
        plot_loss({"one": log, "two": log}, tmp_path / "plots" / "loss.png"),
        plot_retrieval_by_layer({"one": [row(0, 0.0), row(4, 100.0)]}, tmp_path / "retrieval.png"),
        plot_similarity(np.eye(3), np.eye(3), tmp_path / "similarity.png"),
    ]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)


def test_only_training_steps_are_drawn(tmp_path):
    log = tmp_path / "metrics.jsonl"
    train = {"step": 1, "split": "train", "loss": 2.0}
    write(log, [train, {"step": 1, "split": "dev", "loss": 9.0}, {"step": 2, "split": "train", "padding": 0.1}])
    steps, losses = _read_losses(log, "loss")
    assert (steps.tolist(), losses.tolist()) == ([1], [2.0])
    with pytest.raises(ValueError, match=r'metrics\.jsonl: no training step has "part/asr"'):
        plot_loss({"one": log}, tmp_path / "loss.png", key="part/asr")


def test_running_mean():
    values = np.array([8.0, 4.0, 3.0, 2.0, 1.0])
    np.testing.assert_allclose(_running_mean(values, 3), [8.0, 5.0, 3.0, 2.0, 1.5])


def test_labels_are_pushed_apart_around_their_lines():
    assert separate_labels([1.0, 5.0], gap=1.0) == [1.0, 5.0]
    assert separate_labels([5.0, 5.0, 5.0], gap=1.0) == [4.0, 5.0, 6.0]
    assert separate_labels([0.0, 0.1], gap=1.0) == [0.0, 1.0]
