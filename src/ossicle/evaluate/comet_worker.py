"""Score translations with unbabel-comet. This script runs in COMET's environment and imports nothing of Ossicle.

Usage: python comet_worker.py REQUEST ANSWER
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path


def main(request: str, answer: str) -> None:
    """Score the utterances of the file ``request`` and write the file ``answer``."""
    # Python puts the folder of a script first in the search path, where comet.py and metrics.py would shadow packages.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    from comet import download_model, load_from_checkpoint

    header, *lines = [json.loads(line) for line in Path(request).read_text(encoding="utf-8").splitlines()]
    model = load_from_checkpoint(download_model(header["model"]))
    scores = model.predict(lines, batch_size=16, gpus=_gpus(), progress_bar=False).scores
    entries = [{"model": header["model"], "version": version("unbabel-comet")}, *({"score": s} for s in scores)]
    Path(answer).write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def _gpus() -> int:
    import torch

    return int(torch.cuda.is_available())


if __name__ == "__main__":
    main(*sys.argv[1:])
