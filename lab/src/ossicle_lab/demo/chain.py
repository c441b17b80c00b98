"""One row of the demo's table: stage 1 (or none), stage 2, evaluation, in a process of its own; what precedes it."""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
"""glibc returns large blocks to the system after every step unless told not to: half of the time of a small step."""


def is_study(recipe: Path) -> bool:
    """Whether a file among the recipes is none, but names others: `ossicle study`."""
    from ossicle.train.recipe import read_tree

    return "pretraining" in read_tree(recipe)


@dataclass(frozen=True)
class Chain:
    """What one process does."""

    name: str
    folder: Path
    stage1: str | None
    """Recipe of stage 1, or None."""
    steps: tuple[int, int]
    """Of stage 1 and stage 2."""
    overrides1: tuple[str, ...]
    overrides2: tuple[str, ...]
    data: Path
    recipes: Path


@dataclass(frozen=True)
class ChainResult:
    """What one process found."""

    name: str
    scores: list[dict[str, Any]]
    """Rows of the score file: one per task and language."""
    alignment: list[dict[str, Any]]
    """Per layer, after stage 1."""
    seconds: dict[str, float]
    """Wall time of each part."""
    cpu_seconds: dict[str, float]
    """The same in time of the process, which other programs do not lengthen."""


def claim(stamp_file: Path, scale: Any, recipes: Path) -> None:
    """Let no run of another size (a dataclass) or of other recipes (a folder) mix with the one in this folder.

    Raises `ValueError` where ``stamp_file`` tells of one.
    """
    texts = {path.stem: path.read_text() for path in sorted(recipes.glob("*.yaml")) if not is_study(path)}
    stamp = json.loads(json.dumps({"scale": asdict(scale), "recipes": texts}))
    if stamp_file.is_file() and json.loads(stamp_file.read_text()) != stamp:
        fix = "delete it or give another --out"
        raise ValueError(f"{stamp_file.parent} holds a run of another size or of other recipes: {fix}")
    stamp_file.parent.mkdir(parents=True, exist_ok=True)
    stamp_file.write_text(json.dumps(stamp))


def encode_all(manifests: Iterable[Path], encoder: Path | str, cache: Path) -> None:
    """Encode every utterance of ``manifests`` once, into the folder ``cache``."""
    import torch

    from ossicle.data.dataset import SpeechDataset
    from ossicle.data.manifest import read_manifest
    from ossicle.models.encoder import load_encoder
    from ossicle.train.cache import FrameCache

    frames = FrameCache(cache, load_encoder(str(encoder)))
    for manifest in manifests:
        frames.fill(SpeechDataset(read_manifest(manifest)), torch.device("cpu"))


def run_chain(chain: Chain, threads: int) -> ChainResult:
    """Run what is not done yet; all output goes to ``log.txt``. Raises `RuntimeError` that names the log."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    import torch

    torch.set_num_threads(threads)
    chain.folder.mkdir(parents=True, exist_ok=True)
    log = chain.folder / "log.txt"
    done = chain.folder / "result.json"
    if done.is_file():
        return ChainResult(**json.loads(done.read_text()))
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            result = _run(chain)
        except Exception as error:
            traceback.print_exc()
            raise RuntimeError(f"{chain.name}: {error} (see {log})") from error
    done.write_text(json.dumps(asdict(result), indent=2))
    return result


def _run(chain: Chain) -> ChainResult:
    from ossicle.models.speech_llm import SpeechLLM
    from ossicle.precision import CPU

    clock = _Clock()
    start: tuple[str, ...] = ()
    if chain.stage1 is not None:
        with clock.timed("stage1"):
            _train(chain, chain.stage1, "stage1", (*chain.overrides1, f"train.steps={chain.steps[0]}"))
        start = (f"train.init_from={chain.folder / 'stage1'}",)
    with clock.timed("stage2"):
        _train(chain, "finetune", "stage2", (*chain.overrides2, f"train.steps={chain.steps[1]}", *start))
    with clock.timed("evaluation"):
        model = SpeechLLM.from_pretrained(chain.folder / "stage2", device=CPU)
        scores = decode_and_score(model, chain.data, chain.folder / "hypotheses.jsonl")
        if chain.stage1 is not None:
            model.load_projector(chain.folder / "stage1")
        alignment = align(model, chain.data, chain.folder / "similarity.npy")
    return ChainResult(chain.name, scores, alignment, clock.wall, clock.cpu)


def _train(chain: Chain, recipe: str, name: str, overrides: tuple[str, ...]) -> None:
    from ossicle.models.speech_llm import CONFIG_FILE
    from ossicle.train import recipe as config
    from ossicle.train.checkpoint import latest
    from ossicle.train.loop import train

    settings = config.load(
        chain.recipes / f"{recipe}.yaml",
        [*overrides, f"name={name}", f"output_dir={chain.folder}", f"data.cache_dir={chain.data / 'cache'}"],
    )
    if not (settings.folder / CONFIG_FILE).is_file():
        train(settings, resume=latest(settings.folder) is not None)


def decode_and_score(model: Any, data: Path, out: Path, *, from_text: bool = False) -> list[dict[str, Any]]:
    """Decode the test set of the folder ``data`` into ``out`` and score it; rows as in the score file."""
    from ossicle_lab.study import measure

    dataset = measure.cached([data / "test.jsonl"], model, data / "cache")
    return measure.decode_and_score(model, dataset, out, from_text=from_text)


def align(model: Any, data: Path, matrices: Path) -> list[dict[str, Any]]:
    """Alignment of the test passages per layer; the similarity matrices (layer, N, N) go to ``matrices``."""
    from ossicle_lab.study import measure

    return measure.align(model, measure.cached([data / "test" / "manifest.jsonl"], model, data / "cache"), matrices)


class _Clock:
    """Seconds of each part, by the clock on the wall and by that of this process."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = round(time.perf_counter() - wall, 1)
        self.cpu[name] = round(time.process_time() - cpu, 1)
