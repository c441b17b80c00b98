from pathlib import Path

import pytest
import yaml

from ossicle.errors import ConfigError
from ossicle.models.projectors import QFormerConfig
from ossicle.objectives import Contrastive, NextToken, Sum
from ossicle.train.recipe import Config, load, parse, save, to_dict
from ossicle_lab.recipes import is_study
from places import CORE_RECIPES, LAB_RECIPES

RECIPES = sorted(p for folder in (CORE_RECIPES, LAB_RECIPES) for p in folder.rglob("*.yaml") if not is_study(p))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my-run.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def minimal(tmp_path) -> Path:
    return written(tmp_path, "data: {train: [train.jsonl]}\n")


def test_a_recipe_states_only_what_differs(minimal):
    config = load(minimal)
    assert config.name == "my-run"  # the name of the file
    assert config.folder == Path("runs/my-run")
    assert config.data.train == ["train.jsonl"]
    assert config.objective == Contrastive(layers="all", temperature=0.1)
    assert (config.optim.lr, config.optim.warmup, config.optim.weight_decay, config.optim.clip) == (1e-4, 0.03, 0, 1)
    assert config.model.projector == QFormerConfig()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    config = load(path)
    assert config.name
    assert parse(to_dict(config)) == config


def test_there_are_recipes():
    assert {"contr-cos-all", "asr", "finetune"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=100", lambda c: c.train.steps == 100),
        ("train.steps=null", lambda c: c.train.steps is None),
        ("optim.lr=1.0e-3", lambda c: c.optim.lr == 1e-3),
        ("optim.lr=1e-3", lambda c: c.optim.lr == 1e-3),  # YAML 1.1 reads this as a string
        ("name=other", lambda c: c.name == "other"),
        ("model.llm=meta-llama/Llama-3.1-8B-Instruct", lambda c: c.model.llm == "meta-llama/Llama-3.1-8B-Instruct"),
        ("model.projector.queries=2", lambda c: c.model.projector.queries == 2),
        ("objective.layers=[0, 5]", lambda c: c.objective.layers == [0, 5]),
        ("objective.layers=3", lambda c: c.objective.layers == 3),
        ("objective.layers=embeddings", lambda c: c.objective.layers == "embeddings"),
        ("objective={name: next_token}", lambda c: c.objective == NextToken()),
        ("data.train=[a.jsonl, b.jsonl]", lambda c: c.data.train == ["a.jsonl", "b.jsonl"]),
        ("data.mixture={asr: 1, st: 2}", lambda c: c.data.mixture == {"asr": 1.0, "st": 2.0}),
        ("data.cache_frames=true", lambda c: c.data.cache_frames is True),
        ("output_dir=a=b", lambda c: c.output_dir == "a=b"),
    ],
)
def test_overrides_are_yaml(tmp_path, override, value):
    recipe = written(tmp_path, "data: {train: [train.jsonl]}\nobjective: {name: contrastive}\nmodel: {}\n")
    assert value(load(recipe, [override]))


def test_the_last_override_wins(minimal):
    assert load(minimal, ["train.steps=1", "train.steps=2"]).train.steps == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"my-run\.yaml: train\.stepz: unknown field; did you mean 'steps'\?"),
        ("optim.learning=3", r"my-run\.yaml: optim\.learning: unknown field$"),
        ("trian.steps=3", r"my-run\.yaml: trian: unknown field; did you mean 'train'\?"),
        ("model.projector.querys=3", r"model\.projector\.querys: unknown field; did you mean 'queries'\?"),
        ("objective.temprature=3", r"objective\.temprature: unknown field; did you mean 'temperature'\?"),
        ("train.steps=many", r"my-run\.yaml: train\.steps: .*integer.* \(got 'many'\)"),
        ("train.steps=0", r"train\.steps: .*greater than or equal to 1 \(got 0\)"),
        ("data.fraction=1.5", r"data\.fraction: .*less than or equal to 1 \(got 1\.5\)"),
        ("data.on_error=ignore", r"data\.on_error: .*'raise' or 'skip' \(got 'ignore'\)"),
        ("data.train=[]", r"data\.train: .*at least 1 item"),
        ("objective.name=contrastve", r"objective: .*'contrastve'"),
        ("train.steps", r"override 'train\.steps': write section\.field=value"),
        ("=3", r"write section\.field=value"),
        ("name.x=3", r"override 'name\.x=3': 'name' is not a section"),
        ("train.steps=[1", r"override 'train\.steps=\[1': the value is not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_full_path(tmp_path, override, message):
    text = (
        "name: run\ndata: {train: [train.jsonl]}\nobjective: {name: contrastive}\nmodel: {projector: {name: qformer}}\n"
    )
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, text), [override])


def test_the_path_leads_into_lists_of_terms(tmp_path):
    terms = "[{objective: {name: contrastive}}, {objective: {name: next_token, averge: token}}]"
    text = f"data: {{train: [a]}}\nobjective: {{name: sum, terms: {terms}}}\n"
    with pytest.raises(ConfigError, match=r"objective\.terms\.1\.objective\.averge: unknown field"):
        load(written(tmp_path, text))


def test_every_mistake_is_named_at_once(minimal):
    with pytest.raises(ConfigError) as caught:
        load(minimal, ["train.stepz=3", "optim.lr=-1"])
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_section_is_named(tmp_path):
    with pytest.raises(ConfigError, match="data: "):
        load(written(tmp_path, "train: {steps: 3}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("data: [", "not valid YAML"), ("- data", "a recipe is a mapping of sections, not list")],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=rf"my-run\.yaml: {message}"):
        load(written(tmp_path, text))


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such recipe"):
        load(tmp_path / "nowhere.yaml")


def test_a_saved_configuration_comes_back(config, tmp_path):
    terms = [
        {"objective": {"name": "contrastive", "layers": [0, 2]}, "weight": 0.5},
        {"objective": {"name": "next_token"}},
    ]
    made = config(objective={"name": "sum", "terms": terms}, data={"mixture": {"asr": 2}, "fraction": 0.3})
    save(made, tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == made
    assert isinstance(made.objective, Sum)
    plain = yaml.safe_load((tmp_path / "saved.yaml").read_text())
    assert plain["optim"]["betas"] == [0.9, 0.999]  # every default is written
    assert plain["objective"]["terms"][1]["weight"] == 1.0


def test_a_configuration_is_frozen(config):
    made: Config = config()
    with pytest.raises(AttributeError):
        made.train.steps = 3
