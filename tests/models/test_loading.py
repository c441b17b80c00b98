"""Folders that are no models, and settings of a model's own files that must not reach the results."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ossicle.batch import Padded
from ossicle.errors import ConfigError, DataError, ModelError
from ossicle.models.encoder import load_encoder
from ossicle.models.limits import longest_audio_s
from ossicle.models.llm import load_llm
from ossicle.models.projectors import ConvConfig, LinearConfig, QFormerConfig
from ossicle.models.speech_llm import ModelConfig
from ossicle.objectives import Contrastive, NextToken
from ossicle.train.recipe import parse


@pytest.fixture
def broken(folders, tmp_path):
    """Return copies of an encoder and an LLM to break."""
    return {
        "encoder": shutil.copytree(folders["hubert"], tmp_path / "encoder"),
        "llm": shutil.copytree(folders["llama"], tmp_path / "llm"),
    }


LOADERS = {"encoder": load_encoder, "llm": load_llm}


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "there is no such folder; check the path"),
        ("./nowhere", r"there is no such folder \(relative to .*\)"),
        ("no-such-model", "there is no such folder in .*, and the model hub does not provide it"),
        ("no/model", "there is no such folder in .*, and the model hub does not provide it"),
        ("", "there is no such folder|does not load|no config"),
        ("\x00", "model"),
        ("x" * 5000, "there is no such folder"),
    ],
)
def test_names_of_no_model(part, name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=rf"^model\.{part}=.*({message})") as caught:
        LOADERS[part](name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", LOADERS)
def test_a_folder_without_a_model(part, tmp_path):
    with pytest.raises(ModelError, match=rf"^model\.{part}=.*: the folder has no config\.json"):
        LOADERS[part](str(tmp_path))
    (tmp_path / "file").write_text("a")
    with pytest.raises(ModelError, match="is a file"):
        LOADERS[part](str(tmp_path / "file"))


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("damage", ["config", "empty config", "list", "weights", "no weights", "type", "terabytes"])
def test_damaged_models(part, damage, broken):
    folder = broken[part]
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    match damage:
        case "config":
            (folder / "config.json").write_text("{")
        case "empty config":
            (folder / "config.json").write_text("{}")
        case "list":
            (folder / "config.json").write_text("[]")
        case "weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no weights":
            weights.unlink()
        case "type":
            (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))
        case "terabytes":
            (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 10**13}))
    with pytest.raises(ModelError, match=rf"^model\.{part}=") as caught:
        LOADERS[part](str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizers(file, broken):
    (broken["llm"] / file).write_text("[1")
    with pytest.raises(ModelError, match=r"^model\.llm=.* does not load"):
        load_llm(str(broken["llm"]))


def prompt_of(llm) -> Padded:
    ids = torch.arange(12).reshape(2, 6)
    return Padded(llm.embed(ids), torch.ones(2, 6, dtype=torch.bool))


SETTINGS = [
    {"repetition_penalty": 5.0},
    {"num_beams": 3, "length_penalty": 2.0},
    {"do_sample": True, "temperature": 5.0, "top_k": 5},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 12, "max_length": 3},
    {"suppress_tokens": list(range(200))},
    {"begin_suppress_tokens": list(range(200)), "forced_eos_token_id": 5},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_greedy_is_greedy_whatever_the_models_own_settings_are(settings, broken, folders):
    """The right answer is the most likely token at each step, by a plain loop."""
    plain = load_llm(str(folders["llama"]))
    path = broken["llm"] / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    llm = load_llm(str(broken["llm"]))
    embeds = prompt_of(plain).values
    expected = [[], []]
    for row in range(2):
        values = embeds[row : row + 1]
        while len(expected[row]) < 8:
            with torch.no_grad():
                token = int(plain.model(inputs_embeds=values).logits[0, -1].argmax())
            if token in plain.stop_ids:
                break
            expected[row].append(token)
            values = torch.cat([values, plain.embed(torch.tensor([[token]]))], 1)
    texts = [plain.tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0].strip() for ids in expected]
    assert llm.generate(prompt_of(llm), max_new_tokens=8) == texts
    for name, value in settings.items():  # set after loading
        setattr(plain.model.generation_config, name, value)
    assert plain.generate(prompt_of(plain), max_new_tokens=8) == texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_impossible_decoding_is_refused(options, message, folders):
    llm = load_llm(str(folders["llama"]))
    with pytest.raises(ConfigError, match=message):
        llm.generate(prompt_of(llm), **options)


def test_an_answer_that_is_cut_has_a_warning(folders):
    llm = load_llm(str(folders["llama"]))
    with pytest.warns(UserWarning, match="an answer was cut at max_new_tokens=1"):
        llm.generate(prompt_of(llm), max_new_tokens=1)


def test_speech_that_is_too_long_is_refused_in_training_with_its_line(model, manifest, task_manifest, collate):
    model.llm.context = 8
    batch = collate(model, manifest)
    longest = max(batch.samples, key=lambda sample: sample.duration_s)
    with pytest.raises(DataError, match=rf"{longest.source}: .* speech tokens, but .* reads 8 positions") as caught:
        Contrastive()(model, batch)
    assert "max_duration_s" in str(caught.value)
    model.llm.context = 40  # the speech alone fits
    with pytest.raises(DataError, match=r"\d+ positions exceed the context of .*, which is 40"):
        NextToken()(model, collate(model, task_manifest))
    assert longest_audio_s(model) == pytest.approx(40 / model.token_rate_hz)


def test_the_embeddings_are_measured_in_parts(folders, monkeypatch):
    whole = load_llm(str(folders["gemma2"]))
    monkeypatch.setattr("ossicle.models.llm.STATISTICS_ROWS", 100)
    parts = load_llm(str(folders["gemma2"]))
    weight = whole.model.get_input_embeddings().weight.double()
    assert len(weight) > 200
    assert parts.embedding_rms == pytest.approx(whole.embedding_rms, rel=1e-6)
    assert whole.embedding_rms == pytest.approx(whole.embedding_scale * float(weight.square().mean().sqrt()), rel=1e-6)
    torch.testing.assert_close(parts.embedding_mean, whole.embedding_mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"projector": {"dropout": -1}}}, r"model\.projector\.dropout: input should be greater"),
        ({"model": {"projector": {"init_std": float("inf")}}}, r"model\.projector\.init_std"),
        ({"model": {"projector": {"init_std": float("nan")}}}, r"model\.projector\.init_std"),
        ({"model": {"projector": {"window_s": 1000}}}, r"model\.projector\.window_s"),
        ({"model": {"projector": {"layers": 1000}}}, r"model\.projector\.layers"),
        ({"model": {"projector": {"width": 10, "heads": 3}}}, r"model\.projector.*must be a multiple of heads=3"),
        ({"model": {"projector": {"width": 0}}}, r"model\.projector\.width"),
        ({"objective": {"layers": [1, 1]}}, r"objective\.layers: .*lists a layer twice"),
        ({"objective": {"layers": []}}, r"objective\.layers: .*name hidden states"),
        ({"objective": {"layers": -1}}, r"objective\.layers: .*from 0 on"),
        ({"objective": {"name": "mixed_contrastive", "layers": [2, 2]}}, r"objective\.layers: .*twice"),
        ({"objective": {"temperature": float("inf")}}, r"objective\.temperature"),
        ({"objective": {"layers": [1], "layer_weights": [float("nan")]}}, r"objective\.layer_weights"),
    ],
)
def test_settings_out_of_range_are_refused_before_models_load(tree, section, message):
    section = {**section, "objective": {"name": "contrastive", **section.get("objective", {})}}
    plain = tree(objective=section["objective"])
    plain["model"]["projector"] |= section.get("model", {}).get("projector", {})
    with pytest.raises(ConfigError, match=message):
        parse(plain)


@pytest.mark.parametrize("kind", [QFormerConfig, LinearConfig, ConvConfig])
def test_the_defaults_are_in_range(kind):
    kind()


def test_a_projector_of_terabytes_is_refused_in_one_line(folders):
    """The allocator of PyTorch refuses it at once."""
    sizes = QFormerConfig(width=65_536, heads=1, layers=1, ffn=262_144, queries=1, window_s=0.1)
    parts = {"encoder": str(folders["hubert"]), "llm": str(folders["llama"])}

    def refuse(self, in_dim, out_dim, frame_rate_hz):
        return torch.empty(2**50)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QFormerConfig, "new_module", refuse)
        with pytest.raises(ModelError, match=r"^model\.projector does not fit into memory"):
            ModelConfig(**parts, projector=sizes).build()


def mapped_share(model: torch.nn.Module, folder) -> float:
    """Return the share of the bytes of ``model``'s weights that lie in the memory map of a file in ``folder``."""
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors") and str(folder) in line:
            spans.append([int(edge, 16) for edge in line.split()[0].split("-")])
    sizes = {True: 0, False: 0}
    for weight in model.parameters():
        sizes[any(start <= weight.data_ptr() < stop for start, stop in spans)] += weight.nbytes
    return sizes[True] / sum(sizes.values())


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux lists memory maps")
@pytest.mark.parametrize("part", LOADERS)
def test_weights_in_the_type_of_their_file_are_memory_mapped(part, folders, tmp_path):
    """Check that processes of a machine share them: neither loading nor the fingerprint makes a copy."""
    from transformers import AutoModel, AutoModelForCausalLM

    folder = tmp_path / part
    shutil.copytree(folders["hubert" if part == "encoder" else "llama"], folder)
    kind = AutoModel if part == "encoder" else AutoModelForCausalLM
    kind.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    # The weight norm of HuBERT's positional convolution is computed while it loads, which is a small copy.
    assert mapped_share(LOADERS[part](str(folder), dtype=torch.bfloat16).model, folder) > 0.8
    assert mapped_share(LOADERS[part](str(folder), dtype=torch.float32).model, folder) == 0.0
