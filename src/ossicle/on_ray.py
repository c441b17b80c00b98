"""Run the parts of offline work on Ray Data (``--ray``).

The parts are those of ``--shard I/N``: they write files in the shared output folder, and the last one joins them. A
restart therefore repeats only the parts that were not finished, on Ray or without it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ossicle.errors import MissingPackageError, OssicleError
from ossicle.progress import Progress
from ossicle.shards import Shard

CONNECT_S = 10.0
"""Longest wait for the head of a cluster."""
Work = Callable[..., None]
"""A function of a module: ``work(shard, *arguments)``."""


def run_shards(
    work: Work, arguments: tuple[Any, ...], *, count: int, address: str, title: str, gpu: bool = False
) -> None:
    """Call ``work(shard, *arguments)`` for every one of ``count`` shards on Ray, and wait for all.

    Args:
        work: function that does a part of the work. Its module is imported on every machine.
        arguments: its other arguments. Relative paths start at the working directory, which all machines must share.
        count: number of shards. A restart must use the same number.
        address: ``local`` starts processes on this machine; ``auto`` or HOST:PORT joins a running cluster.
        title: what is being done, for the display.
        gpu: take one GPU for each process, if the cluster has any.

    Raises:
        MissingPackageError: Ray is not installed.
        OssicleError: no cluster answers, or a part has failed; the others are finished.
    """
    ray = _started(address)
    gpus = 1 if gpu and ray.cluster_resources().get("GPU", 0) else 0
    processes = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1))
    data = ray.data.from_items([{"number": one.number} for one in Shard.all_of(count)], override_num_blocks=count)
    done = data.map_batches(
        _Worker,
        fn_constructor_args=(work, arguments, count, str(Path.cwd())),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(processes, count))),
        num_gpus=gpus or None,
        num_cpus=None if gpus else 1,
    )
    problems = []
    with Progress(title, count, unit="parts") as progress:
        for row in done.iter_rows():
            progress.advance()
            if row["problem"]:
                problems.append(f"shard {row['number']}/{count}: {row['problem']}")
    if problems:
        more = f"\n({len(problems) - 1} more parts have failed)" if len(problems) > 1 else ""
        raise OssicleError(f"{problems[0]}{more}\nCall the same command again to repeat only these parts.")


def _started(address: str) -> Any:
    try:
        ray: Any = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise MissingPackageError("--ray needs Ray Data; install it: pip install 'ossicle[ray]'") from error
    if address.startswith("ray://"):
        raise OssicleError(
            f"--ray {address}: Ray Data does not run through Ray Client; call the command on a machine of the cluster "
            "and write `auto`, or HOST:PORT without ray://"
        )
    if not ray.is_initialized():
        check_port(address)
        local = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, **local)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise OssicleError(
                f"--ray {address}: no cluster answers ({error!s:.200}); write `local`, `auto` or its HOST:PORT, and "
                "set RAY_AUTH_MODE=token if it asks for a token"
            ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def check_port(address: str) -> None:
    """Raise `OssicleError` if nothing listens at HOST:PORT, for which Ray itself waits for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise OssicleError(f"--ray {address}: nothing answers ({error}); check the address of the head") from error


class _Worker:
    """A process on the cluster, which keeps what ``work`` caches, such as a model."""

    def __init__(self, work: Work, arguments: tuple[Any, ...], count: int, folder: str) -> None:
        self.work, self.arguments, self.count = work, arguments, count
        os.chdir(folder)  # relative paths mean the same as where the command was called

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        number = int(batch["number"][0])
        try:
            self.work(Shard(number, self.count), *self.arguments)
        except OssicleError as error:  # one faulty part must not stop the others
            return {"number": [number], "problem": [str(error)]}
        return {"number": [number], "problem": [""]}
