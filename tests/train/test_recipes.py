"""Every recipe trains on a few passages in generated voices.

The laboratory's recipes use its encoder and LLM, the others use tiny random models. Their pages are tested in
`test_recipe_pages.py`.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from ossicle.align.aligner import Aligner
from ossicle.align.files import align_manifest
from ossicle.data.manifest import read_manifest
from ossicle.data.words import words_of
from ossicle.models.projectors import QFormerConfig
from ossicle.testing import tiny_encoder, tiny_llm
from ossicle.train.loop import train
from ossicle.train.recipe import Config, load
from ossicle.train.tracking import read_metrics
from ossicle_lab.recipes import is_study
from places import CORE_RECIPES, ENCODER, LAB_RECIPES, LLM

LAB = sorted(path for path in (LAB_RECIPES / "lab").glob("*.yaml") if not is_study(path))
PAPER = sorted((CORE_RECIPES / "paper").glob("*.yaml"))
STAGE_1 = [path for path in PAPER if not path.stem.startswith("finetune")]
STAGE_2 = [path for path in PAPER if path.stem.startswith("finetune")]
SMALLER = sorted(path for folder in ("small", "laptop") for path in (CORE_RECIPES / folder).glob("*.yaml"))
EVERY = sorted(path for folder in (CORE_RECIPES, LAB_RECIPES) for path in folder.glob("*/*.yaml") if not is_study(path))
LONGEST = 30
STEPS = 20
SCALED = "contr-cos-all-giga"
BEYOND_THE_PAPER = {"contr-cos-all-bos", "contr-cos-all-symmetric", "distillation"}
needs_lab = pytest.mark.skipif(
    not all((part / "model.safetensors").exists() for part in (ENCODER, LLM)),
    reason="the lab's encoder and LLM are not built: make lab",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make manifests of 16 passages with word times from the laboratory's aligner, and of tasks about them."""
    pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[lab]"')
    from ossicle_lab.world.corpus import make_corpus

    folder = tmp_path_factory.mktemp("corpus")
    made = make_corpus(folder, train=16, dev=1, test=1, max_sentences=1)
    words = folder / "words.jsonl"
    align_manifest(made.pretrain, words, Aligner.load())
    assert all(words_of(sample) for sample in read_manifest(words))
    return {"pretrain": words, "finetune": made.finetune, "cache": folder / "cache"}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return overrides that replace published models by tiny ones; the LLM has as many layers as the paper's."""
    folder = tmp_path_factory.mktemp("models")
    encoder, llm = tiny_encoder(folder / "encoder"), tiny_llm(folder / "llm", layers=32)
    sizes = {"width": 16, "heads": 2, "layers": 1, "ffn": 16}
    return [
        f"model.encoder={encoder}",
        f"model.llm={llm}",
        "model.projector.name=qformer",
        *(f"model.projector.{name}={size}" for name, size in sizes.items()),
    ]


def small(recipe: Path, corpus: dict[str, Path], out: Path, more: list[str]) -> Config:
    data = corpus["finetune" if recipe.stem.startswith("finetune") else "pretrain"]
    overrides = [f"output_dir={out}", f"data.train=[{data}]", "data.dev=[]", f"data.cache_dir={corpus['cache']}"]
    overrides += ["train.log_every=1", "train.tensorboard=false", "train.cpu=true", "data.workers=0"]
    return load(recipe, [*overrides, *more])


def losses(config: Config) -> list[float]:
    AcceleratorState._reset_state(True)
    return [row["loss"] for row in read_metrics(train(config) / "metrics.jsonl") if row["split"] == "train"]


def name_of(recipe: Path) -> str:
    return f"{recipe.parent.name}/{recipe.stem}"


