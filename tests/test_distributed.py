"""Two processes with half of a batch each compute the losses and gradients of one process with the whole batch."""

import itertools
import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ossicle.batch import Batch
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.distributed import gather_columns, gather_ragged, gather_rows, world_size
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive
from ossicle.train.cache import TextCache

SHARES = ([0, 1, 2, 3, 4], [5, 6, 7])  # of different sizes, with longest texts of different lengths
CASES = [
    (similarity, direction, cached)
    for similarity, direction, cached in itertools.product(
        ("cosine", "wasserstein"), ("text_to_speech", "symmetric"), (False, True)
    )
]


def batch_of(model: SpeechLLM, manifest: Path, indices: list[int]) -> Batch:
    dataset = SpeechDataset(read_manifest(manifest))
    return Collator(model.prompter())([dataset[i] for i in indices])


def results(model: SpeechLLM, manifest: Path, indices: list[int], folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Compute the loss and the projector's gradient, averaged over the processes as DistributedDataParallel does."""
    batch = batch_of(model, manifest, indices)
    for similarity, direction, cached in CASES:
        model.text_cache = TextCache(folder, model.llm) if cached else None
        model.zero_grad()
        output = Contrastive(similarity=similarity, direction=direction)(model, batch)
        output.total.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.projector.parameters()])
        if world_size() > 1:
            dist.all_reduce(gradient)
            gradient /= world_size()
        yield {"loss": output.total.detach(), "gradient": gradient}


def one_of_two(rank: int, port: int, folder: Path, manifest: Path, out: Path) -> None:
    torch.set_num_threads(1)
    model = SpeechLLM.from_pretrained(folder).eval()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = torch.arange(3 - rank)[:, None] + 10 * rank
    torch.save(
        {
            "results": list(results(model, manifest, SHARES[rank], out / f"cache-{rank}")),
            "rows": gather_rows(rows),
            "ragged": gather_ragged(torch.full((2, 1 + rank), float(rank + 1))),
            "columns": gather_columns(torch.full((3, 1 + rank), float(rank + 1))),
        },
        out / f"{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory, manifest, folders):
    from ossicle.models.projectors import QFormerConfig
    from ossicle.models.speech_llm import ModelConfig

    torch.manual_seed(0)
    projector = QFormerConfig(width=16, heads=2, layers=2, ffn=24, queries=2, window_s=0.1)
    parts = ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=projector)
    model = parts.build().eval()
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model.save(out / "model")
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used threads can hang
    workers = [context.Process(target=one_of_two, args=(rank, port, out / "model", manifest, out)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=100)
        assert worker.exitcode == 0
    alone = list(results(model, manifest, [i for share in SHARES for i in share], out / "cache-alone"))
    return alone, *(torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1))


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{s}-{d}-{'cached' if c else 'read'}" for s, d, c in CASES])
def test_two_processes_equal_one_on_the_joined_batch(found, case):
    alone, *both = found
    expected = alone[case]
    for one in both:
        torch.testing.assert_close(one["results"][case]["loss"], expected["loss"], rtol=1e-5, atol=1e-6)
        distance = (one["results"][case]["gradient"] - expected["gradient"]).norm() / expected["gradient"].norm()
        assert distance < 1e-4


def test_negatives_of_the_other_process_count(found, manifest, build):
    """Check that negatives matter: otherwise the losses of the halves would be enough."""
    alone, *_ = found
    model = build()
    halves = [Contrastive()(model, batch_of(model, manifest, share)).total.item() for share in SHARES]
    assert abs(alone[0]["loss"].item() - sum(halves) / 2) > 0.1


def test_rows_columns_and_ragged_blocks_are_joined_by_rank(found):
    for one in found[1:]:
        assert one["rows"].flatten().tolist() == [0, 1, 2, 10, 11]
        assert one["ragged"].tolist() == [[1, 0], [1, 0], [2, 2], [2, 2]]
        assert one["columns"].tolist() == [[1, 2, 2]] * 3


def test_alone_nothing_happens():
    values = torch.randn(3, 4, requires_grad=True)
    assert gather_columns(values) is gather_ragged(values) is values
    assert torch.equal(gather_rows(values), values)
