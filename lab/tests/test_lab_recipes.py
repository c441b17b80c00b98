"""Check that the packaged studies are valid and complete."""

from __future__ import annotations

import pytest

from ossicle.recipes import find
from ossicle_lab.recipes import is_study
from ossicle_lab.study.config import load
from places import LAB_RECIPES

STUDIES = [path.relative_to(LAB_RECIPES).with_suffix("") for path in LAB_RECIPES.rglob("*.yaml") if is_study(path)]


@pytest.mark.parametrize("name", sorted(map(str, STUDIES)))
def test_a_packaged_study_is_valid_and_its_recipes_exist(name: str) -> None:
    config = load(name)
    recipes = [config.finetuning.recipe, *(row.recipe for row in config.pretraining.values() if row.recipe)]
    assert all(find(recipe).is_file() for recipe in recipes)


def test_the_study_of_objectives_has_every_recipe_of_stage_one() -> None:
    rows = {row.recipe for row in load("lab/objectives").pretraining.values()}
    recipes = {f"lab/{path.stem}" for path in (LAB_RECIPES / "lab").glob("*.yaml") if not is_study(path)}
    assert rows - {None} == recipes - {"lab/finetune"}
    assert load("lab/objectives", quick=True).folder.name == "objectives-quick"
