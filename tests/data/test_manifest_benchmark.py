"""The benchmark of large manifests runs from end to end on a small one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc of Linux")
def test_an_index_takes_less_memory_than_a_list(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "manifest.py"), "--json", str(tmp_path / "found.json")]
    options = ["--lines", "20000", "--workers", "2", "--read", "20000"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())
    own = {way: found[way]["all_mb"] - found["nothing"]["all_mb"] for way in ("list", "table")}
    assert own["table"] < own["list"] / 2
    assert found["table"]["open_s"] < found["index"]["open_s"] / 5
