"""A table keeps every figure, however narrow the terminal is."""

import io

from rich.console import Console
from rich.table import Table

from ossicle.evaluate.tables import print_whole


def test_a_table_wider_than_the_terminal_keeps_every_figure():
    table = Table(*(f"column {i}" for i in range(9)))
    table.add_row(*(f"{i}.25 ± 0.{i}" for i in range(9)))
    out = io.StringIO()
    console = Console(file=out, width=40)
    print_whole(table, console)
    assert all(f"{i}.25 ± 0.{i}" in out.getvalue() for i in range(9))
    assert console.width == 40
