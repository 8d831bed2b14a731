"""A progress bar that shares the screen with the progress bar of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bar:
    """A task in a rich progress display, or no display.

    Args:
        progress: The display; ``None`` shows nothing.
        task: The task in the display.
    """

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def describe(self, text: str) -> None:
        """Replace the text before the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text, refresh=True)

    def advance(self, steps: int = 1) -> None:
        """Move the bar by a number of steps."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=steps, refresh=True)


def console(trainer: Trainer | None = None) -> Console:
    """The console for tables.

    Args:
        trainer: A trainer whose rich progress bar may be on screen; tables are then printed above it.

    Returns:
        The console of the trainer's progress bar if there is one, else a new one.
    """
    bar = getattr(trainer, "progress_bar_callback", None)
    shared = bar.progress if isinstance(bar, RichProgressBar) else None
    screen: Console = Console() if shared is None else shared.console
    # without a terminal rich assumes 80 columns, which would break every row of a table
    return screen if screen.is_terminal else Console(width=120)


@contextmanager
def progress_bar(total: int, text: str, trainer: Trainer | None = None, enabled: bool = True) -> Iterator[Bar]:
    """Show a bar of ``total`` steps: another task in Lightning's rich bar if it is on screen, else a separate bar.

    Args:
        total: Number of steps.
        text: Text before the bar.
        trainer: A trainer whose bar may be on screen. Nothing is shown with its ``enable_progress_bar=False`` and on
            ranks other than the first.
        enabled: ``False`` shows nothing.

    Yields:
        The bar.
    """
    if trainer is not None:
        enabled = enabled and trainer.is_global_zero and trainer.progress_bar_callback is not None
    if not enabled:
        yield Bar(None, None)
        return
    lightning_bar = trainer.progress_bar_callback if trainer is not None else None
    shared = lightning_bar.progress if isinstance(lightning_bar, RichProgressBar) else None
    if shared is not None and shared.live.is_started:
        task = shared.add_task(text, total=total)
        try:
            yield Bar(shared, task)
        finally:
            # hidden, not removed: Lightning finds its own tasks by their position in the list of tasks
            shared.update(task, visible=False, refresh=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as own:
        yield Bar(own, own.add_task(text, total=total))
