"""A checkpoint refuses other settings, damage, values that are not finite, and other weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ossicle.errors import CheckpointError, ConfigError
from ossicle.models.frozen import Fingerprint, fingerprint
from ossicle.models.projectors import LinearConfig, QFormerConfig
from ossicle.models.saving import CONFIG_FILE, WEIGHTS_FILE, read_record
from ossicle.models.speech_llm import ModelConfig, SpeechLLM


@pytest.fixture
def saved(model, tmp_path) -> Path:
    model.instructions = {"asr": "repeat"}
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder: Path, **changes) -> None:
    record = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(record | changes))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"heads": 4}, "model.projector.heads=2, not 4: set it to 2"),
        ({"window_s": 0.2}, "model.projector.window_s=0.1, not 0.2: set it to 0.1"),
        ({"queries": 1}, "model.projector.queries=2, not 1"),
        ({"width": 32}, "model.projector.width=16, not 32"),
        ({"window_positions": True}, "model.projector.window_positions=False, not True"),
    ],
)
def test_weights_are_refused_for_settings_that_change_what_they_compute(saved, build, setting, message):
    """Other heads and windows fit the same tensors, so that only the settings show the difference."""
    with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
        build(**setting).load_projector(saved)


@pytest.mark.parametrize("setting", [{"dropout": 0.5}, {"init_std": 0.1}, {"match_embedding_rms": False}])
def test_settings_of_the_training_may_change(saved, build, model, setting):
    other = build(**setting)
    other.load_projector(saved)
    assert all(map(torch.equal, other.projector.state_dict().values(), model.projector.state_dict().values()))


def test_a_length_that_rounds_to_the_same_frames_is_the_same(saved, build):
    build(window_s=0.104).load_projector(saved)  # 5 frames at 50 per second, as 0.1


def test_another_kind_of_projector_is_named(saved, folders):
    config = ModelConfig(encoder=str(folders["hubert"]), llm=str(folders["llama"]), projector=LinearConfig())
    with pytest.raises(CheckpointError, match=r"model\.projector\.name=qformer, not linear"):
        config.build().load_projector(saved)


def test_a_setting_that_an_old_record_lacks_had_its_default(saved, build):
    record = read_record(saved)
    del record["model"]["projector"]["window_positions"]
    edit(saved, model=record["model"])
    build().load_projector(saved)
    with pytest.raises(CheckpointError, match="window_positions=False, not True"):
        build(window_positions=True).load_projector(saved)


def test_adapters_of_another_scale_are_refused(folders, tmp_path):
    def built(**lora):
        torch.manual_seed(0)
        parts = {"encoder": str(folders["hubert"]), "llm": str(folders["llama"])}
        lora = {"modules": ["llm.*.q_proj"], "rank": 2, "alpha": 4.0, **lora}
        return ModelConfig(**parts, projector=QFormerConfig(width=16, heads=2, layers=1, ffn=8), lora=lora).build()

    built().save(tmp_path)
    built().load_projector(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.lora\.alpha=4\.0, not 8\.0"):
        built(alpha=8.0).load_projector(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.lora\.rank=2, not 1"):
        built(rank=1).load_projector(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "{",
        "null",
        "\x00",
        '{"model": 1}',
        '{"model": {}, "fingerprints": {}, "instructions": {}}',
        '{"model": {}, "fingerprints": {"encoder": "a", "llm": "b"}, "instructions": {"asr": 3}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_record_is_named(saved, content):
    (saved / CONFIG_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"ossicle\.json: .*restore the file") as caught:
        SpeechLLM.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"projector": {"name": "qformer", "width": 10**12}}, {"llm_dtype": "int3"}])
def test_a_record_with_impossible_settings_is_named(saved, change):
    edit(saved, model={**read_record(saved)["model"], **change})
    with pytest.raises(CheckpointError, match=r"ossicle\.json: model"):
        SpeechLLM.from_pretrained(saved)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "flipped", "header", "swapped"])
def test_damaged_weights_are_named(saved, damage, tmp_path):
    path = saved / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        match damage:
            case "cut":
                content = content[: len(content) // 2]
            case "empty":
                content = bytearray()
            case "flipped":
                content[-5] ^= 1
            case "header":
                content[12] ^= 1
            case "swapped":
                tensors = load_file(path)
                tensors["out.bias"] += 1
                save_file(tensors, path)
                content = bytearray(path.read_bytes())
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"projector\.safetensors: is (missing|damaged)") as caught:
        SpeechLLM.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "key", "shape"])
def test_damage_is_found_without_a_checksum_too(saved, damage):
    """Checkpoints of version 0.1 have no checksums."""
    edit(saved, files=None)
    path = saved / WEIGHTS_FILE
    tensors = load_file(path)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-7])
        case "key":
            tensors["other"] = tensors.pop("out.bias")
            save_file(tensors, path)
        case "shape":
            tensors["out.bias"] = torch.zeros(1)
            save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"damaged|such as other|out\.bias has the shape"):
        SpeechLLM.from_pretrained(saved)


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    with torch.no_grad():
        model.projector.out.weight[0, 0] = torch.nan
    model.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"out\.weight contains infinite values or NaN"):
        SpeechLLM.from_pretrained(tmp_path)


class Renamed(nn.Module):
    """The layers of `nn.TransformerEncoderLayer` under other names, in another order."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.zz = nn.ParameterList([p.detach().clone() for p in reversed(list(layer.parameters()))])
        self.register_buffer("position_ids", torch.arange(7))


