"""Where everything that people see goes through: results to stdout, progress and complaints to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Output:
    """stdout for results, stderr for the rest; quiet drops everything but results asked for and complaints."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.result = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.notes = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def json(self, text: str) -> None:
        """Print a JSON document."""
        sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def show(self, *renderables: object) -> None:
        """Print a result for people, unless JSON or quiet was asked for."""
        if not (self.quiet or self.as_json):
            for renderable in renderables:
                self.result.print(renderable)

    def warn(self, line: str) -> None:
        """Print a line about something that deserves attention."""
        self.notes.print(f"[yellow]warning:[/yellow] {escape(line)}")

    def note(self, line: str) -> None:
        """Print a line that is good to know."""
        if not self.quiet:
            self.notes.print(escape(line))

    @staticmethod
    def complain(line: str) -> None:
        """Print the one line of an error."""
        sys.stderr.write(f"onnxslim: {line}\n")

    @contextmanager
    def progress(self) -> Iterator[ProgressBar]:
        """Show long steps as bars on stderr, only where that is a terminal."""
        live = self.notes.is_terminal and not self.quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.notes, transient=True, disable=not live) as bars:
            yield ProgressBar(bars)


class ProgressBar:
    """A progress callback: called with (what, done, total)."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of ``what`` are finished."""
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(task, completed=done, total=total)
        if done >= total:
            self._bars.remove_task(task)
            del self._tasks[what]
