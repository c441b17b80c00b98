"""Tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDEST = 400


def print_whole(table: Table, console: Console) -> None:
    """Print ``table`` at the width that it needs: a figure that is cut is worse than a line that wraps."""
    width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    given = console.width
    console.width = max(given, width)
    try:
        console.print(table)
    finally:
        console.width = given