@pytest.mark.no_cover  # other tests reach the same lines
@needs_lab
@pytest.mark.parametrize("recipe", LAB, ids=lambda path: path.stem)
def test_every_lab_recipe_trains(recipe, corpus, tmp_path):
    shorter = ["data.batch_size=8", "data.fraction=1", f"train.steps={STEPS}"]
    found = losses(small(recipe, corpus, tmp_path, shorter))
    first, last = sum(found[:4]) / 4, sum(found[-4:]) / 4
    print(f"\n{recipe.stem}: {first:.3f} -> {last:.3f}")
    assert len(found) == STEPS
    assert all(0 <= loss < float("inf") for loss in found)
    assert last < first


@pytest.mark.no_cover  # other tests reach the same lines
@pytest.mark.parametrize("recipe", PAPER + SMALLER, ids=name_of)
def test_every_other_recipe_runs_on_tiny_models(recipe, corpus, deep, tmp_path):
    found = losses(small(recipe, corpus, tmp_path, [*deep, "train.steps=2"]))
    assert len(found) == 2 and all(0 < loss < float("inf") for loss in found)


@pytest.mark.parametrize("recipe", EVERY, ids=name_of)
def test_recipes_are_short_and_say_what_they_are(recipe):
    lines = recipe.read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines) <= LONGEST
    assert load(recipe).name == recipe.stem


@pytest.mark.parametrize("recipe", PAPER, ids=name_of)
def test_paper_recipes_are_trained_as_the_paper_trains(recipe):
    config = load(recipe)
    assert (config.model.encoder, config.model.llm) == (
        "facebook/hubert-large-ls960-ft",
        "meta-llama/Llama-3.1-8B-Instruct",
    )
    stage_1 = (10, 2, 5, 45)
    assert (
        config.data.batch_size,
        config.train.accumulate,
        config.train.epochs,
        config.data.max_duration_s,
    ) == (stage_1 if recipe in STAGE_1 else (4, 5, 2, 150))
    assert (config.optim.lr, config.optim.warmup, config.optim.weight_decay, config.optim.clip) == (1e-4, 0.03, 0, 1)
    assert config.data.min_duration_s == 1
    assert config.data.workers == 4
    # Batches of similar length would make negatives easier to tell apart by their length alone.
    assert config.data.order == "random" or (config.data.order is None and config.objective.build().needs_negatives)
    assert config.data.max_batch_s >= config.data.batch_size * config.data.max_duration_s  # a batch is always full
    assert config.model.projector == QFormerConfig(match_embedding_rms=False)


def test_stage_2_of_the_paper_is_one_mix_at_two_fractions():
    tenth, whole, meta = (load(f"paper/finetune-{name}") for name in ("10", "100", "meta"))
    assert (tenth.data.fraction, whole.data.fraction) == (0.1, 1.0)
    assert replace(tenth, name=whole.name, data=replace(tenth.data, fraction=1.0)) == whole
    assert [Path(path).stem for path in whole.data.train] == [
        "train",
        *(f"train.st-{language}" for language in ("de", "fr", "it", "es")),
        "train.qa",
    ]
    assert replace(whole, name=meta.name, data=replace(whole.data, train=meta.data.train)) == meta
    assert {load(path).objective.name for path in STAGE_2} == {"next_token"}


def test_the_lab_has_every_recipe_of_the_paper():
    paper, lab = ({path.stem for path in paths} for paths in (STAGE_1, LAB))
    assert len(paper) == 15
    assert lab == paper - {SCALED} | BEYOND_THE_PAPER | {"finetune"}
    layers = [load(path).objective for path in PAPER if path.stem in ("contr-cos-all", "contr-wasser-all-mixed")]
    assert all(objective.layers == [0, 5, 10, 15, 20, 25, 32] for objective in layers)


def test_the_scaled_run_only_adds_gigaspeech_and_drops_the_cache():
    plain, scaled = (load(f"paper/{name}") for name in ("contr-cos-all", SCALED))
    data = replace(plain.data, train=[*plain.data.train, "data/gigaspeech/M.jsonl"], cache_text=False)
    assert replace(plain, name=SCALED, data=data) == scaled
