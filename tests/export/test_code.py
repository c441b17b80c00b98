"""The code of exported models computes what the projectors compute, without Ossicle."""

from __future__ import annotations

import ast
import importlib
import sys

import pytest
import torch

from ossicle.export.code import COPIED, write_code
from ossicle.export.settings import projector_settings

QFORMER = {"name": "qformer", "width": 16, "heads": 2, "layers": 2, "ffn": 24, "queries": 2, "window_s": 0.1}
PROJECTORS = [
    QFORMER,
    {**QFORMER, "window_positions": True},
    {**QFORMER, "frame_norm": "none", "pad_windows": "zero"},
    {**QFORMER, "free_queries": 1},
    {"name": "linear"},
    {"name": "mlp", "width": 16},
    {"name": "stack-mlp", "width": 16},
    {"name": "conv", "width": 16},
    {"name": "ctc", "width": 16, "heads": 2, "layers": 3, "ffn": 24, "kernel": 3, "prompt": 4},
    {"name": "cif", "width": 16, "heads": 2, "layers": 1, "ffn": 24, "kernel": 3},
]


@pytest.fixture
def code(tmp_path, monkeypatch):
    write_code(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("projectors_ossicle")
    yield module
    del sys.modules["projectors_ossicle"]


@pytest.mark.parametrize("projector", PROJECTORS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_the_written_projector_computes_the_same(speaker, code, projector):
    model = speaker("hubert", "llama", projector)
    written = code.build_projector(projector_settings(model)).eval()
    written.load_state_dict(model.projector.state_dict())
    if projector["name"] == "ctc":
        written.embeddings = model.projector.embeddings
    frames, mask = torch.randn(3, 23, 24), torch.arange(23) < torch.tensor([[23], [17], [2]])
    for found, expected in zip(written(frames, mask), model.projector(frames, mask), strict=True):
        torch.testing.assert_close(found, expected)


def test_an_unknown_projector_is_named(code):
    with pytest.raises(ValueError, match=r"projector\.name='perceiver'"):
        code.build_projector({"name": "perceiver", "in_dim": 1, "out_dim": 1})


def test_the_code_imports_nothing_but_torch_transformers_and_itself(tmp_path):
    write_code(tmp_path)
    allowed = {
        "__future__",
        "contextlib",
        "copy",
        "dataclasses",
        "safetensors",
        "torch",
        "transformers",
        "types",
        "typing",
    }
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted([*COPIED, "projectors_ossicle.py"])
    for path in tmp_path.iterdir():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
                assert not node.level or f"{node.module}.py" in files
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            if not getattr(node, "level", 0):
                assert {name.partition(".")[0] for name in names} <= allowed, path.name
