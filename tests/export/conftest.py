"""Tiny models whose answers depend on what they hear, and a folder for the code of exported models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import large

from ossicle.models.speech_llm import ModelConfig, SpeechLLM
from ossicle.testing import ENCODERS, tiny_encoder, tiny_llm


@pytest.fixture(scope="session", autouse=True)
def code_folder(tmp_path_factory):
    """transformers copies the code of a model to this folder and imports it from there."""
    patch = pytest.MonkeyPatch()
    folder = str(tmp_path_factory.mktemp("code"))
    for module in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        patch.setattr(f"{module}.HF_MODULES_CACHE", folder, raising=False)
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> Callable[[str], Path]:
    """``bases(family)``: folder of an encoder, or of an LLM with large weights, for answers that vary."""
    from transformers import AutoModelForCausalLM

    root, made = tmp_path_factory.mktemp("bases"), {}

    def make(family: str) -> Path:
        if family not in made:
            if family.removesuffix("-group") in ENCODERS:
                norm = "group" if family.endswith("-group") else "layer"
                made[family] = tiny_encoder(root / family, family.removesuffix("-group"), norm=norm)
            else:
                made[family] = tiny_llm(root / family, family, own_chat=True)
                torch.manual_seed(3)
                llm = AutoModelForCausalLM.from_pretrained(made[family])
                for weight in llm.parameters():
                    if weight.dim() > 1:
                        torch.nn.init.normal_(weight, std=0.3)
                llm.save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture
def speaker(bases) -> Callable[..., SpeechLLM]:
    """``speaker(encoder, llm, projector, **settings)``: a model with a random projector of large weights."""
    from pydantic import TypeAdapter

    def make(encoder: str, llm: str, projector: dict[str, Any], **settings: Any) -> SpeechLLM:
        places = {"encoder": str(bases(encoder)), "llm": str(bases(llm))}
        torch.manual_seed(1)
        model = TypeAdapter(ModelConfig).validate_python({**places, "projector": projector, **settings}).build().eval()
        large(model.projector)
        return model

    return make
