"""Every recipe of the lab trains: with the lab's own encoder and LLM, on a few passages in generated voices."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from ossicle.config import Config, load
from ossicle.data.align_files import align_manifest
from ossicle.data.aligner import Aligner
from ossicle.data.manifest import read_manifest
from ossicle.data.words import words_of
from ossicle.tracking import read_metrics
from ossicle.train import train

ROOT = Path(__file__).parents[1]
LAB = sorted((ROOT / "recipes" / "lab").glob("*.yaml"))
PAPER = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))
WEIGHTS = ROOT / "src/ossicle/lab/weights"
STEPS = 20
BEYOND_THE_PAPER = {"contr-cos-all-bos", "contr-cos-all-symmetric", "distillation"}
needs_lab = pytest.mark.skipif(
    not all((WEIGHTS / part / "model.safetensors").exists() for part in ("encoder", "llm")),
    reason="the lab's encoder and LLM are not built: make lab",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Manifests: 16 passages with word times from the lab's aligner, and the tasks about them."""
    pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[lab]"')
    from ossicle.lab.corpus import make_corpus

    folder = tmp_path_factory.mktemp("corpus")
    made = make_corpus(folder, train=16, dev=1, test=1, max_sentences=1)
    words = folder / "words.jsonl"
    align_manifest(made.pretrain, words, Aligner.load())
    assert all(words_of(sample) for sample in read_manifest(words))
    return {"pretrain": words, "finetune": made.finetune, "cache": folder / "cache"}


def small(recipe: Path, corpus: dict[str, Path], out: Path) -> Config:
    data = corpus["finetune" if recipe.stem == "finetune" else "pretrain"]
    return load(
        recipe,
        [
            f"output_dir={out}",
            f"data.train=[{data}]",
            f"data.cache_dir={corpus['cache']}",
            "data.batch_size=8",
            "data.fraction=1",
            f"train.steps={STEPS}",
            "train.log_every=1",
            "train.tensorboard=false",
            "train.cpu=true",
        ],
    )


@needs_lab
@pytest.mark.parametrize("recipe", LAB, ids=lambda path: path.stem)
def test_every_lab_recipe_trains(recipe, corpus, tmp_path):
    AcceleratorState._reset_state(True)
    config = small(recipe, corpus, tmp_path)
    rows = [row for row in read_metrics(train(config) / "metrics.jsonl") if row["split"] == "train"]
    losses = [row["loss"] for row in rows]
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    print(f"\n{recipe.stem}: {first:.3f} -> {last:.3f}")
    assert len(losses) == STEPS
    assert all(0 < loss < float("inf") for loss in losses)
    assert last < first
