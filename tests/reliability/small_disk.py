"""Train on a disk that becomes full or read-only, and resume; `test_machine.py` runs this file under ``unshare``.

Usage: python small_disk.py RECIPE {full,readonly} FOLDER

Prints one JSON object: the message of the error, the checkpoints that were left, and the losses and the projector of
the resumed run.
"""

import json
import subprocess
import sys
from pathlib import Path

from ossicle.errors import OssicleError
from ossicle.objectives import NextToken
from ossicle.train.loop import train
from ossicle.train.recipe import load

CALL = 4
"""Call of the objective after which the disk fails: the checkpoint of step 2 exists, that of step 4 is next."""
ROOM_BYTES = 32_768
"""Bytes that are left on the full disk: a part of a checkpoint."""


class Breaks:
    """Next-token objective that calls ``act`` in call `CALL`."""

    needs_negatives = needs_mixed = False

    def __init__(self, act) -> None:
        self.act, self.calls = act, 0

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == CALL:
            self.act()
        return NextToken()(model, batch)

    def __repr__(self) -> str:
        return "Breaks"


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def fill(path: Path) -> None:
    """Write ``path`` until the disk is full, and free `ROOM_BYTES`."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(file.tell() - ROOM_BYTES)


def main() -> None:
    recipe, mode, disk = sys.argv[1:]
    config, said = load(recipe), ""
    checkpoints = str(config.folder / "checkpoints")
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", disk)

    def break_disk() -> None:
        if mode == "full":
            fill(Path(disk) / "filler")
        else:
            mount("--bind", checkpoints, checkpoints)
            mount("-o", "remount,bind,ro", checkpoints)

    try:
        train(config, objective=Breaks(break_disk))
    except OssicleError as error:
        said = str(error)
    if mode == "full":
        (Path(disk) / "filler").unlink()
    else:
        subprocess.run(["umount", checkpoints], check=True)
    left = sorted(path.name for path in Path(checkpoints).iterdir())
    train(config, objective=Breaks(lambda: None), resume=True)
    losses = [json.loads(line)["loss"] for line in (config.folder / "metrics.jsonl").open()]
    projector = (config.folder / "projector.safetensors").read_bytes().hex()
    print(json.dumps({"said": said, "left": left, "losses": losses, "projector": projector}))


if __name__ == "__main__":
    main()
