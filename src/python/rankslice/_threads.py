"""How many threads move and digest the bytes of a rank."""

from __future__ import annotations

import os

from rankslice import _native, _steps
from rankslice.errors import UsageError


def decided(threads: int | None, world: _native.Communicator | None) -> int:
    """What is asked for, or this rank's share of the processors of its host. Collective over ``world``.

    Raises:
        UsageError: a number that is none of threads, on all ranks alike.
    """

    def require_some() -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads: expected 1 or more, got {threads}")

    _steps.agreed(world, require_some)
    # Ranks that work alone do not know one another; torchrun tells how many there are on the host.
    return _native.decide_threads(world, threads or 0, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
