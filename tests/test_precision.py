import pytest
import torch
from accelerate.state import AcceleratorState

from ossicle import precision
from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.precision import CPU, describe_fallbacks, multiplies, new_accelerator, usable
from ossicle.testing import tiny_encoder, tiny_llm

GPU = torch.device("cuda")


def with_accelerator(monkeypatch, *, available: bool) -> None:
    """Answer as a CUDA build of PyTorch does, with or without a GPU."""

    def current(check_available: bool = False) -> torch.device | None:
        return GPU if available or not check_available else None

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)


@pytest.fixture
def onednn(monkeypatch):
    """Return a function that sets what PyTorch reports about this CPU."""

    def says(*, bf16: bool, fp16: bool = False, available: bool = True) -> None:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: fp16)
        with_accelerator(monkeypatch, available=False)

    return says


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("fp16", [False, True])
def test_a_cpu_multiplies_what_it_has_instructions_for(onednn, bf16, fp16):
    onednn(bf16=bf16, fp16=fp16)
    for device in (CPU, None):
        assert multiplies(torch.float32, device)
        assert multiplies(torch.bfloat16, device) == bf16
        assert multiplies(torch.float16, device) == fp16
    assert usable(torch.bfloat16, CPU) == (torch.bfloat16 if bf16 else torch.float32)


def test_without_onednn_no_half_precision_is_fast(onednn):
    onednn(bf16=True, available=False)
    assert not multiplies(torch.bfloat16, CPU)
    assert multiplies(torch.float32, CPU)


def test_an_accelerator_keeps_what_the_recipe_says(onednn, monkeypatch):
    onednn(bf16=False)
    with_accelerator(monkeypatch, available=True)
    assert multiplies(torch.bfloat16)
    assert usable(torch.float16, GPU) == torch.float16
    assert not multiplies(torch.bfloat16, CPU)  # train.cpu=true on a machine with a GPU
    assert describe_fallbacks({"train.precision": "bf16"}, GPU) is None


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "no")])
def test_mixed_precision_only_where_it_pays(onednn, bf16, expected):
    onednn(bf16=bf16)
    for asked, given in (("bf16", expected), ("fp32", "no")):
        AcceleratorState._reset_state(reset_partial_state=True)
        assert new_accelerator(asked, cpu=True).mixed_precision == given
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_message_names_the_settings(onednn):
    onednn(bf16=False)
    wanted = {"model.encoder_dtype": "float32", "model.llm_dtype": "bfloat16", "train.precision": "bf16"}
    said = describe_fallbacks(wanted, CPU)
    assert said is not None
    assert said.startswith("float32 in place of model.llm_dtype=bfloat16, train.precision=bf16: this CPU")
    assert describe_fallbacks({"model.llm_dtype": "int8", "train.precision": "fp32"}, CPU) is None


def test_models_load_in_what_their_processor_multiplies(onednn, tmp_path):
    """In both cases the base models are recognised, and a checkpoint loads."""
    tiny_encoder(tmp_path / "encoder")
    tiny_llm(tmp_path / "llm")
    config = ModelConfig(encoder=str(tmp_path / "encoder"), llm=str(tmp_path / "llm"), llm_dtype="bfloat16")
    onednn(bf16=True)
    half = config.build()
    half.save(tmp_path / "run")
    onednn(bf16=False)
    whole = SpeechLLM.from_pretrained(tmp_path / "run")
    assert (half.llm.model.dtype, whole.llm.model.dtype) == (torch.bfloat16, torch.float32)
    assert half.llm.fingerprint == whole.llm.fingerprint
    assert precision.usable(torch.bfloat16, GPU) == torch.bfloat16


def test_this_machine_answers():
    """The private operators of PyTorch exist, and their answer fits the flags of this CPU."""
    listed = torch.cpu.get_capabilities()
    if listed.get("architecture") != "x86_64":
        pytest.skip("the list of another architecture is not known here")
    assert precision.multiplies(torch.bfloat16, CPU) == (torch.backends.mkldnn.is_available() and listed["avx512_bw"])
