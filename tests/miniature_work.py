"""Work in parts, for test_on_ray: it is imported by other processes."""

import os
import signal
from pathlib import Path

from ossicle.errors import OssicleError
from ossicle.shards import Shard


def counted(shard: Shard, folder: Path) -> None:
    """Write a file, once; part 3 fails while there is a file ``bad``."""
    done = folder / f"done-{shard.number}"
    if shard.number == 3 and (folder / "bad").exists():
        raise OssicleError("block 3 is bad")
    if not done.exists():
        done.write_text("x")
    elif shard.number == 3:
        done.write_text("xx")


def killed_once(shard: Shard, folder: Path) -> None:
    """As `counted`; the process of part 2 is killed at its first attempt, between two writes."""
    if shard.number == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        (folder / "done-2.tmp").write_text("a part")
        os.kill(os.getpid(), signal.SIGKILL)
    counted(shard, folder)
