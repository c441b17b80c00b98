"""Caches that jobs of an array fill hold what one call computes, to the bit."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.errors import ConfigError
from ossicle.train import cache_fill
from ossicle.train.cache_store import CacheStore


def states(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for store in sorted(folder.iterdir()):
        reader = CacheStore(store, json.loads((store / "about.json").read_text()), shard_rows=1)
        found |= {f"{store.name}/{key}": reader[key] for key in reader.keys}
    return found


@pytest.fixture
def fill(recipe, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_fill, "BATCH_S", 3.0)
    monkeypatch.setattr(cache_fill, "TEXT_BATCH", 2)
    fill_frames = cache_fill.frame_cache

    def frame_cache(config, encoder):
        cache = fill_frames(config, encoder)
        whole = cache.fill
        monkeypatch.setattr(cache, "fill", lambda *given: whole(*given, batch_s=3.0))
        return cache

    monkeypatch.setattr(cache_fill, "frame_cache", frame_cache)
    path = recipe(data={"train": [str(manifest)], "cache_frames": True, "cache_text": True})

    def run(folder: str, *options: str) -> dict[str, torch.Tensor]:
        given = ["cache", str(path), f"data.cache_dir={tmp_path / folder}", *options]
        CliRunner().invoke(app, given, catch_exceptions=False, standalone_mode=False)
        return states(tmp_path / folder)

    return run


def test_parts_one_after_another_fill_the_caches_of_one_call(fill):
    whole = fill("a")
    first = fill("b", "--shard", "2/3")
    second = fill("b", "--shard", "1/3")
    assert 0 < len(first) < len(second) < len(whole)
    found = fill("b", "--shard", "3/3")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_an_invalid_shard_is_refused(fill):
    with pytest.raises(ConfigError, match="number the jobs from 1"):
        fill("c", "--shard", "0/3")
