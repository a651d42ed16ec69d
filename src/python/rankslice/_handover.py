"""One finished tensor between the thread that gathers and the one that uses them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from rankslice import _tensors
from rankslice.errors import UnexpectedError

if TYPE_CHECKING:
    from rankslice._progress import Report

_MOMENT = 0.05
"""Seconds that the thread waits here before it tells the other ranks that this one is alive."""


class Handover:
    """What C++ calls as it gathers (``look``, ``room_for``, ``finish``), and what its consumer does (all else).

    There is never more than one tensor here, being put together or finished.
    """

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._changed = threading.Condition()
        self._tensor: tuple[str, torch.Tensor] | None = None
        self._finished = False
        self._ended = False
        self._failure: BaseException | None = None
        self._stop: BaseException | None = None
        self._taken = 0

    def look(self, phase: str, done: int, total: int) -> None:
        self._raise_if_stopped()
        if self._report is not None:
            self._report(phase, done, total)

    def room_for(self, key: str, dtype: str, shape: list[int]) -> int | None:
        """The address of memory for a tensor; None while the last one has not been taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop is not None or not self._finished, _MOMENT)
            self._raise_if_stopped()
            if self._finished:
                return None
        self._tensor = key, _tensors.empty(dtype, shape, torch.device("cpu"))
        return self._tensor[1].data_ptr()

    def finish(self) -> None:
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def end(self, failure: BaseException | None) -> None:
        """Nothing more comes."""
        with self._changed:
            self._ended, self._failure = True, failure if self._stop is None else None
            self._changed.notify_all()

    def take(self) -> tuple[str, torch.Tensor] | None:
        """Waits for the next tensor; None after the last.

        Raises:
            What ended the gathering, once.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._finished or self._ended)
            failure, self._failure = self._failure, None
            if failure is not None:
                self._finished = False
                try:
                    raise failure
                finally:
                    del failure  # which has this frame
            if not self._finished:
                return None
            taken, self._tensor, self._finished = self._tensor, None, False
            self._taken += 1
            self._changed.notify_all()
            return taken

    def leave(self, error: BaseException | None = None) -> None:
        """Ends the gathering on all ranks, at this one's next block; the others are told why."""
        with self._changed:
            if self._stop is None:
                self._stop = KeyboardInterrupt() if isinstance(error, KeyboardInterrupt) else self._left(error)
            self._changed.notify_all()

    def _left(self, error: BaseException | None) -> UnexpectedError:
        because = "" if error is None else f", by {type(error).__name__}: {error}"
        return UnexpectedError(f"the loop over gather() was left after {self._taken} tensors{because}")

    def _raise_if_stopped(self) -> None:
        if self._stop is not None:
            raise self._stop
