"""Mixed sequences in training: several processes, new spans in each epoch, data without word times."""

import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ossicle.batch import Batch, LossOutput
from ossicle.data.collate import Collator
from ossicle.data.manifest import write_manifest
from ossicle.data.mixed import Mixing
from ossicle.data.words import WordTime, with_words
from ossicle.errors import ConfigError, ManifestError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import MixedContrastive, MixedNextToken
from ossicle.train.loop import train
from ossicle.train.recipe import Config


def train_share(rank: int, port: int, folder: Path, share: Batch, objective: MixedContrastive, out: Path) -> None:
    """Compute the loss and the projector's gradient in one of two processes, with the model in ``folder``."""
    model = SpeechLLM.from_pretrained(folder).eval()
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    output = objective(model, share)
    output.total.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.projector.parameters()])
    torch.save((output.total.detach(), gradient), out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("similarity", ["cosine", "wasserstein"])
def test_two_processes_are_one_on_the_joined_batch(model, utterances, tmp_path, similarity):
    objective = MixedContrastive(similarity=similarity, layers=[1, 3], direction="symmetric")
    prompter = model.prompter()
    parts = utterances[:1], utterances[1:], utterances
    *shares, batch = (Collator(prompter, Mixing(prompter))(part) for part in parts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used threads can hang
    model.save(tmp_path / "model")
    arguments = [(rank, port, tmp_path / "model", share, objective, tmp_path) for rank, share in enumerate(shares)]
    processes = [context.Process(target=train_share, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    totals, gradients = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    whole = objective(model, batch)
    whole.total.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.projector.parameters()])
    for total in totals:
        torch.testing.assert_close(total, whole.total.detach(), atol=1e-5, rtol=1e-5)
    assert (torch.stack(gradients).mean(0) - expected).norm() < 1e-3 * expected.norm()


@dataclass
class Watch:
    """Objective that records every batch."""

    needs_negatives = False
    needs_mixed = True
    seen: list[tuple[list[str], list[int]]] = field(default_factory=list)

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        self.seen.append(([sample.id for sample in batch.samples], batch.mixed.starts.tolist()))
        return MixedNextToken()(model, batch)


@pytest.fixture
def timed(utterances, tmp_path) -> Path:
    """Write the manifest of the utterances, and a last line with two words."""
    first = utterances[0].sample
    short = with_words(replace(first, id="short"), [WordTime("one", 0, 0.1), WordTime("two", 0.1, 0.2)], "tones")
    write_manifest(tmp_path / "timed.jsonl", [*(utterance.sample for utterance in utterances), short])
    return tmp_path / "timed.jsonl"


def test_training_draws_new_spans_in_each_epoch_in_any_process(
    config: Callable[..., Config], timed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name, workers in (("plain", 0), ("workers", 2)):
        watch = Watch()
        data = {"train": [str(timed)], "batch_size": 8, "workers": workers}
        train(config(name=name, data=data, train={"steps": 3}), objective=watch)
        runs.append(watch.seen)
        assert "timed.jsonl:" in (said := capsys.readouterr().err)
        assert "'short' skipped: has 2 words, a mixed sequence needs 3" in said
    assert runs[0] == runs[1]
    assert len({str(starts) for _, starts in runs[0]}) == 3
    assert all("short" not in ids for ids, _ in runs[0])


def test_data_that_cannot_be_mixed_stops_the_run(config, timed, manifest):
    objective = {"name": "sum", "terms": [{"objective": {"name": "mixed_next_token"}}]}
    with pytest.raises(ConfigError, match=r"cache_frames keeps the frames of whole utterances.*cache_frames=false"):
        train(config(name="a", objective=objective, data={"train": [str(timed)], "cache_frames": True}))
    with pytest.raises(ManifestError, match=r'manifest-0\.jsonl:1: .* has no "words": make them with "ossicle align"'):
        train(config(name="b", objective=objective, data={"train": [str(manifest)]}))
