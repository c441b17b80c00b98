import shutil

import pytest
import torch
from safetensors.torch import load_file

from ossicle.errors import CheckpointError
from ossicle.models.official import import_official, load_official_projector
from ossicle.models.speech_llm import SpeechLLM
from ossicle.testing import tiny_encoder, tiny_llm
from places import SHARED

FIXTURES = SHARED / "fixtures"
PROJECTOR = FIXTURES / "mm_speech_projector.bin"
needs_fixtures = pytest.mark.skipif(
    not PROJECTOR.is_file(), reason="the official code's projector is not beside this checkout (shared/fixtures)"
)


@needs_fixtures
def test_an_official_projector_computes_what_the_official_code_did():
    projector = load_official_projector(PROJECTOR)
    io = load_file(FIXTURES / "qformer_io.safetensors")
    with torch.no_grad():
        tokens, mask = projector(io["frames"], io["frame_mask"])
    assert torch.equal(mask, io["token_mask"])
    assert (tokens - io["tokens"])[mask].abs().max() <= 1e-5


@needs_fixtures
def test_the_number_of_heads_comes_from_the_file_beside_it_or_an_argument(tmp_path):
    alone = shutil.copyfile(PROJECTOR, tmp_path / PROJECTOR.name)
    assert load_official_projector(alone).config.heads == 12
    assert load_official_projector(alone, heads=4).config.heads == 4
    (tmp_path / "qformer_config.json").write_text('{"heads": 6}')
    assert load_official_projector(alone).config.heads == 6


@needs_fixtures
def test_a_prefix_before_the_names_does_no_harm(tmp_path):
    tensors = torch.load(PROJECTOR, weights_only=True)
    torch.save({f"base_model.model.{key}": value for key, value in tensors.items()}, tmp_path / "p.bin")
    ours, prefixed = load_official_projector(PROJECTOR), load_official_projector(tmp_path / "p.bin")
    for first, second in zip(ours.parameters(), prefixed.parameters(), strict=True):
        assert torch.equal(first, second)


@needs_fixtures
@pytest.mark.parametrize("broken", ["speech_proj.weight", "Qformer.bert.encoder.layer.1.intermediate_query.dense.bias"])
def test_what_is_missing_is_named(tmp_path, broken):
    tensors = torch.load(PROJECTOR, weights_only=True)
    tensors = {key: value for key, value in tensors.items() if not key.endswith(f"Qformer.{broken}")}
    torch.save(tensors, tmp_path / "p.bin")
    with pytest.raises(ValueError, match=r"p\.bin: not a projector of the official code"):
        load_official_projector(tmp_path / "p.bin")


def test_another_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match=r"other\.bin: key 'weight' does not contain"):
        load_official_projector(tmp_path / "other.bin")


@needs_fixtures
def test_an_import_is_a_checkpoint(tmp_path):
    """The widths of the fixture are 24 and 40."""
    encoder, llm = tiny_encoder(tmp_path / "encoder"), tiny_llm(tmp_path / "llm", dim=40)
    made = import_official(PROJECTOR, tmp_path / "out", encoder=str(encoder), llm=str(llm))
    loaded = SpeechLLM.from_pretrained(tmp_path / "out")
    frames, mask = torch.randn(2, 40, 24), torch.ones(2, 40, dtype=torch.bool)
    expected = load_official_projector(PROJECTOR)(frames, mask)[0]
    for model in (made, loaded):
        assert torch.equal(model.projector(frames, mask)[0], expected)
    with pytest.raises(ValueError, match="was trained with a width of 40"):
        import_official(PROJECTOR, tmp_path / "out", encoder=str(encoder), llm=str(tiny_llm(tmp_path / "narrow")))


class Attack:
    """An object that writes a file where it is unpickled."""

    def __reduce__(self):
        return open, ("attacked", "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Attack(), "holds more than tensors"),
        ({"a": Attack()}, "holds more than tensors"),
        ([torch.zeros(2)], "no dictionary of tensors"),
        ({"a": 3}, "no dictionary of tensors"),
        ({"mm_speech_projector.Qformer.query_tokens": torch.zeros(1)}, "not a projector of the official code"),
        ({"mm_speech_projector.Qformer.query_tokens": torch.zeros(1).expand(10**12)}, "claims more values"),
        ({"mm_speech_projector.Qformer.query_tokens": torch.tensor([torch.nan])}, "infinite values or NaN"),
    ],
)
def test_other_files_are_refused_in_one_line(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "projector.bin")
    with pytest.raises(CheckpointError, match=rf"projector\.bin: .*{message}") as caught:
        load_official_projector(tmp_path / "projector.bin")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x05."])
def test_damaged_files_are_refused_in_one_line(content, tmp_path):
    (tmp_path / "projector.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"projector\.bin: is damaged"):
        load_official_projector(tmp_path / "projector.bin")
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_official_projector(tmp_path / "other.bin")
