"""Prints and saves the results of a benchmark."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flywheel_ml.utils.errors import ProjectError
from flywheel_ml.utils.files import write_json

console = Console(highlight=False)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], missed: Iterable[bool] = (), **style: Any) -> None:
    """Print a table; `missed` marks rows whose target was missed, in yellow."""
    table = Table(*heads, box=None, header_style="bold", **style)
    marks = iter(missed)
    for row in rows:
        table.add_row(*row, style="yellow" if next(marks, False) else None)
    console.print(table)


def save(path: Path, content: Any, *others: str) -> None:
    """Write the results as JSON and print where they are; `others` are names of further files."""
    write_json(path, content)
    console.print(f"[dim]written to {' and '.join([str(path), *others])}[/]")


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; an expected error ends it with one line."""
    try:
        main()
    except (ProjectError, OSError) as error:
        sys.exit(f"error: {error}")
