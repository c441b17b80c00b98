"""Test the file of a study: accepted fields and error messages."""

import pytest
import yaml

from ossicle.errors import ConfigError
from ossicle.recipes import find
from ossicle.train import recipe as recipes
from ossicle_lab.study.config import load, parse, to_dict
from places import LAB_RECIPES

PAPER_TABLE = LAB_RECIPES / "lab" / "paper_table.yaml"


def test_the_papers_table_has_its_rows_columns_and_seeds():
    config = load(PAPER_TABLE)
    rows = list(config.pretraining)
    assert rows == [
        "none",
        "asr",
        "contr-cos-emb",
        "contr-cos-all",
        "contr-wasser-emb",
        "contr-wasser-all",
        "mixed-nwp",
        "contr-cos-all-asr",
        "distillation",
        "contr-wasser-all-2x",
    ]
    assert config.fractions("steps") == [0.01, 0.1, 1.0]
    assert {len(config.seeds_of(name)) for name in rows} == {3, 5}
    assert all(row.recipe is None or find(row.recipe) for row in config.pretraining.values())
    assert find(config.finetuning.recipe)
    assert set(config.claim.contrastive) <= set(rows)


def test_the_table_on_recorded_speech_has_one_pair_of_models_in_all_recipes(tmp_path):
    """All rows train the same projector, except ``ctc``, whose stage 2 then has its projector too."""
    config = load(LAB_RECIPES / "real" / "paper_table.yaml")
    assert set(config.claim.contrastive) | {"none", "asr", "contr-cos-all-asr", "ctc"} == set(config.pretraining)
    train = f"data.train=[{tmp_path}]"
    stage2 = recipes.load(config.finetuning.recipe, [train])
    for row in config.pretraining.values():
        own = recipes.load(config.finetuning.recipe, [train, *row.finetune_overrides])
        if row.recipe is not None:
            stage1 = recipes.load(row.recipe, [*row.overrides, train])
            assert stage1.model == own.model
            assert (stage1.data.batch_size, stage1.data.dev) == (32, [])
        assert own.model.encoder == stage2.model.encoder


def test_a_study_without_contrastive_rows_makes_no_claim():
    assert load(PAPER_TABLE, ["claim={}"]).claim.contrastive == []


def test_every_row_of_the_search_is_a_recipe_that_exists(tmp_path):
    config = load(PAPER_TABLE.with_name("search.yaml"))
    assert config.data.lab is not None and config.data.lab.test_split == "dev"
    objectives = {}
    for name, row in config.pretraining.items():
        assert row.recipe is not None
        objectives[name] = recipes.load(row.recipe, [*row.overrides, f"data.train=[{tmp_path}]"])
    assert len({str(recipes.to_dict(found)) for found in objectives.values()}) == len(objectives)


def test_quick_keeps_the_rows_and_has_a_folder_of_its_own():
    whole, quick = load(PAPER_TABLE), load(PAPER_TABLE, quick=True)
    assert quick.folder.name == "paper_table-quick" != whole.folder.name
    assert list(quick.pretraining) == list(whole.pretraining)
    assert quick.fractions("steps") == whole.fractions("steps")
    assert quick.stage1.steps < whole.stage1.steps
    assert not quick.choose.anything
    assert load(PAPER_TABLE, ["stage1.steps=7"], quick=True).stage1.steps == 7  # the command line wins


def test_quick_without_overrides_is_refused(study_file):
    with pytest.raises(ConfigError, match=r"study\.yaml: quick: has no overrides"):
        load(study_file, quick=True)


def test_a_study_reads_back_what_it_writes(study_file):
    config = load(study_file)
    assert parse(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pretraining.none={recipe: null, plateau: {1.0: [4, 2]}}",
            "pretraining.none.plateau: the lengths [4, 2] do not ascend",
        ),
        (
            "pretraining.none={recipe: null, plateau: {0.25: [2, 4]}}",
            "pretraining.none.plateau: finetuning.steps has no steps for the fraction 0.25",
        ),
        ("data.lab={train_shares: [1.0]}", "data.lab.train_shares: has 1 shares for 3 lengths"),
        ("stage1.stepz=3", "stage1.stepz: unknown field; did you mean 'steps'?"),
        ("pretraining.contr.extra=true", "pretraining.contr.extra: unknown field"),
        ("stage1.steps=0", "stage1.steps: input should be greater than or equal to 1"),
        ("data.finetune=[]", "data.finetune: no manifests; list them, or give data.lab"),
        ("data.unseen=[qa]", "data.unseen: qa is in data.tasks too"),
        ("compare.compute=[0.5]", "compare.compute_like: is None; name a pretraining that has a recipe"),
        ("compare.steps=[0.2]", "compare.steps: finetuning.steps has no steps for the fraction 0.2"),
        ("pretraining.contr.extra_data=true", "pretraining.contr.extra_data: there is no extra data"),
        ("choose.lr=[0.1]", "choose.fraction: finetuning.steps has no steps for 0.1"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(study_file, override, message):
    with pytest.raises(ConfigError) as caught:
        load(study_file, [override])
    assert f"study.yaml: {message}" in str(caught.value)
