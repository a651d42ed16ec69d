"""How many threads move and digest the bytes of a rank."""

from __future__ import annotations

import os
import re

from rankslice import _native, _steps
from rankslice.errors import UsageError

_PROCESSES_OF_HOST = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def decided(threads: int | None, world: _native.Communicator | None) -> int:
    """What is asked for, or this rank's share of the processors of its host. Collective over ``world``.

    Raises:
        UsageError: a number that is none of threads, on all ranks alike.
    """

    def require_some() -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads: expected 1 or more, got {threads}")

    _steps.agreed(world, require_some)
    return _native.decide_threads(world, threads or 0, _processes_of_host())


def shared(world: _native.Communicator | None) -> int:
    """For calls without a number: 0 for ranks of a world, which agree on it, else a fair share. Local."""
    return 0 if world is not None else _native.decide_threads(None, 0, _processes_of_host())


def _processes_of_host() -> int:
    """Ranks that work alone do not know one another; launchers tell how many there are."""
    told = [os.environ.get(name, "") for name in _PROCESSES_OF_HOST]
    told += os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")  # "4(x2),3": not which host is this one
    return max([1, *(int(number[0]) for text in told if (number := re.match(r"\d+", text)))])
