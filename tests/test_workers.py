"""Workers of a pool end when the process that owns the pool is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

OWNER = """
import os, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from ossicle.workers import start_worker

if __name__ == "__main__":
    context = get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=start_worker, initargs=(os.getpid(), True))
    print(pool.submit(os.getpid).result(), flush=True)
    sys.stdin.read()
"""


def runs(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the number of a dead parent")
def test_a_worker_ends_with_a_killed_owner_and_ignores_an_interrupt(tmp_path):
    path = tmp_path / "owner.py"
    path.write_text(OWNER)
    owner = subprocess.Popen([sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    worker = int(owner.stdout.readline())
    os.kill(worker, signal.SIGINT)
    time.sleep(1.5)
    assert runs(worker)
    owner.kill()
    owner.communicate(timeout=60)  # until the worker, which has the same output, has ended too
