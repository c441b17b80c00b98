"""A training on indexed manifests takes the steps of one on lists."""

import pytest

from ossicle.data import table
from ossicle.train import train
from ossicle.train.recipe import load
from ossicle.train.tracking import read_metrics


@pytest.mark.parametrize("objective", ["contrastive", "next_token"])
def test_the_losses_are_the_same(recipe, task_manifest, tmp_path, monkeypatch, objective):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = {"train": [str(task_manifest)], "dev": [str(task_manifest)], "batch_size": 2, "fraction": 0.9}
    path = recipe(objective={"name": objective}, data=data, train={"steps": 4, "eval_every": 4})
    found = []
    for name, large_bytes in (("list", 10**9), ("table", 0)):
        monkeypatch.setattr(table, "LARGE_BYTES", large_bytes)
        folder = train(load(path, [f"name={name}"]))
        assert (tmp_path / "cache" / "ossicle" / "manifests").is_dir() == (name == "table")
        found.append(
            {
                (row["split"], row["step"]): row["loss"]
                for row in read_metrics(folder / "metrics.jsonl")
                if "loss" in row
            }
        )
    assert found[0] == found[1]
    assert {split for split, _ in found[0]} >= {"train", "dev"}
