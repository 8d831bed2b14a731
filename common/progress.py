"""One progress bar that gets along with the bar of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bar:
    """A task in a rich progress display, or nothing at all.

    Args:
        progress: The display; ``None`` shows nothing.
        task: The task in it.
    """

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress, self._task = progress, task

    def describe(self, text: str) -> None:
        """Replaces the text before the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text, refresh=True)

    def advance(self, steps: int = 1) -> None:
        """Moves the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=steps, refresh=True)


def console(trainer: Trainer | None = None) -> Console:
    """Where tables go: the console of the live progress bar if there is one, so that neither overwrites the other."""
    bar = getattr(trainer, "progress_bar_callback", None)
    shared = bar.progress if isinstance(bar, RichProgressBar) else None
    screen: Console = Console() if shared is None else shared.console
    # a pipe or a log file has no width of its own; the 80 columns that rich takes instead would break every row
    return screen if screen.is_terminal else Console(width=120)


@contextmanager
def progress_bar(total: int, text: str, trainer: Trainer | None = None, enabled: bool = True) -> Iterator[Bar]:
    """A bar of ``total`` steps: a further task in Lightning's rich bar while that is on screen, else one of its own.

    Args:
        total: Number of steps.
        text: Words before the bar.
        trainer: A trainer whose bar may be on screen. Its ``enable_progress_bar=False`` and its other ranks show
            nothing here either.
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
            # hidden, not removed: Lightning finds its own tasks by their position in the list
            shared.update(task, visible=False, refresh=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as own:
        yield Bar(own, own.add_task(text, total=total))
