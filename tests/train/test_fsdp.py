"""A run whose LLM is divided over two processes trains as one process with the whole LLM and the joined batch."""

import multiprocessing
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ossicle.batch import Batch, LossOutput, Padded
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ConfigError
from ossicle.models.llm import load_llm
from ossicle.models.saving import WEIGHTS_FILE
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, NextToken
from ossicle.train.loop import train
from ossicle.train.sharding import average_gradients, group_size, shard
from processes import Run, Watched, in_two, losses, weights

OBJECTIVES = {
    "cosine": Contrastive(),
    "wasserstein": Contrastive(similarity="wasserstein", layers=[0, 2]),
    "token": NextToken(),
    "recomputed": NextToken(),
}


@dataclass
class Weighed(Watched):
    """Objective that records the share of the weights of the LLM's layers that its process holds, in each call."""

    held: list[float] = field(default_factory=list)

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        layers = list(model.llm.model.base_model.layers.parameters())
        own = sum(getattr(weight, "to_local", lambda weight=weight: weight)().numel() for weight in layers)
        output = super().__call__(model, batch)
        self.ids[-1] = own / sum(weight.numel() for weight in layers)
        return output


@pytest.mark.slow
def test_losses_and_projector_equal_those_of_one_process(config, manifest, tmp_path):
    eight = tmp_path / "eight.jsonl"
    write_manifest(eight, read_manifest(manifest)[:8])

    def made(name: str, kind: str, **train):
        quiet = {"projector": {**config().model.projector.__dict__, "dropout": 0.0}}
        data = {
            "train": [str(eight)],
            "dev": [str(manifest)],
            "batch_size": 8 // (1 + train["fsdp"]),
            "order": "random",
        }
        train |= {"steps": 3, "eval_every": 3, "gradient_checkpointing": kind == "recomputed"}
        return config(name=f"{kind}-{name}", model=quiet, data=data, train=train)

    runs = [Run(made("two", kind, fsdp=True), Weighed(one)) for kind, one in OBJECTIVES.items()]
    stopped = made("stopped", "token", fsdp=True, save_every=1)
    runs += [Run(stopped, Watched(NextToken(), at=3)), Run(stopped, Watched(NextToken()), resume=True)]
    results = in_two(runs, tmp_path)
    assert [rank["error"] for both in results for rank in both] == [""] * 8 + ["killed"] * 2 + [""] * 2
    for both in results[:4]:
        for rank in both:
            assert all(0.45 < share < 0.55 for share in rank["ids"])
    for kind, one in OBJECTIVES.items():
        alone = train(made("alone", kind, fsdp=False), objective=one)
        two = tmp_path / "runs" / f"{kind}-two"
        for split, count in (("train", 3), ("dev", 1)):
            assert len(losses(two, split)) == count
            assert losses(two, split) == pytest.approx(losses(alone, split), rel=1e-5), (kind, split)
        torch.testing.assert_close(weights(two), weights(alone), atol=1e-4, rtol=1e-3)
        assert (two / WEIGHTS_FILE).stat().st_size == (alone / WEIGHTS_FILE).stat().st_size  # the projector only
    assert losses(stopped.folder) == losses(tmp_path / "runs" / "token-two")
    for key, tensor in weights(stopped.folder).items():
        assert torch.equal(tensor, weights(tmp_path / "runs" / "token-two")[key])


@pytest.mark.slow
def test_each_of_two_machines_divides_the_llm(config, manifest, tmp_path):
    quiet = {"projector": {**config().model.projector.__dict__, "dropout": 0.0}}

    def made(name: str, batch_size: int, **train):
        data = {"train": [str(manifest)], "dev": [str(manifest)], "batch_size": batch_size, "order": "random"}
        return config(name=name, model=quiet, data=data, train=train | {"steps": 3, "eval_every": 3})

    four, alone = made("four", 2, fsdp="node"), made("alone", 8)
    [ranks] = in_two([Run(four, Weighed(Contrastive()))], tmp_path, count=4)
    assert [rank["error"] for rank in ranks] == [""] * 4
    assert all(0.45 < share < 0.55 for rank in ranks for share in rank["ids"])
    train(alone, objective=Contrastive())
    for split in ("train", "dev"):
        assert losses(four.folder, split) == pytest.approx(losses(alone.folder, split), rel=1e-5)
    torch.testing.assert_close(weights(four.folder), weights(alone.folder), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("own", ["", "3", "0", "two"])
def test_a_machine_without_a_known_number_of_processes_is_refused(monkeypatch, own):
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", own)
    with pytest.raises(ConfigError, match=f"LOCAL_WORLD_SIZE is '{own}' with 4 processes"):
        group_size("node")
    assert group_size(True) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert group_size("node") == 2


def half_of(rank: int, port: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    llm = load_llm(str(folder))
    shard(llm, torch.device("cpu"), 2)
    torch.save(outputs(llm, rank), out / f"{rank}.pt")
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad = torch.full((2, 3), 1.0 + 2 * rank)
    if rank:
        parameters[1].grad = torch.ones(1)
    average_gradients(parameters)
    assert [float(parameter.grad.mean()) for parameter in parameters] == [2.0, 0.5]
    dist.destroy_process_group()


def outputs(llm, seed: int) -> dict[str, torch.Tensor | list[str]]:
    """Run the ways into an LLM: states of all layers and of the first ones, their gradient, logits and answers."""
    values = torch.randn(2, 5, llm.dim, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    prompt = Padded(values, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
    every = llm.hidden_states(prompt, range(llm.num_layers + 1)).states
    first = llm.hidden_states(prompt, [1]).states[1]
    (gradient,) = torch.autograd.grad(sum(state.square().mean() for state in every.values()) + first.mean(), values)
    with torch.no_grad():
        logits = llm.logits(every[llm.num_layers][:, -1])
        answers = llm.generate(Padded(values[:, :3].flip(1), prompt.mask[:, :3]), max_new_tokens=4, min_new_tokens=4)
    found = {"first": first, "last": every[llm.num_layers], "gradient": gradient, "logits": logits}
    return {**{name: tensor.detach() for name, tensor in found.items()}, "answers": answers}


@pytest.mark.slow
def test_every_way_into_a_divided_llm_gives_the_same(folders, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    arguments = (port, folders["llama"], tmp_path)
    workers = [context.Process(target=half_of, args=(rank, *arguments)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=200)
        assert worker.exitcode == 0
    for rank in (0, 1):
        expected = outputs(load_llm(str(folders["llama"])), rank)
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.pop("answers") == expected.pop("answers")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"cache_text": True}}, r"train\.fsdp does not work with data\.cache_text=true"),
        ({"model": {"llm_dtype": "int4"}}, r"train\.fsdp does not work with model\.llm_dtype=int4"),
        ({"train": {"analyze_every": 2}}, "analyze_every"),
        ({"objective": {"name": "on_policy"}}, r"objective\.name=on_policy"),
        (
            {"objective": {"name": "sum", "terms": [{"objective": {"name": "on_policy"}}]}},
            r"train\.fsdp does not work with objective\.name=on_policy",
        ),
    ],
)
def test_settings_that_run_other_layers_in_each_process_are_refused(config, manifest, sections, message):
    data = {"dev": [str(manifest)], **sections.get("data", {})}
    with pytest.raises(ConfigError, match=message):
        train(config(**{**sections, "data": data, "train": {"fsdp": True, **sections.get("train", {})}}))


def test_a_single_process_keeps_the_whole_llm(config):
    plain, divided = train(config(name="plain")), train(config(name="divided", train={"fsdp": True}))
    assert losses(plain) == losses(divided)
