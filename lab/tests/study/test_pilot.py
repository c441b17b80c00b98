"""The pilot of the candidates beyond the paper: its rows, its recipes, and rows that train on the LLM's own answers."""

import pytest
import yaml
from accelerate.state import AcceleratorState
from rich.console import Console

from ossicle.data.manifest import read_manifest
from ossicle.errors import ConfigError
from ossicle.models.llm import LLM
from ossicle.testing import tiny_manifest
from ossicle.train import recipe as recipes
from ossicle.train.loop import train
from ossicle.train.tracking import read_metrics
from ossicle_lab.recipes import is_study
from ossicle_lab.study.config import load, parse
from ossicle_lab.study.data import prepare_data
from ossicle_lab.study.plan import Plan
from places import ENCODER, LAB_RECIPES
from places import LLM as LAB_LLM

RECIPES = sorted(path for path in (LAB_RECIPES / "beyond").glob("*.yaml") if not is_study(path))
PARTS = {
    "regression": {"regression"},
    "wasser-regression": {"contrastive/0", "regression"},
    "ctc": {"ctc", "characters"},
    "cif": {"contrastive/0", "regression", "quantity"},
    "on-policy": {"contrastive/0", "on_policy", "on_policy/tokens"},
    "self-answers": {"contrastive/0", "next_token"},
    "voice": {"contrastive/0"},
    "simulated": {"ctc", "characters", "next_token"},
    "depth": {"contrastive/0"},
}


def test_every_row_is_a_different_recipe_and_stage_two_has_the_projector_of_stage_one(tmp_path):
    config = load("beyond/pilot")
    assert config.data.lab is not None and config.data.lab.test_split == "dev"
    assert {"none", "asr", "contr-cos-all", "contr-cos-all-asr", "contr-wasser-emb"} < set(config.pretraining)
    train = f"data.train=[{tmp_path}]"
    found = {}
    for name, row in config.pretraining.items():
        stage2 = recipes.load(config.finetuning.recipe, [train, *row.finetune_overrides])
        if row.recipe is not None:
            found[name] = recipes.load(row.recipe, [*row.overrides, train])
            projector, there = found[name].model.projector, stage2.model.projector
            same = recipes.to_dict(found[name])["model"]["projector"] | {"match_embedding_rms": True}
            assert same == recipes.to_dict(stage2)["model"]["projector"] | {"match_embedding_rms": True}
            assert type(projector) is type(there)
    assert len({str(recipes.to_dict(one)) for one in found.values()}) == len(found)
    assert config.compare.steps == [] and config.compare.compute == [0.1]  # at the same time


def test_every_recipe_of_a_candidate_is_in_the_pilot():
    rows = {row.recipe for row in load("beyond/pilot").pretraining.values()}
    assert {f"beyond/{path.stem}" for path in RECIPES} == {name for name in rows if str(name).startswith("beyond/")}
    assert {path.stem for path in RECIPES} == set(PARTS)


@pytest.mark.skipif(
    not all((part / "model.safetensors").exists() for part in (ENCODER, LAB_LLM)),
    reason="the lab's encoder and LLM are not built: make lab",
)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(path, tmp_path):
    manifest = tiny_manifest(tmp_path / "speech", 8, tasks=("asr",) if path.stem == "self-answers" else ())
    settings = [f"output_dir={tmp_path}", f"data.train=[{manifest}]", f"data.cache_dir={tmp_path}", "train.cpu=true"]
    settings += ["data.batch_size=4", "train.steps=8", "train.log_every=1", "train.tensorboard=false"]
    AcceleratorState._reset_state(True)
    metrics = read_metrics(train(recipes.load(path, settings)) / "metrics.jsonl")
    rows = [row for row in metrics if row["split"] == "train"]
    assert {name.removeprefix("part/") for name in rows[0] if name.startswith("part/")} == PARTS[path.stem]
    losses = [row["loss"] for row in rows]
    assert sum(losses[-2:]) < sum(losses[:2])


def test_a_row_trains_on_the_answers_of_the_llm(study_tree, study_file, monkeypatch):
    monkeypatch.setattr(LLM, "stop_ids", property(lambda llm: sorted(llm.end_ids | set(range(0, 400, 2)))))
    study_tree["data"]["instructions"] = ["repeat", "what is the first word"]
    study_tree["pretraining"] |= {"own": {"recipe": "finetune.yaml", "self_answers": True}}
    study_tree["max_new_tokens"] = 12
    study_file.write_text(yaml.safe_dump(study_tree))
    config = load(study_file)
    plan = Plan(config, prepare_data(config, Console(quiet=True)))
    lines = read_manifest(config.answers)
    transcripts = {sample.text for path in config.data.pretrain for sample in read_manifest(path)}
    assert len(lines) > 0
    assert {line.text for line in lines} <= transcripts
    assert {line.instruction for line in lines} == set(study_tree["data"]["instructions"])
    stage1 = {name: plan.first_start(name) for name in ("contr", "own")}
    data = {name: job.settings().data.train for name, job in stage1.items() if job is not None}
    assert data == {"contr": config.data.pretrain, "own": [str(config.answers)]}


def test_a_row_needs_instructions(study_tree):
    study_tree["pretraining"]["contr"]["self_answers"] = True
    with pytest.raises(ConfigError, match=r"pretraining\.contr\.self_answers: give data\.instructions"):
        parse(study_tree)
