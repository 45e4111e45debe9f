"""A call that can be paused from within, so that several calls take turns.

It runs in a thread of its own, but never at the same time as whoever resumes it.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

Pause = Callable[[Any], Any]


class Stopped(BaseException):
    """Ends a paused call; no Exception, so that nothing inside the call takes it for a failure."""


@dataclass(frozen=True)
class Ended:
    """The call is over, with this result."""

    result: Any


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class Strand:
    """A call that gives control back wherever it calls ``pause``.

    What torch keeps per thread is in the call as it is where the strand is made: whether gradients are followed,
    inference mode, autocast, default device, CUDA stream.

    Args:
        call: called with ``pause``; ``pause(report)`` hands the report to whoever resumed the strand, and returns what
            it is resumed with.
    """

    def __init__(self, call: Callable[[Pause], Any]) -> None:
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        body = partial(self._body, call, _surroundings())
        # A daemon, so that a second ctrl-C ends a program that waits for it.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(body,), daemon=True)
        self._started = self._over = False

    def resume(self, value: Any = None) -> Any:
        """Run on, until the call pauses or ends.

        Returns:
            What the call paused with, or ``Ended``.

        Raises:
            BaseException: whatever the call raised.
        """
        if self._started:
            self._inbox.put(value)
        else:
            self._started = True
            self._thread.start()
        report = _receive(self._outbox)
        if isinstance(report, (Ended, _Failed)):
            self._over = True
            self._thread.join()
        if isinstance(report, _Failed):
            raise report.error
        return report

    def stop(self) -> None:
        """End the call where it is paused; one that runs ends at its next pause. It is over afterwards."""
        if self._started and not self._over:
            self._over = True
            self._inbox.put(Stopped())
            self._thread.join()

    def _pause(self, report: Any) -> Any:
        self._outbox.put(report)
        value = self._inbox.get()
        if isinstance(value, Stopped):
            raise value
        return value

    def _body(
        self, call: Callable[[Pause], Any], surroundings: list[Callable[[], AbstractContextManager[Any]]]
    ) -> None:
        report: Ended | _Failed
        try:
            with ExitStack() as stack:
                for surrounding in surroundings:
                    stack.enter_context(surrounding())
                report = Ended(call(self._pause))
        except BaseException as error:
            report = _Failed(error)
        self._outbox.put(report)


def _receive(box: queue.SimpleQueue[Any]) -> Any:
    while True:
        # Windows shows a ctrl-C only between two waits.
        with suppress(queue.Empty):
            return box.get(timeout=0.5)


def _surroundings() -> list[Callable[[], AbstractContextManager[Any]]]:
    """Contexts that make another thread's torch as this one's."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    contexts: list[Callable[[], AbstractContextManager[Any]]] = [
        partial(torch.inference_mode, inference),
        partial(torch.set_grad_enabled, grad),
    ]
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            contexts.append(partial(torch.autocast, kind, dtype=torch.get_autocast_dtype(kind)))
    device = torch.get_default_device()
    if device.type != "cpu":
        contexts.append(lambda: device)
    if torch.cuda.is_initialized():
        contexts.append(partial(torch.cuda.stream, torch.cuda.current_stream()))
    return contexts
