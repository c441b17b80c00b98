"""Contrastive layers that are added while the run goes on, against the loss of each set of layers."""

import pytest
import torch

from ossicle.batch import Batch
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.models.llm import LLM
from ossicle.objectives import Contrastive, Sum, Term
from ossicle.objectives.depth import GrowingDepth, at_full_depth
from ossicle.train.cache import TextCache
from ossicle.train.cache_fill import fill_caches
from ossicle.train.loop import train
from ossicle.train.tracking import read_metrics
from processes import Run, in_two, losses, weights


@pytest.fixture
def model(build):
    return build(dropout=0.0)


@pytest.fixture
def batch(model, manifest, collate) -> Batch:
    return collate(model, manifest)


def layers_by_step(objective, model, batch, steps: int, accumulate: int = 1) -> list[list[int]]:
    """Return the layers that each optimiser step compares."""
    found = []
    optimizer = torch.optim.SGD(model.projector.parameters(), lr=0.0)
    for _ in range(steps):
        for _ in range(accumulate):
            output = objective(model, batch)
            output.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append([int(name.partition("/")[2]) for name in output.parts if name.startswith("contrastive/")])
    return found


@pytest.mark.parametrize("accumulate", [1, 3])
def test_layers_grow_evenly_over_the_steps(model, batch, accumulate):
    objective = Contrastive(layers="all", depth_steps=6).build()  # layers 0 to 3
    found = layers_by_step(objective, model.train(), batch, 8, accumulate)
    assert [len(layers) for layers in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert found[0] == [0] and found[-1] == [0, 1, 2, 3]
    objective = Contrastive(layers=[3, 0, 2], depth_steps=1).build()  # in the order of the list
    assert layers_by_step(objective, model, batch, 2) == [[3], [3, 0, 2]]
    objective = Contrastive(layers=[0, 2], depth_steps=3).build()
    assert layers_by_step(objective, model, batch, 4) == [[0], [0], [0], [0, 2]]


@pytest.mark.parametrize("similarity", ["cosine", "wasserstein"])
@pytest.mark.parametrize("cached", [False, True])
def test_each_depth_has_the_loss_of_its_layers(model, batch, tmp_path, similarity, cached):
    settings = {"similarity": similarity, "direction": "symmetric", "temperature": 0.05}
    weights = [0.5, 2.0, 3.0]
    if cached:
        model.text_cache = TextCache(tmp_path, model.llm)
    objective = Contrastive(layers=[0, 2, 3], layer_weights=weights, depth_steps=2, **settings).build()
    model.train()
    for depth in (1, 2, 3):
        output = objective(model, batch)
        expected = Contrastive(layers=[0, 2, 3][:depth], layer_weights=weights[:depth], **settings)(model, batch)
        torch.testing.assert_close(output.total, expected.total, atol=1e-5, rtol=1e-4)
        assert output.parts.keys() == expected.parts.keys()
        output.total.backward()
        model.projector.zero_grad()


def test_while_layer_0_is_alone_the_llm_does_not_run(model, batch):
    calls = []
    model.llm.model.base_model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    objective = Contrastive(depth_steps=3).build()
    model.train()
    objective(model, batch).total.backward()
    assert calls == []
    model.projector.zero_grad()
    objective(model, batch)
    assert calls == [1, 1]  # the speech and the text, up to layer 1
    layer_3 = []
    model.llm.model.base_model.layers[2].register_forward_hook(lambda *_: layer_3.append(1))
    objective.begun = 2
    objective(model, batch)
    assert layer_3 == []


def test_evaluation_compares_all_layers_and_counts_nothing(model, batch):
    objective = Contrastive(depth_steps=5).build()
    expected = Contrastive()(model.eval(), batch)
    for _ in range(2):
        torch.testing.assert_close(objective(model, batch).total, expected.total)
    assert objective.begun == 0


def test_a_cache_that_was_filled_before_serves_every_depth(config, tmp_path, monkeypatch):
    data = {"cache_text": True, "cache_dir": str(tmp_path / "cache")}
    settings = config(objective={"name": "contrastive", "depth_steps": 2}, data=data)
    fill_caches(settings)
    stores = set((tmp_path / "cache").iterdir())
    monkeypatch.setattr(LLM, "read", lambda *_, **__: pytest.fail("a text was read again"))
    rows = rows_of(train(settings))
    assert [len(row) - 1 for row in rows] == [1, 2, 4, 4]
    assert set((tmp_path / "cache").iterdir()) == stores and len(stores) == 1


def test_a_bank_has_the_layers_of_the_depth(model, batch, tmp_path, manifest, collate):
    model.text_cache = TextCache(tmp_path, model.llm)
    settings = {"direction": "symmetric", "bank": 4}
    others = collate(model, manifest, range(4, 8))
    objective = Contrastive(layers=[0, 2], depth_steps=1, **settings)
    objective.read_text(model, others)
    built = objective.build()
    found = built(model.train(), batch).total
    texts = torch.cat([model.pooled_text(each, [0, 2])[:1] for each in (batch, others)], 1)[0]
    speech = torch.stack([row[mask].mean(0) for row, mask in zip(*vars(model.speech(batch)).values(), strict=True)])
    similarity = torch.nn.functional.cosine_similarity(texts[:, None], speech[None], dim=-1) / 0.1
    rows, columns = similarity[:4].log_softmax(1).diag(), similarity.log_softmax(0).diag()
    torch.testing.assert_close(found, -(rows.mean() + columns.mean()) / 2, atol=1e-4, rtol=1e-3)


def test_balanced_layers_are_measured_when_they_are_added(model, batch):
    objective = Contrastive(layers=[0, 2, 3], depth_steps=2, balance_every=100).build().train()
    model.train()
    counts = []
    for _ in range(3):
        output = objective(model, batch)
        output.total.backward()
        model.projector.zero_grad()
        counts.append(len(objective.norms))
        factors = torch.stack([part for name, part in output.parts.items() if name.startswith("balance/")])
        assert len(factors) == counts[-1]
        torch.testing.assert_close(factors.prod(), torch.tensor(1.0), atol=1e-4, rtol=1e-4)
    assert counts == [1, 2, 3]
    with torch.no_grad():
        early = Contrastive(layers=[0, 2, 3], depth_steps=2, balance_every=100).build()
        early.norms = objective.norms[:2]
        parts = early.eval()(model.eval(), batch).parts
    assert parts["balance/3"] == 1 and parts["balance/0"] != 1


def test_a_learned_temperature_goes_with_it(model, batch):
    objective = Contrastive(layers=[0, 2], depth_steps=1, learn_temperature=True, temperature=0.2).build()
    output = objective(model.train(), batch)
    torch.testing.assert_close(output.total, Contrastive(layers=[0], temperature=0.2)(model, batch).total)
    output.total.backward()
    assert objective.log_temperature.grad.abs() > 0


def rows_of(folder) -> list[dict]:
    metrics = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
    return [{name: value for name, value in row.items() if name == "loss" or "part/" in name} for row in metrics]


@pytest.mark.parametrize("summed", [False, True])
def test_a_killed_run_continues_at_its_depth(config, monkeypatch, summed):
    objective = {"name": "contrastive", "depth_steps": 5}
    if summed:
        objective = {"name": "sum", "terms": [{"objective": objective, "weight": 0.5}]}
    train_settings = {"steps": 6, "save_every": 3, "accumulate": 2}
    settings = {"objective": objective, "data": {"batch_size": 4}, "train": train_settings}
    whole = rows_of(train(config(name="whole", **settings)))
    assert [len(row) - 1 for row in whole] == [1, 1, 2, 2, 3, 4]
    losses = GrowingDepth.losses

    def dies(self, *arguments):
        if self.begun == 5:
            raise RuntimeError("killed")
        return losses(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(GrowingDepth, "losses", dies)
        train(config(name="killed", **settings))
    assert rows_of(train(config(name="killed", **settings), resume=True)) == whole


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(config, manifest, task_manifest, tmp_path):
    quiet = {"projector": {**vars(config().model.projector), "dropout": 0.0}}
    objective = {"name": "contrastive", "layers": [0, 1, 2], "depth_steps": 3}
    four = tmp_path / "four.jsonl"
    write_manifest(four, read_manifest(manifest)[:4])
    settings = {"model": quiet, "objective": objective, "train": {"steps": 4, "accumulate": 2}}
    settings["data"] = {"train": [str(four)], "order": "random", "batch_size": 4}
    alone = config(name="alone", **settings)
    settings["data"] = settings["data"] | {"batch_size": 2}
    shared = config(name="shared", **settings)
    spelling = {"projector": {"name": "ctc", "width": 16, "heads": 2, "layers": 2, "ffn": 24, "kernel": 3}}
    simulating = {"name": "simulated_speech", "share": 0.8}
    data = {"train": [str(task_manifest)], "batch_size": 2}
    simulated = config(name="simulated", model=spelling, objective=simulating, data=data)
    results = in_two([Run(shared, None), Run(simulated, None)], tmp_path)
    assert [[rank["error"] for rank in run] for run in results] == [["", ""]] * 2
    train(alone)
    assert losses(shared.folder) == pytest.approx(losses(alone.folder), rel=1e-4)
    torch.testing.assert_close(weights(alone.folder), weights(shared.folder), atol=1e-4, rtol=1e-3)


def test_contradictions_are_refused():
    for layers in ("embeddings", 3):
        with pytest.raises(ValueError, match=r"set objective\.layers=all"):
            Contrastive(layers=layers, depth_steps=3)
    plain = Contrastive(depth_steps=0).build()
    assert at_full_depth(plain) is plain and isinstance(plain, Contrastive)


def test_the_full_depth_can_be_had_at_once(model, batch):
    objective = Sum(terms=[Term(objective=Contrastive(depth_steps=50))]).build()
    assert len(at_full_depth(objective)(model.train(), batch).parts) == 4
