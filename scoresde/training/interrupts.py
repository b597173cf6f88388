"""Signals that ask a process to end, delivered between pieces of work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[int, FrameType | None], Any]


class Interrupts:
    """Makes Ctrl-C, and a SIGTERM with a handler, wait until a piece of work is done.

    Handlers stay the same and are called later; a second signal is delivered at once. In threads
    that receive no signals, nothing changes.

    Args:
        hold: Whether a signal waits until `deliver` is called, whenever it comes: several processes
            have to end together, and one may be signalled earlier than another.
    """

    def __init__(self, hold: bool = False) -> None:
        self._hold = self._busy = hold
        self._handlers: dict[int, Handler] = {}
        self._waiting: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):  # what the system does by itself cannot wait
                    self._handlers[number] = handler
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)

    @property
    def pending(self) -> bool:
        """Whether a signal waits."""
        return self._waiting is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals that come inside are delivered at the end, unless they are held."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = self._hold
            if not self._hold:
                self.deliver()

    def deliver(self) -> None:
        """Calls the handler of a signal that waits, if one does."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._handlers[waiting[0]](*waiting)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._busy and self._waiting is None:
            self._waiting = number, frame
        else:
            self._handlers[number](number, frame)