def test_fingerprints_are_of_content_and_not_of_names():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert fingerprint(Renamed(layer)) == fingerprint(layer)
    assert Fingerprint.of(Renamed(layer)).by_name != Fingerprint.of(layer).by_name
    with torch.no_grad():
        layer.linear1.weight[0, 0] += 1
    assert fingerprint(Renamed(layer)) == fingerprint(layer)
    changed = Renamed(layer)
    with torch.no_grad():
        changed.zz[3].flatten()[0] += 1
    assert fingerprint(changed) != fingerprint(layer)


def test_tied_weights_count_once(folders):
    """transformers lists a tied head in some versions and leaves it out in others."""
    embedding = nn.Embedding(10, 4)
    alone = nn.ModuleList([embedding])
    tied = nn.ModuleList([embedding, nn.Linear(4, 10, bias=False)])
    tied[1].weight = embedding.weight
    assert fingerprint(tied) == fingerprint(alone)


def test_checkpoints_with_the_former_fingerprints_load(saved, model):
    former = {"encoder": model.encoder.former_fingerprint, "llm": model.llm.former_fingerprint}
    edit(saved, fingerprints=former, files=None)
    assert SpeechLLM.from_pretrained(saved).instructions == {"asr": "repeat"}


def test_relative_paths_are_written_as_absolute_ones(folders, tmp_path, monkeypatch):
    """Another working directory finds the models."""
    monkeypatch.chdir(folders["hubert"].parent)
    names = {"encoder": folders["hubert"].name, "llm": folders["llama"].name}
    sizes = QFormerConfig(width=16, heads=2, layers=1, ffn=8)
    ModelConfig(**names, projector=sizes).build().save(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert SpeechLLM.from_pretrained("saved").config.llm == str(folders["llama"])


def test_a_folder_that_is_called_like_a_packaged_model_is_not_recorded(tmp_path, monkeypatch):
    """A checkout has a folder called lab."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    ModelConfig(projector=QFormerConfig(width=16, heads=2, layers=1, ffn=8)).build().save("saved")
    assert read_record("saved")["model"]["encoder"] == read_record("saved")["model"]["llm"] == "lab"


def test_the_home_folder_is_expanded(folders, saved, monkeypatch):
    monkeypatch.setenv("HOME", str(folders["hubert"].parent))
    sizes = QFormerConfig(width=16, heads=2, layers=1, ffn=8)
    assert ModelConfig(encoder="~/hubert", llm="~/llama", projector=sizes).build().encoder.dim == 24
    monkeypatch.setenv("HOME", str(saved.parent))
    assert SpeechLLM.from_pretrained("~/saved").instructions == {"asr": "repeat"}


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_model_comes_back_on_the_device(saved, device):
    model = SpeechLLM.from_pretrained(saved, device=device)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda", 0)])
def test_a_model_comes_back_on_the_gpu(saved, device):
    model = SpeechLLM.from_pretrained(saved, device=device)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cuda"}


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_does_not_exist_is_named(saved, device):
    with pytest.raises(ConfigError, match=f"device={device}: this machine has no such device"):
        SpeechLLM.from_pretrained(saved, device=device)


def test_files_follow_the_umask(model, tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    model.save(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_instructions_of_the_training_come_back(model, tmp_path):
    """A model that was trained with instructions of its own is asked with them."""
    model.asr_instructions, model.objectives, model.longest_s = ("say it again",), ("next_token",), 3.5
    model.save(tmp_path)
    loaded = SpeechLLM.from_pretrained(tmp_path)
    assert (loaded.asr_instructions, loaded.objectives, loaded.longest_s) == (("say it again",), ("next_token",), 3.5)
    assert loaded.prompter().asr_instructions == ("say it again",)
    assert loaded.prompter(("other",)).asr_instructions == ("other",)
