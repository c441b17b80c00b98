"""The GPU benchmark runs from end to end on small models, on a CPU too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT


@pytest.mark.slow
def test_the_gpu_benchmark_runs_with_tiny_models(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--repeat", "1", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert all(loss < 1e-4 and gradient < 1e-3 for _, loss, gradient in found["parity"])
    losses = {row["loss"] for row in found["ladder"]}
    assert len(found["ladder"]) == 6
    assert max(losses) - min(losses) < 1e-3, "each step of the ladder computes the same loss"
    assert all(row["utterances_per_s"] > 0 for row in found["steps"])
