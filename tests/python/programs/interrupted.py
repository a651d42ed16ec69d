"""Rank 0 works, block after block, until it is stopped; the others wait for it. All report how that ended."""

import sys
import time

from process_group import group_works, join, raised_by, report

from rankslice import _native, _world

rank, size = join(timeout=300)
world = _world.communicator()


def work():
    print("here", flush=True)
    while rank == 0:
        time.sleep(0.05)
        _native.still_alive(world)


ended = raised_by(lambda: _native.on_every_rank(world, work))
report({"ended": ended, "group_works": group_works()})
sys.exit(0)
