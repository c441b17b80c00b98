"""Shows several runs at once: each process writes its ``metrics.jsonl``, this reads them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ossicle.train.tracking import METRICS_FILE, describe, read_metrics
from ossicle_lab.demo.chain import Chain

REFRESH_S = 1.0
LINES_EVERY_S = 30.0


class Watch:
    """A bar per chain on a terminal; elsewhere a line per chain every half minute."""

    def __init__(self, chains: Sequence[Chain]) -> None:
        self.chains = chains
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks = {
            chain.name: self.progress.add_task(
                chain.name, total=_stage1_steps(chain) + chain.steps[1], status="waiting", start=False
            )
            for chain in chains
        }

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def until_done(self, futures: Sequence[Future[Any]]) -> None:
        """Return when all ``futures`` (one per chain, in order) are done, or one has failed."""
        waited_s = 0.0
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=REFRESH_S)
            for future in done:
                future.result()
            waited_s += REFRESH_S
            speak = not self.console.is_terminal and waited_s % LINES_EVERY_S == 0
            for chain, future in zip(self.chains, futures, strict=True):
                steps, status = (None, "done") if future.done() else self._status(chain)
                self._show(chain.name, steps, status)
                if speak and steps:
                    self.console.print(f"  {chain.name}: {status}", highlight=False, soft_wrap=True)

    def _show(self, name: str, steps: int | None, status: str) -> None:
        task = self.progress.tasks[self.tasks[name]]
        if status != "waiting" and not task.started:
            self.progress.start_task(task.id)
        self.progress.update(task.id, completed=task.total if steps is None else steps, status=status)

    def _status(self, chain: Chain) -> tuple[int, str]:
        """Steps so far over both stages, and the last record in words."""
        for stage, offset in (("stage2", _stage1_steps(chain)), ("stage1", 0)):
            path = chain.folder / stage / METRICS_FILE
            records = read_metrics(path) if path.is_file() else []
            if records:
                step = records[-1]["step"]
                return offset + step, f"{stage} step {step}  {describe(records[-1])}"
        return 0, "waiting"


def _stage1_steps(chain: Chain) -> int:
    return chain.steps[0] if chain.stage1 else 0
