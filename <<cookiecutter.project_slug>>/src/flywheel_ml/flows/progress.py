"""Terminal output of a flow: one line per step, with its result and duration."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.control import Control
from rich.markup import escape
from rich.segment import ControlType

from flywheel_ml.utils.process import get_children_cpu_seconds

WIDTH = 10


class Step:
    """A running step; set `note` to its result, and `idle` if there was nothing to do."""

    def __init__(self) -> None:
        self.note = ""
        self.idle = False


class Progress:
    """Prints steps as they end and, on a terminal, the running one."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        """Processor time of the processes that each step started, such as stages."""

    def print(self, text: str = "") -> None:
        """Print a line of rich markup."""
        self._console.print(text)

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[Step]:
        """Time a block; print its line when it ends, even if it fails."""
        step, start, cpu_start = Step(), time.perf_counter(), get_children_cpu_seconds()
        # No spinner: a stage runs in its own process and may print at any time.
        if self._console.is_terminal:
            running = f"… {name:<{WIDTH}}           {doing}"[: self._console.width - 1]
            self._console.print(f"[dim]{escape(running)}[/]", end="\r", soft_wrap=True)
        mark = "[red]✗[/]"
        try:
            yield step
            mark = "[dim]·[/]" if step.idle else "[green]✓[/]"
        finally:
            self.seconds[name] = time.perf_counter() - start
            self.cpu_seconds[name] = get_children_cpu_seconds() - cpu_start
            self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))
            self._console.print(
                f"{mark} {name:<{WIDTH}} {self.seconds[name]:6.1f} s  {escape(step.note or doing)}", soft_wrap=True
            )
