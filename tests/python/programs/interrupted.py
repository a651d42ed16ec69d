"""Rank 0 works, block after block, until it is stopped; the others wait for it. All report how that ended."""

import sys
import time

import torch.distributed as dist
from process_group import group_works, join, raised_by, report

from rankslice import _native, _world

rank, size = join(timeout=300)
if rank == 0:  # as of a call that the others never entered
    _world._Messages(dist.group.WORLD, "gloo", [0, 1, 2])
world = _world.communicator()


def work():
    print("here", flush=True)
    while rank == 0:
        time.sleep(0.05)
        _native.still_alive(world)


ended = raised_by(lambda: _native.on_every_rank(world, work))
report({"ended": ended, "group_works": group_works()})
sys.exit(0)
