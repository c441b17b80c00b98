"""Tiny random models and data that the tests share; the folders are made once per session and never written to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from ossicle.batch import Batch, Utterance
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.data.words import WordTime, with_words
from ossicle.errors import OssicleError
from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.testing import ENCODERS, LLMS, tiny_encoder, tiny_llm, tiny_manifest
from ossicle.train.recipe import Config, parse

LLM_LAYERS = 3
PROJECTOR = {"name": "qformer", "width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 2, "window_s": 0.1}


def pytest_configure() -> None:
    torch.set_num_threads(1)  # the models are too small to share among threads


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """accelerate keeps the precision of the first run for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every encoder family, ``hubert-group`` (a base model's front end) and every LLM family, by name."""
    root = tmp_path_factory.mktemp("models")
    made = {family: tiny_encoder(root / family, family) for family in ENCODERS}
    made["hubert-group"] = tiny_encoder(root / "hubert-group", "hubert", norm="group")
    return made | {family: tiny_llm(root / family, family, layers=LLM_LAYERS) for family in LLMS}


@pytest.fixture(scope="session")
def real_models() -> dict[str, Path]:
    """Published weights by name: whisper-tiny.en and smollm2-135m-instruct; tests skip where they cannot be built.

    They are fetched once, to $OSSICLE_TEST_MODELS or ~/.cache/ossicle-tests, in about a minute.
    """
    from filelock import FileLock

    from ossicle_lab.real.models import fetch

    folder = Path(os.environ.get("OSSICLE_TEST_MODELS", Path.home() / ".cache" / "ossicle-tests"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock"):  # the processes of pytest-xdist need them at the same time
            return {name: fetch(name, folder) for name in ("whisper-tiny.en", "smollm2-135m-instruct")}
    except OssicleError as error:
        pytest.skip(f"published models cannot be fetched: {error}")


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight utterances with transcripts, for stage 1."""
    return tiny_manifest(tmp_path_factory.mktemp("stage1"), 8)


@pytest.fixture(scope="session")
def task_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six utterances with recognition, translation and question answering in turn, for stage 2."""
    return tiny_manifest(tmp_path_factory.mktemp("stage2"), 6, tasks=("asr", "st", "qa"), seed=1)


@pytest.fixture
def build(folders: dict[str, Path]) -> Callable[..., SpeechLLM]:
    """``build(encoder, llm, **projector)``: a model in evaluation mode, the same one for the same arguments."""

    def make(encoder: str = "hubert", llm: str = "llama", **projector: Any) -> SpeechLLM:
        torch.manual_seed(0)
        sizes = QFormerConfig(**{**PROJECTOR, **projector})
        config = ModelConfig(encoder=str(folders[encoder]), llm=str(folders[llm]), projector=sizes)
        return config.build().eval()

    return make


@pytest.fixture
def model(build: Callable[..., SpeechLLM]) -> SpeechLLM:
    return build()


@pytest.fixture
def collate() -> Callable[..., Batch]:
    """``collate(model, manifest, indices)``: those utterances of a manifest as one batch."""

    def make(model: SpeechLLM, manifest: Path, indices: Any = range(4)) -> Batch:
        dataset = SpeechDataset(read_manifest(manifest))
        return Collator(model.prompter())([dataset[i] for i in indices])

    return make


@pytest.fixture
def utterances(manifest: Path) -> list[Utterance]:
    """Four of more than three words, each with the time of its tone."""
    dataset = SpeechDataset(read_manifest(manifest))
    found = []
    for utterance in (dataset[i] for i in range(len(dataset))):
        words = (utterance.sample.text or "").split()
        if isinstance(utterance, Utterance) and len(words) > 3:
            times = [WordTime(word, 0.15 * i, 0.15 * (i + 1)) for i, word in enumerate(words)]
            found.append(replace(utterance, sample=with_words(utterance.sample, times, "tones")))
    assert len(found) >= 4
    return found[:4]


@pytest.fixture
def tree(folders: dict[str, Path], manifest: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``tree(train={"steps": 3})``: a small run as plain values, of which sections are changed."""

    def make(**sections: Any) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "name": "run",
            "output_dir": str(tmp_path / "runs"),
            "model": {"encoder": str(folders["hubert"]), "llm": str(folders["llama"]), "projector": PROJECTOR},
            "data": {"train": [str(manifest)], "batch_size": 4},
            "optim": {"lr": 3e-3},
            "train": {"steps": 4, "log_every": 1, "tensorboard": False, "cpu": True},
        }
        for name, value in sections.items():
            merge = isinstance(value, dict) and name in plain
            plain[name] = {**plain[name], **value} if merge else value
        return json.loads(json.dumps(plain))  # its own copy

    return make


@pytest.fixture
def config(tree: Callable[..., dict[str, Any]]) -> Callable[..., Config]:
    """``config(train={"steps": 3})``: the same run, validated."""
    return lambda **sections: parse(tree(**sections))


@pytest.fixture
def recipe(tree: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """``recipe(train={"steps": 3})``: the same run as a YAML file."""

    def make(**sections: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree(**sections)))
        return path

    return make
