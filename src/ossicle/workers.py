"""Set up the worker processes of a pool."""

import os
import signal
import threading
import time


def start_worker(parent: int, ignore_interrupt: bool) -> None:
    """Let this process end soon after the process ``parent`` is killed, and ignore Ctrl-C if asked to.

    A pool whose owner is killed does not end its workers, which would wait for jobs forever.
    """
    if ignore_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def check() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=check, daemon=True).start()
