"""Mixed precision and gradient checkpointing in two processes: the losses of one process with the joined batch."""

import pytest

from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.objectives import Contrastive, NextToken
from ossicle.train.loop import train
from processes import Run, in_two, losses

CASES = {
    "cosine": (Contrastive, {}),
    "token": (NextToken, {}),
    "recomputed": (NextToken, {"gradient_checkpointing": True}),
}
HALF = 2e-2
"""Relative difference that rounding to bfloat16 makes in three steps."""


@pytest.mark.slow
def test_bfloat16_has_the_losses_of_one_process(config, manifest, tmp_path):
    eight = tmp_path / "eight.jsonl"
    write_manifest(eight, read_manifest(manifest)[:8])

    def made(name: str, kind: str, size: int, precision: str):
        objective, more = CASES[kind]
        projector = {**config().model.projector.__dict__, "dropout": 0.2}
        data = {"train": [str(eight)], "dev": [str(manifest)], "batch_size": size, "order": "random"}
        settings = {"steps": 3, "eval_every": 3, "precision": precision, "dropout": "utterance", **more}
        made = config(name=f"{kind}-{name}", model={"projector": projector}, data=data, train=settings)
        return Run(made, objective())

    divided = [made("two", kind, 4, "bf16") for kind in CASES]
    assert all(rank["error"] == "" for ranks in in_two(divided, tmp_path) for rank in ranks)
    for kind, two in zip(CASES, divided, strict=True):
        one, whole = made("one", kind, 8, "bf16"), made("whole", kind, 8, "fp32")
        for run in (one, whole):
            train(run.config, objective=run.objective)
        for split in ("train", "dev"):
            found = losses(two.config.folder, split)
            assert found == pytest.approx(losses(one.config.folder, split), rel=HALF), (kind, split)
            assert found == pytest.approx(losses(whole.config.folder, split), rel=HALF), (kind, split)
