"""Train with two processes: same losses as one process, exact resume, and an end without a hang."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.objectives import Contrastive, NextToken
from ossicle.train.cache_store import CacheStore
from ossicle.train.loop import train
from processes import Run, Watched, in_two, losses, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def unequal(manifest, tmp_path) -> Path:
    """Write seven utterances whose answers differ much in length."""
    samples = read_manifest(manifest)[:7]
    words = [1, 30, 1, 2, 12, 1, 4]
    path = tmp_path / "unequal.jsonl"
    write_manifest(path, [replace(s, text="a b " * n, task=None) for s, n in zip(samples, words, strict=True)])
    return path


def test_two_processes(config, manifest, unequal, tmp_path):
    quiet = {"projector": {**config().model.projector.__dict__, "dropout": 0.0}}
    token = {"name": "next_token"}
    four = tmp_path / "four.jsonl"
    write_manifest(four, read_manifest(unequal)[:4])
    # One batch of four utterances, in one process and divided between two.
    step = {"model": quiet, "objective": token, "train": {"steps": 1, "eval_every": 1}}
    data = {"train": [str(four)], "dev": [str(unequal)], "order": "random"}
    alone = config(name="alone", **step, data={**data, "batch_size": 4})
    shared = config(name="shared", **step, data={**data, "batch_size": 2})
    # Dropout is on, epochs have two batches for each process, and steps two.
    stopped = {"objective": token, "data": {"batch_size": 2, "dev": [str(unequal)]}}
    stopped["train"] = {"steps": 6, "accumulate": 1, "save_every": 2, "eval_every": 3}
    names = {name: config(name=name, **stopped) for name in ("whole", "killed", "signalled")}
    pairs = config(name="pairs", data={"batch_size": 3, "dev": [str(unequal)]}, train={"steps": 1, "eval_every": 1})
    diverging = config(name="diverging", objective=token, optim={"lr": 1e30, "warmup": 0.0}, train={"steps": 4})
    cache = {"batch_size": 2, "cache_frames": True, "cache_dir": str(tmp_path / "cache"), "workers": 1}
    cached = config(name="cached", objective=token, data=cache, train={"steps": 1})
    results = in_two(
        [
            Run(shared, Watched(NextToken())),
            Run(names["whole"], Watched(NextToken())),
            Run(names["killed"], Watched(NextToken(), at=6)),
            Run(names["killed"], Watched(NextToken()), resume=True),
            Run(names["signalled"], Watched(NextToken(), at=3, rank=1, number=signal.SIGTERM)),
            Run(names["signalled"], Watched(NextToken())),  # refused: the folder holds a run
            Run(names["signalled"], Watched(NextToken()), resume=True),
            Run(pairs, Watched(Contrastive(layers=[0]))),
            Run(diverging, Watched(NextToken())),
            Run(cached, Watched(NextToken())),
        ],
        tmp_path,
    )
    errors = [[rank["error"] for rank in run] for run in results]
    assert [both for i, both in enumerate(errors) if i not in (2, 5, 8)] == [["", ""]] * 7
    assert errors[2] == ["killed"] * 2
    assert all("holds a run: continue it with --resume" in error for error in errors[5])
    assert all("TrainingError" in error and "is not finite" in error for error in errors[8])

    train(alone, objective=NextToken())
    torch.testing.assert_close(weights(alone.folder), weights(shared.folder), atol=1e-4, rtol=1e-3)
    assert losses(shared.folder) == pytest.approx(losses(alone.folder), rel=1e-5)
    assert losses(shared.folder, "dev") == pytest.approx(losses(alone.folder, "dev"), rel=1e-5)

    for name in ("killed", "signalled"):
        assert losses(names[name].folder) == losses(names["whole"].folder)
        for key, tensor in weights(names["whole"].folder).items():
            assert torch.equal(tensor, weights(names[name].folder)[key])

    # The evaluation follows the call of step 1: every line once, although 7 is odd and a contrastive batch needs 2.
    for run in (results[0], results[7]):
        evaluated = [one for rank in run for ids in rank["ids"][1:] for one in ids]
        assert sorted(evaluated) == sorted(sample.id for sample in read_manifest(unequal))

    # Each utterance is encoded by one of the processes.
    [folder] = (tmp_path / "cache").glob("frames-*")
    store = CacheStore(folder, json.loads((folder / "about.json").read_text()), shard_rows=1)
    assert len(store.keys) == 8
    rows = [len(load_file(path)["values"]) for path in folder.glob("*.safetensors")]
    assert sum(rows) == sum(len(store[key]) for key in store.keys)
