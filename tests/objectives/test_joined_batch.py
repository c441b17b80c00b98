"""The short form of `benchmarks/joined.py`: two processes train as one that has the joined batch."""

import json
import subprocess
import sys

import pytest

from places import ROOT

CASES = ["wasserstein", "fine-tuning, LoRA", "regression", "ctc", "cif", "on-policy"]


@pytest.mark.slow
def test_losses_gradients_and_projectors_are_those_of_one_process(tmp_path):
    out = tmp_path / "joined.json"
    command = [sys.executable, str(ROOT / "benchmarks/joined.py"), "--processes", "2", "--steps", "2"]
    done = subprocess.run([*command, "--out", str(out), "--only", *CASES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert [one["case"] for one in results] == CASES
    for one in results:
        assert max(one["loss"], one["parts"], one["dev"]) < 1e-4, one
        assert max(one["gradient"], one["projector"]) < 1e-3, one
