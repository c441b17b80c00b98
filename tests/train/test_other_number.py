"""A run that continues with another number of processes uses the same utterances in each step, with the same losses."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.data.sampler import BatchSampler
from ossicle.errors import CheckpointError, ConfigError
from ossicle.objectives import Contrastive, NextToken
from ossicle.train import checkpoint, regroup
from ossicle.train.loop import train
from ossicle.train.state import Position, Trainer
from processes import Killed, Run, Watched, in_two, losses, weights

OBJECTIVES = {"token": NextToken, "cosine": Contrastive}
STEPS = 6


def alone(run: Run) -> list[list[str]]:
    """Run in this process; return the ids of each call."""
    with suppress(Killed):
        train(run.config, objective=run.objective, resume=run.resume)
    return run.objective.ids


@pytest.mark.slow
def test_it_continues_with_the_utterances_and_losses_of_the_first_number(config, manifest, tmp_path):
    """Divide a run of 2 processes: 2 -> 1 -> 2 -> 1, and a run of one: 1 -> 2. Steps 2 and 4 span two epochs."""
    seven = tmp_path / "seven.jsonl"
    write_manifest(seven, read_manifest(manifest)[:7])

    def made(name: str, batch_size: int, needs_dev: bool = True):
        projector = {**config().model.projector.__dict__, "dropout": 0.2}
        dev = [str(manifest)] if needs_dev else []
        data = {"train": [str(seven)], "dev": dev, "batch_size": batch_size, "order": "random"}
        train = {"steps": STEPS, "save_every": 1, "eval_every": 3, "keep": 9, "dropout": "utterance"}
        return config(
            name=name, model={"projector": projector}, objective={"name": "next_token"}, data=data, train=train
        )

    def run(name: str, kind: str, size: int, stop: int = 0, resume: bool = False) -> Run:
        return Run(made(f"{kind}-{name}", size), Watched(OBJECTIVES[kind](), at=stop), resume)

    kinds = list(OBJECTIVES)
    # `stop` is the call that is killed: the first evaluation is one call in each process, after step 3.
    first = in_two(
        [run(name, kind, 2, stop) for kind in kinds for name, stop in (("whole2", 0), ("from2", 2))], tmp_path
    )
    second = [
        alone(run(name, kind, size, stop, resume))
        for kind, calls in (("token", 2), ("cosine", 1))
        for name, size, stop, resume in (
            ("from2", 2, calls + 1, True), ("whole1", 4, 0, False), ("from1", 4, 3, False))
    ]  # fmt: skip
    third = in_two([run(f"from{n}", kind, 2 * (3 - n), 0, True) for kind in kinds for n in (1, 2)], tmp_path)
    assert all(rank["error"] in ("", "killed") for both in (*first, *third) for rank in both)
    for kind in kinds:
        for n in (1, 2):
            names = [f"{kind}-{name}{n}" for name in ("whole", "from")]
            whole, divided = (tmp_path / "runs" / name for name in names)
            assert len(losses(whole)) == STEPS
            for split in ("train", "dev"):
                assert losses(divided, split) == pytest.approx(losses(whole, split), rel=2e-5), (kind, n, split)
            torch.testing.assert_close(weights(divided), weights(whole), atol=1e-4, rtol=1e-3)
    # The utterances of the second step: whole runs of two processes, and the same step in one.
    for both, one, calls in ((first[0], second[0], 2), (first[2], second[3], 1)):
        assert sorted(i for rank in both for i in rank["ids"][1]) == sorted(i for ids in one[:calls] for i in ids)
    assert [len(rank["ids"][0]) for rank in third[0]] != [0, 0]


def planned(planned_for: int, rank: int, world_size: int, **options) -> BatchSampler:
    durations = [1.0 + 0.1 * (i % 7) for i in range(42)]
    return BatchSampler(
        durations_s=durations, batch_size=4, planned_for=planned_for, rank=rank, world_size=world_size, **options
    )


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize(("old", "new"), [(2, 1), (1, 2), (4, 2), (2, 4), (3, 2), (2, 3)])
def test_rounds_keep_their_utterances(old, new, least):
    before = [list(planned(old, rank, old, min_batch_size=least)) for rank in range(old)]
    after = [planned(old, rank, new, min_batch_size=least) for rank in range(new)]
    each = after[0].batches_per_round
    assert each == (1 if least == 2 else -(-old // new))
    divided = [list(one) for one in after]
    assert {len(one) for one in divided} == {each * len(before[0])} == {len(one) for one in after}
    for k, round_ in enumerate(zip(*before, strict=True)):
        parts = [batch for one in divided for batch in one[k * each : (k + 1) * each]]
        assert sorted(i for batch in parts for i in batch) == sorted(i for batch in round_ for i in batch)
        assert all(parts)
        if least == 1:
            assert max(map(len, parts)) <= 4


def test_whole_batches_are_kept_where_the_numbers_divide():
    before = [list(planned(4, rank, 4)) for rank in range(4)]
    first, second = (list(planned(4, rank, 2)) for rank in range(2))
    assert first == [before[i][k] for k in range(len(before[0])) for i in (0, 1)]
    assert second == [before[i][k] for k in range(len(before[0])) for i in (2, 3)]


def test_a_round_that_is_too_small_is_refused_before_the_first_step():
    sampler = BatchSampler(durations_s=[1.0] * 5, batch_size=2, planned_for=1, rank=0, world_size=2)
    with pytest.raises(
        ConfigError, match=r"2 processes cannot continue a run of 1: a step has 1 utterances .* start 1"
    ):
        regroup.check_division(sampler, None, Position(step=1), 4)
    same = BatchSampler(durations_s=[1.0] * 5, batch_size=2, rank=0, world_size=2)
    regroup.check_division(same, None, Position(step=1), 4)


def test_different_positions_are_refused():
    ranks = [{"position": {"epoch": 0, "batch": batch}} for batch in (3, 4)]
    trainer = Trainer(None, None, Position(), planned_for=2, batches_per_round=2)
    with pytest.raises(
        CheckpointError, match=r"2 processes were at different positions .* so that 1 cannot .* start 2"
    ):
        regroup.state_of_rank(Path("step-1"), {"ranks": ranks}, trainer, 0, 1)
    ranks[1] = ranks[0]
    state = regroup.state_of_rank(Path("step-1"), {"ranks": ranks}, trainer, 0, 1)
    assert state["position"] == {"epoch": 0, "batch": 6}


def test_the_first_number_is_read_from_the_newest_readable_checkpoint(config):
    run = config(train={"steps": 3, "save_every": 1, "keep": 3})
    assert checkpoint.planned_for(run.folder) == 0
    train(run)
    files = sorted(run.folder.glob("checkpoints/step-*/trainer.pt"))
    state = torch.load(files[-2], weights_only=True)
    torch.save({**state, "planned_for": 5}, files[-2])
    assert checkpoint.planned_for(run.folder) == 1
    files[-1].write_bytes(b"damaged")
    assert checkpoint.planned_for(run.folder) == 5
    del state["planned_for"]  # as Ossicle 0.9 wrote it
    torch.save({**state, "ranks": state["ranks"] * 3}, files[-2])
    assert checkpoint.planned_for(run.folder) == 3
