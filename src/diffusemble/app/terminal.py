"""How the command line speaks: quiet libraries, one progress bar, one clear message when something is wrong."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text
from typer import Exit
from typer.core import TyperGroup

if TYPE_CHECKING:
    from diffusemble.training.run import Progress as Training

MISTAKE, INTERRUPTED = 2, 130
"""Exit codes: something the user can mend, and Ctrl-C."""

QUIET = 60.0
"""Seconds between two lines of progress where there is no terminal."""


class Commands(TyperGroup):
    """The commands, with ``--debug`` anywhere among their arguments, and messages in place of tracebacks."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--debug`` out, wherever it stands."""
        ctx.meta["debug"] = "--debug" in args
        return super().parse_args(ctx, [one for one in args if one != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what a user can mend becomes one message."""
        debug: bool = ctx.meta["debug"]
        # Where other programs run too, threads that wait by spinning make small models fifty times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        if not debug:
            hush()
        try:
            with _spoken(logging.DEBUG if debug else logging.WARNING):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say_error("interrupted")
            raise Exit(INTERRUPTED) from None
        except Exception as error:
            message = advice(error)
            if debug or message is None:
                raise
            say_error(message)
            raise Exit(MISTAKE) from None


def advice(error: Exception) -> str | None:
    """What to tell about an error that a user can mend; nothing about a defect of ours."""
    if type(error).__name__ == "OutOfMemoryError":
        return f"{error}\nDraw fewer pictures at a time (--set batch=1), or smaller ones (--size)."
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. It belongs to an extra: pip install 'diffusemble[train,evaluate]'."
    if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
        return str(error) or type(error).__name__
    return None


def hush() -> None:
    """Silence what libraries say that a user cannot act on; has to come before their import."""
    warnings.filterwarnings("ignore")
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def hush_bars() -> None:
    """Switch off the loading bars of diffusers and transformers; imports both."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()


def out() -> Console:
    """Where results go; made when it is used, so that redirected output is honoured."""
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """Where messages and progress go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say_error(message: str) -> None:
    """One red message."""
    err().print(Text("error: ", style="bold red"), Text(message, style="red"), sep="")


@contextmanager
def progress_bar(first: str) -> Iterator[Callable[[float, str], None]]:
    """Shows how far the block is; gives ``tell(share, what)``. A bar with time left on terminals, else a few lines."""
    console = err()
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(first, total=None)

        def tell(share: float, what: str) -> None:
            # Until something is done there is nothing to reckon the time from: the bar just moves.
            bar.update(task, total=1.0 if share > 0 else None, completed=share, description=what)

        yield tell


def _lines(console: Console) -> Callable[[float, str], None]:
    """``tell`` where no bar can be drawn: a line now and then, so that short runs say nothing."""
    last = monotonic()

    def tell(share: float, what: str) -> None:
        nonlocal last
        if monotonic() - last >= QUIET:
            last = monotonic()
            console.print(f"{share:4.0%}  {what}", markup=False)

    return tell


class _Speaker(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        label = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        err().print(Text(label, style=f"bold {style}"), Text(record.getMessage(), style=style), sep="")


@contextmanager
def _spoken(level: int) -> Iterator[None]:
    """Print what the library logs while the block runs, and memory plans before they are kept."""
    log, plans, speaker = logging.getLogger("diffusemble"), logging.getLogger("diffusemble.memory"), _Speaker()
    before = log.level, plans.level, log.propagate
    log.addHandler(speaker)
    log.setLevel(level)
    plans.setLevel(min(level, logging.INFO))
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(speaker)
        log.setLevel(before[0])
        plans.setLevel(before[1])
        log.propagate = before[2]


def training_line(now: Training) -> tuple[float, str]:
    """Share that is done, 0 to 1, and what a training does at this moment, for ``progress_bar``."""
    loss = "" if now.loss is None else f", loss {now.loss:.4f}"
    return now.done / now.total if now.total else 0.0, f"{now.stage} {now.done}{loss}"
