import json
import math

import pytest
import torch
from typer.testing import CliRunner

from ossicle.errors import ConfigError
from ossicle.objectives.contrastive import Contrastive
from ossicle.train.loop import train
from ossicle.train.state import trainable
from ossicle_lab import cli
from ossicle_lab.analysis.layer_gradients import layer_gradients, measure


@pytest.fixture
def batch(model, collate, manifest):
    model.eval()
    return collate(model, manifest)


def gradient(model, objective, batch):
    model.zero_grad()
    objective(model, batch).total.backward()
    found = torch.cat([p.grad.flatten() for p in trainable(model)])
    model.zero_grad()
    return found


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_each_row_is_the_gradient_of_its_layers_share_of_the_loss(model, batch):
    objective = Contrastive(layers=[0, 2], layer_weights=[1.0, 3.0])
    first, second = (gradient(model, Contrastive(layers=layer), batch) for layer in (0, 2))
    rows = layer_gradients(model, objective, [batch, batch])
    assert [row.layer for row in rows] == [0, 2]
    assert rows[0].norm == pytest.approx(float(first.norm()), abs=1e-4)
    assert rows[1].norm == pytest.approx(3 * float(second.norm()), abs=1e-4)
    assert rows[1].with_first == pytest.approx(cosine(first, second), abs=1e-3)
    total = gradient(model, objective, batch)
    assert [row.with_sum for row in rows] == pytest.approx([cosine(g, total) for g in (first, second)], abs=1e-3)
    assert [row.agreement for row in rows] == pytest.approx([1.0, 1.0], abs=1e-3)  # the same batch twice


def test_agreement_is_the_cosine_between_batches(model, collate, manifest):
    model.eval()
    batches = [collate(model, manifest, indices) for indices in ((0, 1, 2), (3, 4, 5))]
    one, other = (gradient(model, Contrastive(layers=1), batch) for batch in batches)
    [row] = layer_gradients(model, Contrastive(layers=1), batches)
    mean_square = (one.norm() ** 2 + other.norm() ** 2) / 2
    assert row.agreement == pytest.approx(float(one @ other / mean_square), abs=1e-3)
    with pytest.raises(ValueError, match="gradients of 1 batches"):
        layer_gradients(model, Contrastive(layers=1), batches[:1])


def test_the_command_compares_the_untrained_projector_with_the_run(config, recipe, tmp_path):
    run = train(config(objective={"name": "contrastive", "layers": "embeddings"}))
    record = measure(run, [run], batches=2, overrides=["objective.layers=all"])
    before, after = record["stages"]["untrained"], record["stages"][str(run)]
    assert [row["layer"] for row in before] == [0, 1, 2, 3]
    assert after[0]["loss"] != before[0]["loss"]
    assert all(math.isfinite(value) for row in before for value in row.values())

    import typer

    app = typer.Typer()
    app.command()(cli.layer_gradients)
    result = CliRunner().invoke(app, [str(run), "--batches", "2"])
    assert result.exit_code == 0, result.output
    assert "cosine with" in result.output
    assert json.loads((run / "layer_gradients.json").read_text())["batches"] == 2


def test_other_objectives_are_refused(config):
    run = train(config(objective={"name": "next_token"}))
    with pytest.raises(ConfigError, match=r"objective\.name is next_token; only contrastive"):
        measure(run, [run], batches=2, overrides=[])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.yaml; give the folder"):
        cli.layer_gradients(tmp_path)
