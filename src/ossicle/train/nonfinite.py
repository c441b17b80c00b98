"""Report the steps that are skipped because their loss or gradient is not finite, and stop after too many."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate.utils import gather_object
from torch import Tensor

from ossicle.batch import Batch
from ossicle.errors import TrainingError
from ossicle.train.checkpoint import describe_newest
from ossicle.train.recipe import Config
from ossicle.train.state import Position
from ossicle.train.tracking import Tracker

IDS_SHOWN = 5
"""Number of utterances that the message about a skipped step names."""


def note_skipped(
    batches: Sequence[Batch],
    totals: Sequence[Tensor],
    config: Config,
    position: Position,
    tracker: Tracker,
    *,
    last: bool,
) -> None:
    """Record a skipped step with its utterances; every process must call this.

    Raises `TrainingError` after ``train.max_nonfinite_steps`` such steps in a row, and if the last step is one.
    """
    position.nonfinite += 1
    position.nonfinite_in_a_row += 1
    bad = [batch for batch, total in zip(batches, totals, strict=True) if not bool(total.isfinite())]
    own = [(sample.id, sample.source) for batch in bad or batches for sample in batch.samples]
    found = gather_object([(bool(bad), own)])
    some = any(has_bad for has_bad, _ in found)
    named = [one for has_bad, ids in found for one in ids if has_bad or not some]
    tracker.record(position.step, "skipped", {"utterances": [name for name, _ in named]})
    shown = ", ".join(f"{name!r} ({source})" for name, source in named[:IDS_SHOWN])
    more = f" and {len(named) - IDS_SHOWN} more" if len(named) > IDS_SHOWN else ""
    what = f"the {'loss' if some else 'gradient'} of step {position.step} is not finite, with {shown}{more}"
    if position.nonfinite_in_a_row < config.train.max_nonfinite_steps and not last:
        tracker.say(f"{what}: the step is skipped ({position.nonfinite} so far)")
        return
    raise TrainingError(
        f"{config.folder}: {what}; {position.nonfinite} steps were skipped for this, the last "
        f"{position.nonfinite_in_a_row} in a row: lower optim.lr, or check these recordings and texts"
        f"{describe_newest(config.folder)}"
    )
