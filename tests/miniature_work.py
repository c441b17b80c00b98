"""Work in parts, for test_on_ray: it is imported by other processes."""

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
