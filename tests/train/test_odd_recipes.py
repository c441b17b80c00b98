"""Odd recipes and overrides give short messages with the path of the field, and never another error."""

import json
import random
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.errors import ConfigError
from ossicle.train.recipe import load, parse, read_tree, to_dict
from ossicle.validation import load_yaml
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


def only_line(path: Path, *overrides: str) -> str:
    """Return the message of a recipe that is refused; it has one short line."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < len(str(path)) + 450
    return message.replace(str(path), path.name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.projector=mlp", "model.projector: write a section with a name, such as {name: ...} (got 'mlp')"),
        ("model.projector=[mlp]", "model.projector: "),
        ("model.projector=3", "model.projector: "),
        ("model.projector={name: [mlp]}", "model.projector: "),
        ("model.projector=", "model.projector: "),
        ("objective=contrastive", "objective: "),
        ("objective={name: {a: 1}}", "objective: "),
        ("objective=[1]", "objective: "),
        ("optim.betas=[0.9]", "optim.betas.1: is missing; add it"),
        ("optim.betas=[0.9, 0.99, 0.999]", "optim.betas: "),
        ("optim.betas=[0.9, 1.0]", "optim.betas.1: input should be less than 1 (got 1.0)"),
        ("data.augment.gain_db=[3]", "data.augment.gain_db.1: is missing; add it"),
        ("data.augment.gain_db=[3, 9999]", "data.augment.gain_db.1: input should be less than or equal to 100"),
        ("train.epochs=.inf", "train.epochs: inf is not a finite number; write a number"),
        ("train.epochs=.nan", "train.epochs: nan is not a finite number; write a number"),
        ("train.epochs=1e999", "train.epochs: "),
        ("optim.lr=.inf", "optim.lr: inf is not a finite number"),
        ("optim.weight_decay=-1", "optim.weight_decay: input should be greater than or equal to 0"),
        ("model.projector.dropout=-1", "model.projector.dropout: input should be greater than or equal to 0"),
        ("model.projector.dropout=1", "model.projector.dropout: input should be less than 1"),
        ("model.projector.init_std=.inf", "model.projector.init_std: inf is not a finite number"),
        ("model.projector.window_s=1000", "model.projector.window_s: input should be less than or equal to"),
        ("model.projector.layers=1_000_000", "model.projector.layers: input should be less than or equal to"),
        ("train.seed=-1", "train.seed: input should be greater than or equal to 0"),
        ("data.seed=4294967296", "data.seed: input should be less than 4294967296"),
        ("data.workers=100000", "data.workers: input should be less than or equal to 1024"),
        ("data.mixture={asr: -1}", "data.mixture.asr: input should be greater than or equal to 0"),
        ("data.mixture={no: 1}", "data.mixture.False: the name False is not a text; write it in quotes"),
        ("data.asr_instructions=['']", "data.asr_instructions.0: string should have at least 1 character"),
        ("train.steps=yes", "train.steps: input should be a number (got true)"),
        ("data.batch_size=true", "data.batch_size: input should be a number (got true)"),
        ("optim.betas=[0.9, on]", "optim.betas.1: "),
        ("objective={name: contrastive, layers: true}", "objective.layers: "),
        ("objective.layers=0", "objective: write a section with a name, such as {name: ...} (got {'layers': 0})"),
        ("objective.name=contrastve", "objective: 'contrastve' is none of its names: 'contrastive', 'next_token'"),
        ("model.projector.name=mpl", "model.projector: 'mpl' is none of its names: 'qformer', 'mlp'"),
        ("train.steps=" + "9" * 400, "train.steps: input should be less than or equal to 1000000000 (got 9"),
        ("train.steps=" + "9" * 5000, "not valid YAML: a value does not have the form of its type"),
        ("train.steps=!!timestamp foo", "not valid YAML: a value does not have the form of its type"),
        ("train.steps=!!int foo", "not valid YAML: a value does not have the form of its type"),
        ("train.steps=!!python/object:os.system {}", "not valid YAML: could not determine a constructor"),
        ("train.steps=2001-99-99", "not valid YAML: a value does not have the form of its type"),
        ("train.steps=2001-09-09", "train.steps: input should be a valid integer (got datetime.date(2001, 9, 9))"),
        ("train.steps=" + "[" * 60 + "]" * 60, "nested too deeply"),
        ("train.steps=" + "[" * 5000, "nested too deeply"),
        ("train={steps: 3, steps: 4}", "'steps' is written twice"),
        ("train=&a [*a]", "expand to more than 100000 values"),
        ('name="a\\0b"', "name: 'a\\x00b' holds a character that no text has"),
        ('model.llm="\\uD800"', "model.llm: '\\ud800' holds a character that no text has"),
        ("name=" + "x" * 20_000, "name: has 20000 characters"),
        ("name=" + "x" * 500, "name: string should have at most 200 characters"),
        ('train={"\\uD800": 3}', "holds a character that no text has"),
        ("train={3: 4}", "train.3: the name 3 is not a text"),
        ("train=3", "train: "),
        ("data=", "data: "),
        ("..=3", ": unknown field"),
        (".".join("a" * 200) + "=1", "a: unknown field"),
    ],
)
def test_odd_overrides_give_one_short_line(minimal, override, message):
    assert message in only_line(minimal, override)


def test_override_fills_an_empty_section(tmp_path):
    assert load(written(tmp_path, "data: {train: [a]}\ntrain:\n"), ["train.steps=3"]).train.steps == 3


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("steps=3", "steps: unknown field; did you mean 'train.steps'?"),
        ("train.lr=3", "train.lr: unknown field; did you mean 'optim.lr'?"),
        ("optim.batchsize=3", "optim.batchsize: unknown field; did you mean 'data.batch_size'?"),
        ("train.objektive=3", "train.objektive: unknown field; did you mean 'objective'?"),
        ("model.projector={name: mlp, widht: 3}", "model.projector.widht: unknown field; did you mean 'width'?"),
        ("model.projector={name: conv, kernal: 3}", "model.projector.kernal: unknown field; did you mean 'kernel'?"),
        ("model.projector={name: linear, tokens: 3}", "model.projector.tokens: unknown field; did you mean 'token_s'?"),
        ("model.lora.rnak=3", "model.lora.rnak: unknown field; did you mean 'rank'?"),
        ("data.augment.gain=3", "data.augment.gain: unknown field; did you mean 'gain_db'?"),
        ("objective={name: next_token, averge: 3}", "did you mean 'average'?"),
        ("objective={name: distillation, temprature: 3}", "did you mean 'temperature'?"),
        ("objective={name: mixed_contrastive, layres: 3}", "did you mean 'layers'?"),
        ("objective={name: sum, temrs: []}", "did you mean 'terms'?"),
        ("objective={name: sum, terms: [{objective: {name: next_token}, wieght: 1}]}", "did you mean 'weight'?"),
        ("objective.zzzz=3", "objective.zzzz: unknown field"),
    ],
)
def test_unknown_fields_of_every_section_get_a_suggestion(tmp_path, override, suggestion):
    path = written(tmp_path, "data: {train: [a]}\nobjective: {name: contrastive}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, [override])
    assert suggestion in str(caught.value)


def test_a_missing_section_does_not_print_the_recipe(tmp_path):
    assert only_line(written(tmp_path, "train: {steps: 3}\n")).endswith("data: is missing; add it")


def bomb(levels: int) -> str:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(12), "expand to more than 100000 values"),
        ("data: {train: [a]}\ntrain: &t\n  steps: *t\n", "expand to more than 100000 values"),
        ("data: {train: [a]}\ndata: {train: [b]}\n", "'data' is written twice (line 2)"),
        ("data:\n  train: [a\n", "not valid YAML: "),
        ("data: {train: [a]}\x07", "not valid YAML: "),
        ("- " * 10_000, "nested too deeply"),
        ("{a: " * 10_000, "nested too deeply"),
        ("3", "a recipe is a mapping of sections, not int"),
        ("--- {}\n--- {}", "not valid YAML: "),
    ],
)
def test_odd_files_give_one_short_line_at_once(tmp_path, text, message):
    start = time.perf_counter()
    assert message in only_line(written(tmp_path, text))
    assert time.perf_counter() - start < 5


def test_aliases_and_merges_of_normal_size_are_read(tmp_path):
    text = "data: &d {train: &t [a], dev: *t}\nmodel: {projector: &p {name: mlp}}\n"
    config = load(written(tmp_path, text))
    assert config.data.train == config.data.dev == ["a"]


def test_recipe_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "my-run.yaml").write_bytes(b"name: caf\xe9\n")
    assert "my-run.yaml: cannot be read as UTF-8 text" in only_line(tmp_path / "my-run.yaml")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud800", "/"])
def test_name_that_no_recipe_can_have(name):
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert len(str(caught.value)) < 300


ODD = st.one_of(
    st.sampled_from([None, True, "", "x", "mlp", "\0", "\ud83d", [], {}, [[]], {"name": 3}, {1: 2}, 10**400, "1e999"]),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 9), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def places(tree: object, path: tuple = ()) -> list[tuple]:
    """Return the path of every value in ``tree``."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, item in items for found in places(item, (*path, key)))]


WHOLE = [to_dict(load(path)) for path in RECIPES]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.lists(ODD, min_size=1, max_size=3))
def test_any_recipe_loads_or_is_a_config_error(seed, values):
    draw = random.Random(seed)
    tree = json.loads(json.dumps(draw.choice(WHOLE)))
    for value in values:
        *parents, leaf = draw.choice(places(tree)[1:])
        node = tree
        for part in parents:
            node = node[part]
        if draw.random() < 0.2:
            leaf = draw.choice(["", "x", "name", 7, "\ud800"]) if isinstance(node, dict) else leaf
        node[leaf] = value
    try:
        config = parse(tree)
    except ConfigError as error:
        assert len(str(error)) < 5000
        str(error).encode()
    else:
        assert parse(to_dict(config)) == config
        yaml.safe_dump(to_dict(config))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("trainsepdobjcl.=[]{}&*!:-<'\"\\\n0127 ,#|>%@"), max_size=40))
def test_any_override_and_any_yaml_is_read_or_a_config_error(text):
    for read in (lambda: load_yaml(text, "file"), lambda: read_tree(RECIPES[0], [text])):
        try:
            read()
        except ConfigError as error:
            assert len(str(error)) < 500
