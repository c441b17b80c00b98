"""The doctor's estimate of memory agrees with the peak of a step on the largest batch, measured on the lab's models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Sample
from ossicle.data.manifest import write_manifest
from ossicle.doctor import memory
from ossicle.doctor.batch import load_batch
from ossicle.doctor.cost import Measured, report_cost
from ossicle.doctor.finding import Report
from ossicle.doctor.saved import peak_b, run_and_count
from ossicle.train.recipe import Config, parse
from ossicle.train.state import trainable

PROJECTOR = {"name": "qformer", "width": 64, "heads": 4, "layers": 2, "ffn": 128, "queries": 2, "window_s": 0.32}
BOTH = [{"objective": {"name": "contrastive"}}, {"objective": {"name": "next_token"}}]
OBJECTIVES = {
    "cosine": {"name": "contrastive"},
    "token": {"name": "next_token"},
    "both": {"name": "sum", "terms": BOTH},
}


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 utterances of noise whose length doubles every eight lines."""
    folder = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    samples = []
    for i in range(24):
        seconds = (1 + i % 3 / 4) * 2 ** (i // 8 - 1)
        path = folder / f"{i}.wav"
        soundfile.write(path, 0.1 * random.standard_normal(int(seconds * SAMPLE_RATE_HZ)), SAMPLE_RATE_HZ)
        samples.append(Sample(id=str(i), audio=path, text="word " * round(3 * seconds), duration_s=seconds))
    write_manifest(folder / "noise.jsonl", samples)
    return folder / "noise.jsonl"


@pytest.fixture
def made(utterances: Path, tmp_path: Path):
    def make(objective: str, **data: object) -> Config:
        model = {"encoder": "lab", "llm": "lab", "projector": {**PROJECTOR, "dropout": 0.0}}
        data = {"train": [str(utterances)], "batch_size": 8, "order": "duration", **data}
        tree = {"name": "run", "output_dir": str(tmp_path), "model": model, "data": data}
        return parse({**tree, "objective": OBJECTIVES[objective], "train": {"cpu": True, "tensorboard": False}})

    return make


def loaded_with(config: Config, seed: int = 0):
    config = replace(config, data=replace(config.data, seed=seed))
    model = config.model.build()
    model.train()
    return config, model, load_batch(config, model)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_estimate_is_within_a_tenth_of_the_peak_of_a_step(made, objective):
    for seed in range(20):  # an order that begins with the batch in the middle
        config, model, loaded = loaded_with(made(objective), seed)
        first = loaded.batch.audio_s
        if 9 < first < 11:
            break
    found = memory.estimate(config, model, loaded)
    assert found.audio_s == pytest.approx(2 * first, rel=0.05)
    largest = max(loaded.data.epoch(0), key=lambda batch: batch.audio_s)
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, fused=True)

    def step() -> None:
        loaded.objective(model, largest).total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes Adam's moments
    measured = peak_b(step, torch.device("cpu"))
    estimated = max(found.step_b, found.encoder_b)
    print(f"\n{objective}: estimated {estimated / 1e6:.2f} MB, measured {measured / 1e6:.2f} MB")
    assert estimated == pytest.approx(measured, rel=0.1)


def test_a_sum_keeps_both_graphs(made):
    kept = {}
    for objective in OBJECTIVES:
        _, model, loaded = loaded_with(made(objective))
        kept[objective] = run_and_count(lambda: loaded.objective(model, loaded.batch), model)[1]  # noqa: B023
    # The projector runs once for both.
    assert max(kept["cosine"], kept["token"]) * 1.1 < kept["both"] < kept["cosine"] + kept["token"]


def test_cached_frames_need_no_encoder(made, tmp_path):
    config, model, loaded = loaded_with(made("cosine", cache_frames=True, cache_dir=str(tmp_path)))
    report = Report(Console(quiet=True))
    assert memory.estimate(config, model, loaded).encoder_b == 0
    report_cost(config, model, loaded, report, Measured(1000, 0.1))
    [line] = [finding.message for finding in report.findings if finding.check == "memory"]
    assert "0.00 MB in the encoder" in line and "positions in the LLM" in line


def test_free_queries_count_where_the_llm_reads_them(made):
    positions, kept = {}, {}
    for free in (0, 2):  # beside 2 others
        for objective in ("cosine", "token"):
            config = made(objective)
            projector = replace(config.model.projector, free_queries=free)
            config, model, loaded = loaded_with(replace(config, model=replace(config.model, projector=projector)))
            positions[objective, free] = memory.estimate(config, model, loaded).positions
            report = Report(Console(quiet=True))
            report_cost(config, model, loaded, report, Measured(1000, 0.1))
            [line] = [finding.message for finding in report.findings if finding.check == "activations"]
            kept[objective, free] = int(line.split(" speech tokens")[0].rpartition(" ")[2])
            spoken = model.token_rate_hz * loaded.batch.audio_s
    assert positions["cosine", 2] == positions["cosine", 0] and kept["cosine", 2] == kept["cosine", 0]
    assert positions["token", 2] - positions["token", 0] == pytest.approx(positions["cosine", 0], rel=0.02)
    assert kept["token", 2] == round(spoken) == pytest.approx(2 * kept["token", 0], abs=1)


def test_the_peak_is_that_of_tensors_that_live_at_the_same_time():
    def run() -> None:
        first = torch.ones(1000)
        second = first + 1
        del first
        third = second * 2
        del second, third

    assert 8000 <= peak_b(run, torch.device("cpu")) < 8200
