"""How far a long call is, for people."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Callable, Iterator, Union

from rankslice import _steps
from rankslice.errors import UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

    from rankslice import _native

Report = Callable[[str, int, int], None]
"""Called with the phase ("load", "verify", "to_hf", …), this rank's bytes that are done, and those in all."""

Progress = Union[bool, Report, None]
"""What long calls take: True for a bar of tqdm on the first rank, a function for every rank, None or False."""


@contextmanager
def reporting(
    progress: Progress, world: _native.Communicator | None = None, first_rank: bool = True
) -> Iterator[Report | None]:
    """The function that C++ calls while ``progress`` is shown, or None. Ends the bar. Collective over ``world``.

    Raises:
        UsageError: a bar is asked for, and tqdm is not installed; or ``progress`` is none of what it may be. On all
            ranks alike.
    """
    report = _steps.agreed(world, lambda: _report_of(progress, first_rank))
    try:
        yield report
    finally:
        if isinstance(report, _Bar):
            report.close()


def _report_of(progress: Progress, first_rank: bool) -> Report | None:
    if progress is None or progress is False or (progress is True and not first_rank):
        return None
    if progress is True:
        return _Bar()
    if callable(progress):
        return progress
    raise UsageError(f"progress: expected True, a function (phase, done, total) or None, got {progress!r}")


class _Bar:
    """One bar of tqdm for each phase."""

    def __init__(self) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise UsageError("progress=True needs tqdm: pip install tqdm, or give a function") from None
        self._new_bar, self._phase = tqdm, ""
        self._bar: tqdm | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._bar is None or phase != self._phase:
            self.close()
            self._phase = phase
            self._bar = self._new_bar(desc=phase, total=total, unit="B", unit_scale=True)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
