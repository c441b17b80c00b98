"""Train the lab's encoder and LLM again and write their card: ``python -m ossicle_lab.models.build`` (``make lab``).

The two are trained side by side, each in a process with one thread. Both continue where a stopped call left off.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ossicle.errors import OssicleError
from ossicle_lab.jobs import run_side_by_side
from ossicle_lab.models.build_encoder import build_encoder
from ossicle_lab.models.build_llm import build_llm
from ossicle_lab.models.card import write_card

WEIGHTS = Path(__file__).parent / "weights"
WORK = Path("runs/lab")
BUILDERS: dict[str, Callable[[Path, Path], Any]] = {"encoder": build_encoder, "llm": build_llm}


def main() -> None:
    """Train one part, or both and write the card."""
    parser = argparse.ArgumentParser(description="Train the lab's tiny encoder and LLM again.")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of corpus and checkpoints (%(default)s)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights (default: in the package)")
    parser.add_argument("--only", choices=sorted(BUILDERS), help="train this part alone, and write no card")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(BUILDERS)
    jobs = {name: partial(BUILDERS[name], arguments.work / name, arguments.out / name) for name in names}
    try:
        run_side_by_side(jobs)
    except (OssicleError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}; the same command continues") from error
    if not arguments.only:
        print(f"wrote {write_card(arguments.out)}")


if __name__ == "__main__":
    main()
