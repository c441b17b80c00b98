"""The short forms of `benchmarks/kill.py` and `benchmarks/fuzz.py`."""

import json
import subprocess
import sys

import pytest

from places import ROOT


def run(name: str, out, *options: str) -> list[dict]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
def test_killed_runs_of_both_stages_continue_bit_for_bit(tmp_path):
    found = run("kill.py", tmp_path / "kill.json", "--kills", "2", "--processes", "1")
    assert [one["stage"] for one in found] == [1, 2]
    for one in found:
        assert one["moments"] == {"step": 1, "save": 1}
        assert max(one["killed_after_steps"]) > 0
        assert (one["unequal_steps"], one["equal_projector"]) == ([], True)


@pytest.mark.slow
def test_random_inputs_are_read_or_refused_by_name(tmp_path):
    counts = ["--manifests", "300", "--audio", "200", "--recipes", "150", "--overrides", "150"]
    found = run("fuzz.py", tmp_path / "fuzz.json", *counts)
    assert [one["inputs"] for one in found] == [300, 200, 150, 150]
    for one in found:
        assert one["faults"] == {}
        assert one["accepted"] > 0 and one["refused"] > 0, "inputs are near the border of what is valid"
        assert one["slowest_s"] < 10 and one["grown_mb"] < 1024


GROW = """
import sys
sys.path.insert(0, sys.argv[1])
import fuzz
from argparse import Namespace
from hypothesis import strategies as st

def grow(value):
    bytearray(200 * 2**20)[::4096] = bytes(200 * 2**8)  # touched, so that it counts

options = Namespace(audio=40, seed=0, limit_s=5, limit_mb=20)
print([one.faults for one in fuzz.fuzz(fuzz.Result("audio"), st.just(3), grow, options)])
"""


def test_the_fuzzer_reports_other_errors_slow_inputs_and_memory():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import fuzz
    finally:
        sys.path.pop(0)
    from argparse import Namespace
    from collections import Counter
    from contextlib import suppress

    from hypothesis import strategies as st

    seen = Counter()

    def fail(value: int) -> None:
        seen[value] += 1
        if value == 1:
            raise KeyError("x")
        with suppress(BaseException if value == 3 else ()):
            while value in (2, 3):
                pass

    options = Namespace(audio=40, seed=0, limit_s=0.2, limit_mb=1e6)
    *_, result = fuzz.fuzz(fuzz.Result("audio", inputs=25), st.integers(0, 3), fail, options)
    assert (result.inputs, result.accepted) == (40, sum(seen.values()) - seen[1] - seen[2]), "15 were left to do"
    assert sorted(fault.partition(" ")[0] for fault in result.faults) == ["KeyError", "TooLong", "took"]
    # The peak of this process may be far above what it uses now, so that only a new one shows growth.
    done = subprocess.run([sys.executable, "-c", GROW, str(ROOT / "benchmarks")], capture_output=True, text=True)
    assert "memory grew" in done.stdout, done.stderr
