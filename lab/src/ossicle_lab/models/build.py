"""Rebuild the lab's encoder and LLM and write their card: ``python -m ossicle_lab.models.build`` (``make lab``).

The two are trained side by side, each in a process of one thread. Both continue where a stopped call left off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ossicle_lab.models.build_encoder import build_encoder
from ossicle_lab.models.build_llm import build_llm
from ossicle_lab.models.card import write_card

WEIGHTS = Path(__file__).parent / "weights"
WORK = Path("runs/lab")
BUILDERS: dict[str, Callable[[Path, Path], Any]] = {"encoder": build_encoder, "llm": build_llm}
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two processes of one thread beat one of two
    "TOKENIZERS_PARALLELISM": "false",
    # glibc would give every large tensor back to the kernel and ask again: up to half of the time of a step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
}


def main() -> None:
    """Build one part, or both and the card."""
    parser = argparse.ArgumentParser(description="Rebuild the lab's tiny encoder and LLM.")
    parser.add_argument("--work", type=Path, default=WORK, help="corpus and checkpoints (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go (default: in the package)")
    parser.add_argument("--only", choices=sorted(BUILDERS), help="build this one alone, without the card")
    arguments = parser.parse_args()
    if arguments.only:
        BUILDERS[arguments.only](arguments.work / arguments.only, arguments.out / arguments.only)
        return
    _build_side_by_side(arguments.work, arguments.out)
    print(f"wrote {write_card(arguments.out)}")


def _build_side_by_side(work: Path, out: Path) -> None:
    command = [sys.executable, "-m", "ossicle_lab.models.build", "--work", str(work), "--out", str(out), "--only"]
    running = {name: subprocess.Popen([*command, name], env=os.environ | _ENVIRONMENT) for name in BUILDERS}
    failed = [name for name, process in running.items() if process.wait() != 0]
    if failed:
        raise SystemExit(f"building {' and '.join(failed)} failed (see above); the same command continues")


if __name__ == "__main__":
    main()
