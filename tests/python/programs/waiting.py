"""Rank 1 waits for rank 0, which never comes."""

import signal

from process_group import join

from rankslice import _world

rank, size = join(timeout=300)
world = _world.communicator()
print("here", flush=True)
if rank == 0:
    signal.pause()
world.sum([1])
